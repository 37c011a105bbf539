# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Files of predictions, of given emotions and of paintings to select, checked against the data set.

A file of predictions is json (a list of objects, or one object that maps paintings to objects), jsonl (one object per
line) or csv, with the fields

    painting: "<art_style>/<painting>" as in the annotations, compared in Unicode's NFC;
    emotion: one of the labels, or empty if the system named none; missing in the whole file if the system does not
        name emotions;
    explanation: the sentence;
    emotion_scores (optional): an object with a probability for every label.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from processing.csv_files import csv_rows, not_utf8, shown
from processing.images import nfc


logger = logging.getLogger(__name__)

FORMATS = (".json", ".jsonl", ".csv")


def read_records(path: str | Path, needed: Sequence[str]) -> list[dict]:
    """Reads the objects or rows of a json, jsonl or csv file.

    Raises:
        ValueError: naming the file, the place and the remedy.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: unknown file format. Use one of {', '.join(FORMATS)}.")
    if path.suffix.lower() == ".csv":
        rows = csv_rows(path)
        _, columns = next(rows, (1, []))
        records = [(f"line {line}", dict(zip(columns, fields, strict=True))) for line, fields in rows]
    else:
        records = _json_records(path, _read_text(path))
    if not records:
        raise ValueError(f"{path}: the file has no entries. Needed: {', '.join(needed)}.")
    for place, record in records:
        missing = [name for name in needed if _object(path, place, record).get(name) is None]
        if missing:
            raise ValueError(f"{path}, {place}: {' and '.join(missing)} missing. The entry has {shown(record)}.")
        for name in ("painting", "explanation", "emotion"):
            value = record.get(name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{path}, {place}: {name} is {value!r:.60}, not text. Write it in quotes.")
            if any("\ud800" <= char <= "\udfff" for char in value or ""):
                raise ValueError(f"{path}, {place}: {name} has half of a character ({ascii(value):.60}). Correct it.")
    return [record for _, record in records]


def read_predictions(path: str | Path, paintings: Sequence[str], labels: Sequence[str]) -> list[dict]:
    """Reads predictions in the order of `paintings`, with `emotion_scores` as a list in the order of `labels`.

    Emotions that are not in `labels` become `None` (unparsed), with one warning.

    Raises:
        ValueError: paintings are unknown, named twice or missing, or an entry is malformed.
    """
    records = _in_order(path, read_records(path, ("painting", "explanation")), paintings, complete=True)
    scores = _all_scores(path, records, paintings, labels)
    names_emotions = any("emotion" in record for record in records)
    predictions, unknown = [], []
    for index, (painting, record) in enumerate(zip(paintings, records, strict=True)):
        prediction = {"painting": painting, "explanation": record["explanation"]}
        if names_emotions:
            prediction["emotion"] = find_label(record.get("emotion"), labels)
            if prediction["emotion"] is None and (record.get("emotion") or "").strip():
                unknown.append(record["emotion"])
        if record.get("annotation") not in (None, ""):
            # Written by `evaluate_sevlm.py --human`: the position of the annotation that is the prediction.
            if not str(record["annotation"]).isdecimal():
                raise ValueError(
                    f"{path}, {painting}: annotation is {record['annotation']!r:.60}, not a position from 0."
                )
            prediction["annotation"] = int(record["annotation"])
        if scores is not None:
            prediction["emotion_scores"] = scores[index]
        predictions.append(prediction)
    if unknown:
        names = first_few(dict.fromkeys(unknown))
        logger.warning("%s: %d predictions with an unknown emotion count as unparsed: %s.", path, len(unknown), names)
    return predictions


def read_emotions(
    path: str | Path, paintings: Sequence[str], labels: Sequence[str]
) -> tuple[list[str], list[list[float]] | None]:
    """Reads one emotion per painting in the order of `paintings`, and the `emotion_scores` if the file has them.

    The file may have other paintings as well.

    Raises:
        ValueError: paintings are missing or named twice, labels are unknown, or an entry is malformed.
    """
    records = _in_order(path, read_records(path, ("painting", "emotion")), paintings, complete=False)
    emotions = [find_label(record["emotion"], labels) for record in records]
    unknown = [record["emotion"] for record, emotion in zip(records, emotions, strict=True) if emotion is None]
    if unknown:
        raise ValueError(
            f"{path}: {len(unknown)} unknown emotions: {first_few(dict.fromkeys(unknown))}. Use {', '.join(labels)}."
        )
    return emotions, _all_scores(path, records, paintings, labels)


def read_painting_list(path: str | Path, paintings: Sequence[str]) -> list[int]:
    """Returns the positions in `paintings` of the ones that a file names, one per line or as in files of predictions.

    Raises:
        ValueError: paintings are unknown or named twice.
    """
    path = Path(path)
    if path.suffix.lower() in FORMATS:
        records = read_records(path, ("painting",))
    else:
        # Not splitlines(): damaged names may contain other line separators.
        records = [{"painting": line.strip()} for line in _read_text(path).split("\n") if line.strip()]
    position = {nfc(name): index for index, name in enumerate(paintings)}
    return [position[name] for name in _by_name(path, records, position)]


def find_label(text: str | None, labels: Sequence[str]) -> str | None:
    """Returns the label that equals `text` up to case and white space, or None."""
    spelled = {" ".join(label.lower().split()): label for label in labels}
    return spelled.get(" ".join((text or "").lower().split()))


def first_few(names: Iterable, limit: int = 3) -> str:
    names = [repr(name) for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _json_records(path: Path, text: str) -> list[tuple[str, dict]]:
    try:
        if path.suffix.lower() == ".jsonl":
            # Not splitlines(): strings may contain other line separators.
            lines = [(f"line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
            return [(place, _load(f"{path}, {place}", line)) for place, line in lines]
        content = _load(path, text)
    except RecursionError:
        raise ValueError(f"{path}: not a file of predictions: the brackets are nested too deeply.") from None
    if isinstance(content, dict):
        content = [{"painting": name} | _object(path, name, value) for name, value in content.items()]
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list of objects, found {type(content).__name__}.")
    return [(f"entry {number}", value) for number, value in enumerate(content, 1)]


def _load(where, text: str):
    def unique(pairs: list[tuple]) -> dict:
        # json silently keeps the last of several values of a name.
        _refuse_repeated(where, [nfc(name) for name, _ in pairs])
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not well-formed json: {error}.") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(path)) from error


def _object(path, place, value) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{path}, {place}: expected an object, found {type(value).__name__}.")
    return value


def _all_scores(path, records: list[dict], paintings: Sequence[str], labels: Sequence[str]) -> list | None:
    """The `emotion_scores` of every record in the order of `labels`; None if no record has them."""
    if all(record.get("emotion_scores") in (None, "") for record in records):
        return None
    rows = []
    for painting, record in zip(paintings, records, strict=True):
        scores = record.get("emotion_scores")
        try:
            scores = json.loads(scores) if isinstance(scores, str) else scores
            row = [float(scores[label]) for label in labels]
            if set(scores) != set(labels) or min(row) < 0 or not abs(sum(row) - 1) <= 1e-3:  # also refuses NaN
                raise ValueError
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path}, {painting}: emotion_scores must hold a probability for each of {', '.join(labels)}, with "
                f"sum 1; found {scores!r}. Give them for every prediction of a file, or for none."
            ) from error
        rows.append(row)
    return rows


def _in_order(path, records: list[dict], paintings: Sequence[str], complete: bool) -> list[dict]:
    """The records in the order of `paintings`; with `complete`, the file must have no other paintings."""
    wanted = [nfc(name) for name in paintings]
    found = _by_name(path, records, set(wanted) if complete else None)
    _refuse(path, "without a prediction", [name for name in wanted if name not in found])
    return [found[name] for name in wanted]


def _by_name(path, records: list[dict], known=None) -> dict[str, dict]:
    names = [nfc(record["painting"]) for record in records]
    if known is not None:
        _refuse(path, "not in the chosen split", [name for name in names if name not in known])
    _refuse_repeated(path, names)
    return dict(zip(names, records, strict=True))


def _refuse_repeated(path, names: list[str]) -> None:
    _refuse(path, "named twice", [name for name, count in Counter(names).items() if count > 1])


def _refuse(path, problem: str, names: list[str]) -> None:
    if names:
        raise ValueError(
            f"{path}: {len(names)} paintings {problem}: {first_few(names)}. Names are <art_style>/<painting> as in "
            "the annotations; select the split with --split, or a part of it with --paintings FILE."
        )
