"""The pipeline "art-emotion-explanation": its inputs, results and errors, saved folders, and the Hub."""

import base64
import json
import math
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, GenerationConfig, pipeline, set_seed
from transformers.pipelines.pt_utils import KeyDataset

import modeling_sevlm
from modeling_sevlm.configuration_sevlm import ARTEMIS_EMOTIONS
from processing import VADLexicon
from tests.helpers.hub_fixtures import COMPLETE, PROJECT, answers, has_rows, visit
from tests.helpers.tiny import IMAGE_SIZE, WORDS, tiny_lexicon, tiny_model, tiny_processor


TASK = "art-emotion-explanation"
GREEDY = {"do_sample": False, "max_new_tokens": 6}


def painting(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8))


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


def same(first: dict, second: dict) -> bool:
    """Equal except for the last digits, which depend on the batch size."""
    exact = all(first[name] == second[name] for name in ("emotion", "explanation", "vad"))
    return exact and first["alignment_score"] == pytest.approx(second["alignment_score"], abs=1e-6)


def test_a_folder_needs_no_trust_and_gives_the_results_of_model_and_processor(processor, model, checkpoint):
    explain = pipeline(TASK, model=checkpoint)
    assert type(explain) is modeling_sevlm.SEVLMPipeline
    inputs = processor(images=painting(0), return_tensors="pt")
    ids = model.generate(**inputs, **GREEDY)
    result = explain(painting(0), **GREEDY)
    assert list(result) == ["emotion", "emotion_scores", "explanation", "alignment_score", "vad"]
    assert {name: result[name] for name in ("emotion", "explanation")} == processor.read(ids)[0]
    scores = model.emotion_scores(pixel_values=inputs["pixel_values"])[0].tolist()
    assert result["emotion_scores"] == pytest.approx(dict(zip(model.config.emotions, scores, strict=True)))
    fit = model.alignment_score(ids, pixel_values=inputs["pixel_values"]).item()
    assert result["alignment_score"] == pytest.approx(fit, abs=1e-6)


def every_input(folder: Path) -> dict:
    pictures = [painting(seed) for seed in range(3)]
    paths = [folder / f"{seed}.png" for seed in range(3)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    table = datasets.Dataset.from_dict({"image": [str(path) for path in paths], "name": ["a", "b", "c"]})
    table = table.cast_column("image", datasets.Image())
    return {
        "pictures": pictures,
        "tuple": tuple(pictures),
        "paths": [str(path) for path in paths],
        "path objects": paths,
        "arrays": [np.asarray(picture) for picture in pictures],
        "base64": [base64.b64encode(path.read_bytes()).decode() for path in paths],
        "generator": (picture for picture in pictures),
        "dataset": table,
        "column": table["image"],
        "streaming dataset": table.to_iterable_dataset(),
        "KeyDataset": KeyDataset(table, "image"),
        "rows": [{"image": picture} for picture in pictures],
    }


@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_kind_of_input_gives_the_same(explain, tmp_path, batch_size):
    assert explain([]) == []
    expected = [explain(painting(seed), emotion="awe", **GREEDY) for seed in range(3)]
    assert not same(expected[0], expected[1]), "different images give different results"
    for kind, inputs in every_input(tmp_path).items():
        results = list(explain(inputs, emotion="awe", batch_size=batch_size, **GREEDY))
        assert len(results) == 3, kind
        assert all(map(same, results, expected)), kind


SEVERAL = {
    "nested lists": lambda pictures: [[pictures[0], pictures[1]], [pictures[2]]],
    "rows with lists": lambda pictures: [{"image": pictures[:2]}, {"image": pictures[2]}],
    "generator of lists": lambda pictures: (group for group in [pictures[:2], pictures[2:]]),
    "list of stacks": lambda pictures: [np.stack([np.asarray(one) for one in pictures[:2]]), pictures[2]],
    "stacked array": lambda pictures: np.stack([np.asarray(one) for one in pictures[:2]]),
    "stacked tensor": lambda pictures: torch.tensor(np.stack([np.asarray(one) for one in pictures[:2]])),
    "prepared": lambda pictures: {"pixel_values": torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE)},
    "prepared in rows": lambda pictures: [{"pixel_values": torch.zeros(1, 2, 3, IMAGE_SIZE, IMAGE_SIZE)}] * 2,
}


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("kind", SEVERAL)
def test_several_images_in_place_of_one_are_refused(explain, kind, batch_size):
    inputs = SEVERAL[kind]([painting(seed) for seed in range(3)])
    with pytest.raises(ValueError, match="One image at a time: this input holds 2. Pass them as a flat list."):
        list(explain(inputs, batch_size=batch_size, **GREEDY))


def test_prepared_images_need_no_batch_axis(explain):
    prepared = explain.preprocess(painting(0))
    assert prepared["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    expected = explain(painting(0), **GREEDY)
    flat = {"pixel_values": prepared["pixel_values"][0].numpy()}
    assert all(same(result, expected) for result in explain([prepared, flat], batch_size=2, **GREEDY))


def test_a_url_is_fetched(explain, tmp_path):
    painting(1).save(tmp_path / "painting.png")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        result = explain(f"{address}/painting.png", emotion="awe", timeout=20, **GREEDY)
        assert same(result, explain(painting(1), emotion="awe", **GREEDY))
        with pytest.raises(ValueError, match="Cannot read the picture 'http.*nowhere.png': the server answers 404"):
            explain(f"{address}/nowhere.png")
        server.shutdown()


def test_a_given_emotion_is_explained_and_an_unknown_one_refused(explain):
    results = [explain(painting(0), emotion=emotion, **GREEDY) for emotion in ("awe", "something else")]
    assert [result["emotion"] for result in results] == ["awe", "something else"]
    assert results[0]["emotion_scores"] == results[1]["emotion_scores"]
    with pytest.raises(ValueError, match="Unknown emotion 'joy'.*contentment"):
        explain(painting(0), emotion="joy")


def test_the_tower_encodes_each_image_once(explain, monkeypatch):
    seen, encode = [], explain.model.get_image_features
    monkeypatch.setattr(explain.model, "get_image_features", lambda x: seen.append(len(x)) or encode(x))
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
        ({"num_return_sequences": 4}, "num_candidates"),
        ({"num_candidates": 0}, "from 1"),
        ({"num_candidates": True}, "from 1"),
        ({"num_candidates": 2.0}, "from 1"),
        ({"guidance_scale": 1.5}, "without the image.*guidance_scale.*omit it"),
        ({"generation_config": GenerationConfig(guidance_scale=1.5)}, "guidance_scale"),
        ({"negative_prompt_ids": torch.ones(1, 1)}, "Unknown arguments.*negative_prompt_ids"),
        ({"generation_config": GenerationConfig(do_sample=True, num_return_sequences=2)}, "num_candidates"),
        # 64 positions; the prompt is `<bos> the emotion is`, and `something else because`.
        ({"max_new_tokens": 61}, "max_new_tokens=61 .*at most 60"),
        ({"generation_config": GenerationConfig(max_length=65)}, "max_length=65 .*at most 64"),
    ],
)
def test_wrong_arguments_are_refused_by_name(explain, arguments, message):
    with pytest.raises(ValueError, match=message):
        explain(painting(0), **arguments)


def test_all_positions_can_be_filled(processor, model):
    explain = pipeline(TASK, model=model, processor=processor, emotion="something else")
    options = {"do_sample": False, "eos_token_id": -1}
    assert explain(painting(0), max_new_tokens=57, **options)["emotion"] == "something else"
    with pytest.raises(ValueError, match="max_new_tokens=58 .*at most 57"):
        explain(painting(0), max_new_tokens=58, **options)
    assert explain(painting(0), max_new_tokens=60, emotion=None, **options)["emotion_scores"]


def test_none_resets_a_default_of_the_pipeline(processor, model, generated):
    defaults = {"emotion": "awe", "num_candidates": 3, "max_new_tokens": 3, "return_candidates": True}
    explain = pipeline(TASK, model=model, processor=processor, return_all_scores=False, timeout=1, **defaults)
    assert len(explain(painting(0))["candidates"]) == 3 and "input_ids" in generated[0][0]
    reset = dict.fromkeys([*defaults, "return_all_scores", "timeout"])
    result = explain(painting(0), **reset)
    assert "candidates" not in result and len(result["emotion_scores"]) == 9
    arguments = generated[1][0]
    assert not arguments.keys() & {"input_ids", "max_new_tokens"} and arguments["num_return_sequences"] == 1


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


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("it's a 'cold' thing, don\u2019t!", ["it's", "a", "cold", "thing", "don\u2019t"]),
        ("(dark-golden) \u2026 calm's - 'tis", ["dark", "golden", "calm's", "tis"]),
        ("caf\u00e9 \u6d77\u5f88\u7f8e 1890s \U0001f600", ["caf\u00e9", "\u6d77\u5f88\u7f8e", "1890s"]),
        ("the Dark funeral, a fun zero; cold", ["the", "Dark", "funeral", "a", "fun", "zero", "cold"]),
    ],
)
def test_words_keep_their_spelling_and_have_their_vad(monkeypatch, sentence, words):
    lexicon = VADLexicon(WORDS | {"zero": (0, 0, 0)}, name="test words", redistributable=True)
    processor = tiny_processor(vad_lexicon=lexicon)
    explain = pipeline(TASK, model=tiny_model(processor), processor=processor)
    row = processor(emotions=["sadness"], explanations=[sentence], return_tensors="pt")["input_ids"]
    monkeypatch.setattr(explain.model, "generate", lambda **kwargs: row)
    entries = explain(painting(0))["vad"]
    assert [entry["word"] for entry in entries] == words
    for word, *given in map(dict.values, entries):
        assert given == pytest.approx(lexicon.get(word.lower().removesuffix("'s"), (None,) * 3)), word


def test_a_sentence_without_explanation_has_no_words(explain, processor, monkeypatch):
    tokens = processor(emotions="awe", return_tensors="pt")["input_ids"]
    for row in (tokens, tokens[:, :-1]):
        monkeypatch.setattr(explain.model, "generate", lambda row=row, **kwargs: row)
        result = explain(painting(0))
        assert result["vad"] == [] and result["explanation"] == ""


def test_without_lexicon_and_head_vad_and_alignment_score_are_none():
    processor = tiny_processor(vad_lexicon=None)
    explain = pipeline(TASK, model=tiny_model(processor, contrastive_negatives=[]), processor=processor)
    for result in explain([painting(0), painting(1)], batch_size=2, emotion="awe"):
        assert result["vad"] is None and result["alignment_score"] is None and result["explanation"]
    with pytest.raises(ValueError, match="no contrastive head"):
        explain(painting(0), num_candidates=2)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (17, "Cannot read the picture .int"),
        ("nowhere/painting.jpg", "Cannot read the picture .*painting.jpg.*no such file"),
        (__file__, "Cannot read the picture .*test_pipeline.py"),
        ({"picture": 17}, "'image'.*picture"),
        (datasets.Dataset.from_dict({"photo": ["a.jpg"]}), "photo.*KeyDataset"),
    ],
)
def test_an_input_that_is_not_an_image_is_refused_by_name(explain, inputs, message):
    with pytest.raises(ValueError, match=message):
        list(explain(inputs))


def test_a_pipeline_saves_a_complete_folder(explain, tmp_path):
    explain.save_pretrained(tmp_path)
    assert {"pipeline_sevlm.py", "processing_sevlm.py", "vad_lexicon.tsv"} <= set(os.listdir(tmp_path))
    again = pipeline(TASK, model=str(tmp_path))
    assert same(again(painting(0), **GREEDY), explain(painting(0), **GREEDY))
    # Saving the loaded config keeps the entry that other machines need.
    again.model.config.save_pretrained(tmp_path / "config")
    known = json.loads((tmp_path / "config" / "config.json").read_text())["custom_pipelines"]
    assert known == {TASK: {"impl": "pipeline_sevlm.SEVLMPipeline", "pt": ["AutoModelForImageTextToText"]}}


def test_a_lexicon_that_may_not_be_redistributed_is_not_saved(tmp_path):
    processor = tiny_processor(vad_lexicon=tiny_lexicon(redistributable=False))
    explain = pipeline(TASK, model=tiny_model(processor), processor=processor)
    assert explain(painting(0), **GREEDY)["vad"] is not None
    explain.save_pretrained(tmp_path / "public")
    assert not (tmp_path / "public" / "vad_lexicon.tsv").exists()
    assert pipeline(TASK, model=str(tmp_path / "public"))(painting(0))["vad"] is None
    explain.save_pretrained(tmp_path / "private", include_vad_lexicon=True)
    assert (tmp_path / "private" / "vad_lexicon.tsv").exists()
    assert pipeline(TASK, model=str(tmp_path / "private"))(painting(0))["vad"] is not None


def test_other_models_are_refused(explain, processor, monkeypatch):
    with pytest.raises(ValueError, match="no vision tower: convert it again"):
        pipeline(TASK, model=tiny_model(processor, use_vision_tower=False), processor=processor)
    monkeypatch.setattr(type(explain.model.config), "model_type", "blip")
    with pytest.raises(ValueError, match="not for 'blip'"):
        pipeline(TASK, model=explain.model, processor=processor)


def test_half_precision_gives_no_nan(processor, model):
    explain = pipeline(TASK, model=model.to(torch.bfloat16), processor=processor)
    result = explain(painting(0), emotion="awe", **GREEDY)
    assert sum(result["emotion_scores"].values()) == pytest.approx(1, abs=1e-3)
    assert math.isfinite(result["alignment_score"])


def test_image_text_to_text_continues_prompts(processor, model, checkpoint):
    ask = pipeline("image-text-to-text", model=checkpoint)
    emotions, pictures = ["awe", "something else"], [painting(seed) for seed in range(2)]
    # The prompts differ in length, so they are padded on the left.
    inputs = processor(images=pictures, emotions=emotions, return_tensors="pt")
    ids = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    expected = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    prompts = [f"{processor.prompt} {emotion} because" for emotion in emotions]
    options = {"generate_kwargs": GREEDY, "return_full_text": False}
    given = ask(pictures, text=prompts, **options)
    assert [one["generated_text"] for one in given] == expected and expected[0] != expected[1]
    assert ask(pictures[0], text=prompts[0], **options)[0]["generated_text"] == expected[0] != ""
    stream = ask(({"images": picture, "text": prompts[0]} for picture in pictures), batch_size=2, **options)
    assert next(iter(stream))[0]["generated_text"] == expected[0]


REMOTE = """
import json, sys
from transformers import pipeline

folder, image, again = sys.argv[1:]
assert sys.modules.get("modeling_sevlm") is sys.modules.get("processing") is None
options = {"emotion": "awe", "do_sample": False, "max_new_tokens": 6}
explain = pipeline("art-emotion-explanation", model=folder, trust_remote_code=True, local_files_only=True)
assert type(explain).__module__.startswith("transformers_modules.")
assert "pipeline_sevlm.SEVLMPipeline" in str(explain.model.config)
results = [explain(image, **options)]
explain.save_pretrained(again)
results += pipeline("art-emotion-explanation", model=again, trust_remote_code=True)([image], **options)
results.append(pipeline(model=again, trust_remote_code=True)(image, **options))
ask = pipeline("image-text-to-text", model=again, trust_remote_code=True)
ask(image, text="the emotion is")
print(json.dumps(results))
"""


def test_a_process_without_the_package_runs_the_pipeline_of_a_folder(explain, checkpoint, tmp_path):
    painting(3).save(tmp_path / "painting.png")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", REMOTE, checkpoint, str(tmp_path / "painting.png"), str(tmp_path / "again")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = explain(painting(3), emotion="awe", **GREEDY)
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == 3 and all(same(result, expected) for result in results)
    for result in results:
        assert result["emotion_scores"] == pytest.approx(expected["emotion_scores"], abs=1e-6)


def test_the_package_hides_custom_pipelines_and_saves_them(checkpoint):
    config = AutoConfig.from_pretrained(checkpoint)
    assert config.custom_pipelines == {} and TASK in config.to_dict()["custom_pipelines"]


PUBLISH = """
import sys
import modeling_sevlm, processing
from modeling_sevlm.__main__ import main
from transformers import pipeline

folder, image = sys.argv[1:]
commit = pipeline("art-emotion-explanation", model=folder).push_to_hub("org/pipeline", commit_message="Two parts")
assert commit.commit_message == "Two parts"
again = ["--model", "org/pipeline", "--revision", "main", "--emotion", "awe", "--max_new_tokens", "6", "--json"]
sys.exit(main([image, *again]))
"""
VISIT = """
import json, sys
from transformers import pipeline

assert sys.modules.get("modeling_sevlm") is sys.modules.get("processing") is None
explain = pipeline("art-emotion-explanation", model="org/pipeline", trust_remote_code=True, revision="main")
print(json.dumps(explain(sys.argv[1], emotion="awe", do_sample=False, max_new_tokens=6)))
"""
PUBLISH_AGAIN = """
import sys
from tests.helpers.tiny import tiny_lexicon, tiny_model, tiny_processor
from transformers import pipeline

processor = tiny_processor(vad_lexicon=tiny_lexicon(redistributable=False))
explain = pipeline("art-emotion-explanation", model=tiny_model(processor), processor=processor)
way = {"with lexicon": {"include_vad_lexicon": True}, "proposed": {"create_pr": True}}.get(sys.argv[1], {})
explain.push_to_hub("org/pipeline", **way)
"""


@pytest.fixture(scope="module")
def published(hub, checkpoint, tmp_path_factory):
    """An image and its result from the pipeline pushed to org/pipeline, with a lexicon that may be redistributed."""
    work = tmp_path_factory.mktemp("published")
    painting(3).save(work / "painting.png")
    return work / "painting.png", visit(
        hub, work / "publisher", ["-c", PUBLISH, checkpoint, work / "painting.png"], python_path=PROJECT
    )


def test_a_pipeline_pushed_to_the_hub_runs_from_there(hub, explain, published, tmp_path):
    image, here = published
    there = visit(hub, tmp_path / "visitor", ["-c", VISIT, image])
    expected = explain(painting(3), emotion="awe", **GREEDY)
    assert same(answers(here), expected) and same(answers(there), expected)
    assert set(hub.listing("org/pipeline")) == {*COMPLETE, "vad_lexicon.tsv"}
    card = hub.contents("org/pipeline")["README.md"].decode()
    assert "pipeline_tag: image-text-to-text" in card and "# pipeline\n" in card and "*test words*" in card


@pytest.mark.parametrize("way", ["proposed", "without lexicon", "with lexicon"])
def test_a_second_push_removes_a_lexicon_that_may_not_be_redistributed(hub, published, tmp_path, way):
    before = hub.listing("org/pipeline")
    done = visit(hub, tmp_path, ["-c", PUBLISH_AGAIN, way], python_path=PROJECT)
    assert done.returncode == 0, done.stderr[-4000:]
    revision = "refs/pr/1" if way == "proposed" else "main"
    assert set(hub.listing("org/pipeline", revision)) == {
        *COMPLETE,
        *(["vad_lexicon.tsv"] * (way == "with lexicon")),
    }
    weights = hub.contents("org/pipeline", revision)["model.safetensors"]
    assert has_rows(weights, "model.safetensors") == (way == "with lexicon")
    assert way != "proposed" or hub.listing("org/pipeline") == before
