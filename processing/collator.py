"""Turns rows of paintings into batches: draws two sentences per painting and epoch, and pads them."""

from collections.abc import Sequence

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from .image_column import read_by_project


class SentencePairs(Dataset):
    """One item per painting: its image and a pair of its (emotion, explanation) annotations.

    The pair depends only on (seed, epoch, index), not on the loader's workers, the reading order or a resumed run. The
    second annotation has a different emotion than the first, as the contrastive loss needs (Sec. 4.2), if the painting
    has one. Otherwise it is any other annotation, or `None` if there is only one.

    With `first="last"`, as in the authors' code, the first of the pair is always the painting's last annotation.

    Args:
        dataset: a split of [`load_artemis`] or [`load_toy_artemis`].
        seed: seed of the pairs.
        first: how to choose the first annotation, "random" or "last".
        features: patch features of the images, `features[index]` a tensor `(K, d)`, such as
            [`feature_cache.CachedFeatures`]. Items then have these `image_features` and no image.
    """

    def __init__(self, dataset, seed: int = 0, features=None, first: str = "random"):
        if first not in ("random", "last"):
            raise ValueError(f"first must be 'random' or 'last', not {first!r}.")
        if not isinstance(dataset, datasets.Dataset):
            given = type(dataset).__name__
            raise ValueError(
                f"SentencePairs needs a `datasets.Dataset`, such as a split of `load_artemis`, not {given}."
            )
        if features is not None and len(features) != len(dataset):
            raise ValueError(f"{len(features)} features for {len(dataset)} paintings.")
        has_unused_images = features is not None and "image" in dataset.column_names
        self.dataset = dataset.remove_columns("image") if has_unused_images else read_by_project(dataset)
        self.features = features
        self.seed, self.first = seed, first
        self.names = dataset.features["emotions"].feature.names
        # In shared memory, so that persistent workers see each new epoch.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()
        # Labels only: drawing a pair must not decode the image.
        self._emotions = dataset.with_format(None)["emotions"][:]

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch. accelerate's data loader calls it at the start of every epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def pair(self, index: int) -> tuple[int, int | None]:
        """Returns the positions of the two annotations of painting `index` in the current epoch."""
        emotions = self._emotions[index]
        draw = np.random.default_rng([self.seed, int(self._epoch), index])
        first = int(draw.integers(len(emotions))) if self.first == "random" else len(emotions) - 1
        others = [i for i, emotion in enumerate(emotions) if emotion != emotions[first]]
        others = others or [i for i in range(len(emotions)) if i != first]
        return first, others[int(draw.integers(len(others)))] if others else None

    def __getitem__(self, index: int) -> dict:
        row, chosen = self.dataset[index], self.pair(index)
        image = {"image": row["image"]} if self.features is None else {"image_features": self.features[index]}
        # Counts all viewers, also those whose sentence was filtered out for its length.
        counts = row.get("emotion_histogram") or np.bincount(row["emotions"], minlength=len(self.names))
        return image | {
            "emotions": [None if i is None else self.names[row["emotions"][i]] for i in chosen],
            "explanations": [None if i is None else row["explanations"][i] for i in chosen],
            "emotion_shares": np.asarray(counts) / np.sum(counts),
            "painting": row.get("painting"),
        }


class SEVLMCollator:
    """Collates items of [`SentencePairs`]: `pixel_values` `(B, 3, H, W)` or `image_features` `(B, K, d)`, text inputs
    `(B, 2, L)`, padded to the longest sentence, and `emotion_shares` `(B, labels)`, each label's share of the viewers.

    Args:
        processor: a `SEVLMProcessor`.
        ask_every_label: whether the loss includes the labels of both sentences, as in the authors' code. The second
            sentence is chosen to differ in emotion, so its label makes rare emotions look as frequent as common ones.
            `False` keeps the first label and both explanations.
    """

    def __init__(self, processor, *, ask_every_label: bool = True):
        self.processor, self.ask_every_label = processor, ask_every_label

    def __call__(self, items: Sequence[dict]) -> dict[str, torch.Tensor]:
        cached = "image_features" in items[0]
        needed = {"image_features" if cached else "image", "emotions", "explanations", "emotion_shares"}
        if missing := sorted(needed - items[0].keys()):
            remedy = "Wrap the rows in `SentencePairs`; with transformers' Trainer, set `remove_unused_columns=False`."
            raise ValueError(f"An item has no {', '.join(missing)}. {remedy}")
        batch = self.processor(
            images=None if cached else [item["image"] for item in items],
            emotions=[item["emotions"] for item in items],
            explanations=[item["explanations"] for item in items],
            return_tensors="pt",
        )
        if cached:
            batch["image_features"] = torch.stack([item["image_features"] for item in items])
        batch["emotion_shares"] = torch.tensor(np.stack([item["emotion_shares"] for item in items])).float()
        if not self.ask_every_label:
            emotion_segment = batch["token_type_ids"].eq(self.processor.token_layout()["emotion_segment_id"])
            emotion_segment[:, 0] = False
            batch["labels"][emotion_segment] = -100
        return dict(batch)
