# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Draw the loss parts of a training run and its held-out label likelihood.

python examples/training_curve.py outputs/sevlm/training_log.json --output curve.png
"""

import argparse
import json
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


PANELS = ("language_loss", "emotion_loss", "contrastive_loss", "label_nll")
TITLES = ("language loss", "emotion loss (VAD)", "contrastive loss", "labels of held-out paintings (nats)")


def read_curve(log: list[dict], name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one logged quantity."""
    points = [(entry["epoch"], entry[name]) for entry in log if name in entry]
    return [epoch for epoch, _ in points], [value for _, value in points]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("log", type=Path, help="training_log.json of a run")
    parser.add_argument("--prior", type=float, help="held-out likelihood of the training prior, as a line to beat")
    parser.add_argument("--output", type=Path, default=Path("curve.png"))
    args = parser.parse_args(argv)
    log = json.loads(args.log.read_text())
    figure, axes = plt.subplots(1, len(PANELS), figsize=(15, 3.2), layout="constrained")
    for panel, name, title in zip(axes, PANELS, TITLES, strict=True):
        for prefix, style, label in (("", "--", "training"), ("eval_", "-", "validation")):
            epochs, values = read_curve(log, prefix + name)
            if epochs:
                panel.plot(epochs, values, style, color="#3b5b92", label=label)
        panel.set_title(title)
        panel.set_xlabel("epoch")
        panel.spines[["top", "right"]].set_visible(False)
    if args.prior is not None:
        axes[-1].axhline(args.prior, color="#8a8a8a", linestyle=":", label="training prior")
    for panel in axes:
        panel.legend(frameon=False)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=100)
    plt.close(figure)
    print(args.output)


if __name__ == "__main__":
    main()
