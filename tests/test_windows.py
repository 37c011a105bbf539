"""The commands that write files, under the rules of Windows (tests/helpers/windows.py)."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature

import evaluate_sevlm
import train
from modeling_sevlm import explain_folder, push
from modeling_sevlm.training_folder import checkpoints
from processing import explanation_table, feature_cache
from processing.feature_cache import cache_features
from processing.files import atomic_write, write_json, write_text
from studies.summary import slug
from tests.helpers.images import draw
from tests.helpers.tiny import save_backbones
from tests.helpers.windows import follow_windows_rules, open_files


@pytest.fixture(autouse=True)
def windows(monkeypatch):
    follow_windows_rules(monkeypatch)


def test_an_open_file_cannot_be_removed_in_these_tests(tmp_path):
    file = tmp_path / "a"
    with open(file, "w"):
        assert str(file) in open_files()
        for forbidden in (file.unlink, lambda: os.replace(file, tmp_path / "b"), lambda: shutil.rmtree(tmp_path)):
            with pytest.raises(PermissionError):
                forbidden()
    file.unlink()
    with pytest.raises(PermissionError):
        os.open(tmp_path, os.O_RDONLY)


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_an_interrupted_table_is_finished_and_only_the_table_is_left(explain, tmp_path, monkeypatch, name):
    arguments = [draw(tmp_path / "pictures", 4), "--output", tmp_path / "out" / name, "--batch_size", 2]
    append, lines = explanation_table.append_line, []

    def stopping(file, content):
        lines.append(content)
        if len(lines) == 3:
            raise KeyboardInterrupt
        append(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(explanation_table, "append_line", stopping)
        patch.setattr(explain_folder, "append_line", stopping)
        assert explain(*arguments) == 130
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{name}.part"]
    assert explain(*arguments) == 0
    assert explain(*arguments, "--overwrite") == 0
    record = [f"{name}.settings.json"] if name.endswith("csv") else []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [name, *record]
    read = pd.read_csv if name.endswith("csv") else pd.read_parquet
    assert len(read(tmp_path / "out" / name)) == 4


def test_two_runs_cannot_write_one_part_file(tmp_path):
    part = tmp_path / "table.csv.part"
    with explanation_table.open_part_file(part, {}):
        with pytest.raises(SystemExit, match="another run is writing"):
            explanation_table.open_part_file(part, {}).__enter__()
    with explanation_table.open_part_file(part, {}):
        pass
    assert list(tmp_path.iterdir()) == [part]


def test_a_run_with_cached_features_is_trained_resumed_replaced_and_evaluated(tmp_path):
    short = "--num_paintings 36 --per_device_train_batch_size 8 --save_steps 1 --eval_steps 1 --sheet_paintings 1 "
    short += "--save_total_limit 1 --metric_for_best_model loss --greater_is_better false --generation_samples 4 "
    short += "--early_stopping_metrics loss --use_cpu true --disable_tqdm true --vad_lexicon embedded"
    run, cache, overwrite = tmp_path / "run", tmp_path / "cache", "--overwrite_output_dir"
    arguments = [*save_backbones(tmp_path), *short.split(), "--cache_features", str(cache), "--output_dir", str(run)]
    train.main([*arguments, "--max_steps", "2"])
    train.main([*arguments, "--max_steps", "4", "--resume_from_checkpoint", "true"])
    assert {"checkpoint-4"} <= {path.name for path in checkpoints(run)} and len(checkpoints(run)) <= 2
    train.main([*arguments, "--max_steps", "1", overwrite])
    assert [path.name for path in checkpoints(run)] == ["checkpoint-1"] and not (run / "saving").exists()
    for _ in range(2):
        options = ["--num_paintings", "36", "--use_cpu", "--captions", "false", "--update_model_card", overwrite]
        evaluate_sevlm.main([str(run), *options, "--cache_features", str(cache), "--output_dir", str(run / "test")])
    assert not [path for folder in (run, cache) for path in folder.rglob("*.tmp")]


def test_a_damaged_shard_and_the_file_of_a_killed_run_are_removed(processor, model, tmp_path):
    model.freeze_vision_tower()
    images = [str(path) for path in sorted(draw(tmp_path / "pictures", 3).iterdir())]
    dataset = Dataset.from_dict({"image": images}, features=Features({"image": ImageFeature()}))
    (features,) = cache_features(model, processor, [dataset], tmp_path / "cache")
    expected, folder = features.batch(range(3)), features.cache.folder
    del features
    (shard,) = folder.glob("*.safetensors")
    whole = shard.read_bytes()
    (folder / "killed.tmp").write_bytes(b"half")
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        shard.write_bytes(damaged)
        (features,) = cache_features(model, processor, [dataset], tmp_path / "cache")
        assert features.cache.encoded == 3 and features.batch(range(3)).equal(expected)
        assert list(folder.iterdir()) == [shard]
        del features


def test_a_shard_that_another_run_reads_is_kept(processor, model, tmp_path):
    model.freeze_vision_tower()
    images = [str(path) for path in draw(tmp_path / "pictures", 2).iterdir()]
    dataset = Dataset.from_dict({"image": images}, features=Features({"image": ImageFeature()}))
    (features,) = cache_features(model, processor, [dataset], tmp_path / "cache")
    cache = features.cache
    cache._write(features.keys, [cache[key] for key in features.keys])  # as another run does that began as early
    assert len(list(cache.folder.iterdir())) == 1


def test_a_temporary_file_that_another_run_removes_is_written_again(monkeypatch, tmp_path, processor, model):
    model.freeze_vision_tower()
    images = [str(path) for path in draw(tmp_path / "pictures", 2).iterdir()]
    dataset = Dataset.from_dict({"image": images}, features=Features({"image": ImageFeature()}))
    replace, removed = os.replace, []

    def removing(source, target):
        if not removed and Path(source).suffix == ".tmp":
            removed.append(source)
            os.unlink(source)
        replace(source, target)

    monkeypatch.setattr(feature_cache.os, "replace", removing)
    (features,) = cache_features(model, processor, [dataset], tmp_path / "cache")
    assert removed and features.batch([0, 1]).isfinite().all()


def test_a_push_removes_its_staging_folder(checkpoint, monkeypatch, tmp_path):
    staged = []
    monkeypatch.setattr(push, "find_destination", lambda *_: ("org/name", False))
    monkeypatch.setattr(
        push, "commit_folder", lambda api, folder, *_, **__: staged.append((folder, [*folder.iterdir()]))
    )
    push.push(checkpoint, "org/name")
    ((folder, files),) = staged
    assert len(files) > 10 and not folder.exists()


def test_files_are_replaced_after_closing_and_line_breaks_stay(tmp_path):
    for text in ("a\n", "a\r\nb\n"):
        write_text(tmp_path / "a.txt", text)
        assert (tmp_path / "a.txt").read_bytes() == text.encode()
    write_json(tmp_path / "a.json", {"é": 1})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"é": 1}
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == b"a\r\nb\n"


def test_a_file_of_someone_else_next_to_the_target_is_not_touched(tmp_path):
    (tmp_path / "a.txt.tmp").write_text("mine")
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt.tmp").read_text() == "mine"


def test_names_of_variants_are_allowed_as_file_names():
    names = ["alpha = 0.5", "SAT: 2?", "e.g.", "con", "NUL.txt", "..", "?"]
    assert [slug(name) for name in names] == ["alpha-0.5", "sat-2", "e.g", "con_", "nul_.txt", "_", "_"]
