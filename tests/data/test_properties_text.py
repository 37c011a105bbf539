"""Properties of tables, lexicons, VAD readers and splits, on drawn texts."""

import csv
import io
import string

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from modeling_sevlm.emotion_sevlm import VADLookup
from processing.artemis import draw_splits
from processing.csv_files import csv_rows
from processing.vad_lexicon import SCALES, UNITS, VADLexicon
from tests.helpers.examples import examples
from tests.helpers.tiny import tiny_processor


PROCESSOR = tiny_processor(max_length=10_000)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
# Many of the characters that readers of tables treat specially.
MARKS = st.lists(
    st.sampled_from(['"', '""', ",", "\n", "\r", "\r\n", " ", "\t", "a", "é", "\ufeff", "\u2028", ";", "\\"])
)
FIELDS = ANY_TEXT | MARKS.map("".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("properties")


@examples(60)
@given(
    rows=st.lists(st.tuples(FIELDS, FIELDS, FIELDS), max_size=8),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.sampled_from(["", "\ufeff"]),
)
@example(rows=[("x", '"', ""), ("", "", "")], quoting=csv.QUOTE_MINIMAL, newline="\n", mark="")
def test_a_table_is_read_as_it_was_written(folder, rows, quoting, newline, mark):
    rows = [(first.lstrip("\ufeff"), *rest) for first, *rest in rows]
    if newline != "\r\n" and any(mark in field for row in rows for field in row for mark in "\r\n"):
        quoting = csv.QUOTE_ALL  # `csv` quotes only the kind of line break that ends its lines
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=quoting, lineterminator=newline)
    writer.writerows([("a", "b", "c"), *rows])
    path = folder / "table.csv"
    path.write_text(mark + buffer.getvalue(), encoding="utf-8", newline="")
    found = list(csv_rows(path))
    assert [tuple(fields) for _, fields in found] == [("a", "b", "c"), *rows]
    lines = buffer.getvalue().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for (line, _), (first, *_) in zip(found[1:], rows, strict=True):
        plain = first.replace('"', "").replace("\r\n", "\n").replace("\r", "\n").split("\n")[0]
        assert lines[line - 1].replace('"', "").startswith(plain), "a row begins on the reported line"


LETTERS = st.text(st.characters(categories=["L"]), min_size=1, max_size=12)
WORDS = (LETTERS | st.text(string.ascii_letters, min_size=1, max_size=8)).map(str.casefold).filter(str.isalpha)
VALUES = st.integers(-UNITS, UNITS)


@examples(60)
@given(
    entries=st.dictionaries(WORDS, st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=20),
    about=st.tuples(ANY_TEXT, ANY_TEXT, ANY_TEXT),
    redistributable=st.booleans(),
    data=st.data(),
)
def test_any_saved_lexicon_is_read_back_exactly(folder, entries, about, redistributable, data):
    inflected = data.draw(st.sets(st.sampled_from(sorted(entries))))
    entries = {word: tuple(value / UNITS for value in row) for word, row in entries.items()}
    name, version, terms = about
    lexicon = VADLexicon(
        entries, name=name, version=version, license=terms, redistributable=redistributable, inflected=inflected
    )
    lexicon.save(folder / "saved.tsv")
    again = VADLexicon.from_file(folder / "saved.tsv")
    assert list(again.items()) == list(entries.items())
    assert (again.to_metadata(), again.inflected) == (lexicon.to_metadata(), lexicon.inflected)


@examples(60)
@given(
    entries=st.dictionaries(WORDS, st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=20),
    scale=st.sampled_from(sorted(SCALES)),
    delimiter=st.sampled_from(["\t", ",", " "]),
    header=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.sampled_from(["", "\ufeff"]),
)
def test_the_scale_of_any_list_is_told_from_its_values(folder, entries, scale, delimiter, header, newline, mark):
    entries = dict(entries)
    # Scales differ by negative values and by values above 1.
    entries["low"], entries["high"] = (-UNITS, 0, 0), (UNITS, 0, 0)
    start, end = SCALES[scale]
    lines = [delimiter.join(["word", "valence", "arousal", "dominance"])] if header else []
    for word, row in entries.items():
        numbers = [f"{start + (value / UNITS + 1) / 2 * (end - start):.6f}" for value in row]
        lines.append(delimiter.join([word, *numbers]))
    path = folder / "list.txt"
    path.write_text(mark + newline.join(lines) + newline, encoding="utf-8", newline="")
    lexicon = VADLexicon.from_file(path, expand_inflections=False)
    assert list(lexicon) == list(entries)
    found = np.array(list(lexicon.values()))
    assert np.abs(found - np.array(list(entries.values())) / UNITS).max() < 1.5 / UNITS


@examples(60)
# Hypothesis rewrites `filter(str.split)` to "not empty", which lets white space pass.
@given(text=ANY_TEXT.filter(lambda text: text.split()), more=st.lists(WORDS, max_size=4))
@example(text="İstanbul straße ǅ ﬁn \u0345", more=["strasse", "fin"])
def test_both_readers_agree_on_any_text_and_any_lexicon(text, more):
    pieces = {"".join(filter(str.isalpha, word)).casefold() for word in text.split()}
    words = sorted(word for word in {*pieces, *more} if word.isalpha())
    vad = {word: ((i % 7 - 3) / 3.3, (i % 5 - 2) / 2.1, (i % 3 - 1) / 1.7) for i, word in enumerate(words)}
    lexicon = VADLexicon(vad, name="drawn")
    PROCESSOR.vad_lexicon = lexicon
    sentence = f"{text} {' '.join(more)} {text.upper()}"
    row = PROCESSOR(emotions="awe", explanations=sentence, return_tensors="pt")
    lookup = VADLookup.from_tables(lexicon.compile(PROCESSOR.tokenizer))
    assert torch.equal(lookup(row["input_ids"]), row["vad_values"])
    if any(word.isascii() and len(word) <= 8 for word in more):
        assert row["vad_values"].any() or not any(map(any, vad.values()))


@examples(40)
@given(count=st.integers(7, 400), names=st.lists(ANY_TEXT, max_size=5), data=st.randoms(use_true_random=False))
def test_splits_are_disjoint_stable_and_of_the_right_sizes(count, names, data):
    ids = sorted({*names, *(f"Style{i % 3}painting-{i}" for i in range(count))})
    drawn = draw_splits(ids)
    assert set(drawn) == set(ids) and set(drawn.values()) == {"train", "validation", "test"}
    held_out = -(-15 * len(ids) // 100)
    test = round(0.10 * len(ids))
    sizes = {split: sum(value == split for value in drawn.values()) for split in ("train", "validation", "test")}
    assert sizes == {"train": len(ids) - held_out, "validation": held_out - test, "test": test}
    shuffled = [*ids, *ids[:3]]
    data.shuffle(shuffled)
    assert draw_splits(shuffled) == drawn, "order and repetition have no effect"
