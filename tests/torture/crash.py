"""`kill -9` at random and at chosen moments of a training run with the feature cache, then the same command again. The
weights are those of an uninterrupted run, bit for bit, and no file with a final name is incomplete. Then the same on
disks that are too small."""

import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
from trial import Row

from tests.helpers.crashing import SHORT, Run, differing_weights, half_written, left_over
from tests.helpers.tiny import save_backbones


# Moments, and the number of kills at each: thirty kills.
MOMENTS = {
    "any moment": 12,
    "a checkpoint is being written": 6,
    "an old checkpoint is being deleted": 2,
    "a cache shard is being written": 4,
    "an evaluation is running": 4,
    "the final model is being written": 2,
}
SMALL_DISKS = 6
STARTED = "training starts"  # printed by train.py
ORPHAN_SECONDS = 20.0  # a loader worker checks for its parent every five seconds
ATTEMPTS = 4  # to hit a moment that lasts a few milliseconds


@dataclass
class Case:
    """A kill. `place` in [0, 1) says when within the moment, or at which of several moments."""

    moment: str
    number: int
    place: float
    whole_group: bool
    workers: int

    def name(self) -> str:
        who = "all processes" if self.whole_group else "the parent only"
        return f"{self.moment} (case {self.number}, place {self.place:.3f}, {who}, {self.workers} workers)"


def draw(chance: random.Random) -> list[Case]:
    cases = []
    for moment, times in MOMENTS.items():
        for _ in range(times):
            whole = chance.random() < 0.5
            # Without workers the parent is the only process.
            workers = chance.choice([0, 0, 2]) if whole else 2
            cases.append(Case(moment, len(cases), chance.random(), whole, workers))
    return cases


def has_come(run: Run, case: Case, cache: Path, seconds: float) -> bool:
    """Waits for the case's moment and returns whether it came before the run ended."""
    saving, step = run.output / "saving", 2 * int(1 + 6 * case.place)
    if case.moment == "any moment":
        begun = run.wait_until(lambda: STARTED in run.printed(), pause=0.02)
        time.sleep(seconds * case.place)
        return begun and run.process.poll() is None
    if case.moment == "an evaluation is running":
        begun = run.wait_until(lambda: run.printed().count("'loss'") >= step, pause=0.002)
        time.sleep(0.25 * case.place)  # generation, then a sheet
        return begun and not (run.output / f"checkpoint-{step}").exists()
    where, pattern, files = {
        "a checkpoint is being written": (saving, f"checkpoint-{step}/*", int(20 * case.place)),  # of about two dozen
        "an old checkpoint is being deleted": (saving, "old-*", 0),
        "a cache shard is being written": (cache, "*/*.tmp", 0),
        "the final model is being written": (saving, "model/*", 0),
    }[case.moment]
    return run.wait_until(lambda: len(list(where.glob(pattern))) > files, pause=0.0002)


def try_case(case: Case, folder: Path, backbones: list[str], whole: Path, seconds: float) -> tuple[Counter, list[str]]:
    """Kills a run, repeats its command, and returns counts of the outcomes and a line for each fault."""
    happened, failures = Counter(), []
    for attempt in range(ATTEMPTS):
        output, cache = folder / f"{case.number}-{attempt}", folder / f"cache-{case.number}-{attempt}"
        arguments = [*backbones, *SHORT, "--cache_features", str(cache)]
        workers = ("--dataloader_num_workers", str(case.workers))
        run = Run(output, arguments, *workers)
        came = has_come(run, case, cache, seconds)
        orphans = run.kill(case.whole_group)
        if came:
            break
    else:
        return happened, [f"{case.name()}: not hit in {ATTEMPTS} attempts"]
    happened["kills"] += 1
    happened["left something half done"] += (output / "saving").exists() or any(cache.glob("*/*.tmp"))
    failures += half_written(output) + half_written(cache)
    # Immediately, while orphans may still be running.
    again = Run(output, arguments, *workers)
    code = again.wait()
    printed = again.printed()
    happened["resumed" if "Training continues from" in printed else "started again"] += 1
    happened["orphans"] += len(orphans)
    _, alive = psutil.wait_procs(orphans, timeout=ORPHAN_SECONDS)
    if staying := [process.pid for process in alive if process.status() != psutil.STATUS_ZOMBIE]:
        failures.append(f"processes {staying} still running after {ORPHAN_SECONDS:.0f} s")
    if code != 0:
        failures.append(f"the resumed run ended with {code}: {printed[-300:]!r}")
    else:
        failures += half_written(output) + half_written(cache)
        failures += [f"left over: {path}" for path in left_over(output) + left_over(cache)]
        if names := differing_weights(whole, output):
            failures.append(f"{len(names)} tensors differ from the uninterrupted run's: {', '.join(names[:3])}")
        happened["ended with the same bits"] += not names
    return happened, [f"{case.name()}: {failure}" for failure in failures]


def mount(folder: Path, options: str) -> bool:
    """Mounts a disk in memory and returns whether that is allowed here."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    return done.returncode == 0


def try_small_disk(size: int, folder: Path, backbones: list[str], whole: Path) -> tuple[Counter, list[str]]:
    """Trains on a disk of `size` bytes until it is full, then on a larger one to the end."""
    happened, failures = Counter(), []
    disk = output = folder / f"disk-{size}"
    arguments = [*backbones, *SHORT, "--cache_features", str(disk / "cache")]
    if not mount(disk, f"size={size}"):
        return happened, failures
    try:
        first = Run(output, arguments)
        code, printed = first.wait(), first.printed()
        happened["disks"] += 1
        happened["large enough"] += code == 0
        if code != 0:
            happened["ended with a message"] += "error: " in printed and "free" in printed
            if "error: " not in printed or "Traceback" in printed:
                failures.append(f"no message: {printed[-300:]!r}")
            failures += half_written(disk) + [f"left: {p}" for p in left_over(disk)]
            mount(disk, f"size={2**28},remount")
            again = Run(output, arguments)
            if again.wait() != 0:
                failures.append(f"the run on the larger disk fails: {again.printed()[-300:]!r}")
        if not failures:
            names = differing_weights(whole, output)
            failures += [f"{len(names)} tensors differ from the uninterrupted run's"] if names else []
            happened["ended with the same bits"] += not names
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return happened, [f"disk of {size} bytes: {failure}" for failure in failures]


def run(chance: random.Random, folder: Path) -> Iterator[Row]:
    backbones = save_backbones(folder, patch_size=2)
    whole = Run(folder / "whole", [*backbones, *SHORT, "--cache_features", str(folder / "cache")])
    whole.wait_until(lambda: STARTED in whole.printed(), pause=0.02)
    began = time.monotonic()
    if whole.wait() != 0:
        raise RuntimeError(f"the uninterrupted run fails: {whole.printed()[-2000:]}")
    seconds = time.monotonic() - began
    cases = draw(chance)
    orphans, failures = 0, []
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda case: try_case(case, folder, backbones, whole.output, seconds), cases))
    for moment in MOMENTS:
        counts, failed = Counter(), []
        for case, (happened, problems) in zip(cases, results, strict=True):
            if case.moment == moment:
                counts, failed = counts + happened, failed + problems
        orphans += counts.pop("orphans", 0)
        kills = counts.pop("kills", 0)
        failures += failed
        when = moment if moment == "any moment" else f"while {moment}"
        yield Row(f"`kill -9` of training, {when}", kills, f"{listed(counts)}; {len(failed)} faults", failed)
    stayed = sum("still running" in failure for failure in failures)
    yield Row("loader processes whose parent was killed", orphans, f"{orphans - stayed} ended without help")
    written = [*whole.output.rglob("*"), *(folder / "cache").rglob("*")]
    full = sum(path.stat().st_size for path in written if path.is_file())
    sizes = [int(full * chance.uniform(0.1, 1.2)) for _ in range(SMALL_DISKS)]
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda size: try_small_disk(size, folder, backbones, whole.output), sizes))
    counts = sum((happened for happened, _ in results), Counter())
    failed = [problem for _, problems in results for problem in problems]
    disks = counts.pop("disks", 0)
    outcome = f"{listed(counts) or 'mounting is not allowed here'}; {len(failed)} faults"
    yield Row("training on a disk that is too small, then on a larger one", disks, outcome, failed)


def listed(counts: Counter) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()) if count)
