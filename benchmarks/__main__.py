# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Measure how fast SEVLM is, against the paper's procedure, other models and what the machine can do.

    python -m benchmarks generate                    # against the recompute yardstick and the floors
    python -m benchmarks peers                       # against BLIP-base and GIT-base
    python -m benchmarks train                       # a training step against the authors'
    python -m benchmarks train --epoch 68026 --device cuda    # a whole epoch through the trainer
    python -m benchmarks vad|load|metrics|growth
    python -m benchmarks table outputs/benchmarks/generate.json [...]

Weights are random and inputs are made up, so nothing is downloaded. Every command writes a json file with all that
was measured, and prints its tables; docs/performance.md says how to read them.
"""

import argparse
import json
from pathlib import Path

import torch

from .results import environment, markdown, save


PAPER_TRAIN_PAINTINGS = 68_026  # 85 % of ArtEmis v1's 80,031
COMMANDS = {
    "generate": "images/s and a decoding step, against the recompute yardstick and the floors",
    "peers": "the same work by BLIP-base and GIT-base",
    "train": "sentences/s of a training step, against the authors' step",
    "vad": "tokens/s of the processor, the model's look-up, the lexicon's compilation",
    "load": "imports, from_pretrained, first and second generation, each in a fresh process",
    "metrics": "predictions/s of the evaluation's metrics",
    "growth": "how times grow with batch, tokens, candidates, lexicon and data; with plots",
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text)
        command.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda")
        command.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
        command.add_argument("--batch_size", type=int, default=8, help="pictures")
        command.add_argument("--repeats", type=int, default=5, help="rounds")
        command.add_argument("--warmup", type=int, default=1, help="untimed calls of every variant")
        command.add_argument("--threads", type=int, default=2, help="of PyTorch on a CPU")
        command.add_argument("--size", default="full", choices=["full", "tiny"], help="tiny: to try the command")
        command.add_argument("--output", type=Path, help="outputs/benchmarks/COMMAND.json by default")
        command.add_argument("--compile", action="store_true", help="compiled variants on a CPU, too (slow to start)")
        if name == "train":
            command.add_argument(
                "--epoch",
                type=int,
                nargs="?",
                const=PAPER_TRAIN_PAINTINGS,
                metavar="ROWS",
                help=f"instead: an epoch of ROWS paintings (default {PAPER_TRAIN_PAINTINGS}: 85%% of ArtEmis v1) from "
                "generated cached features through the trainer, and what 35 of them would take",
            )
            command.add_argument("--workers", type=int, default=0, help="of the epoch's data loader")
        if name == "growth":
            command.add_argument("--plots", type=Path, default=Path("outputs/benchmarks"), help="folder for the plots")
    tables = commands.add_parser("table", help="print the tables of result files")
    tables.add_argument("results", nargs="+", type=Path)
    return parser.parse_args(argv)


def command_function(name: str):
    """The imports of one command do not weigh on the others."""
    if name in ("generate", "peers"):
        from . import generation

        return getattr(generation, f"run_{name}")
    if name == "train":
        from .training import run_train

        return run_train
    if name == "growth":
        from .growth import run_growth

        return run_growth
    from . import parts

    return getattr(parts, f"run_{name}")


def main(argv: list[str] | None = None) -> dict | None:
    """Runs one command and returns its result."""
    args = parse(argv)
    if args.command == "table":
        for path in args.results:
            print(markdown(json.loads(path.read_text(encoding="utf-8"))))
        return None
    if args.repeats < 1 or args.batch_size < 1:
        raise SystemExit("error: --repeats and --batch_size are numbers from 1.")
    if args.device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: PyTorch finds no CUDA device here; leave --device out to measure on the CPU.")
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    try:
        where = environment(args.device)
        result = command_function(args.command)(args)
    finally:
        torch.set_num_threads(threads)
    settings = {name: value if isinstance(value, (int, list)) else str(value) for name, value in vars(args).items()}
    settings = {name: value for name, value in settings.items() if name != "command" and value != "None"}
    result = {"command": args.command, "arguments": settings, "environment": where} | result
    path = args.output or Path("outputs/benchmarks", f"{args.command}.json")
    save(result, path)
    print(markdown(result), flush=True)
    print(f"Everything measured is in {path}.")
    return result


if __name__ == "__main__":
    main()
