"""Images for the processor: every mode, file, orientation and array, and images that cannot be read."""

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, TiffTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from processing import SEVLMProcessor
from processing.artemis import EMOTIONS
from processing.images import check_image, open_image, read_image
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


def deep_png(values: np.ndarray, transparent: tuple[int, ...] = ()) -> bytes:
    """A PNG with 16 bits per colour, which Pillow cannot write, and with a value that is transparent."""
    lines = [b"\0" + row.astype(">u2").tobytes() for row in values]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    content = chunk(b"IHDR", header)
    if transparent:
        content += chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    return b"\x89PNG\r\n\x1a\n" + content + chunk(b"IDAT", zlib.compress(b"".join(lines))) + chunk(b"IEND", b"")


def deep_tiff(values: np.ndarray, order: str, kind: int = 2, alpha: int = 2, planes=False, packed=False) -> bytes:
    """A TIFF with 16 bits per colour, which Pillow cannot write. `kind` and `alpha` are the numbers in the tags
    PhotometricInterpretation and ExtraSamples. It may have a plane for each colour and be compressed."""
    height, width, colours = values.shape
    parts = np.moveaxis(values, -1, 0) if planes else values[None]
    strips = [part.astype(order + "u2").tobytes() for part in parts]
    strips = [zlib.compress(strip) for strip in strips] if packed else strips
    sizes = [len(strip) for strip in strips]
    places = [8 + sum(sizes[:number]) for number in range(len(strips))]
    tags = {256: [width], 257: [height], 258: [16], 259: [8 if packed else 1], 262: [kind], 273: places}
    tags |= {277: [colours], 278: [height], 279: sizes, 284: [2 if planes else 1]}
    tags |= {338: [alpha]} if colours == 4 else {}
    content, rows = b"".join(strips), []
    for tag, numbers in tags.items():
        packed_numbers = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            packed_numbers, content = struct.pack(order + "I", 8 + len(content)), content + packed_numbers
        rows.append(struct.pack(order + "HHI", tag, 4, len(numbers)) + packed_numbers)
    table = struct.pack(order + "H", len(rows)) + b"".join(rows) + bytes(4)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(order + "I", 8 + len(content)) + content + table


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_values_of_8_to_16_bits_are_stretched_alike_in_files_arrays_and_images(tmp_path, bits):
    values = np.asarray(picture("L")).astype(np.uint16) << (bits - 8) | 1
    values[0, 0] = (1 << bits) - 1
    expected = np.asarray(Image.fromarray((values >> (bits - 8)).astype(np.uint8)).convert("RGB"))
    sources = {"array": values, "list": values.astype(np.int64), "floats": values.astype(np.float64)}
    sources |= {"tensor": torch.tensor(values.astype(np.int32)), "16": Image.fromarray(values)}
    sources |= {"32": Image.fromarray(values.astype(np.int32)), "F": Image.fromarray(values.astype(np.float32))}
    for name, image in [("16.png", "16"), ("16.tiff", "16"), ("32.tiff", "32"), ("F.tiff", "F")]:
        sources[image].save(tmp_path / name)
        sources[name] = tmp_path / name
    sources["16.lzw.tiff"] = tmp_path / "16.lzw.tiff"
    sources["16"].save(tmp_path / "16.lzw.tiff", compression="tiff_lzw")
    for name, source in sources.items():
        assert np.array_equal(np.asarray(open_image(source)), expected), name


@pytest.mark.parametrize("colours", [3, 4])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_16_bits_per_colour_are_stretched_alike_in_files_and_arrays(bits, colours):
    values = np.asarray(picture("RGBA"))[..., :colours].astype(np.uint16) << (bits - 8) | 1
    values[0, 0] = (1 << bits) - 1
    expected = np.asarray(open_image((values >> (bits - 8)).astype(np.uint8)))
    files = {"array": values, "png": deep_png(values)}
    for order in "<>":
        files |= {order: deep_tiff(values, order), f"{order} packed": deep_tiff(values, order, packed=True)}
        files[f"{order} planes"] = deep_tiff(values, order, planes=True)
    if colours == 3:
        files["ppm"] = b"P6 %d %d 65535\n" % picture().size + values.astype(">u2").tobytes()
    for name, source in files.items():
        assert np.array_equal(np.asarray(open_image(source)), expected), name
        assert check_image(source) is None


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("bits", [8, 12, 14, 16])
def test_an_opaque_alpha_of_16_bits_does_not_change_the_colours(bits, colours):
    values = np.asarray(picture())[..., :colours].astype(np.uint16) << (bits - 8)
    expected = np.asarray(open_image(values))
    for maximum in (65535, (1 << bits) - 1):
        opaque = np.concatenate([values, np.full_like(values[..., :1], maximum)], axis=-1)
        files = {"png": deep_png(opaque)}
        if colours == 3:
            files |= {"array": opaque, "floats": opaque.astype(np.float32), "tensor": torch.tensor(opaque.astype(int))}
            files |= {f"{order}{alpha}": deep_tiff(opaque, order, alpha=alpha) for order in "<>" for alpha in (1, 2)}
        for name, source in files.items():
            assert np.array_equal(np.asarray(open_image(source)), expected), (name, maximum)


def test_a_half_transparent_picture_of_12_bits_is_blended_with_white_in_every_file():
    colours = np.full((4, 4, 3), 1024, dtype=np.uint16)
    alpha = np.full((4, 4, 1), 32768, dtype=np.uint16)
    alpha[0] = 65535
    values = np.concatenate([colours, alpha], axis=-1)
    multiplied = np.concatenate([(colours.astype(np.int64) * alpha // 65535).astype(np.uint16), alpha], axis=-1)
    for source in (values, deep_png(values), deep_tiff(values, "<"), deep_tiff(multiplied, ">", alpha=1)):
        image = np.asarray(open_image(source)).astype(int)
        assert (image[0] == 64).all() and abs(image[1:] - 160).max() <= 1


@pytest.mark.parametrize("transparent", [(300,), (300, 0, 0), (3000, 2, 1)])
@pytest.mark.parametrize("maximum", [4095, 65535])
def test_the_transparent_value_of_a_16_bit_png_is_white(transparent, maximum):
    values = np.full((2, 3, len(transparent)), maximum - 1, dtype=np.uint16)
    values[0, 0], values[0, 1] = transparent, np.add(transparent, 1)
    image = np.asarray(open_image(deep_png(values, transparent)))
    expected = np.asarray(open_image(values)).copy()
    expected[0, 0] = 255
    assert np.array_equal(image, expected) and image[0, 1].min() < 30


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_grey_tiff_of_16_bits_in_which_0_is_white_is_inverted(bits):
    values = np.asarray(picture("L"))[..., None].astype(np.uint16) << (bits - 8)
    expected = 255 - np.asarray(open_image(values))
    for packed in (False, True):
        content = deep_tiff(values, "<", kind=0, packed=packed)
        assert np.array_equal(np.asarray(open_image(content)), expected)
        with Image.open(io.BytesIO(content)) as opened:
            assert np.array_equal(np.asarray(open_image(opened)), expected)


@pytest.mark.parametrize("colours", [3, 4])
def test_colours_in_compressed_planes_are_read_if_pillow_keeps_the_bits_that_they_need(colours):
    values = np.asarray(picture("RGBA"))[..., :colours].astype(np.uint16) * 257
    content = deep_tiff(values, "<", planes=True, packed=True)
    assert np.array_equal(np.asarray(open_image(content)), np.asarray(open_image(values)))
    with pytest.raises(ValueError, match="in separate planes: save it with interleaved colours"):
        open_image(deep_tiff(values >> 4, "<", planes=True, packed=True))


def test_a_tiff_file_says_how_many_bits_its_values_have(tmp_path):
    values = (np.asarray(picture("L")) >> 1).astype(np.uint16)
    for maximum, shift in {0: 0, 100: 0, 4095: 4, 65535: 8}.items():
        Image.fromarray(values).save(tmp_path / "dark.tiff", tiffinfo={281: maximum})
        expected = np.asarray(Image.fromarray((values >> shift).astype(np.uint8)).convert("RGB"))
        assert np.array_equal(np.asarray(open_image(tmp_path / "dark.tiff")), expected), maximum
    tags = ImageFileDirectory_v2()
    tags.tagtype[281], tags[281] = TiffTags.ASCII, "many"
    Image.fromarray(values).save(tmp_path / "odd.tiff", tiffinfo=tags)
    assert np.asarray(open_image(tmp_path / "odd.tiff")).max() == values.max()


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


class Reader:
    """A file that can only be read, such as a response of urllib."""

    def __init__(self, content):
        self.content = content

    def read(self):
        return self.content


def test_a_file_that_can_only_be_read_is_read_or_refused_in_one_line():
    file = io.BytesIO()
    picture().save(file, "PNG")
    assert np.array_equal(np.asarray(open_image(Reader(file.getvalue()))), np.asarray(picture()))
    for content, reason in {"text": "a file that does not give bytes", b"": "the file is empty"}.items():
        with pytest.raises(ValueError, match=f"Cannot read the picture .Reader.: {reason}"):
            read_image(Reader(content))


def test_the_error_names_the_whole_path_of_a_path_and_of_an_open_file(tmp_path):
    broken = tmp_path / "style" / "broken.jpg"
    broken.parent.mkdir()
    broken.write_text("a painting")
    with open(broken, "rb") as file:
        for source in (broken, str(broken), file, {"path": broken, "bytes": None}):
            with pytest.raises(ValueError, match=f"Cannot read the picture '{broken}': not an image"):
                read_image(source)


@pytest.fixture
def archive(tmp_path):
    """The start of an address in a ZIP file with a picture and a text, and the rest of the address."""
    picture().save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
        file.write(tmp_path / "a.png", "inside/a.png")
        file.writestr("text.png", "a painting")
    return "zip://", f"::{tmp_path / 'all.zip'}"


def test_a_picture_at_an_address_of_fsspec_is_read(archive, tmp_path):
    expected = np.asarray(picture())
    address = "inside/a.png".join(archive)
    for source in (address, {"path": address, "bytes": None}, f"file://{tmp_path / 'a.png'}"):
        assert np.array_equal(np.asarray(open_image(source)), expected)
        assert check_image(source) is None
    with pytest.raises(ValueError, match="more than 0.001 MB, the limit: see --max_megabytes"):
        open_image(address, max_megabytes=0.001)


@pytest.mark.parametrize(
    ("name", "reason"), [("missing.png", "missing.png"), ("text.png", "not an image"), ("inside", "inside")]
)
def test_the_error_for_a_picture_at_an_address_names_the_address(archive, name, reason):
    address = name.join(archive)
    for source in (address, {"path": address, "bytes": None}):
        with pytest.raises(ValueError, match=f"Cannot read the picture '{address}': .*{reason}"):
            read_image(source)
    with pytest.raises(ValueError, match="Cannot read the picture 'abc://a.png': Protocol not known: abc"):
        read_image("abc://a.png")


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
