"""Explains many pictures in batches and keeps the finished batches, so that an interrupted run can continue.

The part file is JSON Lines: a header with the settings, then one line for each finished batch. Each line is synced to
disk before the next batch starts; an incomplete last line is dropped.
"""

import csv
import json
import os
import re
import sys
import zlib
from argparse import Namespace
from collections import deque
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import pandas as pd
import pyarrow as pa
import torch
from datasets.fingerprint import Hasher
from tqdm.auto import tqdm

from processing.files import atomic_write

from .pipeline_sevlm import PREPROCESS_DEFAULTS, VAD_NAMES, SEVLMPipeline


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Every part file starts with this, so that another program's file is not mistaken for one.
PART_MARK = b'{"sevlm_explanations": 3, '


def explain_batches(
    explainer: SEVLMPipeline, files: list[str], args: Namespace, skipped: list[list[str]], done: Container[str] = ()
) -> Iterator[list[dict]]:
    """Explains `files` except those that are `done`, and reads the next batches while the model works. Yields for each
    batch `{"file"} | result of the pipeline`, and adds `[file, reason]` of files that cannot be read to `skipped`."""
    batches = [files[i : i + args.batch_size] for i in range(0, len(files), args.batch_size)]
    # What is sampled depends on a batch's first file, not on where a run was interrupted.
    todo = [(batch[0], rest) for batch in batches if (rest := [file for file in batch if file not in done])]
    limits = {name: getattr(args, name) for name in PREPROCESS_DEFAULTS}

    def prepare(file: str) -> dict | str:
        before = version(file)
        try:
            inputs = explainer.preprocess(file, **limits)
        except ValueError as error:
            return str(error.__cause__ or error)
        except MemoryError:
            return "there is not enough memory for it"
        # Half of it may be the old picture.
        return inputs if version(file) == before else "the file changed while it was read"

    threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    submitted = ([threads.submit(prepare, file) for file in batch] for _, batch in todo)
    try:
        waiting = deque(islice(submitted, 2))
        for first, batch in todo:
            waiting.extend(islice(submitted, 1))
            prepared = dict(zip(batch, [future.result() for future in waiting.popleft()], strict=True))
            skipped += [[file, reason] for file, reason in prepared.items() if isinstance(reason, str)]
            readable = {file: inputs for file, inputs in prepared.items() if not isinstance(inputs, str)}
            torch.manual_seed(zlib.crc32(os.fsencode(f"{args.seed} {first}")))
            results = explainer(list(readable.values()), batch_size=len(readable) or 1)
            yield [{"file": file} | result for file, result in zip(readable, results, strict=True)]
    finally:
        threads.shutdown(cancel_futures=True)


def check_output(output: Path, overwrite: bool) -> Path:
    """Checks before a model is loaded that the file can be written; returns the path of the part file."""
    part_path = output.with_name(output.name + ".part")
    if output.is_dir():
        raise SystemExit(f"error: --output {output} is a folder. Name a file in it.")
    folder = next(folder for folder in output.absolute().parents if os.path.lexists(folder))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise SystemExit(f"error: --output {output}: you cannot write to {folder}. Name a file in another folder.")
    check_part_file(part_path)
    # With a part file, this may be the file that an interrupted run with --overwrite will replace.
    if output.exists() and not part_path.exists() and not overwrite:
        raise SystemExit(f"error: {output} exists already. Name another file, or add --overwrite.")
    return part_path


def write_explanations(
    explainer: SEVLMPipeline, files: list[str], args: Namespace, skipped: list[list[str]], part_path: Path
) -> int:
    """Writes the table `args.output`, continuing an interrupted run, and returns the number of its rows."""
    # Taken before any file is read: a file that changes later is explained again when the run continues.
    versions = {file: version(file) for file in files}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with open_part_file(part_path, run_settings(explainer, args), args.overwrite) as (part, rows):
        rows = {file: row for file, row in rows.items() if file in versions and row["version"] == versions[file]}
        if rows:
            print(f"{len(rows):,} of {len(files):,} were done before.", file=sys.stderr)
        with tqdm(total=len(files), initial=len(rows), unit="picture", file=sys.stderr) as progress:
            for batch in explain_batches(explainer, files, args, skipped, done=set(rows)):
                if batch:
                    batch = [row | {"version": versions[row["file"]]} for row in batch]
                    append_line(part, batch)
                    rows |= {row["file"]: row for row in batch}
                progress.update(len(rows) + len(skipped) - progress.n)
        if rows:
            write_table([rows[file] for file in files if file in rows], args.output)
            print(f"{len(rows):,} pictures explained in {args.output}.", file=sys.stderr)
        part_path.unlink()
    return len(rows)


def version(file: str) -> list[int] | None:
    """Size and modification time; None for a URL or a missing file."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def run_settings(explainer: SEVLMPipeline, args: Namespace) -> dict:
    """All that the rows of a run depend on, except the content of the pictures."""
    model, processor = explainer.model, explainer.processor
    # The same model from another folder is the same run.
    places = ("_name_or_path", "auto_map", "custom_pipelines", "transformers_version")
    config = {name: value for name, value in model.config.to_dict().items() if name not in places}
    fields = [config, model.generation_config.to_dict(), processor.to_dict()]
    tokenizer = processor.tokenizer.backend_tokenizer.to_str()
    names = ["emotion", "num_candidates", "do_sample", "max_new_tokens"]
    # What is sampled for a picture depends on its batch.
    names += ["seed", "batch_size"] if args.do_sample else []
    return {name: getattr(args, name) for name in names} | {
        # With the absolute path, because a relative name is another picture in another folder.
        "pictures": Hasher.hash([[name, os.path.abspath(name)] for name in args.pictures]),
        "model": Hasher.hash([json.dumps(fields, sort_keys=True, default=str), tokenizer, dict(model.state_dict())]),
    }


@contextmanager
def open_part_file(path: Path, settings: dict, overwrite: bool = False) -> Iterator[tuple[BinaryIO, dict[str, dict]]]:
    """Locks the part file and yields it with the rows (by file) of the finished batches. Stops if another run uses the
    file, if it is damaged or if it has other settings; in the last two cases `overwrite` discards the rows instead."""
    check_part_file(path)
    with open(path, "a+b") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"error: another run is writing {path}.") from None
        file.seek(0)
        lines = file.read().split(b"\n")[:-1]
        try:
            header, *batches = [json.loads(line) for line in lines] or [{"settings": None}]
        except ValueError:
            if not overwrite:
                raise SystemExit(f"error: {path} is damaged. Start again with --overwrite.") from None
            header = {"settings": None}
        before = header["settings"]
        # With --overwrite, only a run that had it too is continued.
        if before == settings and (header["overwrite"] or not overwrite):
            file.truncate(sum(len(line) + 1 for line in lines))
        elif before is None or overwrite:
            batches = []
            file.truncate(0)
            append_line(file, {"sevlm_explanations": 3, "overwrite": overwrite, "settings": settings})
        else:
            pairs = [(name, before.get(name), value) for name, value in settings.items()]
            changes = "; ".join(f"{name} was {old!r}, is {new!r}" for name, old, new in pairs if old != new)
            raise SystemExit(
                f"error: {path} holds an unfinished run with other settings: {changes}. Finish it with the same "
                "command, or start again with --overwrite."
            )
        yield file, {row["file"]: row for batch in batches for row in batch}


def append_line(file: BinaryIO, content) -> None:
    """Appends a line of JSON; it is on disk when this returns."""
    file.write(json.dumps(content).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def check_part_file(path: Path) -> None:
    """Stops if `path` exists and is not a part file of this version."""
    start = path.read_bytes()[: len(PART_MARK)] if path.is_file() else b""
    # A run that was interrupted at once leaves an empty file or a part of the mark.
    if not PART_MARK.startswith(start) or (path.exists() and not path.is_file()):
        raise SystemExit(
            f"error: {path}, where an unfinished run is kept, is not a file of this program or version. Move it away, "
            "or name another --output."
        )


def write_table(rows: list[dict], output: Path) -> None:
    """Writes one row per picture: file, emotion, explanation, alignment_score, a score for each label, vad (as JSON in
    a CSV file)."""
    table = pd.DataFrame([row | {"file": encodable(row["file"])} for row in rows])
    scores = pd.DataFrame(list(table["emotion_scores"])).rename(columns=lambda label: label.replace(" ", "_"))
    columns = table[["file", "emotion", "explanation", "alignment_score"]]
    table = pd.concat([columns, scores.add_prefix("score_"), table["vad"]], axis=1)
    with atomic_write(output) as temporary:
        if output.suffix.lower() == ".csv":
            table["vad"] = table["vad"].map(json.dumps, na_action="ignore")
            # All text in quotation marks: a lone carriage return in a name would end the row.
            table.to_csv(temporary, index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        else:
            # Explicit types, because a column of missing values has none.
            texts = dict.fromkeys(("file", "emotion", "explanation"), pa.string())
            words = pa.list_(pa.struct({"word": pa.string()} | dict.fromkeys(VAD_NAMES, pa.float64())))
            types = dict.fromkeys(table, pa.float64()) | texts | {"vad": words}
            table.to_parquet(temporary, index=False, schema=pa.schema(types))


def encodable(name: str) -> str:
    """A file name with bytes that are not UTF-8 as \\udcXX, and a backslash that would look like one of these as
    \\u005c, so that different names stay different."""
    name = re.sub(r"\\(?=u(dc[89a-f][0-9a-f]|005c))", r"\\u005c", name)
    return name.encode(errors="backslashreplace").decode()
