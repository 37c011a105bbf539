"""After a kill, a full disk, a clock change or a NaN loss, files are complete, and a resumed run gives bit-identical
weights. tests/torture/crash.py tries many more moments."""

import itertools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess

import pytest
import torch
from transformers import Trainer, TrainerCallback

import train
from modeling_sevlm import training_folder
from modeling_sevlm.callbacks import EarlyStopping
from modeling_sevlm.finite_loss import FiniteWatch, NonFiniteError
from modeling_sevlm.training_folder import check_writable, checkpoints, find_checkpoint
from tests.helpers.crashing import differing_weights, half_written, left_over
from tests.helpers.tiny import save_backbones
from tests.helpers.training import make_collator, make_trainer


RESUME = ["--resume_from_checkpoint", "true"]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Seven updates, four in an epoch; evaluation and checkpoint after every second update and after the last."""
    folder = tmp_path_factory.mktemp("inputs")
    short = "--num_paintings 36 --per_device_train_batch_size 8 --max_steps 7 --save_steps 2 --eval_steps 2 "
    short += "--metric_for_best_model loss --greater_is_better false --learning_rate 1e-3 --generation_samples 4 "
    short += "--sheet_paintings 0 --use_cpu true --disable_tqdm true --vad_lexicon embedded"
    return [*save_backbones(folder), *short.split(), "--cache_features", str(folder / "cache")]


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train.main([*arguments, "--output_dir", str(folder)])
    return folder


def killed(argv: list[str], owner, name: str, call: int) -> None:
    """Runs train.py in a process that kills itself at the nth call of `owner.name`."""
    original, calls = getattr(owner, name), itertools.count(1)

    def dying(*args, **kwargs):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    def run():
        setattr(owner, name, dying)
        train.main(argv)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


MOMENTS = {
    # The second checkpoint has its weights and its optimizer, but not the rest.
    "a checkpoint is written": (torch, "save", 7),
    "an old checkpoint is deleted": (training_folder.shutil, "rmtree", 7),
    "an evaluation runs": (train, "predict", 2),
    "the model's files get their names": (os, "replace", 8),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_leaves_complete_files_and_resumes_to_the_same_bits(arguments, undisturbed, tmp_path, moment):
    argv = [*arguments, "--output_dir", str(tmp_path), *RESUME]
    killed(argv, *MOMENTS[moment])
    assert half_written(tmp_path) == []
    train.main(argv)
    assert differing_weights(undisturbed, tmp_path) == []
    assert half_written(tmp_path) == [] and left_over(tmp_path) == []


def test_a_resumed_run_records_the_best_values_of_all_its_parts(arguments, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoint-7")
    train.main([*arguments, "--output_dir", str(tmp_path / "run"), *RESUME])
    whole, resumed = (json.loads((run / "training.json").read_text()) for run in (undisturbed, tmp_path / "run"))
    assert whole["best_values_and_steps"] and not whole["resumed"]
    assert resumed["best_values_and_steps"] == whole["best_values_and_steps"] and resumed["resumed"]


def test_a_finished_run_is_not_trained_further(arguments, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    last = ["--load_best_model_at_end", "false"]  # the last checkpoint is in the middle of an epoch
    trainer = train.main([*arguments, "--output_dir", str(tmp_path / "run"), *last, *RESUME])
    assert trainer.state.global_step == 7
    assert differing_weights(undisturbed / "checkpoint-7", tmp_path / "run") == []


def test_a_run_that_stopped_early_stays_stopped(processor, model, tmp_path):
    steps = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "steady", "early_stopping_patience": 1}
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        trainer = make_trainer(model, processor, tmp_path, [EarlyStopping(1)], num_train_epochs=4, **steps, **best)
        trainer.generation_metrics = lambda evaluated: {"steady": 1.0}
        trainer.train(checkpoint)
        assert trainer.state.global_step == 2


DAMAGES = {
    "optimizer.pt": lambda file: file.unlink(),
    "trainer_state.json": lambda file: file.write_text(file.read_text()[:-20]),
    "model.safetensors": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "rng_state.pth": lambda file: file.write_bytes(file.read_bytes()[:1000]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(arguments, undisturbed, tmp_path, name):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    before, last = checkpoints(tmp_path)
    DAMAGES[name](last / name)
    argv = [*arguments, "--output_dir", str(tmp_path), "--resume_from_checkpoint", str(last)]
    with pytest.raises(SystemExit, match=f"cannot resume from .*{last.name}: .*{name}"):
        train.main(argv)
    reported = []
    assert find_checkpoint(str(tmp_path), "true", reported.append) == str(before)
    assert f"{last} is not complete" in reported[0] and name in reported[0]
    assert reported[1] == f"Training continues from {before}."
    assert find_checkpoint(str(tmp_path / "new"), "true", reported.append) is None
    assert reported[2] == f"No checkpoint in {tmp_path / 'new'} yet: training starts."


def test_a_run_does_not_start_in_a_folder_with_later_checkpoints_of_another_run(arguments, undisturbed):
    first, last = checkpoints(undisturbed)
    for more in ([], ["--resume_from_checkpoint", str(first)]):
        with pytest.raises(SystemExit, match=f"earlier run: .*{last.name}.*--output_dir"):
            train.main([*arguments, "--output_dir", str(undisturbed), *more])


def test_checkpoints_are_ordered_by_their_steps_and_not_by_the_clock(processor, model, tmp_path):
    class AgeBackwards(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            then = 1e9 - 3600 * state.global_step
            os.utime(tmp_path / f"checkpoint-{state.global_step}", (then, then))

    more = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    make_trainer(model, processor, tmp_path, [AgeBackwards()], **more).train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-6"]


def test_a_save_without_weights_keeps_the_weights_that_are_there(tmp_path):
    staged = tmp_path / "saving" / "model"
    staged.mkdir(parents=True)
    (staged / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("weights")
    training_folder.publish_model(staged, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_a_limit_of_one_checkpoint_keeps_the_best_one_only(processor, model, tmp_path):
    more = {
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "save_steps": 1,
        "eval_steps": 1,
        "save_total_limit": 1,
    }
    # The highest loss counts as best. That is the first one, so the best checkpoint is not the last.
    more |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = make_trainer(model, processor, tmp_path, **more)
    trainer.train()
    assert [str(path) for path in checkpoints(tmp_path)] == [trainer.state.best_model_checkpoint]
    assert checkpoints(tmp_path)[0].name == "checkpoint-1" and trainer.state.global_step > 1


@pytest.mark.parametrize("limit", [3_000, 900_000])
def test_a_full_disk_leaves_the_last_checkpoint_and_a_message(arguments, tmp_path, limit):
    """Simulated by a limit on the size of files, which the weights or the optimizer exceed."""
    argv = [*arguments, "--output_dir", str(tmp_path)]
    train.main([*argv, "--max_steps", "2"])
    complete = [*(tmp_path / "checkpoint-2").iterdir(), tmp_path / "model.safetensors"]
    before = [path.read_bytes() for path in complete]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(SystemExit) as stop:
            train.main([*argv, *RESUME])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    parts = [f"{tmp_path / 'checkpoint-4'} could not be saved", "are free there", "--resume_from_checkpoint true"]
    assert all(part in str(stop.value) for part in [*parts, f"the last checkpoint is {tmp_path / 'checkpoint-2'}"])
    assert [path.read_bytes() for path in complete] == before
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"] and left_over(tmp_path) == []


@pytest.fixture
def read_only(tmp_path):
    """A folder that the test cannot write to: for root a read-only mount, for others missing permissions."""
    folder = tmp_path / "read only"
    folder.mkdir(mode=0o555)
    if os.geteuid() != 0:
        yield folder
    elif subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("root can write everywhere, and mounting is not allowed here")
    else:
        yield folder
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("below", [".", "outputs/new"])
def test_a_folder_that_cannot_be_written_is_an_error_before_data_is_loaded(arguments, read_only, monkeypatch, below):
    monkeypatch.setattr(train, "load_inputs", None)
    with pytest.raises(SystemExit, match="cannot be written.*--output_dir"):
        train.main([*arguments, "--output_dir", str(read_only / below)])


def test_a_disk_too_small_for_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(OSError, match="a checkpoint takes about 1000000000.00 GB.*another disk"):
        check_writable(tmp_path / "new", 10**18)


def poisoned(processor, painting: str):
    """A collator that sets the pixels of a painting to NaN."""
    collate = make_collator(processor)

    def poison(items):
        batch = collate(items)
        batch["pixel_values"][[item["painting"] == painting for item in items]] = float("nan")
        return batch

    return poison


SAVING = {"num_train_epochs": 2, "save_strategy": "steps", "logging_steps": 3}
SAVING |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize("interval", [1, 1000])
def test_a_nan_loss_stops_training_and_names_its_batch(processor, model, tmp_path, interval):
    """On a GPU the interval is long, and training stops before the next log or save."""
    saving = SAVING | {"save_steps": 1 if interval == 1 else 3}
    batches = make_trainer(model, processor, tmp_path, **saving).get_train_dataloader()
    painting = [name for batch in batches for name in batch["paintings"]][3]
    trainer = make_trainer(model, processor, tmp_path, collator=poisoned(processor, painting), **saving)
    trainer._watch = FiniteWatch(interval)
    found = f"The loss of step 2 .*, batch 2\\) is nan.*paintings: '{painting}'\\. Not finite: language_loss"
    with pytest.raises(NonFiniteError, match=found):
        trainer.train()
    assert trainer.state.global_step == (1 if interval == 1 else 3)
    assert [path.name for path in checkpoints(tmp_path)] == (["checkpoint-1"] if interval == 1 else [])
    assert half_written(tmp_path) == []
    assert interval > 1 or all(parameter.isfinite().all() for parameter in model.parameters()), "no update was made"


def test_an_infinite_gradient_stops_training_before_its_update(processor, model, tmp_path):
    trainer = make_trainer(model, processor, tmp_path, **SAVING, save_steps=1)
    factors = {1: float("inf")}
    model.decoder.wpe.weight.register_hook(lambda gradient: gradient * factors.get(trainer.state.global_step, 1))
    with pytest.raises(NonFiniteError, match="The gradient of step 2 .*('painting number .'.*){2}checkpoint-1"):
        trainer.train()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_training_that_ends_with_a_nan_loss_does_not_return(processor, model, tmp_path):
    collator = poisoned(processor, "painting number 3")
    trainer = make_trainer(model, processor, tmp_path, collator=collator, logging_steps=100)
    trainer._watch = FiniteWatch(1000)
    with pytest.raises(NonFiniteError, match="there is no checkpoint in"):
        trainer.train()


def test_a_run_that_diverges_ends_with_one_line(arguments, tmp_path):
    diverging = ["--learning_rate", "1e30", "--eval_strategy", "no", "--load_best_model_at_end", "false"]
    with pytest.raises(SystemExit, match="error: The (loss|gradient) of step .*--learning_rate"):
        train.main([*arguments, "--output_dir", str(tmp_path), *diverging])
    assert not (tmp_path / "model.safetensors").exists() and half_written(tmp_path) == []


def test_the_private_hooks_of_trainer_exist():
    """If a release renames them, our overrides are no longer called."""
    for hook in ("_save_checkpoint", "_get_output_dir", "_run_epoch", "_get_grad_norm", "_push_from_checkpoint"):
        assert callable(getattr(Trainer, hook)), hook
