"""Long versions of short tests: kills at random moments, a million rows, hundreds of damaged files.

    make torture                          # all of them: at most 30 minutes on two cores
    python tests/torture crash --seed 7   # one of them

Prints the table of docs/reliability.md. All random numbers come from `--seed`. The command fails if an outcome is
wrong and says how to repeat it. A trial is a module with `run(chance, folder)`: it gets a `random.Random`
and an empty folder, and yields rows.
"""

import argparse
import contextlib
import importlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path


HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]  # the trials, the project


@contextlib.contextmanager
def errors_to(log: Path) -> Iterator[None]:
    """Appends standard error of this process and its children to `log`. Tracebacks of killed processes are normal."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)


def main(argv: Sequence[str] | None = None) -> int:
    names = sorted(file.stem for file in HERE.glob("*.py") if file.stem != "trial" and file.stem[0] != "_")
    parser = argparse.ArgumentParser(
        prog="python tests/torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=f"one of {', '.join(names)} (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    parser.add_argument(
        "--log", type=Path, default=Path("outputs/torture.log"), help="output of the processes (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    args.log.parent.mkdir(parents=True, exist_ok=True)
    args.log.unlink(missing_ok=True)
    if unknown := set(args.trials) - set(names):
        parser.error(f"unknown trial {', '.join(unknown)}. Use one of {', '.join(names)}.")

    print("| what was tried | how often | what happened | command |\n|---|---:|---|---|", flush=True)
    failures = []
    for name in args.trials or names:
        trial, start = importlib.import_module(name), time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"sevlm-{name}-") as folder, errors_to(args.log):
            for row in trial.run(random.Random(f"{name} {args.seed}"), Path(folder)):
                print(f"| {row.what} | {row.tried:,} | {row.outcome} | `python tests/torture {name}` |", flush=True)
                failures += [f"{name} --seed {args.seed}: {failure}" for failure in row.failures]
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    if failures:
        print(f"{args.log} has the output of the processes.", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
