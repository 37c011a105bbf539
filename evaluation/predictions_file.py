# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Files of predictions, of given emotions and of paintings to choose, checked against the data set.

A file of predictions is json (a list of objects, or one object per painting under its name), jsonl (an object a line)
or csv, with the fields

    painting: "<art_style>/<painting>" as in the annotations (names are compared in Unicode's NFC);
    emotion: one of the labels, or empty where none was understood; absent from the whole file if the system names
        no emotions;
    explanation: the sentence;
    emotion_scores: optionally a probability for every label, as an object.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from processing.csv_files import csv_rows, not_utf8, shown
from processing.images import nfc


logger = logging.getLogger(__name__)

FORMATS = (".json", ".jsonl", ".csv")


def read_records(path: str | Path, needed: Sequence[str]) -> list[dict]:
    """The objects or rows of a json, jsonl or csv file.

    Raises:
        ValueError: naming the file, the place and the remedy.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: unknown kind of file. Use one of {', '.join(FORMATS)}.")
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
            raise ValueError(
                f"{path}, {place}: {' and '.join(missing)} missing. Needed: {', '.join(needed)}; found: "
                f"{shown(record)}."
            )
        for name in ("painting", "explanation", "emotion"):
            value = record.get(name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{path}, {place}: {name} is {value!r:.60}, not text. Write it in quotes.")
            if value is not None and any("\ud800" <= char <= "\udfff" for char in value):
                raise ValueError(
                    f"{path}, {place}: {name} holds half of a character ({ascii(value):.60}). Correct it."
                )
    return [record for _, record in records]


def _json_records(path: Path, text: str) -> list[tuple[str, dict]]:
    try:
        if path.suffix.lower() == ".jsonl":
            # Not splitlines(): strings may hold what it takes for ends of lines.
            lines = [(f"line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
            return [(place, _load(f"{path}, {place}", line)) for place, line in lines]
        content = _load(path, text)
    except RecursionError:
        raise ValueError(f"{path}: not a file of predictions: too many brackets in brackets.") from None
    if isinstance(content, dict):
        content = [{"painting": name} | _object(path, name, value) for name, value in content.items()]
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list of objects, found {type(content).__name__}.")
    return [(f"entry {number}", value) for number, value in enumerate(content, 1)]


def _load(where, text: str):
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _no_name_twice(where, pairs))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not well-formed json: {error}.") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(path)) from error


def _no_name_twice(path, pairs: list[tuple]) -> dict:
    """json keeps the last of several values of a name, silently."""
    _refuse(path, "named twice", _twice([nfc(name) for name, _ in pairs]))
    return dict(pairs)


def _object(path, place, value) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{path}, {place}: expected an object, found {type(value).__name__}.")
    return value


def read_predictions(path: str | Path, paintings: Sequence[str], labels: Sequence[str]) -> list[dict]:
    """The predictions of a file in the order of `paintings`, `emotion_scores` as a list in the order of `labels`.

    A label that is none of `labels` becomes `None` (unparsed), with one warning for all.

    Raises:
        ValueError: a painting is unknown, named twice or missing, with the count and the first names.
    """
    records = _in_order(path, read_records(path, ("painting", "explanation")), paintings, complete=True)
    has_scores = any(record.get("emotion_scores") not in (None, "") for record in records)
    names_emotions = any("emotion" in record for record in records)
    predictions, unknown = [], []
    for painting, record in zip(paintings, records, strict=True):
        emotion = _label(record.get("emotion"), labels)
        if emotion is None and str(record.get("emotion") or "").strip():
            unknown.append(record["emotion"])
        prediction = {"painting": painting, "explanation": str(record["explanation"])}
        if names_emotions:
            prediction["emotion"] = emotion
        if record.get("annotation") not in (None, ""):
            # A person's prediction: which of the painting's own annotations it is.
            prediction["annotation"] = _position(path, painting, record["annotation"])
        if has_scores:
            prediction["emotion_scores"] = _scores(path, painting, record.get("emotion_scores"), labels)
        predictions.append(prediction)
    if unknown:
        logger.warning(
            "%s: %d predictions have an emotion that is none of the labels and count as unparsed: %s.",
            path,
            len(unknown),
            first_few(dict.fromkeys(unknown)),
        )
    return predictions


def _position(path, painting: str, value) -> int:
    if isinstance(value, bool) or not (isinstance(value, int) or isinstance(value, str) and value.isdecimal()):
        raise ValueError(f"{path}, {painting}: annotation is {value!r:.60}; needed is its position, from 0.")
    return int(value)


def _scores(path, painting: str, scores, labels: Sequence[str]) -> list[float]:
    try:
        scores = json.loads(scores) if isinstance(scores, str) else scores
        values = [float(scores[label]) for label in labels]
        if set(scores) != set(labels) or min(values) < 0 or not abs(sum(values) - 1) <= 1e-3:  # (NaN is not)
            raise ValueError
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}, {painting}: emotion_scores must hold a probability for each of {', '.join(labels)}, with sum 1; "
            f"found {scores!r}. Every prediction of a file needs them, or none."
        ) from error
    return values


def read_emotions(
    path: str | Path, paintings: Sequence[str], labels: Sequence[str]
) -> tuple[list[str], list[list[float]] | None]:
    """One given emotion per painting, in the order of `paintings`, and the `emotion_scores` if the file has them;
    further paintings in the file are not needed.

    Raises:
        ValueError: a painting is missing or named twice, or a label unknown, with the count and the first names.
    """
    records = _in_order(path, read_records(path, ("painting", "emotion")), paintings, complete=False)
    emotions = [_label(record["emotion"], labels) for record in records]
    unknown = [record["emotion"] for record, emotion in zip(records, emotions, strict=True) if emotion is None]
    if unknown:
        raise ValueError(
            f"{path}: {len(unknown)} unknown emotions: {first_few(dict.fromkeys(unknown))}. Use {', '.join(labels)}."
        )
    scores = None
    if any(record.get("emotion_scores") not in (None, "") for record in records):
        scores = [
            _scores(path, painting, record.get("emotion_scores"), labels)
            for painting, record in zip(paintings, records, strict=True)
        ]
    return emotions, scores


def read_painting_list(path: str | Path, paintings: Sequence[str]) -> list[int]:
    """Positions in `paintings` of the ones that a file names: a line each, or as in files of predictions.

    Raises:
        ValueError: a painting is unknown or named twice, with the count and the first names.
    """
    path = Path(path)
    if path.suffix.lower() in FORMATS:
        records = read_records(path, ("painting",))
    else:
        # Not splitlines(): garbled names hold what it takes for ends of lines.
        lines = _read_text(path).split("\n")
        records = [{"painting": line.strip()} for line in lines if line.strip()]
    position = {nfc(name): index for index, name in enumerate(paintings)}
    named = [nfc(record["painting"]) for record in records]
    _refuse(path, "not in the chosen split", [name for name in named if name not in position])
    _refuse(path, "named twice", _twice(named))
    return [position[name] for name in named]


def _in_order(path, records: list[dict], paintings: Sequence[str], complete: bool) -> list[dict]:
    wanted = [nfc(name) for name in paintings]
    named = [nfc(str(record["painting"])) for record in records]
    if complete:
        known = set(wanted)
        _refuse(path, "not in the chosen split", [name for name in named if name not in known])
    _refuse(path, "named twice", _twice(named))
    found = dict(zip(named, records, strict=True))
    _refuse(path, "without a prediction", [name for name in wanted if name not in found])
    return [found[name] for name in wanted]


def _refuse(path, problem: str, names: list[str]) -> None:
    if names:
        raise ValueError(
            f"{path}: {len(names)} paintings {problem}: {first_few(names)}. Names are <art_style>/<painting> as in "
            "the annotations; choose the split with --split, or a part of it with --paintings FILE."
        )


def _twice(names: list[str]) -> list[str]:
    seen, twice = set(), {}
    for name in names:
        if name in seen:
            twice[name] = True
        seen.add(name)
    return list(twice)


def _label(text, labels: Sequence[str]) -> str | None:
    spelled = {" ".join(label.lower().split()): label for label in labels}
    return spelled.get(" ".join(str(text or "").lower().split()))


def first_few(names: Iterable, limit: int = 3) -> str:
    names = [repr(name) for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
