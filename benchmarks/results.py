# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Results of a command: a json file with everything measured, and markdown tables of what matters.

A result is `{"command", "arguments", "environment", "tables", "checks", "measurements", ...}`. A table is
`{"title", "columns", "rows"}` with plain numbers; formatting happens here.
"""

import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from evaluation.report import git_commit, versions
from processing.files import write_json


def environment(device: torch.device) -> dict:
    """What the figures depend on beside the code."""
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
        "versions": versions(),
        "commit": git_commit(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(title: str, columns: list[str], rows: list[list]) -> dict:
    return {"title": title, "columns": columns, "rows": rows}


def markdown(result: dict) -> str:
    """All tables of a result, under a line that says where they come from."""
    where, arguments = result["environment"], result["arguments"]
    used = ", ".join(
        f"{name} {_cell(arguments[name])}" for name in ("size", "dtype", "batch_size", "repeats") if name in arguments
    )
    lines = [
        f"*`{result['command']}`, {where['device_name']} ({where['device']}, {where['threads']} threads), "
        f"torch {where['versions']['torch']}, transformers {where['versions']['transformers']}; {used}; "
        f"{where['when'][:10]}.*"
    ]
    for entry in result["tables"]:
        lines += ["", f"**{entry['title']}**", "", _row(entry["columns"])]
        lines.append("|" + "---|" + "---:|" * (len(entry["columns"]) - 1))
        lines += [_row(row) for row in entry["rows"]]
    if result.get("checks"):
        lines += ["", "Checked: " + "; ".join(f"{name}: {_cell(value)}" for name, value in result["checks"].items())]
    if result.get("notes"):
        lines += ["", *result["notes"]]
    return "\n".join(lines) + "\n"


def _row(cells: list) -> str:
    return "| " + " | ".join(_cell(cell).replace("|", "/") for cell in cells) + " |"


def _cell(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return " ".join(map(_cell, value))
    return str(value)


def save(result: dict, path: Path) -> None:
    write_json(path, result)
