"""The formats of a folder's pictures: all that can be read are explained, and none is lost without a name."""

import io
import json
import os
import sys

import pandas as pd
import pytest
from PIL import Image

from modeling_sevlm import explain as command_line
from processing.image_formats import HEIF, readable_suffixes, unreadable_reason
from processing.images import open_image, register_heif
from tests.helpers.images import draw, picture


# Suffix -> mode; Pillow writes and reads these formats.
WRITTEN = dict.fromkeys("jpg jpeg jpe jfif png apng webp gif bmp dib tif tiff jp2 j2k jpx jpf avif ppm".split(), "RGB")
WRITTEN |= dict.fromkeys("pnm pcx tga sgi rgb ico icns im mpo qoi dds".split(), "RGB")
WRITTEN |= {"pgm": "L", "pbm": "1", "xbm": "1", "msp": "1", "bw": "L", "pfm": "F", "blp": "P"}
UNREADABLE = ["raw.dng", "raw.CR2", "scan.pdf", "drawing.svg", "page.eps", "layers.xcf", "new.jxl"]
OTHERS = ["a.txt", "b.txt", "c.TXT", "d.json", "e.xml", "film.mpg", "README"]


@pytest.fixture
def mixed(tmp_path):
    """A folder with a picture in each format, and other files."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for suffix, mode in WRITTEN.items():
        picture(mode, (32, 32)).save(folder / f"picture.{suffix}")
    for name in [*UNREADABLE, *OTHERS]:
        (folder / name).write_text("%!PS-Adobe-3.0 EPSF-3.0")
    return folder


def test_every_format_that_pillow_reads_is_explained_and_the_rest_is_named(explain, mixed, tmp_path, capsys):
    output = tmp_path / "out.csv"
    (mixed / "broken.jp2").write_bytes((mixed / "picture.jp2").read_bytes()[:60])
    assert explain(mixed, "--output", output) == 3
    table = pd.read_csv(output)
    read = table[table["error"].isna()]
    assert sorted(read["file"]) == sorted(str(mixed / f"picture.{suffix}") for suffix in WRITTEN)
    assert read["explanation"].notna().any() and read["emotion"].notna().all()
    errors = table[table["error"].notna()].set_index("file")["error"]
    assert sorted(errors.index) == sorted(str(mixed / name) for name in [*UNREADABLE, "broken.jp2"])
    assert "raw file" in errors[str(mixed / "raw.dng")] and "document" in errors[str(mixed / "scan.pdf")]
    printed = capsys.readouterr().err
    kinds = "1 .cr2, 1 .dng, 1 .svg, 1 .xcf, 1 .jxl, 1 .eps, 1 .pdf"
    (line,) = (line for line in printed.splitlines() if "formats that cannot be read" in line)
    start, _, counted = line.partition(f" in {mixed}: ")
    assert start == "7 pictures in formats that cannot be read"
    assert sorted(counted.rstrip(".").split(", ")) == sorted(kinds.split(", "))
    assert f"7 files of other types ignored in {mixed}: 3 .txt, " in printed and "1 without a suffix" in printed
    assert "1 left out because they cannot be read" in printed and "raw.dng" not in printed


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_reasons_and_names_that_are_not_utf8_are_written(explain, tmp_path, form):
    folder, output = draw(tmp_path / "pictures", 1), tmp_path / f"out.{form}"
    try:
        (folder / "link.png").symlink_to(os.fsdecode(b"caf\xe9.png"))
        (folder / os.fsdecode(b"\xe9.dng")).touch()
    except OSError:
        pytest.skip("this file system takes no such name")
    assert explain(folder, "--output", output) == 3
    table = (pd.read_csv if form == "csv" else pd.read_parquet)(output)
    assert table["error"].tolist()[1:] == [r"a broken link (caf\udce9.png)", unreadable_reason(".dng")]
    assert table["file"][2].endswith(r"\udce9.dng")


def test_on_the_screen_the_pictures_that_cannot_be_read_are_listed(explain, mixed, capsys):
    assert explain(mixed / "picture.png", mixed, "--json") == 3
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == len(WRITTEN)
    assert f"{mixed / 'raw.dng'}: a camera's raw file" in printed.err


def test_a_file_that_is_named_itself_is_tried_and_listed_once(mixed):
    (mixed / "raw.dng").write_bytes((mixed / "picture.tif").read_bytes())
    unreadable = []
    found = command_line.find_pictures([str(mixed / "raw.dng"), str(mixed), str(mixed)], unreadable)
    assert found[0] == str(mixed / "raw.dng") and len(found) == len(WRITTEN) + 1
    assert len(unreadable) == len(UNREADABLE) - 1


def test_a_folder_without_pictures_says_what_is_in_it(tmp_path, capsys):
    for name in ("a.txt", "b.txt", "c.dng"):
        (tmp_path / name).touch()
    with pytest.raises(SystemExit, match="no picture that can be read in .* There are other files: 2 .txt."):
        command_line.find_pictures([str(tmp_path)], [])
    assert "1 pictures in formats that cannot be read" in capsys.readouterr().err


def test_formats_that_run_programs_or_are_no_pictures_are_not_searched():
    assert not readable_suffixes() & {".eps", ".ps", ".iim", ".wmf", ".emf", ".mpg", ".h5", ".grib", ".pdf", ".txt"}
    assert unreadable_reason(".eps") and not unreadable_reason(".mpg") and not unreadable_reason(".jpg")


def iptc(content: bytes) -> bytes:
    """An IPTC file of 8 x 8 pixels that contains another file."""

    def field(record: int, number: int, value: bytes) -> bytes:
        return bytes([0x1C, record, number]) + len(value).to_bytes(2, "big") + value

    head = [(60, b"\1\0"), (65, b"\1"), (20, b"\0\x08"), (30, b"\0\x08"), (120, b"\5")]
    return b"".join(field(3, number, value) for number, value in head) + field(8, 10, content)


def test_a_program_inside_of_an_iptc_file_is_not_opened():
    content = iptc(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    assert Image.open(io.BytesIO(content)).format == "IPTC"
    with pytest.raises(ValueError, match="IPTC is not supported"):
        open_image(content)


def test_heif_files_are_read_if_pillow_heif_is_installed(explain, tmp_path, capsys):
    pytest.importorskip("pillow_heif", reason="pillow-heif is missing: pip install -e '.[heif]'")
    register_heif()
    upright = Image.new("RGB", (64, 32), "red")
    for name in ("a.heic", "b.HEIF", "c.hif"):
        upright.save(tmp_path / name, "HEIF", quality=95)
    assert open_image(tmp_path / "a.heic").size == (64, 32)
    red, green, blue = open_image(tmp_path / "a.heic").getpixel((9, 9))
    assert red > 240 and green < 15 > blue
    assert explain(tmp_path, "--json") == 0
    files = [json.loads(line)["file"] for line in capsys.readouterr().out.splitlines()]
    assert files == [str(tmp_path / name) for name in ("a.heic", "b.HEIF", "c.hif")]


def test_without_pillow_heif_the_reason_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "EXTENSION", {k: v for k, v in Image.EXTENSION.items() if v != "HEIF"})
    register_heif.cache_clear()
    readable_suffixes.cache_clear()
    try:
        assert not readable_suffixes() & {*HEIF.split()}
        assert "pip install pillow-heif" in unreadable_reason(".heic")
    finally:
        monkeypatch.undo()
        register_heif.cache_clear()
        readable_suffixes.cache_clear()
