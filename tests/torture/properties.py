"""Runs the property tests on ten times as many examples, drawn with another seed each time."""

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from trial import Row


TESTS = Path(__file__).resolve().parent.parent
TIME_LIMIT = 900  # seconds per file


def run(chance: random.Random, folder: Path) -> Iterator[Row]:
    seed = chance.randrange(2**32)
    for file in sorted(TESTS.rglob("test_*.py")):
        if "@examples(" not in file.read_text(encoding="utf-8"):
            continue
        options = ["-q", "-p", "no:cacheprovider", "-m", "", "--hypothesis-show-statistics"]
        options += ["--hypothesis-profile=torture", f"--hypothesis-seed={seed}"]
        command = [sys.executable, "-m", "pytest", *options, file.relative_to(TESTS.parent).as_posix()]
        # Keeps hypothesis' files out of the project.
        environment = {**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis")}
        try:
            done = subprocess.run(
                command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT
            )
        except subprocess.TimeoutExpired:
            yield Row(file.name, 0, "not done in time", [f"{' '.join(command[1:])}: over {TIME_LIMIT} s"])
            continue
        again = f"python {' '.join(command[1:])}"
        for name, examples, failing in statistics(done.stdout):
            failures = [f"{name}: {again}"] if failing else []
            yield Row(name.removeprefix("test_").replace("_", " "), examples, f"{failing} failed", failures)
        if done.returncode:
            yield Row(file.name, 1, "failed", [f"{again}\n{done.stdout[-3000:]}{done.stderr[-1000:]}"])


def statistics(report: str) -> Iterator[tuple[str, int, int]]:
    """Yields (test, passed examples, failed examples) from the statistics that hypothesis adds to pytest's report."""
    for part in re.split(r"^(?=tests/\S+::)", report, flags=re.M)[1:]:
        name = re.match(r"tests/\S+?::([^:\s]+):", part)
        counts = re.findall(r"(\d+) passing, (\d+) failing", part.replace(" examples", "")) if name else []
        if counts:
            yield name[1], sum(int(good) for good, _ in counts), sum(int(bad) for _, bad in counts)
