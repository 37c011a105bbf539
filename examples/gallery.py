"""Prints explanations of images and draws them on a sheet.

python examples/gallery.py outputs/demo --output outputs/demo/gallery.png     # held-out embedded images
python examples/gallery.py MODEL painting.jpg other.jpg --output gallery.png
"""

import argparse
from pathlib import Path

import processing  # noqa: F401 - registers the processor
from modeling_sevlm.lexicon import restore_lexicon
from modeling_sevlm.loading import open_pipeline
from modeling_sevlm.views import gallery_sheet, in_fixed_order
from processing.files import atomic_write
from processing.images import read_image
from processing.script_utils import errors_as_exit, load_lexicon
from processing.toy_artemis import load_toy_artemis


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="checkpoint folder or name on the Hub")
    parser.add_argument("images", nargs="*", help="image files (default: three held-out embedded images)")
    parser.add_argument("--output", type=Path, default=Path("gallery.png"), help="file of the sheet")
    parser.add_argument("--vad_lexicon", help="lexicon file of a checkpoint that was saved without it")
    args = parser.parse_args(argv)
    with errors_as_exit():
        explain = open_pipeline(args.model)
        restore_lexicon(explain.model, explain.processor, load_lexicon(args.vad_lexicon))
        names, images = args.images, [read_image(path) for path in args.images]
    if not images:
        rows = load_toy_artemis()["test"].select(range(3))
        names, images = rows["painting"][:], rows["image"][:]
    results = explain(images)
    for name, result in zip(names, results, strict=True):
        print(f"\n{name}: {result['emotion']}, because {result['explanation']}")
        for emotion, score in in_fixed_order(result["emotion_scores"]).items():
            print(f"  {emotion:>15} {score:6.1%} {'█' * round(24 * score)}")
    with atomic_write(args.output) as temporary:
        gallery_sheet(images, results).savefig(temporary, dpi=110, format=args.output.suffix[1:])
    print(f"\n{args.output}")


if __name__ == "__main__":
    main()
