"""Serves the page of app.py for a test."""

from contextlib import contextmanager
from pathlib import Path

import app
from app_page import draw_examples


@contextmanager
def serve(explainer: app.Explainer, folder: Path):
    """Serves the page on a free port, with its examples in `folder`, and yields its address."""
    demo = app.build(explainer, draw_examples(folder))
    try:
        _, address, _ = app.launch(demo, explainer, host="127.0.0.1", port=None, wait=False)
        yield address.rstrip("/")
    finally:
        demo.close(verbose=False)
