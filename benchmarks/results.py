# Licensed under the Apache License, Version 2.0; see LICENSE.
"""A command's result: `{"command", "arguments", "environment", "tables", "checks", "measurements", ...}`. It is saved
as JSON and printed as markdown. A table is `{"title", "columns", "rows"}` with unformatted numbers."""

import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from evaluation.report import git_commit, versions

from .measure import Timing


def environment(device: torch.device) -> dict:
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    processor = cpuinfo.partition("model name")[2].partition("\n")[0].lstrip("\t :") or platform.machine()
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
        "versions": versions(),
        "commit": git_commit(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def table(title: str, columns: list[str], rows: list[list]) -> dict:
    return {"title": title, "columns": columns, "rows": rows}


def rate_table(title: str, timings: dict[str, Timing], count: int, unit: str, more: dict[str, Callable]) -> dict:
    """A row per timing of `count` things: how many per second, the seconds, and what the functions of `more` return
    for its name and timing."""
    columns = ["", f"{unit}/s", "seconds (median, quartiles)", *more]
    rows = [
        [name, count / timing.median, timing.spread, *(value(name, timing) for value in more.values())]
        for name, timing in timings.items()
    ]
    return table(title, columns, rows)


def markdown(result: dict) -> str:
    """All tables of a result after a line about the machine and the settings."""
    where, settings = result["environment"], result["arguments"]
    used = [
        f"{name} {_cell(settings[name])}" for name in ("size", "dtype", "batch_size", "repeats") if name in settings
    ]
    lines = [
        f"*`{result['command']}`, {where['device_name']} ({where['device']}, {where['threads']} threads), "
        f"torch {where['versions']['torch']}, transformers {where['versions']['transformers']}; {', '.join(used)}; "
        f"{where['when'][:10]}.*"
    ]
    for entry in result["tables"]:
        rule = "|---|" + "---:|" * (len(entry["columns"]) - 1)
        lines += ["", f"**{entry['title']}**", "", _row(entry["columns"]), rule, *map(_row, entry["rows"])]
    if result.get("checks"):
        lines += ["", "Checked: " + "; ".join(f"{name}: {_cell(value)}" for name, value in result["checks"].items())]
    return "\n".join([*lines, *result.get("notes", [])]) + "\n"


def _row(cells: list) -> str:
    return "| " + " | ".join(_cell(cell).replace("|", "/") for cell in cells) + " |"


def _cell(value) -> str:
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
