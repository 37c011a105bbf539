# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Measures how fast SEVLM is, against the paper's procedure, other models and the limits of the machine.

    python -m benchmarks generate|peers|train|vad|load|metrics|growth [--device cuda]
    python -m benchmarks train --epoch 68026 --device cuda
    python -m benchmarks table outputs/benchmarks/generate.json [...]

Weights are random and inputs are generated, so nothing is downloaded. Every command writes a JSON file with all
measurements and prints its tables; docs/performance.md explains them.
"""

import argparse
import json
from pathlib import Path

import torch

from processing.files import write_json

from .generation import run_generate, run_peers
from .growth import run_growth
from .load import run_load
from .parts import run_metrics, run_vad
from .results import environment, markdown
from .training import run_train


PAPER_TRAIN_PAINTINGS = 68_026  # 85 % of ArtEmis v1's 80,031
COMMANDS = {
    "generate": (run_generate, "images/s and a decoding step, against the recompute yardstick and the lower bounds"),
    "peers": (run_peers, "the same work by BLIP-base and GIT-base"),
    "train": (run_train, "sentences/s of a training step, against the authors' step"),
    "vad": (run_vad, "tokens/s of the processor, the model's look-up, compilation of the lexicon"),
    "load": (run_load, "imports, from_pretrained, first and second generation, each in a fresh process"),
    "metrics": (run_metrics, "predictions/s of the evaluation's metrics"),
    "growth": (run_growth, "growth of times with batch, tokens, candidates, lexicon and data; with plots"),
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
        option("--repeats", type=int, default=5, help="timed rounds (default: 5)")
        option("--warmup", type=int, default=1, help="untimed calls of every variant (default: 1)")
        option("--threads", type=int, default=2, help="PyTorch threads on a CPU (default: 2)")
        option("--size", default="full", choices=["full", "tiny"], help="tiny: try the command in seconds")
        option("--output", type=Path, help="result file (default: outputs/benchmarks/COMMAND.json)")
        option("--compile", action="store_true", help="measure compiled variants on a CPU too (slow to start)")
        if name == "train":
            about = f"measure an epoch of ROWS paintings through the trainer (default: {PAPER_TRAIN_PAINTINGS})"
            option("--epoch", type=int, nargs="?", const=PAPER_TRAIN_PAINTINGS, metavar="ROWS", help=about)
            option("--workers", type=int, default=0, help="data loader workers of the epoch (default: 0)")
        if name == "growth":
            option("--plots", type=Path, default=Path("outputs/benchmarks"), help="folder of the plots")
    commands.add_parser("table", help="print the tables of result files").add_argument("results", nargs="+", type=Path)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.command == "table":
        for path in args.results:
            print(markdown(json.loads(path.read_text(encoding="utf-8"))))
        return
    if min(args.repeats, args.warmup, args.batch_size) < 1:
        raise SystemExit("error: --repeats, --warmup and --batch_size must be 1 or more.")
    if args.device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: PyTorch finds no CUDA device. Leave --device out to measure on the CPU.")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    settings = {name: value for name, value in vars(args).items() if value is not None}
    settings = {name: value if isinstance(value, int | list) else str(value) for name, value in settings.items()}
    result = {"command": settings.pop("command"), "arguments": settings, "environment": environment(args.device)}
    result |= COMMANDS[args.command][0](args)
    measurements = result.get("measurements", {})
    result["measurements"] = {name: timing.to_dict() for name, timing in measurements.items()}
    path = args.output or Path("outputs/benchmarks", f"{args.command}.json")
    write_json(path, result)
    print(markdown(result))
    print(f"All measurements are in {path}.")


if __name__ == "__main__":
    main()
