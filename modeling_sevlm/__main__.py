# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Explain pictures from the command line.

    python -m modeling_sevlm painting.jpg https://example.org/other.jpg --model org/sevlm-artemis       # a table
    python -m modeling_sevlm painting.jpg --model outputs/demo --emotion sadness --json                 # JSON lines
    python -m modeling_sevlm wikiart/ --model outputs/demo --output explanations.parquet                # or .csv

Folders are searched with their subfolders for .bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff and .webp. Linked files are
read; linked folders inside a folder are not followed. Pictures that cannot be read are left out and named at the end.
So are those of more than 178 megapixels, which small files can hide to fill the memory: `--max_megapixels 500` lets
larger scans through (4 GB of memory each).

With `--output`, finished batches are kept in FILE.part until all are done, and FILE appears when it is whole. A run
that was stopped, by whatever, goes on behind its last finished batch when the same command is given again; pictures
that were left out are tried again, and those that changed are done again. With other settings, another model or other
pictures to explain it is refused unless `--overwrite` starts afresh.

A script: unlike the other modules of this folder it uses `processing/` too, and is never copied to the Hub.
"""

import argparse
import io
import json
import os
import shutil
import sys
import textwrap
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import pipeline
from transformers.utils import logging

import processing  # noqa: F401 - registers the processor with AutoProcessor
from processing.images import IMAGE_EXTENSIONS

from .explain_folder import check_part_file, encodable, explain, write_explanations
from .pipeline_sevlm import TASK, SEVLMPipeline


EXTENSIONS = {*IMAGE_EXTENSIONS, ".bmp", ".gif", ".tif", ".tiff"}
OUTPUT_FORMATS = (".parquet", ".csv")
FILE_WIDTH = 40  # columns of the table for a name


class Pictures(NamedTuple):
    """What the arguments name: files and URLs, each once; `[folder, reason]` of folders that cannot be searched; how
    many files of other types there are beside the pictures."""

    files: list[str]
    closed_folders: list[list[str]]
    other_files: int


def from_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1, not {text!r}")
    return int(text)


def above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not number > 0:
        raise argparse.ArgumentTypeError(f"a number above 0, not {text!r}")
    return number


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m modeling_sevlm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", nargs="+", help="files, folders, URLs")
    parser.add_argument("--model", required=True, help="checkpoint folder or name on the Hub")
    parser.add_argument("--json", action="store_true", help="print one JSON object a picture instead of a table")
    parser.add_argument("--output", type=Path, help="write a table to this .parquet or .csv file instead")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE, and forget an unfinished run")
    parser.add_argument("--batch_size", type=from_one, default=16)
    parser.add_argument("--emotion", help="explain this emotion instead of naming one")
    parser.add_argument("--num_candidates", type=from_one, default=1, help="sample so many, keep the best fit")
    parser.add_argument("--do_sample", action="store_true", help="nucleus sampling instead of greedy decoding")
    parser.add_argument("--max_new_tokens", type=from_one)
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--device", help="for example cuda:1 or cpu; the first GPU if there is one by default")
    parser.add_argument(
        "--max_megapixels",
        type=above_zero,
        help="the largest picture that is opened (178): small files can hide huge ones",
    )
    parser.add_argument("--timeout", type=above_zero, help="seconds that a URL may take (60)")
    parser.add_argument("--max_megabytes", type=above_zero, help="the largest file that a URL may send (256)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "float16", "bfloat16"])
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    parser.add_argument("--trust_remote_code", action="store_true", help="use the code in the model's repository")
    args = parser.parse_args(argv)
    if args.output is not None and args.json:
        parser.error("--json prints and --output writes: choose one.")
    if args.output is not None and args.output.suffix.lower() not in OUTPUT_FORMATS:
        parser.error(f"--output {args.output}: the name must end in one of {', '.join(OUTPUT_FORMATS)}.")
    if args.output is None and args.overwrite:
        parser.error("--overwrite is about --output FILE.")
    return args


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, also if pictures were left out; 1 if none could be read, or if whoever reads the
    output stopped; 130 after Ctrl-C."""
    args = parse_arguments(argv)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows few characters gets the others written out. (A notebook's streams know all.)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    check_alone()
    # Below its own limit, which is ours too, Pillow warns.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    part_path = check_output(args.output, args.overwrite) if args.output is not None else None
    check_device(args.device)
    pictures = find_pictures(args.pictures)
    kept = f"{part_path} keeps what is done, the same command goes on from there"
    try:
        explainer = load_pipeline(args)
        if args.output is None:
            explained, skipped = print_explanations(explainer, pictures.files, args)
        else:
            explained, skipped = write_explanations(explainer, pictures.files, part_path, args)
    except KeyboardInterrupt:
        print(f"\nInterrupted{'' if part_path is None or not part_path.exists() else f': {kept}'}.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `| head` has seen enough. What is left in the buffer must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        raise SystemExit(f"error: {error}" + (f". {kept}." if part_path is not None else "")) from error
    report(explained, skipped, pictures, args.output)
    return 0 if explained else 1


def check_alone() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SystemExit(
            "error: of several processes each would explain all pictures. Start this command once, with "
            "`python -m modeling_sevlm`, not through accelerate or torchrun; for several GPUs give each run its own "
            "pictures, --device and --output."
        )


def check_output(output: Path, overwrite: bool) -> Path:
    """Stop before a model is loaded if the file cannot be written; the name of an unfinished run's file."""
    part_path = output.with_name(output.name + ".part")
    if output.is_dir():
        raise SystemExit(f"error: --output {output} is a folder. Name a file in it.")
    folder = next(folder for folder in output.absolute().parents if os.path.lexists(folder))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        what = "cannot be written to" if folder.is_dir() else "is no folder"
        raise SystemExit(f"error: --output {output}: {folder} {what}. Name a file in another folder.")
    check_part_file(part_path)
    # Beside an unfinished run a file may stand that the same command, with --overwrite, set out to replace.
    if output.exists() and not part_path.exists() and not overwrite:
        raise SystemExit(f"error: {output} exists already. Name another file, or add --overwrite.")
    return part_path


def check_device(name: str | None) -> None:
    if name is None:
        return
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise SystemExit(
            f"error: --device {name} cannot be used here ({reason}). Write cpu, or cuda or cuda:1 where PyTorch finds "
            "a GPU, or leave it out."
        ) from error


def find_pictures(inputs: list[str]) -> Pictures:
    """Files and URLs as they are, folders as the pictures in them, sorted; each once."""
    found, closed, other_files = {}, [], 0
    for name in inputs:
        if name.startswith(("http://", "https://")):
            found.setdefault(name, name)
            continue
        if not os.path.isdir(name) and not os.path.isfile(name):
            is_special = os.path.exists(name)
            what = "a pipe, a socket or a device, not a file" if is_special else "no such file or folder"
            raise SystemExit(f"error: {printable(name)}: {what}.")
        inside, refused = [name], []
        if os.path.isdir(name):
            walk = os.walk(name, onerror=lambda error, refused=refused: refused.append(error))
            everything = [os.path.join(folder, file) for folder, _, names in walk for file in names]
            inside = sorted(file for file in everything if Path(file).suffix.lower() in EXTENSIONS)
            closed += [[error.filename, error.strerror] for error in refused]
            other_files += len(everything) - len(inside)
            if not inside:
                details = "".join(f" {printable(error.filename)}: {error.strerror}." for error in refused)
                kinds = ", ".join(sorted(EXTENSIONS))
                raise SystemExit(f"error: no picture ({kinds}) in the folder {printable(name)}.{details}")
        for file in inside:
            found.setdefault(os.path.abspath(file), file)
    return Pictures(list(found.values()), closed, other_files)


def load_pipeline(args: argparse.Namespace) -> SEVLMPipeline:
    logging.disable_progress_bar()
    settings = {"device": args.device, "dtype": args.dtype, "revision": args.revision}
    settings |= {"emotion": args.emotion, "num_candidates": args.num_candidates}
    settings["do_sample"] = args.do_sample or args.num_candidates > 1
    if args.max_new_tokens is not None:
        settings["max_new_tokens"] = args.max_new_tokens
    try:
        return pipeline(TASK, model=args.model, trust_remote_code=args.trust_remote_code, **settings)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise SystemExit(f"error: --model {args.model}: {error}") from error


def print_explanations(
    explainer: SEVLMPipeline, files: list[str], args: argparse.Namespace
) -> tuple[int, list[list[str]]]:
    """On the screen, batch by batch; how many, and `[file, reason]` of those left out."""
    widths = (
        min(FILE_WIDTH, max(len(printable(file)) for file in files)),
        max(map(len, explainer.model.config.emotions)),
    )
    # What a stream cannot write is written out, and JSON has its own way.
    only_ascii = "utf" not in (sys.stdout.encoding or "").lower()
    explained, all_skipped = 0, []
    for rows, skipped in explain(explainer, files, args):
        if not args.json and not explained and rows:
            print(table_line(widths, "file", "emotion", "score", "explanation"))
        for row in rows:
            if args.json:
                line = json.dumps(row | {"file": encodable(row["file"])}, ensure_ascii=only_ascii)
            else:
                line = table_row(widths, row)
            print(line, flush=True)
        explained += len(rows)
        all_skipped += skipped
    return explained, all_skipped


def table_row(widths: tuple[int, int], row: dict) -> str:
    score = f"{row['emotion_scores'][row['emotion']]:.0%}" if row["emotion"] is not None else ""
    return table_line(widths, printable(row["file"]), row["emotion"] or "(none)", score, row["explanation"])


def table_line(widths: tuple[int, int], file: str, emotion: str, score: str, explanation: str) -> str:
    # A name's end tells more than its beginning.
    file = file if len(file) <= widths[0] else "…" + file[1 - widths[0] :]
    start = f"{file:<{widths[0]}}  {emotion:<{widths[1]}}  {score:>5}  "
    if not sys.stdout.isatty():
        return start + explanation
    room = max(30, shutil.get_terminal_size().columns - len(start))
    return start + f"\n{' ' * len(start)}".join(textwrap.wrap(explanation, room))


def report(explained: int, skipped: list, pictures: Pictures, output: Path | None) -> None:
    """What was written where, and what was left out and why, to stderr."""

    def tell(line: str):
        print(line, file=sys.stderr)

    if output is not None and explained:
        tell(f"{explained:,} pictures explained in {output}.")
    for title, reasons in (
        ("left out, which cannot be read", skipped),
        ("folders left out, which cannot be searched", pictures.closed_folders),
    ):
        if reasons:
            tell(f"{len(reasons):,} {title}:")
        for name, reason in reasons:
            tell(f"  {printable(name)}: {reason}")
    if pictures.other_files:
        tell(f"{pictures.other_files:,} files of other types passed over.")


def printable(name: str) -> str:
    """A file name on one line, with what no line can show written out."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in name)


if __name__ == "__main__":
    sys.exit(main())
