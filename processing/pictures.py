# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Pictures from wherever they come (files, URLs, base64, PIL, arrays) to what the model is to see."""

import base64
import io
import os
from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


def open_picture(source, timeout: float | None = None) -> Image.Image:
    """A picture as the model is to see it, whichever way it comes: upright as its EXIF data say, 8 bits of RGB, white
    where it is transparent; of an animation the first frame.

    Args:
        source: a path, URL or base64 text; a PIL image of any mode; an array or tensor `(H, W)`, `(H, W, C)` or
            `(C, H, W)` of 1, 3 or 4 channels, with values from 0 to 255 or fractions from 0 to 1.
        timeout: seconds that a URL may take.

    Raises:
        ValueError: the reason, if it cannot be read.
    """
    try:
        if isinstance(source, (str, os.PathLike)):
            with _open(os.fsdecode(source), timeout) as picture:
                return _as_rgb(picture)
        return _as_rgb(source if isinstance(source, Image.Image) else _from_array(source))
    except UnidentifiedImageError as error:
        raise ValueError("not an image that Pillow can read") from error
    except Exception as error:  # plug-ins raise far more than OSError on damaged data
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{kind}{str(error)[:300]}") from error


def one_by_one(images) -> Iterator:
    """The pictures of nested lists and of stacked arrays."""
    if isinstance(images, (list, tuple)) or (hasattr(images, "ndim") and images.ndim > 3):
        for image in images:
            yield from one_by_one(image)
    else:
        yield images


def read_picture(source, timeout: float | None = None) -> Image.Image:
    """As `open_picture`, whose reason comes with the picture's name."""
    try:
        return open_picture(source, timeout)
    except ValueError as error:
        name = f"({type(source).__name__})"
        if isinstance(source, (str, os.PathLike)):
            name = os.fsdecode(source)
            name = repr(name if len(name) <= 200 else name[:200] + "...")
        raise ValueError(f"Cannot read the picture {name}: {error}") from error


def _open(name: str, timeout: float | None) -> Image.Image:
    if name.startswith(("http://", "https://")):
        address = quote(name, safe="%/:?#[]@!$&'()*+,;=~")
        try:
            # Museums' servers turn away those who do not say who they are.
            with urlopen(Request(address, headers={"User-Agent": "SEVLM"}), timeout=timeout) as answer:
                return Image.open(io.BytesIO(answer.read()))
        except HTTPError as error:
            raise ValueError(f"the server answers {error.code} {error.reason}") from error
    if os.path.isfile(name):
        if not os.path.getsize(name):
            raise ValueError("the file is empty")
        return Image.open(name)
    if os.path.islink(name):
        raise ValueError(f"a link that leads nowhere ({os.readlink(name)})")
    if os.path.isdir(name):
        raise ValueError("a folder")
    text = name.partition(",")[2] if name.startswith("data:") else name
    try:
        return Image.open(io.BytesIO(base64.decodebytes(text.encode())))
    except Exception as error:
        raise ValueError("there is no such file (nor is it a URL or base64)") from error


def _as_rgb(picture: Image.Image) -> Image.Image:
    if 0 in picture.size:
        raise ValueError("it has no pixels")
    picture = ImageOps.exif_transpose(picture)
    # Pillow's conversion clips what is above 255, so that 16 bits become a blank white.
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        picture = Image.fromarray(_eight_bits(np.asarray(picture)))
    if picture.has_transparency_data:
        # White, whatever colour happens to lie behind the transparent parts.
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _from_array(source) -> Image.Image:
    if not hasattr(source, "__array__"):
        raise ValueError("neither an image nor a path, URL or array")
    values = np.asarray(source.detach().cpu() if hasattr(source, "detach") else source)
    shape = values.shape
    if values.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if not values.size or (values.ndim != 2 and (values.ndim != 3 or values.shape[2] not in (3, 4))):
        raise ValueError(f"an array of the shape {shape}; a picture has (H, W), (H, W, 3) or (3, H, W)")
    return Image.fromarray(np.ascontiguousarray(_eight_bits(values)))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Numbers whose range nobody has stated: 0 to 255, fractions from 0 to 1, or whole ones of 16 bits."""
    if values.dtype in (np.uint8, np.bool_):
        return values if values.dtype == np.uint8 else values * np.uint8(255)
    low, high = values.min().item(), values.max().item()
    is_fraction = values.dtype.kind == "f"
    if not low >= 0 or not high <= (255 if is_fraction else 65535):
        raise ValueError(f"its values go from {low:g} to {high:g}; a picture has 0 to 255, or fractions from 0 to 1")
    if is_fraction:
        return np.rint(values.astype(np.float32) * (255 if high <= 1 else 1)).astype(np.uint8)
    return (values if high <= 255 else values >> 8).astype(np.uint8)
