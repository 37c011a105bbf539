"""Emotion annotations as a table with one row each, from ArtEmis' CSV files or a data set that carries its images.

The columns are source and row (where an annotation comes from: index into the list of `Source`, row counted from 0),
painting ("<art_style>/<painting>"; empty where either is missing), emotion and utterance as text, and, where the data
have them, repetition, split and version.
"""

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Image, LargeList, List, load_dataset, load_from_disk


Annotations = str | os.PathLike | Sequence[str | os.PathLike]


@dataclass(frozen=True)
class Source:
    """A CSV file or a split of a data set, to name its rows in messages."""

    name: str
    num_rows: int
    is_file: bool = False

    def where(self, row: int) -> str:
        """Name a row (counted from 0): the line as an editor shows it, or "row N" (from 1) where that is unknown."""
        # Line breaks inside quotes or empty lines shift the lines: then they are not one more than the rows.
        if self.is_file and self._last_line == self.num_rows + 1:
            return f"{self.name}, line {row + 2}"
        return f"{self.name}, row {row + 1}"

    @cached_property
    def _last_line(self) -> int:
        with open(self.name, encoding="utf-8-sig") as file:
            return max((number for number, line in enumerate(file, 1) if line.strip()), default=0)


def read_annotations(annotations: Annotations, version: str) -> tuple[pd.DataFrame, list[Source]]:
    """Read the CSV file (version "v1"), or the pair of files or file with a column `version` ("v2").

    Raises:
        ValueError, FileNotFoundError: naming the file, the line and the remedy.
    """
    files = [annotations] if isinstance(annotations, str | os.PathLike) else list(annotations)
    if not 1 <= len(files) <= (2 if version == "v2" else 1):
        raise ValueError(
            "`annotations` is one CSV file, or for version='v2' the pair (Contrastive.csv, v1 CSV); "
            f"found {len(files)} files with version={version!r}."
        )
    files = [os.fspath(file) for file in files]
    parts = [_read_csv(file) for file in files]
    sources = [Source(file, len(part), is_file=True) for file, part in zip(files, parts, strict=True)]
    if version == "v2":
        _add_versions(parts, sources)
    return _join(parts, sources), sources


def read_dataset(
    dataset: str | os.PathLike | Dataset | DatasetDict,
    image_column: str,
    painting_column: str,
    emotion_column: str | None,
    explanation_column: str | None,
) -> tuple[pd.DataFrame, list[Source], list[Dataset]]:
    """Read a data set whose rows carry an image and one annotation, or lists of them.

    Returns:
        The annotations, their sources, and for each source a data set with its images, undecoded, as column `image`.

    Raises:
        ValueError: a column is missing or of the wrong kind.
    """
    if isinstance(dataset, str | os.PathLike):
        folder = os.fspath(dataset)
        saved = any(os.path.isfile(os.path.join(folder, name)) for name in ("dataset_dict.json", "state.json"))
        dataset = load_from_disk(folder) if saved else load_dataset(folder)
    splits = {"train": dataset} if isinstance(dataset, Dataset) else dict(dataset)
    parts, sources, images = [], [], []
    for split, data in splits.items():
        source = Source(f"dataset split {split!r}", len(data))
        data = data.with_format(None)
        part = _read_rows(data, source, image_column, painting_column, emotion_column, explanation_column)
        parts.append(part.assign(split=split) if len(splits) > 1 else part)
        sources.append(source)
        pictures = data.select_columns([image_column])
        if image_column != "image":
            pictures = pictures.rename_column(image_column, "image")
        if not isinstance(pictures.features["image"], Image):  # paths
            pictures = pictures.cast_column("image", Image())
        images.append(pictures)
    return _join(parts, sources), sources, images


def _join(parts: list[pd.DataFrame], sources: list[Source]) -> pd.DataFrame:
    if not sum(map(len, parts)):
        raise ValueError(
            f"{' and '.join(source.name for source in sources)}: there are no annotations, only column names. "
            "Give the whole file."
        )
    for part, source in zip(parts, sources, strict=True):
        if "split" not in part and any("split" in other for other in parts):
            raise ValueError(f"{source.name}: the column split is missing. Add it, or remove it from the other file.")
    rows = pd.concat([part.assign(source=i) for i, part in enumerate(parts)], ignore_index=True)
    # Counted again unless every part has it.
    return rows if all("repetition" in part for part in parts) else rows.drop(columns="repetition", errors="ignore")


def _read_csv(file: str) -> pd.DataFrame:
    needed = ["art_style", "painting", "emotion", "utterance"]
    wanted = [*needed, "repetition", "split", "version", "anchor_painting"]
    if not os.path.isfile(file):
        raise FileNotFoundError(
            f"The annotations {file!r} do not exist. Give ArtEmis' CSV file as `annotations` "
            "(command line: --annotations)."
        )
    try:
        # Text as it is: pandas would otherwise read an utterance such as "None" as missing.
        options = {"encoding": "utf-8-sig", "dtype": str, "keep_default_na": False}
        found = list(pd.read_csv(file, nrows=0, **options).columns)
        missing = [name for name in needed if name not in found]
        if missing:
            raise ValueError(
                f"{file}, line 1: columns are missing: {', '.join(missing)}. Needed: {', '.join(needed)}; found: "
                f"{', '.join(found)}. Rename the columns, or save the file as comma-separated values."
            )
        # Not with `usecols`, which cuts an utterance at an unquoted comma instead of complaining.
        rows = pd.read_csv(file, **options)
    except pd.errors.EmptyDataError:
        raise ValueError(f"{file}: the file is empty. Needed: a CSV file with {', '.join(needed)}.") from None
    except pd.errors.ParserError as error:
        raise ValueError(
            f"{file}: not well-formed CSV: {str(error).strip()}. Check the quotes and commas there."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text: {error}. Save the file in UTF-8.") from error
    if not isinstance(rows.index, pd.RangeIndex):  # pandas takes surplus values in front for an index
        raise ValueError(f"{file}, line 2: more values than columns. Check the quotes and commas there.")
    rows = rows[[name for name in wanted if name in found]].fillna("")
    return _name_paintings(rows.assign(row=np.arange(len(rows))))


def _name_paintings(rows: pd.DataFrame) -> pd.DataFrame:
    named = (rows["art_style"].str.strip() != "") & (rows["painting"].str.strip() != "")
    rows["painting"] = (rows["art_style"] + "/" + rows["painting"]).where(named, "")
    return rows.drop(columns="art_style")


def _add_versions(parts: list[pd.DataFrame], sources: list[Source]) -> None:
    """Fill in the column `version` (new: Contrastive.csv, old: v1) and bring names to NFD as ArtEmis v2 does."""
    if len(parts) == 2:
        if "anchor_painting" in parts[1] and "anchor_painting" not in parts[0]:
            raise ValueError(f"{sources[1].name} is the contrastive file: give the pair (Contrastive.csv, v1 CSV).")
        parts[0]["version"], parts[1]["version"] = "new", "old"
    elif "version" not in parts[0]:
        raise ValueError(
            f"{sources[0].name}, line 1: the column version is missing. For version='v2' give the pair "
            "(Contrastive.csv, v1 CSV), or one file with a column version that says new or old."
        )
    for part, source in zip(parts, sources, strict=True):
        unknown = part.index[~part["version"].isin(["new", "old"])]
        if len(unknown):
            value = part["version"][unknown[0]]
            raise ValueError(f"{source.where(unknown[0])}: unknown version {value!r}. Write new or old.")
        nfd = {name: unicodedata.normalize("NFD", name) for name in part["painting"].unique()}
        part["painting"] = part["painting"].map(nfd)


def _read_rows(
    data: Dataset,
    source: Source,
    image_column: str,
    painting_column: str,
    emotion_column: str | None,
    explanation_column: str | None,
) -> pd.DataFrame:
    emotion = emotion_column or _first_present(["emotion", "emotions"], data)
    explanation = explanation_column or _first_present(["utterance", "explanation", "explanations"], data)
    for argument, name in [
        ("image_column", image_column),
        ("painting_column", painting_column),
        ("emotion_column", emotion),
        ("explanation_column", explanation),
    ]:
        if name not in data.column_names:
            raise ValueError(
                f"{source.name}: there is no column {name!r}. Name the right one with `{argument}=`; found: "
                f"{', '.join(data.column_names)}."
            )
    optional = [name for name in ("art_style", "repetition", "split") if name in data.column_names]
    rows = data.select_columns([painting_column, emotion, explanation, *optional]).to_pandas()
    rows = rows.rename(columns={painting_column: "painting", emotion: "emotion", explanation: "utterance"})
    rows["row"] = np.arange(len(rows))

    label = data.features[emotion]
    is_list = isinstance(label, List | LargeList)
    if is_list != isinstance(data.features[explanation], List | LargeList):
        raise ValueError(
            f"{source.name}: the columns {emotion!r} and {explanation!r} must both be lists (one row per painting) or "
            "both be single values (one row per annotation)."
        )
    if is_list:
        label = label.feature
        uneven = rows.index[rows["emotion"].str.len() != rows["utterance"].str.len()]
        if len(uneven):
            raise ValueError(
                f"{source.where(uneven[0])}: {emotion!r} and {explanation!r} differ in length. Give one emotion per "
                "explanation."
            )
        rows = rows.explode(["emotion", "utterance"], ignore_index=True)
    if isinstance(label, ClassLabel):
        rows["emotion"] = rows["emotion"].map(dict(enumerate(label.names)))
    for name in {"painting", "emotion", "utterance", "art_style", "split"} & set(rows.columns):
        rows[name] = rows[name].astype(object).where(rows[name].notna(), "").astype(str)
    return _name_paintings(rows) if "art_style" in rows else rows


def _first_present(names: list[str], data: Dataset) -> str:
    return next((name for name in names if name in data.column_names), names[0])
