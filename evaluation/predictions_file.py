"""Reads files of predictions, emotions or names of paintings, and checks them against the data set.

A file of predictions is json (a list of objects, or one object that maps paintings to objects), jsonl (one object per
line) or csv, with the fields

    painting: "<art_style>/<painting>" as in the annotations, compared in Unicode's NFC; the suffix of a picture's file
        (.jpg, .jpeg, .png, .webp) is dropped if the painting is known only without it;
    emotion: one of the labels, or empty if the system named none; missing in the whole file if the system does not
        name emotions;
    explanation: the sentence;
    emotion_scores (optional): an object with a probability for every label.

A list of paintings may also be a json list of names, or a text file with one name per line.

Unknown, repeated or missing paintings and malformed entries raise a ValueError that names file, place and remedy.
"""

import json
import logging
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from processing.csv_files import csv_rows, not_utf8, shown
from processing.images import IMAGE_EXTENSIONS, nfc


logger = logging.getLogger(__name__)

FORMATS = (".json", ".jsonl", ".csv")


def read_records(path: str | Path, needed: Sequence[str]) -> list[dict]:
    """Reads the objects or rows of a json, jsonl or csv file, or the lines of a list of paintings."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in FORMATS and needed != ("painting",):
        raise ValueError(f"{path}: unknown file format. Use one of {', '.join(FORMATS)}.")
    records = _records(path, kind)
    if not records:
        raise ValueError(f"{path}: the file has no entries. Needed: {', '.join(needed)}.")
    for place, record in records:
        if not isinstance(record, dict):
            raise ValueError(f"{path}, {place}: expected an object, found {type(record).__name__}.")
        missing = [name for name in needed if record.get(name) is None]
        if missing:
            raise ValueError(f"{path}, {place}: {' and '.join(missing)} missing. The entry has {shown(record)}.")
        for name in ("painting", "explanation", "emotion"):
            value = record.get(name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{path}, {place}: {name} is {value!r:.60}, not text. Write it in quotes.")
            if any("\ud800" <= char <= "\udfff" for char in value or ""):
                raise ValueError(f"{path}, {place}: {name} has a lone surrogate ({ascii(value):.60}). Correct it.")
    return [record for _, record in records]


def read_predictions(
    path: str | Path, paintings: Sequence[str], labels: Sequence[str], *, complete: bool = True
) -> list[dict]:
    """Reads predictions in the order of `paintings`, with `emotion_scores` as a list in the order of `labels`.

    Unless `complete`, the file may have other paintings as well. Emotions that are not in `labels` become `None`
    (unparsed), with one warning.
    """
    records = _in_order(path, read_records(path, ("painting", "explanation")), paintings, complete)
    scores = _all_scores(path, records, paintings, labels)
    names_emotions = any("emotion" in record for record in records)
    predictions, unknown = [], []
    for index, (painting, record) in enumerate(zip(paintings, records, strict=True)):
        prediction = {"painting": painting, "explanation": record["explanation"]}
        emotion, annotation = record.get("emotion"), record.get("annotation")
        if names_emotions:
            prediction["emotion"] = find_label(emotion, labels)
            if prediction["emotion"] is None and (emotion or "").strip():
                unknown.append(emotion)
        if annotation not in (None, ""):
            # From `evaluate_sevlm.py --human`: the index of the human annotation that is used as the prediction.
            if not str(annotation).isdecimal():
                raise ValueError(f"{path}, {painting}: annotation is {annotation!r:.60}, not a position from 0.")
            prediction["annotation"] = int(annotation)
        if scores is not None:
            prediction["emotion_scores"] = scores[index]
        predictions.append(prediction)
    if unknown:
        names = _first_few(unknown)
        logger.warning("%s: %d predictions with an unknown emotion count as unparsed: %s.", path, len(unknown), names)
    return predictions


def read_emotions(path: str | Path, paintings: Sequence[str], labels: Sequence[str]) -> tuple[list, list | None]:
    """Reads one emotion per painting in the order of `paintings`, and the `emotion_scores` if the file has them.

    The file may have other paintings as well. Labels must be known.
    """
    records = _in_order(path, read_records(path, ("painting", "emotion")), paintings, complete=False)
    emotions = [record["emotion"] for record in records]
    unknown = [emotion for emotion in emotions if find_label(emotion, labels) is None]
    if unknown:
        raise ValueError(f"{path}: {len(unknown)} unknown emotions: {_first_few(unknown)}. Use {', '.join(labels)}.")
    return [find_label(emotion, labels) for emotion in emotions], _all_scores(path, records, paintings, labels)


def read_painting_list(path: str | Path, paintings: Sequence[str]) -> list[int]:
    """Reads a list of paintings or a file of predictions. Returns the positions of its paintings in `paintings`."""
    position = {nfc(name): index for index, name in enumerate(paintings)}
    return [position[name] for name in _by_name(path, read_records(path, ("painting",)), position, complete=True)]


def find_label(text: str | None, labels: Sequence[str]) -> str | None:
    """Returns the label that equals `text` up to case and white space, or None."""
    spelled = {" ".join(label.lower().split()): label for label in labels}
    return spelled.get(" ".join((text or "").lower().split()))


def _first_few(names: Iterable) -> str:
    names = [repr(name) for name in dict.fromkeys(names)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _records(path: Path, kind: str) -> list[tuple[str, dict]]:
    """Returns the place of every record in the file, and the record."""
    if kind == ".csv":
        rows = csv_rows(path)
        _, columns = next(rows, (1, []))
        return [(f"line {line}", dict(zip(columns, fields, strict=True))) for line, fields in rows]
    try:
        text = path.read_text(encoding="utf-8-sig")
        # Not splitlines(): text may contain other line separators.
        lines = [(f"line {number}", line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if kind not in FORMATS:
            return [(place, {"painting": line}) for place, line in lines]
        if kind == ".jsonl":
            return [(place, _load(f"{path}, {place}", line)) for place, line in lines]
        content = _load(path, text)
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(path)) from error
    except RecursionError:
        raise ValueError(f"{path}: not a file of predictions: the brackets are nested too deeply.") from None
    if isinstance(content, dict):
        content = [{"painting": name} | value if isinstance(value, dict) else value for name, value in content.items()]
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list of objects, found {type(content).__name__}.")
    entries = [{"painting": value} if isinstance(value, str) else value for value in content]
    return [(f"entry {number}", value) for number, value in enumerate(entries, 1)]


def _load(where, text: str):
    def unique(pairs: list[tuple]) -> dict:
        if repeated := _repeated(nfc(name) for name, _ in pairs):  # json silently keeps the last value
            raise ValueError(f"{where}: repeated in one object: {_first_few(repeated)}. Remove one.")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not well-formed json: {error}.") from error


def _all_scores(path, records: list[dict], paintings: Sequence[str], labels: Sequence[str]) -> list | None:
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
            needed = f"a probability for each of {', '.join(labels)}, with sum 1, for every prediction or for none"
            raise ValueError(f"{path}, {painting}: emotion_scores must hold {needed}; found {scores!r}.") from error
        rows.append(row)
    return rows


def _in_order(path, records: list[dict], paintings: Sequence[str], complete: bool) -> list[dict]:
    """Returns the records in the order of `paintings`. If `complete`, the file must not have others."""
    needed = [nfc(name) for name in paintings]
    found = _by_name(path, records, set(needed), complete)
    _refuse(path, "without a prediction", [name for name in needed if name not in found])
    return [found[name] for name in needed]


def _by_name(path, records: list[dict], known: Container[str], complete: bool) -> dict[str, dict]:
    names = [_known_name(nfc(record["painting"]), known) for record in records]
    if complete:
        _refuse(path, "not in the chosen split", [name for name in names if name not in known])
    _refuse(path, "named twice", _repeated(names))
    return dict(zip(names, records, strict=True))


def _known_name(name: str, known: Container[str]) -> str:
    """Returns the name without the suffix of a picture's file, if only that is `known`; otherwise the name."""
    stem, dot, suffix = name.rpartition(".")
    return stem if name not in known and stem in known and (dot + suffix).lower() in IMAGE_EXTENSIONS else name


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _refuse(path, problem: str, names: list[str]) -> None:
    if names:
        raise ValueError(
            f"{path}: {len(names)} paintings {problem}: {_first_few(names)}. Names are <art_style>/<painting> as in "
            "the annotations; select the split with --split, or a part of it with --paintings FILE."
        )
