"""Runs that are killed, disks that are full, clocks that jump, losses that are no number: what is on the disk then is
whole, and going on ends with the same bits. (tests/torture/crash.py does the same at many moments.)"""

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback

import train
from modeling_sevlm import training_folder
from modeling_sevlm.finite_loss import FiniteWatch, NonFiniteError
from modeling_sevlm.trainer import EarlyStopping
from modeling_sevlm.training_folder import check_writable, checkpoints, defect
from tests.helpers.crashing import differing_weights, half_written, left_over
from tests.helpers.tiny import save_backbones
from tests.training.test_training import Sentences, make_collator, make_trainer


RESUME = ["--resume_from_checkpoint", "true"]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Seven updates, four an epoch; an evaluation that generates and a checkpoint at every second, and at the last."""
    folder = tmp_path_factory.mktemp("inputs")
    short = ["--num_paintings", "36", "--per_device_train_batch_size", "8", "--max_steps", "7", "--save_steps", "2"]
    short += ["--eval_steps", "2", "--metric_for_best_model", "loss", "--greater_is_better", "false"]
    short += ["--learning_rate", "1e-3", "--generation_samples", "4", "--sheet_paintings", "0"]
    quiet = ["--use_cpu", "true", "--disable_tqdm", "true", "--vad_lexicon", "embedded"]
    return [*save_backbones(folder), *short, *quiet, "--cache_features", str(folder / "cache")]


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train.main([*arguments, "--output_dir", str(folder)])
    return folder


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def dying_at(function, call: int):
    """`function`, except for the call of that number, which is the process's last."""
    calls = []

    def counting(*args, **kwargs):
        calls.append(1)
        return (die if len(calls) == call else function)(*args, **kwargs)

    return counting


def killed(argv: list[str], owner, name: str, call: int) -> None:
    """Run train.py in a process that kills itself as `owner.name` is called for the nth time."""

    def run():
        setattr(owner, name, dying_at(getattr(owner, name), call))
        train.main(argv)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


MOMENTS = {
    # The third and last file of torch's in the second checkpoint: weights and optimizer are there, the rest is not.
    "a checkpoint is written": (torch, "save", 7),
    "an old checkpoint is deleted": (training_folder.shutil, "rmtree", 7),
    "an evaluation runs": (train, "predict", 2),
    "the model's files get their names": (os, "replace", 8),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_a_moment_leaves_whole_files_and_ends_with_the_same_bits(
    arguments, undisturbed, tmp_path, moment
):
    argv = [*arguments, "--output_dir", str(tmp_path), *RESUME]
    killed(argv, *MOMENTS[moment])
    assert half_written(tmp_path) == []
    train.main(argv)
    assert differing_weights(undisturbed, tmp_path) == []
    assert half_written(tmp_path) == [] and left_over(tmp_path) == []


def test_a_run_that_had_ended_is_not_trained_any_further(arguments, undisturbed, tmp_path):
    """Killed behind its last checkpoint, in the middle of an epoch."""
    shutil.copytree(undisturbed, tmp_path / "run")
    last = ["--load_best_model_at_end", "false"]
    trainer = train.main([*arguments, "--output_dir", str(tmp_path / "run"), *last, *RESUME])
    assert trainer.state.global_step == 7
    assert differing_weights(undisturbed / "checkpoint-7", tmp_path / "run") == []


def test_a_run_that_had_stopped_early_stays_stopped(processor, model, tmp_path):
    def trainer(**more):
        dying = make_trainer(
            model,
            processor,
            tmp_path,
            num_train_epochs=4,
            eval_strategy="steps",
            save_strategy="steps",
            eval_steps=1,
            save_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="steady",
            early_stopping_patience=1,
            **more,
        )
        dying.generation_metrics = lambda evaluated: {"steady": 1.0}
        dying.add_callback(EarlyStopping(1))
        return dying

    first = trainer()
    first.train()
    assert first.state.global_step == 2
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 2


DAMAGES = {
    "optimizer.pt": lambda file: file.unlink(),
    "trainer_state.json": lambda file: file.write_text(file.read_text()[:-20]),
    "model.safetensors": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "rng_state.pth": lambda file: file.write_bytes(file.read_bytes()[:1000]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(arguments, undisturbed, tmp_path, capsys, name):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    before, last = checkpoints(tmp_path)
    DAMAGES[name](last / name)
    argv = [*arguments, "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match=f"cannot go on from .*{last.name}: .*{name}"):
        train.main([*argv, "--resume_from_checkpoint", str(last)])
    parsed = train.parse([*argv, *RESUME])[2]
    train.settle_resumption(parsed)
    assert parsed.resume_from_checkpoint == str(before)
    printed = capsys.readouterr().out
    assert f"{last} is not whole" in printed and name in printed and f"goes on from {before}" in printed


def test_without_a_checkpoint_resuming_begins_and_says_so(arguments, tmp_path, capsys):
    parsed = train.parse([*arguments, "--output_dir", str(tmp_path / "new"), *RESUME])[2]
    train.settle_resumption(parsed)
    assert parsed.resume_from_checkpoint is None
    assert f"No checkpoint in {tmp_path / 'new'} yet" in capsys.readouterr().out


def test_a_run_does_not_begin_among_the_later_checkpoints_of_another(arguments, undisturbed):
    first, last = checkpoints(undisturbed)
    for more in ([], ["--resume_from_checkpoint", str(first)]):
        with pytest.raises(SystemExit, match=f"earlier run: .*{last.name}.*--output_dir"):
            train.main([*arguments, "--output_dir", str(undisturbed), *more])


class AgeBackwards(TrainerCallback):
    """A clock that jumps back an hour before every save."""

    def on_save(self, args, state, control, **kwargs):
        then = 1e9 - 3600 * state.global_step
        os.utime(Path(args.output_dir, f"checkpoint-{state.global_step}"), (then, then))


def test_checkpoints_go_by_their_steps_whatever_the_clock_says(processor, model, tmp_path):
    more = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    make_trainer(model, processor, tmp_path, callbacks=[AgeBackwards()], **more).train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-6"]


@pytest.mark.parametrize("limit", [3_000, 900_000])
def test_a_full_disk_leaves_the_last_checkpoint_and_a_message(arguments, tmp_path, limit):
    """A limit on the size of files stands in for it: the weights or the optimizer go beyond."""
    argv = [*arguments, "--output_dir", str(tmp_path)]
    train.main([*argv, "--max_steps", "2"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint-2").iterdir()}
    weights = (tmp_path / "model.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(SystemExit) as stop:
            train.main([*argv, *RESUME])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(stop.value)
    assert f"{tmp_path / 'checkpoint-4'} could not be saved" in message and "free there" in message
    assert f"the last checkpoint is {tmp_path / 'checkpoint-2'}" in message and "--resume_from_checkpoint" in message
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoint-2").iterdir()} == before
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"] and left_over(tmp_path) == []


@pytest.fixture
def read_only(tmp_path):
    """A folder that nobody can write: a mount for root, permissions for others."""
    folder = tmp_path / "read only"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("root writes anywhere, and may not mount here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("below", [".", "outputs/new"])
def test_a_folder_that_cannot_be_written_is_told_of_before_anything_is_loaded(
    arguments, read_only, monkeypatch, below
):
    monkeypatch.setattr(train, "load_inputs", None)
    with pytest.raises(SystemExit, match="cannot be written.*--output_dir"):
        train.main([*arguments, "--output_dir", str(read_only / below)])


def test_a_disk_too_small_for_a_checkpoint_is_told_of_before_training(tmp_path):
    with pytest.raises(OSError, match="a checkpoint takes about 1000000000.0 GB.*another disk"):
        check_writable(tmp_path / "new", 10**18)


def poisoned(processor, index: int):
    """A collator that makes one picture's pixels NaN."""
    collate = make_collator(processor)

    def poison(items):
        batch = collate(items)
        for row, item in enumerate(items):
            if item["index"] == index:
                batch["pixel_values"][row] = float("nan")
        return batch

    return poison


class Named(Sentences):
    def __getitem__(self, index):
        return super().__getitem__(index) | {"painting": f"painting number {index}"}


SAVING = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 1, "logging_steps": 3}
SAVING |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize("waiting", [False, True])
def test_a_loss_that_is_no_number_stops_training_with_its_batch_named(processor, model, tmp_path, waiting):
    """Where looking at every loss would wait for the device, it stops before the next log or save."""
    saving = SAVING | {"save_steps": 3 if waiting else 1}
    trainer = make_trainer(model, processor, tmp_path, train_dataset=Named(), **saving)
    order = [index for batch in trainer.get_train_dataloader() for index in batch["paintings"]]
    trainer.data_collator = poisoned(processor, int(order[3].split()[-1]))
    if waiting:
        trainer._watch = FiniteWatch(at_once=False)
    found = f"The loss of step 2 .*, batch 2 of it.* is nan.*paintings: '{order[3]}'\\. Not finite: language_loss"
    with pytest.raises(NonFiniteError, match=found):
        trainer.train()
    assert trainer.state.global_step == (3 if waiting else 1)
    saved = [path.name for path in checkpoints(tmp_path)]
    assert saved == ([] if waiting else ["checkpoint-1"]) and all(
        defect(path) is None for path in checkpoints(tmp_path)
    )
    assert waiting or all(parameter.isfinite().all() for parameter in model.parameters()), "no update was made with it"


def test_a_gradient_that_is_no_number_stops_training_before_it_is_used(processor, model, tmp_path):
    trainer = make_trainer(model, processor, tmp_path, train_dataset=Named(), **SAVING)
    model.decoder.wpe.weight.register_hook(
        lambda gradient: gradient * (float("inf") if trainer.state.global_step == 1 else 1)
    )
    with pytest.raises(
        NonFiniteError, match="The gradient of step 2 .*'painting number .', 'painting number .'.*checkpoint-1"
    ):
        trainer.train()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_no_checkpoint_and_no_model_are_saved_from_a_last_step_that_is_no_number(processor, model, tmp_path):
    trainer = make_trainer(model, processor, tmp_path, train_dataset=Named(), logging_steps=100)
    trainer._watch = FiniteWatch(at_once=False)
    trainer.data_collator = poisoned(processor, 3)
    with pytest.raises(NonFiniteError, match="there is no checkpoint in"):
        trainer.train()


def test_a_run_that_diverges_ends_with_one_line(arguments, tmp_path):
    with pytest.raises(SystemExit, match="error: The (loss|gradient) of step .*--learning_rate"):
        train.main(
            [
                *arguments,
                "--output_dir",
                str(tmp_path),
                "--learning_rate",
                "1e30",
                "--eval_strategy",
                "no",
                "--load_best_model_at_end",
                "false",
            ]
        )
    assert not (tmp_path / "model.safetensors").exists()
    assert half_written(tmp_path) == []


def test_trainers_hooks_are_where_they_are_expected():
    """Private ones: a release that renames them has to be noticed, as nothing would call ours."""
    for hook in ("_save_checkpoint", "_get_output_dir", "_run_epoch", "_maybe_log_save_evaluate", "_get_grad_norm"):
        assert callable(getattr(Trainer, hook)), hook
