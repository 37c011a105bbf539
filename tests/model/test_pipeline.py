"""The pipeline "art-emotion-explanation": its inputs and results, saved folders, and the Hub."""

import base64
import io
import json
import math
import os
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoConfig, pipeline
from transformers.pipelines.pt_utils import KeyDataset

import modeling_sevlm
from processing import VADLexicon
from tests.helpers.hub_fixtures import COMPLETE, PROJECT, answers, has_rows, visit
from tests.helpers.pipelines import GREEDY, TASK, painting, same
from tests.helpers.tiny import IMAGE_SIZE, WORDS, tiny_lexicon, tiny_model, tiny_processor


@pytest.fixture
def explain(processor, model):
    return pipeline(TASK, model=model, processor=processor)


def test_a_folder_needs_no_trust_and_gives_the_results_of_model_and_processor(processor, model, checkpoint):
    explain = pipeline(TASK, model=checkpoint)
    assert type(explain) is modeling_sevlm.SEVLMPipeline
    inputs = processor(images=painting(0), return_tensors="pt")
    scores = model.emotion_scores(pixel_values=inputs["pixel_values"])[0].tolist()
    likeliest = max(zip(scores, model.config.emotions, strict=True))[1]
    ids = model.generate(**processor(images=painting(0), emotions=likeliest, return_tensors="pt"), **GREEDY)
    result = explain(painting(0), **GREEDY)
    assert list(result) == ["emotion", "emotion_scores", "explanation", "alignment_score", "vad"]
    assert {name: result[name] for name in ("emotion", "explanation")} == processor.read(ids)[0]
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
    rows = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    undecoded = table.cast_column("image", datasets.Image(decode=False))
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    addresses = [f"zip://{path.name}::{folder / 'all.zip'}" for path in paths]
    zipped = datasets.Dataset.from_dict({"image": addresses}).cast_column("image", datasets.Image())
    return {
        "bytes": [row["bytes"] for row in rows],
        "bytearrays": [bytearray(row["bytes"]) for row in rows],
        "memory files": [io.BytesIO(row["bytes"]) for row in rows],
        "files": [open(path, "rb") for path in paths],
        "undecoded images": rows,
        "undecoded paths": [{"bytes": None, "path": str(path)} for path in paths],
        "undecoded rows": [{"image": row} for row in rows],
        "undecoded dataset": undecoded,
        "undecoded column": undecoded["image"],
        "undecoded streaming dataset": undecoded.to_iterable_dataset(),
        "undecoded KeyDataset": KeyDataset(undecoded, "image"),
        "addresses": addresses,
        "zipped dataset": zipped,
        "zipped streaming dataset": zipped.to_iterable_dataset(),
        "zipped undecoded dataset": zipped.cast_column("image", datasets.Image(decode=False)),
        "pictures": pictures,
        "tuple": tuple(pictures),
        "table of bytes": pd.DataFrame({"image": [row["bytes"] for row in rows], "name": ["a", "b", "c"]}),
        "table of paths": pd.DataFrame({"image": paths}, index=[5, 6, 7]),
        "column of a table": pd.Series(pictures),
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
        (pd.DataFrame({"photo": ["a.jpg"], 7: [0]}), r"no column 'image' but photo, 7: pass table.COLUMN."),
        (pd.DataFrame({"image": ["nowhere/a.jpg"]}), "Cannot read the picture 'nowhere/a.jpg'.*no such file"),
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
    with pytest.raises(ValueError, match="no `emotion_token_ids`, .*processor.token_layout"):
        pipeline(TASK, model=tiny_model(processor, emotion_token_ids=None), processor=processor)
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
from tests.helpers.pipelines import GREEDY, TASK, painting, same
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
