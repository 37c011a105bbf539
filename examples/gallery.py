# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Explain pictures, on the screen and as a sheet.

python examples/gallery.py outputs/demo --output outputs/demo/gallery.png           # held-out embedded pictures
python examples/gallery.py MODEL painting.jpg other.jpg --output gallery.png
"""

import argparse
import os
from pathlib import Path

from PIL import Image
from transformers import pipeline

import modeling_sevlm  # noqa: F401 - registers the model and the task
import processing  # noqa: F401 - registers the processor
from modeling_sevlm.views import gallery_sheet, in_fixed_order
from processing.toy_artemis import load_toy_artemis


BAR_WIDTH = 24


def print_explanation(name: str, result: dict) -> None:
    print(f"\n{name}: {result['emotion']}, because {result['explanation']}")
    for emotion, value in in_fixed_order(result["emotion_scores"]).items():
        print(f"  {emotion:>15} {value:6.1%} {'█' * round(value * BAR_WIDTH)}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="checkpoint folder or name on the Hub")
    parser.add_argument("images", nargs="*", help="pictures; three held-out pictures of the embedded data by default")
    parser.add_argument("--output", type=Path, default=Path("gallery.png"))
    args = parser.parse_args(argv)
    explain = pipeline("art-emotion-explanation", model=args.model)
    if args.images:
        names, images = args.images, [Image.open(path).convert("RGB") for path in args.images]
    else:
        rows = load_toy_artemis()["test"].select(range(3))
        names, images = rows["painting"][:], rows["image"][:]
    results = explain(images, do_sample=False)
    for name, result in zip(names, results, strict=True):
        print_explanation(name, result)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.output.with_name(f"{args.output.stem}.tmp{args.output.suffix}")
    gallery_sheet(images, results).savefig(temporary, dpi=110)
    os.replace(temporary, args.output)
    print(f"\n{args.output}")


if __name__ == "__main__":
    main()
