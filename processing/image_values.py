# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Scales the values of images to 8 bits: fractions, and whole numbers of 8 to 16 bits.

The largest value of the colours decides how many bits they have, because 16 bits per value in a file only say how the
values are stored. Pillow reads 16 bits of grey, but only the upper 8 bits of colours and of grey with transparency.
"""

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from .image_metadata import ORIENTATION


_MAX_SAMPLE_VALUE, _BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANES = 281, 258, 262, 284  # TIFF tags
_SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
# Pillow's names of layouts with 16 bits per colour, and their order of bytes.
_16_BITS = re.compile(r"(RGB|RGBA|RGBa|RGBX|[RGBA]);16([BLN])|LA;16B")


def to_uint8(values: np.ndarray, declared: int = 0) -> np.ndarray:
    """Scales values of unknown range (see [`images.open_image`]): grey `(H, W)`, or colours `(H, W, C)`, which have
    2 or 4 channels if the last is alpha. `declared` is the largest possible value, if it is known."""
    if values.dtype in (np.uint8, np.bool_):
        return values if values.dtype == np.uint8 else values * np.uint8(255)
    if values.ndim == 3 and values.shape[2] in (2, 4):
        colours, alpha = values[..., :-1], values[..., -1:]
        # Files of 12 bits have an alpha of 12 or of 16 bits, never of fewer bits than the colours.
        scaled = to_uint8(colours, declared), to_uint8(alpha, max(int(colours.max()), declared))
        return np.concatenate(scaled, axis=-1)
    low, high = values.min().item(), values.max().item()
    if values.dtype.kind == "f" and 255 < high <= 65535 and np.array_equal(values, np.rint(values)):
        values = values.astype(np.int32)
    is_fraction = values.dtype.kind == "f"
    if not low >= 0 or not high <= (255 if is_fraction else 65535):
        expected = "fractions from 0 to 1, or whole numbers from 0 to 255 or 65535"
        raise ValueError(f"its values go from {low:g} to {high:g}; an image has {expected}")
    if is_fraction:
        return np.rint(values.astype(np.float32) * (255 if high <= 1 else 1)).astype(np.uint8)
    bits = next(bits for bits in (8, 10, 12, 14, 16) if max(high, declared) < 1 << bits)
    return (values >> (bits - 8)).astype(np.uint8)


def grey_to_uint8(image: Image.Image) -> Image.Image:
    """Returns an image of mode I;16, I or F as one of mode L, or LA if one of its values is transparent."""
    values = np.asarray(image)
    grey = to_uint8(values, _declared_maximum(image))
    if _tags(image).get(_PHOTOMETRIC) == 0:  # 0 is white
        grey = 255 - grey
    if isinstance(transparent := image.info.get("transparency"), int):
        grey = np.stack([grey, np.where(values == transparent, 0, 255).astype(np.uint8)], axis=-1)
    return Image.fromarray(grey)


def with_all_bits(image: ImageFile.ImageFile, reopen: Callable[[], ImageFile.ImageFile]) -> Image.Image:
    """Returns an image whose 8 bits are those that its values need, if it has 16 bits per colour. `reopen` opens the
    same image again. Bright images are returned as Pillow reads them."""
    rawmodes = _rawmodes(image)
    if not rawmodes or not all(map(_16_BITS.fullmatch, rawmodes)):
        return image
    is_packed = image.tile[0].codec_name == "libtiff"
    straight = [rawmode.replace("RGBa", "RGBA") for rawmode in rawmodes]
    _set_rawmodes(image, rawmodes)
    transparent = image.info.get("transparency") if image.mode == "RGB" else None
    if np.asarray(image)[..., :3].max() >= 1 << 6 and transparent is None and straight == rawmodes:
        return image
    if is_packed and _has_planes(image):
        raise ValueError("its 16 bits per colour are compressed in separate planes: save it with interleaved colours")

    def decode(rawmodes: list[str]) -> np.ndarray:
        opened = reopen()
        _set_rawmodes(opened, rawmodes)
        return np.asarray(opened).astype(np.uint16)

    if rawmodes[0] == "LA;16B":  # four bytes for each pixel
        data = decode(["RGBA"] * len(rawmodes))
        values = data[..., ::2] << 8 | data[..., 1::2]
    else:
        values = decode(straight) << 8 | decode([rawmode[:-1] + _SWAPPED[rawmode[-1]] for rawmode in straight])
        if straight != rawmodes:  # colours are multiplied by alpha
            alpha = values[..., 3:].astype(np.int64)
            values[..., :3] = np.minimum(values[..., :3] * alpha.max() // np.maximum(alpha, 1), 65535)
    if transparent is not None:
        alpha = np.where((values == transparent).all(axis=-1, keepdims=True), 0, 65535)
        values = np.concatenate([values, alpha.astype(np.uint16)], axis=-1)
    result = Image.fromarray(to_uint8(values, _declared_maximum(image)))
    result.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION)
    return result


def _rawmodes(image: ImageFile.ImageFile) -> list[str]:
    """Returns the layout of each part of the file. Of two layouts, Pillow reads 16 bits as 8 or cannot read them."""
    if [tile[::3] for tile in image.tile] == [("ppm", ("RGB", 65535))]:
        return ["RGB;16B"]
    arguments = [tile.args if isinstance(tile.args, tuple) else (tile.args,) for tile in image.tile]
    rawmodes = [first[0] if first and isinstance(first[0], str) else "" for first in arguments]
    if rawmodes and _has_planes(image) and image.tile[0].codec_name == "raw":
        if not set(rawmodes) <= set("RGBA"):
            raise ValueError("its 16 bits per colour are in separate planes: save it with interleaved colours")
        order = "L" if _tags(image).prefix == b"II" else "B"
        return [f"{rawmode};16{order}" for rawmode in rawmodes]
    return rawmodes


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {})


def _has_planes(image: Image.Image) -> bool:
    tags = _tags(image)
    return tags.get(_PLANES) == 2 and len(image.getbands()) > 1 and np.max(tags.get(_BITS_PER_SAMPLE, 0)) == 16


def _set_rawmodes(image: ImageFile.ImageFile, rawmodes: list[str]) -> None:
    def changed(tile, rawmode):
        if tile.codec_name == "ppm":
            return tile._replace(codec_name="raw", args=rawmode)
        return tile._replace(args=rawmode if isinstance(tile.args, str) else (rawmode, *tile.args[1:]))

    image.tile = [changed(tile, rawmode) for tile, rawmode in zip(image.tile, rawmodes, strict=True)]


def _declared_maximum(image: Image.Image) -> int:
    """Returns the largest value that the tags of a TIFF image announce for its colours, or 0. 16 bits per sample only
    say how the values are stored."""
    tags = _tags(image)
    with suppress(Exception):  # damaged metadata
        if maximum := int(np.max(np.ravel(tags[_MAX_SAMPLE_VALUE])[:3])):
            return min(maximum, 65535)
    with suppress(Exception):
        bits = int(np.max(tags[_BITS_PER_SAMPLE]))
        return (1 << bits) - 1 if bits < 16 else 0
    return 0
