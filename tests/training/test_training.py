"""Training: which parameters move, what accumulation and processes change (nothing), resuming, the log."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

import train
from modeling_sevlm.trainer import LOSS_PARTS, SEVLMTrainer, SEVLMTrainingArguments, parameter_groups
from processing.artemis import EMOTIONS
from tests.helpers.tiny import IMAGE_SIZE, SENTENCES, tiny_model, training_batch


ROOT = Path(__file__).resolve().parents[2]


class Sentences(torch.utils.data.Dataset):
    """Sentence pairs of very different lengths, so that micro-batches hold different numbers of tokens."""

    def __init__(self, images: int = 8):
        self.images = images

    def __len__(self):
        return self.images

    def __getitem__(self, index):
        cut = [" ".join(SENTENCES[(index + k) % 6].split()[: 1 + (3 * index + k) % 7]) for k in range(2)]
        return {"index": index, "emotions": [EMOTIONS[index % 9], EMOTIONS[(index + 4) % 9]], "explanations": cut}


def make_collator(processor):
    def collate(items):
        batch = processor(
            emotions=[item["emotions"] for item in items],
            explanations=[item["explanations"] for item in items],
            return_tensors="pt",
        )
        generator = [torch.Generator().manual_seed(item["index"]) for item in items]
        pixel_values = torch.stack([torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=g) for g in generator])
        shares = torch.tensor([[(name in item["emotions"]) / 2 for name in EMOTIONS] for item in items])
        return {"pixel_values": pixel_values, "emotion_shares": shares, **batch}

    return collate


def make_trainer(model, processor, output_dir, **kwargs):
    callbacks, train_dataset = kwargs.pop("callbacks", None), kwargs.pop("train_dataset", Sentences())
    arguments = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "vad_learning_rate": 2e-3,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "lr_scheduler_type": "constant",
    }
    return SEVLMTrainer(
        model=model,
        args=SEVLMTrainingArguments(**(arguments | kwargs)),
        train_dataset=train_dataset,
        eval_dataset=Sentences(),
        data_collator=make_collator(processor),
        callbacks=callbacks,
    )


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


class KeepGradients(TrainerCallback):
    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def test_every_trainable_parameter_is_in_exactly_one_group(processor, model):
    model.freeze_vision_tower()
    groups = parameter_groups(model, SEVLMTrainingArguments(output_dir="unused"))
    names = {id(p): n for n, p in model.named_parameters()}
    grouped = [[names[id(p)] for p in group["params"]] for group in groups]
    trainable = sorted(n for n, p in model.named_parameters() if p.requires_grad)
    assert sorted(grouped[0] + grouped[1]) == trainable
    assert all(name.startswith(("emotion_encoder.", "decoder.vad_fusion.")) for name in grouped[1])
    assert len(grouped[1]) == sum(name.startswith(("emotion_encoder.", "decoder.vad_fusion.")) for name in trainable)
    assert [group["lr"] for group in groups] == [2e-5, 4e-5]
    assert all(group["weight_decay"] == 0 for group in groups)


def test_the_defaults_are_the_papers_recipe():
    args = SEVLMTrainingArguments(output_dir="unused")
    assert (args.num_train_epochs, args.per_device_train_batch_size) == (35, 32)
    assert (args.lr_scheduler_type, args.warmup_steps, args.weight_decay) == ("linear", 0, 0)
    assert args.optim.startswith("adamw")


def test_training_moves_every_parameter_except_a_frozen_tower(processor, model, tmp_path):
    model.freeze_vision_tower()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    make_trainer(model, processor, tmp_path, num_train_epochs=2).train()
    # Positions beyond the longest sentence are never used; everything else has to move.
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter) == name.startswith("vision_tower."), name
    assert not model.vision_tower.training


@pytest.mark.parametrize("steps", [2, 4])
def test_accumulation_changes_neither_loss_nor_gradient(processor, tmp_path, steps):
    results = []
    for accumulation in (1, steps):
        model = without_dropout(tiny_model(processor, contrastive_negatives=[], label_loss_weight=1.0))
        keep = KeepGradients()
        trainer = make_trainer(
            model,
            processor,
            tmp_path,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=1e9,
            callbacks=[keep],
        )
        trainer.train()
        assert len(keep.gradients) == 1
        results.append((keep.gradients[0], trainer.state.log_history[0]))
    (gradients, log), (accumulated_gradients, accumulated_log) = results
    assert gradients.keys() == accumulated_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(accumulated_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    for name in ("loss", "language_loss", "emotion_loss", "label_loss"):
        assert accumulated_log[name] == pytest.approx(log[name], rel=1e-5)


def test_the_logged_loss_is_the_weighted_sum_of_the_logged_parts(processor, tmp_path):
    model = tiny_model(processor, label_loss_weight=0.5)
    trainer = make_trainer(model, processor, tmp_path, num_train_epochs=2, logging_steps=2)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged
    for entry in logged:
        assert set(LOSS_PARTS) <= set(entry)
    model = without_dropout(tiny_model(processor, label_loss_weight=0.5))
    one = make_trainer(model, processor, tmp_path, per_device_train_batch_size=8)
    one.train()
    entry = one.state.log_history[0]
    expected = entry["language_loss"] + entry["emotion_loss"] + 2 * entry["contrastive_loss"]
    expected += 0.5 * entry["label_loss"]
    assert entry["loss"] == pytest.approx(expected, rel=1e-4)


def test_evaluation_reports_exact_means_whatever_the_batch_size(processor, tmp_path):
    model = tiny_model(processor, contrastive_negatives=["emotion"], label_loss_weight=0.5)
    collate, dataset = make_collator(processor), Sentences()
    whole = model(**collate([dataset[i] for i in range(len(dataset))]))
    for batch_size in (3, 8):
        metrics = make_trainer(model, processor, tmp_path, per_device_eval_batch_size=batch_size).evaluate()
        for name in LOSS_PARTS:
            assert metrics[f"eval_{name}"] == pytest.approx(whole[name].item(), rel=1e-4), (name, batch_size)
        assert metrics["eval_loss"] == pytest.approx(whole.loss.item(), rel=1e-4)


def test_the_training_data_learns_every_epochs_number(processor, model, tmp_path):
    class Recording(Sentences):
        epochs = []

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    trainer = make_trainer(model, processor, tmp_path, num_train_epochs=3, train_dataset=Recording())
    trainer.train()
    assert sorted(set(Recording.epochs)) == [0, 1, 2]
    # Samplers that accelerate wraps, as in distributed and resumed runs, do not pass it on: the trainer has to.
    assert any(type(callback).__name__ == "TellEpoch" for callback in trainer.callback_handler.callbacks)


def test_generation_metrics_join_the_evaluation(processor, model, tmp_path):
    trainer = make_trainer(model, processor, tmp_path)
    trainer.generation_metrics = lambda evaluated: {"accuracy": 0.5 if evaluated is model else 0.0}
    assert trainer.evaluate()["eval_accuracy"] == 0.5


def run_train(tmp_path, *more, **kwargs):
    return train.main(
        [
            *("--output_dir", str(tmp_path), "--num_paintings", "60", "--max_steps", "10", "--image_size", "32"),
            *("--per_device_train_batch_size", "8", "--eval_strategy", "no", "--save_strategy", "steps"),
            *(
                "--save_steps",
                "6",
                "--gradient_accumulation_steps",
                "2",
                "--load_best_model_at_end",
                "false",
                "--disable_tqdm",
                "true",
                "--use_cpu",
                "true",
            ),
            *more,
        ],
        **kwargs,
    )


class Killed(Exception):
    pass


class DieAfterSaving(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        raise Killed


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_killed_and_resumed_run_ends_with_the_same_bits(tmp_path, monkeypatch, workers):
    """Four updates an epoch: it dies inside the second one, so that the epoch has to be right too."""
    more = ("--dataloader_num_workers", workers)
    whole = run_train(tmp_path / "whole", *more).model.state_dict()

    class DyingTrainer(SEVLMTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(DieAfterSaving())

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, "SEVLMTrainer", DyingTrainer)
        run_train(tmp_path / "killed", *more)
    checkpoint = tmp_path / "killed" / "checkpoint-6"
    resumed = run_train(tmp_path / "killed", *more, "--resume_from_checkpoint", str(checkpoint)).model.state_dict()
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_train_and_evaluate(tmp_path):
    """`accelerate launch` on two CPU processes, as a user would type it."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--main_process_port", str(free_port())),
        *("train.py", "--use_cpu", "--save_strategy", "steps"),
        *("--output_dir", str(tmp_path), "--num_paintings", "60", "--max_steps", "3", "--image_size", "32"),
        *("--per_device_train_batch_size", "4", "--eval_strategy", "steps", "--eval_steps", "3", "--save_steps", "3"),
        *("--generation_samples", "3", "--disable_tqdm", "true"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 process(es) on cpu" in done.stdout
    log = json.loads((tmp_path / "training_log.json").read_text())
    evaluation = next(entry for entry in log if "eval_loss" in entry)
    assert {"eval_language_loss", "eval_emotion_loss", "eval_contrastive_loss", "eval_label_nll"} <= set(evaluation)
    assert all(math.isfinite(value) for value in evaluation.values())
    assert (tmp_path / "model.safetensors").is_file()


def test_a_loss_counts_the_same_in_two_halves_of_a_batch(processor, tmp_path):
    """What two processes do: each half's loss, scaled by its share of the items, sums up to the whole's."""
    model = without_dropout(tiny_model(processor, contrastive_negatives=[])).train()
    trainer = make_trainer(model, processor, tmp_path)
    batch = training_batch(processor, images=4)
    total = trainer._count_items(batch)
    whole = trainer.compute_loss(model, batch, num_items_in_batch=total)
    halves = [{name: tensor[part] for name, tensor in batch.items()} for part in (slice(0, 1), slice(1, 4))]
    parts = [trainer.compute_loss(model, half, num_items_in_batch=total) for half in halves]
    torch.testing.assert_close(sum(parts), whole)
