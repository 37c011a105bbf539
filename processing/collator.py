# Licensed under the Apache License, Version 2.0; see LICENSE.
"""From one row per painting to batches: which two sentences of a painting are seen when, and padding."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset


class SentencePairs(Dataset):
    """One item per painting: its picture and a pair of its (emotion, explanation) annotations.

    The pair is drawn from (seed, epoch, index) alone: every epoch sees other pairs, neither loader workers nor the
    order of reading change anything, and a resumed run goes on where it stopped. The second sentence has another
    emotion than the first wherever the painting has one, as the contrastive loss wants it (Sec. 4.2); otherwise it is
    any other annotation, and `None` where there is only one.

    Args:
        dataset: a split of [`load_artemis`] or [`load_toy_artemis`].
        seed: of the drawing.
        features: the pictures' patch features, `features[index]` a tensor `(K, d)`, such as
            [`feature_cache.CachedFeatures`]. Items then hold `image_features`, and no picture is decoded.
    """

    def __init__(self, dataset, seed: int = 0, features=None):
        if features is not None and len(features) != len(dataset):
            raise ValueError(f"{len(features)} features for {len(dataset)} paintings.")
        self.dataset = dataset
        if features is not None:
            self.dataset = dataset.remove_columns([name for name in ("image",) if name in dataset.column_names])
        self.features = features
        self.seed = seed
        self.names = dataset.features["emotions"].feature.names
        # Shared memory, so that workers which outlive an epoch see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()
        # Labels alone, to draw a pair without decoding the picture twice.
        self._emotions = dataset.with_format(None)["emotions"][:]

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader at the start of every epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def pair(self, index: int) -> tuple[int, int | None]:
        """Positions of the two annotations of painting `index` in the current epoch."""
        emotions = self._emotions[index]
        draw = np.random.default_rng([self.seed, int(self._epoch), index])
        first = int(draw.integers(len(emotions)))
        others = [i for i, emotion in enumerate(emotions) if emotion != emotions[first]]
        others = others or [i for i in range(len(emotions)) if i != first]
        return first, others[int(draw.integers(len(others)))] if others else None

    def __getitem__(self, index: int) -> dict:
        row = self.dataset[index]
        chosen = self.pair(index)
        picture = {"image": row["image"]} if self.features is None else {"image_features": self.features[index]}
        return picture | {
            "emotions": [None if i is None else self.names[row["emotions"][i]] for i in chosen],
            "explanations": [None if i is None else row["explanations"][i] for i in chosen],
            "emotion_shares": self._emotion_shares(row),
            "painting": row.get("painting"),
        }

    def _emotion_shares(self, row: dict) -> np.ndarray:
        """Of all viewers, those included whose sentence a filter on length left out."""
        counts = row.get("emotion_histogram") or np.bincount(row["emotions"], minlength=len(self.names))
        return np.asarray(counts) / np.sum(counts)


class SEVLMCollator:
    """Items of [`SentencePairs`] -> `pixel_values` `(B, 3, H, W)`, or `image_features` `(B, K, d)` if they hold them,
    text `(B, 2, L)`, L the longest of the batch, and `emotion_shares` `(B, labels)`, all viewers' labels.

    Args:
        processor: a `SEVLMProcessor`.
        ask_every_label: learn the labels of both sentences, as the authors do. The second sentence is there because
            its emotion differs from the first one's; its label is no draw from the viewers' labels, and learning it
            teaches that a painting's second emotion is as frequent as its first. `False` asks for the first label
            only; both sentences ask for their explanation either way.
    """

    def __init__(self, processor, *, ask_every_label: bool = True):
        self.processor = processor
        self.ask_every_label = ask_every_label

    def __call__(self, items: Sequence[dict]) -> dict[str, torch.Tensor]:
        cached = "image_features" in items[0]
        batch = self.processor(
            images=None if cached else [item["image"] for item in items],
            emotions=[item["emotions"] for item in items],
            explanations=[item["explanations"] for item in items],
            return_tensors="pt",
        )
        if cached:
            batch["image_features"] = torch.stack([item["image_features"] for item in items])
        shares = np.stack([item["emotion_shares"] for item in items])
        batch["emotion_shares"] = torch.tensor(shares, dtype=torch.float32)
        if not self.ask_every_label:
            emotion_segment = batch["token_type_ids"].eq(self.processor.token_layout()["emotion_segment_id"])
            emotion_segment[:, 0] = False
            batch["labels"][emotion_segment] = -100
        return dict(batch)
