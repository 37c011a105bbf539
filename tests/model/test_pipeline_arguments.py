"""The pipeline's arguments: emotion, candidates, lengths, settings of `generate`; defaults, and wrong ones."""

import pytest
import torch
from transformers import GenerationConfig, pipeline, set_seed

from modeling_sevlm.configuration_sevlm import ARTEMIS_EMOTIONS
from tests.helpers.pipelines import GREEDY, TASK, painting, same


@pytest.fixture
def explain(processor, model):
    return pipeline(TASK, model=model, processor=processor)


@pytest.fixture
def generated(model, monkeypatch):
    """The arguments and results of the calls of `generate`."""
    calls, generate = [], model.generate

    def recording(**kwargs):
        calls.append((kwargs, generate(**kwargs)))
        return calls[-1][1]

    monkeypatch.setattr(model, "generate", recording)
    return calls


def test_a_given_emotion_is_explained_and_an_unknown_one_refused(explain):
    results = [explain(painting(0), emotion=emotion, **GREEDY) for emotion in ("awe", "something else")]
    assert [result["emotion"] for result in results] == ["awe", "something else"]
    assert results[0]["emotion_scores"] == results[1]["emotion_scores"]
    with pytest.raises(ValueError, match="Unknown emotion 'joy'.*contentment"):
        explain(painting(0), emotion="joy")


def test_the_tower_encodes_each_image_once(explain, monkeypatch):
    seen, encode = [], explain.model.encode_images
    monkeypatch.setattr(explain.model, "encode_images", lambda x: seen.append(len(x)) or encode(x))
    explain([painting(seed) for seed in range(3)], batch_size=2, emotion="fear", num_candidates=4)
    assert seen == [2, 1]


def test_candidates_are_sorted_by_the_scores_of_their_sentences(explain, generated):
    pictures = [painting(seed) for seed in range(2)]
    set_seed(0)
    results = explain(pictures, batch_size=2, emotion="awe", num_candidates=5, return_candidates=True)
    ids = generated[0][1]
    pixel_values = explain.processor(images=pictures, return_tensors="pt")["pixel_values"]
    fits = explain.model.alignment_score(ids, pixel_values=pixel_values).tolist()
    for row, result in enumerate(results):
        own = slice(5 * row, 5 * row + 5)
        sentences = [read["explanation"] for read in explain.processor.read(ids[own])]
        assert len(set(sentences)) > 1, "the samples differ"
        expected = sorted(zip(fits[own], sentences, strict=True), reverse=True)
        given = [(one["alignment_score"], one["explanation"]) for one in result["candidates"]]
        assert [sentence for _, sentence in given] == [sentence for _, sentence in expected]
        assert [fit for fit, _ in given] == pytest.approx([fit for fit, _ in expected], abs=1e-6)
        assert (result["alignment_score"], result["explanation"]) == given[0]


def test_greedy_candidates_are_refused_and_beams_accepted(explain):
    with pytest.raises(ValueError, match="num_beams=3"):
        explain(painting(0), num_candidates=3, do_sample=False)
    options = {"num_candidates": 3, "num_beams": 3, "return_candidates": True, "emotion": "awe"}
    result = explain(painting(0), **options, **GREEDY)
    assert len({candidate["explanation"] for candidate in result["candidates"]}) == 3


def test_return_all_scores_false_returns_the_likeliest(explain):
    scores = explain(painting(0), **GREEDY)["emotion_scores"]
    assert len(scores) == 9 and sum(scores.values()) == pytest.approx(1)
    likeliest = max(scores, key=scores.get)
    assert explain(painting(0), return_all_scores=False, **GREEDY)["emotion_scores"] == {likeliest: scores[likeliest]}


def test_generation_arguments_of_a_call_are_merged_with_those_of_the_pipeline(processor, model, generated):
    explain = pipeline(TASK, model=model, processor=processor, emotion="awe", do_sample=False, max_new_tokens=3)
    explain(painting(0), generate_kwargs={"max_new_tokens": 4}, repetition_penalty=1.5)
    expected = {"do_sample": False, "max_new_tokens": 4, "repetition_penalty": 1.5}
    assert {name: generated[0][0][name] for name in expected} == expected
    assert explain(painting(0), generation_config=GenerationConfig(max_new_tokens=2))["emotion"] == "awe"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_token": 4}, "Unknown arguments.*max_new_token"),
        ({"output_scores": True}, "Unknown arguments.*output_scores"),
        ({"max_length": 7}, "max_length=7 has no room after the prompt of 7 tokens"),
        ({"max_length": 6, "emotion": "awe"}, "max_length=6 has no room after the prompt of 6 tokens"),
        ({"num_return_sequences": 4}, "num_candidates"),
        ({"num_candidates": 0}, "from 1"),
        ({"num_candidates": True}, "from 1"),
        ({"num_candidates": 2.0}, "from 1"),
        ({"guidance_scale": 1.5}, "without the image.*guidance_scale.*omit it"),
        ({"generation_config": GenerationConfig(guidance_scale=1.5)}, "guidance_scale"),
        ({"negative_prompt_ids": torch.ones(1, 1)}, "Unknown arguments.*negative_prompt_ids"),
        ({"generation_config": GenerationConfig(do_sample=True, num_return_sequences=2)}, "num_candidates"),
        # 64 positions; the longest prompt is `<bos> the emotion is something else because`.
        ({"max_new_tokens": 58}, "max_new_tokens=58 .*at most 57"),
        ({"max_new_tokens": 59, "emotion": "awe"}, "max_new_tokens=59 .*at most 58"),
        ({"generation_config": GenerationConfig(max_length=65)}, "max_length=65 .*at most 64"),
    ],
)
def test_wrong_arguments_are_refused_by_name(explain, arguments, message):
    with pytest.raises(ValueError, match=message):
        explain(painting(0), **arguments)


LONG = {"do_sample": False, "eos_token_id": -1}


@pytest.mark.parametrize(
    ("defaults", "arguments", "length"),
    [
        ({}, {}, 31),  # the checkpoint's 25 new tokens and a prompt of 6
        ({}, {"max_length": 8}, 8),
        ({}, {"max_length": 8, "emotion": "awe"}, 8),
        ({}, {"max_length": 8, "num_candidates": 2, "num_beams": 2}, 8),
        ({}, {"generate_kwargs": {"max_length": 8}}, 8),
        ({}, {"generation_config": GenerationConfig(max_length=8, **LONG)}, 8),
        ({}, {"generation_config": GenerationConfig(max_new_tokens=8, **LONG)}, 14),
        ({}, {"max_length": 8, "generation_config": GenerationConfig(max_new_tokens=9, **LONG)}, 8),
        ({"max_length": 8}, {}, 8),
        ({"max_length": 8}, {"max_new_tokens": 8}, 14),
        ({"max_length": 8}, {"max_length": None}, 31),
        ({"max_new_tokens": 9}, {"max_length": 8}, 8),
        ({"max_new_tokens": 9}, {"max_length": None}, 15),
        ({"max_new_tokens": 9}, {"generation_config": GenerationConfig(max_length=8, **LONG)}, 8),
        ({"generation_config": GenerationConfig(max_length=8, **LONG)}, {}, 8),
        ({"generation_config": GenerationConfig(max_new_tokens=9, **LONG)}, {"max_length": 8}, 8),
    ],
)
def test_a_sentence_has_the_length_that_was_asked_for_last(processor, model, generated, defaults, arguments, length):
    explain = pipeline(TASK, model=model, processor=processor, **defaults)
    has_config = "generation_config" in {**defaults, **arguments}
    explain(painting(0), **({} if has_config else LONG), **arguments)
    assert generated[-1][1].shape[1] == length


def test_all_positions_can_be_filled(processor, model):
    explain = pipeline(TASK, model=model, processor=processor, emotion="something else")
    options = {"do_sample": False, "eos_token_id": -1}
    assert explain(painting(0), max_new_tokens=57, **options)["emotion"] == "something else"
    with pytest.raises(ValueError, match="max_new_tokens=58 .*at most 57"):
        explain(painting(0), max_new_tokens=58, **options)
    assert explain(painting(0), max_new_tokens=58, emotion="awe", **options)["emotion"] == "awe"


def test_none_resets_a_default_of_the_pipeline(processor, model, generated):
    defaults = {"emotion": "awe", "num_candidates": 3, "max_new_tokens": 3, "return_candidates": True}
    explain = pipeline(TASK, model=model, processor=processor, return_all_scores=False, timeout=1, **defaults)
    result = explain(painting(0))
    assert len(result["candidates"]) == 3 and result["emotion"] == "awe"
    reset = dict.fromkeys([*defaults, "return_all_scores", "timeout"])
    result = explain(painting(0), **reset)
    assert "candidates" not in result and len(result["emotion_scores"]) == 9 and result["emotion"] != "awe"
    arguments = generated[1][0]
    assert "max_new_tokens" not in arguments and arguments["num_return_sequences"] == 1


def test_generation_stops_at_a_stop_string(explain):
    wholes = {
        emotion: explain(painting(0), emotion=emotion, do_sample=False)["explanation"] for emotion in ARTEMIS_EMOTIONS
    }
    emotion, whole = max(wholes.items(), key=lambda item: len(set(item[1].split())))
    word = whole.split()[1]
    stopped = explain(painting(0), emotion=emotion, do_sample=False, stop_strings=[word])["explanation"]
    assert whole.startswith(stopped) and stopped.endswith(word) and len(stopped) < len(whole)


def test_a_generation_config_that_returns_dictionaries_works_and_is_not_changed(explain):
    config = GenerationConfig(**GREEDY, return_dict_in_generate=True, output_scores=True)
    assert same(explain(painting(0), generation_config=config), explain(painting(0), **GREEDY))
    assert config.return_dict_in_generate
