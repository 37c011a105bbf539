"""Formats of picture files by their suffix: those that can be read, and known ones that cannot."""

import functools

from PIL import Image

from .images import register_heif


# EPS is a program and IPTC may contain one; WMF is drawn by Windows; Pillow recognises the others but cannot
# read them; MPO files are opened as JPEG.
NOT_READ = {"EPS", "IPTC", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
HEIF = ".heic .heics .heif .heifs .hif"
UNREADABLE = {
    HEIF: "HEIC and HEIF need the extra heif: pip install pillow-heif",
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .k25 .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2"
    " .rwl .sr2 .srf .srw .x3f": "a camera's raw file: export it as JPEG or TIFF",
    ".ai .cdr .djvu .emf .eps .pdf .ps .svg .svgz .wmf": "a document or drawing: export it as PNG",
    ".afphoto .clip .kra .psb .xcf": "a file of a drawing program: export it as PNG",
    ".bpg .dcm .exr .flif .hdp .hdr .jxl .jxr .wdp": "Pillow cannot read this format: convert it to PNG",
}


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """Returns the suffixes (".jpg") of all formats that `open_image` reads here."""
    register_heif()
    Image.init()
    formats = {*Image.OPEN, "MPO"} - NOT_READ
    return frozenset(suffix.lower() for suffix, kind in Image.EXTENSION.items() if kind in formats)


def unreadable_reason(suffix: str) -> str | None:
    """Returns why files with this suffix cannot be read; None if they can, or are not known as pictures."""
    if suffix in readable_suffixes():
        return None
    return next((reason for suffixes, reason in UNREADABLE.items() if suffix in suffixes.split()), None)
