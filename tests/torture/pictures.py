# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Hundreds of damaged pictures, files that change while they are read, traps, odd names, and servers that misbehave:
each gives a picture or a reason, in time and in bounded memory, and the process lives on."""

import io
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
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from trial import Row

from modeling_sevlm.explain_folder import encodable
from processing.images import open_image
from tests.helpers.bad_pictures import NAMES, NO_FILES, damage, odd_folder, pictures
from tests.helpers.bad_servers import BEHAVIOURS, MEGABYTES, SIZE, TIMEOUT, serving
from tests.helpers.tiny import tiny_model, tiny_processor


ROOT = Path(__file__).resolve().parent.parent.parent
DAMAGED_OF_A_KIND, CUTS_OF_A_KIND, SHORTENED, ROUNDS_OF_SERVERS = 20, 30, 150, 2
SECONDS, GIGABYTES = 170, 3  # for the folder command: more is a hang, or memory without bounds


def run(chance: random.Random, folder: Path) -> Iterator[Row]:
    warnings.filterwarnings("ignore", category=UserWarning)
    processor = tiny_processor()
    tiny_model(processor).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    yield damaged_files(chance, folder)
    yield cut_files(chance, folder)
    yield shortened_files(chance, folder)
    yield traps(folder)
    yield odd_names(folder)
    yield servers()


def explain(folder: Path, pictures: Path) -> tuple[int | None, str, set[str]]:
    """Exit code of the folder command (None: it hung), what it said, and the files with a row."""
    output = folder / f"{pictures.name}.parquet"
    command = [sys.executable, "-W", "ignore", "-m", "modeling_sevlm", str(pictures), "--model", str(folder / "model")]
    command += ["--output", str(output), "--emotion", "awe", "--max_new_tokens", "2", "--device", "cpu"]
    command += ["--max_megapixels", "40"]
    bound = (GIGABYTES * 2**30,) * 2
    try:
        ended = subprocess.run(
            command,
            cwd=ROOT,
            # Tiny operations on several threads spend their time waiting for one another.
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            timeout=SECONDS,
            # Of data: libraries reserve addresses that they never use.
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, bound),
        )
    except subprocess.TimeoutExpired as error:
        return None, (error.stderr or b"").decode(errors="replace"), set()
    files = set(pd.read_parquet(output)["file"]) if output.exists() else set()
    return ended.returncode, ended.stderr.decode(errors="replace"), files


def reasons(said: str, pictures: Path) -> dict[str, str]:
    """File -> why it was left out."""
    lines = (line.strip() for line in said.splitlines() if line.startswith(f"  {pictures}"))
    return dict(re.match(r"(.*?\.\w+): (.*)", line).groups() for line in lines)


def damaged_files(chance: random.Random, folder: Path) -> Row:
    target, how = folder / "damaged", {}
    target.mkdir()
    kinds = pictures(seed=chance.randrange(1000))
    for kind, content in kinds.items():
        for number in range(DAMAGED_OF_A_KIND):
            path = target / f"{number:02}_{kind}"
            how[str(path)], damaged = damage(content, chance)
            path.write_bytes(damaged)
    code, said, explained = explain(folder, target)
    left_out = reasons(said, target)
    failures = [f"the folder command ended with {code}: {said[-300:]}"] if code != 0 else []
    lost, twice = how.keys() - explained - left_out.keys(), explained & left_out.keys()
    failures += [f"{file} ({how[file]}) has neither row nor reason" for file in sorted(lost) if code == 0]
    failures += [f"{file} ({how[file]}) has a row and a reason" for file in twice]
    return Row(
        f"damaged files of {len(kinds)} kinds (cut, bits flipped, zeros, noise, holes, headers) in a folder",
        len(how),
        f"{len(explained)} explained, {len(left_out)} left out with a reason, {len(lost)} lost; exit code {code}",
        failures,
    )


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
                is_whole = np.array_equal(np.asarray(open_image(path)), whole)
            except ValueError:
                outcomes["refused"] += 1
                continue
            outcomes["whole"] += is_whole
            if not is_whole:
                failures.append(f"{kind} cut at {end} of {len(content)} bytes gave a part of its picture")
    return Row(
        f"files of {len(kinds)} kinds cut at a random byte",
        CUTS_OF_A_KIND * len(kinds),
        f"{outcomes['refused']} refused, {outcomes['whole']} whole all the same (cut behind the first picture), "
        f"{len(failures)} shown in part",
        failures,
    )


READ = """
import sys
from processing.images import check_image
from processing.images import open_image

for name in map(str.strip, sys.stdin):
    try:
        print("picture" if open_image(name) and not check_image(name) else "reason", flush=True)
    except ValueError:
        print("reason", flush=True)
"""


def shortened_files(chance: random.Random, folder: Path) -> Row:
    noise = Image.effect_noise((1500, 1500), 90)
    forms = [
        ("raw.tif", {}),
        ("lzw.tif", {"compression": "tiff_lzw"}),
        ("raw.bmp", {}),
        ("a.png", {"compress_level": 0}),
    ]
    contents = []
    for name, settings in forms:
        buffer = io.BytesIO()
        noise.save(buffer, {"tif": "TIFF", "bmp": "BMP", "png": "PNG"}[name[-3:]], **settings)
        contents.append((name, buffer.getvalue()))
    outcomes, failures = Counter(), []
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", READ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        bufsize=1,
    ) as reader:
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
                failures.append(f"file {number}, {name}: the process that read it ended with {reader.wait()}")
                break
            outcomes[outcome] += 1
        reader.stdin.close()
    return Row(
        "files shortened by another process while they are read",
        SHORTENED,
        f"{outcomes['picture']} read before, {outcomes['reason']} with a reason, the reader lives on",
        failures,
    )


def traps(folder: Path) -> Row:
    """Small files that claim, or are, enormous pictures."""
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
    for name in ("tall", "wide"):
        Image.new("RGB", (1, 20_000) if name == "tall" else (20_000, 1)).save(target / f"{name}.png")
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10**8)))
    plain = (target / "tall.png").read_bytes()
    (target / "text.png").write_bytes(plain[:33] + text + plain[33:])
    (target / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n")
    with open(target / "sparse.png", "wb") as file:
        file.truncate(2**36)
    files = {str(path) for path in target.iterdir()}
    code, said, explained = explain(folder, target)
    left_out = reasons(said, target)
    good = {str(target / name) for name in ("tall.png", "wide.png", "is_6000.png", "is_6000.tif", "is_6000.gif")}
    failures = [f"the folder command ended with {code}: {said[-300:]}"] if code != 0 else []
    failures += [f"{file}: neither row nor reason" for file in files - explained - left_out.keys()]
    failures += [f"{file}: {left_out.get(file)}" for file in good - explained]
    return Row(
        f"traps in a folder, with {GIGABYTES} GB of memory: bombs, false sizes, strips, a program, 64 GB of nothing",
        len(files),
        f"{len(explained)} explained, {len(left_out)} left out with a reason; exit code {code}",
        failures,
    )


def odd_names(folder: Path) -> Row:
    target = odd_folder(folder / "odd")
    code, said, explained = explain(folder, target)
    left_out = reasons(said, target)
    wanted = {encodable(os.fsdecode(os.path.join(os.fsencode(target), name))) for name in NAMES}
    failures = [f"the folder command ended with {code}: {said[-300:]}"] if code != 0 else []
    failures += [f"no row for {file!r}" for file in wanted - explained]
    for name, reason in NO_FILES.items():
        if reason not in left_out.get(str(target / name), ""):
            failures.append(f"{name}: {left_out.get(str(target / name))}")
    return Row(
        "odd names (no UTF-8, both normal forms, line breaks) and pipes, sockets, devices, link loops in a folder",
        len(wanted) + len(NO_FILES),
        f"{len(explained)} explained, {len(left_out)} left out with a reason; exit code {code}",
        failures,
    )


def servers() -> Row:
    outcomes, failures = Counter(), []
    for _ in range(ROUNDS_OF_SERVERS):
        for behaviour, (talk, expected) in BEHAVIOURS.items():
            began = time.monotonic()
            with serving(talk) as address:
                try:
                    outcome = None if open_image(address, TIMEOUT, None, MEGABYTES).size == SIZE else "another size"
                except ValueError as error:
                    outcome = str(error)
            is_right = outcome is None if expected is None else re.search(expected, outcome or "")
            if not is_right or time.monotonic() - began > TIMEOUT + 3:
                failures.append(f"a server that {behaviour}: {outcome} after {time.monotonic() - began:.1f} s")
            outcomes["picture" if outcome is None else "reason"] += 1
    return Row(
        f"{len(BEHAVIOURS)} kinds of servers (hang, drip, redirect, lie, send without end), {TIMEOUT:g} s and "
        f"{MEGABYTES} MB allowed",
        sum(outcomes.values()),
        f"{outcomes['picture']} pictures, {outcomes['reason']} reasons, all in time",
        failures,
    )
