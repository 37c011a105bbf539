"""The paper's figures from saved results. Every command writes a PNG and an SVG (or a PDF).

    python -m studies.figures confusion outputs/demo/evaluation/results.json --output confusion.png
    python -m studies.figures examples outputs/demo/evaluation/predictions.json --output examples.png    # Figs. 1, 10
    python -m studies.figures ablation outputs/studies/ablation/table.json --output ablation.png         # Figs. 5-8
    python -m studies.figures tsne outputs/demo --output tsne.png                                        # Fig. 9
    python -m studies.figures tsne full=MODEL baseline=MODEL ... --emotion amusement --output tsne.png   # its variants
    python -m studies.figures training outputs/demo/training_log.json --output curve.png

`examples` takes several systems as NAME=FILE. `tsne` takes a model, or several as NAME=MODEL, and writes their
features to .npz files next to the figure; it accepts such a file instead of a model. A model that was saved without
its lexicon needs `--vad_lexicon`. Both show the embedded test paintings unless you name other data as for
evaluate_sevlm.py. Colour-blind readers can tell the colours apart; marks and hatches show the same in grey.
"""

import argparse
import json
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from transformers import HfArgumentParser

from evaluation.predictions_file import read_predictions
from evaluation.significance import stars
from modeling_sevlm.lexicon import load_with_lexicon
from modeling_sevlm.views import emotion_style, plain
from processing.artemis import dominant_emotion
from processing.files import atomic_write
from processing.script_utils import DataArguments, errors_as_exit, load_data, load_lexicon, parse_arguments

from .summary import named_sources, shown_figures, slug
from .tsne import collect_features, tsne_figure


# Okabe and Ito's colours.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "++", "--")
CURVES = {
    "language_loss": "language loss",
    "emotion_loss": "emotion loss (VAD)",
    "contrastive_loss": "contrastive loss",
    "label_nll": "labels of held-out paintings (nats)",
    "accuracy": "accuracy on held-out paintings",
}


def save_figure(figure: Figure, output: str | os.PathLike) -> list[Path]:
    """Writes `NAME.png` and `NAME.svg`, or `NAME.pdf` instead of the SVG if `output` ends in `.pdf`. The same figure
    gives the same bytes."""
    stem, suffix = os.path.splitext(output) if str(output).endswith((".png", ".svg", ".pdf")) else (output, "")
    paths = [Path(f"{stem}.png"), Path(f"{stem}{'.pdf' if suffix == '.pdf' else '.svg'}")]
    for path in paths:
        # Without a date and with fixed identifiers, a file changes only if its figure does.
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
        with matplotlib.rc_context({"svg.hashsalt": "sevlm"}), atomic_write(path) as temporary:
            kind = {"format": path.suffix[1:], "metadata": metadata}
            figure.savefig(temporary, dpi=150, bbox_inches="tight", pad_inches=0.08, **kind)
    return paths


def confusion_figure(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> Figure:
    """Draws counts `(labels, labels + 1)` from `results.json`: a row per dominant label of the viewers, a column per
    label of the system and, if it occurs, one for answers without a label. Shades are shares of a row."""
    counts, columns = np.asarray(matrix), [*labels, "(none)"]
    if not counts[:, -1].any():
        counts, columns = counts[:, :-1], columns[:-1]
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure = Figure(figsize=(0.62 * len(columns) + 2.6, 0.52 * len(labels) + 2.2), layout="constrained")
    axes = figure.add_subplot(xlabel="named by the system", ylabel="dominant among the viewers")
    figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the row", shrink=0.8)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            style = {"color": "white" if shares[row, column] > 0.55 else "black", "fontsize": 9}
            style["fontweight"] = "bold" if row == column else "normal"
            axes.text(column, row, str(count), ha="center", va="center", **style)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    return figure


def training_figure(log: Sequence[dict], *, prior: float | None = None) -> Figure:
    """Draws a panel per quantity in the trainer's `log_history`: training dashed, validation solid with dots, and
    `prior`, the label NLL of the training prior, as a dotted line."""
    names = [name for name in CURVES if any(name in entry or f"eval_{name}" in entry for entry in log)]
    if not names:
        raise ValueError(f"The log has none of {', '.join(CURVES)}.")
    figure = Figure(figsize=(3.4 * len(names), 3.2), layout="constrained")
    lines = (("", "--", "#7f7f7f", "training"), ("eval_", ".-", "#0072B2", "validation"))
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for prefix, style, colour, label in lines:
            points = [(entry["epoch"], entry[prefix + name]) for entry in log if prefix + name in entry]
            if points:
                panel.plot(*zip(*points, strict=True), style, color=colour, label=label)
        if name == "label_nll" and prior is not None:
            panel.axhline(prior, color="#D55E00", linestyle=":", label="training prior")
        panel.set_title(CURVES[name], fontsize=10)
        panel.set_xlabel("epoch")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False)
    return figure


def ablation_figure(content: dict, title: str) -> Figure:
    """Draws a panel per metric of a study's `table.json`: bars for variants (Figs. 5 to 7) or a line for a range of
    values (Fig. 8), with standard deviations over seeds. Bars start at zero; above each are its height and the sign
    of the test against the first variant."""
    shown, variants = shown_figures(content), content["variants"]
    values = [re.fullmatch(r"[^=]+= *([\d.]+)", name) for name in variants]
    figure = Figure(figsize=(max(4.5, 2.1 * len(shown)), 3.6), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, (name, heading, percent) in zip(panels, shown, strict=True):
        scale = 100 if percent else 1
        means = [scale * variant["means"][name] for variant in variants.values()]
        deviations = [scale * (variant["deviations"][name] or 0) for variant in variants.values()]
        if all(values) and len(values) > 2:
            _draw_line(panel, [float(value.group(1)) for value in values], means, deviations)
            panel.set_xlabel(next(iter(variants)).partition("=")[0].strip(), fontsize=8)
        else:
            tests = [variant["tests"].get(name) for variant in variants.values()]
            signs = ["" if test is None else "\n" + stars(test["holm_p"]) for test in tests]
            captions = [f"{mean:.{1 if percent else 3}f}{sign}" for mean, sign in zip(means, signs, strict=True)]
            _draw_bars(panel, list(variants), means, deviations, captions)
        if name == "label_nll" and content.get("prior_label_nll") is not None:
            panel.axhline(content["prior_label_nll"], color="#7f7f7f", linestyle=":", linewidth=1)
        panel.set_title(heading + (" (%)" if percent else " (nats)"), fontsize=9)
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    about = f"mean and standard deviation of {content['seeds']} seeds, {content['num_paintings']} paintings"
    figure.suptitle(f"{title}: {about}", fontsize=10)
    return figure


def _draw_bars(panel, labels: list[str], means: list[float], deviations: list[float], captions: list[str]) -> None:
    look = {"color": COLOURS[: len(labels)], "hatch": HATCHES[: len(labels)], "label": labels}
    look["edgecolor"] = ["#ffffff", *["#00000088"] * (len(labels) - 1)]
    error = {"capsize": 2.5, "linewidth": 0.8, "ecolor": "#555555"}
    panel.bar(range(len(labels)), means, yerr=deviations, error_kw=error, **look)
    for position, caption in enumerate(captions):
        top = (position, means[position] + deviations[position])
        panel.annotate(caption, top, ha="center", va="bottom", fontsize=6)
    panel.margins(y=0.2)
    panel.set_ylim(bottom=0)
    panel.set_xticks([])


def _draw_line(panel, values: list[float], means: list[float], deviations: list[float]) -> None:
    values, means, deviations = zip(*sorted(zip(values, means, deviations, strict=True)), strict=True)
    panel.errorbar(values, means, yerr=deviations, color=COLOURS[1], marker="o", capsize=3)
    panel.set_xscale("log")
    panel.minorticks_off()
    panel.set_xticks(values, [f"{value:g}" for value in values])


def choose_examples(
    predictions: Sequence[Mapping], dataset: Dataset, *, successes: int = 3, failures: int = 3, seed: int = 0
) -> list[int]:
    """Picks random paintings with a dominant emotion: first some where the system named it, then some where it did
    not, with as many different emotions as possible."""
    labels = dataset.features["emotions"].feature.names
    truth = [dominant_emotion(histogram) for histogram in dataset["emotion_histogram"][:]]
    order = [row for row in np.random.default_rng(seed).permutation(len(truth)).tolist() if truth[row] is not None]
    chosen = []
    for correct, number in ((True, successes), (False, failures)):
        rows = [row for row in order if (predictions[row].get("emotion") == labels[truth[row]]) == correct]
        met, turns = {}, {}
        for row in rows:  # the first of each emotion, then the second of each, ...
            turns[row] = met[truth[row]] = met.get(truth[row], -1) + 1
        chosen += sorted(rows, key=turns.get)[:number]
    return chosen


def examples_figure(systems: Mapping[str, Sequence[Mapping]], dataset: Dataset, rows: Sequence[int]) -> Figure:
    """Draws a column per painting with a dominant emotion: the image, what two viewers felt and said (of the dominant
    emotion, if there are two), then the emotion (with a tick or a cross) and the explanation of every system. The
    predictions of a system are in the dataset's order."""
    labels = dataset.features["emotions"].feature.names
    heights = [3.0, 1.4, *[0.9] * len(systems)]
    figure = Figure(figsize=(2.9 * len(rows), sum(heights) + 0.1), layout="constrained")
    panels = figure.subplots(len(heights), len(rows), squeeze=False, height_ratios=heights)
    for axes in panels.flat:
        axes.set_axis_off()
    for column, row in enumerate(rows):
        painting, (image, text, *rest) = dataset[row], panels[:, column]
        truth = dominant_emotion(painting["emotion_histogram"])
        image.imshow(painting["image"], interpolation="lanczos")
        image.set_title(f"viewers: {labels[truth]}", fontsize=10, fontweight="bold")
        pairs = zip(painting["emotions"], painting["explanations"], strict=True)
        pairs = sorted(pairs, key=lambda pair: pair[0] != truth)[:2]
        quotes = "\n\n".join(textwrap.fill(plain(f"{labels[label]}: {sentence}"), 38) for label, sentence in pairs)
        text.text(0, 1, quotes, va="top", fontsize=8, style="italic")
        for panel, (name, predictions) in zip(rest, systems.items(), strict=True):
            emotion = predictions[row].get("emotion")
            verdict = "✓" if emotion == labels[truth] else "✗"
            box = {"facecolor": "none", "edgecolor": emotion_style(emotion).colour, "pad": 2, "linewidth": 1.5}
            answer = f"{verdict} {plain(name)}: {emotion or '(none)'}"
            panel.text(0, 1, answer, va="top", fontsize=9, fontweight="bold", bbox=box)
            reason = textwrap.fill(plain(f"because {predictions[row]['explanation']}"), 38)
            panel.text(0, 0.66, reason, va="top", fontsize=8)
    return figure


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, DataArguments]:
    parser = argparse.ArgumentParser(
        prog="python -m studies.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    figures = parser.add_subparsers(dest="figure", required=True)
    common, data = (argparse.ArgumentParser(add_help=False) for _ in range(2))
    common.add_argument("--output", type=Path, required=True, help="NAME.png, NAME.svg or NAME.pdf")
    common.add_argument("--title", help="title of the figure")
    data.add_argument("--split", default="test", help="split to show (default: test)")
    data.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    figures.add_parser("confusion", parents=[common]).add_argument("file", type=Path, help="results.json")
    figures.add_parser("ablation", parents=[common]).add_argument("file", type=Path, help="table.json of a study")
    training = figures.add_parser("training", parents=[common])
    training.add_argument("file", type=Path, help="training_log.json of a run")
    training.add_argument("--prior", type=float, help="held-out NLL of the training prior, drawn as a line")
    tsne = figures.add_parser("tsne", parents=[common, data])
    tsne.add_argument("sources", nargs="+", help="model, or the .npz file of an earlier call; several as NAME=SOURCE")
    tsne.add_argument("--emotion", help="show only the pairs of explanation and picture of this emotion")
    tsne.add_argument("--max_paintings", type=int, default=2000, help="paintings to draw (default: 2000)")
    tsne.add_argument("--use_cpu", action="store_true", help="run on the CPU even if there is a GPU")
    examples = figures.add_parser("examples", parents=[common, data])
    examples.add_argument("predictions", nargs="+", help="predictions.json, or NAME=FILE for several systems")
    examples.add_argument("--successes", type=int, default=3, help="correct answers of the first system (default: 3)")
    examples.add_argument("--failures", type=int, default=3, help="wrong answers of the first system (default: 3)")
    args, rest = parser.parse_known_args(argv)
    (data_args,) = parse_arguments(HfArgumentParser(DataArguments), rest)
    return args, data_args


def draw(args: argparse.Namespace, data_args: DataArguments) -> Figure:
    if args.figure == "tsne":
        return tsne_figure(read_features(args, data_args), emotion=args.emotion, seed=args.seed)
    if args.figure == "examples":
        return draw_examples(args, data_args)
    content = json.loads(args.file.read_text(encoding="utf-8"))
    if args.figure == "training":
        return training_figure(content, prior=args.prior)
    if args.figure == "confusion":
        if content.get("confusion_matrix") is None:
            raise ValueError(f"{args.file} has no confusion matrix: the system named no emotions.")
        return confusion_figure(content["confusion_matrix"], content["labels"])
    return ablation_figure(content, args.file.absolute().parent.name.replace("_", " "))


def read_features(args: argparse.Namespace, data_args: DataArguments) -> dict[str, dict[str, np.ndarray]]:
    """Reads the features of every source, or computes and saves them: in `OUTPUT.npz`, or with several sources in
    `OUTPUT-NAME.npz`."""
    found, lexicon, dataset = {}, load_lexicon(data_args.vad_lexicon), None
    device = "cuda" if torch.cuda.is_available() and not args.use_cpu else "cpu"
    for name, source in named_sources(args.sources).items():
        if source.endswith(".npz"):
            with np.load(source) as file:
                found[name] = dict(file)
            continue
        model, processor = load_with_lexicon(source, lexicon)
        if dataset is None:
            dataset = read_split(args, data_args)
            if len(dataset) > args.max_paintings:
                dataset = dataset.shuffle(seed=args.seed).select(range(args.max_paintings))
        found[name] = collect_features(model.to(device), processor, dataset)
        path = args.output.with_suffix(".npz")
        path = path if len(args.sources) == 1 else path.with_stem(f"{path.stem}-{slug(name)}")
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **found[name])
        print(path)
    return found


def draw_examples(args: argparse.Namespace, data_args: DataArguments) -> Figure:
    dataset, files = read_split(args, data_args), named_sources(args.predictions)
    paintings = dataset["painting"][:]
    systems = {name: read_predictions(file, paintings, data_args.labels) for name, file in files.items()}
    counts = {"successes": args.successes, "failures": args.failures, "seed": args.seed}
    rows = choose_examples(next(iter(systems.values())), dataset, **counts)
    if not rows:
        raise ValueError("no answer of the requested kind to a painting with a dominant emotion in this split.")
    return examples_figure(systems, dataset, rows)


def read_split(args: argparse.Namespace, data_args: DataArguments) -> Dataset:
    splits = load_data(data_args, data_args.labels)
    if args.split not in splits:
        raise ValueError(f"the data has no split {args.split!r}; it has {sorted(splits)}.")
    return splits[args.split]


def main(argv: Sequence[str] | None = None) -> None:
    args, data_args = parse(list(sys.argv[1:] if argv is None else argv))
    with errors_as_exit():
        figure = draw(args, data_args)
    if args.title:
        figure.suptitle(args.title)
    for path in save_figure(figure, args.output):
        print(path)


if __name__ == "__main__":
    main()
