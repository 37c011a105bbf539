"""A training run in one or several processes on the CPU, and its results: rows read, gradients, log, weights.

The processes are forks of the test's, in the environment of torchrun. No launcher watches them: each must notice that
another one died.
"""

import faulthandler
import multiprocessing
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from processing.collator import SentencePairs, SEVLMCollator
from processing.toy_artemis import load_toy_artemis
from tests.helpers.tiny import IMAGE_SIZE, tiny_model
from tests.helpers.training import KeepGradients, make_trainer, without_dropout


ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = "torch.distributed.run --nproc_per_node 2 --master_port"
ACCELERATE = "accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def in_ranks(number: int, function: Callable[[int], None], timeout: float = 120) -> list[int | None]:
    """Calls `function(rank)` in `number` processes and returns their exit codes; `None` for one that is killed after
    `timeout` seconds."""
    context, port = multiprocessing.get_context("fork"), free_port()

    def run(rank: int):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        torch.set_num_threads(1)
        faulthandler.dump_traceback_later(timeout)  # shows where it hangs
        try:
            function(rank)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os._exit(0)

    processes = [context.Process(target=run, args=(rank,)) for rank in range(number)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def launch(launcher: str, output: Path, arguments: list[str]) -> subprocess.Popen:
    """Starts train.py in two processes with a launcher's module and options. The output goes to `output.log`."""
    command = [sys.executable, "-m", *launcher.split(), str(free_port()), "train.py", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with open(f"{output}.log", "w") as log:
        command += ["--output_dir", str(output)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


@dataclass
class Setting:
    """Settings of a run. `batch_size` counts all processes and accumulated batches."""

    paintings: int = 27
    batch_size: int = 8
    accumulation: int = 1
    processes: int = 1
    epochs: int = 1
    seed: int = 0
    resume_at: int | None = None
    arguments: dict = field(default_factory=dict)


class Recorded(SentencePairs):
    """Records which painting is read in which epoch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.read = []

    def __getitem__(self, index):
        self.read.append([int(self._epoch), index, *self.pair(index)])
        return super().__getitem__(index)


def train_here(setting: Setting, processor, folder: Path, rank: int = 0) -> None:
    """Trains in this process, one of `setting.processes`, and writes its results to `folder`."""
    toy = load_toy_artemis(2 * setting.paintings + 24, image_size=IMAGE_SIZE, seed=setting.seed)["train"]
    data, held_out = toy.select(range(setting.paintings)), toy.select(range(setting.paintings, setting.paintings + 7))
    # The contrastive loss takes its negatives from the batch of one process, so it depends on their number.
    fields = {"contrastive_negatives": [], "label_loss_weight": 0.5}
    model = without_dropout(tiny_model(processor, seed=setting.seed, **fields))
    arguments = {
        "seed": setting.seed,
        "per_device_train_batch_size": setting.batch_size // setting.processes // setting.accumulation,
        "gradient_accumulation_steps": setting.accumulation,
        "per_device_eval_batch_size": 3,
        "num_train_epochs": setting.epochs,
        "learning_rate": 1e-5,  # small, so that rounding errors do not grow from step to step
        "vad_learning_rate": 2e-5,
        "optim": "sgd",  # Adam would turn rounding errors into steps of full size
        "lr_scheduler_type": "linear",
        "eval_strategy": "epoch",
        "metric_for_best_model": "loss",
        "greater_is_better": False,
        "max_grad_norm": 1e9,
    }
    keep, dataset = KeepGradients(), Recorded(data, seed=setting.seed)
    datasets = {"train_dataset": dataset, "eval_dataset": SentencePairs(held_out, seed=setting.seed)}
    collator, arguments = SEVLMCollator(processor), arguments | setting.arguments
    trainer = make_trainer(model, processor, folder, [keep], collator=collator, **datasets, **arguments)
    trainer.train(str(folder / f"checkpoint-{setting.resume_at}") if setting.resume_at else None)
    result = {"read": dataset.read, "log": trainer.state.log_history, "steps": trainer.state.global_step}
    result |= {"gradients": keep.gradients, "weights": dict(model.state_dict())}
    torch.save(result, folder / f"run-{rank}.pt")


def assert_one_run(setting: Setting, ones: list[dict], several: list[dict]) -> None:
    """Asserts that one process and several with the same total batch size gave the same results."""
    one, share = ones[0], setting.batch_size // setting.processes // setting.accumulation
    # One batch of each process in turn. A row is epoch, painting, first and second sentence.
    dealt = [[run["read"][i : i + share] for i in range(0, len(run["read"]), share)] for run in several]
    order = [row for batches in zip(*dealt, strict=True) for batch in batches for row in batch]
    for epoch in range(setting.epochs):
        rows = [row for row in order if row[0] == epoch]  # with repeats after an epoch's last painting
        expected = [row for row in one["read"] if row[0] == epoch]
        assert rows[: setting.paintings] == expected and len(expected) == setting.paintings
    for rank in several:
        assert rank["steps"] == one["steps"]
        torch.testing.assert_close(rank["gradients"], one["gradients"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(rank["weights"], several[0]["weights"], rtol=0, atol=0)
    compared = ("loss", "language_loss", "emotion_loss", "label_loss")
    for entry, known in zip(several[0]["log"], one["log"], strict=True):
        for name in known.keys() & {*compared, *(f"eval_{part}" for part in compared)}:
            assert entry[name] == pytest.approx(known[name], rel=1e-5), (name, known["step"])


def train_in(setting: Setting, processor, folder: Path) -> list[dict]:
    """Trains in `setting.processes` processes and returns the results of each."""
    folder.mkdir(parents=True, exist_ok=True)
    codes = in_ranks(setting.processes, lambda rank: train_here(setting, processor, folder, rank))
    assert codes == [0] * setting.processes, f"exit codes {codes} of {setting}"
    return [torch.load(folder / f"run-{rank}.pt", weights_only=True) for rank in range(setting.processes)]
