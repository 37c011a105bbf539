"""Tables of explanations: a part file that grows while images are explained, and the finished CSV or Parquet file.

The part file is JSON Lines: a header with the settings, then one line for each finished batch. Each line is synced to
disk before the next batch starts; an incomplete last line is dropped.
"""

import csv
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pandas as pd
import pyarrow as pa
from filelock import FileLock, Timeout

from .files import atomic_write


# Every part file starts with this, so that another program's file is not mistaken for one.
PART_MARK, OLD_MARK = b'{"sevlm_explanations": 3, ', b'{"sevlm_explanations": 2, '  # OLD_MARK: version 0.1.0


def version(file: str) -> list[int] | None:
    """Size and modification time; None for a URL or a missing file."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def check_output(output: Path, overwrite: bool) -> Path:
    """Checks before a model is loaded that the file can be written; returns the path of the part file."""
    part_path = output.with_name(output.name + ".part")
    if output.is_dir():
        raise SystemExit(f"error: --output {output} is a folder. Name a file in it.")
    folder = next(folder for folder in output.absolute().parents if os.path.lexists(folder))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise SystemExit(f"error: --output {output}: you cannot write to {folder}. Name a file in another folder.")
    check_part_file(part_path, overwrite)
    # If there is a part file, an interrupted run with --overwrite may be about to replace this file.
    if output.exists() and not part_path.exists() and not overwrite:
        raise SystemExit(f"error: {output} exists already. Name another file, or add --overwrite.")
    return part_path


@contextmanager
def open_part_file(path: Path, settings: dict, overwrite: bool = False) -> Iterator[tuple[BinaryIO, dict[str, dict]]]:
    """Locks the part file and yields it with the rows (by file) of the finished batches. Stops if another run uses the
    file, if it is damaged or if it has other settings; in the last two cases `overwrite` discards the rows instead."""
    check_part_file(path, overwrite)
    with _locked(path), open(path, "a+b") as file:
        file.seek(0)
        lines = file.read().split(b"\n")[:-1]
        try:
            header, *batches = [json.loads(line) for line in lines] or [{"settings": None}]
        except ValueError:
            if not overwrite:
                raise SystemExit(f"error: {path} is damaged. Start again with --overwrite.") from None
            header = {"settings": None}
        before = header["settings"] if header.get("sevlm_explanations") == 3 else None
        # --overwrite continues only a run that was started with --overwrite.
        if before == settings and (header["overwrite"] or not overwrite):
            file.truncate(sum(len(line) + 1 for line in lines))
        elif before is None or overwrite:
            batches = []
            file.truncate(0)
            append_line(file, {"sevlm_explanations": 3, "overwrite": overwrite, "settings": settings})
        else:
            pairs = [(name, before.get(name), value) for name, value in settings.items()]
            changes = "; ".join(f"{name} was {old!r}, is {new!r}" for name, old, new in pairs if old != new)
            remedy = "Finish it with the same command, or start again with --overwrite."
            raise SystemExit(f"error: {path} holds an unfinished run with other settings: {changes}. {remedy}")
        yield file, {row["file"]: row for batch in batches for row in batch}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock file of `path`, or stops if another run holds it."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise SystemExit(f"error: another run is writing {path}.") from None
    try:
        yield
    finally:
        try:
            # While it is held, because afterwards it may be another run's.
            os.unlink(lock.lock_file)
        except OSError:  # Windows keeps a file that a run has open
            lock.release()
            with suppress(OSError):
                os.unlink(lock.lock_file)
        lock.release()


def append_line(file: BinaryIO, content) -> None:
    """Appends a line of JSON; it is on disk when this returns."""
    file.write(json.dumps(content).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def check_part_file(path: Path, overwrite: bool = False) -> None:
    """Stops if `path` exists and is not a part file of this version, or of version 0.1.0 with `overwrite`."""
    start = b""
    if path.is_file():
        with open(path, "rb") as file:
            start = file.read(len(PART_MARK))
    # A run that is interrupted right at the start leaves an empty file or a part of the mark.
    known = PART_MARK.startswith(start) or (overwrite and start == OLD_MARK)
    if not known or (path.exists() and not path.is_file()):
        remedy = "Start again with --overwrite." if start == OLD_MARK else "Move it away, or name another --output."
        raise SystemExit(f"error: {path} is not an unfinished run of this version of the program. {remedy}")


def write_table(rows: list[dict], output: Path) -> None:
    """Writes one row per picture: file, emotion, explanation, alignment_score, a score for each label, vad (as JSON in
    a CSV file), error. A row `{"file", "error"}` is a picture that cannot be read."""
    names = ["emotion", "explanation", "alignment_score", "vad", "error"]
    # A reason may name the target of a link.
    rows = [row | {name: encodable(row[name]) for name in ("file", "error") if name in row} for row in rows]
    table = pd.DataFrame([dict.fromkeys(names) | row for row in rows])
    scores = pd.DataFrame([row.get("emotion_scores", {}) for row in rows])
    scores = scores.rename(columns=lambda label: label.replace(" ", "_"))
    columns = table[["file", "emotion", "explanation", "alignment_score"]]
    table = pd.concat([columns, scores.add_prefix("score_"), table[["vad", "error"]]], axis=1)
    with atomic_write(output) as temporary:
        if output.suffix.lower() == ".csv":
            table["vad"] = table["vad"].map(json.dumps, na_action="ignore")
            # All text in quotation marks: a lone carriage return in a name would end the row.
            table.to_csv(temporary, index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        else:
            # Explicit types, because a column of missing values has none.
            texts = dict.fromkeys(("file", "emotion", "explanation", "error"), pa.string())
            words = pa.list_(
                pa.struct({"word": pa.string()} | dict.fromkeys(("valence", "arousal", "dominance"), pa.float64()))
            )
            types = dict.fromkeys(table, pa.float64()) | texts | {"vad": words}
            table.to_parquet(temporary, index=False, schema=pa.schema(types))


def encodable(name: str) -> str:
    """Escapes bytes of a file name that are not UTF-8 as \\udcXX, and a backslash that looks like such an escape as
    \\u005c, so that different names stay different."""
    name = re.sub(r"\\(?=u(dc[89a-f][0-9a-f]|005c))", r"\\u005c", name)
    return name.encode(errors="backslashreplace").decode()
