# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Result files that are whole or not there; input errors, unknown arguments too, that end a script with one line."""

import contextlib
import json
import math
import os
from pathlib import Path

from transformers import HfArgumentParser


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


def parse_arguments(parser: HfArgumentParser, argv: list[str]) -> tuple:
    """The parser's dataclasses. Unknown arguments end the script with their names; what stands behind them, which may
    be a token, is not repeated."""
    *parsed, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        names = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        raise SystemExit(
            f"error: there is no argument {', '.join(names)}; --help lists those that there are."
            if names
            else "error: there is a word too many, which belongs to no argument; --help lists the arguments."
        )
    return tuple(parsed)
