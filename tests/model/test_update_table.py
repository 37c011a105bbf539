"""`sevlm explain --output FILE --update`: new pictures join a finished table, and what is in it stays."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from modeling_sevlm import explain as command_line
from modeling_sevlm import explain_folder
from processing import explanation_table
from processing.csv_files import csv_rows
from processing.images import MAX_MEGAPIXELS, open_image
from tests.helpers.images import draw
from tests.helpers.tiny import tiny_model, tiny_processor


ROOT = Path(__file__).resolve().parents[2]
FORMS = ["csv", "parquet"]


def rows(path: Path) -> list[dict]:
    """The rows as they stand in the file: text of a CSV file, values of a Parquet file."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    names, *lines = (fields for _, fields in csv_rows(path))
    return [dict(zip(names, line, strict=True)) for line in lines]


def draw_more(folder: Path, *names: str) -> None:
    for place, name in enumerate(names):
        Image.new("RGB", (20, 10 + place), "red").save(folder / name)


@pytest.mark.parametrize("form", FORMS)
def test_an_update_explains_only_new_pictures_and_keeps_the_rows_exactly(run, tower, form):
    output = run.output.with_suffix(f".{form}")
    assert run("--output", str(output), "--vad") == 3
    before, content = rows(output), output.read_bytes()
    draw_more(run.pictures, "0000 new.png", "new.png")
    tower.clear()
    assert run("--output", str(output), "--vad", "--update") == 3, "0001.jpg is still damaged"
    assert sum(tower) == 2
    after = rows(output)
    assert after[:13] == before
    assert [Path(row["file"]).name for row in after[13:]] == ["0000 new.png", "new.png"]
    assert all(row["explanation"] is not None and not row["error"] for row in after[13:])
    assert form == "parquet" or output.read_bytes().startswith(content)
    tower.clear()
    assert run("--output", str(output), "--vad", "--update") == 3 and not tower and rows(output) == after


def test_an_update_tries_pictures_with_an_error_again_and_names_new_ones(run):
    assert run() == 3
    before = rows(run.output)
    Image.new("RGB", (30, 30), "red").save(run.pictures / "0001.jpg")
    (run.pictures / "broken.png").write_text("a painting")
    (run.pictures / "raw.dng").touch()
    (run.pictures / "0000.png").unlink()
    assert run("--update") == 3
    after = rows(run.output)
    names = [Path(row["file"]).name for row in after]
    assert after[:12] == [row for row in before if not row["error"]], "also the row of a picture that is gone"
    assert names[12:] == ["0001.jpg", "broken.png", "raw.dng"]
    assert [bool(row["error"]) for row in after[12:]] == [False, True, True]


def test_an_update_without_new_pictures_leaves_the_file_alone_and_a_missing_table_is_written(run, tower):
    (run.pictures / "0001.jpg").unlink()
    assert run("--update") == 0 and len(rows(run.output)) == 12
    before = run.output.stat()
    assert run("--update") == 0
    assert (run.output.stat().st_ino, run.output.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sum(tower) == 12 and not run.part.exists()


@pytest.mark.parametrize("form", FORMS)
def test_an_interrupted_update_leaves_the_table_alone_and_continues(run, interrupt, tower, form):
    output = run.output.with_suffix(f".{form}")
    options, part = ("--output", str(output)), Path(f"{output}.part")
    assert run(*options) == 3
    draw_more(run.pictures, *(f"new {i}.png" for i in range(8)))
    before, content = rows(output), output.read_bytes()
    interrupt(*options, "--update", finished=1)
    assert output.read_bytes() == content and part.exists()
    with pytest.raises(SystemExit, match="other settings: update was True, is False"):
        run(*options)
    tower.clear()
    assert run(*options, "--update") == 3
    # The first batch of the update ended with 0001.jpg and three new pictures.
    assert sum(tower) == 8 - 3 and rows(output)[:13] == before and len(rows(output)) == 21
    assert not part.exists()


@pytest.mark.parametrize("form", FORMS)
def test_an_update_that_ends_right_after_the_table_is_replaced_adds_nothing_twice(run, monkeypatch, tower, form):
    output = run.output.with_suffix(f".{form}")
    options = ("--output", str(output))
    assert run(*options) == 3
    draw_more(run.pictures, "new.png")

    def stop(*args):
        explanation_table.write_table(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(explain_folder, "write_table", stop)
        assert run(*options, "--update") == 130
    after = rows(output)
    assert len(after) == 14
    tower.clear()
    assert run(*options, "--update") == 3 and not tower and rows(output) == after


def test_a_full_disk_during_an_update_keeps_the_table_and_its_settings(run, monkeypatch):
    assert run() == 3
    draw_more(run.pictures, "new.png")
    content = run.output.read_bytes()

    def full(*args):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(SystemExit, match="no space left"):
            run("--update")
    assert run.output.read_bytes() == content
    assert run("--update") == 3 and len(rows(run.output)) == 14


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--emotion", "fear"], "emotion was 'awe', is 'fear'"),
        (["--max_new_tokens", "5"], "max_new_tokens was 2, is 5"),
        (["--do_sample"], "do_sample was False, is True"),
        (["--vad"], "vad was False, is True"),
        (["--model", "other"], "model was .*; table of .*checkpoint0 .no revision., now other .no revision."),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_an_update_with_other_settings_is_refused_in_one_line(run, tmp_path, monkeypatch, more, message, form):
    output = run.output.with_suffix(f".{form}")
    assert run("--output", str(output)) == 3
    processor = tiny_processor()
    for part in (tiny_model(processor, seed=2), processor):
        part.save_pretrained(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    draw_more(run.pictures, "new.png")
    content = output.read_bytes()
    with pytest.raises(SystemExit, match=f"explanations.{form} has other settings: {message}") as refused:
        run("--output", str(output), "--update", *more)
    assert "\n" not in refused.value.code and output.read_bytes() == content
    assert not Path(f"{output}.part").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_table_without_its_settings_or_with_other_columns_is_not_updated(run, monkeypatch, form):
    output = run.output.with_suffix(f".{form}")
    options = ("--output", str(output), "--update")
    assert run(*options) == 3
    table = pq.read_table(output) if form == "parquet" else pd.read_csv(output)
    if form == "parquet":
        pq.write_table(table.drop_columns("score"), output)
    else:
        table.drop(columns="score").to_csv(output, index=False)
    with pytest.raises(SystemExit, match="columns are not those"):
        run(*options)
    monkeypatch.setattr(command_line, "load_pipeline", None)
    if form == "parquet":
        pq.write_table(table.replace_schema_metadata(None), output)
    else:
        explanation_table.record_path(output).unlink()
    with pytest.raises(SystemExit, match=r"cannot be updated, because its settings are not in .*--overwrite"):
        run(*options)


def test_a_finished_table_is_refused_with_the_two_ways_out(run):
    assert run() == 3
    with pytest.raises(SystemExit, match="exists already.*--update.*--overwrite"):
        run()


def test_relative_and_absolute_names_are_the_same_pictures_and_another_folder_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(pictures=["pictures"]) == 3
    assert run("--update") == 3 and len(rows(run.output)) == 13
    shutil.copytree(run.pictures, tmp_path / "copy" / "pictures")
    monkeypatch.chdir("copy")
    assert run("--update") == 3 and len(rows(run.output)) == 13
    with pytest.raises(SystemExit, match=f"relative to the folder {tmp_path}. Repeat the command there"):
        run("--update", pictures=["pictures"])


def test_the_settings_of_a_csv_file_are_read_with_and_without_a_byte_order_mark(run):
    assert run() == 3
    content = run.output.read_bytes()
    assert content.startswith(b'\xef\xbb\xbf"file",'), "Excel needs the byte order mark"
    run.output.write_bytes(content[3:])
    before = rows(run.output)
    draw_more(run.pictures, "new.png")
    assert run("--update") == 3 and rows(run.output)[:13] == before
    assert run.output.read_bytes().startswith(content)


@pytest.mark.parametrize("form", FORMS)
def test_a_table_says_how_it_was_made(run, checkpoint, form):
    output = run.output.with_suffix(f".{form}")
    assert run("--output", str(output), "--revision", "main") == 3
    if form == "parquet":
        metadata = {name.decode(): value.decode() for name, value in pq.read_schema(output).metadata.items()}
        metadata["settings"] = json.loads(metadata["settings"])
    else:
        metadata = json.loads(Path(f"{output}.settings.json").read_text())
    assert (metadata["model"], metadata["revision"], metadata["folder"]) == (checkpoint, "main", os.getcwd())
    assert abs(pd.Timestamp.now("UTC") - pd.Timestamp(metadata["date"])) < pd.Timedelta(minutes=10)
    settings = metadata["settings"]
    assert (settings["emotion"], settings["max_new_tokens"], settings["do_sample"]) == ("awe", 2, False)
    assert len(settings["model"]) > 8


def test_the_columns_tell_size_checksum_and_the_share_of_the_named_emotion(explain, tmp_path):
    folder, output = tmp_path / "pictures", tmp_path / "out.csv"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (40, 20), "red").save(folder / "turned.jpg", exif=exif)
    Image.new("L", (7, 5)).save(folder / "upright.png")
    assert explain(folder, "--output", output) == 0
    table = pd.read_csv(output)
    assert table[["width", "height"]].to_numpy().tolist() == [[20, 40], [7, 5]]
    files = sorted(folder.iterdir())
    assert table["sha256"].tolist() == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    shares = table.filter(like="score_")
    assert table["score"].tolist() == shares.max(axis=1).tolist()
    assert ("score_" + table["emotion"].str.replace(" ", "_")).tolist() == shares.idxmax(axis=1).tolist()
    assert "vad" not in table
    assert explain(folder, "--output", output, "--overwrite", "--emotion", "fear") == 0
    table = pd.read_csv(output)
    assert table["score"].tolist() == table["score_fear"].tolist()


def test_a_picture_that_was_opened_is_not_turned_again(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(tmp_path / "turned.jpg", exif=exif)
    opened = open_image(tmp_path / "turned.jpg")
    assert open_image(opened).size == opened.size == (20, 40)


def test_the_exit_code_says_that_pictures_are_missing_unless_errors_are_allowed(explain, tmp_path):
    folder, output = draw(tmp_path / "pictures", 2), tmp_path / "out.csv"
    assert explain(folder, "--output", output) == 0
    (folder / "raw.dng").touch()
    assert explain(folder, "--output", output, "--update") == 3
    assert explain(folder, "--output", output, "--update", "--allow_errors") == 0
    assert explain(folder) == 3 and explain(folder, "--allow_errors") == 0
    errors = [row["error"] for row in rows(output)]
    assert errors[:2] == ["", ""] and "raw file" in errors[2]
    (folder / "0000.png").write_text("a painting")
    (folder / "0001.png").write_text("a painting")
    assert explain(folder, "--allow_errors") == 1, "nothing was explained"


@pytest.mark.parametrize("options", [["--update"], ["--vad"], ["--update", "--overwrite", "--output", "a.csv"]])
def test_options_of_a_table_need_one_and_update_excludes_overwrite(options, capsys):
    with pytest.raises(SystemExit):
        command_line.parse_arguments(["a.png", "--model", "no/model", *options])
    assert re.search("needs --output|not allowed with", capsys.readouterr().err)


def test_something_is_on_the_screen_within_a_second():
    code = "import sys; sys.argv[1:] = ['--version']; import sevlm; sevlm.main()"
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    start = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as process:
        assert b"Loading" in process.stderr.readline() and time.monotonic() - start < 1
        assert b"transformers" in process.stdout.read()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_one_pixel_limit_is_in_messages_and_documents(tmp_path, capsys):
    Image.new("1", (17_850, 10_000)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=f"above the limit of {MAX_MEGAPIXELS}[.]"):
        open_image(tmp_path / "large.png")
    with pytest.raises(SystemExit):
        command_line.parse_arguments(["--help"])
    texts = [capsys.readouterr().out, command_line.__doc__, (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")]
    assert all(f"{MAX_MEGAPIXELS} megapixels" in text for text in texts) and f"(default: {MAX_MEGAPIXELS})" in texts[0]


def test_the_rows_of_a_table_are_read_from_disk_and_do_not_stay_in_memory(tmp_path):
    """A thousand finished rows more may cost memory for their paths only."""
    peaks = []
    for number in (2000, 6000):
        part = tmp_path / f"{number}.part"
        with explanation_table.open_part_file(part, {}) as (file, places):
            row = {"version": None, "emotion": "awe", "emotion_scores": {"awe": 0.5}, "explanation": "x" * 2000}
            for start in range(0, number, 10):
                names = [f"/no/picture/{i:06}.png" for i in range(start, start + 10)]
                explanation_table.append_line(file, [row | {"file": name} for name in names])
        tracemalloc.start()
        with explanation_table.open_part_file(part, {}) as (file, places):
            assert len(places) == number
            schema = explanation_table.table_schema(["awe"], vad=False)
            rows = explanation_table.finished_rows(file, places, {}, list(places))
            record = {"model": "", "revision": "", "date": "", "folder": "", "settings": {}}
            explanation_table.write_table(rows, tmp_path / f"{number}.parquet", schema, record)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 4000 < 500, "bytes for each row"
