"""The embedded data set: deterministic, its sentences true of its pictures, its words in the embedded lexicon."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Image as ImageFeature

from processing.artemis import EMOTIONS
from processing.toy_artemis import NUMBERS, explain_scene, load_grammar, load_toy_artemis, toy_scene
from processing.toy_paintings import BRUSHWORK, MOTIFS, PLACES, SETTINGS, paint_scene


ROOT = Path(__file__).parents[2]
LEXICON = ROOT / "processing" / "embedded_vad.tsv"


@pytest.fixture(scope="module")
def toy():
    return load_toy_artemis()


def digest(toy) -> str:
    total = hashlib.sha256()
    for split in toy.values():
        for row in split.cast_column("image", ImageFeature(decode=False)):
            total.update(row.pop("image")["bytes"])
            total.update(repr(row).encode())
    return total.hexdigest()


def test_another_call_and_another_process_give_the_same_bytes_and_text():
    small = digest(load_toy_artemis(24))
    program = "from tests.data.test_toy_artemis import *; print(digest(load_toy_artemis(24)))"
    # With another hash seed: nothing may depend on the order of a set.
    environment = {**os.environ, "PYTHONHASHSEED": "7", "HF_HUB_OFFLINE": "1"}
    other_process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert digest(load_toy_artemis(24)) == small == other_process.stdout.strip()
    assert digest(load_toy_artemis(24, seed=1)) != small


def test_a_painting_does_not_depend_on_how_many_there_are(toy):
    assert load_toy_artemis(24)["train"][5]["explanations"] == toy["train"][5]["explanations"]


def test_columns_and_sizes_are_as_documented(toy):
    assert {split: len(rows) for split, rows in toy.items()} == {"train": 600, "validation": 60, "test": 60}
    columns = ["image", "painting", "emotions", "explanations", "emotion_histogram", "cause_box"]
    assert all(rows.column_names == columns for rows in toy.values())
    assert toy["train"].features["emotions"].feature.names == list(EMOTIONS)
    assert toy["test"][0]["image"].size == (64, 64) and toy["test"][0]["image"].mode == "RGB"
    assert load_toy_artemis(12, image_size=96)["test"][0]["image"].size == (96, 96)


def test_splits_share_no_painting_no_picture_and_no_combination(toy):
    names = [name for rows in toy.values() for name in rows["painting"]]
    assert len(set(names)) == len(names) == 720
    undecoded = [rows.cast_column("image", ImageFeature(decode=False))["image"] for rows in toy.values()]
    assert len({image["bytes"] for images in undecoded for image in images}) == 720
    scenes = {(s.motif, s.setting, s.colour, s.place, s.size) for s in map(toy_scene, range(3600))}
    assert len(scenes) == 3600


def test_histograms_have_a_dominant_emotion_mostly_and_all_nine_dominate_in_every_split(toy):
    for rows in toy.values():
        for emotions, histogram in zip(rows["emotions"], rows["emotion_histogram"], strict=True):
            assert histogram == [emotions.count(k) for k in range(9)]
            assert 5 <= len(emotions) <= 7
        histograms = np.array(rows["emotion_histogram"][:])
        dominated = 2 * histograms.max(axis=1) > histograms.sum(axis=1)
        assert 0.8 < dominated.mean() < 1
        assert set(histograms[dominated].argmax(axis=1)) == set(range(9))
        assert ((histograms > 0).sum(axis=1) > 1).mean() > 0.5, "most paintings have a second emotion"


def test_the_motif_decides_the_dominant_emotion(toy):
    for index, histogram in enumerate(toy["train"]["emotion_histogram"]):
        if 2 * max(histogram) > sum(histogram):
            assert EMOTIONS[int(np.argmax(histogram))] == MOTIFS[toy_scene(index).motif].emotion


def test_explanations_are_short_lower_case_sentences_that_differ(toy):
    for rows in toy.values():
        for emotions, explanations in zip(rows["emotions"], rows["explanations"], strict=True):
            assert len(set(explanations)) == len(explanations) == len(emotions)
            for explanation in explanations:
                assert 6 <= len(explanation.split()) <= 16
                assert re.fullmatch(r"[a-z]+(,? [a-z]+)*", explanation)
                assert "because" not in explanation
    train = [explanation for row in toy["train"]["explanations"] for explanation in row]
    assert len(set(train)) > 0.9 * len(train)


def test_explanations_name_the_true_colour_place_and_number():
    scene = next(s for s in map(toy_scene, range(300)) if s.motif == "balloons")
    sentences = explain_scene(scene, ["amusement"] * 30)
    for sentence in sentences:
        assert f"{scene.colour} balloons" in sentence
        assert not any(place in sentence for place in PLACES.keys() - {scene.place})
        assert not any(f"{number} " in sentence for number in NUMBERS if number != NUMBERS[scene.count])
    assert any(scene.place in sentence for sentence in sentences)


def test_the_cause_box_is_tight_and_every_motif_stands_out_from_its_setting():
    for index in range(90):
        scene = toy_scene(index)
        (picture, box), (bare, no_box) = paint_scene(scene), paint_scene(scene, with_motif=False)
        x0, y0, x1, y1 = (round(64 * c) for c in box)
        assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64 and no_box == (0, 0, 0, 0)
        difference = np.abs(np.asarray(picture, dtype=float) - np.asarray(bare, dtype=float)).max(axis=-1)
        inside = difference[y0:y1, x0:x1].copy()
        assert (inside > 0).mean() > 0.5
        assert inside.mean() > 25, f"more than the grain of the brush: {scene}"
        difference[y0:y1, x0:x1] = 0
        assert not difference.any(), "nothing changes outside the box"


def test_grammar_and_painter_have_the_same_motifs_settings_and_emotions():
    grammar = load_grammar()
    assert grammar["motifs"].keys() == MOTIFS.keys() and grammar["settings"].keys() == SETTINGS.keys()
    assert set(grammar["emotions"]) == set(BRUSHWORK) == set(EMOTIONS)
    assert {motif.emotion for motif in MOTIFS.values()} == set(EMOTIONS)
    assert {words["emotion"] for words in grammar["settings"].values()} == set(EMOTIONS)
    assert {words["other_emotion"] for words in grammar["motifs"].values()} <= set(EMOTIONS)
    for name, motif in MOTIFS.items():
        assert max(motif.counts) < len(NUMBERS)
        if any("{number}" in text for text in grammar["motifs"][name]["names"]):
            assert min(motif.counts) > 1


def test_the_embedded_lexicon_is_well_formed():
    lines = LEXICON.read_text(encoding="utf-8").splitlines()
    header = dict(line[2:].split(": ") for line in lines if line.startswith("#"))
    assert header["name"] == "SEVLM embedded lexicon" and header["redistributable"] == "true"
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    words = [word for word, *_ in rows]
    assert words == sorted(set(words)) and 250 <= len(words) <= 400
    for word, *values in rows:
        assert re.fullmatch("[a-z]+", word) and len(values) == 3
        assert all(-1 <= float(value) <= 1 and round(float(value), 3) == float(value) for value in values)


def test_the_embedded_lexicon_has_the_feelings_of_the_grammar():
    known = {line.split("\t")[0] for line in LEXICON.read_text(encoding="utf-8").splitlines()}
    assert {word for words in load_grammar()["emotions"].values() for word in words["adjectives"]} <= known
