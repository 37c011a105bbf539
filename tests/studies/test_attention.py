"""Attention maps on images with a known answer: a trained model looks at what it names."""

import dataclasses

import numpy as np
import pytest
from PIL import ImageChops

import train
from processing.toy_artemis import load_grammar, toy_scene
from processing.toy_paintings import COLOURS, motif_box, paint_scene
from studies.attention import NOUNS, area, main, mass_inside
from tests.helpers.training import WITHOUT_EVALUATION


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of the tiny preset, trained for half as long (under two minutes)."""
    folder = tmp_path_factory.mktemp("looking")
    arguments = ["--num_train_epochs", "15", "--warmup_steps", "10", "--save_strategy", "no", *WITHOUT_EVALUATION]
    train.main(["--output_dir", str(folder), "--disable_tqdm", "true", "--use_cpu", "true", *arguments])
    return folder


@pytest.mark.slow
def test_a_trained_model_looks_at_what_it_names_twice_as_much_as_elsewhere(trained, capsys):
    found = main([str(trained), "--split", "held-out", "--minimum", "2"])
    assert found["pictures"] > 60 and found["words"] >= found["pictures"]
    assert "contribution, mean over layers" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="less than 9"):
        main([str(trained), "--num_paintings", "120", "--minimum", "9"])


def test_an_even_map_has_a_ratio_of_one():
    box = (0.1, 0.3, 0.55, 0.7)
    even = np.full((1, 5, 7), 1 / 35)
    assert mass_inside(even, box) / area(box) == pytest.approx(1)
    one = np.zeros((1, 4, 4))
    one[0, 1, 2] = 1  # from (0.5, 0.25) to (0.75, 0.5)
    assert mass_inside(one, (0.5, 0.25, 0.75, 0.5)) == pytest.approx(1)
    assert mass_inside(one, (0.5, 0.25, 0.625, 0.375)) == pytest.approx(0.25)
    assert mass_inside(one, (0.0, 0.0, 0.5, 1.0)) == 0


def test_the_nouns_are_those_of_the_sentences():
    assert set(NOUNS) == set(load_grammar()["motifs"])
    for motif, words in load_grammar()["motifs"].items():
        assert NOUNS[motif] <= set(" ".join(words["names"]).split())
        assert all(NOUNS[motif] & set(name.split()) for name in words["names"]), "every name has one"


@pytest.mark.parametrize("index", range(0, 45, 4))
def test_the_motif_is_in_its_box_and_its_box_in_that_of_the_brushwork(index):
    scene = toy_scene(index)
    picture, cause = paint_scene(scene)
    left, top, right, bottom = motif_box(scene)
    assert cause[0] <= left < right <= cause[2] and cause[1] <= top < bottom <= cause[3]
    assert area((left, top, right, bottom)) < 0.8 * area(cause)
    colours = [paint_scene(dataclasses.replace(scene, colour=colour))[0] for colour in COLOURS]
    changed = [ImageChops.difference(picture, other).getbbox() for other in colours]
    changed = [tuple(edge / 64 for edge in box) for box in changed if box is not None]
    assert changed, "the motif is what has that colour"
    assert all(left <= a and top <= b and c <= right and d <= bottom for a, b, c, d in changed)
