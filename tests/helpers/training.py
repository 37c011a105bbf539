"""Small trainings: data, a collator and a trainer for the tiny model, and arguments of short runs of train.py."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import TrainerCallback

from modeling_sevlm.trainer import SEVLMTrainer, SEVLMTrainingArguments
from processing.artemis import EMOTIONS
from tests.helpers.tiny import IMAGE_SIZE, SENTENCES


QUIET_RUN = "--image_size 32 --disable_tqdm true --use_cpu true --per_device_train_batch_size 8".split()
WITHOUT_EVALUATION = "--eval_strategy no --load_best_model_at_end false".split()
TINY_RUN = [*QUIET_RUN, *WITHOUT_EVALUATION, "--save_strategy", "no"]


def write_artemis(folder: Path, rows: list[tuple] | None = None, header: str | None = None) -> list[str]:
    """Writes an invented ArtEmis, a CSV file and images, and returns the arguments that name them."""
    if rows is None:
        rows = [
            ("Cubism", f"painter_{i}", EMOTIONS[(i + k) % 9 if k else i % 9], f"the shapes number {i} feel {k}", 3)
            for i in range(12)
            for k in (0, 0, 1)
        ]
    lines = [header or "art_style,painting,emotion,utterance,repetition", *(",".join(map(str, row)) for row in rows)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "artemis.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for style, painting, *_ in rows:
        path = folder / "images" / style / f"{painting}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(painting)).integers(0, 255, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return ["--annotations", str(folder / "artemis.csv"), "--images", str(folder / "images")]


class Sentences(torch.utils.data.Dataset):
    """Eight sentence pairs of very different lengths, so that micro-batches have different numbers of tokens."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        cut = [" ".join(SENTENCES[(index + k) % 6].split()[: 1 + (3 * index + k) % 7]) for k in range(2)]
        emotions = [EMOTIONS[index % 9], EMOTIONS[(index + 4) % 9]]
        return {"index": index, "painting": f"painting number {index}", "emotions": emotions, "explanations": cut}


def make_collator(processor):
    def collate(items):
        batch = processor(
            emotions=[item["emotions"] for item in items],
            explanations=[item["explanations"] for item in items],
            return_tensors="pt",
        )
        generators = [torch.Generator().manual_seed(item["index"]) for item in items]
        pixel_values = torch.stack([torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=g) for g in generators])
        shares = torch.tensor([[(name in item["emotions"]) / 2 for name in EMOTIONS] for item in items])
        return {"pixel_values": pixel_values, "emotion_shares": shares, **batch}

    return collate


def make_trainer(
    model, processor, output_dir, callbacks=None, train_dataset=None, eval_dataset=None, collator=None, **arguments
) -> SEVLMTrainer:
    defaults = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "logging_steps": 1}
    defaults |= {"per_device_train_batch_size": 4, "num_train_epochs": 1, "disable_tqdm": True, "use_cpu": True}
    defaults |= {"learning_rate": 1e-3, "vad_learning_rate": 2e-3, "lr_scheduler_type": "constant"}
    return SEVLMTrainer(
        model=model,
        args=SEVLMTrainingArguments(output_dir=str(output_dir), **defaults | arguments),
        train_dataset=train_dataset or Sentences(),
        eval_dataset=eval_dataset or Sentences(),
        data_collator=collator or make_collator(processor),
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
