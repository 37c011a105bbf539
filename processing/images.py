# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Opens, downloads, finds and checks images.

Images above 178 megapixels, about Pillow's limit, are refused, because a small file can decode to gigabytes. To open
larger scans, pass `max_megapixels=500`, or set the environment variable SEVLM_MAX_MEGAPIXELS=500, which also applies
to other libraries that open images (`datasets`, during training).
"""

import asyncio
import base64
import functools
import io
import math
import os
import re
import ssl
import threading
import unicodedata
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from itertools import islice
from typing import Any, BinaryIO
from urllib.parse import unquote

import fsspec.core
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError
from tqdm.auto import tqdm

from .image_metadata import ORIENTATION, TRANSPOSED, exif_with, orientation_of, without_metadata
from .image_values import grey_to_uint8, to_uint8, with_all_bits


try:  # huggingface_hub requires one of the two: httpx2 from version 2.0 on, httpx before
    import httpx2 as httpx
except ImportError:
    import httpx  # type: ignore[no-redef]


LIMIT_VARIABLE = "SEVLM_MAX_MEGAPIXELS"
IMAGE_EXTENSIONS = [".jpg", ".jpeg", ".png", ".webp"]  # in order of preference
TIMEOUT = 60.0  # seconds
MAX_MEGABYTES = 256.0
MAX_MEGAPIXELS = 178
_PILLOW_DEFAULT = 89_478_485  # Pillow raises above twice this number of pixels, 178.96 megapixels
_CONNECT_TIMEOUT = 15.0  # seconds
_LARGE = 40_000_000  # pixels
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
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
    source: Any,
    timeout: float | None = None,
    max_megapixels: float | None = None,
    max_megabytes: float | None = None,
    *,
    draft: bool = False,
    digest: Any = None,
) -> Image.Image:
    """Returns an image as the model sees it: the first frame, 8-bit RGB, in its EXIF orientation, on white.

    Other metadata is ignored, even if it is damaged.

    Args:
        source: a path, URL, base64 text, or address that fsspec knows ("hf://...", "zip://a.png::b.zip"); a file's
            content as bytes, or a file opened for reading bytes, which is read from its start and keeps its position;
            `{"bytes", "path"}` as in an undecoded row of `datasets`; a PIL image of any mode; an array or tensor
            `(H, W)`, `(H, W, C)` or `(C, H, W)` with 1, 3 or 4 channels and fractions from 0 to 1 or whole numbers.
            Whole numbers have 8, 10, 12, 14 or 16 bits: the fewest that hold the largest value, or as many as a TIFF
            file says.
        timeout: seconds for a whole download (default: 60).
        max_megapixels: largest image; not for arrays and PIL images (default: see the top of this file).
        max_megabytes: largest download (default: 256).
        draft: decode a JPEG at an eighth of its size, which is faster and fails on the same files.
        digest: an object of `hashlib` that is updated with the bytes of a file that can be read.

    Raises:
        ValueError: the image cannot be read; the message says why.
    """
    try:
        if isinstance(source, Image.Image):
            return _as_rgb(source)
        if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, Mapping)):
            if not hasattr(source, "read"):
                return _as_rgb(_from_array(source))
        with _open(source, timeout, max_megabytes) as file, identify(file, max_megapixels) as image:
            if draft:
                image.draft(None, (1, 1))  # type: ignore[arg-type]
            # Callers decode in threads, and one large image takes gigabytes.
            with _one_large_at_a_time if image.width * image.height > _LARGE else nullcontext():
                picture = _as_rgb(with_all_bits(image, lambda: identify(file, math.inf)))
            if digest is not None:
                file.seek(0)
                for block in iter(functools.partial(file.read, 2**20), b""):
                    digest.update(block)
            return picture
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
        name = source.get("path") if isinstance(source, Mapping) else source
        if not isinstance(name, (str, os.PathLike)):
            name = getattr(name, "name", name)  # of an open file
        is_name = isinstance(name, (str, os.PathLike))
        shown = repr(os.fsdecode(name)[:200]) if is_name else f"({type(source).__name__})"
        raise ValueError(f"Cannot read the picture {shown}: {error}") from error


def flatten_images(images: Any) -> Iterator[Any]:
    """Yields the images of nested lists and of stacked arrays."""
    if isinstance(images, (list, tuple)) or (hasattr(images, "ndim") and images.ndim > 3):
        for image in images:
            yield from flatten_images(image)
    else:
        yield images


def identify(
    file: BinaryIO, max_megapixels: float | None = None, formats: tuple[str, ...] | None = None
) -> ImageFile.ImageFile:
    """Reads the header of an image file and returns a PIL image whose pixels are not read yet. Of its metadata, only
    the orientation is kept.

    Raises:
        TooManyPixels: it is larger than `max_megapixels` (None: `MAX_MEGAPIXELS`, or the one that is set in Pillow).
        Exception: it is an EPS or IPTC file (ValueError), or Pillow cannot read it (any type).
    """
    register_heif()
    file, orientation = without_metadata(file)
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
    limit = max_megapixels
    if limit is None:
        limit = MAX_MEGAPIXELS if pillow_limit == _PILLOW_DEFAULT else 2 * (pillow_limit or math.inf) / 1e6
    if image.width * image.height > limit * 1e6:
        raise TooManyPixels(*image.size, limit)
    if image.format == "EPS":
        raise ValueError("EPS is not supported, because it is a program: save it as a PNG")
    if image.format == "IPTC":
        raise ValueError("IPTC is not supported, because it may contain a program (EPS): save it as a PNG")
    if image.format != "TIFF" or orientation is not None:
        metadata = {name: image.info.pop(name, None) or b"" for name in ("exif", "xmp")}
        image.info["exif"] = exif_with(orientation or orientation_of(**metadata))
    return image


@functools.cache
def register_heif() -> None:
    """Lets Pillow open HEIC and HEIF files if pillow-heif is installed (the extra `heif`)."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return
    register_heif_opener()


def open_file(name: str | os.PathLike) -> BinaryIO:
    """Opens a file without memory mapping: a mapped file that shrinks kills the process (SIGBUS)."""
    return _Unmapped(io.FileIO(name))


class _Unmapped(io.BufferedReader):
    def fileno(self):
        raise io.UnsupportedOperation("fileno")


def _open(source: Any, timeout: float | None, max_megabytes: float | None) -> BinaryIO:
    if isinstance(source, Mapping):
        found = [source[name] for name in ("bytes", "path") if source.get(name) is not None]
        if not found:
            raise ValueError("there is no file: neither 'bytes' nor 'path' is given")
        source = found[0]
    if hasattr(source, "read"):
        source = _content(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise ValueError("the file is empty")
        return io.BytesIO(source)
    name = os.fsdecode(source)
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
    if _ADDRESS.match(name):
        return io.BytesIO(_read_address(name, max_megabytes))
    text = name.partition(",")[2] if name.startswith("data:") else name
    try:
        content = base64.decodebytes(text.encode())
        identify(io.BytesIO(content), math.inf)
    except Exception as error:
        raise ValueError("there is no such file (and it is neither a URL nor base64)") from error
    return io.BytesIO(content)


def _read_address(address: str, max_megabytes: float | None) -> bytes:
    limit = MAX_MEGABYTES if max_megabytes is None else max_megabytes
    system, path = fsspec.core.url_to_fs(address)
    with system.open(path, "rb") as file:
        content = file.read(int(limit * 2**20) + 1)
    if len(content) > limit * 2**20:
        raise ValueError(f"it has more than {limit:g} MB, the limit: see --max_megabytes")
    return content


def _content(file: Any) -> bytes:
    is_seekable = hasattr(file, "seekable") and file.seekable()
    place = file.tell() if is_seekable else 0
    if is_seekable:
        file.seek(0)
    try:
        content = b"" if isinstance(file, io.TextIOBase) else file.read()
    finally:
        if is_seekable:
            file.seek(place)
    if isinstance(file, io.TextIOBase) or not isinstance(content, bytes):
        raise ValueError('a file that does not give bytes: open it with `open(name, "rb")`')
    return content


def _as_rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError("it has no pixels")
    if not isinstance(image.info.get("xmp", b""), bytes):
        del image.info["xmp"]  # with such metadata, Pillow cannot load a TIFF file that the caller opened
    image.load()
    orientation = 1
    with suppress(Exception):  # the metadata of an image that the caller opened may be damaged
        orientation = image.getexif().get(ORIENTATION)
    if orientation in TRANSPOSED:
        image = image.transpose(TRANSPOSED[orientation])
    # Pillow's conversion clips values above 255: 16-bit images would turn white.
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = grey_to_uint8(image)
    if image.has_transparency_data:
        # Transparent pixels have arbitrary colours.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info.clear()  # an image that is passed on must not be turned again
    return image


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
    return Image.fromarray(np.ascontiguousarray(to_uint8(values)))


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
    fetch = _fetch(_with_plain_host(url), timeout, MAX_MEGABYTES if max_megabytes is None else max_megabytes)
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


def _with_plain_host(url: str) -> str:
    """Composes and unquotes the letters of the host ("z%C3%BCrich.ch"), which httpx then writes in ASCII (xn--)."""
    start, host, rest = re.fullmatch(r"((?:https?://)?(?:[^/?#]*@)?)([^/?#]*)(.*)", url, re.DOTALL).groups()
    plain = nfc(unquote(host))
    return url if set(plain) & set("/?#@:\\ ") - set(host) else start + plain + rest


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


def check_images(images: Iterable[Any], total: int) -> Iterator[str | None]:
    """Decodes every image (see [`open_image`]) once and yields, in order, why it cannot be read, or None.

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


def check_image(image: Any) -> str | None:
    """Returns why [`open_image`] cannot read an image, or None if it can."""
    try:
        open_image(image, draft=True)
    except ValueError as error:
        return str(error)
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
