"""Images as users have them: damaged, huge, changed during reading, and files that are not images."""

import math
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from modeling_sevlm import __main__ as command_line
from modeling_sevlm import explain_folder
from processing import explanation_table
from processing import images as reading
from processing.artemis import load_artemis
from processing.images import LIMIT_VARIABLE, check_image, identify, open_image, set_max_megapixels
from tests.helpers.artemis import make_rows, painting_name, write_csv, write_images
from tests.helpers.bad_pictures import NAMES, SPECIAL_FILES, damage, image, odd_folder, pictures


ROOT = Path(__file__).resolve().parents[2]
FILES = pictures()


@pytest.fixture
def limit(monkeypatch):
    """Restores the limit of the process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setenv(LIMIT_VARIABLE, "178")
    monkeypatch.delenv(LIMIT_VARIABLE)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", FILES)
def test_a_cut_file_is_refused_or_shows_its_whole_image(tmp_path, kind):
    path, content = tmp_path / kind, FILES[kind]
    path.write_bytes(content)
    whole, chance = np.asarray(open_image(path)), random.Random(kind)
    for end in [1, *sorted(chance.randrange(1, len(content)) for _ in range(10)), len(content) - 1]:
        path.write_bytes(content[:end])
        try:
            # A cut after the first frame, or in bytes that do not matter, leaves the image whole.
            assert np.array_equal(np.asarray(open_image(path)), whole), end
        except ValueError as error:
            assert str(error), end


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_file_gives_an_image_or_a_reason(tmp_path):
    chance, outcomes = random.Random(0), {"picture": 0, "reason": 0}
    for kind, content in FILES.items():
        for _ in range(4):
            how, damaged = damage(content, chance)
            (tmp_path / kind).write_bytes(damaged)
            try:
                assert open_image(tmp_path / kind, max_megapixels=20).mode == "RGB", (kind, how)
                outcomes["picture"] += 1
            except ValueError as error:
                assert str(error), (kind, how)
                outcomes["reason"] += 1
    assert min(outcomes.values()) > 10


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 20_000), (20_000, 1), (3, 20_000), (1, 3)])
def test_images_of_any_shape_are_processed(processor, tmp_path, width, height):
    Image.new("RGB", (width, height), "red").save(tmp_path / "a.png")
    expected = processor(images=Image.new("RGB", (9, 9), "red"))["pixel_values"]
    np.testing.assert_allclose(processor(images=tmp_path / "a.png")["pixel_values"], expected, atol=1e-5)


SHORTEN = """
import os, threading
from PIL import Image
from processing.images import check_image, open_image

noise = Image.effect_noise((2000, 2000), 90)
for kind, settings in {"raw.tif": {}, "lzw.tif": {"compression": "tiff_lzw"}, "raw.bmp": {}}.items():
    for open_it in (open_image, check_image):
        for delay in range(4):
            noise.save(kind, **settings)
            threading.Timer(delay / 400, os.truncate, (kind, 100)).start()
            try:
                open_it(kind)
            except ValueError:
                pass
        print(kind, open_it.__name__, flush=True)
"""


def test_a_file_shortened_during_reading_does_not_kill_the_process(tmp_path):
    command, environment = [sys.executable, "-c", SHORTEN], os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=200)
    assert (ended.returncode, len(ended.stdout.splitlines())) == (0, 6), ended.stdout + ended.stderr


def test_the_error_for_a_large_image_says_how_to_raise_the_limit(processor, tmp_path, limit):
    Image.new("1", (20_000, 15_000)).save(tmp_path / "scan.png")
    message = r"scan.png': it has 300 megapixels \(20,000 x 15,000\), above the limit of 178.*max_megapixels=300 "
    message += r".*--max_megapixels 300.*SEVLM_MAX_MEGAPIXELS=300"
    with pytest.raises(ValueError, match=message):
        processor(images=tmp_path / "scan.png")
    assert "--max_megapixels 300" in check_image(str(tmp_path / "scan.png"))
    with open(tmp_path / "scan.png", "rb") as file:
        assert identify(file, 300).size == (20_000, 15_000)
    assert Image.MAX_IMAGE_PIXELS < 1e8, "for this image only"


def test_a_call_may_have_a_higher_or_lower_limit_than_the_process(tmp_path, limit):
    image(size=(100, 100)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="1 megapixels .100 x 100., above the limit of 0.001"):
        open_image(tmp_path / "a.png", max_megapixels=0.001)
    set_max_megapixels(0.001)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.png")
    assert "above the limit" in check_image(str(tmp_path / "a.png"))
    assert open_image(tmp_path / "a.png", max_megapixels=0.01).size == (100, 100)
    set_max_megapixels(0.01)
    assert open_image(tmp_path / "a.png").size == (100, 100) and check_image(str(tmp_path / "a.png")) is None
    for wrong in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="megapixels above 0"):
            set_max_megapixels(wrong)


def test_the_environment_sets_the_limit_for_every_library_and_process(tmp_path, limit, monkeypatch):
    Image.new("1", (20_000, 15_000)).save(tmp_path / "scan.png")
    program = "import sys, processing; from PIL import Image; print(Image.open(sys.argv[1]).size)"
    environment = os.environ | {"PYTHONPATH": str(ROOT), LIMIT_VARIABLE: "300"}
    command = [sys.executable, "-c", program, str(tmp_path / "scan.png")]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert ended.stdout == "(20000, 15000)\n", ended.stderr
    monkeypatch.setenv(LIMIT_VARIABLE, "299")
    reading._set_limit_from_environment()
    assert "above the limit of 299" in check_image(str(tmp_path / "scan.png"))
    for wrong in ("many", "0"):
        monkeypatch.setenv(LIMIT_VARIABLE, wrong)
        with pytest.raises(ValueError, match=f"{LIMIT_VARIABLE} is '{wrong}'"):
            reading._set_limit_from_environment()


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    for number in range(6):
        image(number).save(tmp_path / f"{number}.png")
    running, most, as_rgb, two = [], [], reading._as_rgb, threading.Barrier(2)

    def decode_two(picture):
        two.wait(timeout=60)
        return as_rgb(picture)

    def decode_and_count(picture):
        running.append(picture)
        most.append(len(running))
        time.sleep(0.02)
        running.remove(picture)
        return as_rgb(picture)

    for large, decode in ((1000, decode_and_count), (10**6, decode_two)):
        monkeypatch.setattr(reading, "_as_rgb", decode)
        monkeypatch.setattr(reading, "_LARGE", large)
        with ThreadPoolExecutor(6) as threads:
            assert len(list(threads.map(open_image, sorted(tmp_path.iterdir())))) == 6
    assert most == [1] * 6


def test_a_folder_with_odd_names_and_special_files_is_explained_and_resumed(checkpoint, tmp_path, monkeypatch, capsys):
    try:
        folder = odd_folder(tmp_path / "odd")
    except OSError:
        pytest.skip("the file system has no such names")
    output = tmp_path / "explanations.parquet"
    arguments = [str(folder), "--model", checkpoint, "--output", str(output), "--batch_size", "4", "--device", "cpu"]
    arguments += ["--emotion", "awe", "--max_new_tokens", "2"]
    append, batches = explain_folder.append_line, []

    def stopping(file, content):
        if isinstance(content, list):
            batches.append(content)
            if len(batches) > 4:
                raise KeyboardInterrupt
        append(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(explain_folder, "append_line", stopping)
        assert command_line.main(arguments) == 130
    done = sum(map(len, batches[:4]))
    capsys.readouterr()
    assert command_line.main(arguments) == 3
    printed = capsys.readouterr().err
    assert f"{done} of {len(NAMES) + len(SPECIAL_FILES)} were done before" in printed
    assert f"{len(NAMES)} pictures explained" in printed
    for file, reason in SPECIAL_FILES.items():
        assert any(f"odd/{file}: " in line and reason in line for line in printed.splitlines()), file
    table = pd.read_parquet(output)
    assert (table["error"].notna().sum(), len(table)) == (len(SPECIAL_FILES), len(NAMES) + len(SPECIAL_FILES))
    files = table["file"][table["error"].isna()]
    expected = sorted(os.fsdecode(os.path.join(os.fsencode(folder), name)) for name in NAMES)
    assert files.tolist() == [explanation_table.encodable(name) for name in expected]
    assert files.nunique() == len(NAMES), "different names stay different"


@pytest.mark.parametrize("what", ["pipe.png", "zero.png"])
def test_a_named_special_file_is_refused(checkpoint, tmp_path, what):
    folder = odd_folder(tmp_path / "odd", [])
    with pytest.raises(SystemExit, match=f"{what}: a pipe, a socket or a device, not a file"):
        command_line.main([str(folder / what), "--model", checkpoint, "--device", "cpu"])


def test_an_image_that_changes_during_reading_is_left_out(checkpoint, tmp_path, monkeypatch, capsys):
    for number in range(3):
        image(number).save(tmp_path / f"{number}.png")

    def changing(source, *limits, **options):
        picture = open_image(source, *limits, **options)
        if source.endswith("1.png"):
            image(9).save(source)
        return picture

    monkeypatch.setattr(explain_folder, "open_image", changing)
    arguments = [str(tmp_path), "--model", checkpoint, "--emotion", "awe", "--max_new_tokens", "2", "--json"]
    assert command_line.main([*arguments, "--device", "cpu"]) == 3
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert "1.png: the file changed while it was read" in captured.err


def test_the_command_has_limits(checkpoint, tmp_path, capsys):
    image(size=(100, 100)).save(tmp_path / "a.png")
    arguments = [str(tmp_path / "a.png"), "--model", checkpoint, "--max_new_tokens", "2", "--device", "cpu"]
    assert command_line.main([*arguments, "--max_megapixels", "0.001"]) == 1
    assert "--max_megapixels 1" in capsys.readouterr().err
    assert command_line.main([*arguments, "--max_megapixels", "0.1", "--timeout", "3", "--max_megabytes", "1"]) == 0
    with pytest.raises(SystemExit):
        command_line.main([*arguments, "--timeout", "0"])
    assert "a number above 0" in capsys.readouterr().err


def test_loops_of_links_and_pipes_are_missing_images(tmp_path):
    rows = make_rows(8, per_painting=1)
    file, images = write_csv(tmp_path / "a.csv", rows), write_images(tmp_path / "images", rows)
    loop = images / f"{painting_name(rows[2])}.jpg"
    loop.unlink()
    loop.symlink_to(loop.name)
    (images / "Loop").symlink_to("Loop")
    pipe = images / f"{painting_name(rows[3])}.jpg"
    pipe.unlink()
    os.mkfifo(pipe)
    with pytest.raises(FileNotFoundError, match="2 of 8 images are missing .2.*--on_bad_image skip"):
        load_artemis(file, images)
    assert sum(map(len, load_artemis(file, images, on_bad_image="skip").values())) == 6


def test_an_image_folder_with_a_path_that_is_not_utf_8_is_named_with_the_remedy(tmp_path):
    rows = make_rows(8, per_painting=1)
    file = write_csv(tmp_path / "a.csv", rows)
    try:
        images = write_images(Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9")), rows)
    except OSError:
        pytest.skip("the file system has no such names")
    with pytest.raises(ValueError, match="not UTF-8.*Rename that folder or give a link"):
        load_artemis(file, images)
    (tmp_path / "link").symlink_to(images)
    assert sum(map(len, load_artemis(file, tmp_path / "link").values())) == 8
