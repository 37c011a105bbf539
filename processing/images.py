# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Pictures from wherever they come (files, URLs, base64, PIL, arrays) to what the model is to see.

How many pixels a picture may have, so that a small file cannot fill the memory, is Pillow's limit of 178 megapixels.
For larger scans say `max_megapixels=500` where a picture is opened, or set the environment variable
SEVLM_MAX_MEGAPIXELS=500, which also holds where other libraries open pictures (`datasets`, while training).
"""

import base64
import io
import math
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .downloads import download


LIMIT_VARIABLE = "SEVLM_MAX_MEGAPIXELS"
# Formats that are programs, which Pillow has others run.
PROGRAMS = ("EPS",)
_LARGE = 40_000_000  # pixels
_one_large_at_a_time = threading.Lock()
_opening = threading.Lock()


class TooManyPixels(ValueError):
    """A picture above the limit, of `width` x `height` pixels."""

    def __init__(self, width: int, height: int, limit: float):
        self.width, self.height = width, height
        needed = math.ceil(width * height / 1e6)
        super().__init__(
            f"it has {needed:,} megapixels ({width:,} x {height:,}), above the limit of {limit:,.4g}. If it is no "
            f"trap, raise the limit: max_megapixels={needed} (command line: --max_megapixels {needed}; everywhere: "
            f"{LIMIT_VARIABLE}={needed})"
        )


def set_max_megapixels(megapixels: float) -> None:
    """Let this process, and those it starts, open pictures of so many megapixels, whichever library opens them.

    Raises:
        ValueError: it is no number above 0.
    """
    if not 0 < megapixels < math.inf:
        raise ValueError(f"The largest picture has a number of megapixels above 0, not {megapixels:g}.")
    # Data loader workers may begin as fresh processes.
    os.environ[LIMIT_VARIABLE] = f"{megapixels:.12g}"
    # Pillow refuses what is above twice this number, and warns above once.
    Image.MAX_IMAGE_PIXELS = math.ceil(megapixels * 1e6 / 2)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_picture(
    source,
    timeout: float | None = None,
    max_megapixels: float | None = None,
    max_megabytes: float | None = None,
) -> Image.Image:
    """A picture as the model is to see it, whichever way it comes: upright as its EXIF data say, 8 bits of RGB, white
    where it is transparent; of an animation the first frame.

    Args:
        source: a path, URL or base64 text; a PIL image of any mode; an array or tensor `(H, W)`, `(H, W, C)` or
            `(C, H, W)` of 1, 3 or 4 channels, with values from 0 to 255 or fractions from 0 to 1.
        timeout: seconds that a URL may take altogether (default: 60).
        max_megapixels: millions of pixels of a file, URL or base64 text (default: see the top of this file).
        max_megabytes: of what a URL sends (default: 256).

    Raises:
        ValueError: the reason, if it cannot be read.
    """
    try:
        if isinstance(source, (str, os.PathLike)):
            with _open(os.fsdecode(source), timeout, max_megabytes) as file, identify(file, max_megapixels) as picture:
                is_large = picture.width * picture.height > _LARGE
                # Threads decode at once, and one large picture takes gigabytes.
                with _one_large_at_a_time if is_large else nullcontext():
                    return _as_rgb(picture)
        return _as_rgb(source if isinstance(source, Image.Image) else _from_array(source))
    except UnidentifiedImageError as error:
        raise ValueError("not an image that Pillow can read") from error
    except Exception as error:  # plug-ins raise far more than OSError on damaged data
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{kind}{str(error)[:300]}") from error


def identify(file: BinaryIO, max_megapixels: float | None = None, formats: tuple[str, ...] | None = None):
    """A PIL image of which nothing but the header is read yet, which is as large as it is allowed to be.

    Raises:
        TooManyPixels: it is larger than `max_megapixels` (None: than what Pillow refuses).
        ValueError: it is a program for another program to run.
        Exception: whatever Pillow's plug-ins raise on damaged data.
    """
    with _opening:
        limit = max_megapixels
        if limit is None:
            limit = math.inf if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS / 1e6
    try:
        picture = Image.open(file, formats=formats)
    except Image.DecompressionBombError:
        # Pillow's limit is one for the whole process; the limit of this picture is looked at below.
        with _opening:
            of_pillow, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                picture = Image.open(file, formats=formats)
            finally:
                Image.MAX_IMAGE_PIXELS = of_pillow
    if picture.width * picture.height > limit * 1e6:
        raise TooManyPixels(*picture.size, limit)
    if picture.format in PROGRAMS:
        raise ValueError(f"{picture.format} is a program that draws a picture, and is not run: save it as a PNG")
    return picture


def open_file(name: str | os.PathLike) -> BinaryIO:
    """A file for Pillow to read, not to map: a mapped file that another process shortens ends this one (SIGBUS)."""
    return _Unmapped(io.FileIO(name))


class _Unmapped(io.BufferedReader):
    def fileno(self):
        raise io.UnsupportedOperation("fileno")


def one_by_one(images) -> Iterator:
    """The pictures of nested lists and of stacked arrays."""
    if isinstance(images, (list, tuple)) or (hasattr(images, "ndim") and images.ndim > 3):
        for image in images:
            yield from one_by_one(image)
    else:
        yield images


def read_picture(source, *limits: float | None) -> Image.Image:
    """As `open_picture`, whose reason comes with the picture's name."""
    try:
        return open_picture(source, *limits)
    except ValueError as error:
        name = f"({type(source).__name__})"
        if isinstance(source, (str, os.PathLike)):
            name = os.fsdecode(source)
            name = repr(name if len(name) <= 200 else name[:200] + "...")
        raise ValueError(f"Cannot read the picture {name}: {error}") from error


def _open(name: str, timeout: float | None, max_megabytes: float | None) -> BinaryIO:
    if name.startswith(("http://", "https://")):
        content, kind = download(name, timeout, max_megabytes)
        try:
            identify(io.BytesIO(content), math.inf)
        except UnidentifiedImageError as error:
            raise ValueError(f"the server sends {kind}, not an image that Pillow can read") from error
        return io.BytesIO(content)
    if os.path.isfile(name):
        if not os.path.getsize(name):
            raise ValueError("the file is empty")
        return open_file(name)
    if os.path.islink(name) and not os.path.exists(name):
        raise ValueError(f"a link that leads nowhere ({os.readlink(name)})")
    if os.path.isdir(name):
        raise ValueError("a folder")
    if os.path.exists(name):
        # Reading could wait for ever.
        raise ValueError("not a file but a pipe, a socket or a device")
    text = name.partition(",")[2] if name.startswith("data:") else name
    try:
        content = base64.decodebytes(text.encode())
        identify(io.BytesIO(content), math.inf)
    except Exception as error:
        raise ValueError("there is no such file (nor is it a URL or base64)") from error
    return io.BytesIO(content)


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


def _take_limit_of_the_environment() -> None:
    if (megapixels := os.environ.get(LIMIT_VARIABLE)) is not None:
        try:
            set_max_megapixels(float(megapixels))
        except ValueError as error:
            raise ValueError(f"The environment variable {LIMIT_VARIABLE} is {megapixels!r}: {error}") from error


_take_limit_of_the_environment()
