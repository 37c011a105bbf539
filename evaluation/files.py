# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Result files that are whole or not there, and input errors that end a script with one line."""

import contextlib
import json
import math
import os
from pathlib import Path


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write beside the file first, so that a file under its final name is always whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content) -> None:
    """As `write_text`. NaN and infinity, which json does not know, become null."""
    write_text(path, json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(content):
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@contextlib.contextmanager
def errors_as_exit():
    """For reading input: what is wrong with it ends the script with its message instead of a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
