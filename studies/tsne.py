"""t-SNE of the features of explanations and images, per emotion (Fig. 9).

The features are those that the contrastive head compares (Eq. 6): the mean hidden state of an explanation, and the
mean of an image's projected patches.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from modeling_sevlm.heads_sevlm import masked_mean
from modeling_sevlm.views import emotion_style, in_fixed_order


EDGES = {"edgecolors": "#333333", "linewidths": 0.4}


@torch.no_grad()
def collect_features(model, processor, dataset: Dataset, *, batch_size: int = 32) -> dict[str, np.ndarray]:
    """Explains the images greedily. Returns the features `explanation` and `image`, `(N, d)` float32; `emotion`,
    `(N,)` the labels in the sentences ("" for none); `painting`, `(N,)`."""
    explanations, images, emotions = [], [], []
    for batch in dataset.iter(batch_size):
        pixel_values = processor(images=batch["image"], return_tensors="pt")["pixel_values"].to(model.device)
        features = model.encode_images(pixel_values)
        sequences = model.generate(image_features=features, do_sample=False)
        present = sequences.ne(model.config.pad_token_id)
        inputs = {"image_features": features, "attention_mask": present.long()}
        outputs = model(sequences, **inputs, output_hidden_states=True, skip_logits=True)
        explanation = model.explanation_mask(model.segment_ids(sequences)) & present
        explanations.append(masked_mean(outputs.hidden_states[-1], explanation).float().cpu())
        images.append(model.vision_projection(features.to(model.dtype)).mean(dim=1).float().cpu())
        emotions += [sentence["emotion"] or "" for sentence in processor.read(sequences)]
    features = {"explanation": torch.cat(explanations).numpy(), "image": torch.cat(images).numpy()}
    return features | {"emotion": np.array(emotions), "painting": np.array(dataset["painting"][:])}


def embed(features: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """`(N, d)` -> `(N, 2)`, from standardised features; the same numbers for the same seed."""
    if (features == features[0]).all():  # scikit-learn divides by zero and then crashes
        return np.zeros((len(features), 2))
    deviation = features.std(axis=0)
    features = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    perplexity = max(1.0, min(30.0, (len(features) - 1) / 3))
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features.astype(np.float64))


def tsne_figure(systems: Mapping[str, dict], *, emotion: str | None = None, seed: int = 0) -> Figure:
    """Draws the features of each system: its explanations, coloured and marked by their emotion; and explanations and
    images together, all or those of one `emotion`, with a line between the two of a pair. One system fills a row,
    several have a column each. Raises a ValueError if no system has three pairs."""
    shown = {
        name: np.full(len(features["emotion"]), True) if emotion is None else features["emotion"] == emotion
        for name, features in systems.items()
    }
    if max(chosen.sum() for chosen in shown.values()) < 3:
        raise ValueError(f"t-SNE needs at least three explanations{f' of {emotion!r}' if emotion else ''}.")
    several = len(systems) > 1
    shape, size = ((2, len(systems)), (3.6 * len(systems) + 1, 7.4)) if several else ((1, 2), (10, 4.6))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(*shape, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    for (name, features), (first, second) in zip(systems.items(), panels.T if several else panels, strict=True):
        start = f"{name}\n" if several else ""
        first.set_title(f"{start}explanations by emotion", fontsize=10)
        _draw_emotions(first, features, seed)
        second.set_title(f"{start}explanations and pictures{f', {emotion}' if emotion else ''}", fontsize=10)
        _draw_pairs(second, features, shown[name], seed)
    handles = {label: handle for panel in panels.flat for handle, label in _legend_entries(panel)}
    order = in_fixed_order(dict.fromkeys(sorted(handles, key=lambda label: label.startswith("("))))
    figure.legend(
        [handles[label] for label in order], list(order), loc="outside right center", frameon=False, fontsize=8
    )
    return figure


def _legend_entries(panel) -> Iterator[tuple]:
    handles, labels = panel.get_legend_handles_labels()
    return zip(handles, labels, strict=True)


def _draw_emotions(panel, features: dict, seed: int) -> None:
    if len(features["emotion"]) < 3:
        return _say_too_few(panel)
    places = embed(features["explanation"], seed=seed)
    for label in in_fixed_order(dict.fromkeys(sorted(set(features["emotion"]), key=lambda label: label or "~"))):
        style, rows = emotion_style(label), features["emotion"] == label
        panel.scatter(*places[rows].T, s=34, c=style.colour, marker=style.marker, label=label or "(none)", **EDGES)


def _draw_pairs(panel, features: dict, chosen: np.ndarray, seed: int) -> None:
    if chosen.sum() < 3:
        return _say_too_few(panel)
    pairs = np.concatenate([features["explanation"][chosen], features["image"][chosen]])
    texts, images = np.split(embed(pairs, seed=seed), 2)
    panel.plot(*np.stack([texts, images]).transpose(2, 0, 1), color="#bbbbbb", linewidth=0.5, zorder=0)
    panel.scatter(*texts.T, c="#0072B2", marker="o", s=26, label="explanation", **EDGES)
    panel.scatter(*images.T, c="#D55E00", marker="^", s=26, label="picture", **EDGES)


def _say_too_few(panel) -> None:
    panel.text(0.5, 0.5, "fewer than three explanations", ha="center", fontsize=9, transform=panel.transAxes)
