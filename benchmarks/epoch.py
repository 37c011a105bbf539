# Licensed under the Apache License, Version 2.0; see LICENSE.
"""`train --epoch ROWS`: an epoch of ROWS paintings from cached features, through the trainer that `train.py` uses, and
what the paper's 35 epochs would take.

Real are the rows, the sentences, the collator, the trainer and the step. The features are random numbers in a
memory-mapped file; up to `DISTINCT_FEATURES` are distinct and stand for the rest, so reading a whole cache from a slow
disk is not part of the time. Evaluation and checkpoints are not part of it either.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import TrainerCallback

from modeling_sevlm.trainer import SEVLMTrainer, SEVLMTrainingArguments
from modeling_sevlm.vision_sevlm import vision_feature_size
from processing.artemis import EMOTIONS
from processing.collator import SentencePairs, SEVLMCollator

from .inputs import Inputs, make_sentences
from .measure import PeakMemory, synchronise
from .results import table


DISTINCT_FEATURES = 4096
ANNOTATIONS = 5.68  # of a painting of ArtEmis v1 on average: 454,684 / 80,031
PAPER_EPOCHS = 35
WARMUP_STEPS = {"full": 10, "tiny": 1}


class GeneratedFeatures:
    """Random patch features in a memory-mapped file of float16, in place of `feature_cache.CachedFeatures`."""

    def __init__(self, file: Path, rows: int, patches: int, width: int):
        self.rows, self.distinct = rows, min(rows, DISTINCT_FEATURES)
        shape = (self.distinct, patches, width)
        draw = np.random.default_rng(0)
        values = np.memmap(file, dtype=np.float16, mode="w+", shape=shape)
        for row in values:
            row[:] = draw.standard_normal((patches, width), dtype=np.float32)
        values.flush()
        self.values = torch.from_numpy(np.memmap(file, dtype=np.float16, mode="r+", shape=shape))

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.values[index % self.distinct]


class StepClock(TrainerCallback):
    """When every step ended, without waiting for the device: over many steps its queue does not matter."""

    def __init__(self):
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())


def make_paintings(inputs: Inputs, rows: int, seed: int = 0) -> Dataset:
    """Text of `rows` paintings, as many annotations each as in ArtEmis on average."""
    draw = np.random.default_rng(seed)
    counts = draw.poisson(ANNOTATIONS - 1, size=rows) + 1
    sentences = iter(make_sentences(inputs.words, int(counts.sum()), seed))
    emotions = [draw.integers(len(EMOTIONS), size=count) for count in counts]
    columns = {
        "painting": [f"style/{row}" for row in range(rows)],
        "emotions": emotions,
        "explanations": [[next(sentences) for _ in range(count)] for count in counts],
        "emotion_histogram": [np.bincount(labels, minlength=len(EMOTIONS)) for labels in emotions],
    }
    features = {
        "painting": Value("string"),
        "emotions": List(ClassLabel(names=list(EMOTIONS))),
        "explanations": List(Value("string")),
        "emotion_histogram": List(Value("int64")),
    }
    return Dataset.from_dict(columns, features=Features(features))


def measure_epoch(inputs: Inputs, args) -> dict:
    """An epoch of `args.epoch` rows in the first of `args.dtype` that is not float32, if there is one."""
    rows, warmup = args.epoch, WARMUP_STEPS[args.size]
    if rows < (warmup + 2) * args.batch_size:
        raise SystemExit(f"error: --epoch {rows} is less than {warmup + 2} batches of {args.batch_size}.")
    bf16 = "bfloat16" in args.dtype
    with tempfile.TemporaryDirectory() as folder:
        model = inputs.model()
        vision = model.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        features = GeneratedFeatures(Path(folder, "features"), rows, patches, vision_feature_size(vision))
        paintings, clock, memory = make_paintings(inputs, rows), StepClock(), PeakMemory(args.device)
        settings = SEVLMTrainingArguments(
            output_dir=folder,
            report_to="none",
            use_cpu=args.device.type == "cpu",
            bf16=bf16,
            num_train_epochs=1,
            per_device_train_batch_size=args.batch_size,
            dataloader_num_workers=args.workers,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            early_stopping_patience=0,
            disable_tqdm=True,
        )
        trainer = SEVLMTrainer(
            model=model,
            args=settings,
            train_dataset=SentencePairs(paintings, features=features),
            data_collator=SEVLMCollator(inputs.processor),
            processing_class=inputs.processor,
            callbacks=[clock],
        )
        trainer.train()
        synchronise(args.device)
        end = time.perf_counter()
    seconds_a_step = (end - clock.times[warmup - 1]) / (len(clock.times) - warmup)
    epoch = seconds_a_step * len(clock.times)
    peak = memory.taken()
    measured = [
        rows,
        len(clock.times),
        2 * args.batch_size / seconds_a_step,
        epoch,
        PAPER_EPOCHS * epoch / 3600,
        None if peak is None else peak / 2**20,
    ]
    columns = ["paintings", "steps", "sentences/s", "epoch, s", f"{PAPER_EPOCHS} epochs, h", "peak MiB"]
    dtype = "bfloat16 autocast" if bf16 else "float32"
    title = f"An epoch through the trainer, cached features, {args.batch_size} paintings a step, {dtype}"
    return {
        "tables": [table(title, columns, [measured])],
        "epoch": {
            "seconds": epoch,
            "steps": len(clock.times),
            "seconds_a_step": np.diff(clock.times).tolist(),
            "distinct_features": features.distinct,
            "peak_memory_bytes": peak,
            "workers": args.workers,
        },
    }
