"""The text of annotations: another column, cleaning, the filters on length, and the authors' selection."""

import re

import datasets
import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from sklearn.model_selection import train_test_split

from processing.artemis import EMOTIONS, load_artemis
from processing.script_utils import DataArguments, load_data, text_form
from tests.helpers.artemis import COLUMNS, JPEG, make_rows, splits_of, write_csv


PREPROCESSED = "split tokens tokens_len tokens_encoded emotion_label utterance_spelled".split()


def texts_of(data, split=None):
    splits = data.values() if split is None else [data[split]]
    return sorted(text for part in splits for texts in part["explanations"] for text in texts)


def load_rows(tmp_path, rows, columns=COLUMNS, **options):
    return load_artemis(write_csv(tmp_path / "a.csv", rows, columns), with_images=False, **options)


def with_texts(rows, *texts):
    return [row | {"utterance": texts[i % len(texts)]} for i, row in enumerate(rows)]


@pytest.fixture
def preprocessed(tmp_path):
    """A file with the columns of ArtEmis' preprocessing: lists and quotes in cells, given splits."""
    rows = []
    for i, row in enumerate(make_rows(8)):
        split = ["train", "train", "train", "train", "val", "val", "test", "rest"][i // 2]
        spelled = f"so `` sad '' it is {i}"
        tokens = spelled.split()
        rows.append(
            row
            | {"utterance": f'So "sad", it\'s {i}!', "utterance_spelled": spelled, "split": split, "tokens": tokens}
            | {"tokens_len": len(tokens), "tokens_encoded": [1, 2, 3], "emotion_label": EMOTIONS.index(row["emotion"])}
        )
    return rows, write_csv(tmp_path / "artemis_preprocessed.csv", rows, [*COLUMNS, *PREPROCESSED])


def test_the_column_of_a_preprocessed_file_is_read_with_its_splits(preprocessed):
    rows, file = preprocessed
    data = load_artemis(file, with_images=False, text_column="utterance_spelled")
    assert {split: len(part) for split, part in data.items()} == {"train": 4, "validation": 2, "test": 1, "rest": 1}
    assert texts_of(data) == sorted(row["utterance_spelled"] for row in rows)
    assert texts_of(load_artemis(file, with_images=False)) == sorted(row["utterance"] for row in rows)


def test_a_missing_text_column_is_one_line_with_file_and_remedy(tmp_path):
    message = (
        r"a\.csv, line 1: columns are missing: utterance_spelled\. .*found: .*repetition\. .*leave out --text_column, "
        r".*--clean_text true\.$"
    )
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path, make_rows(8), text_column="utterance_spelled")


def test_a_cleaned_column_is_not_cleaned_again(preprocessed):
    for options in ({"annotations": preprocessed[1]}, {"dataset": "nowhere"}):
        with pytest.raises(
            ValueError, match="^The column utterance_spelled is cleaned already: leave out --clean_text"
        ):
            load_artemis(**options, with_images=False, text_column="utterance_spelled", clean_text=True)


def test_all_splits_are_cleaned_and_keep_their_paintings(tmp_path):
    rows = with_texts(make_rows(20) + make_rows(1, 41, "many"), "It's a peacful sea!", "I DON'T like it.")
    raw, cleaned = load_rows(tmp_path, rows), load_rows(tmp_path, rows, clean_text=True)
    assert set(cleaned) == {"train", "validation", "test", "rest"} and splits_of(cleaned) == splits_of(raw)
    for split in cleaned:
        assert set(texts_of(cleaned, split)) == {"it is a peaceful sea", "i do not like it"}


def test_an_utterance_that_is_empty_after_cleaning_is_a_bad_row(tmp_path):
    rows = make_rows(8)
    rows[5]["utterance"] = "... ?!"
    with pytest.raises(ValueError, match=r"a\.csv, line 7: the cleaned utterance is empty .*--on_bad_row skip"):
        load_rows(tmp_path, rows, clean_text=True)
    assert len(texts_of(load_rows(tmp_path, rows, clean_text=True, on_bad_row="skip"))) == 15
    assert len(texts_of(load_rows(tmp_path, rows))) == 16


def test_the_text_of_a_dataset_is_cleaned_or_comes_from_a_column(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = with_texts(make_rows(8), "It's so sad!")
    image = {"image": {"bytes": JPEG, "path": None}, "utterance_spelled": "it is so very sad"}
    data = Dataset.from_list([row | image for row in rows]).cast_column("image", datasets.Image())
    assert set(texts_of(load_artemis(dataset=data, clean_text=True))) == {"it is so sad"}
    assert set(texts_of(load_artemis(dataset=data, text_column="utterance_spelled"))) == {"it is so very sad"}


@pytest.mark.parametrize("options", [{"clean_text": True}, {"text_column": "utterance_spelled"}])
def test_the_filters_on_length_count_the_tokens_of_the_cleaned_text(tmp_path, options):
    # Runs of letters: 4 and 4. Tokens of the cleaned text: 4 and 5, because "man 's" and "( )" are two each.
    raw, cleaned = ["don't look-so", "man's (hat)"], ["do not look so", "man 's ( hat )"]
    rows = [row | {"utterance_spelled": cleaned[i % 2]} for i, row in enumerate(with_texts(make_rows(8), *raw))]
    columns = [*COLUMNS, "utterance_spelled"]
    assert set(texts_of(load_rows(tmp_path, rows, columns, min_tokens=5, **options))) == {cleaned[1]}
    assert set(texts_of(load_rows(tmp_path, rows, columns, max_length_percentile=0, **options))) == {cleaned[0]}
    assert set(texts_of(load_rows(tmp_path, rows, columns, min_tokens=4))) == {raw[0]}


def test_paintings_with_one_emotion_leave_the_train_split_only(tmp_path):
    rows = make_rows(40, 3)
    for i, row in enumerate(rows):
        if i // 3 % 4 == 0:
            row["emotion"] = "awe"
        elif i // 3 % 4 == 1:  # two emotions, of which the filter on length leaves one
            row.update(emotion=("awe", "awe", "fear")[i % 3], utterance="far too short" if i % 3 == 2 else "a b c d e")
    every = load_rows(tmp_path, rows, min_tokens=5)
    some = load_rows(tmp_path, rows, min_tokens=5, drop_single_emotion=True)
    assert {name for name in splits_of(every) if name not in splits_of(some)} == {
        row["painting"] for row in every["train"] if len(set(row["emotions"])) == 1
    }
    assert len(some["train"]) < len(every["train"]) and any(len(set(row["emotions"])) == 1 for row in some["test"])
    for split in ("validation", "test"):
        assert some[split].to_list() == every[split].to_list()


def make_v2(tmp_path):
    """New and old rows as frames, and their files. Some paintings are crowded in one of the files only."""
    new, old = make_rows(60, 3), make_rows(150, 5)
    for version, rows in (("new", new), ("old", old)):
        for i, row in enumerate(rows):
            row.update(utterance=f"{version} {i} " + "word " * (i * 7 % 23), version=version)
            number = int(re.sub(r"\D", "", row["painting"]))
            if number % 10 == {"new": 3, "old": 4}[version]:
                row["repetition"] = 41
            if number >= 145:
                row["repetition"] = 45
    files = write_csv(tmp_path / "Contrastive.csv", new), write_csv(tmp_path / "old.csv", old)
    return pd.DataFrame(new), pd.DataFrame(old), files


@pytest.mark.parametrize("filtered", [True, False])
def test_the_authors_rules_for_v2_equal_a_restatement_in_pandas(tmp_path, filtered):
    new, old, files = make_v2(tmp_path)
    table = pd.concat([new, old], ignore_index=True)
    table["id"] = table["art_style"] + table["painting"]
    usual, rest = table[table["repetition"] < 41].copy(), table[table["repetition"] >= 41].assign(split="rest")
    ids = sorted(usual["id"].unique())
    train, held_out = train_test_split(ids, test_size=0.15, random_state=2021)
    test = train_test_split(held_out, test_size=round(0.1 * len(ids)), random_state=2021)[1]
    usual["split"] = ["train" if i in train else "test" if i in test else "val" for i in usual["id"]]
    table = pd.concat([usual, rest])
    options = {}
    if filtered:
        length = table["utterance"].str.split().str.len()
        longest = np.percentile(length[table["split"] == "train"], 95)
        table = table[(length >= 5) & (length <= longest)]
        options = {"min_tokens": 5, "max_length_percentile": 95}
    new, old = table[table["version"] == "new"], table[table["version"] == "old"]
    chosen = pd.concat([new, old.sample(len(new), random_state=42)])
    old_test = old[old["split"] == "test"]
    unique = sorted((old_test["art_style"] + "/" + old_test["painting"]).unique())
    np.random.seed(42)
    half = np.random.choice(unique, len(unique) // 2, replace=False)
    expected = {
        "train": chosen[chosen["split"] == "train"],
        "validation": chosen[chosen["split"] == "val"],
        "test": pd.concat(
            [new[new["split"] == "test"], old_test[(old_test["art_style"] + "/" + old_test["painting"]).isin(half)]]
        ),
    }

    data = load_artemis(files, with_images=False, version="v2", v2_rules="authors", **options)
    for split, rows in expected.items():
        assert texts_of(data, split) == sorted(rows["utterance"])
        assert {"new", "old"} == set(rows["version"])
    both = set(data["train"]["painting"]) & set(data["rest"]["painting"])
    assert both, "a painting can be in train and in rest"
    per_split = load_artemis(files, with_images=False, version="v2", **options)
    assert not set(per_split["train"]["painting"]) & set(per_split["rest"]["painting"])


def test_v2_rules_have_no_effect_on_v1_and_other_rules_are_refused(tmp_path):
    rows = make_rows(40)
    assert splits_of(load_rows(tmp_path, rows, v2_rules="authors")) == splits_of(load_rows(tmp_path, rows))
    with pytest.raises(ValueError, match="`v2_rules` is 'paper'. Use 'per_split' or 'authors'."):
        load_rows(tmp_path, rows, v2_rules="paper")


def test_the_arguments_of_the_scripts_reach_the_data(tmp_path, preprocessed):
    rows, file = preprocessed
    by_name = load_data(DataArguments([str(file)], text_column="utterance_spelled"), EMOTIONS, with_images=False)
    assert texts_of(by_name) == sorted(row["utterance_spelled"] for row in rows)
    options = {"clean_text": True, "min_tokens": 7, "drop_single_emotion": True}
    data = load_data(DataArguments([str(file)], **options), EMOTIONS, with_images=False)
    assert texts_of(data) == sorted(f"so `` sad '' it is {i}" for i in range(16))


def test_the_embedded_data_take_the_filters_and_no_column():
    every = load_data(DataArguments(num_paintings=36), EMOTIONS, with_images=False)
    some = load_data(DataArguments(num_paintings=36, min_tokens=9, clean_text=True), EMOTIONS)
    assert splits_of(some).items() <= splits_of(every).items()
    kept = texts_of(some)
    assert 0 < len(kept) < len(texts_of(every)) and min(len(text.split()) for text in kept) == 9
    assert some["train"][0]["image"].size == (64, 64)
    with pytest.raises(ValueError, match="embedded data .* leave out --text_column"):
        load_data(DataArguments(text_column="utterance_spelled"), EMOTIONS)


def test_the_form_of_the_text_has_a_name():
    forms = {"raw": {}, "cleaned": {"clean_text": True}, "utterance_fr": {"text_column": "utterance_fr"}}
    assert {form: text_form(DataArguments(**options)) for form, options in forms.items()} == {f: f for f in forms}
    assert text_form(DataArguments(text_column="utterance_spelled")) == "cleaned"
