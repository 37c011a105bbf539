"""ArtEmis v1 and v2, and data sets like them, as a `datasets.DatasetDict` with one row per painting.

    data = load_artemis("artemis_dataset_release_v0.csv", "wikiart")
    data = load_artemis(("Contrastive.csv", "artemis_dataset_release_v0.csv"), "wikiart", version="v2")
    data = load_artemis(dataset="user/paintings-with-emotions")

The annotations are the CSV files that their owners hand out (https://www.artemisdataset.org and
https://www.artemisdataset-v2.org), the images are WikiArt's. Neither comes with this package.

Each row holds
    image: `datasets.Image`, the path of a file (or the bytes that a `dataset` brings), decoded when the row is read;
    painting: "<art_style>/<painting>", named as in the CSV (v2: in NFD, as ArtEmis v2 does);
    emotions: a `ClassLabel` per annotation;
    explanations: a text per annotation, aligned with `emotions`;
    emotion_histogram: annotations per label, counted before the filters on utterance length.
Rows are sorted by `painting`, annotations are in file order.

The splits are those of Achlioptas et al., "ArtEmis: Affective Language for Visual Art" (CVPR 2021), and for v2 of
Mohamed et al., "It is Okay to Not Be Okay" (CVPR 2022). They are drawn before anything is left out: skipping
annotations, labels or images never moves a painting to another split.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, concatenate_datasets
from sklearn.model_selection import train_test_split

from .annotations import Annotations, Source, read_annotations, read_dataset
from .files import nfc
from .image_files import find_images, find_undecodable
from .processing_sevlm import ARTEMIS_EMOTIONS


logger = logging.getLogger(__name__)

EMOTIONS = list(ARTEMIS_EMOTIONS)
SPLITS = ["train", "validation", "test", "rest"]
CHUNK_PAINTINGS = 10_000
MOST_ANNOTATIONS = 1_000_000  # of a painting; more is a mistake
SPLIT_ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}


def load_artemis(
    annotations: Annotations | None = None,
    images: str | os.PathLike | None = None,
    *,
    version: str = "v1",
    dataset: str | os.PathLike | Dataset | DatasetDict | None = None,
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
    image_column: str = "image",
    painting_column: str = "painting",
    emotion_column: str | None = None,
    explanation_column: str | None = None,
) -> DatasetDict:
    """Load ArtEmis, or data of the same kind, with one row per painting (its columns: see the top of this file).

    Args:
        annotations: CSV file in UTF-8 with the columns art_style, painting, emotion and utterance. Optional columns:
            repetition (number of annotations of the painting; counted if absent), split (train, val or validation,
            test, rest: taken instead of drawing splits) and version (v2: new or old). For v2 the pair
            (Contrastive.csv, v1 CSV), or one file with a column version.
        images: folder with <art_style>/<painting>.jpg (or .jpeg, .png, .webp). Names are compared in NFC.
        version: "v1", or "v2" for the "combined" set of ArtEmis v2 (see `select_v2`).
        dataset: instead of `annotations` and `images`, data that carry their images: a name on the Hub, a local folder
            (also one written by `save_to_disk`) or a loaded data set. One row per annotation, or one row per painting
            where the columns of emotions and explanations are lists; labels are text or `ClassLabel`. Several splits
            are kept, a single one is split by ArtEmis' rule (or its column split).
        emotions: the labels, in the order of their ids. Case and surrounding spaces do not matter.
        drop_unknown_emotions: leave out annotations with any other label instead of raising.
        on_bad_row: "raise", or "skip" annotations without utterance, painting or a readable repetition.
        on_bad_image: "raise", or "skip" paintings whose image is missing or cannot be decoded.
        verify_images: decode every image once to find the damaged ones. Missing files are found in any case.
        with_images: `False` leaves the column `image` out, for work with the text alone; `images` is not needed then.
        min_repetition: leave out paintings with fewer annotations than this, after drawing the splits.
        max_repetition: paintings with more annotations than this make up the split "rest" and take no part in drawing
            the others (ArtEmis: 41 and more). None: no such split. No effect on data that bring their splits.
        min_tokens: leave out utterances with fewer tokens (ArtEmis' preprocessing for neural networks: 5).
        max_length_percentile: leave out utterances with more tokens than this percentile, 0 to 100, of the train
            split's (ArtEmis: 95). A token is a run of letters and digits: punctuation does not count and "don't" has
            two, which is close to ArtEmis' own count (punctuation removed, contractions expanded).
        image_column, painting_column, emotion_column, explanation_column: columns of `dataset`. A column art_style, if
            there is one, is put before the painting. The last two default to emotion or emotions, and to utterance,
            explanation or explanations.

    Returns:
        Those of the splits train, validation, test and rest that have rows.

    Raises:
        ValueError: arguments or annotations are wrong. Messages name the file, the line as an editor shows it (where
            an annotation begins; the header is line 1) and the remedy. For a `dataset` they say "row N", from 1.
        FileNotFoundError: a file, the image folder or images are missing.
        OSError: images cannot be decoded.
    """
    _check_choice("version", version, ["v1", "v2"])
    _check_choice("on_bad_row", on_bad_row, ["raise", "skip"])
    _check_choice("on_bad_image", on_bad_image, ["raise", "skip"])
    if not emotions or len(set(map(_normalise_label, emotions))) != len(emotions):
        raise ValueError(f"`emotions` needs at least one label and none twice, found {list(emotions)}.")
    if (annotations is None) == (dataset is None):
        raise ValueError(
            "Give `annotations` and `images`, or `dataset` (command line: --annotations and --images, or --dataset)."
        )
    if dataset is not None:
        if version != "v1" or images is not None:
            raise ValueError("`dataset` brings its own images and splits: leave out `images` and `version`.")
        rows, sources, source_images = read_dataset(
            dataset, image_column, painting_column, emotion_column, explanation_column
        )
    else:
        if images is None and with_images:
            raise ValueError(
                "`images` is missing: give the folder that holds <art_style>/<painting>.jpg (command line: --images)."
            )
        rows, sources = read_annotations(annotations, version)

    usable = check_rows(rows, sources, emotions, drop_unknown_emotions, on_bad_row)
    named = rows["painting"] != ""
    _tell_of_copies(rows[usable & named], sources)
    rows = assign_splits(rows[named], sources, max_repetition)[usable[named]]
    if version == "v2":
        rows = select_v2(rows)
    if min_repetition is not None:
        rows = rows[rows["repetition"] >= min_repetition]
    paintings = group_by_painting(rows, len(emotions), min_tokens, max_length_percentile)
    del rows, usable, named  # as large as what is made of them

    bad = {}
    if with_images and dataset is None:
        paintings["image"] = find_images(images, paintings["painting"])
        bad = _bad_files(paintings, images, verify_images)
    elif with_images and verify_images:
        bad = _bad_source_images(paintings, source_images)
    _report_bad_images(bad, paintings, sources, on_bad_image)
    paintings = paintings.drop(index=list(bad))

    features = Features(
        {
            "image": Image(),
            "painting": Value("string"),
            "emotions": List(ClassLabel(names=list(emotions))),
            "explanations": List(Value("string")),
            "emotion_histogram": List(Value("int64")),
        }
    )
    if not with_images:
        del features["image"]
    result = DatasetDict()
    for split in SPLITS:
        part = paintings[paintings["split"] == split]
        if len(part) == 0:
            continue
        if dataset is None or not with_images:
            result[split] = _from_frame(part, features)
        else:
            result[split] = _beside_source_images(part, source_images, features)
    return result


def dominant_emotion(histogram: Sequence[int]) -> int | None:
    """The label id that holds more than half of the counts of an `emotion_histogram`, or None.

    The paper measures ACC on the images that have one ("a bin > 0.5").
    """
    highest = int(np.argmax(histogram))
    return highest if 2 * histogram[highest] > sum(histogram) else None


def draw_splits(painting_ids: Iterable[str]) -> dict[str, str]:
    """ArtEmis' random split: painting id -> "train" (85 %), "validation" (5 %) or "test" (10 %).

    Args:
        painting_ids: art_style and painting as one string with nothing between, which is how ArtEmis sorts them.
            Repeated ids count once.

    Raises:
        ValueError: fewer than 7 paintings, which would leave a split empty.
    """
    ids = sorted(set(painting_ids))
    if len(ids) < 7:
        raise ValueError(
            f"ArtEmis' split needs at least 7 paintings, found {len(ids)}. Add a column split (train, validation, "
            "test) that says which painting belongs where."
        )
    train, held_out = train_test_split(ids, test_size=0.15, random_state=2021)
    validation, test = train_test_split(held_out, test_size=round(0.10 * len(ids)), random_state=2021)
    return dict.fromkeys(train, "train") | dict.fromkeys(validation, "validation") | dict.fromkeys(test, "test")


def check_rows(
    rows: pd.DataFrame, sources: list[Source], emotions: Sequence[str], drop_unknown_emotions: bool, on_bad_row: str
) -> pd.Series:
    """Tell which annotations can be used, and turn the column emotion into label ids (-1: unknown)."""
    ids = {_normalise_label(name): i for i, name in enumerate(emotions)}
    codes = {name: ids.get(_normalise_label(name), -1) for name in rows["emotion"].unique()}
    names, rows["emotion"] = rows["emotion"], rows["emotion"].map(codes).astype(np.int64)
    known = rows["emotion"] >= 0
    if not known.all():
        first, unknown = rows.index[~known][0], _some(repr(name) for name, code in codes.items() if code < 0)
        if not drop_unknown_emotions:
            raise ValueError(
                f"{_where(rows, first, sources)}: unknown emotion {names[first]!r} ({(~known).sum()} annotations in "
                f"all have unknown ones: {unknown}). Allowed: {', '.join(emotions)}. Correct them, give your own list "
                "with `emotions=` (command line: --labels), or leave them out with drop_unknown_emotions=True "
                "(command line: --drop_unknown_emotions)."
            )
        logger.info("Left out %d annotations whose emotion is unknown: %s.", (~known).sum(), unknown)

    problems = {
        "no art_style or painting": rows["painting"].str.strip() == "",
        "the utterance is empty": rows["utterance"].str.strip().str.lower().isin(["", "nan"]),
    }
    if "repetition" in rows:
        counts = pd.to_numeric(rows["repetition"], errors="coerce")
        # "inf" and "2.5" are numbers, too. None of them may have a say in what belongs to the split "rest".
        rows["repetition"] = counts.where(counts.between(1, MOST_ANNOTATIONS) & (counts % 1 == 0))
        problems["the repetition is not a whole number from 1"] = rows["repetition"].isna()
    bad = known & pd.concat(problems, axis=1).any(axis=1)
    if bad.any():
        first = rows.index[bad][0]
        problem = next(problem for problem, has_it in problems.items() if has_it[first])
        message = f"{_where(rows, first, sources)}: {problem} ({bad.sum()} annotations in all cannot be used)."
        if on_bad_row == "raise":
            raise ValueError(
                f'{message} Correct them, or leave them out with on_bad_row="skip" (command line: --on_bad_row skip).'
            )
        logger.warning("Skipped %d annotations, the first at %s", bad.sum(), message)
    return known & ~bad


def _tell_of_copies(rows: pd.DataFrame, sources: list[Source]) -> None:
    """Nothing is taken out, as ArtEmis has a few copies itself, but joined files would hold many."""
    copies = rows.duplicated(["painting", "emotion", "utterance"])
    if copies.any():
        first = rows.index[copies][0]
        logger.warning(
            "%d annotations are copies of others, the first at %s; they count like others. Remove them if files were "
            "joined by mistake.",
            copies.sum(),
            _where(rows, first, sources),
        )
    names = pd.Series(rows["painting"].unique())
    forms = names[names.map(nfc).duplicated(keep=False)]
    if len(forms):
        logger.warning(
            "%d names of paintings are others in another Unicode form: %s. They count as different paintings, which "
            "may lie in different splits; write each in one form.",
            len(forms),
            _some(map(ascii, forms)),
        )


def assign_splits(rows: pd.DataFrame, sources: list[Source], max_repetition: int | None) -> pd.DataFrame:
    """Fill in the columns repetition (per painting) and split: what the data say, or what ArtEmis' rules draw."""
    counts = rows.groupby("painting", sort=False)
    # The largest, because in v2 each of the two files counts its own annotations of a painting.
    repetition = counts["repetition"].transform("max") if "repetition" in rows else counts["row"].transform("size")
    rows = rows.assign(repetition=repetition)
    if "split" not in rows:
        rest = repetition > (np.inf if max_repetition is None else max_repetition)
        ids = {name: name.replace("/", "", 1) for name in rows["painting"][~rest].unique()}
        drawn = draw_splits(ids.values())
        splits = {name: drawn[painting_id] for name, painting_id in ids.items()}
        return rows.assign(split=rows["painting"].map(splits).fillna("rest"))

    splits = rows["split"].str.strip().str.lower().replace(SPLIT_ALIASES)
    unknown = rows.index[~splits.isin(SPLITS)]
    if len(unknown):
        raise ValueError(
            f"{_where(rows, unknown[0], sources)}: unknown split {rows['split'][unknown[0]]!r}. Use train, val or "
            "validation, test and rest, or remove the column split to have the splits drawn."
        )
    shared = (splits.groupby(rows["painting"]).nunique() > 1).sum()
    if shared:
        logger.warning("%d paintings are in more than one of the given splits.", shared)
    return rows.assign(split=splits)


def select_v2(rows: pd.DataFrame) -> pd.DataFrame:
    """Select ArtEmis v2's "combined" set out of all annotations, new (contrastive) and old (v1).

    Train and validation: all new annotations and equally many old ones, sampled. Test: all new annotations and all
    old ones of half of the old test paintings. Rest: everything. ArtEmis v2 draws that half from a Python set, whose
    order changes from run to run; here the paintings are sorted first.
    """
    is_new = rows["version"] == "new"
    keep = is_new | (rows["split"] == "rest")
    for split in ("train", "validation"):
        old, new = rows[(rows["split"] == split) & ~is_new], rows[(rows["split"] == split) & is_new]
        keep[old.sample(min(len(new), len(old)), random_state=42).index] = True
    old_test = rows[(rows["split"] == "test") & ~is_new]
    paintings = np.array(sorted(old_test["painting"].unique()), dtype=object)
    half = (
        np.random.RandomState(42).choice(len(paintings), len(paintings) // 2, replace=False) if len(paintings) else []
    )
    keep[old_test.index[old_test["painting"].isin(paintings[half])]] = True
    return rows[keep]


def group_by_painting(
    rows: pd.DataFrame, num_emotions: int, min_tokens: int | None = None, max_length_percentile: float | None = None
) -> pd.DataFrame:
    """One row per split and painting, sorted by them, as (split, painting, emotions, explanations, emotion_histogram,
    source and row of the first annotation). The histogram counts the annotations before the filters on length.
    """
    group = rows.groupby(["split", "painting"], sort=False).ngroup()
    if len(rows):
        histograms = np.bincount(group * num_emotions + rows["emotion"], minlength=(group.max() + 1) * num_emotions)
        rows = rows.assign(group=group)[_has_wanted_length(rows, min_tokens, max_length_percentile)]
    if len(rows) == 0:
        raise ValueError(
            "No annotation is left. Loosen the filters on repetition and length, or complete the list of `emotions`."
        )
    columns = {
        "emotions": ("emotion", list),
        "explanations": ("utterance", list),
        "source": ("source", "first"),
        "row": ("row", "first"),
        "group": ("group", "first"),
    }
    paintings = rows.groupby(["split", "painting"]).agg(**columns).reset_index()
    paintings["emotion_histogram"] = histograms.reshape(-1, num_emotions)[paintings.pop("group")].tolist()
    return paintings


def _has_wanted_length(rows: pd.DataFrame, min_tokens: int | None, max_percentile: float | None) -> np.ndarray:
    if min_tokens is None and max_percentile is None:
        return np.ones(len(rows), dtype=bool)
    word = re.compile(r"\w+")
    lengths = np.array([len(word.findall(text)) for text in rows["utterance"]])
    wanted = lengths >= (min_tokens or 0)
    train = lengths[(rows["split"] == "train").to_numpy()]
    if max_percentile is not None and len(train):
        wanted &= lengths <= np.percentile(train, max_percentile)
    return wanted


def _bad_files(paintings: pd.DataFrame, images: str | os.PathLike, verify: bool) -> dict[int, str]:
    """Index in `paintings` -> what is wrong with its image file."""
    present = paintings["image"].notna()
    bad = {i: f"{os.path.join(images, name)}.jpg: no such file" for i, name in paintings["painting"][~present].items()}
    if len(bad) == len(paintings):
        raise FileNotFoundError(
            f"None of the {len(bad)} paintings has an image in {os.fspath(images)!r}: {_some(bad.values())}. Give the "
            "folder that holds <art_style>/<painting>.jpg as `images` (command line: --images)."
        )
    if verify:
        files = paintings["image"][present]
        for (i, file), problem in zip(files.items(), find_undecodable(files, len(files)), strict=True):
            if problem:
                bad[i] = f"{file}: {problem}"
    return dict(sorted(bad.items()))


def _bad_source_images(paintings: pd.DataFrame, source_images: list[Dataset]) -> dict[int, str]:
    """Index in `paintings` -> what is wrong with the image that its row of the data set brings."""
    bad = {}
    for source, images in enumerate(source_images):
        wanted = paintings[paintings["source"] == source].sort_values("row")  # reads large files from front to back
        encoded = _encoded_images(images.select(wanted["row"].tolist()))
        for i, problem in zip(wanted.index, find_undecodable(encoded, len(wanted)), strict=True):
            if problem:
                bad[i] = f"{wanted['painting'][i]}: {problem}"
    return dict(sorted(bad.items()))


def _encoded_images(images: Dataset) -> Iterator[str | bytes]:
    for batch in images.cast_column("image", Image(decode=False)).iter(64):
        for image in batch["image"]:
            if image is None:
                yield b""
            else:
                yield image["path"] if image["bytes"] is None else image["bytes"]


def _report_bad_images(bad: dict[int, str], paintings: pd.DataFrame, sources: list[Source], on_bad_image: str) -> None:
    if not bad:
        return
    missing = sum(problem.endswith(": no such file") for problem in bad.values())
    shown = _some(f"{problem} ({_where(paintings, i, sources)})" for i, problem in bad.items())
    message = (
        f"{len(bad)} of {len(paintings)} images are missing ({missing}) or damaged ({len(bad) - missing}): {shown}."
    )
    if on_bad_image == "raise" or len(bad) == len(paintings):
        raise (FileNotFoundError if missing == len(bad) else OSError)(
            f'{message} Replace them, or leave these paintings out with on_bad_image="skip" (command line: '
            "--on_bad_image skip), which needs at least one good image."
        )
    logger.warning("Skipped paintings: %s", message)


def _from_frame(part: pd.DataFrame, features: Features) -> Dataset:
    # In chunks: all texts as Python's strings would take more memory than everything else here.
    chunks = [part.iloc[start : start + CHUNK_PAINTINGS] for start in range(0, len(part), CHUNK_PAINTINGS)]
    return concatenate_datasets(
        [Dataset.from_dict({name: chunk[name].tolist() for name in features}, features=features) for chunk in chunks]
    )


def _beside_source_images(part: pd.DataFrame, source_images: list[Dataset], features: Features) -> Dataset:
    """Put the columns of `part` beside the images they came with, in the order of `part`.

    The columns are laid out along all rows of the source, and the wanted rows are selected from that. A selection is a
    list of indices, so no image is read or copied.
    """
    text_features = Features({name: feature for name, feature in features.items() if name != "image"})
    beside, indices, offset = [], np.zeros(len(part), dtype=np.int64), 0
    for source in part["source"].unique():
        images, here = source_images[source], part["source"] == source
        columns = {name: [None] * len(images) for name in text_features}
        for name, values in columns.items():
            for row, value in zip(part["row"][here], part[name][here], strict=True):
                values[row] = value
        texts = Dataset.from_dict(columns, features=text_features)
        beside.append(concatenate_datasets([images, texts], axis=1))
        indices[here.to_numpy()] = part["row"][here] + offset
        offset += len(images)
    return concatenate_datasets(beside).select(indices)


def _where(frame: pd.DataFrame, index: int, sources: list[Source]) -> str:
    return sources[frame["source"][index]].where(int(frame["row"][index]))


def _some(items: Iterable[str], limit: int = 3) -> str:
    """The first few items and how many more there are."""
    items = list(items)
    return "; ".join(items[:limit]) + (f"; and {len(items) - limit} more" if len(items) > limit else "")


def _normalise_label(label: str) -> str:
    return " ".join(label.lower().split())


def _check_choice(argument: str, value: str, choices: list[str]) -> None:
    if value not in choices:
        raise ValueError(f"`{argument}` is {value!r}; use {' or '.join(map(repr, choices))}.")
