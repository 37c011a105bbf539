"""`sevlm explain --output`: tables that survive interruptions, damaged files, and other settings."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from modeling_sevlm import explain as command_line
from processing import explanation_table
from tests.helpers.images import CORRUPT, corrupt, draw
from tests.helpers.tiny import tiny_model, tiny_processor


ROOT = Path(__file__).resolve().parents[2]


def batches(part: Path) -> list[list[dict]]:
    """The finished batches of a part file, without the header and an incomplete last line."""
    return [json.loads(line) for line in part.read_text().split("\n")[1:-1]]


def test_a_killed_run_of_a_thousand_pictures_continues_and_explains_none_twice(checkpoint, tmp_path, tower, capfd):
    pictures, output = tmp_path / "pictures", tmp_path / "explanations.parquet"
    draw(pictures / "early", 500)
    draw(pictures / "late", 497)
    corrupt(pictures)
    part = Path(f"{output}.part")
    arguments = [str(pictures), "--model", checkpoint, "--output", str(output), "--batch_size", "25"]
    arguments += ["--emotion", "awe", "--max_new_tokens", "2", "--device", "cpu"]
    with subprocess.Popen([sys.executable, "-m", "modeling_sevlm", *arguments], cwd=ROOT) as first:
        deadline = time.monotonic() + 120
        while not (part.exists() and part.read_bytes().count(b"\n") > 8):
            assert first.poll() is None and time.monotonic() < deadline, "it should be killed while it works"
            time.sleep(0.005)
        os.kill(first.pid, signal.SIGKILL)
    assert first.returncode == -signal.SIGKILL
    assert not output.exists() and list(tmp_path.glob("explanations*")) == [part]
    before = batches(part)
    done = [row["file"] for batch in before for row in batch]
    assert 190 <= len(done) < 997 and len(set(done)) == len(done)

    assert command_line.main(arguments) == 3
    assert sum(tower) == 997 - len(done), "finished pictures are not explained again"
    table = pd.read_parquet(output)
    assert table["file"].tolist() == sorted(str(path) for path in pictures.rglob("*.*"))
    errors = table[table["error"].notna()].set_index("file")
    assert list(errors.index) == [str(pictures / name) for name in sorted(CORRUPT)]
    assert all(reason in errors["error"][str(pictures / name)] for name, reason in CORRUPT.items())
    assert errors.drop(columns="error").isna().all(axis=None)
    kept = table.set_index("file").loc[done]
    assert kept["explanation"].tolist() == [row["explanation"] for batch in before for row in batch]
    assert list(tmp_path.glob("explanations*")) == [output]
    printed = capfd.readouterr().err
    assert f"{len(done):,} of 1,000 were done before" in printed
    assert "997 pictures explained" in printed and "3 left out" in printed
    for name, reason in CORRUPT.items():
        assert any(str(pictures / name) in line and reason in line for line in printed.splitlines()), name


def explained(output: Path) -> pd.DataFrame:
    table = pd.read_csv(output)
    return table[table["error"].isna()]


@pytest.mark.parametrize("torn", [0, 1, 30])
def test_after_ctrl_c_the_same_command_continues_and_repeats_an_incomplete_line(run, interrupt, tower, capsys, torn):
    interrupt(finished=2)
    assert "repeat the command to continue" in capsys.readouterr().err
    assert not run.output.exists() and len(batches(run.part)) == 2
    content = run.part.read_bytes()
    run.part.write_bytes(content[: len(content) - torn])
    interrupt(finished=1)
    assert len(batches(run.part)) == (2 if torn else 3), "the incomplete line is gone"
    tower.clear()
    assert run() == 3
    assert sum(tower) == 12 - (7 if torn else 11)
    files = explained(run.output)["file"]
    assert len(files) == 12 and files.is_unique and not run.part.exists()


def test_an_interrupted_run_samples_the_same_as_an_uninterrupted_one(run, interrupt):
    sampling = ("--do_sample", "--num_candidates", "2")
    assert run(*sampling) == 3
    expected = run.output.read_text()
    interrupt(*sampling, "--overwrite")
    assert run.output.read_text() == expected, "the old file stays until the new one is complete"
    assert run(*sampling) == 3
    columns = ["file", "emotion", "explanation"]
    pd.testing.assert_frame_equal(pd.read_csv(run.output)[columns], pd.read_csv(io.StringIO(expected))[columns])


@pytest.mark.parametrize("start", ["", '{"sevlm_expl', '{"sevlm_explanations": 3, "over'])
def test_a_part_file_with_an_incomplete_header_starts_again(run, tower, start):
    run.output.parent.mkdir()
    run.part.write_text(start)
    assert run("--overwrite") == 3 and sum(tower) == 12


def test_a_full_disk_when_the_table_is_written_loses_nothing(run, tower, monkeypatch):
    def full(*args):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(SystemExit, match="error: no space left. .*part keeps the finished pictures"):
            run()
    assert os.listdir(run.output.parent) == [run.part.name]
    tower.clear()
    assert run() == 3 and not tower
    assert len(explained(run.output)) == 12


def test_an_interrupted_overwrite_continues_with_the_same_command(run, interrupt, tower):
    assert run() == 3
    interrupt("--overwrite", "--emotion", "fear")
    interrupt("--overwrite", "--emotion", "fear")
    assert len(batches(run.part)) == 2
    tower.clear()
    assert run("--overwrite", "--emotion", "fear") == 3
    assert sum(tower) == 12 - 7 and set(explained(run.output)["emotion"]) == {"fear"}
    # --overwrite replaces a finished file and a run that began without it.
    for other in ((), ("--overwrite", "--emotion", "anger")):
        interrupt(*(other or ["--output", f"{run.output}.csv"]))
    tower.clear()
    assert run("--overwrite") == 3 and sum(tower) == 12
    assert run("--output", f"{run.output}.csv", "--overwrite") == 3 and sum(tower) == 24


def test_a_copy_of_the_model_and_smaller_greedy_batches_continue_the_run(run, interrupt, checkpoint, tmp_path, tower):
    interrupt()
    shutil.copytree(checkpoint, tmp_path / "moved")
    tower.clear()
    assert run("--model", str(tmp_path / "moved"), "--batch_size", "3", "--seed", "1") == 3
    assert sum(tower) == 12 - 3


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "prompt_token_ids", [0, 1]),
        ("generation_config.json", "max_new_tokens", 3),
        ("processor_config.json", "image_processor", {"image_mean": [0.1, 0.1, 0.1]}),
        ("tokenizer.json", "vocab", None),
        ("model.safetensors", None, None),
    ],
)
def test_another_model_with_the_same_name_is_refused(run, interrupt, checkpoint, tmp_path, file, key, value):
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    interrupt("--model", str(model))
    if key is None:
        tiny_model(tiny_processor(), seed=2).save_pretrained(model)
    else:
        content = json.loads((model / file).read_text())
        if key == "vocab":
            words = content["model"]["vocab"]
            words["a"], words["b"] = words["b"], words["a"]
        else:
            content[key] = content[key] | value if isinstance(value, dict) else value
        (model / file).write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="with other settings: model"):
        run("--model", str(model))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--emotion", "fear"], "emotion was 'awe', is 'fear'"),
        (["--batch_size", "3"], "batch_size was 4, is 3"),
        (["--seed", "1"], "seed was 0, is 1"),
        (["--max_new_tokens", "5"], "max_new_tokens was 2, is 5"),
        (["--num_candidates", "2"], "num_candidates was 1, is 2"),
    ],
)
def test_other_settings_are_refused_unless_overwrite_is_given(run, interrupt, tower, more, message):
    interrupt("--do_sample")
    with pytest.raises(SystemExit, match=f"{message}.*--overwrite"):
        run("--do_sample", *more)
    tower.clear()
    assert run("--do_sample", *more, "--overwrite") == 3 and sum(tower) == 12


def test_other_pictures_for_the_same_output_are_refused_and_not_listed(run, interrupt, tmp_path, monkeypatch):
    interrupt()
    with pytest.raises(SystemExit, match="with other settings: pictures") as refused:
        run(pictures=draw(tmp_path / "others", 40).iterdir())
    assert len(refused.value.code) < 400
    monkeypatch.chdir(tmp_path)
    assert run() == 3, "absolute names are the same in every folder"


def test_a_relative_name_in_another_folder_is_another_picture(run, interrupt, tmp_path, monkeypatch):
    shutil.copytree(run.pictures, tmp_path / "copy" / "pictures")
    monkeypatch.chdir(tmp_path)
    interrupt(pictures=["pictures"])
    monkeypatch.chdir("copy")
    with pytest.raises(SystemExit, match="with other settings: pictures"):
        run(pictures=["pictures"])


def test_a_continued_run_finds_changed_new_and_broken_pictures(run, interrupt, tower, capsys):
    interrupt()  # after 0000.png, 0001.jpg, which cannot be read, 0001.png and 0002.png
    Image.new("RGB", (30, 30), "red").save(run.pictures / "0000 new.png")
    (run.pictures / "0000.png").write_text("a painting")
    Image.new("RGB", (30, 30), "red").save(run.pictures / "0001.jpg")
    os.utime(run.pictures / "0002.png", (0, 0))
    tower.clear()
    assert run() == 3 and sum(tower) == 13 - 1, "only 0001.png is finished and unchanged"
    assert "0000.png: not an image" in capsys.readouterr().err
    files = [Path(file).name for file in explained(run.output)["file"]]
    assert files == sorted(files) and len(files) == 13
    assert "0000.png" not in files and {"0000 new.png", "0001.jpg", "0002.png"} <= {*files}


OLD_VERSION = '{"sevlm_explanations": 2, "settings": {}}\n'


@pytest.mark.parametrize(
    ("content", "more", "remedy"),
    [
        ("half a download\n", [], "Move it away"),
        ("half a download\n", ["--overwrite"], "Move it away"),
        (OLD_VERSION, [], "--overwrite"),
    ],
)
def test_a_file_of_another_program_or_version_is_not_overwritten(run, monkeypatch, content, more, remedy):
    run.output.parent.mkdir()
    run.part.write_text(content)
    monkeypatch.setattr(command_line, "load_pipeline", None)
    with pytest.raises(SystemExit, match=f"not an unfinished run of this version.*{remedy}"):
        run(*more)
    with pytest.raises(SystemExit, match="not an unfinished run"):  # it may appear while the model is loaded
        explanation_table.open_part_file(run.part, {}, bool(more)).__enter__()
    assert run.part.read_text() == content and not run.output.exists()


def test_overwrite_discards_the_unfinished_run_of_an_old_version(tmp_path):
    (tmp_path / "a.part").write_text(OLD_VERSION)
    with explanation_table.open_part_file(tmp_path / "a.part", {}, overwrite=True) as (_, rows):
        assert rows == {} and (tmp_path / "a.part").read_text().startswith('{"sevlm_explanations": 3, ')


def test_a_damaged_part_file_is_refused(run, interrupt):
    interrupt()
    header, rows, _ = run.part.read_text().split("\n")
    damaged = f"{header}\n{rows[:50]}\n{rows}\n"
    run.part.write_text(damaged)
    with pytest.raises(SystemExit, match="damaged.*--overwrite"):
        run()
    assert run.part.read_text() == damaged
    assert run("--overwrite") == 3


def test_a_finished_file_and_the_file_of_another_run_are_not_overwritten(run, tower):
    assert run() == 3
    tower.clear()
    with pytest.raises(SystemExit, match="exists already.*--overwrite"):
        run()
    assert not tower
    pytest.importorskip("fcntl")
    with explanation_table.open_part_file(run.part, {}), pytest.raises(SystemExit, match="another run"):
        run("--overwrite")


def test_csv_and_parquet_have_the_same_columns(run):
    assert run("--vad") == 3
    csv = pd.read_csv(run.output)
    labels = "amusement awe contentment excitement anger disgust fear sadness something_else".split()
    scores = [f"score_{label}" for label in labels]
    facts = ["file", "width", "height", "sha256", "emotion", "score", "explanation", "alignment_score"]
    assert list(csv) == [*facts, *scores, "vad", "error"]
    assert csv["error"].notna().sum() == 1 and "not an image" in csv["error"][1]
    assert csv[scores].sum(axis=1).tolist() == pytest.approx([1, 0] + [1] * 11)
    assert [set(entry) for entry in json.loads(csv["vad"][0])][0] == {"word", "valence", "arousal", "dominance"}
    parquet = run.output.with_suffix(".parquet")
    assert run("--output", str(parquet), "--vad") == 3
    table = pd.read_parquet(parquet)
    assert list(table) == list(csv)
    pd.testing.assert_frame_equal(table[["file", *scores]], csv[["file", *scores]], check_dtype=False)
    pd.testing.assert_series_equal(table["error"], csv["error"], check_dtype=False)
    assert table["vad"][1] is None
    assert [entry["word"] for entry in table["vad"][0]] == [entry["word"] for entry in json.loads(csv["vad"][0])]
