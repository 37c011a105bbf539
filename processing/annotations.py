"""Reads ArtEmis' CSV files, or a dataset with images, into a table with one row per annotation.

Columns: `source` (index into the returned list), `row` (from 0), `painting` ("<art_style>/<painting>", empty if either
is missing), `emotion`, `utterance`, and, if the data have them, `repetition`, `split` and `version`.
"""

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import ClassLabel, Dataset, Image, IterableDataset, LargeList, List, load_dataset, load_from_disk

from .csv_files import csv_rows, shown
from .text_cleaning import clean_texts


NEEDED = ["art_style", "painting", "emotion", "utterance"]
OPTIONAL = ["repetition", "split", "version", "anchor_painting"]
CLEANED_COLUMN = "utterance_spelled"  # of the file that ArtEmis' preprocessing writes
Table: TypeAlias = Dataset | pd.DataFrame | list[dict]
Annotations = str | os.PathLike | Sequence[str | os.PathLike]


@dataclass(frozen=True)
class Source:
    """A CSV file with the line where each row starts, or a split of a dataset."""

    name: str
    lines: Sequence[int] | None = None

    def where(self, row: int) -> str:
        """Names a row (counted from 0) for a message."""
        return f"{self.name}, row {row + 1}" if self.lines is None else f"{self.name}, line {self.lines[row]}"


def is_cleaned(text_column: str | None, clean_text: bool) -> bool:
    """Tells whether utterances are, or will be, cleaned as ArtEmis does.

    Raises:
        ValueError: a column of cleaned text shall be cleaned.
    """
    if clean_text and text_column == CLEANED_COLUMN:
        raise ValueError(f"The column {CLEANED_COLUMN} is cleaned already: leave out --clean_text or --text_column.")
    return clean_text or text_column == CLEANED_COLUMN


def read_annotations(
    annotations: Annotations, version: str, text_column: str | None = None, clean_text: bool = False
) -> tuple[pd.DataFrame, list[Source]]:
    """Reads one CSV file for "v1". For "v2", reads a pair of files, or one file with a column `version`.

    Args:
        text_column: column to read in place of `utterance`.
        clean_text: clean the utterances (see `text_cleaning`).

    Raises:
        ValueError, FileNotFoundError: the message names the file, the line and the remedy.
    """
    files = [annotations] if isinstance(annotations, str | os.PathLike) else list(annotations)
    if not 1 <= len(files) <= (2 if version == "v2" else 1):
        raise ValueError(f"`annotations` has {len(files)} files. Give one, or for v2 (Contrastive.csv, v1 CSV).")
    tables = [_read_csv(os.fspath(file), text_column) for file in files]
    parts, sources = [part for part, _ in tables], [source for _, source in tables]
    if version == "v2":
        _add_versions(parts, sources)
    return _join(parts, sources, clean_text), sources


def read_dataset(
    dataset: str | os.PathLike | Table | dict[str, Table],
    image_column: str | None,
    painting_column: str,
    emotion_column: str | None,
    explanation_column: str | None,
    clean_text: bool = False,
) -> tuple[pd.DataFrame, list[Source], list[Dataset]]:
    """Reads a dataset whose rows hold an image and one annotation, or lists of annotations.

    Returns the annotations, their sources, and one dataset per source whose column `image` holds the undecoded images
    (none without `image_column`). Raises `ValueError` for data of another kind, such as a stream.
    """
    if isinstance(dataset, str | os.PathLike):
        folder = os.fspath(dataset)
        saved = any(os.path.isfile(os.path.join(folder, name)) for name in ("dataset_dict.json", "state.json"))
        dataset = load_from_disk(folder) if saved else load_dataset(folder)
    splits = dataset if isinstance(dataset, dict) else {"train": dataset}
    if not splits:
        raise ValueError("`dataset` is an empty dictionary. Give at least one split.")
    parts, sources, images = [], [], []
    for split, table in splits.items():
        source = Source(f"dataset split {split!r}")
        data = _as_dataset(table, source).with_format(None)
        emotion = emotion_column or _first_present(["emotion", "emotions"], data)
        explanation = explanation_column or _first_present(["utterance", "explanation", "explanations"], data)
        columns = {"image": image_column} if image_column else {}
        columns |= {"painting": painting_column, "emotion": emotion, "explanation": explanation}
        for kind, name in columns.items():
            if name not in data.column_names:
                found = ", ".join(data.column_names)
                raise ValueError(f"{source.name}: there is no column {name!r}. Give `{kind}_column=`; found: {found}.")
        part = _read_rows(data, source, painting_column, emotion, explanation)
        parts.append(part.assign(split=split) if len(splits) > 1 else part)
        sources.append(source)
        if image_column is None:
            continue
        column = data.select_columns([image_column])
        column = column if image_column == "image" else column.rename_column(image_column, "image")
        # The column may hold paths as text.
        images.append(column if isinstance(column.features["image"], Image) else column.cast_column("image", Image()))
    return _join(parts, sources, clean_text), sources, images


def _as_dataset(table: Table, source: Source) -> Dataset:
    if isinstance(table, Dataset):
        return table
    if isinstance(table, list) and all(isinstance(row, dict) for row in table):
        table = pd.DataFrame(table)
    if not isinstance(table, pd.DataFrame):
        remedy = "Load it without streaming=True, or use Dataset.from_list(list(stream), features=stream.features)"
        if not isinstance(table, IterableDataset):
            remedy = "Give a datasets.Dataset, a pandas.DataFrame, or a list of dictionaries"
        raise ValueError(f"{source.name} is of the type {type(table).__name__}, which is not supported. {remedy}.")
    # With None, because NaN among strings is an error.
    columns = table.astype(object).where(table.notna(), None).to_dict("list")
    return Dataset.from_dict({name: list(map(_without_path, values)) for name, values in columns.items()})


def _without_path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value  # Arrow does not know paths


def _join(parts: list[pd.DataFrame], sources: list[Source], clean_text: bool) -> pd.DataFrame:
    if not any(map(len, parts)):
        names = " and ".join(source.name for source in sources)
        raise ValueError(f"{names}: there are no annotations, only column names. Give the whole file.")
    for part, source in zip(parts, sources, strict=True):
        if "split" not in part and any("split" in other for other in parts):
            raise ValueError(f"{source.name}: the column split is missing. Add it, or remove it from the other file.")
    rows = pd.concat([part.assign(source=i) for i, part in enumerate(parts)], ignore_index=True)
    if clean_text:
        rows["utterance"] = clean_texts(rows["utterance"])
    # Without this column, `assign_splits` counts the annotations.
    return rows if all("repetition" in part for part in parts) else rows.drop(columns="repetition", errors="ignore")


def _read_csv(file: str, text_column: str | None) -> tuple[pd.DataFrame, Source]:
    if not os.path.isfile(file):
        raise FileNotFoundError(f"The annotations {file!r} do not exist. Give ArtEmis' CSV file (--annotations).")
    rows = csv_rows(file)
    line, found = next(rows, (1, None))
    if found is None:
        raise ValueError(f"{file}: the file is empty. Give a CSV file with the columns {', '.join(NEEDED)}.")
    header_of = {name: name for name in NEEDED + OPTIONAL} | {"utterance": text_column or "utterance"}
    needed = [header_of[name] for name in NEEDED]
    if missing := [name for name in needed if name not in found]:
        remedy = "Rename the columns, or save the file as comma-separated values."
        if missing == [text_column]:
            remedy = (
                "Name another column; or leave out --text_column, and clean the utterances with --clean_text true."
            )
        raise ValueError(
            f"{file}, line {line}: columns are missing: {', '.join(missing)}. Needed: {', '.join(needed)}; found: "
            f"{shown(found)}. {remedy}"
        )
    places = {name: found.index(header) for name, header in header_of.items() if header in found}
    lines, chunks = array("q"), []
    while chunk := list(islice(rows, 20_000)):  # a million rows of Python strings would take gigabytes
        lines.extend(line for line, _ in chunk)
        columns = {name: [fields[place] for _, fields in chunk] for name, place in places.items()}
        chunks.append(pa.table(columns, schema=pa.schema([(name, pa.string()) for name in places])))
    # Not pandas.read_csv: it reads an utterance or a painting "None" as a missing value.
    table = pa.concat_tables(chunks).to_pandas() if chunks else pd.DataFrame(columns=list(places), dtype=str)
    return _add_style(table.assign(row=np.arange(len(lines)))), Source(file, lines)


def _add_style(rows: pd.DataFrame) -> pd.DataFrame:
    named = (rows["art_style"].str.strip() != "") & (rows["painting"].str.strip() != "")
    rows["painting"] = (rows["art_style"] + "/" + rows["painting"]).where(named, "")
    return rows.drop(columns="art_style")


def _add_versions(parts: list[pd.DataFrame], sources: list[Source]) -> None:
    """Adds the column `version` (new: Contrastive.csv, old: v1) and converts names to NFD, as ArtEmis v2 does."""
    if len(parts) == 2:
        if "anchor_painting" in parts[1] and "anchor_painting" not in parts[0]:
            raise ValueError(f"{sources[1].name} is the contrastive file: give the pair (Contrastive.csv, v1 CSV).")
        parts[0]["version"], parts[1]["version"] = "new", "old"
    elif "version" not in parts[0]:
        message = "the column version (new or old) is missing. Add it, or give the pair (Contrastive.csv, v1 CSV)."
        raise ValueError(f"{sources[0].name}, line 1: {message}")
    for part, source in zip(parts, sources, strict=True):
        unknown = part.index[~part["version"].isin(["new", "old"])]
        if len(unknown):
            problem = f"unknown version {part['version'][unknown[0]]!r}. Write new or old."
            raise ValueError(f"{source.where(unknown[0])}: {problem}")
        part["painting"] = part["painting"].str.normalize("NFD")


def _read_rows(data: Dataset, source: Source, painting: str, emotion: str, explanation: str) -> pd.DataFrame:
    optional = [name for name in ("art_style", "repetition", "split") if name in data.column_names]
    rows = data.select_columns([painting, emotion, explanation, *optional]).to_pandas()
    for name in {painting, explanation}:
        if rows[name].dtype.kind == "f" and data.features[name].dtype != "float64":
            # pandas turns integers into floats if a value is missing: painting 7 would be named "7.0".
            rows[name] = pd.Series(data[name][:], dtype=object)
    rows = rows.rename(columns={painting: "painting", emotion: "emotion", explanation: "utterance"})
    rows["row"] = np.arange(len(rows))

    label = data.features[emotion]
    is_list = isinstance(label, List | LargeList)
    if is_list != isinstance(data.features[explanation], List | LargeList):
        raise ValueError(f"{source.name}: {emotion!r} and {explanation!r} must both be lists, or both values.")
    if is_list:
        label = label.feature
        uneven = rows.index[rows["emotion"].str.len() != rows["utterance"].str.len()]
        if len(uneven):
            problem = f"{emotion!r} and {explanation!r} differ in length. Give one emotion per explanation."
            raise ValueError(f"{source.where(uneven[0])}: {problem}")
        rows = rows.explode(["emotion", "utterance"], ignore_index=True)
    if isinstance(label, ClassLabel):
        rows["emotion"] = rows["emotion"].map(dict(enumerate(label.names)))
    for name in {"painting", "emotion", "utterance", "art_style", "split"} & set(rows.columns):
        rows[name] = rows[name].astype(object).where(rows[name].notna(), "").astype(str)
    return _add_style(rows) if "art_style" in rows else rows


def _first_present(names: list[str], data: Dataset) -> str:
    return next((name for name in names if name in data.column_names), names[0])
