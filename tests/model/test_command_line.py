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
from transformers import pipeline

from modeling_sevlm import SEVLMForConditionalGeneration, explain_folder
from modeling_sevlm import __main__ as sevlm
from modeling_sevlm import explain as command_line
from processing import explanation_table
from tests.helpers.tiny import tiny_model, tiny_processor


ROOT = Path(__file__).resolve().parents[2]
CORRUPT = {"truncated.jpg": "truncated", "empty.png": "the file is empty", "text.webp": "not an image"}


@pytest.fixture
def tower(monkeypatch):
    """Records the number of pictures in each call of the vision tower."""
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
def explain(checkpoint):
    """Runs the command with a model that generates two tokens."""
    options = ["--model", checkpoint, "--device", "cpu", "--max_new_tokens", "2"]
    return lambda *arguments: command_line.main([*options, *map(str, arguments)])


@pytest.fixture
def run(explain, tmp_path):
    """Explains twelve pictures and a corrupt one in batches of four; `more` are options."""
    folder, output = draw(tmp_path / "pictures", 12), tmp_path / "out" / "explanations.csv"
    (folder / "0001.jpg").write_text("a painting")

    def run(*more: str, pictures=(folder,)) -> int:
        return explain(*pictures, "--output", output, "--batch_size", 4, "--emotion", "awe", *more)

    run.output, run.part, run.pictures = output, Path(f"{output}.part"), folder
    return run


@pytest.fixture
def interrupt(run, monkeypatch):
    """Runs the command and simulates Ctrl-C after `finished` batches are written."""

    def interrupt(*more: str, finished: int = 1, **kwargs) -> None:
        left, append = [finished], explain_folder.append_line

        def stopping(file, content):
            if isinstance(content, list):
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
            append(file, content)

        with monkeypatch.context() as patch:
            patch.setattr(explain_folder, "append_line", stopping)
            assert run(*more, **kwargs) == 130

    return interrupt


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
    assert run() == 0
    assert sum(tower) == 12 - (7 if torn else 11)
    files = pd.read_csv(run.output)["file"]
    assert len(files) == 12 and files.is_unique and not run.part.exists()


def test_an_interrupted_run_samples_the_same_as_an_uninterrupted_one(run, interrupt):
    sampling = ("--do_sample", "--num_candidates", "2")
    assert run(*sampling) == 0
    expected = run.output.read_text()
    interrupt(*sampling, "--overwrite")
    assert run.output.read_text() == expected, "the old file stays until the new one is complete"
    assert run(*sampling) == 0
    columns = ["file", "emotion", "explanation"]
    pd.testing.assert_frame_equal(pd.read_csv(run.output)[columns], pd.read_csv(io.StringIO(expected))[columns])


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


def test_an_interrupted_overwrite_continues_with_the_same_command(run, interrupt, tower):
    assert run() == 0
    interrupt("--overwrite", "--emotion", "fear")
    interrupt("--overwrite", "--emotion", "fear")
    assert len(batches(run.part)) == 2
    tower.clear()
    assert run("--overwrite", "--emotion", "fear") == 0
    assert sum(tower) == 12 - 7 and set(pd.read_csv(run.output)["emotion"]) == {"fear"}
    # --overwrite replaces a finished file and a run that began without it.
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
        tiny_model(tiny_processor(), seed=1).save_pretrained(model)
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
    assert run("--do_sample", *more, "--overwrite") == 0 and sum(tower) == 12


def test_other_pictures_for_the_same_output_are_refused_and_not_listed(run, interrupt, tmp_path, monkeypatch):
    interrupt()
    with pytest.raises(SystemExit, match="with other settings: pictures") as refused:
        run(pictures=draw(tmp_path / "others", 40).iterdir())
    assert len(refused.value.code) < 400
    monkeypatch.chdir(tmp_path)
    assert run() == 0, "absolute names are the same in every folder"


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
    assert run() == 0 and sum(tower) == 13 - 1, "only 0001.png is finished and unchanged"
    assert "0000.png: not an image" in capsys.readouterr().err
    files = [Path(file).name for file in pd.read_csv(run.output)["file"]]
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
    assert run("--overwrite") == 0


def test_a_finished_file_and_the_file_of_another_run_are_not_overwritten(run, tower):
    assert run() == 0
    tower.clear()
    with pytest.raises(SystemExit, match="exists already.*--overwrite"):
        run()
    assert not tower
    pytest.importorskip("fcntl")
    with explanation_table.open_part_file(run.part, {}), pytest.raises(SystemExit, match="another run"):
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


def test_the_table_names_file_emotion_score_and_explanation(explain, tmp_path, capsys):
    (draw(tmp_path, 3) / "0001.png").write_text("a painting")
    assert explain(tmp_path, "--emotion", "something else") == 0
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
    found = command_line.find_pictures([url, "pictures/0001.png", "pictures", str(pictures), url])
    assert found == [url, "pictures/0001.png", "pictures/0000.png", *(f"pictures/{name}" for name in names[2:])]
    printed = capsys.readouterr().err.splitlines()
    assert printed == [f"1 files of other types ignored in {name}." for name in ("pictures", pictures)]
    # A linked folder and a file of another type are read if they are named themselves.
    found = command_line.find_pictures(["pictures/linked", "pictures/notes.txt"])
    assert found == ["pictures/linked/hidden.png", "pictures/notes.txt"]


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


def test_help_lists_the_extensions_and_the_commands_and_version_the_versions(capsys):
    assert sevlm.main(["--help"]) == sevlm.main(["--version"]) == 0
    with pytest.raises(SystemExit):
        sevlm.main(["explain", "--help"])
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("sevlm explain", "sevlm push", f"torch {torch.__version__}"))
    assert all(words in printed for words in (*command_line.EXTENSIONS, "Linked files are", "linked folders"))


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
    (["--max_new_tokens", "61"], "at most 60"),
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
