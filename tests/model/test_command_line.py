"""The command `sevlm`: its subcommands, tables and JSON, tables that survive interruptions, and bad input."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from modeling_sevlm import SEVLMForConditionalGeneration, explain_folder
from modeling_sevlm import __main__ as sevlm
from modeling_sevlm import explain as command_line
from tests.helpers.tiny import tiny_model, tiny_processor


ROOT = Path(__file__).resolve().parents[2]
CORRUPT = {"truncated.jpg": "truncated", "empty.png": "the file is empty", "text.webp": "not an image"}


@pytest.fixture
def tower(monkeypatch):
    """The number of pictures in each call of the vision tower."""
    counts, encode = [], SEVLMForConditionalGeneration.get_image_features
    monkeypatch.setattr(
        SEVLMForConditionalGeneration, "get_image_features", lambda self, x: counts.append(len(x)) or encode(self, x)
    )
    return counts


def draw(folder: Path, pictures: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(pictures):
        noise = np.random.default_rng(i).integers(0, 255, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i:04}.png")
    return folder


def corrupt(folder: Path) -> None:
    Image.new("RGB", (300, 300), "red").save(folder / "truncated.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "truncated.jpg").read_bytes()[:800])
    (folder / "empty.png").touch()
    (folder / "text.webp").write_text("a painting")


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

    assert command_line.main(arguments) == 0
    assert sum(tower) == 997 - len(done), "finished pictures are not explained again"
    table = pd.read_parquet(output)
    expected = sorted([*(pictures / "early").iterdir(), *(pictures / "late").iterdir()])
    assert table["file"].tolist() == list(map(str, expected))
    kept = table.set_index("file").loc[done]
    assert kept["explanation"].tolist() == [row["explanation"] for batch in before for row in batch]
    assert list(tmp_path.glob("explanations*")) == [output]
    printed = capfd.readouterr().err
    assert f"{len(done):,} of 1,000 were done before" in printed
    assert "997 pictures explained" in printed and "3 left out" in printed
    for name, reason in CORRUPT.items():
        assert any(str(pictures / name) in line and reason in line for line in printed.splitlines()), name


@pytest.fixture
def run(checkpoint, tmp_path):
    """Explains twelve pictures and a corrupt one in batches of four; `more` are options."""
    pictures, output = draw(tmp_path / "pictures", 12), tmp_path / "out" / "explanations.csv"
    (pictures / "0001.jpg").write_text("a painting")
    arguments = [str(pictures), "--model", checkpoint, "--output", str(output), "--batch_size", "4"]
    arguments += ["--emotion", "awe", "--max_new_tokens", "4", "--device", "cpu"]

    def run(*more: str) -> int:
        return command_line.main([*arguments, *more])

    run.output, run.part, run.pictures, run.options = output, Path(f"{output}.part"), pictures, arguments[1:]
    return run


def stop_after(monkeypatch, finished: int, error: BaseException) -> None:
    """Raises `error` when the batch after `finished` ones is about to be written."""
    left, append = [finished], explain_folder.append_line

    def stopping(file, content):
        if isinstance(content, list):
            if not left[0]:
                raise error
            left[0] -= 1
        append(file, content)

    monkeypatch.setattr(explain_folder, "append_line", stopping)


@pytest.fixture
def interrupt(run, monkeypatch):
    """Runs the command and presses Ctrl-C after some batches."""

    def interrupt(*more: str, finished: int = 1) -> None:
        with monkeypatch.context() as patch:
            stop_after(patch, finished, KeyboardInterrupt())
            assert run(*more) == 130

    return interrupt


def test_after_ctrl_c_the_same_command_continues(run, interrupt, tower, capsys):
    interrupt(finished=2)
    assert "repeat the command to continue" in capsys.readouterr().err
    assert not run.output.exists() and len(batches(run.part)) == 2
    tower.clear()
    assert run() == 0
    assert sum(tower) == 12 - 7
    assert len(pd.read_csv(run.output)) == 12 and not run.part.exists()


def test_an_interrupted_run_samples_the_same_as_an_uninterrupted_one(run, interrupt):
    sampling = ("--do_sample", "--num_candidates", "2")
    assert run(*sampling) == 0
    expected = run.output.read_text()
    interrupt(*sampling, "--overwrite")
    assert run.output.read_text() == expected, "the old file stays until the new one is complete"
    assert run(*sampling) == 0
    columns = ["file", "emotion", "explanation"]
    pd.testing.assert_frame_equal(pd.read_csv(run.output)[columns], pd.read_csv(io.StringIO(expected))[columns])


@pytest.mark.parametrize("torn", [1, 30])
def test_an_incomplete_last_line_is_explained_again(run, interrupt, tower, torn):
    interrupt(finished=3)
    run.part.write_bytes(run.part.read_bytes()[:-torn])
    interrupt()
    assert len(batches(run.part)) == 3, "the incomplete line is gone"
    tower.clear()
    assert run() == 0
    assert sum(tower) == 12 - 11
    assert pd.read_csv(run.output)["file"].is_unique


@pytest.mark.parametrize("start", ["", '{"sevlm_expl', '{"sevlm_explanations": 3, "over'])
def test_a_part_file_with_an_incomplete_header_starts_again(run, tower, start):
    run.output.parent.mkdir()
    run.part.write_text(start)
    assert run("--overwrite") == 0 and sum(tower) == 12


def test_a_full_disk_when_the_table_is_written_loses_nothing(run, tower, monkeypatch):
    def full(*args):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(SystemExit, match="error: no space left. .*part keeps the finished pictures"):
            run()
    assert os.listdir(run.output.parent) == [run.part.name]
    tower.clear()
    assert run() == 0 and not tower
    assert len(pd.read_csv(run.output)) == 12


def test_other_settings_are_refused_unless_overwrite_is_given(run, interrupt, tower):
    interrupt()
    with pytest.raises(SystemExit, match="emotion was 'awe', is 'fear'.*--overwrite"):
        run("--emotion", "fear")
    tower.clear()
    assert run("--emotion", "fear", "--overwrite") == 0
    assert sum(tower) == 12 and set(pd.read_csv(run.output)["emotion"]) == {"fear"}


def test_an_interrupted_overwrite_continues_with_the_same_command(run, interrupt, tower):
    assert run() == 0
    interrupt("--overwrite", "--emotion", "fear")
    interrupt("--overwrite", "--emotion", "fear")
    assert len(batches(run.part)) == 2
    tower.clear()
    assert run("--overwrite", "--emotion", "fear") == 0
    assert sum(tower) == 12 - 7 and set(pd.read_csv(run.output)["emotion"]) == {"fear"}
    # It replaces a finished file, and a run that did not start with it.
    for other in ((), ("--overwrite", "--emotion", "anger")):
        interrupt(*(other or ["--output", f"{run.output}.csv"]))
    tower.clear()
    assert run("--overwrite") == 0 and sum(tower) == 12
    assert run("--output", f"{run.output}.csv", "--overwrite") == 0 and sum(tower) == 24


def test_a_copy_of_the_model_and_smaller_greedy_batches_continue_the_run(run, interrupt, checkpoint, tmp_path, tower):
    interrupt()
    shutil.copytree(checkpoint, tmp_path / "moved")
    tower.clear()
    assert run("--model", str(tmp_path / "moved"), "--batch_size", "3", "--seed", "1") == 0
    assert sum(tower) == 12 - 3


def change_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("part", ["weights", "config", "generation", "pictures", "words"])
def test_another_model_with_the_same_name_is_refused(run, interrupt, checkpoint, tmp_path, part):
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    interrupt("--model", str(model))
    if part == "weights":
        tiny_model(tiny_processor(), seed=1).save_pretrained(model)
    elif part == "config":
        change_json(model / "config.json", prompt_token_ids=[0, 1])
    elif part == "generation":
        change_json(model / "generation_config.json", max_new_tokens=3)
    elif part == "pictures":
        known = json.loads((model / "processor_config.json").read_text())["image_processor"]
        change_json(model / "processor_config.json", image_processor=known | {"image_mean": [0.1, 0.1, 0.1]})
    else:
        words = json.loads((model / "tokenizer.json").read_text())["model"]
        words["vocab"]["a"], words["vocab"]["b"] = words["vocab"]["b"], words["vocab"]["a"]
        change_json(model / "tokenizer.json", model=words)
    with pytest.raises(SystemExit, match="with other settings: model"):
        run("--model", str(model))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch_size", "3"], "batch_size was 4, is 3"),
        (["--seed", "1"], "seed was 0, is 1"),
        (["--max_new_tokens", "5"], "max_new_tokens was 4, is 5"),
        (["--num_candidates", "2"], "num_candidates was 1, is 2"),
    ],
)
def test_options_that_change_the_samples_are_refused(run, interrupt, more, message):
    interrupt("--do_sample")
    with pytest.raises(SystemExit, match=message):
        run("--do_sample", *more)


def test_other_pictures_for_the_same_output_are_refused_and_not_listed(run, interrupt, tmp_path, monkeypatch):
    interrupt()
    many = [str(path) for path in draw(tmp_path / "others", 40).iterdir()]
    with pytest.raises(SystemExit, match="with other settings: pictures") as refused:
        command_line.main([*many, *run.options])
    assert len(refused.value.code) < 400
    monkeypatch.chdir(tmp_path)
    assert run() == 0, "absolute names are the same in every folder"


def test_a_relative_name_in_another_folder_is_another_picture(run, tmp_path, monkeypatch):
    shutil.copytree(run.pictures, tmp_path / "copy" / "pictures")
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, 1, KeyboardInterrupt())
        assert command_line.main(["pictures", *run.options]) == 130
    monkeypatch.chdir("copy")
    with pytest.raises(SystemExit, match="with other settings: pictures"):
        command_line.main(["pictures", *run.options])


def test_a_continued_run_finds_changed_new_and_broken_pictures(run, interrupt, tower, capsys):
    interrupt()  # after 0000.png, 0001.jpg, which cannot be read, 0001.png and 0002.png
    Image.new("RGB", (30, 30), "red").save(run.pictures / "0000 new.png")
    (run.pictures / "0000.png").write_text("a painting")
    Image.new("RGB", (30, 30), "red").save(run.pictures / "0001.jpg")
    os.utime(run.pictures / "0002.png", (0, 0))
    tower.clear()
    assert run() == 0 and sum(tower) == 13 - 1, "only 0001.png is finished and unchanged"
    assert "0000.png: not an image" in capsys.readouterr().err
    files = [Path(file).name for file in pd.read_csv(run.output)["file"]]
    assert files == sorted(files) and len(files) == 13
    assert "0000.png" not in files and {"0000 new.png", "0001.jpg", "0002.png"} <= {*files}


OLD_FORMAT = '{"sevlm_explanations": 2, "overwrite": false, "settings": {}}\n'


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
@pytest.mark.parametrize("content", ["half a download\n", '{"pictures": []}\n{}\n', OLD_FORMAT])
def test_a_file_of_another_program_or_version_is_not_overwritten(run, monkeypatch, content, more):
    run.output.parent.mkdir()
    run.part.write_text(content)
    monkeypatch.setattr(command_line, "load_pipeline", None)
    with pytest.raises(SystemExit, match="not a file of this program"):
        run(*more)
    # The file may appear while the model is loaded.
    with (
        pytest.raises(SystemExit, match="not a file of this program"),
        explain_folder.open_part_file(run.part, {}, bool(more)),
    ):
        pass
    assert run.part.read_text() == content and not run.output.exists()


def test_a_damaged_part_file_is_refused(run, interrupt):
    interrupt()
    header, rows, _ = run.part.read_text().split("\n")
    damaged = f"{header}\n{rows[:50]}\n{rows}\n"
    run.part.write_text(damaged)
    with pytest.raises(SystemExit, match="damaged.*--overwrite"):
        run()
    assert run.part.read_text() == damaged
    assert run("--overwrite") == 0


def test_a_finished_file_is_not_overwritten(run, tower):
    assert run() == 0
    tower.clear()
    with pytest.raises(SystemExit, match="exists already.*--overwrite"):
        run()
    assert not tower


def test_two_runs_do_not_write_the_same_file(run):
    pytest.importorskip("fcntl")
    run.output.parent.mkdir()
    with explain_folder.open_part_file(run.part, {}), pytest.raises(SystemExit, match="another run"):
        run("--overwrite")


def test_csv_and_parquet_have_the_same_columns(run):
    assert run() == 0
    csv = pd.read_csv(run.output)
    labels = "amusement awe contentment excitement anger disgust fear sadness something_else".split()
    scores = [f"score_{label}" for label in labels]
    assert list(csv) == ["file", "emotion", "explanation", "alignment_score", *scores, "vad"]
    assert csv[scores].sum(axis=1).tolist() == pytest.approx([1] * 12)
    assert [set(entry) for entry in json.loads(csv["vad"][0])][0] == {"word", "valence", "arousal", "dominance"}
    parquet = run.output.with_suffix(".parquet")
    assert run("--output", str(parquet)) == 0
    table = pd.read_parquet(parquet)
    assert list(table) == list(csv)
    pd.testing.assert_frame_equal(table[["file", *scores]], csv[["file", *scores]], check_dtype=False)
    assert [entry["word"] for entry in table["vad"][0]] == [entry["word"] for entry in json.loads(csv["vad"][0])]


def test_the_table_names_file_emotion_score_and_explanation(checkpoint, tmp_path, capsys):
    pictures = draw(tmp_path / "pictures", 3)
    (pictures / "0001.png").write_text("a painting")
    files = [str(pictures / f"000{i}.png") for i in range(3)]
    assert sevlm.main([*files, "--model", checkpoint, "--emotion", "something else", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split() == ["file", "emotion", "score", "explanation"]
    assert [line[: len(lines[0])].split("  ")[0][-8:] for line in lines[1:]] == ["0000.png", "0002.png"]
    assert all("something else" in line and "%" in line for line in lines[1:])
    assert "1 left out" in printed.err and "0001.png: " in printed.err


def test_json_is_the_result_of_the_pipeline(checkpoint, tmp_path, capsys):
    from transformers import pipeline

    picture = str(draw(tmp_path, 1) / "0000.png")
    arguments = ["explain", picture, "--model", checkpoint, "--emotion", "awe", "--json", "--device", "cpu"]
    assert sevlm.main(arguments) == 0
    given = json.loads(capsys.readouterr().out)
    expected = pipeline("art-emotion-explanation", model=checkpoint)(picture, emotion="awe", do_sample=False)
    assert given == {"file": picture} | expected


def test_the_command_fails_if_no_picture_can_be_read(checkpoint, tmp_path, capsys):
    corrupt(tmp_path)
    output = tmp_path / "out.csv"
    assert command_line.main([str(tmp_path), "--model", checkpoint, "--output", str(output), "--device", "cpu"]) == 1
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
def test_names_that_are_not_utf8_stay_distinct(checkpoint, tmp_path, capsys, form):
    draw_named(tmp_path / "odd", b"caf\xe8.png", b"caf\xe9.png")
    arguments = [str(tmp_path / "odd"), "--model", checkpoint, "--max_new_tokens", "2", "--device", "cpu"]
    output = tmp_path / f"out.{form}"
    more = {"table": [], "json": ["--json"]}.get(form, ["--output", str(output)])
    assert command_line.main([*arguments, *more]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = {
        "table": lambda: [line.split()[0] for line in lines[1:]],
        "json": lambda: [json.loads(line)["file"] for line in lines],
        "csv": lambda: pd.read_csv(output)["file"],
        "parquet": lambda: pd.read_parquet(output)["file"],
    }[form]()
    assert [file[-13:] for file in files] == [r"caf\udce8.png", r"caf\udce9.png"]


def test_a_name_with_line_breaks_stays_one_row(checkpoint, tmp_path, capsys):
    paths = draw_named(tmp_path / "odd", b"a\nb.png", b"c\rd.png", b'e"f.png')
    arguments = [*paths, "--model", checkpoint, "--max_new_tokens", "2", "--device", "cpu"]
    assert command_line.main(arguments) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert all(name in line for name, line in zip([r"a\nb", r"c\rd", 'e"f'], lines, strict=True))
    output = tmp_path / "out.csv"
    assert command_line.main([*arguments, "--output", str(output)]) == 0
    with open(output, newline="") as file:
        assert file.read().count("\r") == 1
    assert pd.read_csv(output)["file"].tolist() == paths


def test_a_terminal_with_few_characters_gets_escapes(checkpoint, tmp_path, monkeypatch):
    path = str(tmp_path / ("long" * 10 + "M\u00e5l\u2082.png"))
    Image.new("RGB", (8, 8)).save(path)
    for more in ([], ["--json"]):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", stream)
        assert command_line.main([path, "--model", checkpoint, "--device", "cpu", "--max_new_tokens", "2", *more]) == 0
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


def test_explanations_are_wrapped_only_on_a_terminal(monkeypatch):
    monkeypatch.setattr(command_line.shutil, "get_terminal_size", lambda: os.terminal_size((60, 24)))
    arguments = ((10, 8), "a.png", "awe", "40%", "the dark sea looks endless and cold")
    assert command_line.table_line(*arguments).endswith("the dark sea looks endless and cold")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    lines = command_line.table_line(*arguments).split("\n")
    assert [line[:27] for line in lines] == ["a.png       awe         40%", " " * 27]
    assert [line[29:] for line in lines] == ["the dark sea looks endless and", "cold"]


def test_a_long_name_is_shortened_at_its_beginning():
    assert command_line.table_line((8, 3), "pictures/0001.png", "awe", "", "").split()[0] == "\u2026001.png"


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
    found = command_line.find_pictures([url, "pictures/0001.png", "pictures", str(pictures), url])
    assert found == [url, "pictures/0001.png", "pictures/0000.png", *(f"pictures/{name}" for name in names[2:])]
    printed = capsys.readouterr().err.splitlines()
    assert printed == [f"1 files of other types ignored in {name}." for name in ("pictures", pictures)]
    # A linked folder and a file of another type are read if they are named themselves.
    assert command_line.find_pictures(["pictures/linked", "pictures/notes.txt"]) == [
        "pictures/linked/hidden.png",
        "pictures/notes.txt",
    ]


def test_folders_that_cannot_be_searched_are_reported(checkpoint, tmp_path, monkeypatch, capsys):
    pictures, scandir = draw(tmp_path / "pictures", 2), os.scandir
    draw(pictures / "closed", 1)
    (pictures / "notes.txt").touch()

    def closed(folder):
        if os.path.basename(folder) == "closed":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    arguments = ["--model", checkpoint, "--device", "cpu", "--max_new_tokens", "2"]
    assert command_line.main([str(pictures), *arguments]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3
    assert f"they cannot be searched:\n  {pictures / 'closed'}: Permission denied" in printed.err
    assert "1 files of other types ignored" in printed.err
    with pytest.raises(SystemExit, match="no picture .*closed: Permission denied"):
        command_line.main([str(pictures / "closed"), *arguments])


def test_help_lists_the_extensions_and_explains_links(capsys):
    with pytest.raises(SystemExit):
        sevlm.main(["explain", "--help"])
    printed = capsys.readouterr().out
    assert all(extension in printed for extension in command_line.EXTENSIONS)
    assert "Linked files are" in printed and "linked folders" in printed


def test_help_lists_the_commands_and_version_the_versions(capsys):
    assert sevlm.main(["--help"]) == sevlm.main(["--version"]) == 0
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("sevlm explain", "sevlm push", f"torch {torch.__version__}"))


@pytest.mark.parametrize(
    ("command", "module"), [("push", "push"), ("convert", "convert_sevlm_checkpoint"), ("space", "space")]
)
def test_other_commands_get_the_remaining_arguments(monkeypatch, command, module):
    calls = []
    monkeypatch.setattr(f"modeling_sevlm.{module}.main", lambda argv: calls.append(argv) or "a commit")
    assert sevlm.main([command, "outputs/demo", "--private"]) == 0
    assert calls == [["outputs/demo", "--private"]]


def test_the_installed_command_explains_a_picture(checkpoint, tmp_path):
    script = Path(sys.executable).with_name("sevlm")
    if not script.exists():
        pytest.skip("sevlm is not installed")
    picture = str(draw(tmp_path, 1) / "0000.png")
    command = [script, "explain", picture, "--model", checkpoint, "--json", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["file"] == picture


def test_the_seed_matters_only_for_samples_and_candidates_are_samples(checkpoint, tmp_path, capsys):
    picture = str(draw(tmp_path / "pictures", 1) / "0000.png")

    def explanation(*more: str) -> str:
        arguments = [picture, "--model", checkpoint, "--emotion", "awe", "--json", "--device", "cpu"]
        assert command_line.main([*arguments, "--max_new_tokens", "20", *more]) == 0
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg", "--model", "MODEL"], "nowhere.jpg: no such file"),
        (["EMPTY", "--model", "MODEL"], "no picture"),
        (["PICTURE", "--model", "/no/such/model"], "error: "),
        (["PICTURE", "--model", "MODEL", "--emotion", "joy"], "Unknown emotion 'joy'"),
        (["PICTURE", "--model", "MODEL", "--num_candidates", "0"], "from 1"),
        (["PICTURE", "--model", "MODEL", "--output", "out.xlsx"], ".parquet, .csv"),
        (["PICTURE", "--model", "MODEL", "--output", "out.csv", "--json"], "choose one"),
        (["PICTURE", "--model", "MODEL", "--batch_size", "0"], "from 1"),
        (["PICTURE", "--model", "MODEL", "--max_new_tokens", "0"], "from 1"),
        (["PICTURE", "--model", "MODEL", "--max_new_tokens", "61"], "at most 60"),
    ],
)
def test_bad_arguments_are_named_and_write_nothing(checkpoint, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    names = {"MODEL": checkpoint, "PICTURE": str(draw(tmp_path / "pictures", 1) / "0000.png"), "EMPTY": "empty"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        command_line.main([names.get(argument, argument) for argument in arguments])
    assert stop.value.code != 0
    assert message in f"{stop.value.code} {capsys.readouterr().err}"
    assert sorted(os.listdir()) == ["empty", "pictures"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "folder.csv"], "folder.csv is a folder. Name a file in it"),
        (["--output", "picture.png/new/out.csv"], "picture.png is not a folder. Name a file in another folder"),
        (["--output", "gone/out.csv"], "gone is not a folder"),
        (["--output", "locked/new/out.csv"], "locked cannot be written to"),
        (["--output", "out.csv"], "out.csv.part, where an unfinished run is kept, is not a file of this program"),
        (["--device", "gpu"], "--device gpu cannot be used here .*Use cpu"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used here .*Use cpu"),
        (["--device", "meta"], "--device meta cannot be used here"),
    ],
)
def test_output_and_device_are_checked_before_a_model_is_loaded(tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "load_pipeline", None)
    # Root may write everywhere.
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and access(path, mode))
    (draw(tmp_path, 1) / "0000.png").rename("picture.png")
    for folder in ("folder.csv", "locked", "out.csv.part"):
        os.mkdir(folder)
    os.symlink("nowhere", "gone")
    before = sorted(os.listdir())
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        command_line.main(["picture.png", "--model", "MODEL", *more])
    assert sorted(os.listdir()) == before


def test_truncated_weights_are_an_error_message(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    picture = str(draw(tmp_path, 1) / "0000.png")
    with pytest.raises(SystemExit, match="^error: --model .*torn: "):
        command_line.main([picture, "--model", str(tmp_path / "torn"), "--device", "cpu"])
