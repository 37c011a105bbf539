# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What a visitor may send: Gradio bounds the files in a request, this bounds requests, whatever they are for."""

import shutil
import tempfile


MEGABYTE = 2**20  # as the browser counts, which refuses large files before they are sent
OTHER_MEGABYTES = 1  # what the page itself sends has some kilobytes
KEPT_FREE = 2**30  # bytes of the disk to which uploads go


class RequestLimits:
    """An ASGI middleware that answers requests above `upload_megabytes`, or 1 MB where nothing is uploaded, with 413,
    and uploads with 507 while the disk has less than 1 GB left."""

    def __init__(self, app, upload_megabytes: float):
        self.app, self.upload_megabytes = app, upload_megabytes

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        is_upload = scope["path"].rstrip("/").endswith("/upload")
        if is_upload and shutil.disk_usage(tempfile.gettempdir()).free < KEPT_FREE:
            return await _answer(send, 507, "There is no room for pictures now: try again later.")
        # Around a file stand a few lines of its own.
        megabytes = self.upload_megabytes + 0.1 if is_upload else OTHER_MEGABYTES
        refusal = f"This app takes up to {self.upload_megabytes:g} MB, in one file: save the picture smaller."
        if not is_upload:
            refusal = f"A request of more than {OTHER_MEGABYTES} MB. Upload pictures as files."
        left = int(megabytes * MEGABYTE)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > left:
            return await _answer(send, 413, refusal)
        is_answered = False

        async def bounded_receive():
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise _TooLarge
            return message

        async def noting_send(message):
            nonlocal is_answered
            # What the app makes of a body that breaks off is of no interest.
            if left >= 0 or is_answered:
                is_answered = True
                await send(message)

        try:
            await self.app(scope, bounded_receive, noting_send)
        except _TooLarge:
            pass
        if left < 0 and not is_answered:
            await _answer(send, 413, refusal)


class _TooLarge(Exception):
    pass


async def _answer(send, status: int, text: str):
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
