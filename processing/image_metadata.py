# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Hides the metadata of image files from Pillow, which refuses whole images because of odd or large metadata.

Of all metadata only the orientation changes the image. It is read here; everything else in the metadata of JPEG, PNG
and TIFF files is skipped, and never decompressed beyond 16 MB. The orientation of an AVIF file is not in its Exif
data, so these are hidden.
"""

import io
import re
import struct
import zlib
from bisect import bisect_right
from contextlib import suppress
from itertools import accumulate
from typing import BinaryIO

from PIL import Image


ORIENTATION = 274
TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_TEXT = 2**24  # bytes
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])["<]')
_PNG = b"\x89PNG\r\n\x1a\n"
# Segments from which libjpeg learns what the colours mean: their first bytes and least size.
_JPEG_COLOURS = {0xE0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}
_EXIF_TYPES = {1: "B", 3: "H", 4: "I", 9: "i", 13: "I"}
# Size, format and place of the samples, colours, compression, largest value.
_TIFF_TAGS = {
    *(254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 280, 281, 284, 292, 293, 317, 320),
    *(322, 323, 324, 325, 332, 334, 338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532),
    50674,
}
_TIFF_XMP = 700
_TEXT_TYPES = (1, 2, 7)
# The entry of an AVIF file's table of contents, of version 2 or 3, up to its type.
_AVIF_EXIF = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)

Part = bytes | tuple[int, int]


def without_metadata(file: BinaryIO) -> tuple[BinaryIO, int | None]:
    """Returns a file with the same pixels, which reads from `file`, and the orientation from 1 to 8 in its metadata.

    None as orientation: the file is not a JPEG, PNG or TIFF, and Pillow knows the orientation. Raises nothing for
    damaged files.
    """
    file.seek(0)
    start = file.read(8)
    metadata: dict[str, bytes] = {}
    parts: list[Part] = []
    with suppress(struct.error):  # the file ends early
        if start.startswith(b"\xff\xd8\xff"):
            _split_jpeg(file, parts, metadata)
        elif start == _PNG:
            _split_png(file, parts, metadata)
        elif start[:4] in (b"II*\0", b"MM\0*", b"II+\0"):
            _split_tiff(file, parts, metadata)
        elif start[4:] == b"ftyp":
            _split_avif(file, parts)
    file.seek(0)
    if not parts:
        return file, None
    return io.BufferedReader(_Parts(file, parts)), None if start[4:] == b"ftyp" else orientation_of(**metadata)


def orientation_of(exif: bytes = b"", xmp: bytes = b"") -> int:
    """Returns the orientation in the Exif or else in the XMP data, and 1 if there is no valid one."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order, found = "<" if exif.startswith(b"II") else ">", 0
    with suppress(struct.error):
        (place,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, place)
        for entry in range(place + 2, place + 2 + 12 * count, 12):
            tag, kind, _ = struct.unpack_from(order + "HHI", exif, entry)
            if tag == ORIENTATION and kind in _EXIF_TYPES:
                (found,) = struct.unpack_from(order + _EXIF_TYPES[kind], exif, entry + 8)
    if not found and (match := _XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return found if 1 <= found <= 8 else 1


def exif_with(orientation: int) -> bytes:
    """Returns Exif data of nothing but the orientation."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, ORIENTATION, 3, 1, orientation, 0)


def _split_jpeg(file: BinaryIO, parts: list[Part], metadata: dict[str, bytes]) -> None:
    parts.append((0, 2))
    place = 2
    while True:
        file.seek(place)
        mark, code = struct.unpack("BB", file.read(2))
        if mark == code == 0xFF:  # filling
            place += 1
            continue
        if mark != 0xFF or code in (0x00, 0xDA):  # damaged, or the pixels start
            break
        (size,) = struct.unpack(">H", file.read(2))
        if size < 2 or code == 0x01 or 0xD0 <= code <= 0xD8:  # marks without content, or damaged
            break
        content = file.read(size - 2)
        start, least = _JPEG_COLOURS.get(code, (b"", size))
        is_metadata = 0xE0 <= code <= 0xEF or code == 0xFE
        if not is_metadata or (content.startswith(start) and len(content) >= least):
            parts.append((place, place + 2 + size))
        elif code == 0xE1 and content.startswith(b"Exif\0\0"):
            metadata["exif"] = metadata.get("exif", b"") + content[6:]
        elif code == 0xE1 and content.startswith(_XMP):
            metadata["xmp"] = content
        place += 2 + size
    parts.append((place, file.seek(0, io.SEEK_END)))


def _split_png(file: BinaryIO, parts: list[Part], metadata: dict[str, bytes]) -> None:
    parts.append((0, len(_PNG)))
    place, kind = len(_PNG), b""
    while kind != b"IEND":
        file.seek(place)
        size, kind = struct.unpack(">I4s", file.read(8))
        if kind == b"tRNS" or not kind[:1].islower():
            parts.append((place, place + 12 + size))
        elif kind == b"eXIf":
            metadata["exif"] = file.read(size)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            with suppress(ValueError, IndexError, zlib.error):
                _read_text(kind, file.read(min(size, _MAX_TEXT)), metadata)
        place += 12 + size


def _read_text(kind: bytes, content: bytes, metadata: dict[str, bytes]) -> None:
    """Adds what a PNG's text chunk holds of the two kinds of text that may have the orientation."""
    name, _, content = content.partition(b"\0")
    if name not in (b"XML:com.adobe.xmp", b"Raw profile type exif"):
        return
    is_packed = kind == b"zTXt"
    if kind == b"iTXt":
        is_packed, content = content[0] == 1, content[2:].split(b"\0", 2)[2]
    elif is_packed:
        content = content[1:]
    if is_packed:
        content = zlib.decompressobj().decompress(content, _MAX_TEXT)
    if name == b"XML:com.adobe.xmp":
        metadata["xmp"] = content
    else:  # three lines and hexadecimal digits
        metadata.setdefault("exif", bytes.fromhex(b"".join(content.split(b"\n")[3:]).decode("ascii")))


def _split_tiff(file: BinaryIO, parts: list[Part], metadata: dict[str, bytes]) -> None:
    file.seek(0)
    start = file.read(4)
    order = "<" if start.startswith(b"II") else ">"
    # BigTIFF has larger places and counts.
    is_big = b"+" in start
    place_format, count_format, size = ("Q", "Q", 20) if is_big else ("I", "H", 12)
    place_size, count_size = struct.calcsize("<" + place_format), struct.calcsize("<" + count_format)
    file.seek(place_size)
    (place,) = struct.unpack(order + place_format, file.read(place_size))
    end = file.seek(0, io.SEEK_END)
    file.seek(min(place, end))
    (count,) = struct.unpack(order + count_format, file.read(count_size))
    if count > 65535:
        return
    kept = []
    for entry in [file.read(size) for _ in range(count)]:
        tag, kind, length = struct.unpack_from(order + "HH" + place_format, entry)
        value = entry[-place_size:]
        if tag in _TIFF_TAGS:
            kept.append(entry)
        elif tag == ORIENTATION:
            exif = struct.pack(order + "IHHHI", 8, 1, tag, kind, 1) + value[:4]
            metadata["exif"] = start[:2] + struct.pack(order + "H", 42) + exif
        elif tag == _TIFF_XMP and kind in _TEXT_TYPES:
            file.seek(min(struct.unpack(order + place_format, value)[0], end))
            metadata["xmp"] = file.read(min(length, _MAX_TEXT))
    # Everything keeps its place. 0 instead of the place of a second image, which is not read.
    table = struct.pack(order + count_format, len(kept)) + b"".join(kept)
    table = table.ljust(count_size + size * count + place_size, b"\0")
    parts += [(0, place), table, (place + len(table), end)]


def _split_avif(file: BinaryIO, parts: list[Part]) -> None:
    end, size, kind = 0, 0, b""
    while kind != b"meta":
        end += size
        file.seek(end)
        size, kind = struct.unpack(">I4s", file.read(8))
        if not 8 <= size <= _MAX_TEXT:  # damaged, or the pixels
            return
    content = file.read(size - 8)
    renamed = _AVIF_EXIF.sub(rb"\1none", content)
    parts += [(0, end + 8), renamed, (end + 8 + len(content), file.seek(0, io.SEEK_END))]


class _Parts(io.RawIOBase):
    """A file that consists of parts, each a `(start, end)` in another file, or bytes."""

    def __init__(self, file: BinaryIO, parts: list[Part]):
        self._file, self._parts, self._place = file, parts, 0
        sizes = (len(part) if isinstance(part, bytes) else part[1] - part[0] for part in parts)
        self._starts = [0, *accumulate(sizes)]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, (0, self._place, self._starts[-1])[whence] + offset)
        return self._place

    def readinto(self, buffer) -> int:
        number = bisect_right(self._starts, self._place) - 1
        if number == len(self._parts):
            return 0
        part, offset = self._parts[number], self._place - self._starts[number]
        size = min(len(buffer), self._starts[number + 1] - self._place)
        if isinstance(part, bytes):
            content = part[offset : offset + size]
        else:
            self._file.seek(part[0] + offset)
            content = self._file.read(size)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)
