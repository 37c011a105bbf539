"""Metadata of image files: whatever it is, it does not change the pixels, except for the orientation."""

import io
import struct
import warnings
import zipfile
import zlib

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from processing.artemis import load_artemis
from processing.collator import SentencePairs
from processing.image_column import ImageColumn, read_by_project
from processing.image_metadata import without_metadata
from processing.images import check_image, identify, open_image
from tests.helpers.artemis import make_rows, painting_name, write_csv, write_images
from tests.helpers.bad_pictures import damage, encode, image, pictures
from tests.helpers.examples import examples


TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PLAIN = {kind: encode(image(size=(40, 24)), kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF")}
PLAIN["BigTIFF"] = encode(image(size=(40, 24)), "TIFF", big_tiff=True)
if features.check("avif"):
    PLAIN["AVIF"] = encode(image(size=(40, 24)), "AVIF")
XMP = b'<rdf:Description tiff:Orientation="6"/>'
FILES = pictures()

junk = st.binary(max_size=60)
# (tag, type, count, value or place): resolutions, units, makers, places of other tables.
entries = st.lists(
    st.tuples(
        st.sampled_from(
            [0x10F, 0x11A, 0x11B, 0x128, 0x131, 0x132, 0x2BC, 0x8773, 0x8769, 0x8825, 0xA005, 0x9286, 0xEEEE]
        ),
        st.integers(0, 14),
        st.sampled_from([0, 1, 2, 9, 2**31, 2**32 - 1]),
        st.sampled_from([0, 1, 3, 8, 26, 72, 2**31, 2**32 - 1]),
    ),
    max_size=6,
)


def table(order: str, rows) -> bytes:
    packed = b"".join(struct.pack(order + "HHII", *row) for row in sorted(rows))
    return struct.pack(order + "H", len(rows)) + packed + bytes(4)


@st.composite
def exif(draw) -> tuple[bytes, int]:
    """Exif data and their orientation."""
    order, orientation = draw(st.sampled_from("<>")), draw(st.integers(0, 10))
    rows = draw(entries)
    if orientation:
        value = orientation if order == "<" else orientation << 16
        rows.append((274, 3, 1, value))
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return b"Exif\0\0" + start + table(order, rows) + draw(junk), orientation


def segment(code: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(content) + 2) + content


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


@st.composite
def jpeg(draw) -> tuple[bytes, int]:
    (data, orientation), content = draw(exif()), PLAIN["JPEG"]
    names = [
        b"JFIF\0",
        b"JFIF",
        b"Adobe",
        b"ICC_PROFILE\0",
        b"MPF\0",
        b"Photoshop 3.0\0008BIM",
        b"FPXR\0",
        b"",
        b"Exif\0",
    ]
    codes = st.integers(0xE2, 0xEF) | st.sampled_from([0xE0, 0xFE])
    others = draw(st.lists(st.tuples(codes, st.sampled_from(names), st.binary(max_size=5)), max_size=4))
    segments = [segment(code, name + rest) for code, name, rest in others] + [segment(0xE1, data)]
    draw(st.randoms(use_true_random=False)).shuffle(segments)
    return content[:2] + b"".join(segments) + content[2:], orientation


@st.composite
def png(draw) -> tuple[bytes, int]:
    (data, orientation), content = draw(exif()), PLAIN["PNG"]
    kinds = [
        b"iCCP",
        b"tEXt",
        b"zTXt",
        b"iTXt",
        b"pHYs",
        b"gAMA",
        b"cHRM",
        b"sRGB",
        b"tIME",
        b"acTL",
        b"fcTL",
        b"prVt",
    ]
    texts = [b"", b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"profile\0\0", b"Raw profile type exif\0\0"]
    others = st.tuples(st.sampled_from(kinds), st.sampled_from(texts), junk, st.sampled_from([None, None, 7]))
    chunks = [chunk(kind, text + rest, checksum) for kind, text, rest, checksum in draw(st.lists(others, max_size=4))]
    places = [33, content.index(b"IEND") - 4]
    first, last = [], []
    for part in [*chunks, chunk(b"eXIf", data[6:])]:
        (first if draw(st.booleans()) else last).append(part)
    middle = content[places[0] : places[1]]
    return content[: places[0]] + b"".join(first) + middle + b"".join(last) + content[places[1] :], orientation


@st.composite
def webp(draw) -> tuple[bytes, int]:
    data, orientation = draw(exif())
    more = {"icc_profile": draw(junk), "xmp": draw(junk)}
    return encode(image(size=(40, 24)), "WEBP", exif=data, **more), orientation


def tiff_with(rows, kind: str = "TIFF", end: bytes = b"") -> bytes:
    """A TIFF file with more rows in its table, `(tag, type, count, value or place)`, and with `end` at its end."""
    content = PLAIN[kind]
    place_format, count_format, row_format, start = (
        ("Q", "Q", "HHQQ", 8) if kind == "BigTIFF" else ("I", "H", "HHII", 4)
    )
    (place,) = struct.unpack_from("<" + place_format, content, start)
    (count,) = struct.unpack_from("<" + count_format, content, place)
    first, size = place + struct.calcsize("<" + count_format), struct.calcsize("<" + row_format)
    rows = rows + [struct.unpack_from("<" + row_format, content, first + size * i) for i in range(count)]
    packed = b"".join(struct.pack("<" + row_format, *row) for row in sorted(rows))
    moved = content[:start] + struct.pack("<" + place_format, len(content) + len(end)) + content[2 * start :] + end
    return moved + struct.pack("<" + count_format, len(rows)) + packed + bytes(start)


@st.composite
def tiff(draw) -> tuple[bytes, int]:
    orientation = draw(st.integers(0, 10))
    rows = draw(entries) + ([(274, 3, 1, orientation)] if orientation else [])
    return tiff_with(rows, draw(st.sampled_from(["TIFF", "BigTIFF"]))), orientation


@given(content=st.one_of(jpeg(), png(), webp(), tiff()))
@examples(200)
def test_metadata_never_veto_an_image_and_only_turn_it(content):
    content, orientation = content
    kind = next(kind for kind in PLAIN if content[:3] == PLAIN[kind][:3])
    upright = open_image(PLAIN[kind])
    if orientation in TURNED:
        upright = upright.transpose(TURNED[orientation])
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert check_image(content) is None
        assert np.array_equal(np.asarray(open_image(content)), np.asarray(upright))
    assert not warned, [str(warning.message) for warning in warned]


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(kind=st.sampled_from(sorted(FILES)), chance=st.randoms(use_true_random=False))
@examples(200)
def test_a_check_passes_exactly_when_reading_does(kind, chance):
    _, content = damage(FILES[kind], chance)
    try:
        open_image(content)
        reason = None
    except ValueError as error:
        reason = str(error)
    assert (check_image(content) is None) == (reason is None), reason


@pytest.mark.parametrize("kind", [b"iTXt", b"iCCP"])
def test_text_and_profiles_of_a_png_may_unpack_to_any_size(kind):
    """1 GB in 1 MB of zeros is a bomb; the orientation at the start of a text of 3 MB counts."""
    turned = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'tiff:Orientation="6"'.ljust(3 << 20)))
    packed = zlib.compressobj()
    bomb = b"".join(packed.compress(bytes(1 << 24)) for _ in range(64)) + packed.flush()
    names = {b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0", b"iCCP": b"profile\0\0"}
    content = PLAIN["PNG"]
    upright = np.asarray(open_image(content))
    bombed = content[:33] + chunk(kind, names[kind] + bomb) + content[33:]
    assert check_image(bombed) is None and np.array_equal(np.asarray(open_image(bombed)), upright)
    content = content[:33] + turned + content[33:]
    assert np.array_equal(np.asarray(open_image(content)), np.rot90(upright, -1))


def test_the_orientation_in_imagemagicks_text_counts():
    data = Image.Exif()
    data[274] = 8
    lines = b"\nexif\n" + str(len(data.tobytes())).encode() + b"\n" + data.tobytes().hex().encode() + b"\n"
    text = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(lines))
    content = PLAIN["PNG"][:33] + text + PLAIN["PNG"][33:]
    assert np.array_equal(np.asarray(open_image(content)), np.rot90(np.asarray(open_image(PLAIN["PNG"]))))


@pytest.mark.parametrize("kind", ["TIFF", "BigTIFF"])
def test_the_orientation_in_the_xmp_data_of_a_tiff_counts_if_there_is_no_other(kind):
    upright = np.asarray(open_image(PLAIN[kind]))
    row = (700, 1, len(XMP), len(PLAIN[kind]))
    for rows, turns in {(row,): -1, (row, (274, 3, 1, 8)): 1, ((274, 4, 1, 6),): -1}.items():
        content = tiff_with(list(rows), kind, XMP)
        assert np.array_equal(np.asarray(open_image(content)), np.rot90(upright, turns))
        with Image.open(io.BytesIO(content)) as opened:
            assert np.array_equal(np.asarray(open_image(opened)), np.rot90(upright, turns))


@pytest.mark.parametrize("kind", ["TIFF", "BigTIFF"])
@pytest.mark.parametrize("row", [(700, 4, 1, 7), (700, 1, 2**31, 2**31), (255, 5, 1, 2**31), (255, 2, 9, 2**32 - 1)])
def test_odd_rows_of_a_tiff_do_not_veto_it(kind, row):
    content = tiff_with([row], kind)
    assert np.array_equal(np.asarray(open_image(content)), np.asarray(open_image(PLAIN[kind])))
    if row == (700, 4, 1, 7):
        with Image.open(io.BytesIO(content)) as opened:
            assert np.array_equal(np.asarray(open_image(opened)), np.asarray(open_image(PLAIN[kind])))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("place", [2**31, 2**62, 2**63, 2**64 - 1])
def test_a_bigtiff_whose_table_is_nowhere_is_refused(place, tmp_path):
    damaged = PLAIN["BigTIFF"][:8] + struct.pack("<Q", place) + PLAIN["BigTIFF"][16:]
    (tmp_path / "a.tif").write_bytes(damaged)
    for source in (damaged, tmp_path / "a.tif"):
        assert check_image(source)
    assert without_metadata(io.BytesIO(damaged))[1] is None


@pytest.mark.skipif(not features.check("avif"), reason="needs AVIF")
@pytest.mark.parametrize("orientation", [1, 6])
def test_damaged_exif_data_of_an_avif_do_not_veto_it(orientation):
    data = Image.Exif()
    data[274] = orientation
    data[0x128] = 2
    content = encode(image(size=(40, 24)), "AVIF", exif=data)
    expected = np.rot90(np.asarray(open_image(PLAIN["AVIF"])), -1 if orientation == 6 else 0)
    place = content.index(data.tobytes()[6:])
    for offset, junk in [(0, b""), (0, b"junk"), (4, b"\xff" * 4), (8, b"\xff" * 2), (10, b"\xff" * 8)]:
        damaged = content[: place + offset] + junk + content[place + offset + len(junk) :]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert check_image(damaged) is None
            assert np.array_equal(np.asarray(open_image(damaged)), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BigTIFF"])
def test_identifying_an_image_decodes_no_pixel(kind):
    with identify(io.BytesIO(PLAIN[kind])) as opened:
        assert opened.tile and opened.getexif() is not None and opened.tile


def test_an_opened_image_with_damaged_exif_data_is_read():
    odd = table("<", [(274, 3, 1, 6), (0x11A, 10, 1, 38)]) + struct.pack("<ii", -72, 1)
    content = PLAIN["JPEG"][:2] + segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0" + odd) + PLAIN["JPEG"][2:]
    with Image.open(io.BytesIO(content)) as opened:
        assert open_image(opened).size == open_image(content).size == (24, 40)
    with Image.open(io.BytesIO(PLAIN["JPEG"][:2] + segment(0xE1, b"Exif\0\0junk") + PLAIN["JPEG"][2:])) as opened:
        assert open_image(opened).size == (40, 24)


ODD_EXIF = b"Exif\0\0MM\0*\0\0\0\x08" + table(">", [(274, 3, 1, 6 << 16), (0x11A, 10, 1, 0)])
ODD = PLAIN["JPEG"][:2] + segment(0xE1, ODD_EXIF) + PLAIN["JPEG"][2:]


def test_rows_of_every_dataset_are_read_as_they_are_checked(tmp_path):
    rows = make_rows(8, per_painting=1)
    folder = write_images(tmp_path / "images", rows)
    (folder / f"{painting_name(rows[0])}.jpg").write_bytes(ODD)
    splits = load_artemis(write_csv(tmp_path / "a.csv", rows), folder)
    sizes = {row["painting"]: row["image"].size for split in splits.values() for row in split}
    assert sizes.pop(painting_name(rows[0])) == (24, 40) and set(sizes.values()) == {(8, 8)}

    broken = folder / f"{painting_name(rows[1])}.jpg"
    broken.write_bytes(ODD[:-200])
    splits = load_artemis(write_csv(tmp_path / "a.csv", rows), folder, verify_images=False)
    for split in splits.values():
        # A caller's own dataset, which decodes with Pillow, is read in the same way.
        pairs = SentencePairs(split.cast_column("image", datasets.Image()))
        for row, painting in enumerate(split["painting"]):
            if painting == painting_name(rows[1]):
                with pytest.raises(OSError, match=f"Cannot read the picture '{broken}'"):
                    pairs[row]
            else:
                assert pairs[row]["image"].mode == "RGB"


def test_rows_whose_paths_are_addresses_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
        file.writestr("odd.jpg", ODD)
    paths = [f"zip://{name}.jpg::{tmp_path / 'all.zip'}" for name in ("odd", "gone")]
    rows = datasets.Dataset.from_dict({"image": paths, "emotions": [[0]] * 2, "explanations": [["it is wide"]] * 2})
    rows = rows.cast_column("emotions", datasets.List(datasets.ClassLabel(names=["awe"])))
    pairs = SentencePairs(rows.cast_column("image", datasets.Image()))
    assert pairs[0]["image"].size == (24, 40)
    with pytest.raises(OSError, match=f"Cannot read the picture '{paths[1]}'"):
        pairs[1]


def test_an_image_column_keeps_its_mode_and_can_be_joined_with_others():
    data = datasets.Dataset.from_list([{"image": {"bytes": ODD, "path": None}}])
    grey = read_by_project(data.cast_column("image", datasets.Image(mode="L")))
    assert (grey[0]["image"].mode, grey[0]["image"].size) == ("L", (24, 40))
    plain = data.cast_column("image", datasets.Image())
    joined = datasets.concatenate_datasets([read_by_project(plain), plain])
    assert len(joined) == 2 and joined.features["image"] == ImageColumn() == datasets.Image()
    assert read_by_project(datasets.Dataset.from_dict({"text": ["a"]})).column_names == ["text"]
