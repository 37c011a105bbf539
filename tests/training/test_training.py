"""Training: which parameters move, what accumulation and processes leave unchanged, resuming, the log."""

import json
import math
from functools import partial

import pytest
import torch
from transformers import TrainerCallback

import train
from modeling_sevlm.trainer import LOSS_PARTS, SEVLMTrainer, SEVLMTrainingArguments, parameter_groups
from tests.helpers.ranks import ACCELERATE, launch
from tests.helpers.tiny import tiny_model, training_batch
from tests.helpers.training import (
    QUIET_RUN,
    WITHOUT_EVALUATION,
    KeepGradients,
    Sentences,
    make_collator,
    make_trainer,
    without_dropout,
)


def test_every_trainable_parameter_is_in_exactly_one_group(processor, model):
    model.freeze_vision_tower()
    groups = parameter_groups(model, SEVLMTrainingArguments(output_dir="unused"))
    names = {p: n for n, p in model.named_parameters()}
    grouped = [sorted(names[p] for p in group["params"]) for group in groups]
    trainable = sorted(n for n, p in model.named_parameters() if p.requires_grad)
    assert sorted(grouped[0] + grouped[1]) == trainable
    assert grouped[1] == [name for name in trainable if name.startswith(("emotion_encoder.", "decoder.vad_fusion."))]
    assert [group["lr"] for group in groups] == [2e-5, 4e-5]
    assert all(group["weight_decay"] == 0 for group in groups)


def test_defaults_are_the_recipe_of_the_paper():
    args = SEVLMTrainingArguments(output_dir="unused")
    assert (args.num_train_epochs, args.per_device_train_batch_size) == (35, 32)
    assert (args.lr_scheduler_type, args.warmup_steps, args.weight_decay) == ("linear", 0, 0)
    assert args.optim.startswith("adamw")


def test_training_moves_every_parameter_except_a_frozen_tower(processor, model, tmp_path):
    model.freeze_vision_tower()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    make_trainer(model, processor, tmp_path, num_train_epochs=2).train()
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter) == name.startswith("vision_tower."), name
    assert not model.vision_tower.training


@pytest.mark.parametrize("steps", [2, 4])
def test_accumulation_changes_neither_loss_nor_gradient(processor, tmp_path, steps):
    results = []
    for accumulation in (1, steps):
        model = without_dropout(tiny_model(processor, contrastive_negatives=[], label_loss_weight=1.0))
        keep = KeepGradients()
        sizes = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
        trainer = make_trainer(model, processor, tmp_path, [keep], max_grad_norm=1e9, **sizes)
        trainer.train()
        assert len(keep.gradients) == 1
        results.append((keep.gradients[0], trainer.state.log_history[0]))
    (gradients, log), (accumulated_gradients, accumulated_log) = results
    torch.testing.assert_close(accumulated_gradients, gradients, rtol=1e-4, atol=1e-6)
    for name in ("loss", "language_loss", "emotion_loss", "label_loss"):
        assert accumulated_log[name] == pytest.approx(log[name], rel=1e-5)


def test_the_logged_loss_is_the_weighted_sum_of_the_logged_parts(processor, tmp_path):
    model = tiny_model(processor, label_loss_weight=0.5)
    trainer = make_trainer(model, processor, tmp_path, num_train_epochs=2, logging_steps=2)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged and all(set(LOSS_PARTS) <= set(entry) for entry in logged)
    model = without_dropout(tiny_model(processor, label_loss_weight=0.5))
    one = make_trainer(model, processor, tmp_path, per_device_train_batch_size=8)
    one.train()
    entry = one.state.log_history[0]
    weights = {"language_loss": 1, "emotion_loss": 1, "contrastive_loss": 2, "label_loss": 0.5}
    assert entry["loss"] == pytest.approx(sum(weight * entry[name] for name, weight in weights.items()), rel=1e-4)


def test_evaluation_reports_exact_means_for_any_batch_size_and_the_generation_metrics(processor, tmp_path):
    model = tiny_model(processor, contrastive_negatives=["emotion"], label_loss_weight=0.5)
    collate, dataset = make_collator(processor), Sentences()
    whole = model(**collate([dataset[i] for i in range(len(dataset))]))
    for batch_size in (3, 8):
        trainer = make_trainer(model, processor, tmp_path, per_device_eval_batch_size=batch_size)
        trainer.generation_metrics = lambda evaluated: {"accuracy": 0.5 if evaluated is model else 0.0}
        metrics = trainer.evaluate()
        for name in LOSS_PARTS:
            assert metrics[f"eval_{name}"] == pytest.approx(whole[name].item(), rel=1e-4), (name, batch_size)
        assert metrics["eval_loss"] == pytest.approx(whole.loss.item(), rel=1e-4)
        assert metrics["eval_accuracy"] == 0.5


def test_the_training_data_is_given_the_number_of_every_epoch(processor, model, tmp_path):
    class Recording(Sentences):
        epochs = []

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    make_trainer(model, processor, tmp_path, num_train_epochs=3, train_dataset=Recording()).train()
    assert sorted(set(Recording.epochs)) == [0, 1, 2]


def run_train(folder, *more):
    steps = "--num_paintings 60 --max_steps 10 --gradient_accumulation_steps 2 --save_strategy steps --save_steps 6"
    return train.main(["--output_dir", str(folder), *steps.split(), *QUIET_RUN, *WITHOUT_EVALUATION, *more])


class Killed(Exception):
    pass


class DieAfterSaving(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        raise Killed


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_killed_and_resumed_run_ends_with_the_same_bits(tmp_path, monkeypatch, workers):
    """An epoch has four updates, and the run is killed within the second epoch."""
    more = ("--dataloader_num_workers", workers)
    whole = run_train(tmp_path / "whole", *more).model.state_dict()

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, "SEVLMTrainer", partial(SEVLMTrainer, callbacks=[DieAfterSaving()]))
        run_train(tmp_path / "killed", *more)
    checkpoint = tmp_path / "killed" / "checkpoint-6"
    resumed = run_train(tmp_path / "killed", *more, "--resume_from_checkpoint", str(checkpoint)).model.state_dict()
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_two_processes_train_and_evaluate(tmp_path):
    """As a user types it, on a CPU."""
    steps = "--max_steps 3 --eval_steps 3 --save_steps 3 --num_paintings 60 --generation_samples 3".split()
    run = launch(ACCELERATE, tmp_path / "out", [*QUIET_RUN, *steps])
    assert run.wait(300) == 0, (tmp_path / "out.log").read_text()[-3000:]
    assert "2 process(es) on cpu" in (tmp_path / "out.log").read_text()
    log = json.loads((tmp_path / "out" / "training_log.json").read_text())
    evaluation = next(entry for entry in log if "eval_loss" in entry)
    assert {"eval_language_loss", "eval_emotion_loss", "eval_contrastive_loss", "eval_label_nll"} <= set(evaluation)
    assert all(math.isfinite(value) for value in evaluation.values())
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_losses_of_two_parts_of_a_batch_add_up_to_the_loss_of_the_batch(processor, tmp_path):
    """As two processes compute them, each scaled by its share of the items."""
    model = without_dropout(tiny_model(processor, contrastive_negatives=[])).train()
    trainer = make_trainer(model, processor, tmp_path)
    batch = training_batch(processor, images=4)
    total = trainer._count_items(batch)
    whole = trainer.compute_loss(model, batch, num_items_in_batch=total)
    halves = [{name: tensor[part] for name, tensor in batch.items()} for part in (slice(0, 1), slice(1, 4))]
    parts = [trainer.compute_loss(model, half, num_items_in_batch=total) for half in halves]
    torch.testing.assert_close(sum(parts), whole)
