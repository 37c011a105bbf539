# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Many pictures through the pipeline, in batches, and into a table that grows over interruptions.

What `python -m modeling_sevlm` runs; never copied to the Hub.
"""

import csv
import hashlib
import json
import os
import re
import sys
import zlib
from argparse import Namespace
from collections import deque
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from .pipeline_sevlm import PREPARING, VAD_NAMES, SEVLMPipeline


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# With this begins every part file, so that no other file of that name is taken for one.
PART_MARK = b'{"sevlm_explanations": 2, '


def explain(
    explainer: SEVLMPipeline, files: list[str], args: Namespace, done: Container[str] = ()
) -> Iterator[tuple[list, list]]:
    """For each batch of `files`, less what is `done`, its rows, `{"file"} | what the pipeline returns`, and
    `[file, reason]` of those that cannot be read. The next batches are read while the model works on one."""
    batches = [files[i : i + args.batch_size] for i in range(0, len(files), args.batch_size)]
    # Batches do not depend on where a run was interrupted, and with them neither does what is drawn.
    batches = [(batch[0], left) for batch in batches if (left := [file for file in batch if file not in done])]
    waiting, batch_number = deque(), 0
    limits = {name: getattr(args, name) for name in PREPARING}

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
    try:
        for first, batch in batches:
            while batch_number < len(batches) and len(waiting) < 3:
                waiting.append([threads.submit(prepare, file) for file in batches[batch_number][1]])
                batch_number += 1
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
    """Into a file, going on where an earlier run stopped; how many, and `[file, reason]` of those left out."""
    # Before any is read: what changes meanwhile is another picture when the run goes on.
    versions = {file: version(file) for file in files}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with PartFile(part_path, run_settings(explainer, args), args.overwrite) as part:
        part.forget_all_but(versions)
        done = len(part.rows)
        if done:
            print(f"{done:,} of {len(files):,} were done before.", file=sys.stderr)
        all_skipped = []
        with tqdm(total=len(files), initial=done, unit="picture", file=sys.stderr) as progress:
            for rows, skipped in explain(explainer, files, args, done=set(part.rows)):
                if rows:
                    part.add(rows, [versions[row["file"]] for row in rows])
                all_skipped += skipped
                progress.update(len(rows) + len(skipped))
        # A run that went on may have found new files between the old ones.
        rows = [part.rows[file] for file in files if file in part.rows]
        if rows:
            write_table(rows, args.output)
        part.remove()
    return len(rows), all_skipped


def version(file: str) -> list[int] | None:
    """Size and time of change; `None` for a URL and for what is gone."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def run_settings(explainer: SEVLMPipeline, args: Namespace) -> dict[str, Any]:
    """All that the rows of a run depend on, but for the pictures' content."""
    samples = args.do_sample or args.num_candidates > 1
    return {
        # A relative name is another picture in another folder.
        "pictures": _digest(json.dumps([[name, os.path.abspath(name)] for name in args.pictures]).encode()),
        "model": model_digest(explainer),
        "emotion": args.emotion,
        "num_candidates": args.num_candidates,
        "do_sample": samples,
        "max_new_tokens": args.max_new_tokens,
        # What is drawn for a picture depends on those beside it.
        "seed": args.seed if samples else None,
        "batch_size": args.batch_size if samples else None,
    }


def model_digest(explainer: SEVLMPipeline) -> str:
    """Of weights, configurations, and what makes inputs of pictures and words; folders and names may change."""
    model, processor = explainer.model, explainer.processor
    config = model.config.to_dict()
    for name in ("_name_or_path", "auto_map", "custom_pipelines", "transformers_version"):
        config.pop(name, None)
    settings = [config, model.generation_config.to_dict(), processor.to_dict()]
    parts = [
        json.dumps(settings, sort_keys=True, default=str).encode(),
        processor.tokenizer.backend_tokenizer.to_str().encode(),
    ]
    for name, tensor in model.state_dict().items():
        parts += [name.encode(), tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()]
    return _digest(*parts)


def _digest(*parts) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


class PartFile:
    """The finished batches of an unfinished run, one JSON line each behind a line with the settings; on the disk when
    `add` returns. A line that a stopped run left incomplete is dropped.

    Attributes: `rows` file -> row.
    """

    def __init__(self, path: Path, settings: dict, overwrite: bool = False):
        self.path, self.rows, self._versions = path, {}, {}
        check_part_file(path)
        self._file = open(path, "a+b")  # noqa: SIM115 - closed by __exit__
        try:
            self._lock()
            self._read(settings, overwrite)
        except BaseException:
            self._file.close()
            raise

    def _lock(self):
        # The system releases it with the process, however that ends.
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SystemExit(f"error: another run is writing {self.path}.") from None

    def _read(self, settings: dict, overwrite: bool):
        self._file.seek(0)
        lines = self._file.read().split(b"\n")[:-1]
        try:
            content = [json.loads(line) for line in lines]
        except ValueError:
            if not overwrite:
                raise SystemExit(
                    f"error: {self.path}, which holds an unfinished run, is damaged. Start afresh with --overwrite."
                ) from None
            content = []
        if content:
            changed = [name for name in settings if content[0]["settings"].get(name) != settings[name]]
            if changed and not overwrite:
                raise SystemExit(_explain_changes(self.path, changed, content[0]["settings"], settings))
            # An interrupted run with --overwrite is repeated as it was given.
            if overwrite and (changed or not content[0]["overwrite"]):
                content = []
        for line in content[1:]:
            self._remember(**line)
        self._file.truncate(sum(len(line) + 1 for line in lines) if content else 0)
        if not content:
            self._write({"sevlm_explanations": 2, "overwrite": overwrite, "settings": settings})

    def _remember(self, rows: list[dict], versions: list):
        self.rows |= {row["file"]: row for row in rows}
        self._versions |= {row["file"]: version for row, version in zip(rows, versions, strict=True)}

    def _write(self, content: dict):
        self._file.write(json.dumps(content).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def forget_all_but(self, versions: dict[str, list[int] | None]):
        """Keep the rows of these files, where they are as they were."""
        self.rows = {f: row for f, row in self.rows.items() if f in versions and versions[f] == self._versions[f]}

    def add(self, rows: list[dict], versions: list):
        self._write({"rows": rows, "versions": versions})
        self._remember(rows, versions)

    def remove(self):
        self.path.unlink()

    def __enter__(self) -> "PartFile":
        return self

    def __exit__(self, *exception):
        self._file.close()


def check_part_file(path: Path):
    """Stop if there is a file of that name that no run has left, before it is written to."""
    if not path.exists():
        return
    start = None
    if path.is_file():
        with open(path, "rb") as file:
            start = file.read(len(PART_MARK))
    # A run that was stopped at once has left a part of it.
    if start is None or not PART_MARK.startswith(start):
        raise SystemExit(
            f"error: {path}, where an unfinished run is kept, exists and is none of ours. Move it away, or name "
            "another --output."
        )


def _explain_changes(path: Path, changed: list[str], known: dict, settings: dict) -> str:
    digests = {
        "pictures": "the files and folders asked for are others",
        "model": "the model is another (its weights, configuration or processor)",
    }
    details = [digests.get(name) or f"{name} was {known.get(name)!r}, is {settings[name]!r}" for name in changed]
    return (
        f"error: {path} holds an unfinished run with other settings: {'; '.join(details)}. Finish it with those, or "
        "start afresh with --overwrite."
    )


def write_table(rows: list[dict], output: Path) -> None:
    """One row a picture: file, emotion, explanation, alignment_score, a score for each label, vad (in CSV as JSON).
    The file appears under its name when it is whole."""
    import pandas as pd
    import pyarrow as pa
    from pyarrow import parquet

    flat = []
    for row in rows:
        scores = {f"score_{label.replace(' ', '_')}": score for label, score in row["emotion_scores"].items()}
        columns = {name: row[name] for name in ("emotion", "explanation", "alignment_score")}
        flat.append({"file": encodable(row["file"])} | columns | scores | {"vad": row["vad"]})
    temporary = output.with_name(output.name + ".tmp")
    try:
        if output.suffix.lower() == ".csv":
            dumped = [row | {"vad": None if row["vad"] is None else json.dumps(row["vad"])} for row in flat]
            # All text in quotation marks: a lone carriage return in a name would end the row.
            pd.DataFrame(dumped).to_csv(temporary, index=False, quoting=csv.QUOTE_NONNUMERIC)
        else:
            # Spelled out, because a column in which everything is missing has no type of its own.
            texts = dict.fromkeys(("file", "emotion", "explanation"), pa.string())
            words = pa.list_(pa.struct({"word": pa.string()} | dict.fromkeys(VAD_NAMES, pa.float64())))
            types = dict.fromkeys(flat[0], pa.float64()) | texts | {"vad": words}
            parquet.write_table(pa.Table.from_pylist(flat, pa.schema(types)), temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, output)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def encodable(name: str) -> str:
    """A file name whose bytes that are no UTF-8 are written out as \\udcXX, and a backslash that would look like the
    beginning of that as \\u005c, so that two names stay two."""
    name = re.sub(r"\\(?=u(dc[89a-f][0-9a-f]|005c))", r"\\u005c", name)
    return name.encode(errors="backslashreplace").decode()
