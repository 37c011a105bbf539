"""Images of every mode, and the pixel values that the processor must compute from them."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.tiny import IMAGE_SIZE


STATISTICS = {
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}


def picture(mode: str = "RGB", size: tuple[int, int] = (50, 20), seed: int = 0) -> Image.Image:
    """Noise of `size` (width, height) in any mode that a file can have."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    if mode == "P with transparency":
        image = Image.fromarray(noise[..., :3]).quantize(16)
        image.info["transparency"] = 3
        return image
    return Image.fromarray(noise[..., :3]).quantize(16) if mode == "P" else Image.fromarray(noise).convert(mode)


def expected_pixels(image: Image.Image, statistics: str = "clip", size: int = IMAGE_SIZE) -> np.ndarray:
    mean, std = STATISTICS[statistics]
    rgb, opaque = Image.new("RGB", image.size, "white"), image.convert("RGBA")
    rgb.paste(opaque.convert("RGB"), mask=opaque.getchannel("A"))
    squashed = np.asarray(rgb.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    return ((squashed - mean) / std).transpose(2, 0, 1)


def draw(folder: Path, pictures: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(pictures):
        noise = np.random.default_rng(i).integers(0, 255, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i:04}.png")
    return folder


CORRUPT = {"truncated.jpg": "truncated", "empty.png": "the file is empty", "text.webp": "not an image"}


def corrupt(folder: Path) -> None:
    Image.new("RGB", (300, 300), "red").save(folder / "truncated.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "truncated.jpg").read_bytes()[:800])
    (folder / "empty.png").touch()
    (folder / "text.webp").write_text("a painting")
