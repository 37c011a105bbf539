"""Emotion first: pipeline, page and command name the likeliest emotion of the scores and explain that one."""

import json

import pytest
import torch
from transformers import GenerationConfig, pipeline, set_seed

from modeling_sevlm.pipeline_sevlm import generate_ranked
from tests.helpers.pipelines import GREEDY, TASK, painting, same
from tests.helpers.tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def explain():
    """With this seed, the likeliest emotion depends on the picture."""
    processor = tiny_processor()
    return pipeline(TASK, model=tiny_model(processor, seed=3), processor=processor)


@pytest.fixture
def scored(explain, monkeypatch):
    """Makes the likeliest emotions of a batch "awe" and "something else" in turn, and counts the calls."""
    calls = []

    def scores(image_features):
        calls.append(len(image_features))
        given = torch.full((len(image_features), 9), 0.05)
        given[0::2, 1] = given[1::2, 8] = 0.6
        return given

    monkeypatch.setattr(explain.model, "emotion_scores", scores)
    return calls


def likeliest(result: dict) -> str:
    return max(result["emotion_scores"], key=result["emotion_scores"].get)


def test_forty_default_calls_give_one_answer_which_page_and_command_give_too(explain, tmp_path, capsys):
    app = pytest.importorskip("app", reason="gradio is missing: pip install -e '.[app]'")
    from app_uploads import UploadLimits
    from modeling_sevlm import explain as command_line

    explain.save_pretrained(tmp_path / "model")
    emotions = set()
    for seed in (0, 4, 8, 10):
        picture = tmp_path / f"{seed}.png"
        painting(seed).save(picture)
        answers = {json.dumps(explain(str(picture))) for _ in range(40 if seed == 0 else 2)}
        assert len(answers) == 1
        answer = json.loads(answers.pop())
        assert answer["emotion"] == likeliest(answer)
        emotions.add(answer["emotion"])

        session = app.Explainer(str(tmp_path / "model"), UploadLimits()).start_session(picture)
        assert same(session.named, answer)
        assert command_line.main([str(picture), "--model", str(tmp_path / "model"), "--device", "cpu", "--json"]) == 0
        assert same(json.loads(capsys.readouterr().out), answer)
    assert len(emotions) > 1, "the emotion depends on the picture"


@pytest.mark.parametrize("more", [{}, {"num_candidates": 3, "return_candidates": True}])
def test_samples_vary_the_words_but_never_the_emotion(explain, more):
    set_seed(0)
    answers = [explain(painting(4), do_sample=True, **more) for _ in range(10)]
    candidates = [candidate for answer in answers for candidate in answer.get("candidates", [answer])]
    assert {candidate["emotion"] for candidate in candidates} == {likeliest(answers[0])}
    assert len({candidate["explanation"] for candidate in candidates}) > 5


def test_several_candidates_are_sampled_without_being_asked_to(explain):
    answers = [explain(painting(4), num_candidates=3, return_candidates=True) for _ in range(2)]
    explanations = {one["explanation"] for answer in answers for one in answer["candidates"]}
    assert len(explanations) > 3
    assert {one["emotion"] for answer in answers for one in answer["candidates"]} == {likeliest(answers[0])}


def test_a_generation_config_is_greedy_unless_it_samples(explain):
    greedy = [explain(painting(4), generation_config=GenerationConfig(max_new_tokens=6)) for _ in range(3)]
    assert all(same(answer, explain(painting(4), **GREEDY)) for answer in greedy)
    sampling = GenerationConfig(max_new_tokens=6, do_sample=True)
    assert len({explain(painting(4), generation_config=sampling)["explanation"] for _ in range(5)}) > 1
    assert len({explain(painting(4), max_new_tokens=6, do_sample=True)["explanation"] for _ in range(5)}) > 1


def test_the_scores_are_computed_once_per_batch_and_before_the_explanation(explain, scored, monkeypatch):
    before, generate = [], explain.model.generate
    monkeypatch.setattr(explain.model, "generate", lambda **kwargs: before.append(len(scored)) or generate(**kwargs))
    answers = explain([painting(seed) for seed in range(3)], batch_size=2, max_new_tokens=3)
    assert scored == [2, 1] and before == [1, 2]
    assert [answer["emotion"] for answer in answers] == ["awe", "something else", "awe"]


@pytest.mark.parametrize("lengths", [{"max_length": 9}, {"max_new_tokens": 5}, {"max_length": 64}])
def test_an_explanation_does_not_depend_on_the_prompts_of_its_batch(explain, scored, lengths):
    pictures, options = [painting(seed) for seed in range(2)], {"eos_token_id": -1, **lengths}
    together = explain(pictures, batch_size=2, **options)
    assert [answer["emotion"] for answer in together] == ["awe", "something else"]
    alone = [explain(p, emotion=a["emotion"], **options) for p, a in zip(pictures, together, strict=True)]
    if lengths == {"max_length": 64}:  # all 64 positions; the padding of a shorter prompt takes one
        assert alone[0]["explanation"].startswith(together[0]["explanation"]) and same(together[1], alone[1])
    else:
        assert all(map(same, together, alone))


def test_generate_and_ranking_without_emotions_keep_the_open_prompt(explain):
    model, features = explain.model, explain.model.encode_images(explain.preprocess(painting(4))["pixel_values"])
    set_seed(0)
    starts = {tuple(model.generate(image_features=features, max_new_tokens=1)[0].tolist()) for _ in range(40)}
    assert len(starts) > 1 and {len(start) for start in starts} == {5}
    sequences, _ = generate_ranked(model, explain.processor, features, do_sample=False)
    assert sequences[0].tolist() == model.generate(image_features=features, do_sample=False).tolist()
