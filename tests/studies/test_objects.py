"""The share of sentences that name the right object, from made-up sentences and from a short training."""

from collections import Counter

import pytest

import train
from processing.toy_artemis import NUM_COMBINATIONS, explain_scene, toy_scene
from processing.toy_paintings import MOTIFS
from studies.objects import count_objects, interval, main, measure_objects, named_objects
from tests.helpers.training import TINY_RUN


@pytest.mark.parametrize(
    "sentence, motifs",
    [
        ("the red sail on the left glides along and i feel calm", {"boat"}),
        ("the round pink tree in the rain looks cozy", {"tree"}),
        ("how grand it is that the blue Peak, at the top, glows with bright rays", {"mountain"}),
        ("the red clown with three blue balloons", {"balloons", "clown"}),
        ("the large golden fireworks amid magenta sparks burst open", {"fireworks"}),
        ("the grey figure amid magenta sparks walks alone", {"figure"}),
        ("the cold grey rain falls like tears and i want to cry", set()),
        ("", set()),
    ],
)
def test_a_sentence_names_the_motifs_whose_nouns_it_has(sentence, motifs):
    assert named_objects(sentence) == motifs


def test_every_sentence_about_a_motif_names_it_and_no_other():
    for scene in map(toy_scene, range(180)):
        emotion = MOTIFS[scene.motif].emotion
        for sentence in explain_scene(scene, [emotion] * 6):
            assert named_objects(sentence) == {scene.motif}


def test_wrong_missing_and_several_objects_are_counted_apart():
    sentences = ["the red boat", "the pink tree", "the boat and the tree", "the rain", "the white sails"]
    counts = count_objects(["boat"] * 5, sentences)
    assert counts["boat"] == {"boat": 2, "tree": 1, "several": 1, "none": 1}
    assert sum(named.total() for motif, named in counts.items() if motif != "boat") == 0


def test_the_interval_is_wilsons():
    # Agresti and Coull (1998): 0 of 10, and the textbook's 15 of 20
    assert interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert interval(15, 20) == pytest.approx((0.5313, 0.8881), abs=1e-4)


def test_perfect_sentences_are_all_right():
    scenes = [toy_scene(NUM_COMBINATIONS - 28 + k) for k in range(28)]
    answers = [{"emotion": MOTIFS[scene.motif].emotion} for scene in scenes]
    for scene, answer in zip(scenes, answers, strict=True):
        answer["explanation"] = explain_scene(scene, [answer["emotion"]])[0]
    found = measure_objects(lambda images, batch_size: answers, scenes)
    assert found["pictures"] == found["right"] == found["right_emotion"] == 28
    answers[0]["explanation"], answers[1]["emotion"] = "nothing", "nothing"
    found = measure_objects(lambda images, batch_size: answers, scenes)
    assert (found["right"], found["right_emotion"]) == (27, 27)
    assert found["counts"][scenes[0].motif]["none"] == 1


def test_the_command_prints_shares_and_refuses_a_model_below_the_minimum(tmp_path, capsys):
    train.main(["--output_dir", str(tmp_path), "--num_paintings", "24", "--max_steps", "2", *TINY_RUN])
    capsys.readouterr()
    found = main([str(tmp_path), "--num_paintings", "9"])
    printed = capsys.readouterr().out
    assert f"{found['right']} of 9 sentences name the right object" in printed
    assert sum(found["counts"].values(), Counter()).total() == 9
    with pytest.raises(SystemExit, match="less than 100.0%"):
        main([str(tmp_path), "--num_paintings", "9", "--minimum", "1"])


@pytest.mark.parametrize("number", ["0", "601"])
def test_pictures_of_the_training_are_refused(tmp_path, number, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--num_paintings", number])
    assert "from 1 to 600" in capsys.readouterr().err


def test_a_missing_model_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="has no config.json"):
        main([str(tmp_path)])
