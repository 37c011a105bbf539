"""A small training run in its own process, which a test can kill at any moment, and checks of its output folder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from PIL import Image
from safetensors.torch import load_file


ROOT = Path(__file__).resolve().parents[2]
# Fourteen updates, almost five in an epoch. After every second one: evaluation with generation, a sheet, a checkpoint.
# The best checkpoint is neither the first nor the last.
SHORT = (
    "--num_paintings 48 --per_device_train_batch_size 8 --max_steps 14 --learning_rate 1e-3 --save_steps 2 "
    "--eval_steps 2 --metric_for_best_model unique --generation_samples 4 --sheet_paintings 1 --logging_steps 1 "
    "--use_cpu true --disable_tqdm true --vad_lexicon embedded"
).split()


class Run:
    """`python train.py ... --resume_from_checkpoint true` in a session of its own.

    Args:
        output: folder of the run. Its output goes to `output.log` next to it.
    """

    def __init__(self, output: Path, arguments: list[str], *more: str):
        self.output = Path(output)
        command = [sys.executable, "train.py", *arguments, "--resume_from_checkpoint", "true", *more]
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONFAULTHANDLER": "1"}
        with open(f"{self.output}.log", "ab") as self.log:
            self.log_start = self.log.tell()
            self.process = subprocess.Popen(
                [*command, "--output_dir", str(self.output)],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=self.log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def printed(self) -> str:
        return Path(f"{self.output}.log").read_bytes()[self.log_start :].decode(errors="replace")

    def wait(self, timeout: float = 300) -> int:
        """Returns the exit code. A run that hangs is aborted and prints its stack."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            return self.process.wait()
        finally:
            self.kill()

    def wait_until(self, condition: Callable[[], bool], timeout: float = 120, pause: float = 0.001) -> bool:
        """Returns whether `condition` became true before the run ended."""
        end = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < end:
            if condition():
                return True
            time.sleep(pause)
        return False

    def kill(self, whole_group: bool = True) -> list[psutil.Process]:
        """Kills the run, or only its first process, and returns the processes that are left."""
        children = []
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if not whole_group:
                # Stop first: listing the children takes longer than the moment may last.
                os.kill(self.process.pid, signal.SIGSTOP)
                children = psutil.Process(self.process.pid).children(recursive=True)
            (os.killpg if whole_group else os.kill)(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return children


def half_written(folder: Path) -> list[str]:
    """Files under `folder` that have their final names but cannot be read to the end, with the reason."""
    problems = []
    for checkpoint in folder.glob("checkpoint-*"):
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
            problems += [] if (checkpoint / name).is_file() else [f"{checkpoint.name} has no {name}"]
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and path.suffix != ".tmp" and not name.startswith("saving/"):
            try:
                read_whole(path)
            except Exception as error:  # readers raise errors of many kinds
                problems.append(f"{name}: {type(error).__name__}: {error}")
    return problems


def read_whole(path: Path) -> None:
    if path.suffix == ".safetensors":
        load_file(path)
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.name in ("optimizer.pt", "scheduler.pt"):
        torch.load(path, weights_only=True)
    elif path.suffix in (".pt", ".pth", ".bin"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
    elif path.suffix == ".png":
        Image.open(path).load()
    elif path.stat().st_size == 0:
        raise ValueError("empty")


def left_over(folder: Path) -> list[str]:
    """Temporary files that a finished run should have deleted."""
    found = (path for path in folder.rglob("*") if path.suffix == ".tmp" or path.name == "saving")
    return [str(path.relative_to(folder)) for path in found]


def differing_weights(first: Path, second: Path) -> list[str]:
    """Names of the tensors that are not equal bit for bit in two folders' models."""
    one, other = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert one.keys() == other.keys()
    return sorted(name for name in one if one[name].numpy().tobytes() != other[name].numpy().tobytes())
