# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The model card: where a model comes from, which lexicon it knows, what the Hub demands of it."""

import json

import pytest
from huggingface_hub import ModelCard

from evaluation.report import PAPER_ROWS
from modeling_sevlm import SEVLMForConditionalGeneration
from modeling_sevlm.model_card import PAPER, render_model_card
from processing import VADLexicon
from tests.docs.test_documents import python_blocks
from tests.helpers.hub_fixtures import PROJECT, visit
from tests.helpers.local_hub import card_errors
from tests.helpers.tiny import WORDS, tiny_lexicon, tiny_model, tiny_processor


def test_the_card_tells_where_a_model_comes_from_and_what_it_scores(tmp_path):
    model = tiny_model(tiny_processor())
    model.config.vision_config._name_or_path = "openai/clip-vit-base-patch16"
    model.config.text_config._name_or_path = "distilgpt2"
    model.save_pretrained(tmp_path)
    data = {"annotations": ["/home/someone/artemis.csv"], "version": "v1", "dataset": None}
    results = {"data": data, "accuracy": 0.61, "bleu_4": 0.09, "num_paintings": 10, "num_dominant": 5, "judge": None}
    results |= {"seeds": [0], "arguments": {"split": "test", "num_candidates": 1, "do_sample": False}}
    (tmp_path / "evaluation_results.json").write_text(json.dumps(results))
    (tmp_path / "training.json").write_text(json.dumps({"data": data, "arguments": {"learning_rate": 2e-5}}))
    card = render_model_card(tmp_path, "org/name")
    assert card.data.license == "other" and card.data.datasets == ["artemis"]
    assert card.data.base_model == ["openai/clip-vit-base-patch16", "distilgpt2"]
    assert [(r.metric_name, r.metric_value) for r in card.data.eval_results] == [("ACC", 61.0), ("B4", 9.0)]
    for line in ("| this model | 61.0 | 9.0 |", "| paper, SEVLM | 65.6 | 9.2 |", "| learning rate | 2e-05 |"):
        assert line in card.text
    assert "/home" not in card.content

    (tmp_path / "training.json").write_text(
        json.dumps({"data": data | {"annotations": None, "dataset": "/home/me/art"}})
    )
    assert "On art." in (told := render_model_card(tmp_path).content) and "/home" not in told
    (tmp_path / "training.json").write_text(json.dumps({"converted": {"tag": "best-acc", "vision_model": None}}))
    told = render_model_card(tmp_path)
    assert told.data.base_model == ["jing5566/SEVLM"] and "The credit for them is theirs." in told.text


def test_the_card_and_the_evaluation_quote_the_same_paper():
    for version, rows in PAPER.items():
        assert list(rows.values()) == [PAPER_ROWS[version][name] for name in ("Baseline", "SEVLM")]


@pytest.fixture
def nrc_file(tmp_path):
    """A list in the form of NRC-VAD, which may not be passed on."""
    lines = ["\t".join([word, *(f"{(value + 1) / 2:.3f}" for value in row)]) for word, row in WORDS.items()]
    path = tmp_path / "NRC-VAD-Lexicon.txt"
    path.write_text("\n".join(["Word\tValence\tArousal\tDominance", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("use_vision_tower", [True, False])
@pytest.mark.parametrize("expand_inflections", [True, False])
def test_the_block_that_restores_a_lexicon_restores_the_same(
    nrc_file, tmp_path, monkeypatch, caplog, use_vision_tower, expand_inflections
):
    """With and without a vision tower, with and without inflected forms."""
    lexicon = VADLexicon.from_file(nrc_file, expand_inflections=expand_inflections)
    processor = tiny_processor(vad_lexicon=lexicon)
    model = tiny_model(processor, use_vision_tower=use_vision_tower)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    *first, last = python_blocks(str(render_model_card(tmp_path / "model", "model")))
    if use_vision_tower:
        first = [code.partition("inputs =")[0] for code in first]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join([*first, last]).replace(", trust_remote_code=True", ""), names)
    assert names["lexicon"].to_metadata() == lexicon.to_metadata()
    ids = processor(emotions=["awe"], explanations=["the dark sea looks cold"], return_tensors="pt")["input_ids"]
    assert names["model"].vad_lookup(ids).equal(model.vad_lookup(ids)) and "trained_with" not in str(
        names["model"].config.vad_lexicon
    )


def test_a_lexicon_that_the_model_was_not_trained_with_is_told_of(processor, tmp_path, caplog):
    model, other = tiny_model(processor), VADLexicon({"dark": (1, 1, 1)}, name="other", redistributable=True)
    model.set_vad_lexicon(tiny_lexicon(), processor.tokenizer)
    assert "trained with" not in caplog.text, "the same one again"
    model.set_vad_lexicon(other, processor.tokenizer)
    assert "trained with the VAD lexicon test words (11 words" in caplog.text and "reads other (1 words" in caplog.text
    model.save_pretrained(tmp_path)
    assert (
        SEVLMForConditionalGeneration.from_pretrained(tmp_path).config.vad_lexicon["trained_with"]["num_listed"] == 11
    )
    card = render_model_card(tmp_path, "org/name").text
    assert "trained with the lexicon *test words*" in card and "in its place, compiled in the weights: *other*" in card

    caplog.clear()
    model.set_vad_lexicon(tiny_lexicon(), processor.tokenizer)
    assert "trained_with" not in model.config.vad_lexicon and not caplog.text, "as it was"
    model.set_vad_lexicon(None)
    model.set_vad_lexicon(other, processor.tokenizer)
    assert "trained_with" not in model.config.vad_lexicon and not caplog.text, "to train anew"


def test_a_model_that_reads_another_lexicon_than_its_own_is_saved_with_the_record_of_its_own(processor, tmp_path):
    model = tiny_model(processor)
    model.set_vad_lexicon(VADLexicon({"dark": (1, 1, 1)}, name="restricted"), processor.tokenizer)
    model.save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())["vad_lexicon"]
    assert about["name"] == "test words" and about["table"] is None


# Not `card.push_to_hub`: in older huggingface_hub it asks https://huggingface.co, whatever HF_ENDPOINT says.
BY_HAND = """
import huggingface_hub

def by_hand(repository, card):
    there = {"repo_id": repository, "path_in_repo": "README.md"}
    huggingface_hub.HfApi().upload_file(path_or_fileobj=str(card).encode(), **there)
"""


def test_a_card_that_says_what_is_not_true_any_more_is_replaced(hub, tmp_path):
    """A repository of a model with an open lexicon gets one with a lexicon that may not travel; also on a branch."""
    tiny_model(tiny_processor()).save_pretrained(tmp_path / "open")
    processor = tiny_processor(vad_lexicon=tiny_lexicon(redistributable=False))
    tiny_model(processor).save_pretrained(tmp_path / "restricted", include_vad_lexicon=True)
    code = """
import sys, huggingface_hub
from modeling_sevlm import SEVLMForConditionalGeneration
free, restricted = map(SEVLMForConditionalGeneration.from_pretrained, sys.argv[1:])
free.push_to_hub("org/turned")
free.push_to_hub("org/turned", revision="v2", tags=["kept"])
card = huggingface_hub.ModelCard.load("org/turned")
card.text += "A word by hand."
by_hand("org/turned", card)
free.push_to_hub("org/turned", tags=["mine"])
restricted.push_to_hub("org/turned", revision="v3")
restricted.push_to_hub("org/turned", create_pr=True)
restricted.push_to_hub("org/turned", revision="v2")
print(huggingface_hub.HfApi().list_repo_refs("org/turned").branches)
"""
    folders = [tmp_path / "open", tmp_path / "restricted"]
    done = visit(hub, tmp_path / "cache", ["-c", BY_HAND + code, *folders], python_path=PROJECT)
    assert done.returncode == 0, done.stderr[-4000:]
    cards = {
        name: ModelCard(hub.contents("org/turned", name)["README.md"].decode())
        for name in ("main", "v2", "v3", "refs/pr/1")
    }
    assert "A word by hand." in cards["main"].text and "compiled in the weights" in cards["main"].text
    assert "mine" in cards["main"].data.tags
    for name in ("v2", "v3", "refs/pr/1"):
        assert "Its owner does not allow it to be passed on" in cards[name].text, name
        assert not cards[name].data["sevlm"]["includes_vad_lexicon"]
    assert done.stderr.count("spoke of other weights or another lexicon") == 3


def test_a_card_that_somebody_else_wrote_stays(hub, tmp_path):
    tiny_model(tiny_processor()).save_pretrained(tmp_path / "model")
    code = """
import sys, huggingface_hub
from modeling_sevlm import SEVLMForConditionalGeneration
huggingface_hub.HfApi().create_repo("org/hand")
by_hand("org/hand", "---\\nlicense: mit\\n---\\nMine.")
SEVLMForConditionalGeneration.from_pretrained(sys.argv[1]).push_to_hub("org/hand")
"""
    done = visit(hub, tmp_path / "cache", ["-c", BY_HAND + code, tmp_path / "model"], python_path=PROJECT)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Mine." in hub.contents("org/hand", "main")["README.md"].decode()
    assert "is none that this project wrote and stays as it is" in done.stderr


def test_the_hubs_rules_find_what_is_wrong_with_a_card(processor, tmp_path):
    tiny_model(processor).save_pretrained(tmp_path)
    card = render_model_card(tmp_path, "org/name")
    assert card.data.license == "other" and card_errors(str(card)) == []
    for name, value in {
        "license_link": "README.md",
        "license_name": "Research only!",
        "base_model": "/a/path",
    }.items():
        wrong = ModelCard(str(card))
        wrong.data[name] = value
        assert [name in error for error in card_errors(str(wrong))] == [True]
