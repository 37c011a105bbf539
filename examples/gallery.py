"""Prints explanations of images and draws them on a sheet.

python examples/gallery.py outputs/demo --output outputs/demo/gallery.png     # held-out embedded images
python examples/gallery.py MODEL painting.jpg other.jpg --output gallery.png
"""

import argparse
from pathlib import Path

from PIL import Image
from transformers import pipeline

import modeling_sevlm  # noqa: F401 - registers the model and the task
import processing  # noqa: F401 - registers the processor
from modeling_sevlm.views import gallery_sheet, in_fixed_order
from processing.files import atomic_write
from processing.toy_artemis import load_toy_artemis


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="checkpoint folder or name on the Hub")
    parser.add_argument("images", nargs="*", help="image files (default: three held-out embedded images)")
    parser.add_argument("--output", type=Path, default=Path("gallery.png"), help="file of the sheet")
    args = parser.parse_args(argv)
    explain = pipeline("art-emotion-explanation", model=args.model)
    if args.images:
        names, images = args.images, [Image.open(path).convert("RGB") for path in args.images]
    else:
        rows = load_toy_artemis()["test"].select(range(3))
        names, images = rows["painting"][:], rows["image"][:]
    results = explain(images, do_sample=False)
    for name, result in zip(names, results, strict=True):
        print(f"\n{name}: {result['emotion']}, because {result['explanation']}")
        for emotion, score in in_fixed_order(result["emotion_scores"]).items():
            print(f"  {emotion:>15} {score:6.1%} {'█' * round(24 * score)}")
    with atomic_write(args.output) as temporary:
        gallery_sheet(images, results).savefig(temporary, dpi=110, format=args.output.suffix[1:])
    print(f"\n{args.output}")


if __name__ == "__main__":
    main()
