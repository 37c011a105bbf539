"""The judge's data have the text, the filters and the selection of the captioner's data."""

import re

import pytest

from evaluation.emotion_text_data import EmotionTextArguments, load_emotion_texts
from processing.artemis import EMOTIONS, load_artemis
from processing.script_utils import DataArguments, load_data
from tests.helpers.artemis import COLUMNS, make_rows, write_csv


SPELLED = [*COLUMNS, "utterance_spelled"]


def numbered(rows):
    """Rows with 2 to 21 tokens and one misspelling, and the same text as another column."""
    for i, row in enumerate(rows):
        row.update(
            utterance=f"It's {i}" + " paintng" * (i % 20), utterance_spelled=f"spelled {i}" + " word" * (i % 20)
        )
    return rows


def captioner_texts(data):
    return {split: sorted(text for texts in part["explanations"] for text in texts) for split, part in data.items()}


def judge_texts(*files, **options):
    data = load_emotion_texts(EmotionTextArguments([str(file) for file in files], **options))
    return {split: sorted(part["explanation"]) for split, part in data.items()}


@pytest.mark.parametrize("options", [{"clean_text": True}, {"text_column": "utterance_spelled"}, {}])
def test_the_judge_reads_the_captioners_texts(tmp_path, options):
    file = write_csv(tmp_path / "a.csv", numbered(make_rows(60, 4)), SPELLED)
    options |= {"min_tokens": 5, "max_length_percentile": 90}
    expected = captioner_texts(load_artemis(file, with_images=False, **options))
    assert judge_texts(file, **options) == expected
    assert 0 < sum(map(len, expected.values())) < 240


def test_more_annotations_are_filtered_by_the_length_of_the_captioners_train_split(tmp_path):
    file = write_csv(tmp_path / "a.csv", numbered(make_rows(60, 4)), SPELLED)
    longer = [row | {"utterance": f"more {i}" + " words" * i} for i, row in enumerate(make_rows(40, 1, "more"))]
    options = {"max_length_percentile": 90, "more_annotations": [str(write_csv(tmp_path / "b.csv", longer))]}
    texts = [text for split in judge_texts(file, **options).values() for text in split]
    more = [len(text.split()) for text in texts if text.startswith("more")]
    own = [len(re.findall(r"\w+", text)) for text in texts if not text.startswith("more")]
    assert max(more) == max(own) < 21


def test_the_judge_follows_the_authors_rules_for_v2(tmp_path):
    new, old = numbered(make_rows(60, 3)), numbered(make_rows(100, 4))
    for row in new[:30]:
        row["repetition"] = 41  # so these ten paintings have rows in "rest", and old rows elsewhere
    for row in new:
        row["utterance"] = "new " + row["utterance"]
    files = write_csv(tmp_path / "Contrastive.csv", new), write_csv(tmp_path / "old.csv", old)
    options = {"version": "v2", "v2_rules": "authors", "min_tokens": 5, "max_length_percentile": 95}
    expected = captioner_texts(load_artemis(files, with_images=False, **options))
    assert judge_texts(*files, **options) == expected
    # A painting's further annotations go where it was drawn, not to "rest".
    again = [row | {"utterance": f"again and again and again {i}"} for i, row in enumerate(old[:40:4])]
    more = judge_texts(*files, **options, more_annotations=[str(write_csv(tmp_path / "c.csv", again))])
    assert sum(text.startswith("again") for split in more for text in more[split] if split != "rest") == 10


def test_the_embedded_texts_are_cleaned_and_filtered():
    options = {"num_paintings": 60, "clean_text": True, "min_tokens": 9}
    data = load_emotion_texts(EmotionTextArguments(**options))
    assert {split: sorted(part["explanation"]) for split, part in data.items()} == captioner_texts(
        load_data(DataArguments(**options), EMOTIONS, with_images=False)
    )


def test_a_missing_column_and_a_column_that_is_cleaned_already_are_one_line(tmp_path):
    file = write_csv(tmp_path / "a.csv", make_rows(8))
    with pytest.raises(ValueError, match=r"a\.csv, line 1: columns are missing: utterance_spelled"):
        judge_texts(file, text_column="utterance_spelled")
    with pytest.raises(ValueError, match="utterance_spelled is cleaned already"):
        judge_texts(file, text_column="utterance_spelled", clean_text=True)
