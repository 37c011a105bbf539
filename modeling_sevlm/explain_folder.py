# Licensed under the Apache License, Version 2.0; see LICENSE.
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
    explainer: SEVLMPipeline, files: list[str], args: Namespace, done: Container[str] = ()
) -> Iterator[tuple[list[dict], list[list[str]]]]:
    """Explains `files` except those that are `done`, and reads the next batches while the model works. Yields for each
    batch the rows, `{"file"} | result of the pipeline`, and `[file, reason]` of the files that cannot be read."""
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
            skipped = [[file, reason] for file, reason in prepared.items() if isinstance(reason, str)]
            readable = {file: inputs for file, inputs in prepared.items() if not isinstance(inputs, str)}
            torch.manual_seed(zlib.crc32(os.fsencode(f"{args.seed} {first}")))
            results = explainer(list(readable.values()), batch_size=len(readable) or 1)
            yield [{"file": file} | result for file, result in zip(readable, results, strict=True)], skipped
    finally:
        threads.shutdown(cancel_futures=True)


def write_explanations(
    explainer: SEVLMPipeline, files: list[str], part_path: Path, args: Namespace
) -> tuple[int, list[list[str]]]:
    """Writes the table `args.output`, continuing an interrupted run. Returns the number of rows and `[file, reason]`
    of the files that cannot be read."""
    # Taken before any file is read: a file that changes later is explained again when the run continues.
    versions = {file: version(file) for file in files}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with open_part_file(part_path, run_settings(explainer, args), args.overwrite) as (part, rows):
        rows = {file: row for file, row in rows.items() if file in versions and row["version"] == versions[file]}
        if rows:
            print(f"{len(rows):,} of {len(files):,} were done before.", file=sys.stderr)
        all_skipped = []
        with tqdm(total=len(files), initial=len(rows), unit="picture", file=sys.stderr) as progress:
            for batch, skipped in explain_batches(explainer, files, args, done=set(rows)):
                if batch:
                    batch = [row | {"version": versions[row["file"]]} for row in batch]
                    append_line(part, batch)
                    rows |= {row["file"]: row for row in batch}
                all_skipped += skipped
                progress.update(len(batch) + len(skipped))
        if rows:
            write_table([rows[file] for file in files if file in rows], args.output)
        part_path.unlink()
    return len(rows), all_skipped


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
    tokenizer = processor.tokenizer.backend_tokenizer.to_str()
    settings = json.dumps(
        [config, model.generation_config.to_dict(), processor.to_dict()], sort_keys=True, default=str
    )
    samples = args.do_sample or args.num_candidates > 1
    return {
        # With the absolute path, because a relative name is another picture in another folder.
        "pictures": Hasher.hash([[name, os.path.abspath(name)] for name in args.pictures]),
        "model": Hasher.hash([settings, tokenizer, dict(model.state_dict())]),
        "emotion": args.emotion,
        "num_candidates": args.num_candidates,
        "do_sample": samples,
        "max_new_tokens": args.max_new_tokens,
        # What is sampled for a picture depends on its batch.
        "seed": args.seed if samples else None,
        "batch_size": args.batch_size if samples else None,
    }


@contextmanager
def open_part_file(path: Path, settings: dict, overwrite: bool = False) -> Iterator[tuple[BinaryIO, dict[str, dict]]]:
    """Locks the part file and yields it with the rows (by file) of the batches that were finished before.

    Raises:
        SystemExit: the file is not a part file, another run uses it, it is damaged, or it has other settings. In the
            last two cases `overwrite` discards the rows instead.
    """
    check_part_file(path)
    with open(path, "a+b") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SystemExit(f"error: another run is writing {path}.") from None
        file.seek(0)
        lines = file.read().split(b"\n")[:-1]
        try:
            header, *batches = [json.loads(line) for line in lines] or [{}]
        except ValueError:
            if not overwrite:
                raise SystemExit(
                    f"error: the unfinished run {path} is damaged. Start again with --overwrite."
                ) from None
            header = {}
        before = header.get("settings")
        # With --overwrite, only a run that had it too is continued.
        if before == settings and (header["overwrite"] or not overwrite):
            file.truncate(sum(len(line) + 1 for line in lines))
        elif before is None or overwrite:
            batches = []
            file.truncate(0)
            append_line(file, {"sevlm_explanations": 3, "overwrite": overwrite, "settings": settings})
        else:
            details = [
                name if name in ("pictures", "model") else f"{name} was {before[name]!r}, is {value!r}"
                for name, value in settings.items()
                if before[name] != value
            ]
            raise SystemExit(
                f"error: {path} holds an unfinished run with other settings: {'; '.join(details)}. Finish it with the "
                "same command, or start again with --overwrite."
            )
        yield file, {row["file"]: row for batch in batches for row in batch}


def append_line(file: BinaryIO, content) -> None:
    """Appends a line of JSON; it is on disk when this returns."""
    file.write(json.dumps(content).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def check_part_file(path: Path) -> None:
    """Stops if `path` exists and is not a part file of this version."""
    start = b""
    if path.is_file():
        with open(path, "rb") as file:
            start = file.read(len(PART_MARK))
    # A run that was interrupted at once leaves an empty file or a part of the mark.
    if not PART_MARK.startswith(start) or (path.exists() and not path.is_file()):
        raise SystemExit(
            f"error: {path}, where an unfinished run is kept, is not a file of this program or of this version. Move "
            "it away, or name another --output."
        )


def write_table(rows: list[dict], output: Path) -> None:
    """Writes one row per picture: file, emotion, explanation, alignment_score, a score for each label, vad (as JSON in
    a CSV file)."""
    flat = []
    for row in rows:
        columns = {name: row[name] for name in ("emotion", "explanation", "alignment_score")}
        scores = {f"score_{label.replace(' ', '_')}": score for label, score in row["emotion_scores"].items()}
        flat.append({"file": encodable(row["file"])} | columns | scores | {"vad": row["vad"]})
    with atomic_write(output) as temporary:
        if output.suffix.lower() == ".csv":
            for row in flat:
                row["vad"] = None if row["vad"] is None else json.dumps(row["vad"])
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                # All text in quotation marks: a lone carriage return in a name would end the row.
                writer = csv.DictWriter(file, flat[0], quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
                writer.writeheader()
                writer.writerows(flat)
        else:
            import pyarrow as pa
            from pyarrow import parquet

            # Explicit types, because a column of missing values has none.
            texts = dict.fromkeys(("file", "emotion", "explanation"), pa.string())
            words = pa.list_(pa.struct({"word": pa.string()} | dict.fromkeys(VAD_NAMES, pa.float64())))
            types = dict.fromkeys(flat[0], pa.float64()) | texts | {"vad": words}
            parquet.write_table(pa.Table.from_pylist(flat, pa.schema(types)), temporary)


def encodable(name: str) -> str:
    """A file name with bytes that are not UTF-8 as \\udcXX, and a backslash that would look like one of these as
    \\u005c, so that different names stay different."""
    name = re.sub(r"\\(?=u(dc[89a-f][0-9a-f]|005c))", r"\\u005c", name)
    return name.encode(errors="backslashreplace").decode()
