"""Names and pictures that the pipeline cannot use: suggestions, skipped pictures, and errors in one line."""

from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import AutoModel, GenerationConfig, pipeline

from modeling_sevlm.loading import open_pipeline
from tests.helpers.pipelines import GREEDY, TASK, painting, same
from tests.helpers.tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def explain():
    processor = tiny_processor()
    return pipeline(TASK, model=tiny_model(processor), processor=processor)


@pytest.mark.parametrize("name", ["Something_Else", "something-else", " SOMETHING  else ", "something else"])
def test_labels_are_found_in_any_case_and_with_underscores(explain, name):
    assert explain(painting(0), emotion=name, **GREEDY)["emotion"] == "something else"


def test_labels_of_a_model_that_have_underscores_are_found_too(monkeypatch):
    processor = tiny_processor(emotions=["Great_Joy", "fear"])
    explain = pipeline(TASK, model=tiny_model(processor), processor=processor)
    assert explain(painting(0), emotion="great joy", **GREEDY)["emotion_scores"].keys() == {"Great_Joy", "fear"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"emotion": "Sadnes"}, "Unknown emotion 'Sadnes'. Did you mean 'sadness'. Use one of amusement"),
        ({"emotion": "something_els"}, "Did you mean 'something else'"),
        ({"emotion": 7}, "Unknown emotion 7. Use one of amusement"),
        ({"emotions": "awe"}, r"Unknown arguments \['emotions'\]. Did you mean 'emotion'. Use"),
        ({"num_candidate": 4}, "Did you mean 'num_candidates'"),
        ({"max_new_token": 4}, "Did you mean 'max_new_tokens'"),
        ({"batchsize": 4}, "Did you mean 'batch_size'"),
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip', not 'ignore'"),
        ({"top_k": 3}, "`top_k` is an argument of sampling and needs `do_sample=True`; all labels .*emotion_scores"),
        ({"top_k": 3, "do_sample": False}, "`top_k` is an argument of sampling"),
        ({"top_k": 3, "num_candidates": 2}, "`top_k` is an argument of sampling"),
        ({"temperature": 0.5}, "`temperature` is an argument of sampling: add `do_sample=True`"),
        ({"generate_kwargs": {"top_p": 0.5}}, "`top_p` is an argument of sampling"),
    ],
)
def test_misspelt_and_ambiguous_names_are_refused_in_one_line_with_a_suggestion(explain, arguments, message):
    with pytest.raises(ValueError, match=message) as refused:
        explain(painting(0), **arguments)
    assert "\n" not in str(refused.value)


def test_arguments_of_sampling_are_taken_together_with_do_sample(explain):
    for arguments in ({"top_k": 1}, {"top_k": 5, "temperature": 0.5, "num_candidates": 2}):
        assert explain(painting(0), do_sample=True, **arguments)["explanation"]
    assert explain(painting(0), temperature=0.5, num_candidates=2)["explanation"]
    assert explain(painting(0), generation_config=GenerationConfig(do_sample=True, max_new_tokens=2), top_k=3)
    sampling = pipeline(TASK, model=explain.model, processor=explain.processor, do_sample=True)
    assert sampling(painting(0), top_k=1)["emotion"]
    # The only token that may be sampled is the likeliest one.
    assert same(explain(painting(0), do_sample=True, top_k=1), explain(painting(0)))


BAD = 2


@pytest.fixture
def paths(tmp_path) -> list[str]:
    """Five files; the third is not a picture."""
    for seed in range(5):
        painting(seed).save(tmp_path / f"{seed}.png")
    (tmp_path / f"{BAD}.png").write_text("a painting")
    return [str(tmp_path / f"{seed}.png") for seed in range(5)]


class Files(Dataset):
    """A data set that decodes files itself, as torchvision's do."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return Image.open(self.paths[index]).convert("RGB")


KINDS = {
    "list": list,
    "series": pd.Series,
    "table": lambda paths: pd.DataFrame({"image": paths}),
    "generator": lambda paths: (path for path in paths),
    "map": lambda paths: map(Path, paths),
    "torch data set": Files,
    "dataset": lambda paths: datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image()),
    "streaming dataset": lambda paths: KINDS["dataset"](paths).to_iterable_dataset(),
}


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_picture_is_a_result_with_its_index_and_reason(explain, paths, kind, batch_size):
    options = {"batch_size": batch_size, "emotion": "awe", **GREEDY}
    results = list(explain(KINDS[kind](paths), on_error="skip", **options))
    assert len(results) == 5 and list(results[BAD]) == ["error", "index"]
    assert results[BAD]["index"] == BAD and "2.png" in results[BAD]["error"]
    good = [index for index in range(5) if index != BAD]
    expected = explain([paths[index] for index in good], emotion="awe", **GREEDY)
    assert all(map(same, [results[index] for index in good], expected))
    with pytest.raises(ValueError, match=r"Input 2 \(counted from 0\): .*2\.png"):
        list(explain(KINDS[kind](paths), **options))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_batch_of_bad_pictures_and_a_single_one_are_skipped(explain, paths, batch_size):
    inputs = [paths[BAD], b"", paths[0], np.zeros((2, 2, 2)), "nowhere.png"]
    results = explain(inputs, on_error="skip", batch_size=batch_size, return_candidates=True, num_candidates=2)
    assert [result.get("index") for result in results] == [0, 1, None, 3, 4]
    assert len(results[2]["candidates"]) == 2
    assert list(explain([paths[BAD]] * 3, on_error="skip", batch_size=batch_size)[1].values())[1] == 1
    single = explain(paths[BAD], on_error="skip")
    assert single["index"] == 0 and "2.png" in single["error"]


def test_skipping_is_a_default_that_none_resets_and_does_not_hide_wrong_arguments(explain, paths):
    skipping = pipeline(TASK, model=explain.model, processor=explain.processor, on_error="skip")
    assert skipping(paths, **GREEDY)[BAD]["index"] == BAD
    with pytest.raises(ValueError, match="Cannot read the picture"):
        skipping(paths[BAD], on_error=None)
    with pytest.raises(ValueError, match="Did you mean 'fear'"):
        skipping(paths, emotion="fera")


def test_too_little_memory_for_a_picture_is_skipped_or_raised(explain, monkeypatch):
    def read(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(explain, "_read", read)
    assert explain([painting(0)], on_error="skip") == [{"error": "there is not enough memory for it", "index": 0}]
    with pytest.raises(MemoryError):
        explain([painting(0)])


@pytest.mark.parametrize("dtype", ["fp16", "int8", "float8", torch.int8])
def test_a_dtype_that_a_model_cannot_have_is_refused_in_one_line(checkpoint, dtype):
    name = str(dtype).removeprefix("torch.")
    for load in (AutoModel.from_pretrained, lambda model, dtype: pipeline(TASK, model=model, dtype=dtype)):
        with pytest.raises(AttributeError, match=f'dtype="{name}" .* "float16", "bfloat16", "float32"') as refused:
            load(checkpoint, dtype=dtype)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.float32, "auto"])
def test_the_usual_dtypes_are_loaded(checkpoint, dtype):
    expected = torch.float32 if dtype == "auto" else getattr(torch, str(dtype).removeprefix("torch."))
    assert pipeline(TASK, model=checkpoint, dtype=dtype).model.dtype == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "The folder .*empty has no config.json, so it is not a model"),
        ("nowhere", "There is no folder .*nowhere, and no such model could be loaded from the Hub"),
        ("org/nowhere", "There is no folder org/nowhere, and no such model could be loaded from the Hub"),
    ],
)
def test_commands_report_a_missing_model_in_one_line(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match=message) as refused:
        open_pipeline(name if "/" in name else str(tmp_path / name))
    assert "\n" not in str(refused.value)
