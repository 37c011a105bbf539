"""The command `sevlm`: its subcommands, tables and JSON on the screen, and bad input."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import pipeline

from modeling_sevlm import __main__ as sevlm
from modeling_sevlm import explain as command_line
from tests.helpers.images import corrupt, draw


ROOT = Path(__file__).resolve().parents[2]


def test_the_table_names_file_emotion_score_and_explanation(explain, tmp_path, capsys):
    (draw(tmp_path, 3) / "0001.png").write_text("a painting")
    assert explain(tmp_path, "--emotion", "something else") == 3
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split() == ["file", "emotion", "score", "explanation"]
    assert [line[: len(lines[0])].split("  ")[0][-8:] for line in lines[1:]] == ["0000.png", "0002.png"]
    assert all("something else" in line and "%" in line for line in lines[1:])
    assert "1 left out" in printed.err and "0001.png: " in printed.err


@pytest.mark.parametrize("installed", [True, False])
def test_json_is_the_result_of_the_pipeline(checkpoint, tmp_path, installed):
    script = Path(sys.executable).with_name("sevlm")
    if installed and not script.exists():
        pytest.skip("sevlm is not installed")
    picture = str(draw(tmp_path, 1) / "0000.png")
    command = [script] if installed else [sys.executable, "-m", "modeling_sevlm"]
    command += ["explain", picture, "--model", checkpoint, "--emotion", "awe", "--json", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path if installed else ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = pipeline("art-emotion-explanation", model=checkpoint)(picture, emotion="awe", do_sample=False)
    assert json.loads(done.stdout) == {"file": picture} | expected


def test_the_command_fails_if_no_picture_can_be_read(explain, tmp_path, capsys):
    corrupt(tmp_path)
    assert explain(tmp_path, "--output", tmp_path / "out.csv") == 1
    assert "3 left out" in capsys.readouterr().err and not list(tmp_path.glob("out*"))


def draw_named(folder: Path, *names: bytes) -> list[str]:
    folder.mkdir()
    paths = [os.path.join(folder, os.fsdecode(name)) for name in names]
    try:
        for path in paths:
            Image.new("RGB", (8, 8)).save(path, format="png")
    except OSError:
        pytest.skip("this file system takes no such name")
    return paths


@pytest.mark.parametrize("form", ["table", "json", "csv", "parquet"])
def test_names_that_are_not_utf8_stay_distinct(explain, tmp_path, capsys, form):
    draw_named(tmp_path / "odd", b"caf\xe8.png", b"caf\xe9.png")
    output = tmp_path / f"out.{form}"
    more = {"table": [], "json": ["--json"]}.get(form, ["--output", output])
    assert explain(tmp_path / "odd", *more) == 0
    lines = capsys.readouterr().out.splitlines()
    if form in ("table", "json"):
        files = [json.loads(line)["file"] if form == "json" else line.split()[0] for line in lines if "caf" in line]
    else:
        files = (pd.read_csv if form == "csv" else pd.read_parquet)(output)["file"]
    assert [file[-13:] for file in files] == [r"caf\udce8.png", r"caf\udce9.png"]


def test_a_name_with_line_breaks_stays_one_row(explain, tmp_path, capsys):
    paths = draw_named(tmp_path / "odd", b"a\nb.png", b"c\rd.png", b'e"f.png')
    assert explain(*paths) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert all(name in line for name, line in zip([r"a\nb", r"c\rd", 'e"f'], lines, strict=True))
    output = tmp_path / "out.csv"
    assert explain(*paths, "--output", output) == 0
    assert output.read_bytes().count(b"\r") == 1
    assert pd.read_csv(output)["file"].tolist() == paths


def test_a_terminal_with_few_characters_gets_escapes(explain, tmp_path, monkeypatch):
    path = str(tmp_path / ("long" * 10 + "M\u00e5l\u2082.png"))
    Image.new("RGB", (8, 8)).save(path)
    for more in ([], ["--json"]):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", stream)
        assert explain(path, *more) == 0
        stream.flush()
        printed = stream.buffer.getvalue().decode("ascii")
        assert json.loads(printed)["file"] == path if more else r"M\xe5l\u2082.png" in printed


def test_a_closed_pipe_ends_the_run_without_a_traceback(checkpoint, tmp_path):
    pictures = draw(tmp_path / "pictures", 6)
    command = [sys.executable, "-m", "modeling_sevlm", str(pictures), "--model", checkpoint, "--batch_size", "1"]
    with subprocess.Popen(
        [*command, "--device", "cpu", "--json"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert json.loads(process.stdout.readline())["file"].endswith("0000.png")
        process.stdout.close()
        assert process.wait(60) == 1
        assert not re.search("Traceback|Exception|Error", process.stderr.read())


def test_explanations_are_wrapped_only_on_a_terminal_and_long_names_shortened_at_the_beginning(monkeypatch):
    monkeypatch.setattr(command_line.shutil, "get_terminal_size", lambda: os.terminal_size((60, 24)))
    arguments = ((10, 8), "pictures/a.png", "awe", "40%", "the dark sea looks endless and cold")
    assert command_line.table_line(*arguments).endswith("the dark sea looks endless and cold")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    lines = command_line.table_line(*arguments).split("\n")
    assert [line[:27] for line in lines] == ["\u2026res/a.png  awe         40%", " " * 27]
    assert [line[29:] for line in lines] == ["the dark sea looks endless and", "cold"]


def test_files_folders_and_urls_are_found_once_each(tmp_path, monkeypatch, capsys):
    pictures, url = draw(tmp_path / "pictures", 2), "https://example.org/a.jpg"
    (pictures / "notes.txt").touch()
    (pictures / "UPPER.JPG").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "hidden.png").touch()
    (pictures / "linked").symlink_to(tmp_path / "elsewhere")
    (pictures / "linked.png").symlink_to(tmp_path / "elsewhere" / "hidden.png")
    monkeypatch.chdir(tmp_path)
    names = ["0000.png", "0001.png", "UPPER.JPG", "linked.png"]
    found = command_line.find_pictures([url, "pictures/0001.png", "pictures", str(pictures), url], [])
    assert found == [url, "pictures/0001.png", "pictures/0000.png", *(f"pictures/{name}" for name in names[2:])]
    printed = capsys.readouterr().err.splitlines()
    assert printed == [f"1 files of other types ignored in {name}: 1 .txt." for name in ("pictures", pictures)]
    # A linked folder and a file of another type are read if they are named themselves.
    found = command_line.find_pictures(["pictures/linked", "pictures/notes.txt"], [])
    assert found == ["pictures/linked/hidden.png", "pictures/notes.txt"]


COPIES = [
    ".ipynb_checkpoints/0000-checkpoint.png",
    ".thumbnails/large/0000.png",
    ".Trash-1000/files/old.png",
    "$RECYCLE.BIN/S-1-5/$R0.png",
    "@eaDir/0000.png/SYNOPHOTO_THUMB_M.png",
    "__MACOSX/._0000.png",
    "inner/@eaDir/0001.png",
    "._0000.png",
    ".0000.png",
]


def test_hidden_copies_are_left_out_unless_they_are_named(tmp_path, monkeypatch, capsys):
    folder = draw(tmp_path / ".cache" / "pictures", 2)
    (folder / "inner").mkdir()
    (folder / "0001.png").rename(folder / "inner" / "0001.png")
    for name in COPIES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(folder / name)
    expected = [str(folder / name) for name in ("0000.png", "inner/0001.png")]
    assert command_line.find_pictures([str(folder)], []) == expected
    assert f"{len(COPIES)} hidden files and folders left out in {folder}." in capsys.readouterr().err
    named = [str(folder / name) for name in (".thumbnails/large", "._0000.png", "@eaDir/0000.png")]
    found = command_line.find_pictures(named, [])
    assert found == [str(folder / COPIES[i]) for i in (1, 7, 4)]
    monkeypatch.chdir(folder / ".thumbnails")
    assert command_line.find_pictures(["."], []) == ["./large/0000.png"]
    (folder / "inner" / "0001.png").unlink()
    with pytest.raises(SystemExit, match="no picture .* There are 1 hidden files and folders: name one to search it"):
        command_line.find_pictures([str(folder / "inner")], [])


@pytest.mark.parametrize("change", [str, str.upper, str.lower])
def test_folders_of_copies_and_deleted_files_are_left_out_on_every_system(tmp_path, capsys, change):
    folder = draw(tmp_path / "pictures", 1)
    names = ["@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "@__thumb", "__MACOSX", "lost+found"]
    names += ["$RECYCLE.BIN", "RECYCLER", "System Volume Information", "FOUND.000", "FOUND.012", "LOST.DIR"]
    names += ["Network Trash Folder", "Temporary Items", "~snapshot", "@sharesnap"]
    for name in names:
        draw(folder / change(name), 1)
    assert command_line.find_pictures([str(folder)], []) == [str(folder / "0000.png")]
    assert f"{len(names)} hidden files and folders left out" in capsys.readouterr().err


def test_folders_with_names_like_those_of_copies_are_searched(tmp_path):
    names = ["found.art", "found.0001", "Recycled", "thumb", "snapshot", "lost+found+more", "network"]
    for name in names:
        draw(tmp_path / name, 1)
    assert len(command_line.find_pictures([str(tmp_path)], [])) == len(names)


def test_folders_that_cannot_be_searched_are_reported(explain, tmp_path, monkeypatch, capsys):
    pictures, scandir = draw(tmp_path / "pictures", 2), os.scandir
    draw(pictures / "closed", 1)
    (pictures / "notes.txt").touch()

    def closed(folder):
        if os.path.basename(folder) == "closed":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    assert explain(pictures) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3
    assert f"they cannot be searched:\n  {pictures / 'closed'}: Permission denied" in printed.err
    assert "1 files of other types ignored" in printed.err
    with pytest.raises(SystemExit, match="no picture"):
        explain(pictures / "closed")
    assert "closed: Permission denied" in capsys.readouterr().err


def test_help_names_formats_and_the_commands_and_version_the_versions(capsys):
    assert sevlm.main(["--help"]) == sevlm.main(["--version"]) == 0
    with pytest.raises(SystemExit):
        sevlm.main(["explain", "--help"])
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("sevlm explain", "sevlm push", f"torch {torch.__version__}"))
    formats = (".jp2", ".avif", ".heic", "pillow-heif")
    assert all(words in printed for words in (*formats, "Linked files are", "linked folders"))


@pytest.mark.parametrize(
    ("command", "module"), [("push", "push"), ("convert", "convert_sevlm_checkpoint"), ("space", "space")]
)
def test_other_commands_get_the_remaining_arguments(monkeypatch, capsys, command, module):
    with pytest.raises(SystemExit):
        sevlm.main([command, "--help"])
    assert f"usage: python -m modeling_sevlm.{module} " in capsys.readouterr().out
    calls = []
    monkeypatch.setattr(f"modeling_sevlm.{module}.main", lambda argv: calls.append(argv) or "a commit")
    assert sevlm.main([command, "outputs/demo", "--private"]) == 0
    assert calls == [["outputs/demo", "--private"]]


def test_the_seed_matters_only_for_samples_and_candidates_are_samples(explain, tmp_path, capsys):
    draw(tmp_path, 1)

    def explanation(*more: str) -> str:
        assert explain(tmp_path, "--emotion", "awe", "--json", "--max_new_tokens", "20", *more) == 0
        return json.loads(capsys.readouterr().out)["explanation"]

    greedy = explanation()
    assert explanation("--seed", "1") == greedy
    for sampling in (["--do_sample"], ["--num_candidates", "2"]):
        drawn = explanation(*sampling)
        assert drawn != greedy and drawn == explanation(*sampling, "--seed", "0")
        assert drawn != explanation(*sampling, "--seed", "1")


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("auto", torch.float32)])
def test_the_model_is_loaded_with_the_given_dtype(checkpoint, name, dtype):
    args = command_line.parse_arguments(["a.png", "--model", checkpoint, "--dtype", name, "--device", "cpu"])
    assert command_line.load_pipeline(args).model.dtype == dtype


FOUND_BY_THE_MODEL = [
    (["--model", "/no/such/model"], "--model /no/such/model"),
    (["--emotion", "joy"], "Unknown emotion 'joy'"),
    (["--max_new_tokens", "61"], "at most 57"),
]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        *FOUND_BY_THE_MODEL,
        (["nowhere.jpg"], "nowhere.jpg: no such file"),
        (["locked"], "no picture"),
        (["--num_candidates", "0"], "above 0"),
        (["--batch_size", "0"], "above 0"),
        (["--max_new_tokens", "0"], "above 0"),
        (["--output", "out.xlsx"], ".parquet or .csv"),
        (["--output", "out.csv", "--json"], "not allowed with"),
        (["--output", "folder.csv"], "folder.csv is a folder. Name a file in it"),
        (["--output", "picture.png/new/out.csv"], "cannot write to .*picture.png. Name a file in another folder"),
        (["--output", "gone/out.csv"], "cannot write to .*gone"),
        (["--output", "locked/new/out.csv"], "cannot write to .*locked"),
        (["--output", "out.csv"], "out.csv.part is not an unfinished run of this version"),
        (["--device", "gpu"], "--device gpu cannot be used here .*Use cpu"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used here .*Use cpu"),
        (["--device", "meta"], "--device meta cannot be used here"),
    ],
)
def test_bad_arguments_are_named_and_write_nothing(checkpoint, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(tmp_path)
    if (more, message) not in FOUND_BY_THE_MODEL:
        monkeypatch.setattr(command_line, "load_pipeline", None)
    # Root may write everywhere.
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and access(path, mode))
    (draw(tmp_path, 1) / "0000.png").rename("picture.png")
    for folder in ("folder.csv", "locked", "out.csv.part"):
        os.mkdir(folder)
    os.symlink("nowhere", "gone")
    before = sorted(os.listdir())
    with pytest.raises(SystemExit) as stop:
        command_line.main(["--model", checkpoint, "--device", "cpu", "picture.png", *more])
    assert stop.value.code != 0
    assert re.search(f"error: .*{message}", f"{stop.value.code} {capsys.readouterr().err}".replace("\n", " "))
    assert sorted(os.listdir()) == before


def test_truncated_weights_are_an_error_message(explain, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SystemExit, match="^error: --model .*torn: "):
        explain(draw(tmp_path, 1), "--model", tmp_path / "torn")


def test_overwrite_without_output_and_a_named_pipe_are_refused_before_the_model_is_loaded(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command_line.main([str(tmp_path), "--model", "no/model", "--overwrite"])
    assert "--overwrite needs --output" in capsys.readouterr().err
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(SystemExit, match="a pipe, a socket or a device"):
        command_line.main([str(tmp_path / "pipe.png"), "--model", "no/model"])
