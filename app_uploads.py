"""What the page of `app.py` accepts: picture files up to a size, and requests up to a size."""

import os
import shutil
import tempfile
from typing import NamedTuple

import gradio as gr
from PIL import Image

from processing.image_formats import unreadable_reason
from processing.images import TooManyPixels, identify, open_file, open_image


MEGABYTE = 2**20  # bytes, as Gradio's page counts when it refuses a large file
MAX_REQUEST_MEGABYTES = 1  # per request without an upload; the page sends kilobytes
MIN_FREE_BYTES = 2**30  # of the disk that uploads are stored on
# Pillow reads about fifty formats; some of them run other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF", "HEIF")


class ImageUpload(gr.Image):
    """An upload field that passes on the path of an uploaded file without opening it, so that `open_upload` can check
    it first. It does not fetch URLs, because the server might reach hosts that the visitor cannot."""

    is_template = True  # the page shows it as a gr.Image

    def preprocess(self, payload) -> str | None:
        if payload is None:
            return None
        try:
            return uploaded_path(payload.path, self)
        except UploadError as error:
            raise gr.Error(str(error)) from error

    async def async_move_resource_to_block_cache(self, url_or_file_path):
        if str(url_or_file_path).startswith(("http://", "https://")):
            raise gr.Error("Addresses are not opened: download the picture and upload it as a file.")
        return await super().async_move_resource_to_block_cache(url_or_file_path)


class UploadError(ValueError):
    """An upload that is refused; the message is for the visitor."""


def uploaded_path(path: str | None, component: gr.components.Component) -> str:
    """Returns the real path of an uploaded file. Gradio checks a path only if a request declares it as a file, so
    other paths could name any file of this machine."""
    uploads, real = os.path.realpath(component.GRADIO_CACHE), os.path.realpath(path or "")
    if not real.startswith(uploads + os.sep) or not os.path.isfile(real):
        raise UploadError("Upload the picture as a file.")
    return real


class UploadLimits(NamedTuple):
    megabytes: float = 20
    megapixels: float = 50


def open_upload(path: str | os.PathLike, limits: UploadLimits) -> Image.Image:
    """Opens an uploaded file as an upright RGB image. The header is checked before anything is decoded.

    Raises:
        UploadError: the file is empty, not an image, damaged, too large, or a strip.
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
            image = identify(file, limits.megapixels, FORMATS)
        except TooManyPixels as error:
            raise UploadError(
                f"The picture has {error.width * error.height / 1e6:,.0f} megapixels ({error.width:,} x "
                f"{error.height:,}), and this app takes up to {limits.megapixels:g}. Make it smaller, for example "
                "2,000 pixels wide."
            ) from error
        except Exception as error:  # Pillow's plug-ins raise far more than OSError on damaged headers
            raise UploadError(not_read(path)) from error
        if max(image.size) > 50 * min(image.size):  # the model would see it squeezed to a square
            raise UploadError(
                f"The picture is a strip of {image.width:,} x {image.height:,} pixels, and the model would not "
                "recognise anything in it. Crop it."
            )
        try:
            return open_image(image)
        except ValueError as error:
            raise UploadError(
                f"The picture is damaged and cannot be read to its end ({error}). Save or download it again, or "
                "choose another."
            ) from error


def not_read(path: str | os.PathLike) -> str:
    """Says why a file is not read, by its content and its name."""
    with open(path, "rb") as file:
        start = file.read(12)
    if start.startswith(b"%PDF"):
        return "This is a PDF. Save the picture in it as a JPEG or PNG file, then choose that."
    if start[4:8] == b"ftyp" and start[8:11] in (b"hei", b"hev", b"mif", b"msf"):
        return "This is a HEIC picture, as some phones take, which cannot be read here. Share or save it as a JPEG."
    reason = unreadable_reason(os.path.splitext(path)[1].lower())
    formats = "JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF file"
    return f"This file is not a picture that can be read here{f' ({reason})' if reason else ''}. Choose a {formats}."


class RequestLimits:
    """ASGI middleware. Gradio limits each uploaded file; this limits every request.

    Uploads above `upload_megabytes` and other requests above 1 MB are answered with 413, uploads with 507 while the
    disk has less than 1 GB left.
    """

    def __init__(self, app, upload_megabytes: float):
        self.app, self.upload_megabytes = app, upload_megabytes

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"].rstrip("/").endswith("/upload"):
            if shutil.disk_usage(tempfile.gettempdir()).free < MIN_FREE_BYTES:
                return await _answer(send, 507, "There is no room for pictures now: try again later.")
            megabytes = self.upload_megabytes + 0.1  # the form around the file
            refusal = f"This app takes up to {self.upload_megabytes:g} MB, in one file: save the picture smaller."
        else:
            megabytes = MAX_REQUEST_MEGABYTES
            refusal = f"A request of more than {MAX_REQUEST_MEGABYTES} MB. Upload pictures as files."
        remaining = int(megabytes * MEGABYTE)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > remaining:
            return await _answer(send, 413, refusal)
        answered = False

        async def limited_receive():
            nonlocal remaining
            message = await receive()
            remaining -= len(message.get("body", b""))
            if remaining < 0:
                raise _RequestTooLarge
            return message

        async def recording_send(message):
            nonlocal answered
            if remaining >= 0 or answered:  # drops the app's error about the incomplete body
                answered = True
                await send(message)

        try:
            await self.app(scope, limited_receive, recording_send)
        except _RequestTooLarge:
            pass
        if remaining < 0 and not answered:
            await _answer(send, 413, refusal)


class _RequestTooLarge(Exception):
    pass


async def _answer(send, status: int, text: str):
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
