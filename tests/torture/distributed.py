"""Compares several processes with one that has larger batches, and kills one of several at random moments."""

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
from accelerate import PartialState
from trial import Row

from tests.helpers.ranks import ACCELERATE, TORCHRUN, Setting, assert_one_run, in_ranks, launch, train_here, train_in
from tests.helpers.tiny import tiny_processor


COMPARED, KILLED, LAUNCHED = 14, 8, 6
TIMEOUT = 60  # seconds in which the others must end
TRAINING = "--num_paintings 60 --image_size 32 --per_device_train_batch_size 4 --use_cpu true --disable_tqdm true "
TRAINING += "--max_steps 100000 --save_steps 5 --eval_steps 5 --generation_samples 4 --sheet_paintings 0"


def run(chance: random.Random, folder: Path) -> Iterator[Row]:
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    processor = tiny_processor()
    yield compare(chance, folder / "compared", processor)
    yield kill_some(chance, folder / "killed", processor)
    yield kill_launched(chance, folder / "launched")


def compare(chance: random.Random, folder: Path, processor) -> Row:
    failures, uneven = [], 0
    for number in range(COMPARED):
        processes, accumulation = chance.choice((2, 2, 3)), chance.choice((1, 1, 2, 3))
        paintings, size = chance.randint(3, 40), processes * accumulation * chance.randint(1, 4)
        epochs, seed = chance.choice((1, 1, 2)), chance.randrange(1000)
        setting = Setting(paintings, size, accumulation, epochs=epochs, seed=seed)
        uneven += bool(setting.paintings % setting.batch_size)
        try:
            one = train_in(setting, processor, folder / f"{number}-one")
            setting = replace(setting, processes=processes)
            assert_one_run(setting, one, train_in(setting, processor, folder / f"{number}-several"))
        except AssertionError as error:
            failures.append(f"{setting}: {str(error).splitlines()[0]}")
    outcome = f"{COMPARED - len(failures)} with the same paintings in the same order, gradients and figures; "
    what = "runs of two or three processes compared with one with the same total batch"
    return Row(what, COMPARED, f"{outcome}{uneven} with an uneven end", failures)


def kill_some(chance: random.Random, folder: Path, processor) -> Row:
    failures, slowest = [], 0.0
    for number in range(KILLED):
        processes, moment = chance.choice((2, 2, 3)), chance.uniform(0.0, 5.0)
        victim = chance.randrange(processes)
        arguments = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 2}
        setting = Setting(paintings=27, processes=processes, batch_size=12, epochs=10_000, arguments=arguments)
        where = folder / str(number)
        where.mkdir(parents=True)

        def train(rank: int, setting=setting, where=where, victim=victim, moment=moment):
            PartialState(cpu=True)  # before this, only a launcher can notice that a process is missing
            if rank == victim:
                threading.Timer(moment, os.kill, (os.getpid(), signal.SIGKILL)).start()
            train_here(setting, processor, where, rank)

        began = time.monotonic()
        codes = in_ranks(processes, train, timeout=TIMEOUT)
        slowest = max(slowest, time.monotonic() - began - moment)
        codes.pop(victim)
        if not all(code is not None and code > 0 for code in codes):
            failures.append(f"rank {victim} of {processes} killed after {moment:.2f} s: exit codes {codes}")
    outcome = f"in {KILLED - len(failures)} all others ended with an error, within {slowest:.1f} s at most"
    return Row("`kill -9` of one process at a random moment, without a launcher", KILLED, outcome, failures)


def kill_launched(chance: random.Random, folder: Path) -> Row:
    failures, slowest, during = [], 0.0, Counter()
    for number in range(LAUNCHED):
        launcher, rank, moment = (TORCHRUN, ACCELERATE)[number % 2], str(chance.randrange(2)), chance.uniform(0.0, 6.0)
        folder.mkdir(parents=True, exist_ok=True)
        launched, problem = launch(launcher, folder / str(number), TRAINING.split()), None
        try:
            workers = find_workers(launched)
            begins = number % 3 == 0
            while not begins and not list(folder.glob(f"{number}/checkpoint-*")) and launched.poll() is None:
                time.sleep(0.05)
            time.sleep(moment)
            during["they start" if begins else "they train, evaluate and save"] += 1
            workers[rank].kill()
            began = time.monotonic()
            if launched.wait(TIMEOUT) == 0:
                problem = "it ended without an error"
            if psutil.wait_procs(list(workers.values()), timeout=10)[1]:
                problem = "a process continued alone"
            slowest = max(slowest, time.monotonic() - began)
        except (subprocess.TimeoutExpired, KeyError) as error:
            problem = f"{type(error).__name__}: {error}"
        finally:
            for process in psutil.Process(launched.pid).children(recursive=True) if launched.poll() is None else []:
                process.kill()
            launched.kill()
            launched.wait()
        if problem:
            failures.append(f"{launcher.split()[0]}, rank {rank} killed after {moment:.2f} s: {problem}")
    outcome = f"{LAUNCHED - len(failures)} ended with an error and no process left, within {slowest:.1f} s at most ("
    outcome += ", ".join(f"{count} while {when}" for when, count in sorted(during.items())) + ")"
    return Row("the same under `torchrun` and `accelerate launch`", LAUNCHED, outcome, failures)


def find_workers(launched: subprocess.Popen) -> dict[str, psutil.Process]:
    """Waits until both processes run, and returns them by rank."""
    deadline, workers = time.monotonic() + TIMEOUT, {}
    while len(workers) < 2 and time.monotonic() < deadline and launched.poll() is None:
        time.sleep(0.05)
        for process in psutil.Process(launched.pid).children(recursive=True):
            try:
                if (rank := process.environ().get("RANK")) is not None and "train.py" in process.cmdline():
                    workers[rank] = process
            except psutil.Error:  # the process has just started
                continue
    return workers
