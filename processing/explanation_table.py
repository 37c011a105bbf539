"""Tables of explanations: a part file that grows while images are explained, and the finished CSV or Parquet file.

The part file is JSON Lines: a header with the settings, then one line for each finished batch. Each line is synced to
disk before the next batch starts; an incomplete last line is dropped. Rows stay on disk;
memory holds only their places.

A record says how a table was made: model, revision, date, folder, settings. It is in the metadata of a Parquet file's
schema, and in a second file next to a CSV file.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from .csv_files import csv_rows
from .files import atomic_write, write_json


# Every part file starts with this, so that another program's file is not mistaken for one.
PART_MARK, OLD_MARK = b'{"sevlm_explanations": 3, ', b'{"sevlm_explanations": 2, '  # OLD_MARK: version 0.1.0
RECORD = ("model", "revision", "date", "folder", "settings")
ROWS_AT_ONCE = 1000
WORDS = pa.list_(pa.struct({"word": pa.string()} | dict.fromkeys(("valence", "arousal", "dominance"), pa.float64())))


def version(file: str) -> list[int] | None:
    """Size and modification time; None for a URL or a missing file."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def check_output(output: Path, overwrite: bool, update: bool = False) -> Path:
    """Checks before a model is loaded that the file can be written; returns the path of the part file."""
    part_path = output.with_name(output.name + ".part")
    if output.is_dir():
        raise SystemExit(f"error: --output {output} is a folder. Name a file in it.")
    folder = next(folder for folder in output.absolute().parents if os.path.lexists(folder))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise SystemExit(f"error: --output {output}: you cannot write to {folder}. Name a file in another folder.")
    check_part_file(part_path, overwrite)
    if update:
        read_record(output)
    # If there is a part file, an interrupted run with --overwrite may be about to replace this file.
    elif output.exists() and not part_path.exists() and not overwrite:
        remedy = "Add --update to add new pictures or --overwrite to replace it, or name another file."
        raise SystemExit(f"error: {output} exists already. {remedy}")
    return part_path


@contextmanager
def open_part_file(path: Path, settings: dict, overwrite: bool = False) -> Iterator[tuple[BinaryIO, dict[str, int]]]:
    """Locks the part file and yields it with the place of the finished row of each file (see `read_row`), without
    files that have changed since. Stops if another run uses the part file, if it is damaged or if it has other
    settings; in the last two cases `overwrite` discards the rows instead."""
    check_part_file(path, overwrite)
    with _locked(path), open(path, "a+b") as file:
        try:
            header, places, end = _read_part(file)
        except ValueError:
            if not overwrite:
                raise SystemExit(f"error: {path} is damaged. Start again with --overwrite.") from None
            header, places, end = {"settings": None}, {}, 0
        before = header["settings"] if header.get("sevlm_explanations") == 3 else None
        # --overwrite continues only a run that was started with --overwrite.
        if before == settings and (header["overwrite"] or not overwrite):
            file.truncate(end)
        elif before is None or overwrite:
            places = {}
            file.truncate(0)
            append_line(file, {"sevlm_explanations": 3, "overwrite": overwrite, "settings": settings})
        else:
            changes = differences(before, settings)
            remedy = "Finish it with the same command, or start again with --overwrite."
            raise SystemExit(f"error: {path} holds an unfinished run with other settings: {changes}. {remedy}")
        yield file, places


def _read_part(file: BinaryIO) -> tuple[dict, dict[str, int], int]:
    """Returns the header, the places of the rows and the length of all complete lines."""
    header: dict[str, Any] = {"settings": None}
    places: dict[str, int] = {}
    end = 0
    file.seek(0)
    for line in file:
        if not line.endswith(b"\n"):
            break
        content = json.loads(line)
        if end == 0:
            header = content
        elif header.get("sevlm_explanations") == 3:
            places |= {row["file"]: end for row in content if row["version"] == version(row["file"])}
        end += len(line)
    return header, places, end


def differences(before: dict, now: dict) -> str:
    pairs = [(name, before.get(name), value) for name, value in now.items()]
    return "; ".join(f"{name} was {old!r}, is {new!r}" for name, old, new in pairs if old != new)


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


def table_schema(emotions: Iterable[str], vad: bool) -> pa.Schema:
    """Returns the columns. `score` is the share of the named emotion; width and height are those of the upright
    picture; `sha256` is the checksum of the file. A picture that cannot be read has only `file` and `error`."""
    scores = [f"score_{label.replace(' ', '_')}" for label in emotions]
    types = {"file": pa.string(), "width": pa.int32(), "height": pa.int32(), "sha256": pa.string()}
    types |= {"emotion": pa.string(), "score": pa.float64(), "explanation": pa.string()}
    types |= dict.fromkeys(["alignment_score", *scores], pa.float64())
    return pa.schema(types | ({"vad": WORDS} if vad else {}) | {"error": pa.string()})


def finished_rows(
    part: BinaryIO, places: dict[str, int], errors: dict[str, str], files: Iterable[str]
) -> Iterator[dict[str, Any]]:
    """Yields the rows of `files` for the table, from the part file or with an error."""
    place, batch = None, {}
    for file in files:
        if file in places:
            if place != places[file]:  # neighbours are in one batch
                place = places[file]
                part.seek(place)
                batch = {row["file"]: row for row in json.loads(part.readline())}
            row = batch[file]
            scores = {f"score_{label.replace(' ', '_')}": score for label, score in row["emotion_scores"].items()}
            yield row | scores | {"file": encodable(file), "score": row["emotion_scores"][row["emotion"]]}
        else:
            # A reason may name the target of a link.
            yield {"file": encodable(file), "error": encodable(errors[file])}


def write_table(
    rows: Iterable[dict[str, Any]], output: Path, schema: pa.Schema, record: dict[str, Any], update: bool = False
) -> None:
    """Writes a table and its record, a thousand rows at a time. `update`: its record has the same settings."""
    rows = iter(rows)
    if is_parquet := output.suffix.lower() == ".parquet":
        schema = schema.with_metadata(record | {"settings": json.dumps(record["settings"])})
    with atomic_write(output) as temporary:
        if is_parquet:
            with pq.ParquetWriter(temporary, schema) as writer:
                while chunk := list(islice(rows, ROWS_AT_ONCE)):
                    writer.write_batch(pa.RecordBatch.from_pylist(chunk, schema))
        else:
            # Excel needs the byte order mark.
            with open(temporary, "w", encoding="utf-8-sig", newline="") as file:
                file.write(",".join(f'"{name}"' for name in schema.names) + "\n")
                file.writelines(",".join(_cell(row.get(field.name), field) for field in schema) + "\n" for row in rows)
            if not update:  # the record of a replaced table must not describe this one
                record_path(output).unlink(missing_ok=True)
    if not is_parquet:
        write_json(record_path(output), record)


def _cell(value: Any, field: pa.Field) -> str:
    """A value as it stands in a CSV file: all text in quotation marks, because a lone carriage return in a name would
    end the row. Numbers that were read from a table are text and stay as they are."""
    if pa.types.is_floating(field.type) or pa.types.is_integer(field.type):
        return "" if value is None else str(value)
    text = json.dumps(value) if isinstance(value, list) else value or ""
    return f'"{text.replace(chr(34), 2 * chr(34))}"'


def read_table(path: Path, schema: pa.Schema) -> Iterator[dict[str, Any]]:
    """Yields the rows of a table that has the columns of `schema`; the values of a CSV file are text.

    Raises:
        ValueError: a damaged file, or other columns.
    """
    changed = ValueError(f"{path}: its columns are not those of this model and --vad. Name another file.")
    if path.suffix.lower() == ".parquet":
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(schema):
                raise changed
            for batch in file.iter_batches(ROWS_AT_ONCE):
                yield from batch.to_pylist()
    else:
        rows = csv_rows(path)
        if next(rows, (0, []))[1] != schema.names:
            raise changed
        for _, fields in rows:
            yield dict(zip(schema.names, fields, strict=True))


def record_path(output: Path) -> Path:
    """The file with the record of a CSV file."""
    return output.with_name(output.name + ".settings.json")


def read_record(output: Path) -> dict[str, Any]:
    """Returns the record of a finished table, or stops if there is none."""
    try:
        if output.suffix.lower() == ".parquet":
            metadata = pq.read_schema(output).metadata or {}
            record = {name: metadata[name.encode()].decode() for name in RECORD}
            record["settings"] = json.loads(record["settings"])
        else:
            record = json.loads(record_path(output).read_text(encoding="utf-8"))
            record = {name: record[name] for name in RECORD}
    except (OSError, ValueError, KeyError, TypeError) as error:
        where = "its metadata" if output.suffix.lower() == ".parquet" else record_path(output)
        problem = f"{output} cannot be updated, because its settings are not in {where}"
        raise SystemExit(f"error: {problem}. Name another file, or replace it with --overwrite.") from error
    return record


def check_same_settings(output: Path, now: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of the table `output`, or stops if it has other settings than `now`, this run's record."""
    before = read_record(output)
    changes = differences(before["settings"], now["settings"])
    if changes:
        models = [f"{record['model']} ({record['revision'] or 'no revision'})" for record in (before, now)]
        shown = f"; table of {models[0]}, now {models[1]}" if "model was" in changes else ""
        remedy = "Use the table's settings, or name another file."
        raise SystemExit(f"error: {output} has other settings: {changes}{shown}. {remedy}")
    return before


def encodable(name: str) -> str:
    """Escapes bytes of a file name that are not UTF-8 as \\udcXX, and a backslash that looks like such an escape as
    \\u005c, so that different names stay different."""
    name = re.sub(r"\\(?=u(dc[89a-f][0-9a-f]|005c))", r"\\u005c", name)
    return name.encode(errors="backslashreplace").decode()
