"""Which checkpoints are kept, when training stops, and how many paintings a step has."""

import json

import pytest

from modeling_sevlm.callbacks import EarlyStopping
from modeling_sevlm.trainer import SEVLMTrainingArguments
from tests.helpers.training import make_trainer


EVERY_STEP = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
EVERY_STEP |= {"load_best_model_at_end": True, "metric_for_best_model": "accuracy", "num_train_epochs": 4}


def train(model, processor, folder, figures, patience, **arguments):
    """Trains up to eight steps with the given accuracy and BLEU-4 at each evaluation. Returns trainer and callback."""
    callback = EarlyStopping(patience)
    arguments = EVERY_STEP | {"early_stopping_patience": patience} | arguments
    trainer = make_trainer(model, processor, folder, [callback], **arguments)
    left = iter(figures)
    trainer.generation_metrics = lambda evaluated: dict(zip(("accuracy", "bleu_4"), next(left), strict=True))
    trainer.train()
    return trainer, callback


def test_a_better_bleu_4_counts_as_progress(model, processor, tmp_path):
    figures = [(0.5, 0.1), (0.4, 0.2), (0.4, 0.3), (0.4, 0.3), (0.5, 0.2)] + 3 * [(0.9, 0.9)]
    trainer, callback = train(model, processor, tmp_path, figures, patience=2)
    assert trainer.state.global_step == 5
    assert callback.best == {"accuracy": [0.5, 1], "bleu_4": [0.3, 3]}


def test_the_best_checkpoints_of_both_metrics_are_kept(model, processor, tmp_path):
    figures = [(0.1, 0.1), (0.2, 0.9), (0.9, 0.2)] + 5 * [(0.3, 0.3)]
    train(model, processor, tmp_path, figures, patience=0, save_total_limit=2)
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in (2, 3, 8)]


def test_a_resumed_run_knows_the_best_values(model, processor, tmp_path):
    train(model, processor, tmp_path, [(0.5, 0.9), (0.6, 0.1)], patience=0, max_steps=2)
    state = json.loads((tmp_path / "checkpoint-2/trainer_state.json").read_text())
    saved = state["stateful_callbacks"]["EarlyStopping"]["attributes"]
    assert saved["best"] == {"accuracy": [0.6, 2], "bleu_4": [0.9, 1]}
    arguments = EVERY_STEP | {"early_stopping_patience": 2}
    trainer = make_trainer(model, processor, tmp_path, [EarlyStopping(2)], **arguments)
    trainer.generation_metrics = lambda evaluated: {"accuracy": 0.1, "bleu_4": 0.8}
    trainer.train(str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 4


def test_a_smaller_loss_is_progress(model, processor, tmp_path):
    callback = EarlyStopping(1)
    arguments = EVERY_STEP | {"metric_for_best_model": "label_nll", "greater_is_better": False}
    trainer = make_trainer(model, processor, tmp_path, [callback], **arguments, early_stopping_patience=1)
    values = iter([2.0, 1.9, 1.95])
    trainer.generation_metrics = lambda evaluated: {"label_nll": next(values)}
    trainer.train()
    assert (trainer.state.global_step, callback.best["label_nll"]) == (3, [1.9, 2])


@pytest.mark.parametrize(("processes", "accumulation", "each"), [(1, 1, 32), (4, 1, 8), (2, 2, 8)])
def test_the_total_batch_is_divided_among_processes_and_accumulation_steps(monkeypatch, processes, accumulation, each):
    monkeypatch.setattr(SEVLMTrainingArguments, "world_size", property(lambda self: processes))
    sizes = {"total_batch_size": 32, "gradient_accumulation_steps": accumulation}
    assert SEVLMTrainingArguments(output_dir="unused", **sizes).per_device_train_batch_size == each


def test_a_total_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(ValueError, match="total_batch_size=32 cannot be divided by 1 process.* x 3 accumulation"):
        SEVLMTrainingArguments(output_dir="unused", total_batch_size=32, gradient_accumulation_steps=3)
