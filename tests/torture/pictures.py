"""Hundreds of damaged images, files that change during reading, traps, odd names, and misbehaving servers.

Each gives an image or a reason, in time and in bounded memory, and the process survives.
"""

import os
import random
import re
import resource
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from trial import Row

from processing.explanation_table import encodable
from processing.images import open_image
from tests.helpers.bad_pictures import NAMES, SPECIAL_FILES, damage, odd_folder, pictures
from tests.helpers.bad_servers import BEHAVIOURS, MEGABYTES, SIZE, TIMEOUT, serving
from tests.helpers.tiny import tiny_model, tiny_processor


ROOT = Path(__file__).resolve().parent.parent.parent
DAMAGED_OF_A_KIND, CUTS_OF_A_KIND, SHORTENED, ROUNDS_OF_SERVERS = 20, 30, 150, 2
SECONDS, GIGABYTES = 170, 3  # limits of the folder command


def run(chance: random.Random, folder: Path) -> Iterator[Row]:
    warnings.filterwarnings("ignore", category=UserWarning)
    processor = tiny_processor()
    for part in (tiny_model(processor), processor):
        part.save_pretrained(folder / "model")
    yield damaged_files(chance, folder)
    yield cut_files(chance, folder)
    yield shortened_files(chance, folder)
    yield traps(folder)
    yield odd_names(folder)
    yield servers()


def explain(folder: Path, pictures: Path) -> tuple[str, set[str], dict[str, str], list[str]]:
    """Runs the folder command. Returns a summary, the files with a row, the reasons of the others, and failures."""
    output = folder / f"{pictures.name}.parquet"
    command = [sys.executable, "-W", "ignore", "-m", "modeling_sevlm", str(pictures), "--model", str(folder / "model")]
    command += ["--output", str(output), "--emotion", "awe", "--max_new_tokens", "2", "--device", "cpu"]
    command += ["--max_megapixels", "40"]
    # One thread: for tiny operations, several are slower.
    options = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "capture_output": True, "timeout": SECONDS}
    # RLIMIT_DATA and not RLIMIT_AS, because libraries reserve addresses that they never use.
    limit = partial(resource.setrlimit, resource.RLIMIT_DATA, (GIGABYTES * 2**30,) * 2)
    try:
        ended = subprocess.run(command, preexec_fn=limit, **options)
        code, log = ended.returncode, ended.stderr.decode(errors="replace")
    except subprocess.TimeoutExpired as error:
        code, log = None, (error.stderr or b"").decode(errors="replace")
    explained = set()
    if output.exists():
        table = pd.read_parquet(output)
        explained = set(table["file"][table["error"].isna()])
    lines = (line.strip() for line in log.splitlines() if line.startswith(f"  {pictures}"))
    reasons = dict(re.match(r"(.*?\.\w+): (.*)", line).groups() for line in lines)
    failures = [] if code == 3 else [f"the folder command ended with {code}: {log[-300:]}"]
    summary = f"{len(explained)} explained, {len(reasons)} left out with a reason; exit code {code}"
    return summary, explained, reasons, failures


def damaged_files(chance: random.Random, folder: Path) -> Row:
    target, how = folder / "damaged", {}
    target.mkdir()
    kinds = pictures(seed=chance.randrange(1000))
    for kind, content in kinds.items():
        for number in range(DAMAGED_OF_A_KIND):
            path = target / f"{number:02}_{kind}"
            how[str(path)], damaged = damage(content, chance)
            path.write_bytes(damaged)
    summary, explained, reasons, failures = explain(folder, target)
    lost, twice = how.keys() - explained - reasons.keys(), explained & reasons.keys()
    failures = failures or [f"{file} ({how[file]}): neither row nor reason" for file in lost]
    failures += [f"{file} ({how[file]}): row and reason" for file in twice]
    what = f"damaged files of {len(kinds)} kinds (cut, bits flipped, zeros, noise, holes, headers) in a folder"
    return Row(what, len(how), f"{len(lost)} lost, {summary}", failures)


def cut_files(chance: random.Random, folder: Path) -> Row:
    path, outcomes, failures = folder / "cut", Counter(), []
    kinds = pictures(seed=chance.randrange(1000))
    for kind, content in kinds.items():
        path.write_bytes(content)
        whole = np.asarray(open_image(path))
        for _ in range(CUTS_OF_A_KIND):
            end = chance.randrange(len(content))
            path.write_bytes(content[:end])
            try:
                outcome = "whole" if np.array_equal(np.asarray(open_image(path)), whole) else "part"
            except ValueError:
                outcome = "refused"
            outcomes[outcome] += 1
            if outcome == "part":
                failures.append(f"{kind} cut at {end} of {len(content)} bytes gave a part of its picture")
    found = f"{outcomes['refused']} refused, {outcomes['whole']} still whole (cut after the first frame)"
    what = f"files of {len(kinds)} kinds cut at a random byte"
    return Row(what, outcomes.total(), f"{found}, {outcomes['part']} shown in part", failures)


READ = """
import sys
from processing.images import check_image, open_image

for name in map(str.strip, sys.stdin):
    try:
        print("picture" if open_image(name) and not check_image(name) else "reason", flush=True)
    except ValueError:
        print("reason", flush=True)
"""


def shortened_files(chance: random.Random, folder: Path) -> Row:
    noise, contents = Image.effect_noise((1500, 1500), 90), []
    kinds = {"raw.tif": {}, "lzw.tif": {"compression": "tiff_lzw"}, "raw.bmp": {}, "a.png": {"compress_level": 0}}
    for name, settings in kinds.items():
        noise.save(folder / name, **settings)
        contents.append((name, (folder / name).read_bytes()))
    outcomes, failures = Counter(), []
    command = [sys.executable, "-W", "ignore", "-c", READ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, **pipes, text=True, bufsize=1) as reader:
        for number in range(SHORTENED):
            name, content = chance.choice(contents)
            path = folder / f"{number}_{name}"
            path.write_bytes(content)
            shorten = threading.Timer(chance.uniform(0, 0.04), os.truncate, (path, chance.randrange(len(content))))
            reader.stdin.write(f"{path}\n")
            shorten.start()
            outcome = reader.stdout.readline().strip()
            shorten.join()
            path.unlink()
            if not outcome:
                failures.append(f"file {number}, {name}: the reading process ended with {reader.wait()}")
                break
            outcomes[outcome] += 1
        reader.stdin.close()
    outcome = f"{outcomes['picture']} read before, {outcomes['reason']} with a reason, the reader survives"
    return Row("files shortened by another process during reading", SHORTENED, outcome, failures)


def traps(folder: Path) -> Row:
    """Small files that claim to be, or are, enormous images."""
    target = folder / "traps"
    target.mkdir()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    for side in (6_000, 12_000, 30_000, 60_000, 2**31 - 1):
        header = side.to_bytes(4) * 2 + b"\x08\x06\0\0\0"
        pixels = zlib.compress(bytes(10**7))
        content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
        (target / f"claims_{side}.png").write_bytes(content)
    for side in (6_000, 20_000):
        Image.new("1", (side, side)).save(target / f"is_{side}.png")
        Image.new("1", (side, side)).save(target / f"is_{side}.tif", compression="group4")
        Image.new("L", (min(side, 16_000), min(side, 16_000))).save(target / f"is_{side}.gif")
    Image.new("RGB", (1, 20_000)).save(target / "tall.png")
    Image.new("RGB", (20_000, 1)).save(target / "wide.png")
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10**8)))
    plain = (target / "tall.png").read_bytes()
    (target / "text.png").write_bytes(plain[:33] + text + plain[33:])
    (target / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n")
    with open(target / "sparse.png", "wb") as file:
        file.truncate(2**36)
    files = {str(path) for path in target.iterdir()}
    summary, explained, reasons, failures = explain(folder, target)
    good = {str(target / name) for name in ("tall.png", "wide.png", "is_6000.png", "is_6000.tif", "is_6000.gif")}
    failures += [f"{file}: neither row nor reason" for file in files - explained - reasons.keys()]
    failures += [f"{file}: {reasons.get(file)}" for file in good - explained]
    what = f"traps in a folder, with {GIGABYTES} GB of memory: bombs, false sizes, strips, a program, a sparse file"
    return Row(what, len(files), summary, failures)


def odd_names(folder: Path) -> Row:
    target = odd_folder(folder / "odd")
    summary, explained, reasons, failures = explain(folder, target)
    expected = {encodable(os.fsdecode(os.path.join(os.fsencode(target), name))) for name in NAMES}
    failures += [f"no row for {file!r}" for file in expected - explained]
    for name, reason in SPECIAL_FILES.items():
        if reason not in reasons.get(str(target / name), ""):
            failures.append(f"{name}: {reasons.get(str(target / name))}")
    what = "odd names (not UTF-8, both normal forms, line breaks) and pipes, sockets, devices, link loops in a folder"
    return Row(what, len(expected) + len(SPECIAL_FILES), summary, failures)


def servers() -> Row:
    outcomes, failures = Counter(), []
    for behaviour, (talk, expected) in list(BEHAVIOURS.items()) * ROUNDS_OF_SERVERS:
        start = time.monotonic()
        with serving(talk) as address:
            try:
                outcome = None if open_image(address, TIMEOUT, None, MEGABYTES).size == SIZE else "another size"
            except ValueError as error:
                outcome = str(error)
        seconds = time.monotonic() - start
        is_right = outcome is None if expected is None else re.search(expected, outcome or "")
        if not is_right or seconds > TIMEOUT + 3:
            failures.append(f"a server that {behaviour}: {outcome} after {seconds:.1f} s")
        outcomes["picture" if outcome is None else "reason"] += 1
    what = f"{len(BEHAVIOURS)} kinds of servers (hang, drip, redirect, lie, send without end)"
    limits = f"with limits of {TIMEOUT:g} s and {MEGABYTES} MB"
    found = f"{outcomes['picture']} pictures, {outcomes['reason']} reasons, all in time"
    return Row(f"{what}, {limits}", outcomes.total(), found, failures)
