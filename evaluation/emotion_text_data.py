"""Loads explanations and their emotions, the training data of the judge (`train_emotion_classifier.py`).

    splits = load_emotion_texts(EmotionTextArguments(annotations=["artemis.csv"], more_annotations=["more.csv"]))

The judge must not be trained on paintings that the captioner is tested on. So the paintings of `annotations` get the
same splits as from `load_artemis`. The additional paintings of each file of `more_annotations` are split by the same
rule. No images are needed.
"""

from dataclasses import dataclass
from typing import Literal

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers.hf_argparser import HfArg

from processing.annotations import is_cleaned, read_annotations
from processing.artemis import EMOTIONS, SPLITS, assign_splits, check_rows, select_rows
from processing.script_utils import DataArguments, load_data


MAX_REPETITION = 40  # the default of `load_artemis`


@dataclass
class EmotionTextArguments:
    """Which explanations to use. Without `annotations`: those of the embedded data."""

    annotations: list[str] | None = HfArg(default=None, help="ArtEmis CSV file; for v2 Contrastive.csv and v1 file.")
    more_annotations: list[str] | None = HfArg(default=None, help="CSV files with more explanations.")
    version: Literal["v1", "v2"] = HfArg(default="v1", help="ArtEmis version of --annotations.")
    labels: list[str] = HfArg(
        default_factory=lambda: list(EMOTIONS), help="Labels in order (ArtEmis' nine).", aliases=["--emotions"]
    )
    drop_unknown_emotions: bool = HfArg(default=False, help="Drop annotations with other labels.")
    on_bad_row: Literal["raise", "skip"] = HfArg(default="raise", help="Action for an empty utterance.")
    text_column: str | None = HfArg(default=None, help="Column in place of utterance, such as utterance_spelled.")
    clean_text: bool = HfArg(default=False, help="Clean the utterances as ArtEmis' preprocessing does.")
    min_tokens: int | None = HfArg(default=None, help="Shortest utterance, in tokens (ArtEmis: 5).")
    max_length_percentile: float | None = HfArg(
        default=None, help="Longest utterance, as a percentile of the train split of --annotations (ArtEmis: 95)."
    )
    v2_rules: Literal["per_split", "authors"] = HfArg(
        default="per_split", help="v2: a sample of old annotations per split, or as in ArtEmis v2's code."
    )
    num_paintings: int = HfArg(default=720, help="Number of paintings of the embedded data.")


def load_emotion_texts(args: EmotionTextArguments) -> DatasetDict:
    """Loads splits with one row per annotation, in file order: painting, explanation, emotion (a `ClassLabel`).
    Errors are those of `load_artemis`; a painting in several splits is a ValueError too."""
    rows = _embedded_rows(args) if args.annotations is None else _artemis_rows(args)
    # The authors' rules for v2 put annotations of one painting into "rest" and another split.
    divided = rows[rows["split"] != "rest"] if args.v2_rules == "authors" else rows
    splits_of_painting = divided.groupby("painting")["split"].nunique()
    repeated = splits_of_painting.index[splits_of_painting > 1]
    if len(repeated):
        first = f"{len(repeated)} paintings are in several splits, the first is {repeated[0]}"
        raise ValueError(f"{first}. Correct the column split, or remove it.")
    text = Value("string")
    features = Features({"painting": text, "explanation": text, "emotion": ClassLabel(names=args.labels)})
    splits = DatasetDict()
    for split in SPLITS:
        part = rows[rows["split"] == split]
        if len(part):
            splits[split] = Dataset.from_dict({name: part[name].tolist() for name in features}, features=features)
    return splits


def _embedded_rows(args: EmotionTextArguments) -> pd.DataFrame:
    if args.more_annotations:
        raise ValueError("--more_annotations needs --annotations, the captioner's CSV file.")
    names = ("num_paintings", "text_column", "clean_text", "min_tokens", "max_length_percentile")
    data_args = DataArguments(**{name: getattr(args, name) for name in names})
    splits = load_data(data_args, args.labels, with_images=False)
    rows = pd.concat([data.to_pandas().assign(split=split) for split, data in splits.items()])
    rows = rows.explode(["emotions", "explanations"], ignore_index=True)
    return rows.rename(columns={"emotions": "emotion", "explanations": "explanation"})


def _artemis_rows(args: EmotionTextArguments) -> pd.DataFrame:
    rows, sources, usable = _read(args.annotations, args.version, args)
    rules = args.v2_rules if args.version == "v2" else None
    rows = assign_splits(rows, sources, MAX_REPETITION, rules)
    # "rest" first, so that it counts only for paintings without another split.
    ordered = rows.sort_values("split", key=lambda split: split != "rest", kind="stable")
    split_of = dict(zip(ordered["painting"].str.normalize("NFC"), ordered["split"], strict=True))
    rows = rows[usable]
    seen = _identity(rows)
    cleaned = is_cleaned(args.text_column, args.clean_text)
    rows, has_length = select_rows(rows, rules, args.min_tokens, args.max_length_percentile, cleaned)
    parts = [rows]
    for file in args.more_annotations or []:
        rows, sources, usable = _read(file, "v1", args)
        names = rows["painting"].str.normalize("NFC")
        new = rows[~names.isin(split_of)]
        if len(new):
            try:
                new = assign_splits(new, sources, MAX_REPETITION)
            except ValueError as error:
                raise ValueError(f"{file}, its new paintings: {error}") from error
            split_of |= dict(zip(new["painting"].str.normalize("NFC"), new["split"], strict=True))
        rows = rows.assign(split=names.map(split_of))[usable]
        # Drops rows that an earlier file has too.
        identity = _identity(rows)
        parts.append(rows[~identity.isin(seen)])
        seen = seen.append(identity)
    rows = pd.concat(parts, ignore_index=True)
    rows = rows[has_length(rows["utterance"])].rename(columns={"utterance": "explanation"})
    # Files may spell a painting's name in different Unicode forms.
    return rows.assign(painting=rows["painting"].str.normalize("NFC"))


def _read(files, version: str, args: EmotionTextArguments) -> tuple[pd.DataFrame, list, pd.Series]:
    """Reads annotations that name their painting. Keeps unusable ones, because they affect the splits."""
    cleaned = is_cleaned(args.text_column, args.clean_text)
    rows, sources = read_annotations(files, version, args.text_column, args.clean_text)
    usable = check_rows(rows, sources, args.labels, args.drop_unknown_emotions, args.on_bad_row, cleaned)
    named = rows["painting"] != ""
    return rows[named], sources, usable[named]


def _identity(rows: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([rows["painting"].str.normalize("NFC"), rows["emotion"], rows["utterance"]])
