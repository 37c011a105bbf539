"""Loads ArtEmis v1 and v2, and datasets like them, as a `datasets.DatasetDict` with one row per painting.

    data = load_artemis("artemis_dataset_release_v0.csv", "wikiart")
    data = load_artemis(("Contrastive.csv", "artemis_dataset_release_v0.csv"), "wikiart", version="v2")
    data = load_artemis(dataset="user/paintings-with-emotions")

The annotations are the owners' CSV files (https://www.artemisdataset.org and https://www.artemisdataset-v2.org), the
images are WikiArt's. This package contains neither.

Rows are sorted by `painting`, annotations are in file order. Columns:
    image: `datasets.Image`, the path of a file (or the bytes from a `dataset`), decoded when the row is read;
    painting: "<art_style>/<painting>", named as in the CSV (v2: normalised to NFD, as in ArtEmis v2's code);
    emotions: a `ClassLabel` per annotation;
    explanations: a text per annotation, aligned with `emotions`;
    emotion_histogram: annotations per label, counted before the filters on utterance length.

The splits are those of Achlioptas et al., "ArtEmis: Affective Language for Visual Art" (CVPR 2021), or for v2 those of
Mohamed et al., "It is Okay to Not Be Okay" (CVPR 2022). They are drawn before anything is left out, so skipped
annotations, labels or images never move a painting to another split.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, concatenate_datasets
from sklearn.model_selection import train_test_split

from .annotations import Annotations, Source, Table, is_cleaned, read_annotations, read_dataset
from .image_column import read_by_project
from .images import check_images, find_images, nfc
from .processing_sevlm import ARTEMIS_EMOTIONS


logger = logging.getLogger(__name__)

EMOTIONS = list(ARTEMIS_EMOTIONS)
SPLITS = ["train", "validation", "test", "rest"]


def load_artemis(
    annotations: Annotations | None = None,
    images: str | os.PathLike | None = None,
    *,
    version: str = "v1",
    dataset: str | os.PathLike | Table | dict[str, Table] | None = None,
    emotions: Sequence[str] = EMOTIONS,
    drop_unknown_emotions: bool = False,
    on_bad_row: str = "raise",
    on_bad_image: str = "raise",
    verify_images: bool = True,
    with_images: bool = True,
    min_repetition: int | None = None,
    max_repetition: int | None = 40,
    min_tokens: int | None = None,
    max_length_percentile: float | None = None,
    text_column: str | None = None,
    clean_text: bool = False,
    drop_single_emotion: bool = False,
    v2_rules: str = "per_split",
    image_column: str = "image",
    painting_column: str = "painting",
    emotion_column: str | None = None,
    explanation_column: str | None = None,
) -> DatasetDict:
    """Loads ArtEmis, or data of the same kind, with one row per painting (columns: see the top of this file).

    Args:
        annotations: CSV file in UTF-8 with the columns art_style, painting, emotion and utterance. Optional columns:
            repetition (annotations of the painting; counted if absent), split (train, val or validation, test, rest;
            drawn if absent) and version (v2: new or old). For v2 the pair (Contrastive.csv, v1 CSV), or one file with
            a column version.
        images: folder with <art_style>/<painting>.jpg (or .jpeg, .png, .webp). Names are compared in NFC.
        version: "v1", or "v2" for the "combined" set of ArtEmis v2 (see `select_v2`).
        dataset: data with images, instead of `annotations` and `images`: a name on the Hub, a local folder (also from
            `save_to_disk`), a `datasets.Dataset` or `DatasetDict`, a `pandas.DataFrame`, or a list of dictionaries. A
            stream is refused, because splits need all rows. One row per annotation, or one row per painting with
            lists of emotions and explanations; labels are text or `ClassLabel`. If there are several splits, they are
            kept. A single one is divided by its column `split`, or else by ArtEmis' rule.
        emotions: labels in the order of their ids. Case and surrounding spaces are ignored.
        drop_unknown_emotions: leave out annotations with other labels instead of raising.
        on_bad_row: "raise", or "skip" annotations without utterance, painting or a valid repetition.
        on_bad_image: "raise", or "skip" paintings whose image is missing or cannot be decoded.
        verify_images: decode every image once to find damaged ones. Missing files are always found.
        with_images: `False` leaves out the column `image`; `images` is not needed then.
        min_repetition: leave out paintings with fewer annotations, after drawing the splits.
        max_repetition: paintings with more annotations go to the split "rest" instead of train, validation or test
            (ArtEmis: 40). None: no such split. No effect on data with given splits.
        min_tokens: leave out utterances with fewer tokens (ArtEmis' preprocessing: 5).
        max_length_percentile: leave out utterances with more tokens than this percentile, 0 to 100, of the train split
            (ArtEmis: 95). The tokens of a cleaned text are separated by spaces. In any other text, a token is a run of
            letters and digits: "don't" has two.
        text_column: column to read in place of `utterance` (of a `dataset`: see `explanation_column`). The file that
            ArtEmis' preprocessing writes has its cleaned text in `utterance_spelled`.
        clean_text: clean the utterances as ArtEmis does for its neural networks (see `text_cleaning`). One that is
            empty afterwards counts as an empty utterance.
        drop_single_emotion: leave paintings out of the train split if their remaining annotations have one emotion.
        v2_rules: "per_split", or "authors" for the rules of ArtEmis v2's code (see `select_v2`). No effect on v1.
        image_column, painting_column, emotion_column, explanation_column: columns of `dataset`. A column art_style is
            prepended to the painting. Defaults: emotion or emotions; utterance, explanation or explanations.

    Returns:
        A `DatasetDict` with the splits train, validation, test and rest; empty splits are omitted.

    Raises:
        ValueError: wrong arguments or annotations. The message names the file, the line where an annotation starts
            (the header is line 1; for a `dataset`, the row from 1) and the remedy.
        FileNotFoundError, OSError: a file, the image folder or images are missing; images cannot be decoded.
    """
    choices = {"version": ["v1", "v2"], "on_bad_row": ["raise", "skip"], "on_bad_image": ["raise", "skip"]}
    choices["v2_rules"] = ["per_split", "authors"]
    for (name, allowed), value in zip(choices.items(), (version, on_bad_row, on_bad_image, v2_rules), strict=True):
        if value not in allowed:
            raise ValueError(f"`{name}` is {value!r}. Use {' or '.join(map(repr, allowed))}.")
    if not emotions or len(set(map(_normalise_label, emotions))) < len(emotions):
        raise ValueError(f"`emotions` is {list(emotions)}. Give at least one label, and none twice.")
    if (annotations is None) == (dataset is None):
        raise ValueError("Give `annotations` and `images`, or `dataset` (command line: options of the same names).")
    cleaned = is_cleaned(text_column, clean_text)
    source_images: list[Dataset] = []
    if dataset is not None:
        if version != "v1" or images is not None:
            raise ValueError("`dataset` has its own images and splits: leave out `images` and `version`.")
        names = (
            image_column if with_images else None,
            painting_column,
            emotion_column,
            text_column or explanation_column,
        )
        rows, sources, source_images = read_dataset(dataset, *names, clean_text)
    elif images is None and with_images:
        raise ValueError("`images` is missing: the folder with <art_style>/<painting>.jpg (command line: --images).")
    else:
        rows, sources = read_annotations(annotations, version, text_column, clean_text)

    usable = check_rows(rows, sources, emotions, drop_unknown_emotions, on_bad_row, cleaned)
    named = rows["painting"] != ""
    _warn_about_copies(rows[usable & named], sources)
    rules = v2_rules if version == "v2" else None
    rows = assign_splits(rows[named], sources, max_repetition, rules)[usable[named]]
    rows, has_length = select_rows(rows, rules, min_tokens, max_length_percentile, cleaned)
    if min_repetition is not None:
        rows = rows[rows["repetition"] >= min_repetition]
    paintings = group_by_painting(rows, len(emotions), has_length(rows["utterance"]))
    del rows, usable, named  # large
    if drop_single_emotion:
        dropped = paintings["emotions"].map(lambda ids: len(set(ids)) == 1) & (paintings["split"] == "train")
        logger.info("Left out %d paintings of the train split whose annotations have one emotion.", dropped.sum())
        paintings = paintings[~dropped].reset_index(drop=True)

    if with_images:
        if dataset is None:
            paintings["image"] = find_images(images, paintings["painting"])
        paintings = _without_bad_images(paintings, sources, images, source_images, verify_images, on_bad_image)

    columns = {"image": Image()} if with_images else {}
    columns |= {"painting": Value("string"), "emotions": List(ClassLabel(names=list(emotions)))}
    columns |= {"explanations": List(Value("string")), "emotion_histogram": List(Value("int64"))}
    features, result = Features(columns), DatasetDict()
    for split in SPLITS:
        part = paintings[paintings["split"] == split]
        if len(part) and dataset is not None and with_images:
            result[split] = read_by_project(_add_source_images(part, source_images, features))
        elif len(part):
            result[split] = read_by_project(_from_frame(part, features))
    return result


def dominant_emotion(histogram: Sequence[int]) -> int | None:
    """Returns the label id with more than half of an `emotion_histogram`, or None (the paper's ACC: "a bin > 0.5")."""
    highest = int(np.argmax(histogram))
    return highest if 2 * histogram[highest] > sum(histogram) else None


def draw_splits(painting_ids: Iterable[str]) -> dict[str, str]:
    """Draws ArtEmis' random split: painting id -> "train" (85 %), "validation" (5 %) or "test" (10 %).

    An id is art_style + painting without a separator, because ArtEmis sorts the paintings by this text.

    Raises:
        ValueError: fewer than 7 paintings, which would leave a split empty.
    """
    ids = sorted(set(painting_ids))
    if len(ids) < 7:
        raise ValueError(f"Splits need at least 7 paintings, found {len(ids)}. Add paintings, or a column split.")
    train, held_out = train_test_split(ids, test_size=0.15, random_state=2021)
    validation, test = train_test_split(held_out, test_size=round(0.10 * len(ids)), random_state=2021)
    return dict.fromkeys(train, "train") | dict.fromkeys(validation, "validation") | dict.fromkeys(test, "test")


def check_rows(
    rows: pd.DataFrame,
    sources: list[Source],
    emotions: Sequence[str],
    drop_unknown_emotions: bool,
    on_bad_row: str,
    cleaned: bool = False,
) -> pd.Series:
    """Replaces the column emotion by label ids (-1: unknown), and returns a mask of the usable annotations."""
    ids = {_normalise_label(name): i for i, name in enumerate(emotions)}
    codes = {name: ids.get(_normalise_label(name), -1) for name in rows["emotion"].unique()}
    names, rows["emotion"] = rows["emotion"], rows["emotion"].map(codes).astype(np.int64)
    known = rows["emotion"] >= 0
    if not known.all():
        first, unknown = rows.index[~known][0], _some(repr(name) for name, code in codes.items() if code < 0)
        if not drop_unknown_emotions:
            raise ValueError(
                f"{_where(rows, first, sources)}: unknown emotion {names[first]!r} ({(~known).sum()} annotations in "
                f"total: {unknown}). Use one of {', '.join(emotions)}; give your own list with `emotions=` "
                "(--labels); or pass drop_unknown_emotions=True (--drop_unknown_emotions)."
            )
        logger.info("Left out %d annotations whose emotion is unknown: %s.", (~known).sum(), unknown)

    problems = {
        "no art_style or painting": rows["painting"].str.strip() == "",
        f"the {'cleaned ' * cleaned}utterance is empty": rows["utterance"].str.strip().str.lower().isin(["", "nan"]),
    }
    if "repetition" in rows:
        counts = pd.to_numeric(rows["repetition"], errors="coerce")
        # "inf", "2.5" and "1e9" parse as numbers, but are not valid counts of annotations.
        rows["repetition"] = counts.where(counts.between(1, 1e6) & (counts % 1 == 0))
        problems["the repetition is not a positive whole number"] = rows["repetition"].isna()
    bad = known & pd.concat(problems, axis=1).any(axis=1)
    if bad.any():
        first = rows.index[bad][0]
        problem = next(problem for problem, has_it in problems.items() if has_it[first])
        message = f"{_where(rows, first, sources)}: {problem} ({bad.sum()} annotations in total cannot be used)."
        if on_bad_row == "raise":
            raise ValueError(f'{message} Correct or skip them: on_bad_row="skip" (command line: --on_bad_row skip).')
        logger.warning("Skipped %d annotations, the first at %s", bad.sum(), message)
    return known & ~bad


def _warn_about_copies(rows: pd.DataFrame, sources: list[Source]) -> None:
    copies = rows.index[rows.duplicated(["painting", "emotion", "utterance"])]
    if len(copies):  # kept, because ArtEmis itself has a few
        message = "%d annotations are copies of others, the first at %s. Remove them if files were joined by mistake."
        logger.warning(message, len(copies), _where(rows, copies[0], sources))
    names = pd.Series(rows["painting"].unique())
    forms = names[names.map(nfc).duplicated(keep=False)]
    if len(forms):
        message = "%d names of paintings differ only in their Unicode form: %s. They count as different paintings."
        logger.warning(message, len(forms), _some(map(ascii, forms)))


def assign_splits(
    rows: pd.DataFrame, sources: list[Source], max_repetition: int | None, v2_rules: str | None = None
) -> pd.DataFrame:
    """Adds the columns repetition (per painting) and split: those of the data, or those drawn by ArtEmis' rules.

    With the v2 rules "authors", repetition is each row's own: a painting may be in "rest" and in another split.
    """
    counts = rows.groupby("painting", sort=False)
    if "repetition" not in rows:
        rows = rows.assign(repetition=counts["row"].transform("size"))
    elif v2_rules != "authors":
        # The maximum, because in v2 each of the two files counts only its own annotations of a painting.
        rows = rows.assign(repetition=counts["repetition"].transform("max"))
    if "split" not in rows:
        rest = rows["repetition"] > (np.inf if max_repetition is None else max_repetition)
        ids = {name: name.replace("/", "", 1) for name in rows["painting"][~rest].unique()}
        drawn = draw_splits(ids.values())
        splits = {name: drawn[painting_id] for name, painting_id in ids.items()}
        return rows.assign(split=rows["painting"].map(splits).where(~rest, "rest"))

    splits = rows["split"].str.strip().str.lower().replace(["val", "valid", "dev"], "validation")
    unknown = rows.index[~splits.isin(SPLITS)]
    if len(unknown):
        problem = f"unknown split {rows['split'][unknown[0]]!r}. Use train, val, test; or remove the column split."
        raise ValueError(f"{_where(rows, unknown[0], sources)}: {problem}")
    shared = (splits.groupby(rows["painting"]).nunique() > 1).sum()
    if shared:
        logger.warning("%d paintings are in more than one of the given splits.", shared)
    return rows.assign(split=splits)


def select_rows(
    rows: pd.DataFrame,
    v2_rules: str | None,
    min_tokens: int | None,
    max_length_percentile: float | None,
    cleaned: bool,
) -> tuple[pd.DataFrame, Callable[[pd.Series], pd.Series]]:
    """Selects the rows of v2 (`v2_rules` None: v1). Also returns the filter on length: utterances -> mask."""

    def count_tokens(texts: pd.Series) -> pd.Series:
        return texts.map(lambda text: len(text.split() if cleaned else re.findall(r"\w+", text)))

    def length_filter() -> Callable[[pd.Series], pd.Series]:
        train = rows["utterance"][rows["split"] == "train"]
        if min_tokens is None and max_length_percentile is None:
            return lambda texts: pd.Series(True, texts.index)
        longest = np.inf
        if max_length_percentile is not None and len(train):
            longest = np.percentile(count_tokens(train), max_length_percentile)
        return lambda texts: count_tokens(texts).between(min_tokens or 0, longest)

    if v2_rules == "authors":
        has_length = length_filter()
        return select_v2(rows, has_length(rows["utterance"])), has_length
    rows = rows if v2_rules is None else select_v2(rows)
    return rows, length_filter()


def select_v2(rows: pd.DataFrame, candidates: pd.Series | None = None) -> pd.DataFrame:
    """Selects ArtEmis v2's "combined" set from all annotations, new (contrastive) and old (v1).

    Train and validation: all new annotations and a sample of as many old ones. Test: all new annotations, and the old
    ones of a random half of the test paintings. The half is drawn from a sorted list (ArtEmis v2: an unordered set).

    Each split has its own sample. With `candidates`, a mask of the rows that the filter on length keeps, there is one
    sample for all splits, as in ArtEmis v2's code. It is as large as the number of new candidates, and is drawn from
    the old ones in file order, with "rest" last. Only its annotations in train and validation are used. The test
    paintings are then those of the candidates.
    """
    is_new = rows["version"] == "new"
    keep = is_new | (rows["split"] == "rest")
    if candidates is None:
        candidates = pd.Series(True, rows.index)
        groups = [rows[rows["split"] == split] for split in ("train", "validation")]
    else:
        groups = [rows[candidates].sort_values("split", key=lambda split: split == "rest", kind="stable")]
    for group in groups:
        new = group["version"] == "new"
        drawn = group[~new].sample(min(new.sum(), (~new).sum()), random_state=42)
        keep[drawn.index[drawn["split"].isin(["train", "validation"])]] = True
    old_test = rows[(rows["split"] == "test") & ~is_new]
    paintings = np.array(sorted(old_test["painting"][candidates[old_test.index]].unique()), dtype=object)
    half = np.random.RandomState(42).permutation(len(paintings))[: len(paintings) // 2]
    keep[old_test.index[old_test["painting"].isin(paintings[half])]] = True
    return rows[keep]


def group_by_painting(rows: pd.DataFrame, num_emotions: int, has_length: pd.Series) -> pd.DataFrame:
    """Returns one row per split and painting, sorted, with the source and row of its first annotation.

    Annotations outside the mask `has_length` count in the histogram only.
    """
    group = rows.groupby(["split", "painting"], sort=False).ngroup()
    if len(rows):
        histograms = np.bincount(group * num_emotions + rows["emotion"], minlength=(group.max() + 1) * num_emotions)
        rows = rows.assign(group=group)[has_length]
    if len(rows) == 0:
        raise ValueError("No annotation is left. Loosen the filters on repetition and length, or extend `emotions`.")
    first = {name: (name, "first") for name in ("source", "row", "group")}
    columns = {"emotions": ("emotion", list), "explanations": ("utterance", list), **first}
    paintings = rows.groupby(["split", "painting"]).agg(**columns).reset_index()
    paintings["emotion_histogram"] = histograms.reshape(-1, num_emotions)[paintings.pop("group")].tolist()
    return paintings


def _without_bad_images(
    paintings: pd.DataFrame,
    sources: list[Source],
    folder: str | os.PathLike | None,
    source_images: list[Dataset],
    verify: bool,
    on_bad_image: str,
) -> pd.DataFrame:
    """Drops the paintings whose image is missing or damaged, or raises (see `on_bad_image`)."""
    bad: dict[int, str] = {}
    encoded: Iterable[str | dict]
    if folder is not None:
        missing = paintings["painting"][paintings["image"].isna()]
        bad = {i: f"{os.path.join(folder, name)}.jpg: no such file" for i, name in missing.items()}
        names = encoded = paintings["image"].drop(index=list(bad))
    else:
        # In this order, large files are read sequentially.
        names = paintings.sort_values(["source", "row"])["painting"]
        encoded = _encoded_images(paintings, source_images)
    absent = len(bad)
    if verify:
        problems = zip(names.items(), check_images(encoded, len(names)), strict=True)
        bad |= {i: f"{name}: {problem}" for (i, name), problem in problems if problem}
    if bad:
        shown = _some(f"{problem} ({_where(paintings, i, sources)})" for i, problem in sorted(bad.items()))
        counts = f"{len(bad)} of {len(paintings)} images are missing ({absent}) or damaged ({len(bad) - absent})"
        if on_bad_image == "raise" or len(bad) == len(paintings):
            raise (FileNotFoundError if absent == len(bad) else OSError)(
                f"{counts}: {shown}. Check the folder `images` (command line: --images), replace the files, or pass "
                'on_bad_image="skip" (command line: --on_bad_image skip) to leave these paintings out.'
            )
        logger.warning("Skipped paintings: %s: %s.", counts, shown)
    return paintings.drop(index=list(bad))


def _encoded_images(paintings: pd.DataFrame, source_images: list[Dataset]) -> Iterator[dict]:
    for source, images in enumerate(source_images):
        images = images.select(sorted(paintings["row"][paintings["source"] == source]))
        for batch in images.cast_column("image", Image(decode=False)).iter(64):
            yield from (image or {} for image in batch["image"])


def _from_frame(part: pd.DataFrame, features: Features) -> Dataset:
    # In chunks, because all texts as Python strings would take more memory than the rest of the data.
    chunks = [part.iloc[start : start + 10_000] for start in range(0, len(part), 10_000)]
    return concatenate_datasets(
        [Dataset.from_dict({name: chunk[name].tolist() for name in features}, features=features) for chunk in chunks]
    )


def _add_source_images(part: pd.DataFrame, source_images: list[Dataset], features: Features) -> Dataset:
    """Joins the columns of `part` with the images of their rows, in the order of `part`.

    Builds the columns for all rows of the sources, then selects the needed rows. So no image is read or copied.
    """
    images = concatenate_datasets(source_images)
    starts = np.cumsum([0, *map(len, source_images)])
    indices = starts[part["source"]] + part["row"].to_numpy()
    texts = {name: feature for name, feature in features.items() if name != "image"}
    columns = part[list(texts)].set_axis(indices).reindex(range(len(images))).astype(object)
    columns = columns.where(columns.notna(), None).to_dict("list")
    texts = Dataset.from_dict(columns, features=Features(texts))
    return concatenate_datasets([images, texts], axis=1).select(indices)


def _where(frame: pd.DataFrame, index: int, sources: list[Source]) -> str:
    return sources[frame["source"][index]].where(int(frame["row"][index]))


def _some(items: Iterable[str]) -> str:
    items = list(items)
    return "; ".join(items[:3]) + (f"; and {len(items) - 3} more" if len(items) > 3 else "")


def _normalise_label(label: str) -> str:
    return " ".join(label.lower().split())
