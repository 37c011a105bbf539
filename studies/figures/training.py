# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The loss parts of a training run and its held-out label likelihood, from `training_log.json`."""

from collections.abc import Sequence

from matplotlib.figure import Figure


PANELS = {
    "language_loss": "language loss",
    "emotion_loss": "emotion loss (VAD)",
    "contrastive_loss": "contrastive loss",
    "label_nll": "labels of held-out paintings (nats)",
    "accuracy": "accuracy on held-out paintings",
}


def read_curve(log: Sequence[dict], name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one logged quantity."""
    points = [(entry["epoch"], entry[name]) for entry in log if name in entry]
    return [epoch for epoch, _ in points], [value for _, value in points]


def training_figure(log: Sequence[dict], *, prior: float | None = None) -> Figure:
    """A panel per quantity that was logged: training dashed, validation solid with dots.

    Args:
        log: the trainer's `log_history`.
        prior: held-out likelihood of the training prior, as a line to beat.
    """
    names = [name for name in PANELS if read_curve(log, name)[0] or read_curve(log, f"eval_{name}")[0]]
    if not names:
        raise ValueError(f"The log has none of {', '.join(PANELS)}.")
    figure = Figure(figsize=(3.4 * len(names), 3.2), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for prefix, style, colour, label in (
            ("", "--", "#7f7f7f", "training"),
            ("eval_", ".-", "#0072B2", "validation"),
        ):
            epochs, values = read_curve(log, prefix + name)
            if epochs:
                panel.plot(epochs, values, style, color=colour, label=label)
        if name == "label_nll" and prior is not None:
            panel.axhline(prior, color="#D55E00", linestyle=":", label="training prior")
        panel.set_title(PANELS[name], fontsize=10)
        panel.set_xlabel("epoch")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False)
    return figure
