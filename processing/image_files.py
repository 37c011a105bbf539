"""Image files of a data set: find `<folder>/<style>/<name>.jpg` whatever Unicode form the names are in, and find the
files that cannot be decoded before a training run does.

Accented names are stored composed (NFC) by some file systems and archives and decomposed (NFD) by others, so names are
compared in NFC. Nothing is ever renamed.
"""

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from PIL import UnidentifiedImageError
from tqdm.auto import tqdm

from .files import nfc
from .images import TooManyPixels, identify, open_file


IMAGE_EXTENSIONS = [".jpg", ".jpeg", ".png", ".webp"]  # in order of preference
_CHUNK = 256  # images handed to the threads at a time: bounds the memory that encoded images take


def find_images(folder: str | os.PathLike, names: Iterable[str]) -> list[str | None]:
    """The file of each `<style>/<name>` below `folder`, or None where there is none.

    Args:
        folder: holds one folder per style.
        names: `<style>/<name>` without the extension; `<name>` may hold dots.

    Returns:
        Absolute paths, aligned with `names`. Extensions are tried in the order of `IMAGE_EXTENSIONS`; for each, a file
        spelled exactly like the name wins over one that is equal only after NFC normalisation.

    Raises:
        FileNotFoundError: `folder` does not exist or is not a folder.
        ValueError: its path has bytes that are no UTF-8, which tables cannot hold.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"The image folder {os.fspath(folder)!r} does not exist. Give the folder that holds the images as "
            "<images>/<art_style>/<painting>.jpg as `images` (command line: --images)."
        )
    # Absolute, because data loader workers may run in another working directory.
    folder = os.path.abspath(folder)
    if not _is_unicode(folder):
        raise ValueError(
            f"The path of the image folder, {folder!r}, has bytes that are no UTF-8, and a data set cannot hold it. "
            "Rename that folder, or give a link to it that has another name."
        )
    style_folders: dict[str, list[str]] = {}
    for entry in os.scandir(folder):
        if _holds(entry.is_dir):
            style_folders.setdefault(nfc(entry.name), []).append(entry.path)

    listings: dict[str, dict[str, str]] = {}
    found = []
    for name in names:
        style, _, stem = name.partition("/")
        style = nfc(style)
        if style not in listings:
            listings[style] = _list_images(style_folders.get(style, []))
        files = listings[style]
        candidates = (
            files.get(key) for extension in IMAGE_EXTENSIONS for key in (stem + extension, nfc(stem) + extension)
        )
        found.append(next((path for path in candidates if path is not None), None))
    return found


def find_undecodable(images: Iterable[str | bytes], total: int) -> Iterator[str | None]:
    """Decode every image once and yield, in order, why it cannot be decoded, or None where it can.

    JPEGs are decoded at an eighth of their size, which still reads the whole file, so that truncated files are found.

    Args:
        images: paths, or the bytes of image files. Consumed in small chunks, so a generator keeps memory bounded.
        total: how many there are; a progress bar is shown above 1000.
    """
    images = iter(images)
    with (
        ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 2)) as threads,
        tqdm(total=total, desc="Checking images", unit="image", disable=total <= 1000) as progress,
    ):
        while chunk := list(islice(images, _CHUNK)):
            yield from threads.map(why_undecodable, chunk)
            progress.update(len(chunk))


def why_undecodable(image: str | bytes) -> str | None:
    """Why a path or the bytes of an image file cannot be decoded, in a few words; None if they can.

    An image above the limit of `images.set_max_megapixels` counts as undecodable: reading it later would fail too.
    """
    try:
        if isinstance(image, str):
            if os.path.getsize(image) == 0:
                return "the file is empty"
        elif not image:
            return "the image is empty"
        with open_file(image) if isinstance(image, str) else io.BytesIO(image) as file, identify(file) as picture:
            picture.draft(None, (1, 1))
            picture.load()
    except UnidentifiedImageError:
        return "not an image that PIL can read"
    except TooManyPixels as error:
        return str(error)
    except Exception as error:  # PIL's plug-ins raise far more than OSError on damaged data
        return f"{type(error).__name__}: {error}"
    return None


def _list_images(folders: list[str]) -> dict[str, str]:
    """File name (as it is, and in NFC) with lower-case extension -> path, for the image files in `folders`."""
    files: dict[str, str] = {}
    normalised: dict[str, str] = {}
    for folder in folders:
        for entry in os.scandir(folder):
            path = Path(entry.name)
            extension = path.suffix.lower()
            if extension in IMAGE_EXTENSIONS and _holds(entry.is_file):
                files[path.stem + extension] = entry.path
                normalised[nfc(path.stem) + extension] = entry.path
    return normalised | files


def _holds(test) -> bool:
    """What an entry of a folder is; a link that leads to itself is nothing."""
    try:
        return test()
    except OSError:
        return False


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
