# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Opens, downloads, finds and checks images.

Images above Pillow's limit of 178 megapixels are refused, because a small file can decode to gigabytes. To open larger
scans, pass `max_megapixels=500`, or set the environment variable SEVLM_MAX_MEGAPIXELS=500, which also applies to other
libraries that open images (`datasets`, during training).
"""

import asyncio
import base64
import io
import math
import os
import ssl
import threading
import unicodedata
import warnings
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm


try:  # huggingface_hub requires one of the two: httpx2 from version 2.0 on, httpx before
    import httpx2 as httpx
except ImportError:
    import httpx  # type: ignore[no-redef]


LIMIT_VARIABLE = "SEVLM_MAX_MEGAPIXELS"
IMAGE_EXTENSIONS = [".jpg", ".jpeg", ".png", ".webp"]  # in order of preference
TIMEOUT = 60.0  # seconds
MAX_MEGABYTES = 256.0
_CONNECT_TIMEOUT = 15.0  # seconds
_LARGE = 40_000_000  # pixels
_one_large_at_a_time = threading.Lock()
_opening = threading.Lock()


class TooManyPixels(ValueError):
    """An image of `width` x `height` pixels, which is above the limit."""

    def __init__(self, width: int, height: int, limit: float):
        self.width, self.height = width, height
        needed = math.ceil(width * height / 1e6)
        options = f"command line: --max_megapixels {needed}; everywhere: {LIMIT_VARIABLE}={needed}"
        problem = f"it has {needed:,} megapixels ({width:,} x {height:,}), above the limit of {limit:,.4g}"
        super().__init__(f"{problem}. To open it, raise the limit: max_megapixels={needed} ({options})")


def set_max_megapixels(megapixels: float) -> None:
    """Sets the largest image that this process and its child processes open, with any library."""
    if not 0 < megapixels < math.inf:
        raise ValueError(f"The limit must be a number of megapixels above 0, not {megapixels:g}.")
    # For data loader workers, which may be spawned.
    os.environ[LIMIT_VARIABLE] = f"{megapixels:.12g}"
    # Pillow raises above twice this number and warns above it.
    Image.MAX_IMAGE_PIXELS = math.ceil(megapixels * 1e6 / 2)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_image(
    source: Any, timeout: float | None = None, max_megapixels: float | None = None, max_megabytes: float | None = None
) -> Image.Image:
    """Returns an image as the model sees it: the first frame, 8-bit RGB, in its EXIF orientation, on white.

    Args:
        source: a path, URL or base64 text; a PIL image of any mode; an array or tensor `(H, W)`, `(H, W, C)` or
            `(C, H, W)` with 1, 3 or 4 channels and values from 0 to 255 or fractions from 0 to 1.
        timeout: seconds for a whole download (default: 60).
        max_megapixels: largest image; not for arrays and PIL images (default: see the top of this file).
        max_megabytes: largest download (default: 256).

    Raises:
        ValueError: the image cannot be read; the message says why.
    """
    try:
        if isinstance(source, (str, os.PathLike)):
            with _open(os.fsdecode(source), timeout, max_megabytes) as file, identify(file, max_megapixels) as image:
                # Callers decode in threads, and one large image takes gigabytes.
                with _one_large_at_a_time if image.width * image.height > _LARGE else nullcontext():
                    return _as_rgb(image)
        return _as_rgb(source if isinstance(source, Image.Image) else _from_array(source))
    except Exception as error:  # Pillow's plug-ins raise many types on damaged data
        raise ValueError(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    return ("" if isinstance(error, ValueError) else f"{type(error).__name__}: ") + str(error)[:300]


def read_image(source: Any, *limits: float | None) -> Image.Image:
    """Like [`open_image`]; the error also names the image."""
    try:
        return open_image(source, *limits)
    except ValueError as error:
        is_name = isinstance(source, (str, os.PathLike))
        name = repr(os.fsdecode(source)[:200]) if is_name else f"({type(source).__name__})"
        raise ValueError(f"Cannot read the picture {name}: {error}") from error


def flatten_images(images: Any) -> Iterator[Any]:
    """Yields the images of nested lists and of stacked arrays."""
    if isinstance(images, (list, tuple)) or (hasattr(images, "ndim") and images.ndim > 3):
        for image in images:
            yield from flatten_images(image)
    else:
        yield images


def identify(
    file: BinaryIO, max_megapixels: float | None = None, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """Reads the header of an image file and returns a PIL image whose pixels are not read yet.

    Raises:
        TooManyPixels: it is larger than `max_megapixels` (None: Pillow's limit).
        Exception: it is an EPS file (ValueError), or Pillow cannot read it (any type).
    """
    with _opening:
        pillow_limit = Image.MAX_IMAGE_PIXELS
    try:
        image = Image.open(file, formats=formats)
    except Image.DecompressionBombError:
        # Pillow has one limit for the whole process. This image is checked against its own limit below.
        with _opening:
            Image.MAX_IMAGE_PIXELS = None
            try:
                image = Image.open(file, formats=formats)
            finally:
                Image.MAX_IMAGE_PIXELS = pillow_limit
    limit = 2 * (pillow_limit or math.inf) / 1e6 if max_megapixels is None else max_megapixels
    if image.width * image.height > limit * 1e6:
        raise TooManyPixels(*image.size, limit)
    if image.format == "EPS":
        raise ValueError("EPS is not supported, because it is a program: save it as a PNG")
    return image


def open_file(name: str | os.PathLike) -> BinaryIO:
    """Opens a file without memory mapping: a mapped file that shrinks kills the process (SIGBUS)."""
    return _Unmapped(io.FileIO(name))


class _Unmapped(io.BufferedReader):
    def fileno(self):
        raise io.UnsupportedOperation("fileno")


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
        raise ValueError(f"a broken link ({os.readlink(name)})")
    if os.path.isdir(name):
        raise ValueError("a folder")
    if os.path.exists(name):  # reading could block forever
        raise ValueError("not a file but a pipe, a socket or a device")
    text = name.partition(",")[2] if name.startswith("data:") else name
    try:
        content = base64.decodebytes(text.encode())
        identify(io.BytesIO(content), math.inf)
    except Exception as error:
        raise ValueError("there is no such file (and it is neither a URL nor base64)") from error
    return io.BytesIO(content)


def _as_rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError("it has no pixels")
    image = ImageOps.exif_transpose(image)
    # Pillow's conversion clips values above 255: 16-bit images would turn white.
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_to_uint8(np.asarray(image)))
    if image.has_transparency_data:
        # Transparent pixels have arbitrary colours.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _from_array(source: Any) -> Image.Image:
    if not hasattr(source, "__array__"):
        raise ValueError("neither an image nor a path, URL or array")
    values = np.asarray(source.detach().cpu() if hasattr(source, "detach") else source)
    shape = values.shape
    if values.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if not values.size or (values.ndim != 2 and (values.ndim != 3 or values.shape[2] not in (3, 4))):
        raise ValueError(f"an array of shape {shape}; an image has shape (H, W), (H, W, 3) or (3, H, W)")
    return Image.fromarray(np.ascontiguousarray(_to_uint8(values)))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Scales values of unknown range: 0 to 255, fractions from 0 to 1, or 16-bit integers."""
    if values.dtype in (np.uint8, np.bool_):
        return values if values.dtype == np.uint8 else values * np.uint8(255)
    low, high = values.min().item(), values.max().item()
    is_fraction = values.dtype.kind == "f"
    if not low >= 0 or not high <= (255 if is_fraction else 65535):
        raise ValueError(f"its values go from {low:g} to {high:g}; an image has 0 to 255, or fractions from 0 to 1")
    if is_fraction:
        return np.rint(values.astype(np.float32) * (255 if high <= 1 else 1)).astype(np.uint8)
    return (values if high <= 255 else values >> 8).astype(np.uint8)


def download(url: str, timeout: float | None = None, max_megabytes: float | None = None) -> tuple[bytes, str]:
    """Downloads a file and returns its content and media type ("image/jpeg").

    Args:
        url: starts with http:// or https://. Redirects are followed to such URLs, but never from https to http.
        timeout: seconds from the connection to the last byte (default: 60). `float("inf")` waits forever.
        max_megabytes: largest file, after decompression, in megabytes (default: 256).

    Raises:
        ValueError: the server cannot be reached, refuses, sends too much, takes too long, or stops too early.
    """
    timeout = TIMEOUT if timeout is None else timeout
    fetch = _fetch(url, timeout, MAX_MEGABYTES if max_megabytes is None else max_megabytes)
    try:
        if not _in_event_loop():
            return asyncio.run(fetch)
        with ThreadPoolExecutor(1) as thread:  # in a notebook, this thread already runs an event loop
            return thread.submit(asyncio.run, fetch).result()
    except (TimeoutError, httpx.TimeoutException) as error:
        limits = f"more than {timeout:g} seconds in total, or {_CONNECT_TIMEOUT:g} to connect"
        remedy = "Try a longer `timeout` (command line: --timeout)"
        raise ValueError(f"the server takes too long: {limits}. {remedy}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(f"the download failed ({type(error).__name__}: {error}): check the URL") from error


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _fetch(url: str, timeout: float, max_megabytes: float) -> tuple[bytes, str]:
    client = httpx.AsyncClient(
        # Servers may refuse clients that do not say who they are.
        headers={"User-Agent": "SEVLM", "Accept-Encoding": "identity"},
        timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT),
        verify=ssl.create_default_context(),  # the system's certificates, like other programs
        limits=httpx.Limits(max_keepalive_connections=0),
        follow_redirects=True,
        event_hooks={"response": [_check_redirect]},
    )
    # asyncio's timeout covers the whole download. httpx's timeouts restart whenever bytes arrive.
    async with asyncio.timeout(timeout), client, client.stream("GET", url) as response:
        if not response.is_success:
            raise ValueError(f"the server answers {response.status_code} {response.reason_phrase}".rstrip())
        content = await _read(response, max_megabytes)
        return content, response.headers.get("Content-Type", "data of unknown type").partition(";")[0].strip()


async def _check_redirect(response: httpx.Response) -> None:
    if response.has_redirect_location:
        source, target = response.url, response.url.join(response.headers["Location"])
        if target.scheme not in ("http", "https") or (source.scheme, target.scheme) == ("https", "http"):
            # Other schemes could read local files; http would undo the encryption.
            raise ValueError(f"the server redirects to {str(target)[:200]!r}, which is not followed")


async def _read(response: httpx.Response, max_megabytes: float) -> bytes:
    """Reads and decompresses the body. httpx's decoders do not limit the size or detect a truncated stream."""
    limit = int(max_megabytes * 2**20)
    too_large = ValueError(f"the server sends more than {max_megabytes:g} MB, the limit: see --max_megabytes")
    if int(response.headers.get("Content-Length", 0)) > limit:
        raise too_large
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise ValueError(f"the server uses a compression that was not requested ({encoding})")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding not in ("", "identity") else None
    content = bytearray()
    async for part in response.aiter_raw():
        if unpacker is not None:
            try:
                part = unpacker.decompress(part, limit + 1 - len(content))
            except zlib.error as error:
                raise ValueError(f"the server announces {encoding} but sends something else ({error})") from error
        content += part
        if len(content) > limit:
            raise too_large
    if unpacker is not None and not unpacker.eof:
        raise ValueError("the connection ended before the end of the file: try again")
    if not content:
        raise ValueError(f"the server sends an empty file ({response.status_code} {response.reason_phrase})")
    return bytes(content)


def find_images(folder: str | os.PathLike, names: Iterable[str]) -> list[str | None]:
    """Returns the absolute path of each `<style>/<name>` (without extension) in `folder`, or None if there is no file.

    File systems and archives store accented names composed (NFC) or decomposed (NFD), so names are compared in NFC.
    Extensions are tried in the order of `IMAGE_EXTENSIONS`; for each, an exact match comes first.

    Raises:
        FileNotFoundError: `folder` is not a folder. ValueError: its path is not UTF-8, so a table cannot store it.
    """
    if not os.path.isdir(folder):
        remedy = "Give the folder with <art_style>/<painting>.jpg (command line: --images)."
        raise FileNotFoundError(f"The image folder {os.fspath(folder)!r} does not exist. {remedy}")
    # Absolute, because data loader workers may run in another working directory.
    folder = os.path.abspath(folder)
    if any("\ud800" <= character <= "\udfff" for character in folder):
        raise ValueError(f"The path {folder!r} is not UTF-8. Rename that folder or give a link to it.")
    names = list(names)
    styles = {nfc(name.partition("/")[0]) for name in names}
    exact, normalised = {}, {}
    for style in os.scandir(folder):
        if nfc(style.name) in styles and os.path.isdir(style):
            for entry in os.scandir(style.path):
                stem, extension = os.path.splitext(entry.name)
                exact[nfc(style.name), stem, extension.lower()] = entry.path
                normalised[nfc(style.name), nfc(stem), extension.lower()] = entry.path
    files = normalised | exact

    def find(style: str, _: str, stem: str) -> str | None:
        keys = ((nfc(style), form, extension) for extension in IMAGE_EXTENSIONS for form in (stem, nfc(stem)))
        return next((files[key] for key in keys if key in files and os.path.isfile(files[key])), None)

    return [find(*name.partition("/")) for name in names]


def check_images(images: Iterable[str | bytes], total: int) -> Iterator[str | None]:
    """Decodes every image (a path, or a file's bytes) once and yields, in order, why it cannot be decoded, or None.

    With a `total` above 1000, a progress bar is shown.
    """
    images = iter(images)
    with (
        ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 2)) as threads,
        tqdm(total=total, desc="Checking images", unit="image", disable=total <= 1000) as progress,
    ):
        while chunk := list(islice(images, 256)):  # bounds the memory of encoded images
            yield from threads.map(check_image, chunk)
            progress.update(len(chunk))


def check_image(image: str | bytes) -> str | None:
    """Returns why an image (a path, or a file's bytes) cannot be decoded, or None if it can."""
    try:
        if not (os.path.getsize(image) if isinstance(image, str) else image):
            return "the file is empty"
        with open_file(image) if isinstance(image, str) else io.BytesIO(image) as file, identify(file) as opened:
            # Decodes a JPEG at an eighth of its size: faster, and still finds truncated files.
            opened.draft(None, (1, 1))  # type: ignore[arg-type]
            opened.load()
    except Exception as error:
        return _reason(error)
    return None


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _set_limit_from_environment() -> None:
    if megapixels := os.environ.get(LIMIT_VARIABLE):
        try:
            set_max_megapixels(float(megapixels))
        except ValueError as error:
            raise ValueError(f"The environment variable {LIMIT_VARIABLE} is {megapixels!r}: {error}") from error


_set_limit_from_environment()
