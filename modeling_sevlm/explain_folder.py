"""Explains many pictures in batches and keeps the finished batches, so that an interrupted run can continue."""

import json
import os
import sys
import zlib
from argparse import Namespace
from collections import deque
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import torch
from datasets.fingerprint import Hasher
from tqdm.auto import tqdm

from processing.explanation_table import append_line, open_part_file, version, write_table

from .pipeline_sevlm import LIMIT_DEFAULTS, SEVLMPipeline


GENERATION = ["emotion", "num_candidates", "do_sample", "max_new_tokens"]


def explain_batches(
    explainer: SEVLMPipeline, files: list[str], args: Namespace, skipped: list[list[str]], done: Container[str] = ()
) -> Iterator[list[dict]]:
    """Explains `files` except those that are `done`, and reads the next batches while the model works. Yields the
    rows of each batch, `{"file"} | result of the pipeline`. Adds `[file, reason]` of unreadable files to `skipped`."""
    batches = [files[i : i + args.batch_size] for i in range(0, len(files), args.batch_size)]
    # A batch's first file seeds its samples, so that an interruption does not change them.
    todo = [(batch[0], rest) for batch in batches if (rest := [file for file in batch if file not in done])]
    limits = {name: getattr(args, name) for name in LIMIT_DEFAULTS}

    def prepare(file: str) -> dict | str:
        before = version(file)
        try:
            inputs = explainer.preprocess(file, **limits)
        except ValueError as error:
            return str(error.__cause__ or error)
        except MemoryError:
            return "there is not enough memory for it"
        # It may mix two pictures.
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


def write_explanations(
    explainer: SEVLMPipeline,
    files: list[str],
    args: Namespace,
    skipped: list[list[str]],
    part_path: Path,
    unreadable: list[list[str]],
) -> int:
    """Writes the table `args.output`, continuing an interrupted run, and returns the number of explained pictures.
    Skipped pictures and `unreadable` ones, in formats that cannot be read, have a row with the reason."""
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
            errors = {file: {"file": file, "error": reason} for file, reason in skipped + unreadable}
            order = [*files, *(file for file, _ in unreadable)]
            write_table([(rows | errors)[file] for file in order], args.output)
            print(f"{len(rows):,} pictures explained in {args.output}.", file=sys.stderr)
        part.close()  # Windows does not delete an open file
        part_path.unlink()
    return len(rows)


def run_settings(explainer: SEVLMPipeline, args: Namespace) -> dict:
    """Returns all settings that the rows depend on, except the content of the pictures."""
    model, processor = explainer.model, explainer.processor
    # The same model from another folder is the same run.
    places = ("_name_or_path", "auto_map", "custom_pipelines", "transformers_version")
    config = {name: value for name, value in model.config.to_dict().items() if name not in places}
    fields = [config, model.generation_config.to_dict(), processor.to_dict()]
    tokenizer = processor.tokenizer.backend_tokenizer.to_str()
    # The samples for a picture depend on its batch.
    names = GENERATION + (["seed", "batch_size"] if args.do_sample else [])
    return {name: getattr(args, name) for name in names} | {
        # With the absolute path: in another folder, a relative name means another picture.
        "pictures": Hasher.hash([[name, os.path.abspath(name)] for name in args.pictures]),
        "model": Hasher.hash([json.dumps(fields, sort_keys=True, default=str), tokenizer, dict(model.state_dict())]),
    }
