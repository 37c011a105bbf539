# Copyright 2026 The SEVLM team. Licensed under the Apache License, Version 2.0;
# you may obtain a copy at http://www.apache.org/licenses/LICENSE-2.0
"""Valence, arousal and dominance (VAD) of words, read from a lexicon file, and of tokens, read by one rule.

`VADLexicon` maps a word to its (valence, arousal, dominance), each in [-1, 1]. Two readers give tokens their VAD: the
`VADTokenReader` here walks token ids in Python, and `VADLexicon.compile` makes the tables a model walks as tensors.
Both follow the same rule and agree bit for bit:

- A token is a *word piece* if its text, less one leading space, is a run of letters (`str.isalpha`). Special and added
  tokens, and tokens that are not valid text on their own, are none. Pieces are casefolded.
- A piece with the leading space, or behind a token that is no piece, starts a word; any other piece extends it.
- The token that completes a string found in the lexicon carries that string's VAD; every other token (0, 0, 0).
  A word is followed for `MAX_WORD_TOKENS` tokens.

So a token's VAD depends on the tokens before it only: "fun", then "eral", reads the VAD of "fun", then of "funeral".

Lexicons known by their format: NRC-VAD (Mohammad 2018, "Obtaining Reliable Human Ratings of Valence, Arousal, and
Dominance for 20,000 English Words", ACL) and the norms of Warriner, Kuperman and Brysbaert (2013, "Norms of valence,
arousal, and dominance for 13,915 English lemmas", Behavior Research Methods). Both belong to their authors.
"""

import csv
import logging
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch


logger = logging.getLogger(__name__)

MAX_WORD_TOKENS = 8

# A value is kept as a whole number of ten-thousandths: exact for every known lexicon, and an int32 in compiled tables.
UNITS = 10_000
SCALES = {"unit": (0.0, 1.0), "bipolar": (-1.0, 1.0), "nine_point": (1.0, 9.0)}

FORMAT_KEY = "vad_lexicon_format"
FORMAT_VERSION = "1"
INFLECTED_MARK = "inflected"

WARRINER_COLUMN = "v.mean.sum"
COLUMN_NAMES = (
    {"word", "words", "term", "terms"},
    {"valence", "v", WARRINER_COLUMN},
    {"arousal", "a", "a.mean.sum"},
    {"dominance", "d", "d.mean.sum"},
)


class VADLexicon(Mapping[str, tuple[float, float, float]]):
    """Words and their (valence, arousal, dominance), with the name and the terms of the list they come from.

    A read-only mapping: `lexicon["funeral"]` is a tuple of three floats in [-1, 1], exact to 1e-4. Look-ups casefold.

    Args:
        entries: words (each a run of letters) and their values in [-1, 1], rounded to 1e-4; a mapping or pairs.
        name, version: what the lexicon is called.
        license: its terms, in words.
        redistributable: whether those terms let a copy travel with a saved model or processor.
        inflected: those words of `entries` that the list itself does not hold, but that are forms of a word it holds.

    Raises:
        ValueError: for a word that is no run of letters, a value outside [-1, 1], two values for one word, or an
            inflected form without an entry.
    """

    def __init__(
        self,
        entries: Mapping[str, Sequence[float]] | Iterable[tuple[str, Sequence[float]]],
        *,
        name: str,
        version: str = "",
        license: str = "",
        redistributable: bool = False,
        inflected: Collection[str] = (),
    ):
        # One line each, so that they fit the header of a saved file and come back as they were.
        self.name, self.version, self.license = (" ".join(text.split()) for text in (name, version, license))
        self.redistributable = redistributable
        self._rows: dict[str, tuple[int, int, int]] = {}
        for word, vad in entries.items() if isinstance(entries, Mapping) else entries:
            key = word.casefold()
            if not key.isalpha():
                raise ValueError(f"{word!r} is not one run of letters, so that no token could ever match it")
            valence, arousal, dominance = vad
            if not all(-1 <= value <= 1 for value in (valence, arousal, dominance)):
                raise ValueError(f"{word!r} has a value outside [-1, 1]: {tuple(vad)}")
            row = (round(valence * UNITS), round(arousal * UNITS), round(dominance * UNITS))
            if self._rows.setdefault(key, row) != row:
                raise ValueError(f"{word!r} has two entries with different values (letter case does not count)")
        self.inflected = frozenset(word.casefold() for word in inflected)
        if unknown := self.inflected - self._rows.keys():
            raise ValueError(f"inflected forms without an entry: {sorted(unknown)[:3]}")

    def __getitem__(self, word: str) -> tuple[float, float, float]:
        valence, arousal, dominance = self._rows[word.casefold()]
        return valence / UNITS, arousal / UNITS, dominance / UNITS

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"VADLexicon({self.to_metadata()})"

    @property
    def listed(self) -> list[str]:
        """The words that the list itself holds, in its order."""
        return [word for word in self if word not in self.inflected]

    @property
    def num_inflected(self) -> int:
        """How many inflected forms come on top of the listed words."""
        return len(self.inflected)

    def to_metadata(self) -> dict[str, str | bool | int]:
        """Who owns the lexicon and how large it is, without any of its entries; goes into JSON as it is."""
        return {
            "name": self.name,
            "version": self.version,
            "license": self.license,
            "redistributable": self.redistributable,
            "num_listed": len(self) - self.num_inflected,
            "num_inflected": self.num_inflected,
        }

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike,
        *,
        scale: str = "auto",
        expand_inflections: bool = True,
        name: str | None = None,
        license: str | None = None,
        redistributable: bool | None = None,
    ) -> "VADLexicon":
        """Reads NRC-VAD (v1 and v2), Warriner's csv, any table of word, v, a, d, or a file written by `save`.

        A table is UTF-8, separated by tabs, commas or white space. Without a header its columns are word, valence,
        arousal, dominance; a header names them, in any order and among others. Entries that are not one run of
        letters (several words, hyphens, digits) can never match a token: they are left out, and counted in the log.

        Args:
            path: the file.
            scale: what the values run over: "unit" [0, 1], "bipolar" [-1, 1], "nine_point" [1, 9], or "auto" to
                tell from the values.
            expand_inflections: give plurals, verb forms and comparatives of a listed word its values, where they are
                not listed themselves. Needs `lemminflect`. A saved file already holds what it was saved with.
            name, license, redistributable: override what the file or its format says. What the format does not say
                is not taken to be redistributable.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: for an empty file, a malformed line, a value off the scale, a scale that cannot be told, or
                two entries of one word that differ. The message names the file, the line and what to do.
            ImportError: if inflected forms are asked for and `lemminflect` is not installed.
        """
        path = Path(path)
        if scale != "auto" and scale not in SCALES:
            raise ValueError(f"scale={scale!r}: choose 'auto' or one of {', '.join(map(repr, SCALES))}")
        header, columns, table = _read_table(path)
        if FORMAT_KEY in header:
            if scale not in ("auto", "bipolar"):
                raise ValueError(f"{path}: a saved lexicon is bipolar, not {scale!r}; leave scale='auto'")
            scale = "bipolar"
            rows, left_out = _scaled_rows(table, scale)
            inflected = {row.word for row in table if row.inflected}
            about = _about_saved(path, header, len(rows) - len(inflected), len(inflected))
        else:
            if scale == "auto":
                scale = _detect_scale(path, table)
            rows, left_out = _scaled_rows(table, scale)
            if not rows:
                raise ValueError(f"{path}: no entry is one run of letters ({left_out[:3]}); is it a lexicon?")
            forms = _inflected_forms(rows) if expand_inflections else {}
            rows.update((form, rows[word]) for form, word in sorted(forms.items()))
            inflected = set(forms)
            about = _about_table(path, columns)

        override = {"name": name, "license": license, "redistributable": redistributable}
        about.update((key, value) for key, value in override.items() if value is not None)
        entries = ((word, [value / UNITS for value in row]) for word, row in rows.items())
        lexicon = cls(entries, **about, inflected=inflected)
        rest = f" (no run of letters, or the letters of another; such as {left_out[0]!r})" if left_out else ""
        read = f"{len(lexicon) - len(inflected)} words of {lexicon.name} ({scale} scale)"
        logger.info("%s: %s, %d inflected forms, %d left out%s", path, read, len(inflected), len(left_out), rest)
        return lexicon

    @classmethod
    def embedded(cls) -> "VADLexicon":
        """The small list that ships with this module, for demonstrations and tests."""
        return cls.from_file(Path(__file__).with_name("embedded_vad.tsv"))

    def save(self, path: str | os.PathLike) -> None:
        """Writes words, values and metadata to one UTF-8 text file, which `from_file` reads back exactly.

        "# key: value" lines come first, then word, valence, arousal, dominance in [-1, 1], and a mark on inflected
        forms, separated by tabs. The file appears whole or not at all.
        """
        path = Path(path)
        header = {FORMAT_KEY: FORMAT_VERSION, **self.to_metadata()}
        header["redistributable"] = str(self.redistributable).lower()
        lines = [f"# {key}: {value}" for key, value in header.items()]
        for word, vad in self.items():
            mark = [INFLECTED_MARK] if word in self.inflected else []
            lines.append("\t".join([word, *map(str, vad), *mark]))
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def token_reader(self, tokenizer: Any) -> "VADTokenReader":
        """The reader of this lexicon for a byte-level BPE tokenizer (GPT-2's family). See `VADTokenReader`."""
        return VADTokenReader(self, tokenizer)

    def compile(self, tokenizer: Any) -> dict[str, torch.Tensor | int]:
        """The rule of this module as tables: a trie of the lexicon's words, over the pieces of a tokenizer.

        A state is a beginning of a lexicon word that pieces can spell, in any segmentation, and from which a lexicon
        word can be completed within `MAX_WORD_TOKENS` tokens. State 0 is the root. Same entries, same tables.

        Args:
            tokenizer: a byte-level BPE tokenizer (GPT-2's family) with V = `len(tokenizer)` tokens.

        Returns a dictionary:
            token_pieces (V,) int32: the token's piece, in [0, num_pieces); -2 if it is a word piece that the trie
                does not know (its word is lost), -1 if it is no word piece (it ends the word).
            token_starts_word (V,) bool: whether the token is a word piece with the leading space.
            transition_keys (N,) int64: `state * num_pieces + piece`, ascending.
            transition_states (N,) int32: the state that each of them leads to.
            state_vad (S, 3) int32: valence, arousal, dominance in ten-thousandths; 0 where no word is complete.
            num_pieces, max_word_tokens: int.

        Raises:
            ValueError: if the tokenizer's tokens lose their leading space when decoded one by one.
        """
        token_texts, starts_word = _word_pieces(tokenizer)
        edges = _trie_edges(self._rows, {text for text in token_texts if text is not None})
        # Numbered by length, then alphabetically: the tables depend on the entries only, not on their order.
        states = sorted({end for _, _, end in edges}, key=lambda text: (len(text), text))
        state_ids = {text: state for state, text in enumerate(["", *states])}
        piece_ids = {text: piece for piece, text in enumerate(sorted({piece for _, piece, _ in edges}))}
        num_pieces = len(piece_ids)

        keys = np.array([state_ids[start] * num_pieces + piece_ids[piece] for start, piece, _ in edges], np.int64)
        targets = np.array([state_ids[end] for _, _, end in edges], np.int32)
        order = np.argsort(keys)
        state_vad = np.array([self._rows.get(text, (0, 0, 0)) for text in state_ids], np.int32)
        token_pieces = [-1 if text is None else piece_ids.get(text, -2) for text in token_texts]
        return {
            "token_pieces": torch.tensor(token_pieces, dtype=torch.int32),
            "token_starts_word": torch.tensor(starts_word, dtype=torch.bool),
            "transition_keys": torch.from_numpy(keys[order]),
            "transition_states": torch.from_numpy(targets[order]),
            "state_vad": torch.from_numpy(state_vad),
            "num_pieces": num_pieces,
            "max_word_tokens": MAX_WORD_TOKENS,
        }


class VADTokenReader:
    """Reads the VAD of tokens by the rule of this module; made by `VADLexicon.token_reader`.

    Called with the token ids of one sequence, a list of L integers, it gives a float32 array of shape (L, 3) with
    values in [-1, 1]. A word does not continue over the end of a call.
    """

    def __init__(self, lexicon: VADLexicon, tokenizer: Any):
        self._pieces, self._starts_word = _word_pieces(tokenizer)
        # Row 0 is "no word complete here".
        self._row_of = {word: row for row, word in enumerate(lexicon, start=1)}
        self._values = np.array([(0, 0, 0), *lexicon.values()], dtype=np.float32)

    def __call__(self, token_ids: Sequence[int]) -> np.ndarray:
        """Raises ValueError for an id that the tokenizer does not have, such as the -100 of ignored labels."""
        pieces, starts_word, row_of = self._pieces, self._starts_word, self._row_of
        if len(token_ids) and not 0 <= min(token_ids) <= max(token_ids) < len(pieces):
            raise ValueError(f"token ids must be in [0, {len(pieces)}): got {min(token_ids)} to {max(token_ids)}")
        rows = []
        word, num_tokens = "", 0  # the open word; "" is none
        for token_id in token_ids:
            piece = pieces[token_id]
            if piece is None:
                word, row = "", 0
            elif not word or starts_word[token_id]:
                word, num_tokens, row = piece, 1, row_of.get(piece, 0)
            elif num_tokens < MAX_WORD_TOKENS:
                word += piece
                num_tokens += 1
                row = row_of.get(word, 0)
            else:
                row = 0
            rows.append(row)
        return self._values[np.array(rows, dtype=np.int64)]


def _word_pieces(tokenizer: Any) -> tuple[list[str | None], list[bool]]:
    """For each token its piece, casefolded (None: no word piece), and whether it is a piece with a leading space."""
    texts = tokenizer.batch_decode(
        [[token_id] for token_id in range(len(tokenizer))],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    probe = " a a"
    if "".join(texts[i] for i in tokenizer.encode(probe, add_special_tokens=False)).count(" ") < probe.count(" "):
        raise ValueError(
            f"{type(tokenizer).__name__} loses the leading space of a token that is decoded alone, so that one cannot "
            "tell where words start; VAD needs a byte-level BPE tokenizer (GPT-2's family)"
        )
    not_text = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    pieces: list[str | None] = []
    starts_word = []
    for token_id, text in enumerate(texts):
        bare = text.removeprefix(" ")
        is_piece = bare.isalpha() and token_id not in not_text  # U+FFFD, for broken UTF-8, is no letter
        pieces.append(bare.casefold() if is_piece else None)
        starts_word.append(is_piece and len(bare) < len(text))
    return pieces, starts_word


def _trie_edges(words: Collection[str], pieces: Collection[str]) -> list[tuple[str, str, str]]:
    """All (beginning, piece, longer beginning) on a way from "" to a word in at most MAX_WORD_TOKENS pieces."""
    longest = max(map(len, pieces), default=0)
    beginnings = sorted({word[:end] for word in words for end in range(1, len(word) + 1)}, key=len)
    edges = []
    behind = {"": 0}  # the fewest pieces that spell a beginning
    for text in beginnings:
        fewest = math.inf
        for cut in range(max(0, len(text) - longest), len(text)):
            before, piece = text[:cut], text[cut:]
            if piece in pieces and before in behind:
                edges.append((before, piece, text))
                fewest = min(fewest, behind[before] + 1)
        if fewest <= MAX_WORD_TOKENS:
            behind[text] = fewest
    ahead = dict.fromkeys(words, 0)  # the fewest pieces from a beginning to the end of a word
    # Longer texts come first here, so that what is ahead of a text is known before anything leads to it.
    for before, _, after in reversed(edges):
        if after in ahead:
            ahead[before] = min(ahead.get(before, math.inf), ahead[after] + 1)
    return [edge for edge in edges if behind[edge[0]] + 1 + ahead.get(edge[2], math.inf) <= MAX_WORD_TOKENS]


class _Row(NamedTuple):
    where: str  # file and line, for messages
    word: str
    values: tuple[float, ...]
    inflected: bool


def _read_table(path: Path) -> tuple[dict[str, str], list[str], list[_Row]]:
    """The "# key: value" lines; the names of the columns, casefolded, if a line has them; the rows."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no VAD lexicon at {path}: pass the path of a lexicon file, such as NRC-VAD-Lexicon.txt "
            "(from https://saifmohammad.com/WebPages/nrc-vad.html)"
        )
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        kind = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "Latin-1, perhaps"
        raise ValueError(
            f"{path}, line {line}: not UTF-8 text ({kind}): {error}; give the lexicon as plain text in UTF-8"
        ) from error
    header: dict[str, str] = {}
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        if comment := re.fullmatch(r"#\s*(\w+):(.*)", line):
            header.setdefault(comment[1], comment[2].strip())
        elif line.strip() and not line.startswith("#"):
            shortened = line if len(line) <= 60 else line[:57] + "..."
            lines.append((f"{path}, line {number}: {shortened!r}", line))

    delimiter = next((mark for mark in "\t," if lines and mark in lines[0][1]), None)
    columns = [name.casefold() for name in _fields(lines[0][1], delimiter)] if lines else []
    places = [next((i for i, name in enumerate(columns) if name in names), None) for names in COLUMN_NAMES]
    if None in places:
        # Without names; only a saved file has a fifth column, the mark of its inflected forms.
        columns, places, widths = [], [0, 1, 2, 3], {4, 5} if FORMAT_KEY in header else {4}
    else:
        for names in COLUMN_NAMES:
            if len(several := [name for name in columns if name in names]) > 1:
                raise ValueError(f"{lines[0][0]}: {' and '.join(several)} name one thing; remove or rename one column")
        lines, widths = lines[1:], {len(columns)}
    if not lines:
        raise ValueError(f"{path} holds no entries; expected lines of word, valence, arousal, dominance")

    rows = []
    for where, line in lines:
        fields = _fields(line, delimiter)
        marks = [] if columns else fields[4:]
        if len(fields) not in widths or marks not in ([], [INFLECTED_MARK]):
            raise ValueError(f"{where}: expected {min(widths)} fields, not {len(fields)}; correct or remove the line")
        word, *numbers = (fields[place] for place in places)
        try:
            values = tuple(map(float, numbers))
        except ValueError:
            values = (math.nan,)
        if any("_" in number for number in numbers):  # Python reads 0_5 as 5
            values = (math.nan,)
        if not word or not all(map(math.isfinite, values)):
            raise ValueError(
                f"{where}: expected a word and three finite numbers; correct or remove the line "
                "(if it is a header, it must name Word, Valence, Arousal and Dominance)"
            )
        rows.append(_Row(where, word, values, bool(marks)))
    return header, columns, rows


def _fields(line: str, delimiter: str | None) -> list[str]:
    # Line by line, so that a stray quotation mark spoils its own line only.
    fields = line.split() if delimiter is None else next(csv.reader([line], delimiter=delimiter))
    return [field.strip() for field in fields]


def _detect_scale(path: Path, rows: list[_Row]) -> str:
    low = min(rows, key=lambda row: min(row.values))
    high = max(rows, key=lambda row: max(row.values))
    lowest, highest = min(low.values), max(high.values)
    # In this order, so that bipolar has a negative value and nine points have one above 1.
    for scale, (start, end) in SCALES.items():
        if start <= lowest and highest <= end:
            _check_scale(path, scale, rows, lowest, highest)
            return scale
    raise ValueError(
        f"{path}: values run from {lowest:g} to {highest:g}, which is none of the scales {SCALES}. Correct them, or "
        f"pass scale= to be told the lines that are off it. Lowest: {low.where}. Highest: {high.where}"
    )


def _check_scale(path: Path, scale: str, rows: list[_Row], lowest: float, highest: float) -> None:
    """One wrong line must not change what all others mean, nor another scale be taken for a known one."""
    remedy = f"if the values do run so, pass scale={scale!r}"
    below = [row for row in rows if min(row.values) < 0]
    if scale == "bipolar" and len(rows) >= 100 and len(below) < len(rows) / 50:
        raise ValueError(
            f"{below[0].where}: a value below 0, as in {len(below)} of {len(rows)} lines only: the others may be on "
            f"the unit scale, 0 to 1; correct the line, or {remedy}"
        )
    if scale == "nine_point" and len(rows) >= 1000 and highest - lowest <= 6:
        raise ValueError(
            f"{path}: values run from {lowest:g} to {highest:g}, as on a scale of fewer than nine points; bring them "
            f"to [-1, 1], or {remedy}"
        )


def _scaled_rows(rows: list[_Row], scale: str) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Casefolded word -> ten-thousandths on the bipolar scale; and the entries that are left out."""
    start, end = SCALES[scale]
    kept: dict[str, tuple[int, ...]] = {}
    origin: dict[str, _Row] = {}
    left_out = []
    for row in rows:
        if not all(start <= value <= end for value in row.values):
            raise ValueError(
                f"{row.where}: a value is off the {scale} scale, {start:g} to {end:g}; correct the line, or pass "
                f"another scale= ({', '.join(SCALES)})"
            )
        word = row.word.casefold()
        values = tuple(round((value - start) / (end - start) * 2 * UNITS) - UNITS for value in row.values)
        first = origin.setdefault(word, row)
        if not word.isalpha():
            left_out.append(row.word)
        elif kept.setdefault(word, values) == values:
            pass
        elif row.word != first.word and word in (row.word, first.word):
            # Warriner rates both "aids" and "AIDS". Tokens are read casefolded, so the lower-case entry wins.
            left_out.append(first.word if row.word == word else row.word)
            if row.word == word:
                kept[word], origin[word] = values, row
        else:
            raise ValueError(f"{row.where}: other values than in {first.where}; keep one of the two lines")
    return kept, left_out


def _about_table(path: Path, columns: list[str]) -> dict[str, Any]:
    """What the format or the file's name says of a table's owner. Research lists are not ours to pass on."""
    file_name = path.name.casefold()
    if WARRINER_COLUMN in columns:
        terms = "research data of Warriner, Kuperman and Brysbaert (2013); not to be passed on with a model"
        return {"name": "Warriner et al. 2013", "license": terms}
    if "nrc" in file_name and "vad" in file_name:
        terms = "NRC terms of use: free for research, commercial use on request; not to be passed on with a model"
        number = re.search(r"v[-_.]?(\d+(?:\.\d+)*)", file_name)
        version = number[1] if number else "2" if "term" in columns else "1"
        return {"name": "NRC-VAD", "version": version, "license": terms}
    return {"name": path.stem, "license": "unknown"}


def _about_saved(path: Path, header: dict[str, str], num_listed: int, num_inflected: int) -> dict[str, Any]:
    """The metadata in a saved file's header, checked against what the file holds."""
    resave = "the file was cut short or edited: save it again, or correct its header"
    for key, allowed, remedy in (
        (FORMAT_KEY, [FORMAT_VERSION], "a newer version of this code wrote it: update"),
        ("redistributable", ["true", "false"], "correct its header"),
        ("num_listed", [str(num_listed)], resave),
        ("num_inflected", [str(num_inflected)], resave),
    ):
        if header.get(key) not in allowed:
            raise ValueError(f"{path}: {key} is {header.get(key)!r}, not {' or '.join(allowed)}; {remedy}")
    about = {key: header.get(key, "") for key in ("name", "version", "license")}
    return {**about, "redistributable": header["redistributable"] == "true"}


def _inflected_forms(listed: Collection[str]) -> dict[str, str]:
    """Inflected form -> the listed word it takes its values from; a form that is itself listed is left alone.

    If several listed words share a form, the shortest gives it its values, of equally short ones the alphabetically
    first ("caddies": caddy, not caddie; "leaves": leaf, not leave; "lives": life, not live). File order plays no part.
    """
    # lemminflect goes from a word to its forms. simplemma covers as much running text and is as fast, but it goes from
    # form to word, has to be inverted through its internals, makes words of the ends of contractions ("m" is be, "ll"
    # is will), and misses common forms (could, setting, playing, growing, wives).
    try:
        from lemminflect import getAllInflections
    except ImportError as error:
        raise ImportError(
            "inflected forms need the package lemminflect: `pip install lemminflect`, or pass expand_inflections=False"
        ) from error
    forms: dict[str, str] = {}
    for word in sorted(listed, key=lambda word: (len(word), word)):
        for form in (form.casefold() for spellings in getAllInflections(word).values() for form in spellings):
            if form.isalpha() and form not in listed:
                forms.setdefault(form, word)
    return forms
