# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Explain pictures, on the screen and as a sheet.

python examples/gallery.py outputs/demo --output outputs/demo/gallery.png           # held-out embedded pictures
python examples/gallery.py MODEL painting.jpg other.jpg --output gallery.png
"""

import argparse
import textwrap
from pathlib import Path

import matplotlib
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import modeling_sevlm  # noqa: F401 - registers the model with the Auto classes
import processing  # noqa: F401 - registers the processor
from processing.toy_artemis import load_toy_artemis


matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402


# Warm for pleasant emotions, cold and dark for unpleasant ones; told apart without colour vision by their order.
COLOURS = ["#f2c14e", "#4f9bd9", "#7fb069", "#f28123", "#b3261e", "#6b7d2a", "#5b3a8c", "#3b5b92", "#8a8a8a"]
BAR_WIDTH = 24


def explain(model, processor, images: list[Image.Image]) -> list[dict]:
    """`[{"emotion", "explanation", "scores"}]`, greedily decoded; `scores` maps every label to its probability."""
    pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.get_image_features(pixel_values)
    scores = model.emotion_scores(image_features=features).tolist()
    sentences = processor.read(model.generate(image_features=features, do_sample=False))
    return [
        sentence | {"scores": dict(zip(model.config.emotions, row, strict=True))}
        for sentence, row in zip(sentences, scores, strict=True)
    ]


def print_explanation(name: str, result: dict) -> None:
    print(f"\n{name}: {result['emotion']}, because {result['explanation']}")
    for emotion, value in result["scores"].items():
        print(f"  {emotion:>15} {value:6.1%} {'█' * round(value * BAR_WIDTH)}")


def draw_sheet(images: list[Image.Image], results: list[dict], path: Path) -> None:
    """One column a picture: the picture, its sentence, the nine scores."""
    figure, axes = plt.subplots(2, len(images), figsize=(4.2 * len(images), 6.6), squeeze=False, layout="constrained")
    for image, result, (top, bottom) in zip(images, results, axes.T, strict=True):
        top.imshow(image, interpolation="lanczos")
        top.set_axis_off()
        sentence = textwrap.fill(f"because {result['explanation']}", 36)
        top.set_title(f"{result['emotion']}\n", fontsize=15, fontweight="bold")
        top.text(0.5, -0.04, sentence, transform=top.transAxes, ha="center", va="top", fontsize=11)
        emotions = list(result["scores"])
        bottom.barh(emotions, list(result["scores"].values()), color=COLOURS[: len(emotions)])
        bottom.invert_yaxis()
        bottom.set_xlim(0, 1)
        bottom.spines[["top", "right"]].set_visible(False)
        bottom.set_xlabel("score")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="checkpoint folder or name on the Hub")
    parser.add_argument("images", nargs="*", help="pictures; three held-out pictures of the embedded data by default")
    parser.add_argument("--output", type=Path, default=Path("gallery.png"))
    args = parser.parse_args(argv)
    model = AutoModelForImageTextToText.from_pretrained(args.model).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    if args.images:
        names, images = args.images, [Image.open(path).convert("RGB") for path in args.images]
    else:
        rows = load_toy_artemis()["test"].select(range(3))
        names, images = rows["painting"][:], rows["image"][:]
    results = explain(model, processor, images)
    for name, result in zip(names, results, strict=True):
        print_explanation(name, result)
    draw_sheet(images, results, args.output)
    print(f"\n{args.output}")


if __name__ == "__main__":
    main()
