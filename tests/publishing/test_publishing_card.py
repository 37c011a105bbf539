"""The model card: origin of the model, its lexicon, its results, and the Hub's rules."""

import json

import pytest
from huggingface_hub import ModelCard

from modeling_sevlm import SEVLMForConditionalGeneration
from modeling_sevlm.model_card import render_model_card
from processing import VADLexicon
from tests.docs.test_documents import python_blocks
from tests.helpers.hub_fixtures import PROJECT, visit, write_nrc_lexicon
from tests.helpers.local_hub import card_errors
from tests.helpers.tiny import tiny_lexicon, tiny_model, tiny_processor


def test_the_card_states_the_origin_and_the_results_of_a_model(model, tmp_path):
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
    assert "/home" not in card.content and "# name\n" in card.text
    judge = {"judge": "org/judge", "judge_accuracy": 0.634, "judge_model": "lstm", "judge_text": "cleaned"}
    (tmp_path / "evaluation_results.json").write_text(json.dumps(results | judge))
    text = " ".join(render_model_card(tmp_path).text.split())
    assert "*org/judge* (lstm, trained on cleaned text), which names" in text and "63.4 % of held-out" in text

    own_data = {"data": data | {"annotations": None, "dataset": "/home/me/art"}}
    (tmp_path / "training.json").write_text(json.dumps(own_data))
    card = render_model_card(tmp_path)
    assert "On art." in card.content and "/home" not in card.content
    (tmp_path / "training.json").write_text(json.dumps({"converted": {"tag": "best-acc", "vision_model": None}}))
    card = render_model_card(tmp_path)
    assert card.data.base_model == ["jing5566/SEVLM"] and "The credit for them is theirs." in card.text


@pytest.mark.parametrize("use_vision_tower", [True, False])
@pytest.mark.parametrize("expand_inflections", [True, False])
def test_the_code_of_the_card_restores_the_lexicon(tmp_path, monkeypatch, use_vision_tower, expand_inflections):
    lexicon = VADLexicon.from_file(write_nrc_lexicon(tmp_path), expand_inflections=expand_inflections)
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
    restored = names["model"]
    assert restored.vad_lookup(ids).equal(model.vad_lookup(ids)) and "trained_with" not in restored.config.vad_lexicon


def test_another_lexicon_than_in_training_is_recorded_and_stated(processor, tmp_path, caplog):
    model, other = tiny_model(processor), VADLexicon({"dark": (1, 1, 1)}, name="other", redistributable=True)
    model.set_vad_lexicon(tiny_lexicon(), processor.tokenizer)
    assert "trained with" not in caplog.text, "the same lexicon again"
    model.set_vad_lexicon(other, processor.tokenizer)
    assert "trained with the VAD lexicon test words (11 words" in caplog.text and "reads other (1 words" in caplog.text
    model.save_pretrained(tmp_path)
    loaded = SEVLMForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.vad_lexicon["trained_with"]["num_listed"] == 11
    card = render_model_card(tmp_path, "org/name").text
    assert "trained with the lexicon *test words*" in card and "another lexicon instead, compiled" in card
    assert "in the weights: *other*" in card

    caplog.clear()
    model.set_vad_lexicon(tiny_lexicon(), processor.tokenizer)
    assert "trained_with" not in model.config.vad_lexicon and not caplog.text, "the lexicon of the training again"
    model.set_vad_lexicon(None)
    model.set_vad_lexicon(other, processor.tokenizer)
    assert "trained_with" not in model.config.vad_lexicon and not caplog.text, "for a new training"

    model.set_vad_lexicon(None)
    for lexicon in (tiny_lexicon(), VADLexicon({"dark": (1, 1, 1)}, name="restricted")):
        model.set_vad_lexicon(lexicon, processor.tokenizer)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["vad_lexicon"]
    assert saved["name"] == "test words" and saved["table"] is None, "the record without the restricted lexicon"


def test_an_outdated_card_is_replaced_on_every_branch_and_a_foreign_card_is_kept(hub, model, tmp_path):
    """A model with a restricted lexicon is pushed to the repository of a model with an open one."""
    model.save_pretrained(tmp_path / "open")
    processor = tiny_processor(vad_lexicon=tiny_lexicon(redistributable=False))
    tiny_model(processor).save_pretrained(tmp_path / "restricted", include_vad_lexicon=True)
    # In older versions of huggingface_hub `card.push_to_hub` ignores HF_ENDPOINT.
    code = """
import sys, huggingface_hub
from modeling_sevlm import SEVLMForConditionalGeneration
api = huggingface_hub.HfApi()

def upload_card(repository, card):
    api.upload_file(repo_id=repository, path_in_repo="README.md", path_or_fileobj=str(card).encode())

free, restricted = map(SEVLMForConditionalGeneration.from_pretrained, sys.argv[1:])
free.push_to_hub("org/turned")
free.push_to_hub("org/turned", revision="v2", tags=["kept"])
card = huggingface_hub.ModelCard.load("org/turned")
card.text += "A word by hand."
upload_card("org/turned", card)
free.push_to_hub("org/turned", tags=["mine"])
restricted.push_to_hub("org/turned", revision="v3")
restricted.push_to_hub("org/turned", create_pr=True)
restricted.push_to_hub("org/turned", revision="v2")
api.create_repo("org/hand")
upload_card("org/hand", "---\\nlicense: mit\\n---\\nMine.")
free.push_to_hub("org/hand")
"""
    folders = [tmp_path / "open", tmp_path / "restricted"]
    done = visit(hub, tmp_path / "cache", ["-c", code, *folders], python_path=PROJECT)
    branches = ("main", "v2", "v3", "refs/pr/1")
    cards = {name: ModelCard(hub.contents("org/turned", name)["README.md"].decode()) for name in branches}
    assert "A word by hand." in cards["main"].text and "compiled in the weights" in cards["main"].text
    assert "mine" in cards["main"].data.tags
    for name in branches[1:]:
        assert "Its owner does not allow redistribution" in cards[name].text, name
        assert not cards[name].data["sevlm"]["includes_vad_lexicon"]
    assert done.stderr.count("it described other weights or another lexicon") == 3
    assert "Mine." in hub.contents("org/hand")["README.md"].decode()
    assert "card of org/hand is kept, because this project did not write it" in done.stderr


def test_the_card_follows_the_rules_of_the_hub(model, tmp_path):
    model.save_pretrained(tmp_path)
    card = render_model_card(tmp_path, "org/name")
    assert card.data.license == "other" and card_errors(str(card)) == []
    for name, value in (("license_link", "README.md"), ("license_name", "Research only!"), ("base_model", "/a/path")):
        wrong = ModelCard(str(card))
        wrong.data[name] = value
        assert [name in error for error in card_errors(str(wrong))] == [True]
