"""Explain pictures from the command line.

    sevlm explain painting.jpg https://example.org/other.jpg --model org/sevlm-artemis       # a table
    sevlm explain painting.jpg --model outputs/demo --emotion sadness --json                 # JSON lines
    sevlm explain wikiart/ --model outputs/demo --output explanations.parquet                # or .csv
    sevlm explain wikiart/ --model outputs/demo --output explanations.parquet --update       # adds new pictures

Folders are searched with their subfolders for all formats that Pillow reads, such as .jpg, .png, .tif, .webp, .gif,
.bmp, .jp2, .avif and .ppm; for .heic and .heif install pillow-heif. Pictures in other formats (.dng, .pdf, .svg) and
other files are counted. Linked files are read, linked folders inside a folder are not. Hidden files and folders inside
a folder are left out, such as thumbnails and the trash; name one to explain it. Pictures that cannot be read or have
more than 178 megapixels (a small file can fill the memory) are skipped and listed at the end. `--max_megapixels 500`
accepts larger scans and needs 4 GB of memory for each.

A table names every picture that was left out, also in formats that cannot be read, with the reason in the column
`error`. The exit code is 0 if all pictures were explained, 1 if none could be read and 3 if some could not; with
`--allow_errors` it is 0 instead of 3.

With `--output FILE`, finished batches are kept in FILE.part until all are done. To continue an interrupted run, repeat
the command: it also tries skipped and changed pictures again. A run with other settings, another model or other
pictures is refused unless you pass `--overwrite`, which starts again.

`--update` adds new pictures to a finished table. Its rows stay as they are, except that pictures with an `error` are
tried again. Model and settings must be those of the table; a CSV file has them next to it, in FILE.settings.json, and
a Parquet file in the metadata of its schema.

A checkpoint may lack its VAD lexicon, because not every owner allows redistribution. Pass the file with
`--vad_lexicon`; without it every word counts as neutral, which changes explanations, and the column `vad` of `--vad`
is empty.
"""

import io
import json
import os
import re
import shutil
import sys
import textwrap
import warnings
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers.utils import logging

import processing  # noqa: F401 - registers the processor with AutoProcessor
from processing.explanation_table import check_output, encodable
from processing.image_formats import readable_suffixes, unreadable_reason
from processing.images import MAX_MEGAPIXELS
from processing.script_utils import errors_as_exit, load_lexicon

from .explain_folder import GENERATION, explain_batches, is_url, write_explanations
from .lexicon import restore_lexicon
from .loading import open_pipeline
from .pipeline_inputs_sevlm import find_label
from .pipeline_sevlm import SEVLMPipeline


# Copies and deleted or lost files; other systems start their names with a dot. The drives of Windows and Macs do not
# distinguish upper and lower case.
HIDDEN = re.compile(
    r"@eadir|#recycle|#snapshot|@sharesnap"  # Synology
    r"|@__thumb|@recycle|@recently-snapshot"  # QNAP
    r"|~snapshot|network trash folder|temporary items"  # other network drives
    r"|__macosx|lost\+found|lost\.dir"  # archives from a Mac, Linux, Android
    r"|\$recycle\.bin|recycler|system volume information|found\.\d{3}",  # Windows
    re.IGNORECASE,
)


def positive_number(text: str) -> float:
    if not float(text) > 0:
        raise ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return float(text)


def count(text: str) -> int:
    positive_number(text)
    return int(text)


def parse_arguments(argv: list[str] | None) -> Namespace:
    parser = ArgumentParser("sevlm explain", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("pictures", nargs="+", help="files, folders, URLs")
    add("--model", required=True, help="checkpoint folder or name on the Hub")
    add_form = parser.add_mutually_exclusive_group().add_argument
    add_form("--json", action="store_true", help="print one JSON object per picture instead of a table")
    add_form("--output", type=Path, help="write a table to this .parquet or .csv file instead")
    add_consent = parser.add_mutually_exclusive_group().add_argument
    add_consent("--overwrite", action="store_true", help="replace FILE and discard an unfinished run")
    add_consent("--update", action="store_true", help="add new pictures to FILE and keep its rows")
    add("--vad", action="store_true", help="add the column vad to FILE: the words with their VAD values")
    add("--allow_errors", action="store_true", help="exit with 0 although some pictures could not be read")
    add("--batch_size", type=count, default=16, help="pictures per batch (default: 16)")
    add("--emotion", help="explain this emotion instead of the likeliest one")
    add("--num_candidates", type=count, default=1, help="samples per picture; the best fit is kept (default: 1)")
    add("--do_sample", action="store_true", help="sample the explanation (nucleus) instead of greedy decoding")
    add("--max_new_tokens", type=count, help="most tokens per sentence (default: the checkpoint's)")
    add("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    add("--device", help="for example cuda:1 or cpu (default: the first GPU if there is one)")
    add("--max_megapixels", type=positive_number, help=f"largest picture that is opened (default: {MAX_MEGAPIXELS})")
    add("--timeout", type=positive_number, metavar="SECONDS", help="give up on a URL after this long (default: 60)")
    add("--max_megabytes", type=positive_number, help="largest file that a URL may send (default: 256)")
    add("--dtype", default="auto", choices=["auto", "float32", "float16", "bfloat16"], help="(default: auto)")
    add("--vad_lexicon", help="lexicon file of a checkpoint that was saved without it")
    add("--revision", help="branch, tag or commit of the model on the Hub")
    add("--trust_remote_code", action="store_true", help="use the code in the model's repository")
    args = parser.parse_args(argv)
    for name in ("overwrite", "update", "vad"):
        if args.output is None and getattr(args, name):
            parser.error(f"--{name} needs --output FILE.")
    if args.output is not None and args.output.suffix.lower() not in (".parquet", ".csv"):
        parser.error(f"--output {args.output}: the name must end in .parquet or .csv.")
    args.do_sample |= args.num_candidates > 1
    return args


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0; 1 if no picture could be read or the output's reader stopped; 3 if some pictures could
    not be read; 130 after Ctrl-C."""
    args = parse_arguments(argv)
    for stream in (sys.stdout, sys.stderr):
        # A notebook's streams are of another class.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SystemExit("error: each process would explain every picture. Run `python -m modeling_sevlm` once.")
    # Pillow also warns below the limit.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    # A table that does not exist yet is written.
    args.update = args.update and args.output.exists()
    part_path = None if args.output is None else check_output(args.output, args.overwrite, args.update)
    check_device(args.device)
    unreadable: list[list[str]] = []  # in formats that are not even tried
    files = find_pictures(args.pictures, unreadable)
    skipped: list[list[str]] = []
    kept = f"{part_path} keeps the finished pictures; repeat the command to continue."
    try:
        print(f"Loading the model {args.model} ...", file=sys.stderr, flush=True)
        explainer = load_pipeline(args)
        if part_path is None:
            explained = print_explanations(explainer, files, args, skipped)
            skipped += unreadable
            unreadable = []
        else:
            explained = write_explanations(explainer, files, args, skipped, part_path, unreadable)
    except KeyboardInterrupt:
        print(f"\nInterrupted. {kept if part_path is not None and part_path.exists() else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `| head` has closed the pipe. The rest of the buffer must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        raise SystemExit(f"error: {error}" + (f". {kept}" if part_path is not None else "")) from error
    report_left_out("left out because they cannot be read", skipped)
    if not explained and not args.update:
        return 1
    return 3 if (skipped or unreadable) and not args.allow_errors else 0


def check_device(name: str | None) -> None:
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise SystemExit(f"error: --device {name} cannot be used here ({reason}). Use cpu, or omit it.") from error


def find_pictures(names: list[str], unreadable: list[list[str]]) -> list[str]:
    """Returns the named files and URLs and the sorted pictures of named folders, without duplicates. Adds
    `[file, reason]` of the folders' pictures in formats that cannot be read to `unreadable`."""
    found: dict[str, str] = {}  # by absolute path
    reasons: dict[str, list[str]] = {}
    for name in names:
        if not is_url(name) and not os.path.isfile(name) and not os.path.isdir(name):
            problem = "a pipe, a socket or a device, not a file" if os.path.exists(name) else "no such file or folder"
            raise SystemExit(f"error: {printable(name)}: {problem}.")
        files, others = search_folder(name) if os.path.isdir(name) else ([name], [])
        for file in files:
            found.setdefault(file if is_url(name) else os.path.abspath(file), file)
        for file, reason in others:
            reasons.setdefault(os.path.abspath(file), [file, reason])
    # A file may also be named itself, and is tried then.
    unreadable += [left_out for path, left_out in reasons.items() if path not in found]
    return list(found.values())


def search_folder(name: str) -> tuple[list[str], list[list[str]]]:
    """Returns the pictures of a folder, and `[file, reason]` of those in formats that cannot be read."""
    closed: list[list[str]] = []
    files, hidden = [], 0
    for folder, folders, inside in os.walk(
        name, onerror=lambda error: closed.append([error.filename, error.strerror])
    ):
        visible = [file for file in inside if not is_hidden(file)]
        hidden += len(folders) + len(inside) - len(visible)
        folders[:] = [inner for inner in folders if not is_hidden(inner)]
        hidden -= len(folders)
        files += [os.path.join(folder, file) for file in visible]
    pictures, unreadable, others = [], [], []
    for file in sorted(files):
        suffix = Path(file).suffix.lower()
        if suffix in readable_suffixes():
            pictures.append(file)
        elif (reason := unreadable_reason(suffix)) is not None:
            unreadable.append([file, reason])
        else:
            others.append(file)
    if unreadable:
        kinds = count_suffixes(file for file, _ in unreadable)
        count = f"{len(unreadable):,} pictures in formats that cannot be read"
        print(f"{count} in {printable(name)}: {kinds}.", file=sys.stderr)
    report_left_out("folders left out because they cannot be searched", closed)
    if not pictures:
        remark = f" There are {hidden:,} hidden files and folders: name one to search it." if hidden else ""
        if others:
            remark = f" There are other files: {count_suffixes(others)}.{remark}"
        raise SystemExit(f"error: no picture that can be read in the folder {printable(name)}.{remark}")
    if hidden:
        print(f"{hidden:,} hidden files and folders left out in {printable(name)}.", file=sys.stderr)
    if others:
        kinds = count_suffixes(others)
        print(f"{len(others):,} files of other types ignored in {printable(name)}: {kinds}.", file=sys.stderr)
    return pictures, unreadable


def count_suffixes(files: Iterable[str], shown: int = 10) -> str:
    """Returns "12 .txt, 3 .json", the most frequent suffixes first."""
    counts = Counter(Path(file).suffix.lower() or "without a suffix" for file in files).most_common()
    parts = [f"{count:,} {printable(suffix)}" for suffix, count in counts[:shown]]
    if rest := sum(count for _, count in counts[shown:]):
        parts.append(f"{rest:,} others")
    return ", ".join(parts)


def is_hidden(name: str) -> bool:
    return name.startswith(".") or HIDDEN.fullmatch(name) is not None


def load_pipeline(args: Namespace) -> SEVLMPipeline:
    logging.disable_progress_bar()
    names = ["model", "device", "dtype", "revision", "trust_remote_code", *GENERATION]
    with errors_as_exit():
        lexicon = load_lexicon(args.vad_lexicon)
    try:
        explainer = open_pipeline(**{name: getattr(args, name) for name in names})
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise SystemExit(f"error: --model {args.model}: {error}") from error
    if args.emotion is not None:  # "Awe" and "awe" are the same run
        args.emotion = find_label(args.emotion, explainer.model.config.emotions)
    if lexicon is not None:  # loading has warned about a missing one
        with errors_as_exit():
            restore_lexicon(explainer.model, explainer.processor, lexicon)
    return explainer


def print_explanations(explainer: SEVLMPipeline, files: list[str], args: Namespace, skipped: list[list[str]]) -> int:
    """Prints each batch when it is done. Returns the number of rows."""
    widths = min(40, max(len(printable(file)) for file in files)), max(map(len, explainer.model.config.emotions))
    only_ascii = "utf" not in (sys.stdout.encoding or "").lower()
    explained = 0
    for batch in explain_batches(explainer, files, args, skipped):
        rows = [{"file": facts["file"]} | result for facts, result in batch]
        if not args.json and not explained and rows:
            print(table_line(widths, "file", "emotion", "score", "explanation"))
        for row in rows:
            if args.json:
                line = json.dumps(row | {"file": encodable(row["file"])}, ensure_ascii=only_ascii)
            else:
                score = f"{row['emotion_scores'][row['emotion']]:.0%}"
                line = table_line(widths, printable(row["file"]), row["emotion"], score, row["explanation"])
            print(line, flush=True)
        explained += len(rows)
    return explained


def table_line(widths: tuple[int, int], file: str, emotion: str, score: str, explanation: str) -> str:
    # The end of a name identifies a file better than its beginning.
    file = file if len(file) <= widths[0] else "…" + file[1 - widths[0] :]
    start = f"{file:<{widths[0]}}  {emotion:<{widths[1]}}  {score:>5}  "
    if not sys.stdout.isatty():
        return start + explanation
    room = max(30, shutil.get_terminal_size().columns - len(start))
    return start + f"\n{' ' * len(start)}".join(textwrap.wrap(explanation, room))


def report_left_out(title: str, reasons: list[list[str]]) -> None:
    if reasons:
        lines = [f"  {printable(name)}: {reason}" for name, reason in reasons]
        print(f"{len(reasons):,} {title}:", *lines, sep="\n", file=sys.stderr)


def printable(name: str) -> str:
    """A file name on one line, with unprintable characters as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in name)
