"""Explains many pictures in batches and keeps the finished batches, so that an interrupted run can continue."""

import hashlib
import json
import os
import sys
import zlib
from argparse import Namespace
from collections import deque
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path

import torch
from datasets.fingerprint import Hasher
from pyarrow import Schema
from tqdm.auto import tqdm

from processing.explanation_table import (
    append_line,
    check_same_settings,
    encodable,
    finished_rows,
    open_part_file,
    read_table,
    table_schema,
    version,
    write_table,
)
from processing.images import open_image
from processing.script_utils import errors_as_exit

from .pipeline_sevlm import LIMIT_DEFAULTS, SEVLMPipeline


GENERATION = ["emotion", "num_candidates", "do_sample", "max_new_tokens"]


def explain_batches(
    explainer: SEVLMPipeline, files: list[str], args: Namespace, skipped: list[list[str]], done: Container[str] = ()
) -> Iterator[list[tuple[dict, dict]]]:
    """Explains `files` except those that are `done`, and reads the next batches while the model works. Yields for each
    picture of a batch `{"file", "version", "width", "height", "sha256"}` and the result of the pipeline. Adds
    `[file, reason]` of unreadable files to `skipped`."""
    limits = [getattr(args, name) for name in LIMIT_DEFAULTS]

    def prepare(file: str) -> tuple[dict, dict] | str:
        before, digest = version(file), hashlib.sha256()
        try:
            picture = open_image(file, *limits, digest=digest)
            inputs = explainer.preprocess(picture)
        except ValueError as error:
            return str(error)
        except MemoryError:
            return "there is not enough memory for it"
        if version(file) != before:  # it may mix two pictures
            return "the file changed while it was read"
        facts = {"file": file, "version": before, "width": picture.width, "height": picture.height}
        return facts | {"sha256": digest.hexdigest()}, inputs

    threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    batches = (files[i : i + args.batch_size] for i in range(0, len(files), args.batch_size))
    # A batch's first file seeds its samples, so that an interruption does not change them.
    todo = ((batch[0], rest) for batch in batches if (rest := [file for file in batch if file not in done]))
    submitted = ((first, {file: threads.submit(prepare, file) for file in rest}) for first, rest in todo)
    try:
        waiting = deque(islice(submitted, 2))
        while waiting:
            waiting.extend(islice(submitted, 1))
            first, futures = waiting.popleft()
            prepared = {file: future.result() for file, future in futures.items()}
            skipped += [[file, reason] for file, reason in prepared.items() if isinstance(reason, str)]
            readable = [pair for pair in prepared.values() if not isinstance(pair, str)]
            torch.manual_seed(zlib.crc32(os.fsencode(f"{args.seed} {first}")))
            results = explainer([inputs for _, inputs in readable], batch_size=len(readable) or 1)
            yield [(facts, result) for (facts, _), result in zip(readable, results, strict=True)]
    finally:
        threads.shutdown(cancel_futures=True)


def write_explanations(
    explainer: SEVLMPipeline,
    files: list[str],
    args: Namespace,
    skipped: list[list[str]],
    part_path: Path,
    unreadable: list[list[str]],
) -> int:
    """Writes or updates the table `args.output`, continuing an interrupted run, and returns the number of explained
    pictures. Skipped pictures and `unreadable` ones, in formats that cannot be read, have a row with the reason."""
    args.output.parent.mkdir(parents=True, exist_ok=True)
    schema = table_schema(explainer.model.config.emotions, args.vad)
    record = run_record(explainer, args)
    # With the absolute path: in another folder, a relative name means another picture.
    pictures = Hasher.hash([[name, os.path.abspath(name)] for name in args.pictures])
    settings = record["settings"] | {"pictures": pictures, "update": args.update}
    known: dict[str, bool] = {}
    if args.update:
        known = _pictures_of_table(args, schema, record)
        found, files = len(files), [file for file in files if not known.get(_identity(file))]
        print(f"{found - len(files):,} of {found:,} are in {args.output}.", file=sys.stderr)
    with open_part_file(part_path, settings, args.overwrite) as (part, places):
        places = {file: places[file] for file in files if file in places}
        if places:
            print(f"{len(places):,} of {len(files):,} were done before.", file=sys.stderr)
        with tqdm(total=len(files), initial=len(places), unit="picture", file=sys.stderr) as progress:
            for batch in explain_batches(explainer, files, args, skipped, done=places):
                if batch:
                    place = part.seek(0, os.SEEK_END)
                    append_line(part, [facts | _chosen(result, args.vad) for facts, result in batch])
                    places |= {facts["file"]: place for facts, _ in batch}
                progress.update(len(places) + len(skipped) - progress.n)
        errors = {file: reason for file, reason in skipped + unreadable if _identity(file) not in known}
        if places or (args.update and errors):
            old = read_table(args.output, schema) if args.update else iter(())
            again = {_identity(file) for file in places} if known else set()
            kept = (row for row in old if _identity(row["file"], record["folder"]) not in again)
            order = (file for file in [*files, *(file for file, _ in unreadable)] if file in places or file in errors)
            new = finished_rows(part, places, errors, order)
            write_table(chain(kept, new), args.output, schema, record, args.update)
        if places or args.update:
            print(f"{len(places):,} pictures explained in {args.output}.", file=sys.stderr)
        part.close()  # Windows does not delete an open file
        part_path.unlink()
    return len(places)


def _pictures_of_table(args: Namespace, schema: Schema, record: dict) -> dict[str, bool]:
    """Returns whether each picture of the table `args.output` is explained, or stops if it cannot be updated. Sets
    the folder of `record` to the table's."""
    here, record["folder"] = record["folder"], check_same_settings(args.output, record)["folder"]
    if here != record["folder"] and not all(is_url(name) or os.path.isabs(name) for name in args.pictures):
        problem = f"the names in {args.output} are relative to the folder {record['folder']}"
        raise SystemExit(f"error: {problem}. Repeat the command there, or name the pictures with absolute paths.")
    with errors_as_exit():
        rows = read_table(args.output, schema)
        return {_identity(row["file"], record["folder"]): not row["error"] for row in rows}


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _identity(file: str, folder: str | None = None) -> str:
    """What identifies a picture: its URL or absolute path, as tables write it. `folder` is the one where the table was
    written, for names in a table."""
    if is_url(file):
        return file
    return encodable(os.path.abspath(file)) if folder is None else os.path.normpath(os.path.join(folder, file))


def _chosen(result: dict, vad: bool) -> dict:
    return {name: value for name, value in result.items() if vad or name != "vad"}


def run_record(explainer: SEVLMPipeline, args: Namespace) -> dict:
    """Returns how a table is made: model, revision, date, folder, and all settings that the rows depend on, except the
    content of the pictures."""
    model, processor = explainer.model, explainer.processor
    # The same model from another folder is the same run.
    places = ("_name_or_path", "auto_map", "custom_pipelines", "transformers_version")
    config = {name: value for name, value in model.config.to_dict().items() if name not in places}
    fields = [config, model.generation_config.to_dict(), processor.to_dict()]
    tokenizer = processor.tokenizer.backend_tokenizer.to_str()
    # The samples for a picture depend on its batch.
    names = [*GENERATION, "vad"] + (["seed", "batch_size"] if args.do_sample else [])
    settings = {name: getattr(args, name) for name in names} | {
        "model": Hasher.hash([json.dumps(fields, sort_keys=True, default=str), tokenizer, dict(model.state_dict())]),
    }
    return {
        "model": args.model,
        "revision": args.revision or "",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": encodable(os.getcwd()),
        "settings": settings,
    }
