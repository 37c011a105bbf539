"""Checkpoints that were saved without their lexicon: no command draws a figure or prints a number without it."""

import json
import sys

import pandas as pd
import pytest

from modeling_sevlm import explain as command_line
from processing import VADLexicon
from studies import attention, figures
from tests.helpers.hub_fixtures import ROOT
from tests.helpers.images import draw
from tests.helpers.tiny import WORDS, tiny_lexicon, tiny_model, tiny_processor


sys.path.insert(0, str(ROOT / "examples"))
import gallery  # noqa: E402


@pytest.fixture(scope="module")
def restricted(tmp_path_factory):
    """A checkpoint without its lexicon, the file of the lexicon, and that of another one."""
    folder, processor = tmp_path_factory.mktemp("restricted"), tiny_processor(vad_lexicon=tiny_lexicon(False))
    model = tiny_model(processor)
    model.vision_tower.requires_grad_(True)  # the embedded pictures are enough
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    tiny_lexicon(False).save(folder / "words.tsv")
    VADLexicon({"dark": WORDS["bright"]}, name="other words", redistributable=True).save(folder / "other.tsv")
    return folder


COMMANDS = {
    "tsne": lambda model, output: figures.main(["tsne", *model, "--num_paintings", "60", "--output", str(output)]),
    "attention": lambda model, output: attention.main([*model, "--num_paintings", "24"]),
    "gallery": lambda model, output: gallery.main([*model, "--output", str(output)]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_figure_or_number_needs_the_lexicon_of_the_training(restricted, tmp_path, name):
    model, output = str(restricted / "model"), tmp_path / "figure.png"
    for arguments, problem in (
        ([], "error: the checkpoint lacks its VAD lexicon 'test words'. Pass --vad_lexicon FILE."),
        (["--vad_lexicon", str(restricted / "other.tsv")], "error: the model was trained with the VAD lexicon "),
    ):
        with pytest.raises(SystemExit) as stopped:
            COMMANDS[name]([model, *arguments], output)
        assert str(stopped.value).startswith(problem) and "\n" not in str(stopped.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tsne", "gallery"])
def test_with_the_lexicon_a_figure_is_drawn(restricted, tmp_path, name):
    COMMANDS[name](
        [str(restricted / "model"), "--vad_lexicon", str(restricted / "words.tsv")], tmp_path / "figure.png"
    )
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_explanations_without_the_lexicon_have_no_vad_and_with_it_they_do(restricted, tmp_path):
    model, picture = str(restricted / "model"), draw(tmp_path, 1)
    common = [str(picture), "--model", model, "--device", "cpu", "--vad", "--output"]
    assert command_line.main([*common, str(tmp_path / "without.csv")]) == 0
    assert pd.read_csv(tmp_path / "without.csv")["vad"].isna().all()
    lexicon = ["--vad_lexicon", str(restricted / "words.tsv")]
    assert command_line.main([*common, str(tmp_path / "with.csv"), *lexicon]) == 0
    (words,) = pd.read_csv(tmp_path / "with.csv")["vad"]
    assert isinstance(json.loads(words), list)
    with pytest.raises(SystemExit, match="^error: the model was trained with"):
        command_line.main([*common, str(tmp_path / "other.csv"), "--vad_lexicon", str(restricted / "other.tsv")])
