"""Paired significance tests on made-up scores."""

import shutil

import numpy as np
import pytest

from evaluation import significance
from evaluation.significance import compare, holm, larger_p, stars
from metrics.coco_caption.coco_caption import bleu_from_statistics
from processing.files import write_json
from tests.helpers.studies import made_up_scores


def test_a_clear_difference_is_significant_and_a_system_against_itself_is_not():
    good, bad = made_up_scores(0, quality=0.7, meteor=0.2), made_up_scores(1, quality=0.5, meteor=0.12)
    for name, test in compare(good, bad, draws=500).items():
        assert test["permutation_p"] == test["bootstrap_p"] == pytest.approx(1 / 501), name
        assert 0 < test["low"] < test["difference"] < test["high"]
    for test in compare(good, good, draws=200).values():
        assert test["difference"] == 0 and test["permutation_p"] == test["bootstrap_p"] == 1


def test_differences_are_those_of_the_scores():
    first, second = made_up_scores(0), made_up_scores(1)
    tests = compare(first, second, draws=20)
    corpus = [bleu_from_statistics(s["bleu_statistics"].sum(axis=1))[:, 3].mean() for s in (first, second)]
    assert tests["bleu_4"]["difference"] == pytest.approx(corpus[0] - corpus[1], abs=1e-12)
    assert tests["meteor"]["difference"] == pytest.approx(first["meteor"].mean() - second["meteor"].mean())


def test_p_values_of_equal_systems_are_evenly_distributed():
    """About a tenth of them is below 0.1; a test that finds too much would have more."""
    small = {"permutation_p": 0, "bootstrap_p": 0}
    for seed in range(60):
        first, second = np.random.default_rng(seed).normal(0.1, 0.05, (2, 1, 40))
        test = compare({"meteor": first}, {"meteor": second}, draws=200, seed=seed)["meteor"]
        small = {name: count + (test[name] < 0.1) for name, count in small.items()}
    assert 1 <= small["permutation_p"] <= 13 and 1 <= small["bootstrap_p"] <= 15


def test_the_permutation_test_of_a_few_paintings_matches_all_exchanges():
    first, second = np.array([[0.5, 0.4, 0.3, 0.2, 0.6]]), np.array([[0.1, 0.35, 0.2, 0.3, 0.2]])
    differences, signs = (first - second)[0], np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12)
    found = compare({"meteor": first}, {"meteor": second}, draws=20_000)["meteor"]["permutation_p"]
    assert found == pytest.approx(exact, abs=0.01)


def test_the_luck_of_training_is_not_taken_for_a_difference():
    """For two equal systems the permutation test, which is about these models only, is often significant; both tests
    together hardly ever."""
    significant = {"permutation_p": 0, "both": 0}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        paintings = rng.normal(0.1, 0.04, 200)
        pair = [paintings + rng.normal(0, 0.02, (3, 200)) + rng.normal(0, 0.006, (3, 1)) for _ in range(2)]
        test = compare({"meteor": pair[0]}, {"meteor": pair[1]}, draws=200, seed=seed)["meteor"]
        significant["permutation_p"] += test["permutation_p"] < 0.05
        significant["both"] += larger_p(test) < 0.05
    assert significant["permutation_p"] > 12, "or this test shows nothing"
    # Three runs say too little about their spread for exactly 5 %.
    assert significant["both"] <= 10


def test_holms_correction_is_that_of_the_textbook():
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1, never falling: 0.04, 0.06, 0.06, 0.5.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert [stars(p) for p in (0.0005, 0.005, 0.03, 0.05)] == ["***", "**", "*", "n.s."]


def test_systems_on_different_paintings_are_not_compared(tmp_path, capsys):
    rows = made_up_scores(0, paintings=2, seeds=1)["bleu_statistics"][0].tolist()
    for name, paintings in (("a", ["x", "y"]), ("b", ["y", "x"])):
        content = {"painting": paintings, "bleu_statistics": rows, "meteor": [0.1, 0.2]}
        write_json(tmp_path / name / "painting_scores.json", content)
    with pytest.raises(SystemExit, match="different paintings"):
        significance.main([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(SystemExit, match="no such file"):
        significance.main([str(tmp_path / "a"), str(tmp_path / "c")])
    same = significance.main([str(tmp_path / "a"), str(tmp_path / "a"), "--draws", "50"])
    for seed in range(2):
        shutil.copytree(tmp_path / "a", tmp_path / "runs" / f"seed-{seed}")
    assert significance.main([str(tmp_path / "runs"), str(tmp_path / "runs"), "--draws", "50"]) == same
    assert same["meteor"]["difference"] == 0 and "meteor" in capsys.readouterr().out
