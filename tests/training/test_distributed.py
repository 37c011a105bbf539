"""Several processes train as one with larger batches: same order of paintings, same gradients and metrics, one writer.
When one of them dies, the others end too."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

import evaluate_sevlm
import train
from modeling_sevlm.__main__ import main as explain_pictures
from modeling_sevlm.trainer import SEVLMTrainer
from tests.helpers.ranks import TORCHRUN, Setting, assert_one_run, in_ranks, launch, train_here, train_in
from tests.helpers.training import QUIET_RUN, WITHOUT_EVALUATION


QUIET = [*QUIET_RUN, "--num_paintings", "60", "--per_device_train_batch_size", "4"]


@pytest.mark.parametrize(
    "setting",
    [
        Setting(paintings=24),
        Setting(paintings=27, epochs=2),  # the last batch is full in one process only
        Setting(paintings=25, accumulation=2),  # the last batch is empty in one process
        Setting(paintings=5),
    ],
    ids=lambda setting: f"{setting.paintings}-paintings",
)
def test_two_processes_train_as_one_with_batches_of_twice_the_size(processor, tmp_path, setting):
    one = train_in(setting, processor, tmp_path / "one")
    setting = replace(setting, processes=2)
    assert_one_run(setting, one, train_in(setting, processor, tmp_path / "two"))


def test_two_processes_that_resume_within_an_epoch_end_with_the_same_bits(processor, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "no", "overwrite_output_dir": True}
    setting = Setting(processes=2, arguments=saving)
    whole = train_in(setting, processor, tmp_path)
    resumed = train_in(replace(setting, resume_at=2), processor, tmp_path)
    for rank in (0, 1):
        torch.testing.assert_close(resumed[rank]["weights"], whole[rank]["weights"], rtol=0, atol=0)
        assert resumed[rank]["read"] == whole[rank]["read"][8:], "two batches of four had been read"


def test_uneven_numbers_of_batches_are_refused(processor, tmp_path):
    setting = Setting(processes=2, arguments={"accelerator_config": {"even_batches": False}})

    def refused(rank):
        with pytest.raises(ValueError, match="even_batches"):
            train_here(setting, processor, tmp_path, rank)

    assert in_ranks(2, refused) == [0, 0]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_the_first_process_writes(tmp_path):
    """Each process is given a folder of its own, which shows what it wrote."""

    def run(rank):
        folder = tmp_path / str(rank)
        steps = "--max_steps 2 --save_steps 2 --eval_steps 2 --generation_samples 3 --load_best_model_at_end false"
        train.main([*QUIET, *steps.split(), "--output_dir", str(folder / "model")])
        evaluation = ["--num_paintings", "60", "--use_cpu", "--update_model_card", "--captions", "false"]
        evaluate_sevlm.main([str(tmp_path / "0" / "model"), *evaluation, "--output_dir", str(folder / "evaluation")])

    assert in_ranks(2, run) == [0, 0]
    # Each process has its own random state. With a shared folder, the first process renames it with the checkpoint.
    assert files(tmp_path / "1") == {"model/saving/checkpoint-2/rng_state_1.pth"}
    expected = {"model/model.safetensors", "model/README.md", "model/training_log.json", "evaluation/results.json"}
    assert expected <= files(tmp_path / "0")


@pytest.mark.parametrize("death", ["killed", "an exception"])
def test_a_process_whose_partner_dies_ends_with_an_error(processor, tmp_path, monkeypatch, death):
    """No launcher watches the processes."""

    def die(trainer, *args, **kwargs):
        if trainer.args.process_index == 1 and trainer.state.global_step == 2:
            if death == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("died")
        return compute_loss(trainer, *args, **kwargs)

    compute_loss = SEVLMTrainer.compute_loss
    monkeypatch.setattr(SEVLMTrainer, "compute_loss", die)
    began = time.monotonic()
    codes = in_ranks(2, lambda rank: train_here(Setting(processes=2), processor, tmp_path, rank), timeout=60)
    assert codes == [1, -signal.SIGKILL if death == "killed" else 1]
    assert time.monotonic() - began < 30


def test_a_launched_run_ends_with_an_error_when_one_process_is_killed(tmp_path):
    more = "--save_steps 5 --max_steps 100000".split()
    run, log = launch(TORCHRUN, tmp_path / "out", [*QUIET, *WITHOUT_EVALUATION, *more]), tmp_path / "out.log"
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("out/checkpoint-*/trainer_state.json")):
            assert run.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        workers = [p for p in psutil.Process(run.pid).children() if p.environ().get("RANK") is not None]
        (last,) = [p for p in workers if p.environ()["RANK"] == "1"]
        last.kill()
        assert run.wait(60) != 0
        assert psutil.wait_procs(workers, timeout=10)[1] == [], "no process continues alone"
    finally:
        run.kill()
    assert "Signal 9" in log.read_text()


def test_the_command_that_explains_images_refuses_several_processes(tmp_path, monkeypatch):
    """All of them would write the same file."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="error: .*python -m modeling_sevlm"):
        explain_pictures(["docs", "--model", str(tmp_path), "--output", str(tmp_path / "table.csv")])
    assert not files(tmp_path)
