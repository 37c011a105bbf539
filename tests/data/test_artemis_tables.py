"""Loaded data for `load_artemis(dataset=...)`: tables of pandas, lists of rows, streams, dictionaries of splits."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, IterableDatasetDict
from PIL import Image

from processing.artemis import load_artemis


ROWS = [
    {"painting": f"p{i}", "emotion": emotion, "utterance": f"the sea {i} looks {emotion}"}
    for i in range(8)
    for emotion in ("awe", "fear")
]


def contents(data: DatasetDict) -> dict:
    return {split: data[split].remove_columns("image").to_list() for split in data}


def picture(index: int) -> Image.Image:
    return Image.new("RGB", (8 + index, 9))


def encoded(index: int) -> bytes:
    file = io.BytesIO()
    picture(index).save(file, "PNG")
    return file.getvalue()


def written(index: int, folder) -> str:
    picture(index).save(folder / f"{index}.png")
    return str(folder / f"{index}.png")


@pytest.fixture
def rows(tmp_path):
    return [row | {"image": written(int(row["painting"][1:]), tmp_path)} for row in ROWS]


def test_a_table_of_pandas_and_a_list_of_rows_give_what_a_dataset_gives(rows):
    expected = load_artemis(dataset=Dataset.from_list(rows))
    for data in (pd.DataFrame(rows), pd.DataFrame(rows, index=range(50, 66)), rows, {"all": pd.DataFrame(rows)}):
        loaded = load_artemis(dataset=data)
        assert contents(loaded) == contents(expected)
        for row in loaded["train"]:
            assert row["image"].size == (8 + int(row["painting"][1:]), 9)


def test_a_table_may_hold_the_paths_of_pictures_as_path_objects(rows):
    table = [row | {"image": Path(row["image"])} for row in rows]
    for data in (pd.DataFrame(table), table, {"all": table}):
        for row in load_artemis(dataset=data)["train"]:
            assert row["image"].size == (8 + int(row["painting"][1:]), 9)


@pytest.mark.parametrize("form", ["image", "bytes", "dictionary"])
def test_a_table_may_hold_pictures_in_any_form_of_datasets(form):
    make = {"image": picture, "bytes": encoded, "dictionary": lambda i: {"bytes": encoded(i), "path": None}}[form]
    table = pd.DataFrame([row | {"image": make(int(row["painting"][1:]))} for row in ROWS])
    for row in load_artemis(dataset=table)["train"]:
        assert row["image"].size == (8 + int(row["painting"][1:]), 9)


def test_a_table_with_a_row_per_painting_may_hold_lists_or_arrays(rows):
    grouped = pd.DataFrame(rows).groupby("painting").agg({"image": "first", "emotion": list, "utterance": list})
    grouped = grouped.reset_index()
    expected = contents(load_artemis(dataset=rows))
    assert contents(load_artemis(dataset=grouped)) == expected
    grouped["emotion"] = grouped["emotion"].map(np.array)  # as read from Parquet
    assert contents(load_artemis(dataset=grouped)) == expected


def test_missing_values_and_categories_of_a_table_are_those_of_a_dataset(rows):
    table = pd.DataFrame(rows).astype({"emotion": "category"})
    table.loc[3, "utterance"] = np.nan
    with pytest.raises(ValueError, match="split 'train', row 4"):
        load_artemis(dataset=table)
    loaded = load_artemis(dataset=table, on_bad_row="skip")
    assert contents(loaded) == contents(load_artemis(dataset=rows[:3] + rows[4:]))


def test_splits_of_different_kinds_are_kept_and_some_may_be_missing(rows):
    data = load_artemis(
        dataset={"train": pd.DataFrame(rows[:8]), "test": rows[8:12], "val": Dataset.from_list(rows[12:])}
    )
    assert data.num_rows == {"train": 4, "validation": 2, "test": 2}
    only = load_artemis(
        dataset=DatasetDict({"train": Dataset.from_list(rows[:8]), "test": Dataset.from_list(rows[8:])})
    )
    assert only.num_rows == {"train": 4, "test": 4}


def test_a_table_without_pictures_is_enough_if_none_are_asked_for():
    data = load_artemis(dataset=pd.DataFrame(ROWS), with_images=False)
    assert sum(data.num_rows.values()) == 8 and "image" not in data["train"].column_names


STREAM = Dataset.from_list([row | {"image": "a.jpg"} for row in ROWS]).to_iterable_dataset()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (STREAM, "IterableDataset.*without streaming=True"),
        (IterableDatasetDict({"train": STREAM}), "split 'train'.*without streaming=True"),
        ({"train": STREAM}, "without streaming=True"),
        ({name: [row[name] for row in ROWS] for name in ROWS[0]}, "split 'painting'.*a list of dictionaries"),
        (("a", "b"), "of the type tuple"),
        ({}, "at least one split"),
        ([], "no column 'image'"),
        (pd.DataFrame(ROWS), "no column 'image'"),
        (pd.DataFrame(columns=["image", "painting", "emotion", "utterance"]), "no annotations"),
    ],
)
def test_data_of_another_kind_is_refused_with_one_line(data, message):
    with pytest.raises(ValueError, match=message) as refused:
        load_artemis(dataset=data)
    assert "\n" not in str(refused.value)


def test_the_rows_of_a_stream_are_loaded_as_the_message_says(rows):
    dataset = Dataset.from_list(rows)
    stream = dataset.to_iterable_dataset()
    assert contents(load_artemis(dataset=Dataset.from_list(list(stream), features=stream.features))) == contents(
        load_artemis(dataset=dataset)
    )
