# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The paper's figures, one command each from saved results; every command writes a PNG and an SVG (or a PDF).

    python -m studies.figures confusion outputs/demo/evaluation/results.json --output confusion.png
    python -m studies.figures examples outputs/demo/evaluation/predictions.json --output examples.png    # Figs. 1, 10
    python -m studies.figures ablation outputs/studies/ablation/table.json --output ablation.png         # Figs. 5-8
    python -m studies.figures tsne outputs/demo --output tsne.png                                        # Fig. 9
    python -m studies.figures training outputs/demo/training_log.json --output curve.png

`examples` takes several systems as NAME=FILE. `tsne` takes a model and leaves its features beside the figure, in
`NAME.npz`, which it takes instead of a model. Both show the embedded test paintings; name other data as for
evaluate_sevlm.py. Colours are those that colour-blind eyes tell apart, and marks and hatches say the same in grey.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import HfArgumentParser

from evaluation.predictions_file import read_predictions
from modeling_sevlm import SEVLMForConditionalGeneration
from processing import SEVLMProcessor
from processing.script_utils import DataArguments, errors_as_exit, load_data
from studies.figures.ablation import ablation_figure
from studies.figures.confusion import confusion_figure
from studies.figures.examples import choose_examples, examples_figure
from studies.figures.files import save_figure
from studies.figures.training import training_figure
from studies.figures.tsne import collect_features, save_features, tsne_figure


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, DataArguments]:
    parser = argparse.ArgumentParser(
        prog="python -m studies.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    figures = parser.add_subparsers(dest="figure", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--output", type=Path, required=True, help="NAME.png, NAME.svg or NAME.pdf")
    common.add_argument("--title")
    confusion = figures.add_parser("confusion", parents=[common])
    confusion.add_argument("results", type=Path, help="results.json")
    ablation = figures.add_parser("ablation", parents=[common])
    ablation.add_argument("table", type=Path, help="table.json of a study")
    training = figures.add_parser("training", parents=[common])
    training.add_argument("log", type=Path, help="training_log.json of a run")
    training.add_argument("--prior", type=float, help="held-out likelihood of the training prior, a line to beat")
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--split", default="test")
    data.add_argument("--seed", type=int, default=0)
    tsne = figures.add_parser("tsne", parents=[common, data])
    tsne.add_argument("source", help="model, or the NAME.npz that an earlier call left")
    tsne.add_argument("--emotion", help="show the pictures of this one beside their explanations")
    tsne.add_argument("--max_paintings", type=int, default=2000)
    examples = figures.add_parser("examples", parents=[common, data])
    examples.add_argument("predictions", nargs="+", help="predictions.json, or NAME=FILE for several systems")
    examples.add_argument("--successes", type=int, default=3, help="of the first system")
    examples.add_argument("--failures", type=int, default=3)
    args, rest = parser.parse_known_args(argv)
    if rest and args.figure not in ("tsne", "examples"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    (data_args,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(rest)
    return args, data_args


def read_split(args: argparse.Namespace, data_args: DataArguments):
    splits = load_data(data_args, data_args.labels)
    if args.split not in splits:
        raise ValueError(f"the data has no split {args.split!r}; it has {sorted(splits)}.")
    return splits[args.split]


def draw_confusion(args: argparse.Namespace, data_args: DataArguments):
    results = json.loads(args.results.read_text(encoding="utf-8"))
    if results.get("confusion_matrix") is None:
        raise ValueError(f"{args.results} has no confusion matrix: the system named no emotions.")
    return confusion_figure(results["confusion_matrix"], results["labels"], title=args.title)


def draw_ablation(args: argparse.Namespace, data_args: DataArguments):
    content = json.loads(args.table.read_text(encoding="utf-8"))
    if "variants" not in content:
        raise ValueError(f"{args.table} is no table.json of `python -m studies`.")
    return ablation_figure(content, title=args.title or args.table.absolute().parent.name.replace("_", " "))


def draw_training(args: argparse.Namespace, data_args: DataArguments):
    figure = training_figure(json.loads(args.log.read_text(encoding="utf-8")), prior=args.prior)
    if args.title:
        figure.suptitle(args.title)
    return figure


def draw_tsne(args: argparse.Namespace, data_args: DataArguments):
    if args.source.endswith(".npz"):
        with np.load(args.source) as file:
            features = dict(file)
    else:
        dataset = read_split(args, data_args)
        if len(dataset) > args.max_paintings:
            dataset = dataset.shuffle(seed=args.seed).select(range(args.max_paintings))
        model = SEVLMForConditionalGeneration.from_pretrained(args.source).eval()
        features = collect_features(model, SEVLMProcessor.from_pretrained(args.source), dataset)
        print(save_features(features, args.output.with_suffix(".npz")))
    return tsne_figure(features, emotion=args.emotion, seed=args.seed, title=args.title)


def draw_examples(args: argparse.Namespace, data_args: DataArguments):
    dataset = read_split(args, data_args)
    systems = {}
    for given in args.predictions:
        name, _, path = given.rpartition("=")
        name = name or ("SEVLM" if len(args.predictions) == 1 else Path(path).absolute().parent.name)
        if name in systems:
            raise ValueError(f"two systems are called {name!r}: give each a name, NAME=FILE.")
        systems[name] = read_predictions(path, dataset["painting"][:], data_args.labels)
    counts = {"successes": args.successes, "failures": args.failures}
    rows = choose_examples(next(iter(systems.values())), dataset, **counts, seed=args.seed)
    if not rows:
        raise ValueError("no painting of this split has a dominant emotion and what was asked for.")
    figure = examples_figure(systems, dataset, rows)
    if args.title:
        figure.suptitle(args.title)
    return figure


DRAW = {
    "confusion": draw_confusion,
    "examples": draw_examples,
    "ablation": draw_ablation,
    "tsne": draw_tsne,
    "training": draw_training,
}


def main(argv: Sequence[str] | None = None) -> None:
    args, data_args = parse(list(sys.argv[1:] if argv is None else argv))
    with errors_as_exit():
        figure = DRAW[args.figure](args, data_args)
    for path in save_figure(figure, args.output):
        print(path)


if __name__ == "__main__":
    main()
