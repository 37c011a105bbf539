# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Files that strangers upload: opened if they are pictures of a decent size, refused with a sentence otherwise.

What a file claims to be is of no interest: its header is read, the size in it is checked, and only then is anything
decoded, which is when a few kilobytes can turn into gigabytes.
"""

import os
from dataclasses import dataclass

from PIL import Image

from processing.images import TooManyPixels, identify, open_file, open_image

from .requests import MEGABYTE


# Pillow knows some fifty formats, and some of them start other programs (EPS) or nobody uploads.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO")
CHOOSE = "Choose a JPEG, PNG, WebP, GIF, BMP or TIFF file."
LONGEST_STRIP = 50  # times as long as wide: the model would see a smear


class UploadError(ValueError):
    """A file that is not taken; the message is for whoever uploaded it."""


@dataclass(frozen=True)
class UploadLimits:
    megabytes: float = 20
    megapixels: float = 50

    def __post_init__(self):
        for name in ("megabytes", "megapixels"):
            if not getattr(self, name) > 0:
                raise ValueError(f"The limit is a number of {name} above 0, not {getattr(self, name):g}.")


def open_upload(path: str | os.PathLike, limits: UploadLimits) -> Image.Image:
    """The picture in a file, RGB and upright as the model is to see it.

    Raises:
        UploadError: what is wrong with it and what to do, for a person to read.
    """
    size = os.path.getsize(path)
    if not size:
        raise UploadError("The file is empty. Save or download the picture again, then upload it.")
    if size > limits.megabytes * MEGABYTE:
        raise UploadError(
            f"The file has {size / MEGABYTE:.0f} MB, and this app takes up to {limits.megabytes:g}. Save the picture "
            "smaller, or as a JPEG."
        )
    with open_file(path) as file:
        try:
            picture = identify(file, limits.megapixels, FORMATS)
        except TooManyPixels as error:
            width, height = error.width, error.height
            raise UploadError(
                f"The picture has {width * height / 1e6:,.0f} megapixels ({width:,} x {height:,}), and this app takes "
                f"up to {limits.megapixels:g}. Make it smaller, for example 2,000 pixels wide."
            ) from error
        except Exception as error:  # plug-ins raise far more than OSError on damaged headers
            raise UploadError(f"This file is not a picture that can be read here. {CHOOSE}") from error
        width, height = picture.size
        if max(width, height) > LONGEST_STRIP * min(width, height):
            raise UploadError(
                f"The picture is a strip of {width:,} x {height:,} pixels, of which the model would see nothing. Cut "
                "out a part of it."
            )
        try:
            return open_image(picture)
        except ValueError as error:
            raise UploadError(
                f"The picture is damaged and cannot be read to its end ({error}). Save or download it again, or "
                "choose another."
            ) from error
