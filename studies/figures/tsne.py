# Licensed under the Apache License, Version 2.0; see LICENSE.
"""t-SNE of the features of explanations and pictures, per emotion (Fig. 9).

The features are those that the contrastive head compares (Eq. 6): the mean hidden state over an explanation, and the
mean over a picture's patches, projected to the decoder's width.
"""

import os
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from modeling_sevlm.heads_sevlm import masked_mean
from modeling_sevlm.views import emotion_style, in_fixed_order


IMAGE_COLOUR, EXPLANATION_COLOUR = "#D55E00", "#0072B2"


def collect_features(model, processor, dataset: Dataset, *, batch_size: int = 32) -> dict[str, np.ndarray]:
    """Features of the explanations that the model writes, greedily, and of their pictures.

    Returns:
        `explanation` and `image`, `(N, d)` float32; `emotion`, `(N,)` the labels that the sentences name ("" for
        none); `painting`, `(N,)`.
    """
    found = {"explanation": [], "image": [], "emotion": []}
    for start in range(0, len(dataset), batch_size):
        images = dataset[start : start + batch_size]["image"]
        pixel_values = processor(images=images, return_tensors="pt")["pixel_values"].to(model.device)
        with torch.no_grad():
            features = model.get_image_features(pixel_values)
            sequences = model.generate(image_features=features, do_sample=False)
            present = sequences.ne(model.config.pad_token_id)
            outputs = model(
                sequences,
                image_features=features,
                attention_mask=present.long(),
                output_hidden_states=True,
                skip_logits=True,
            )
            explanation = model.explanation_mask(model.segment_ids(sequences)) & present
            means = masked_mean(outputs.hidden_states[-1], explanation)
            patches = model.vision_projection(features.to(model.dtype)).mean(dim=1)
        found["explanation"].append(means.float().cpu().numpy())
        found["image"].append(patches.float().cpu().numpy())
        found["emotion"] += [sentence["emotion"] or "" for sentence in processor.read(sequences)]
    return {
        "explanation": np.concatenate(found["explanation"]),
        "image": np.concatenate(found["image"]),
        "emotion": np.array(found["emotion"]),
        "painting": np.array(dataset["painting"][:]),
    }


def save_features(features: dict[str, np.ndarray], path: str | os.PathLike) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp.npz")
    np.savez_compressed(temporary, **features)
    os.replace(temporary, path)
    return path


def embed(features: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """`(N, d)` -> `(N, 2)`, from standardised features; the same numbers for the same seed."""
    deviation = features.std(axis=0)
    features = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    perplexity = max(1.0, min(30.0, (len(features) - 1) / 3))
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features.astype(np.float64))


def tsne_figure(
    features: dict[str, np.ndarray], *, emotion: str | None = None, seed: int = 0, title: str | None = None
) -> Figure:
    """Left the explanations, coloured and marked by the emotion they name; right explanations and pictures together,
    all of them or those of one `emotion`, a line joining each pair.

    Raises:
        ValueError: if fewer than three explanations are there to show.
    """
    emotions = features["emotion"]
    chosen = np.ones(len(emotions), dtype=bool) if emotion is None else emotions == emotion
    if min(len(emotions), int(chosen.sum())) < 3:
        raise ValueError(f"t-SNE needs at least three explanations{f' of {emotion!r}' if emotion else ''}.")
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = embed(features["explanation"], seed=seed)
    for label in in_fixed_order(dict.fromkeys(sorted(set(emotions), key=lambda name: (name == "", name)))):
        style, rows = emotion_style(label), emotions == label
        left.scatter(
            *places[rows].T, c=style.colour, marker=style.marker, s=34, edgecolors="#333333", linewidths=0.4,
            label=label or "(none)",
        )  # fmt: skip
    left.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    left.set_title("explanations by emotion", fontsize=10)
    both = embed(np.concatenate([features["explanation"][chosen], features["image"][chosen]]), seed=seed)
    texts, images = np.split(both, 2)
    right.plot(*np.stack([texts, images]).transpose(2, 0, 1), color="#bbbbbb", linewidth=0.5, zorder=0)
    for points, colour, marker, label in (
        (texts, EXPLANATION_COLOUR, "o", "explanation"),
        (images, IMAGE_COLOUR, "^", "picture"),
    ):
        right.scatter(*points.T, c=colour, marker=marker, s=26, edgecolors="#333333", linewidths=0.4, label=label)
    right.legend(frameon=False, fontsize=8)
    right.set_title(f"explanations and pictures{f', {emotion}' if emotion else ''}", fontsize=10)
    for axes in (left, right):
        axes.set_xticks([])
        axes.set_yticks([])
    if title:
        figure.suptitle(title)
    return figure
