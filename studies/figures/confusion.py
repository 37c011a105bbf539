# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Which emotions are taken for which: the confusion matrix of `results.json`."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure


def confusion_figure(matrix: Sequence[Sequence[int]], labels: Sequence[str], *, title: str | None = None) -> Figure:
    """A row per dominant label of the viewers, a column per label of the system and, if it ever happens, one for
    answers without a label. Shades (dark for many, in one hue) are shares of a row, numbers are paintings.

    Args:
        matrix: counts, `(labels, labels + 1)` as `evaluate_sevlm.py` writes them.
    """
    counts = np.asarray(matrix)
    if counts.ndim != 2 or counts.shape != (len(labels), len(labels) + 1):
        raise ValueError(
            f"A confusion matrix of {len(labels)} labels has {len(labels) + 1} columns, not {counts.shape}."
        )
    columns = [*labels, "(none)"]
    if not counts[:, -1].any():
        counts, columns = counts[:, :-1], columns[:-1]
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure = Figure(figsize=(0.62 * len(columns) + 2.6, 0.52 * len(labels) + 2.2), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.55 else "black"
            weight = "bold" if row == column else "normal"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontweight=weight, fontsize=9)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("named by the system")
    axes.set_ylabel("dominant among the viewers")
    figure.colorbar(shown, label="share of the row", shrink=0.8)
    if title:
        axes.set_title(title)
    return figure
