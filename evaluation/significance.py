"""Paired significance tests of two systems on the same paintings.

    python -m evaluation.significance outputs/evaluation_a outputs/evaluation_b

Two tests of the difference A - B (Koehn 2004; Riezler and Maxwell 2005), for BLEU-4, METEOR and the likelihood of the
human labels. They answer different questions:

- the permutation test exchanges the two systems' outputs painting by painting: would *these trained models* differ on
  other paintings?
- the bootstrap draws paintings and, if a system has several runs (seeds), runs with replacement: would the difference
  remain after *training again*? With few runs it underestimates the variation between runs a little.

A component helps only if both tests say so. BLEU-4 is the corpus score, computed again from summed n-gram counts for
every draw; METEOR and the likelihood are means over paintings (METEOR's corpus score gives longer explanations more
weight). A folder may hold the runs of several seeds as `seed-0`, `seed-1`, ...
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap, permutation_test

from metrics.coco_caption.coco_caption import bleu_from_statistics
from processing.script_utils import errors_as_exit


DRAWS = 2000
BATCH = 100  # draws at a time, to bound the memory


def read_painting_scores(folders: Sequence[str | Path]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Reads `painting_scores.json` of the evaluation folders of one system, one folder per run.

    Returns the paintings, and the scores: `bleu_statistics` `(runs, paintings, 10)`, and `meteor` and `label_nll`
    `(runs, paintings)` if every folder has them. Missing files and different paintings raise a ValueError.
    """
    contents = []
    for folder in folders:
        file = Path(folder, "painting_scores.json")
        if not file.is_file():
            raise ValueError(f"{file}: no such file. Write it with evaluate_sevlm.py --output_dir {folder}.")
        contents.append(json.loads(file.read_text(encoding="utf-8")))
    paintings = contents[0]["painting"]
    for folder, content in zip(folders, contents, strict=True):
        if content["painting"] != paintings:
            raise ValueError(f"{folder} and {folders[0]} have different paintings, or another order of paintings.")
    names = [
        name
        for name in ("bleu_statistics", "meteor", "label_nll")
        if all(content.get(name) is not None and None not in content[name] for content in contents)
    ]
    return paintings, {name: np.asarray([content[name] for content in contents], dtype=float) for name in names}


def find_runs(folder: str | Path) -> list[Path]:
    """Returns the folder itself if it holds scores, otherwise its `seed-N` folders."""
    runs = sorted(Path(folder).glob("seed-*"), key=lambda run: (len(run.name), run.name))
    return [Path(folder)] if Path(folder, "painting_scores.json").is_file() or not runs else runs


def compare(
    first: dict[str, np.ndarray], second: dict[str, np.ndarray], *, draws: int = DRAWS, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Tests the difference `first - second` for every score that both have.

    Args:
        first, second: scores of the same paintings in the same order, as [`read_painting_scores`] returns them.
        draws: number of resamples of each test.

    Returns:
        `{"bleu_4": {"difference", "low", "high", "bootstrap_p", "permutation_p"}, "meteor": ..., "label_nll": ...}`.
        `low` and `high` are the 95 % interval of the bootstrap. P-values are two-sided and at least 1 / (draws + 1);
        the permutation test is exact if there are no more than `draws` exchanges. Lower `label_nll` is better.
    """
    tests = {}
    for name in [name for name in first if name in second]:
        test = _paired_tests(first[name], second[name], partial(_reduce, name), draws, seed)
        tests[name.replace("bleu_statistics", "bleu_4")] = test
    return tests


def _reduce(name: str, scores: np.ndarray) -> np.ndarray:
    """Reduces the paintings of one run: counts `(..., paintings, 10)` to corpus BLEU-4, other scores to their mean."""
    return bleu_from_statistics(scores.sum(axis=-2))[..., 3] if name == "bleu_statistics" else scores.mean(axis=-1)


def _paired_tests(first: np.ndarray, second: np.ndarray, statistic, draws: int, seed: int) -> dict[str, float]:
    """Lets scipy resample the indices of paintings and runs; `statistic` reduces the paintings of one run."""
    if first.shape != second.shape:
        raise ValueError(f"the systems differ in runs or paintings: {first.shape} and {second.shape}.")
    paintings, pooled = np.arange(first.shape[1]), np.concatenate([first, second], axis=1)
    # scipy needs two entries in a sample, so a single run is listed twice.
    runs = np.resize(np.arange(len(first)), max(2, len(first)))

    def per_run(scores, chosen):
        return np.stack([statistic(run[chosen]) for run in scores], axis=-1)

    def difference(chosen, first_runs, second_runs, axis):
        mine = np.take_along_axis(per_run(first, chosen), first_runs, axis)
        other = np.take_along_axis(per_run(second, chosen), second_runs, axis)
        return mine.mean(axis) - other.mean(axis)

    def distance(one, other, axis):
        # Rounding makes distances equal that differ only by the order of summation.
        return np.abs(per_run(pooled, one).mean(axis) - per_run(pooled, other).mean(axis)).round(12)

    options = {"vectorized": True, "n_resamples": draws, "batch": BATCH, "rng": seed}
    observed = float(difference(paintings, runs, runs, axis=-1))
    resampled = bootstrap((paintings, runs, runs), difference, method="percentile", **options)
    extreme = np.abs(resampled.bootstrap_distribution - observed) >= abs(observed) - 1e-12
    swaps = {"permutation_type": "samples", "alternative": "greater"}
    exchanged = permutation_test((paintings, paintings + len(paintings)), distance, **swaps, **options)
    return {
        "difference": observed,
        "low": float(resampled.confidence_interval.low),
        "high": float(resampled.confidence_interval.high),
        "bootstrap_p": float((1 + extreme.sum()) / (draws + 1)),
        "permutation_p": float(exchanged.pvalue),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Applies Holm's correction for several comparisons; the order is kept."""
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    adjusted = np.maximum.accumulate(np.minimum(1, np.arange(len(values), 0, -1) * values[order]))
    return adjusted[np.argsort(order)].tolist()


def larger_p(test: dict[str, float]) -> float:
    """Returns the larger p-value of the two tests, because a difference counts only if both find it."""
    return max(test["bootstrap_p"], test["permutation_p"])


def stars(p_value: float) -> str:
    """Returns the paper's significance mark for a p-value (Fig. 5)."""
    return next((mark for limit, mark in ((0.001, "***"), (0.01, "**"), (0.05, "*")) if p_value < limit), "n.s.")


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="evaluation folder of A, or a folder with its seed-N folders")
    parser.add_argument("second", help="evaluation folder of B")
    parser.add_argument("--draws", type=int, default=DRAWS, help="number of resamples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the resamples (default: %(default)s)")
    args = parser.parse_args(argv)
    with errors_as_exit((ValueError,)):
        paintings, first = read_painting_scores(find_runs(args.first))
        others, second = read_painting_scores(find_runs(args.second))
        if paintings != others:
            raise ValueError(f"{args.first} and {args.second} have different paintings, or another order.")
        results = compare(first, second, draws=args.draws, seed=args.seed)
        if not results:
            raise ValueError(f"{args.first} and {args.second} share no score. Evaluate them without --captions false.")
    print(f"{len(paintings)} paintings, {len(next(iter(first.values())))} run(s) of each, A - B:")
    for name, test in results.items():
        p_values = f"bootstrap p = {test['bootstrap_p']:.4f}  permutation p = {test['permutation_p']:.4f}"
        interval = f"[{test['low']:+.4f}, {test['high']:+.4f}]"
        print(f"{name:>10} {test['difference']:+.4f}  {interval}  {p_values}  {stars(larger_p(test))}")
    return results


if __name__ == "__main__":
    main()
