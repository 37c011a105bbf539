"""t-SNE of the features of explanations and images, per emotion (Fig. 9).

The features are those that the contrastive head compares (Eq. 6): the mean hidden state of an explanation, and the
mean of an image's projected patches.
"""

import numpy as np
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from modeling_sevlm.heads_sevlm import masked_mean
from modeling_sevlm.views import emotion_style, in_fixed_order


@torch.no_grad()
def collect_features(model, processor, dataset: Dataset, *, batch_size: int = 32) -> dict[str, np.ndarray]:
    """Explains the images greedily. Returns the features `explanation` and `image`, `(N, d)` float32; `emotion`,
    `(N,)` the labels in the sentences ("" for none); `painting`, `(N,)`."""
    explanations, images, emotions = [], [], []
    for batch in dataset.iter(batch_size):
        pixel_values = processor(images=batch["image"], return_tensors="pt")["pixel_values"].to(model.device)
        features = model.get_image_features(pixel_values)
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
    deviation = features.std(axis=0)
    features = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    perplexity = max(1.0, min(30.0, (len(features) - 1) / 3))
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features.astype(np.float64))


def tsne_figure(features: dict[str, np.ndarray], *, emotion: str | None = None, seed: int = 0) -> Figure:
    """Left: the explanations, coloured and marked by their emotion. Right: explanations and images together, all or
    those of one `emotion`, with a line between the two of a pair. Raises a ValueError for fewer than three pairs."""
    emotions = features["emotion"]
    chosen = np.full(len(emotions), True) if emotion is None else emotions == emotion
    if chosen.sum() < 3:
        raise ValueError(f"t-SNE needs at least three explanations{f' of {emotion!r}' if emotion else ''}.")
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, subplot_kw={"xticks": [], "yticks": []})
    edges = {"edgecolors": "#333333", "linewidths": 0.4}
    places = embed(features["explanation"], seed=seed)
    for label in in_fixed_order(dict.fromkeys(sorted(set(emotions), key=lambda label: label or "~"))):
        style, rows = emotion_style(label), emotions == label
        look = {"c": style.colour, "marker": style.marker, "label": label or "(none)"}
        left.scatter(*places[rows].T, s=34, **look, **edges)
    left.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    left.set_title("explanations by emotion", fontsize=10)
    pairs = np.concatenate([features["explanation"][chosen], features["image"][chosen]])
    texts, images = np.split(embed(pairs, seed=seed), 2)
    right.plot(*np.stack([texts, images]).transpose(2, 0, 1), color="#bbbbbb", linewidth=0.5, zorder=0)
    right.scatter(*texts.T, c="#0072B2", marker="o", s=26, label="explanation", **edges)
    right.scatter(*images.T, c="#D55E00", marker="^", s=26, label="picture", **edges)
    right.legend(frameon=False, fontsize=8)
    right.set_title(f"explanations and pictures{f', {emotion}' if emotion else ''}", fontsize=10)
    return figure
