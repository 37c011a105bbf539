"""The runs of a study as one table with significance tests."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.report import markdown_table
from evaluation.significance import compare, holm, larger_p, read_painting_scores, stars


# Metric, heading, whether it is shown in percent.
FIGURES = (
    ("accuracy", "ACC", True),
    ("emotional_alignment", "EA", True),
    ("bleu_4", "BLEU-4", True),
    ("meteor", "METEOR", True),
    ("rouge_l", "ROUGE-L", True),
    ("unique", "Unique", True),
    ("label_nll", "label NLL", False),
)
TESTED = (("bleu_4", "BLEU-4"), ("meteor", "METEOR, mean over paintings"), ("label_nll", "label NLL"))


def summarise(runs: dict[str, list[Path]], *, draws: int = 2000) -> dict:
    """Means and standard deviations over seeds, and paired tests of every variant against the first. `runs` has the
    evaluation folders of each variant, one per seed.

    Returns:
        `{"seeds", "num_paintings", "prior_label_nll", "judge_accuracy", "draws", "variants": {name: {"means",
        "deviations", "tests"}}}`. A test is what [`compare`] returns plus `holm_p`, the larger of its two p-values,
        corrected for the number of variants.
    """
    variants, scores, paintings = {}, {}, {}
    for name, folders in runs.items():
        results = [json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in folders]
        means, deviations = {}, {}
        for figure, _, _ in FIGURES:
            values = [result.get(figure) for result in results]
            if None not in values:
                means[figure] = float(np.mean(values))
                deviations[figure] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        variants[name] = {"means": means, "deviations": deviations, "tests": {}}
        paintings[name], scores[name] = read_painting_scores(folders)
    reference, *others = runs
    for name in others:
        if paintings[name] != paintings[reference]:
            raise ValueError(f"{name} and {reference} were scored on different paintings.")
    tests = {name: compare(scores[name], scores[reference], draws=draws) for name in others}
    for figure, _ in TESTED:
        tested = [name for name in others if figure in tests[name]]
        corrected = holm([larger_p(tests[name][figure]) for name in tested])
        for name, p_value in zip(tested, corrected, strict=True):
            variants[name]["tests"][figure] = tests[name][figure] | {"holm_p": p_value}
    content = {"seeds": len(runs[reference]), "num_paintings": len(paintings[reference]), "draws": draws}
    content |= {name: results[0].get(name) for name in ("prior_label_nll", "judge_accuracy")}
    return content | {"variants": variants}


def named_sources(given: Sequence[str]) -> dict[str, str]:
    """Splits NAME=SOURCE arguments. A source without a name is called after the folder of its file, or "SEVLM" if it
    is the only one."""
    systems = {}
    for argument in given:
        name, _, source = argument.rpartition("=")
        name = name or ("SEVLM" if len(given) == 1 else Path(source).absolute().parent.name)
        if name in systems:
            raise ValueError(f"two systems are called {name!r}: give each a name, NAME=FILE.")
        systems[name] = source
    return systems


def slug(name: str) -> str:
    """The name of a variant in file names, which Windows must allow, too: no dot at the end, no "con"."""
    words = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
    return re.sub(r"^(con|prn|aux|nul|com\d|lpt\d|)(?=\.|$)", r"\1_", words)


def shown_figures(content: dict) -> list[tuple[str, str, bool]]:
    """The entries of `FIGURES` that all variants have."""
    return [entry for entry in FIGURES if all(entry[0] in value["means"] for value in content["variants"].values())]


def markdown(content: dict) -> str:
    """Two tables: the figures, and the differences from the first variant with their tests."""
    (reference, _), *others = content["variants"].items()
    shown = shown_figures(content)
    tested = [entry for entry in TESTED if all(entry[0] in variant["tests"] for _, variant in others)]
    means = {
        name: [_mean_cell(variant, figure, percent) for figure, _, percent in shown]
        for name, variant in content["variants"].items()
    }
    tests = {name: [_test_cell(variant, figure) for figure, _ in tested] for name, variant in others}
    lines = [
        f"{content['num_paintings']} paintings, mean ± standard deviation of {content['seeds']} seeds. Percent, "
        "except the likelihood of the viewers' labels (nats, less is better; training prior "
        f"{content['prior_label_nll']:.4f}).",
        "",
        markdown_table([heading for _, heading, _ in shown], ([name, *cells] for name, cells in means.items())),
        "",
        f"Difference from *{reference}* and its 95 % interval (bootstrap over paintings and seeds, "
        f"{content['draws']} draws); then p of the bootstrap, p of the permutation test (these trained models on "
        f"other paintings), and the larger of the two corrected by Holm for {len(others)} comparisons, with the sign "
        "of Fig. 5.",
        "",
        markdown_table([heading for _, heading in tested], ([name, *cells] for name, cells in tests.items())),
    ]
    return "\n".join(lines) + "\n"


def _mean_cell(variant: dict, figure: str, percent: bool) -> str:
    mean, deviation = variant["means"][figure], variant["deviations"][figure]
    scale, digits = (100, 1) if percent else (1, 4)
    return f"{scale * mean:.{digits}f}" + (f" ± {scale * deviation:.{digits}f}" if deviation is not None else "")


def _test_cell(variant: dict, figure: str) -> str:
    test = variant["tests"][figure]
    scale, digits = (1, 4) if figure == "label_nll" else (100, 2)
    difference, low, high = (f"{scale * test[name]:+.{digits}f}" for name in ("difference", "low", "high"))
    p_values = ", ".join(f"{test[name]:.3f}" for name in ("bootstrap_p", "permutation_p", "holm_p"))
    return f"{difference} [{low}, {high}], p = {p_values} {stars(test['holm_p'])}"
