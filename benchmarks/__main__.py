"""Measures how fast SEVLM is, against the paper's procedure, other models and the limits of the machine.

    python -m benchmarks generate|peers|train|vad|metrics|growth [--device cuda]
    python -m benchmarks train --epoch 68026 --device cuda
    python -m benchmarks table outputs/benchmarks/generate.json [...]

Weights are random and inputs are generated, so nothing is downloaded. Every command writes a JSON file with all
measurements and prints its tables; docs/performance.md explains them.
"""

import argparse
import json
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from evaluation.report import git_commit, versions
from processing.files import write_json

from .generation import run_generate, run_peers
from .growth import run_growth
from .parts import run_metrics, run_vad
from .training import run_train


PAPER_TRAIN_PAINTINGS = 68_026  # 85 % of ArtEmis v1's 80,031
COMMANDS = {
    "generate": (run_generate, "images/s and a decoding step, against the recompute yardstick and the lower bounds"),
    "peers": (run_peers, "the same work by BLIP-base and GIT-base"),
    "train": (run_train, "sentences/s of a training step, against the authors' step"),
    "vad": (run_vad, "tokens/s of the processor, compilation of the lexicon"),
    "metrics": (run_metrics, "predictions/s of the evaluation's metrics"),
    "growth": (run_growth, "growth of times with batch, tokens, candidates and lexicon; with a plot"),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, help_text) in COMMANDS.items():
        option = commands.add_parser(name, help=help_text).add_argument
        option("--device", type=torch.device, default="cpu", help="cpu or cuda (default: cpu)")
        option("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
        option("--batch_size", type=int, default=8, help="images per batch (default: 8)")
        option("--repeats", type=int, default=5, help="timed rounds after a warm-up (default: 5)")
        option("--threads", type=int, default=2, help="PyTorch threads on a CPU (default: 2)")
        option("--size", default="full", choices=["full", "tiny"], help="tiny: try the command in seconds")
        option("--output", type=Path, help="result file (default: outputs/benchmarks/COMMAND.json)")
        if name == "train":
            about = f"measure an epoch of ROWS paintings through the trainer (default: {PAPER_TRAIN_PAINTINGS})"
            option("--epoch", type=int, nargs="?", const=PAPER_TRAIN_PAINTINGS, metavar="ROWS", help=about)
        if name == "growth":
            option("--plots", type=Path, default=Path("outputs/benchmarks"), help="folder of the plot")
    commands.add_parser("table", help="print the tables of result files").add_argument("results", nargs="+", type=Path)
    return parser.parse_args(argv)


def environment(device: torch.device) -> dict:
    """The machine and the versions that a result depends on."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    processor = cpuinfo.partition("model name")[2].partition("\n")[0].lstrip("\t :") or platform.machine()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor
    when, threads = datetime.now(UTC).isoformat(timespec="seconds"), torch.get_num_threads()
    machine = {"device": str(device), "device_name": name, "threads": threads}
    return machine | {"versions": versions(), "commit": git_commit(), "when": when}


def markdown(result: dict) -> str:
    """All tables of a result after a line about the machine and the settings."""
    where, settings = result["environment"], result["arguments"]
    used = [f"{name} {_cell(settings[name])}" for name in ("size", "dtype", "batch_size", "repeats")]
    used += [f"{name} {where['versions'][name]}" for name in ("torch", "transformers")]
    machine = f"{where['device_name']} ({where['device']}, {where['threads']} threads)"
    lines = [f"*`{result['command']}`, {machine}; {', '.join(used)}; {where['when'][:10]}.*"]
    for entry in result["tables"]:
        rule = "|---|" + "---:|" * (len(entry["columns"]) - 1)
        lines += ["", f"**{entry['title']}**", "", _row(entry["columns"]), rule, *map(_row, entry["rows"])]
    checks = "; ".join(f"{name}: {_cell(value)}" for name, value in result.get("checks", {}).items())
    return "\n".join([*lines, "", f"Checked: {checks}"] if checks else lines) + "\n"


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


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.command == "table":
        for path in args.results:
            print(markdown(json.loads(path.read_text(encoding="utf-8"))))
        return
    if args.device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: PyTorch finds no CUDA device. Leave --device out to measure on the CPU.")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    settings = {name: value if isinstance(value, int | list) else str(value) for name, value in vars(args).items()}
    result = {"command": settings.pop("command"), "arguments": settings, "environment": environment(args.device)}
    result |= COMMANDS[args.command][0](args)
    timings = result.get("measurements", {})
    result["measurements"] = {name: {"median": timing.median, **vars(timing)} for name, timing in timings.items()}
    path = args.output or Path("outputs/benchmarks", f"{args.command}.json")
    write_json(path, result)
    print(markdown(result))
    print(f"All measurements are in {path}.")


if __name__ == "__main__":
    main()
