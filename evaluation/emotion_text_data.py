# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Explanations and their labels as text alone, for the judge of `train_emotion_classifier.py`.

    splits = load_emotion_texts(EmotionTextArguments(annotations=["artemis.csv"], more_annotations=["more.csv"]))

The judge must not have learned from paintings that the captioner is tested on. So the paintings of `annotations` have
the splits that `load_artemis` gives the captioner trained on the same file; a painting that only `more_annotations`
have is put into a split by the same rule, among the new paintings of its file; and no picture is needed.
"""

from dataclasses import dataclass, field

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from processing.annotations import read_annotations
from processing.artemis import EMOTIONS, SPLITS, assign_splits, check_rows, select_v2
from processing.images import nfc
from processing.script_utils import DataArguments, load_data


MAX_REPETITION = 40  # what `load_artemis` has by default, and with it every script


@dataclass
class EmotionTextArguments:
    """Which explanations. Without `annotations`: those of the embedded data."""

    annotations: list[str] | None = field(
        default=None,
        metadata={
            "help": "ArtEmis CSV file that the captioner is trained on; for v2 Contrastive.csv and the v1 file."
        },
    )
    more_annotations: list[str] | None = field(
        default=None,
        metadata={"help": "CSV files with more explanations; the splits of --annotations stay as they are."},
    )
    version: str = field(default="v1", metadata={"help": "Of --annotations.", "choices": ["v1", "v2"]})
    labels: list[str] = field(
        default_factory=lambda: list(EMOTIONS),
        metadata={"help": "The labels, in order; ArtEmis' nine by default.", "aliases": ["--emotions"]},
    )
    drop_unknown_emotions: bool = field(
        default=False, metadata={"help": "Leave out annotations with other labels instead of stopping at them."}
    )
    on_bad_row: str = field(
        default="raise", metadata={"help": "What an empty utterance does.", "choices": ["raise", "skip"]}
    )
    num_paintings: int = field(default=720, metadata={"help": "How many pictures the embedded data has."})


def load_emotion_texts(args: EmotionTextArguments) -> DatasetDict:
    """Splits with one row per annotation, in file order: painting, explanation, emotion (a `ClassLabel`).

    Raises:
        ValueError, FileNotFoundError: as `load_artemis` does, and for a painting in more than one split.
    """
    rows = _embedded_rows(args) if args.annotations is None else _artemis_rows(args)
    spread = rows.groupby("painting")["split"].nunique()
    spread = list(spread.index[spread > 1])
    if spread:
        raise ValueError(
            f"{len(spread)} paintings are in more than one split (the first: {spread[0]}), so that accuracy would be "
            "measured on paintings that were trained on. Correct the column split, or remove it."
        )
    features = Features(
        {"painting": Value("string"), "explanation": Value("string"), "emotion": ClassLabel(names=args.labels)}
    )
    splits = DatasetDict()
    for split in SPLITS:
        part = rows[rows["split"] == split]
        if len(part):
            splits[split] = Dataset.from_dict({name: part[name].tolist() for name in features}, features=features)
    return splits


def _embedded_rows(args: EmotionTextArguments) -> pd.DataFrame:
    if args.more_annotations:
        raise ValueError("--more_annotations adds to --annotations: name the captioner's CSV file there.")
    parts = []
    for split, data in load_data(DataArguments(num_paintings=args.num_paintings), args.labels).items():
        columns = {
            "painting": data["painting"][:],
            "emotion": data["emotions"][:],
            "explanation": data["explanations"][:],
        }
        parts.append(pd.DataFrame(columns | {"split": split}).explode(["emotion", "explanation"]))
    return pd.concat(parts, ignore_index=True)


def _artemis_rows(args: EmotionTextArguments) -> pd.DataFrame:
    rows, sources, usable = _read(args.annotations, args.version, args)
    rows = assign_splits(rows, sources, MAX_REPETITION)
    split_of = dict(zip(rows["painting"].map(nfc), rows["split"], strict=True))
    rows = rows[usable]
    parts = [select_v2(rows) if args.version == "v2" else rows]
    seen = _identity(rows)
    for file in args.more_annotations or []:
        rows, sources, usable = _read(file, "v1", args)
        known = rows["painting"].map(nfc).map(split_of)
        new = rows[known.isna()]
        if len(new):
            try:
                new = assign_splits(new, sources, MAX_REPETITION)
            except ValueError as error:
                raise ValueError(f"{file}, paintings that the files before it do not have: {error}") from error
            split_of |= dict(zip(new["painting"].map(nfc), new["split"], strict=True))
        rows = rows.assign(split=rows["painting"].map(nfc).map(split_of))[usable]
        # A larger file may hold the rows of a smaller one: they count once.
        repeated = _identity(rows).isin(seen)
        seen = seen.append(_identity(rows))
        parts.append(rows[~repeated])
    rows = pd.concat(parts, ignore_index=True).rename(columns={"utterance": "explanation"})
    # One spelling, so that the same painting is the same in every file.
    return rows.assign(painting=rows["painting"].map(nfc))


def _read(files, version: str, args: EmotionTextArguments) -> tuple[pd.DataFrame, list, pd.Series]:
    """Annotations that name their painting, their sources, and which of them can be used (unusable ones still take
    part in drawing the splits, as in `load_artemis`)."""
    rows, sources = read_annotations(files, version)
    usable = check_rows(rows, sources, args.labels, args.drop_unknown_emotions, args.on_bad_row)
    named = rows["painting"] != ""
    return rows[named], sources, usable[named]


def _identity(rows: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([rows["painting"].map(nfc), rows["emotion"], rows["utterance"]])
