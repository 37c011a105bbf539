"""Images for the processor: every mode, file, orientation and array, and images that cannot be read."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from processing import SEVLMProcessor
from processing.artemis import EMOTIONS
from processing.tiny_tokenizer import train_tokenizer
from tests.helpers.images import STATISTICS, expected_pixels, picture
from tests.helpers.tiny import IMAGE_SIZE, SENTENCES


@pytest.mark.parametrize("statistics", ["clip", "imagenet"])
@pytest.mark.parametrize("size", [(50, 20), (20, 50), (32, 32), (7, 300)])
def test_images_are_squashed_without_a_crop_and_normalised(statistics, size):
    tokenizer = train_tokenizer(SENTENCES, EMOTIONS, vocab_size=400)
    processor = SEVLMProcessor.from_tokenizer(tokenizer, image_size=IMAGE_SIZE, image_statistics=statistics)
    values = processor(images=picture(size=size), return_tensors="pt")["pixel_values"]
    assert values.dtype == torch.float32
    np.testing.assert_allclose(values[0].numpy(), expected_pixels(picture(size=size), statistics), atol=1e-5)


def both_ways(processor, image: Image.Image, path: Path, **saving) -> np.ndarray:
    """Pixel values of a saved image, which are the same for its path and for the opened image."""
    image.save(path, **saving)
    by_path = processor(images=path)["pixel_values"]
    with Image.open(path) as opened:
        assert np.array_equal(processor(images=opened)["pixel_values"], by_path)
    return by_path


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "P with transparency", "1", "CMYK"])
def test_images_and_files_of_every_mode_are_read_as_rgb_on_white(processor, tmp_path, mode):
    values = processor(images=[picture(mode), picture("RGB", (9, 60))])["pixel_values"]
    # Blending transparency may round one of 255 steps the other way.
    atol = 0.02 if mode in ("LA", "RGBA") else 1e-5
    np.testing.assert_allclose(values[0], expected_pixels(picture(mode)), atol=atol)
    np.testing.assert_allclose(values[1], expected_pixels(picture("RGB", (9, 60))), atol=1e-5)
    path = tmp_path / ("picture.tiff" if mode == "CMYK" else "picture.png")
    assert np.array_equal(both_ways(processor, picture(mode), path), values[:1])


def test_16_bit_grey_equals_its_8_bit_version(processor, tmp_path):
    grey = np.asarray(picture("L"))
    expected = processor(images=picture("L"))["pixel_values"]
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    assert np.array_equal(processor(images=deep)["pixel_values"], expected)
    for kind in ("png", "tiff"):
        assert np.array_equal(both_ways(processor, deep, tmp_path / f"deep.{kind}"), expected), kind
    big_endian = Image.frombytes("I;16B", deep.size, (grey.astype(">u2") * 257).tobytes())
    assert np.array_equal(both_ways(processor, big_endian, tmp_path / "big.tiff"), expected)
    (tmp_path / "deep.pgm").write_bytes(b"P5 %d %d 65535\n" % deep.size + (grey.astype(">u2") * 257).tobytes())
    assert np.array_equal(processor(images=tmp_path / "deep.pgm")["pixel_values"], expected)
    # A dark 16-bit image stays dark.
    night, black = Image.fromarray(grey.astype(np.uint16)), Image.new("L", deep.size)
    assert np.array_equal(processor(images=night)["pixel_values"], processor(images=black)["pixel_values"])


def test_grey_integers_and_fractions_are_scaled_by_their_range(processor, tmp_path):
    grey = np.asarray(picture("L"))
    expected = processor(images=picture("L"))["pixel_values"]
    for name, values in {
        "whole": grey.astype(np.int32),
        "fractions": grey.astype(np.float32) / 255,
        "floats": grey.astype(np.float32),
    }.items():
        assert np.array_equal(both_ways(processor, Image.fromarray(values), tmp_path / f"{name}.tiff"), expected), name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_data_say(processor, tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    upright = picture() if orientation == 1 else picture().transpose(turned[orientation])
    values = both_ways(processor, picture(), tmp_path / "picture.png", exif=exif)
    assert np.array_equal(values, processor(images=upright)["pixel_values"])


def test_the_first_frame_of_an_animation_is_read(processor, tmp_path):
    first, second = picture("P"), picture("P", seed=1)
    values = both_ways(processor, first, tmp_path / "a.gif", save_all=True, append_images=[second])
    assert np.array_equal(values, processor(images=first)["pixel_values"])


def arrays() -> dict:
    """One image in every form that an array may have."""
    values = np.asarray(picture())
    tensor = torch.tensor(values).permute(2, 0, 1)
    return {
        "bytes": values,
        "floats": values.astype(np.float64),
        "fractions": values.astype(np.float32) / 255,
        "half": (values / 255).astype(np.float16),
        "channels first": values.transpose(2, 0, 1),
        "16 bits": values.astype(np.uint16) * 257,
        "long": values.astype(np.int64),
        "opaque": np.concatenate([values, np.full_like(values[..., :1], 255)], axis=-1),
        "tensor": tensor,
        "tensor of fractions": tensor / 255,
        "stack of one": values[None],
        "nested": [[values]],
    }


@pytest.mark.parametrize("form", arrays())
def test_arrays_of_every_form_give_the_same_image(processor, form):
    assert np.array_equal(
        processor(images=arrays()[form])["pixel_values"], processor(images=picture())["pixel_values"]
    )


def test_arrays_may_be_grey_or_black_and_white(processor):
    grey, expected = np.asarray(picture("L")), processor(images=picture("L"))["pixel_values"]
    for values in (grey, grey[..., None], grey[None], grey / 255, torch.tensor(grey)[None]):
        assert np.array_equal(processor(images=values)["pixel_values"], expected), values.shape
    line = np.asarray(picture("1"))
    assert np.array_equal(processor(images=line)["pixel_values"], processor(images=picture("1"))["pixel_values"])


def test_a_stack_of_arrays_and_a_list_with_a_path_are_lists_of_images(processor, tmp_path):
    pictures = [picture(seed=seed) for seed in range(3)]
    expected = processor(images=pictures)["pixel_values"]
    pictures[0].save(tmp_path / "picture.png")
    assert np.array_equal(processor(images=[tmp_path / "picture.png", *pictures[1:]])["pixel_values"], expected)
    assert np.array_equal(processor(images=np.stack([np.asarray(one) for one in pictures]))["pixel_values"], expected)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros((4, 4)) - 1, "values go from -1 to -1.*0 to 255"),
        (np.full((4, 4, 3), np.nan), "values go from nan"),
        (np.full((4, 4), 70_000), "values go from 70000"),
        (np.zeros((6, 4, 7)), r"shape \(6, 4, 7\).*\(H, W, 3\)"),
        (np.zeros((0, 4, 3)), r"shape \(0, 4, 3\)"),
        (17, r"\(int\): neither an image nor"),
        (Image.new("RGB", (0, 4)), "no pixels"),
        ("FOLDER", "a folder"),
        ("FOLDER/missing.jpg", "'.*missing.jpg': there is no such file"),
        ("FOLDER/link.jpg", "a broken link .gone.jpg"),
        ("FOLDER/empty.jpg", "the file is empty"),
        ("FOLDER/text.jpg", "not an image that Pillow can read"),
        ("FOLDER/program.png", "EPS is not supported.*save it as a PNG"),
        ("data:image/png;base64,AAAA", "neither a URL nor base64"),
        ("http://127.0.0.1:1/a.jpg", "download failed .ConnectError"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_with_the_reason(processor, tmp_path, source, reason):
    (tmp_path / "link.jpg").symlink_to("gone.jpg")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("a painting")
    (tmp_path / "program.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    source = source.replace("FOLDER", str(tmp_path)) if isinstance(source, str) else source
    with pytest.raises(ValueError, match=f"Cannot read the picture .*{reason}"):
        processor(images=[source])


def test_custom_statistics_are_a_pair_and_the_default_is_224_pixels_with_those_of_clip(processor):
    values = SEVLMProcessor.from_tokenizer(processor.tokenizer)(images=picture())["pixel_values"]
    np.testing.assert_allclose(values[0], expected_pixels(picture(), "clip", 224), atol=1e-5)
    pair = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    own = SEVLMProcessor.from_tokenizer(processor.tokenizer, image_size=IMAGE_SIZE, image_statistics=pair)
    rgb = expected_pixels(picture()).transpose(1, 2, 0) * STATISTICS["clip"][1] + STATISTICS["clip"][0]
    expected = ((rgb - pair[0]) / pair[1]).transpose(2, 0, 1)
    np.testing.assert_allclose(own(images=picture())["pixel_values"][0], expected, atol=1e-5)


def test_statistics_are_saved_with_the_processor(tmp_path):
    tokenizer = train_tokenizer(SENTENCES, EMOTIONS, vocab_size=400)
    processor = SEVLMProcessor.from_tokenizer(tokenizer, image_size=IMAGE_SIZE, image_statistics="imagenet")
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())["image_processor"]
    assert [saved["image_mean"], saved["image_std"]] == list(STATISTICS["imagenet"])
    values = SEVLMProcessor.from_pretrained(tmp_path)(images=picture())["pixel_values"]
    np.testing.assert_allclose(values[0], expected_pixels(picture(), "imagenet"), atol=1e-5)
