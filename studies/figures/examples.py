# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Systems side by side on the same paintings, with what viewers said: successes and failures (Figs. 1 and 10)."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset
from matplotlib.figure import Figure

from modeling_sevlm.views import emotion_style, plain
from processing.artemis import dominant_emotion


def choose_examples(
    predictions: Sequence[Mapping], dataset: Dataset, *, successes: int = 3, failures: int = 3, seed: int = 0
) -> list[int]:
    """Rows of paintings with a dominant emotion: drawn ones where the system named it, then drawn ones where not, as
    different in emotion as they can be."""
    labels = dataset.features["emotions"].feature.names
    truth = [dominant_emotion(histogram) for histogram in dataset["emotion_histogram"][:]]
    order = np.random.default_rng(seed).permutation(len(truth))
    order = [int(row) for row in order if truth[row] is not None]
    chosen = []
    for wanted, number in ((True, successes), (False, failures)):
        rows = [row for row in order if (predictions[row].get("emotion") == labels[truth[row]]) == wanted]
        met, turns = {}, {}
        for row in rows:  # each emotion's first, then each one's second, ...
            turns[row] = met[truth[row]] = met.get(truth[row], -1) + 1
        chosen += sorted(rows, key=turns.get)[:number]
    return chosen


def examples_figure(
    systems: Mapping[str, Sequence[Mapping]], dataset: Dataset, rows: Sequence[int], *, references: int = 2
) -> Figure:
    """A column a painting: the picture, what viewers felt and said, then every system's emotion, with a tick or a
    cross, and explanation.

    Args:
        systems: name -> predictions in the data set's order.
        rows: which paintings.
        references: how many viewers are quoted, those of the dominant emotion first.
    """
    labels = dataset.features["emotions"].feature.names
    figure = Figure(figsize=(2.9 * len(rows), 3.1 + 0.7 * references + 0.9 * len(systems)), layout="constrained")
    heights = [3.0, 0.7 * references, *[0.9] * len(systems)]
    panels = figure.subplots(len(heights), len(rows), squeeze=False, height_ratios=heights)
    for axes in panels.flat:
        axes.set_axis_off()
    for column, row in enumerate(rows):
        painting = dataset[row]
        truth = dominant_emotion(painting["emotion_histogram"])
        title = "no dominant emotion" if truth is None else labels[truth]
        panels[0, column].imshow(painting["image"], interpolation="lanczos")
        panels[0, column].set_title(f"viewers: {title}", fontsize=10, fontweight="bold")
        pairs = list(zip(painting["emotions"], painting["explanations"], strict=True))
        pairs.sort(key=lambda pair: pair[0] != truth)
        quotes = "\n\n".join(_wrap(f"{labels[label]}: {text}") for label, text in pairs[:references])
        panels[1, column].text(0, 1, quotes, va="top", fontsize=8, style="italic")
        for panel, (name, predictions) in zip(panels[2:, column], systems.items(), strict=True):
            emotion = predictions[row].get("emotion")
            verdict = "" if truth is None else ("✓ " if emotion == labels[truth] else "✗ ")
            panel.text(
                0, 1, f"{verdict}{plain(name)}: {emotion or '(none)'}", va="top", fontsize=9, fontweight="bold",
                bbox={"facecolor": "none", "edgecolor": emotion_style(emotion).colour, "pad": 2, "linewidth": 1.5},
            )  # fmt: skip
            panel.text(0, 0.66, _wrap(f"because {predictions[row]['explanation']}"), va="top", fontsize=8)
    return figure


def _wrap(text: str) -> str:
    return textwrap.fill(plain(text), 38)
