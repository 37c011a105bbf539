# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The page's field for pictures. (Gradio writes a `.pyi` file beside this one, which git ignores.)"""

import os

import gradio as gr


class Painting(gr.Image):
    """An upload field that hands on the path of what was uploaded, without opening it, so that the app looks first.
    Addresses are not fetched: the server would be asked to read what others cannot."""

    is_template = True  # drawn by the browser as gr.Image is

    def preprocess(self, payload) -> str | None:
        if payload is None:
            return None
        # Gradio looks where a file lies only if the request calls it one; what is not looked at could be any file of
        # this machine, or another visitor's if its name were known.
        uploads = os.path.realpath(self.GRADIO_CACHE)
        path = os.path.realpath(payload.path or "")
        if not path.startswith(uploads + os.sep) or not os.path.isfile(path):
            raise gr.Error("Upload the picture as a file.")
        return path

    async def async_move_resource_to_block_cache(self, url_or_file_path):
        if str(url_or_file_path).startswith(("http://", "https://")):
            raise gr.Error("Addresses are not opened: download the picture and upload it as a file.")
        return await super().async_move_resource_to_block_cache(url_or_file_path)
