"""Tables: a million annotations in bounded memory, a lexicon of 200,000 words, and hundreds of damaged files.

A damaged file must be read correctly, read with a warning, or refused by name; data must never change silently.
"""

import collections
import csv
import json
import logging
import random
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from trial import Row

from processing.artemis import EMOTIONS, load_artemis
from processing.vad_lexicon import VADLexicon
from tests.helpers.artemis import COLUMNS, annotations_of, as_csv


ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = 1_000_000
MOST_MEGABYTES = 1_200  # on top of the imports, for a file of 155 MB
DAMAGED = 600
WORDS = "the dark sea looks endless and cold bright garden makes me feel calm happy lonely funeral grey rain".split()

READ = """
import json, pathlib, re, sys, zlib
from processing.artemis import EMOTIONS, load_artemis
status = lambda: pathlib.Path("/proc/self/status").read_text()  # getrusage's peak includes the parent's
megabytes = lambda name: int(re.search(name + r":\\s+(\\d+) kB", status())[1]) / 1024
before = megabytes("VmRSS")
data = load_artemis(sys.argv[1], with_images=False)
peak = megabytes("VmHWM")
count = total = 0
for split in data.values():
    for batch in split.iter(10_000):
        for name, labels, texts in zip(batch["painting"], batch["emotions"], batch["explanations"]):
            for label, text in zip(labels, texts):
                count += 1
                total += zlib.crc32(f"{name}|{EMOTIONS[label]}|{text}".encode())
print(json.dumps([count, total, before, peak]))
"""


def run(chance: random.Random, folder: Path) -> Iterator[Row]:
    yield million(chance, folder)
    yield long_lexicon(folder)
    yield damaged(chance, folder)


def million(chance: random.Random, folder: Path) -> Row:
    path, total = folder / "million.csv", 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for i in range(ROWS):
            style, name = f"Style_{i // 5 % 27}", f"painter-{i // 5 % 997}_some-painting-{i // 5}"
            label, text = chance.choice(EMOTIONS), f"{' '.join(chance.choices(WORDS, k=16))} {i}"
            writer.writerow([style, name, label, text, 5])
            total += zlib.crc32(f"{style}/{name}|{label}|{text}".encode())
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", READ, str(path)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return Row("annotations of one file", ROWS, "not read", [done.stderr[-2000:]])
    count, found, before, peak = json.loads(done.stdout.splitlines()[-1])
    failures = [] if (count, found) == (ROWS, total) else [f"{count:,} annotations, checksum {found} for {total}"]
    if peak - before > MOST_MEGABYTES:
        failures.append(f"{peak - before:.0f} MB, more than {MOST_MEGABYTES}")
    seconds, size = time.monotonic() - began, path.stat().st_size / 1e6
    path.unlink()
    outcome = f"all read right in {seconds:.0f} s with {peak - before:.0f} MB for a file of {size:.0f} MB"
    return Row("annotations of one file", ROWS, outcome, failures)


def long_lexicon(folder: Path) -> Row:
    words = ["".join(chr(97 + (i // 26**k) % 26) for k in range(5)) for i in range(200_000)]
    path = folder / "long.txt"
    path.write_text("".join(f"{word}\t{i % 1001 / 1000}\t0\t1\n" for i, word in enumerate(words)))
    began = time.monotonic()
    lexicon = VADLexicon.from_file(path, expand_inflections=False)
    wrong = [word for i, word in enumerate(words) if lexicon[word] != (round(i % 1001 / 500 - 1, 4), -1.0, 1.0)]
    outcome = f"all read right in {time.monotonic() - began:.1f} s"
    return Row("words of one lexicon", len(words), outcome, [f"{len(wrong)} wrong: {wrong[:3]}"] if wrong else [])


def made_up(chance: random.Random) -> list[dict]:
    """Ten to forty paintings whose utterances contain everything that needs quotes."""
    hard = ['"quoted"', "comma, comma", "two\nlines", '"', "é", "😱", "None", "nan?", "\u202eabc", "x" * 50]
    return [
        {
            "art_style": chance.choice(["Pop", "Art_Nouveau"]) if k == 0 else "Baroque",
            "painting": f"painter_{i}-{chance.randrange(9)}{k}é",
            "emotion": chance.choice(EMOTIONS),
            "utterance": " ".join([*chance.choices(WORDS, k=4), *chance.choices(hard, k=chance.randrange(3)), str(i)]),
            "repetition": 1,
        }
        for i in range(chance.randint(10, 40))
        for k in range(2)
    ]


def outside_quotes(text: str, symbol: str) -> list[int]:
    """Positions of `symbol` after the header and outside quotes, where it has a meaning."""
    places, inside = [], False
    for place, letter in enumerate(text):
        inside ^= letter == '"'
        if letter == symbol and not inside and place > len(",".join(COLUMNS)):
            places.append(place)
    return places


def without(text: str, place: int) -> str:
    return text[:place] + text[place + 1 :]


def put(text: str | bytes, place: int, letter: str | bytes) -> str | bytes:
    return text[:place] + letter + text[place:]


def one_field(rows: list[dict], chance: random.Random, **values) -> str:
    hit = chance.randrange(len(rows))
    return as_csv([row | (values if i == hit else {}) for i, row in enumerate(rows)])


def cut_within_a_row(rows: list[dict], chance: random.Random) -> bytes:
    text = as_csv(rows).encode()
    return text[: chance.choice([end for end in range(60, len(text)) if text[end - 1] not in b"\r\n"])]


# Allowed outcome -> damages. After a warning, the last row may be wrong.
DAMAGES: dict[str, dict[str, Callable[[list[dict], random.Random], str | bytes]]] = {
    "right": {
        "LF or CRLF": lambda r, c: as_csv(r, lineterminator=c.choice(["\n", "\r\n"])),
        "BOM": lambda r, c: "\ufeff" + as_csv(r),
        "all quoted": lambda r, c: as_csv(r, quoting=csv.QUOTE_ALL),
        "columns in another order": lambda r, c: as_csv(r, c.sample(COLUMNS, len(COLUMNS))),
        "rows in another order": lambda r, c: as_csv(c.sample(r, len(r))),
        "capitals": lambda r, c: as_csv([row | {"emotion": f" {row['emotion'].title()}  "} for row in r]),
        "empty lines": lambda r, c: put(text := as_csv(r), c.choice(outside_quotes(text, "\n")) + 1, "\r\n"),
        "spaces around numbers": lambda r, c: as_csv([row | {"repetition": " 1 "} for row in r]),
    },
    "with a warning": {"a row twice": lambda r, c: as_csv([*r, c.choice(r)])},
    "refused or with a warning": {"cut within a row": cut_within_a_row},
    "refused": {
        "a quote lost": lambda r, c: without(text := as_csv(r), c.choice([m.start() for m in re.finditer('"', text)])),
        "a quote added": lambda r, c: put(text := as_csv(r), c.randrange(60, len(text)), '"'),
        "a comma lost": lambda r, c: without(text := as_csv(r), c.choice(outside_quotes(text, ","))),
        "a comma added": lambda r, c: put(text := as_csv(r), c.choice(outside_quotes(text, ",")), ","),
        "a line break lost": lambda r, c: without(
            text := as_csv(r, lineterminator="\n"), c.choice(outside_quotes(text, "\n")[1:-1])
        ),
        "Latin-1": lambda r, c: as_csv(r).encode("latin-1", "replace"),
        "UTF-16": lambda r, c: as_csv(r).encode(c.choice(["utf-16", "utf-16-le", "utf-16-be"])),
        "a NUL": lambda r, c: put(text := as_csv(r), c.randrange(len(text)), "\0"),
        "a byte that is not UTF-8": lambda r, c: put(text := as_csv(r).encode(), c.randrange(len(text)), b"\xff"),
        "joined to itself": lambda r, c: as_csv(r) * 2,
        "a column twice": lambda r, c: as_csv(r).replace(*(c.sample(COLUMNS[:-1], 2)), 1),
        "a column without its name": lambda r, c: as_csv(r).replace(c.choice(COLUMNS[:-1]), "x", 1),
        "semicolons": lambda r, c: as_csv(r, delimiter=";"),
        "an unknown label": lambda r, c: one_field(r, c, emotion=c.choice(["", "joy", "nan"])),
        "no utterance": lambda r, c: one_field(r, c, utterance=c.choice(["", " \t", "NaN"])),
        "no painting": lambda r, c: one_field(r, c, painting=c.choice(["", "  "])),
        "an invalid repetition": lambda r, c: one_field(
            r, c, repetition=c.choice(["", "inf", "1.5", "-1", "0", "1e9", "x", "nan"])
        ),
        "a field of 200,000 letters": lambda r, c: one_field(r, c, utterance="x" * 200_000),
    },
}


def damaged(chance: random.Random, folder: Path) -> Row:
    warnings: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = warnings.append
    logger = logging.getLogger("processing")
    logger.addHandler(handler)
    logger.propagate = False
    kinds = [(allowed, kind, damage) for allowed, part in DAMAGES.items() for kind, damage in part.items()]
    path, outcomes, failures = folder / "damaged.csv", collections.Counter(), []
    for i in range(DAMAGED):
        seed, (allowed, kind, damage) = chance.randrange(2**32), kinds[i % len(kinds)]
        draw = random.Random(seed)
        rows = made_up(draw)
        content = damage(rows, draw)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        warnings.clear()
        outcome = what_happens(path, rows, warnings)
        outcomes[outcome] += 1
        if outcome not in allowed.split(" or "):
            failures.append(f"{kind}, seed {seed}: {outcome}")
    logger.removeHandler(handler)
    logger.propagate = True
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    return Row(f"tables, damaged or formatted in {len(kinds)} ways", DAMAGED, counts, failures)


def what_happens(path: Path, rows: list[dict], warnings: list) -> str:
    expected = collections.Counter(
        (f"{row['art_style']}/{row['painting']}", EMOTIONS.index(row["emotion"]), row["utterance"]) for row in rows
    )
    try:
        data = load_artemis(path, with_images=False)
    except ValueError as error:
        named = str(path) in str(error) or "at least 7 paintings" in str(error)
        return "refused" if named else f"refused without its name: {error}"
    except Exception as error:  # a failure of any kind is counted
        return f"{type(error).__name__}: {error}"
    found = collections.Counter(annotations_of(data))
    if found == expected:
        return "right"
    # A warning reports a last row that may be cut, or a copy. Rows that were cut off leave no trace.
    return "with a warning" if warnings and len(found - expected) <= 1 else "changed silently"
