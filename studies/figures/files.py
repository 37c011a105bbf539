# Licensed under the Apache License, Version 2.0; see LICENSE.
"""How every figure is saved: pixels to look at and vectors to print, each file whole or not there."""

import os
from pathlib import Path


SUFFIXES = (".png", ".svg", ".pdf")


def save_figure(figure, output: str | os.PathLike, *, dpi: int = 150) -> list[Path]:
    """`NAME.png` and `NAME.svg`, whichever of both (or neither) `output` says; `NAME.pdf` instead of the second if it
    says so. The same figure gives the same bytes."""
    import matplotlib

    output = Path(output)
    stem = output.with_suffix("") if output.suffix in SUFFIXES else output
    vector = ".pdf" if output.suffix == ".pdf" else ".svg"
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix in (".png", vector):
        path = stem.with_name(stem.name + suffix)
        temporary = stem.with_name(f"{stem.name}.tmp{suffix}")
        # Without a date and with fixed names of its parts, so that a file changes only if its picture does.
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix)
        with matplotlib.rc_context({"svg.hashsalt": "sevlm"}):
            figure.savefig(temporary, dpi=dpi, metadata=metadata, bbox_inches="tight", pad_inches=0.08)
        os.replace(temporary, path)
        paths.append(path)
    return paths
