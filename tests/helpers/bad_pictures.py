"""Images in many formats, ways to damage their files, and a folder of odd names and special files."""

import io
import os
import random
import socket
import unicodedata
from pathlib import Path

from PIL import Image, features


def image(seed: int = 0, size: tuple[int, int] = (90, 60)) -> Image.Image:
    """Soft noise, so that every part of the file changes the image."""
    noise = random.Random(seed).randbytes(9 * 6 * 3)
    return Image.frombytes("RGB", (9, 6), noise).resize(size, Image.Resampling.BICUBIC)


def encode(picture: Image.Image, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def pictures(seed: int = 0) -> dict[str, bytes]:
    """Returns files of all formats that a museum or a visitor may have, by name."""
    one, moving = image(seed), {"save_all": True, "append_images": [image(seed + 1)]}
    exif = Image.Exif()
    exif[274] = 6
    grey = one.convert("L")
    deep = grey.convert("I").point(lambda value: value * 257).convert("I;16")
    transparent = one.convert("RGBA")
    transparent.putalpha(grey)
    files = {
        "baseline.jpg": encode(one, "JPEG", quality=95),
        "progressive.jpg": encode(one, "JPEG", quality=95, progressive=True),
        "cmyk.jpg": encode(one.convert("CMYK"), "JPEG", quality=95),
        "grey.jpg": encode(grey, "JPEG", quality=95),
        "turned.jpg": encode(one, "JPEG", quality=95, exif=exif),
        "several.mpo.jpg": encode(one, "MPO", **moving),
        "plain.png": encode(one, "PNG"),
        "16_bit.png": encode(deep, "PNG"),
        "grey_and_transparent.png": encode(transparent.convert("LA"), "PNG"),
        "transparent.png": encode(transparent, "PNG"),
        "palette.png": encode(one.convert("P"), "PNG", transparency=3),
        "line.png": encode(one.convert("1"), "PNG"),
        "moving.png": encode(one, "PNG", **moving),
        "plain.webp": encode(one, "WEBP"),
        "lossless.webp": encode(one, "WEBP", lossless=True),
        "moving.webp": encode(one, "WEBP", **moving),
        "plain.gif": encode(one, "GIF"),
        "moving.gif": encode(one, "GIF", **moving),
        "plain.bmp": encode(one, "BMP"),
        "grey.bmp": encode(grey, "BMP"),
        "raw.tif": encode(one, "TIFF"),
        "16_bit.tif": encode(deep, "TIFF"),
        "cmyk.tif": encode(one.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "lzw.tif": encode(one, "TIFF", compression="tiff_lzw"),
        "deflate.tiff": encode(one, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": encode(one, "TIFF", compression="jpeg"),
        "fax.tif": encode(one.convert("1"), "TIFF", compression="group4"),
        # Names with the wrong extension.
        "jpeg2000.jpg": encode(one, "JPEG2000") if features.check("jpg_2000") else b"",
        "avif.png": encode(one, "AVIF") if features.check("avif") else b"",
        "portable.png": encode(one, "PPM"),
        "targa.png": encode(one, "TGA"),
    }
    return {name: content for name, content in files.items() if content}


def damage(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Returns what was done to a file, and its new content."""
    place, how = chance.randrange(len(content)), chance.choice(["cut", "bits", "zeros", "noise", "hole", "head"])
    end = min(len(content), place + chance.randrange(1, 400))
    if how == "cut":
        return f"cut at {place}", content[:place]
    if how == "zeros":
        return f"zeros from {place}", content[:place] + bytes(len(content) - place)
    if how in ("noise", "hole"):
        middle = chance.randbytes(end - place) if how == "noise" else b""
        return f"{how} from {place} to {end}", content[:place] + middle + content[end:]
    changed = bytearray(content)
    if how == "bits":
        for _ in range(chance.randrange(1, 9)):
            changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        return "bits flipped", bytes(changed)
    for _ in range(3):  # sizes, offsets and counts that a decoder trusts
        changed[chance.randrange(min(64, len(content)))] = chance.choice([0, 1, 127, 128, 255])
    return "header overwritten", bytes(changed)


NAMES = [
    b"caf\xe8.png",
    b"caf\xe9.png",
    rb"caf\udce9.png",
    unicodedata.normalize("NFC", "caf\u00e9.png").encode(),
    unicodedata.normalize("NFD", "caf\u00e9.png").encode(),
    b"soft.png",
    "so\u00adft.png".encode(),
    b"two words.png",
    b"two  words.png",
    b"\"quoted\" 'twice'.png",
    b"new\nline.png",
    b"carriage\rreturn.png",
    b"tab\t.png",
    b"-dash.png",
    b"--output.png",
    b"dots...png",
    b"comma, and; more.png",
    rb"back\slash.png",
    b"=1+1.png",
    b"UPPER.PNG",
    "\u202eright to left.png".encode(),
    "\U0001f5bc.png".encode(),
    b"a" * 200 + b".png",
]
# Name -> target, and a part of the reason why the link is left out.
LINKS = {
    "zero.png": ("/dev/zero", "a pipe, a socket or a device"),
    "loop.png": ("loop.png", "a broken link"),
    "there.png": ("back.png", "a broken link"),
    "back.png": ("there.png", "a broken link"),
    "gone.png": ("nowhere.png", "a broken link"),
    "passwords.png": ("/etc/passwd", "not an image"),
    "memory.png": ("/proc/self/mem", "empty"),
}
SPECIAL_FILES = dict.fromkeys(["pipe.png", "socket.png"], "a pipe, a socket or a device") | {"empty.png": "empty"}
SPECIAL_FILES |= {name: reason for name, (_, reason) in LINKS.items()}


def odd_folder(folder: Path, names: list[bytes] = NAMES) -> Path:
    """Writes images with these names, special files and links in a folder with a link to itself."""
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            Image.new("RGB", (8, 8), (number * 10, 90, 90)).save(file, "PNG")
    os.mkfifo(folder / "pipe.png")
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket is limited to about a hundred bytes
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind("socket.png")
    finally:
        os.chdir(here)
    for name, (target, _) in LINKS.items():
        (folder / name).symlink_to(target)
    (folder / "itself").symlink_to(".")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    return folder
