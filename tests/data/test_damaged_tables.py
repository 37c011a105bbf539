"""Annotation tables as users have them: read as meant, or refused with file, line and remedy."""

import csv
import logging

import pytest
from datasets import Dataset

from processing.artemis import load_artemis
from tests.helpers.artemis import COLUMNS, ROWS, annotations_of, as_csv


def changed(row: int, **values) -> list[dict]:
    return [other | (values if i == row else {}) for i, other in enumerate(ROWS)]


def load(tmp_path, content: str | bytes, **options):
    path = tmp_path / "table.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_artemis(path, with_images=False, **options)


PLAIN = as_csv(ROWS)
HEADER, SECOND = ",".join(COLUMNS), "utterance 0 of painting 2"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.replace("\r\n", "\n"),
        PLAIN.replace("\r\n", "\r"),
        "\ufeff" + PLAIN,
        as_csv(ROWS, quoting=csv.QUOTE_ALL),
        as_csv(ROWS, ["repetition", "utterance", "emotion", "painting", "art_style"]),
        PLAIN.replace("\r\n", "\r\n\r\n"),
        PLAIN.replace("\r\n", ",\r\n"),
        as_csv([row | {"emotion": f"  {row['emotion'].upper().replace(' ', '  ')} "} for row in ROWS]),
    ],
    ids=["LF", "CR", "BOM", "all quoted", "other order", "empty lines", "empty last column", "labels in capitals"],
)
def test_another_format_of_the_same_table_gives_the_same_annotations(tmp_path, content):
    assert annotations_of(load(tmp_path, content)) == annotations_of(load(tmp_path, PLAIN))


TEXTS = {
    "quotes": 'she says "no", and "no" again',
    "only quotes": '""',
    "comma": "dark, cold, and far",
    "line breaks": "one\r\ntwo\nthree\rfour",
    "500 words": "word " * 499 + "end",
    "emoji": "it is 😱 and 👩‍👩‍👧 and 🏳️‍🌈",
    "right to left": "הים שקט مرحبا \u202eabc\u202c \u2066x\u2069",
    "control characters": "a\x01b\x07c\x1b[31md\x7f\x85e",
    "line separators": "a\u2028b\u2029c\x0bd\x0ce\x1cf",
    "combining": "e\u0301 a\u030a \u00ad soft\u00adhyphen \ufeff",
    "formula": "=1+1",
    **{
        f"reads as missing: {text}": text
        for text in ("None", "NA", "N/A", "null", "#N/A", "NULL", "-nan", "True", "1")
    },
}


@pytest.mark.parametrize("kind", TEXTS)
def test_any_utterance_is_read_as_it_was_written(tmp_path, kind):
    found = annotations_of(load(tmp_path, as_csv(changed(4, utterance=TEXTS[kind]))))
    expected = annotations_of(load(tmp_path, PLAIN))
    expected[expected.index(("Pop/p.002-x", 2, SECOND))] = ("Pop/p.002-x", 2, TEXTS[kind])
    assert found == sorted(expected)


def test_names_that_other_readers_take_for_missing_values_or_numbers_stay_names(tmp_path):
    names = ["None", "NA", "null", "nan", "1.0", "007", "True", "-"]
    rows = [row | {"painting": names[i // 2]} for i, row in enumerate(ROWS)]
    data = load(tmp_path, as_csv(rows))
    assert {painting.split("/")[1] for painting, _, _ in annotations_of(data)} == set(names)


def test_integer_names_in_a_dataset_stay_integers_if_one_is_missing():
    columns = {name: [row[name] for row in ROWS] for name in ("emotion", "utterance")}
    data = Dataset.from_dict(columns | {"painting": [i // 2 for i in range(15)] + [None]})
    data = data.add_column("image", [""] * 16)
    kept = load_artemis(dataset=data, with_images=False, on_bad_row="skip")
    assert {painting for painting, _, _ in annotations_of(kept)} == set("01234567")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "the file is empty"),
        ("\r\n\r\n", "the file is empty"),
        (HEADER, "no annotations, only column names"),
        (PLAIN.replace(SECOND, "caf\u00e9").encode("latin-1"), r"line 6: not UTF-8 text .*xe9.*LATIN1"),
        (PLAIN.encode("utf-16"), "not UTF-8 text but UTF-16.*iconv"),
        (PLAIN.encode("utf-16-le"), "line 1: a NUL character.*UTF-16"),
        (PLAIN.replace(SECOND, "a\0b"), "line 6: a NUL character"),
        (bytes(range(256)) * 9, "line 2: not UTF-8"),
        (PLAIN + "\ufeff" + PLAIN, "line 18: a byte order mark inside the file"),
        (PLAIN + PLAIN, "line 18: unknown emotion 'emotion'"),
        (PLAIN.replace(HEADER, HEADER.replace("repetition", "utterance")), "line 1: two columns are named utterance"),
        (PLAIN.replace(",", ";"), "line 1: columns are missing"),
        (
            as_csv(ROWS, ["art_style", "painting", "repetition"]),
            "line 1: columns are missing: emotion, utterance. Needed: art_style, painting, emotion, utterance; "
            "found: art_style, painting, repetition.*Rename",
        ),
        (
            as_csv([row | {"split": "train"} for row in ROWS], [*COLUMNS, "split"]).replace("2,train", "2,dogs", 1),
            "line 2: unknown split 'dogs'.*remove the column split",
        ),
        (PLAIN.replace(SECOND + ",2", SECOND), r"line 6: fewer values \(4\) than columns \(5\).*quotes and commas"),
        (PLAIN.replace("\r\n", ",\r\n").replace(SECOND + ",2,", SECOND + ",2"), "line 6: fewer"),
        (PLAIN.replace(SECOND, "a, b"), r"line 6: more values \(6\) than columns \(5\)"),
        (PLAIN.replace(SECOND, '"The sea'), "line 6: not well-formed CSV"),
        (PLAIN.replace(SECOND, 'The "sea'), r"line 6: not well-formed CSV \(an odd number of quotes\)"),
        (PLAIN.replace(SECOND, '"The sea" is dark'), "line 6: not well-formed CSV"),
        # Other readers take the rows between these two quotes for one utterance.
        (
            PLAIN.replace(SECOND, '"The sea').replace("utterance 0 of painting 5", '"quiet"'),
            "line 6: not well-formed CSV",
        ),
        (as_csv(changed(4, utterance="word " * 30_000)), "line 6: not well-formed CSV .*field limit"),
        (PLAIN.replace("\r\n", "\r\n" * 2).replace(SECOND, ""), "line 11: the utterance is empty"),
        (as_csv(changed(2, utterance="a\nb\nc")).replace(SECOND, " "), "line 8: the utterance is empty"),
    ],
)
def test_a_damaged_table_is_refused_with_file_line_and_remedy(tmp_path, content, problem):
    with pytest.raises(ValueError, match=rf"table\.csv[,:] .*{problem}"):
        load(tmp_path, content)


def test_copies_of_annotations_are_counted_and_reported(tmp_path, caplog):
    rows = [row | {"repetition": 4} for row in ROWS + ROWS]
    with caplog.at_level(logging.WARNING):
        assert len(annotations_of(load(tmp_path, as_csv(rows)))) == 32
    assert "16 annotations are copies of others, the first at" in caplog.text and "line 18" in caplog.text
    caplog.clear()
    load(tmp_path, PLAIN)
    assert not caplog.records


def test_one_painting_in_two_unicode_forms_is_reported(tmp_path, caplog):
    rows = [*ROWS, *(ROWS[0] | {"painting": name, "utterance": name} for name in ("\u00e9tude", "e\u0301tude"))]
    with caplog.at_level(logging.WARNING):
        load(tmp_path, as_csv(rows))
    assert r"2 names of paintings differ only in their Unicode form: 'Pop/\xe9tude'; 'Pop/e\u0301tude'" in caplog.text


def test_a_last_line_that_may_be_cut_is_reported(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load(tmp_path, as_csv(ROWS, COLUMNS[:4])[:-6])
    assert "does not end in a line break: check that its last line is complete" in caplog.text
