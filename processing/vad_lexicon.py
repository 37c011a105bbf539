# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Valence, arousal and dominance (VAD) of words, from a lexicon file, and of a tokenizer's tokens.

`VADLexicon` maps a word to its (valence, arousal, dominance), each in [-1, 1]. Two readers give
token ids their VAD: `VADTokenReader`, and the model with the tensors of `VADLexicon.compile`. Both follow this rule:

- A token is a *word piece* if its text, without one leading space, is a run of letters (`str.isalpha`). Special
  tokens, added tokens and tokens that are not valid text are not pieces. Pieces are casefolded.
- A piece with the leading space, or after a token that is not a piece, starts a word. Any other piece extends it.
- A token that completes an entry of the lexicon carries its VAD; every other token carries (0, 0, 0), also after the
  first `MAX_WORD_TOKENS` tokens of a word.

A token's VAD never depends on later tokens: "fun", "eral" has the VAD of "fun", then of "funeral".

With `matching="piece"`, as in the authors' code, every piece counts as a word of its own: most words of several pieces
then have no VAD, and a part such as "fun" in "funeral" has its own.

Known formats are NRC-VAD (Mohammad 2018, ACL; https://saifmohammad.com/WebPages/nrc-vad.html) and the norms of
Warriner, Kuperman and Brysbaert (2013, Behavior Research Methods). Both belong to their authors.
"""

import csv
import logging
import math
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch


logger = logging.getLogger(__name__)

MAX_WORD_TOKENS = 8
UNITS = 10_000  # values are multiples of 1 / UNITS: exact for every known lexicon
SCALES = {"unit": (0.0, 1.0), "bipolar": (-1.0, 1.0), "nine_point": (1.0, 9.0)}
FORMAT_KEY, FORMAT_VERSION, INFLECTED_MARK = "vad_lexicon_format", "1", "inflected"
WARRINER_COLUMN = "v.mean.sum"
COLUMN_NAMES = (
    {"word", "words", "term", "terms"},
    {"valence", "v", WARRINER_COLUMN},
    {"arousal", "a", "a.mean.sum"},
    {"dominance", "d", "d.mean.sum"},
)


class VADLexicon(Mapping[str, tuple[float, float, float]]):
    """A read-only mapping from words to (valence, arousal, dominance), floats in [-1, 1]. Look-ups ignore case.

    Args:
        entries: words (each a run of letters) and their values in [-1, 1], rounded to 1e-4.
        name, version: name and version of the lexicon.
        license: its terms, in words.
        redistributable: whether the terms let a saved model or processor include a copy.
        inflected: words of `entries` that are only inflected forms of words in the published list.
        matching: "word" or "piece", see the top of this module.

    Raises:
        ValueError: for a word that is not a run of letters, a value outside [-1, 1], two values for one word, or an
            unknown `matching`.
    """

    def __init__(
        self,
        entries: Mapping[str, Sequence[float]],
        *,
        name: str,
        version: str = "",
        license: str = "",
        redistributable: bool = False,
        inflected: Collection[str] = (),
        matching: str = "word",
    ):
        if matching not in ("word", "piece"):
            raise ValueError(f"matching={matching!r}: choose 'word' or 'piece'")
        self.matching = matching
        # Without line breaks, because a saved file has one header line for each.
        self.name, self.version, self.license = (" ".join(text.split()) for text in (name, version, license))
        self.redistributable = redistributable
        self._vad: dict[str, tuple[float, float, float]] = {}
        for word, vad in dict(entries).items():
            key = word.casefold()
            if not key.isalpha():
                raise ValueError(f"{word!r} is not one run of letters, so no token can match it")
            if not all(-1 <= value <= 1 for value in vad):
                raise ValueError(f"{word!r} has a value outside [-1, 1]: {tuple(vad)}")
            valence, arousal, dominance = (round(value * UNITS) / UNITS for value in vad)
            row = (valence, arousal, dominance)
            if self._vad.setdefault(key, row) != row:
                raise ValueError(f"{word!r} has two entries with different values (case is ignored)")
        self.inflected = frozenset(word.casefold() for word in inflected)
        if unknown := self.inflected - self._vad.keys():
            raise ValueError(f"inflected forms without an entry: {', '.join(sorted(unknown)[:5])}")

    def __getitem__(self, word: str) -> tuple[float, float, float]:
        return self._vad[word.casefold()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._vad)

    def __len__(self) -> int:
        return len(self._vad)

    def to_metadata(self) -> dict[str, str | bool | int]:
        """Returns name, terms and size of the lexicon, without its entries, ready for JSON."""
        return {
            "name": self.name,
            "version": self.version,
            "license": self.license,
            "redistributable": self.redistributable,
            "num_listed": len(self) - len(self.inflected),
            "num_inflected": len(self.inflected),
            **({} if self.matching == "word" else {"matching": self.matching}),
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
        matching: str = "word",
    ) -> "VADLexicon":
        """Reads NRC-VAD (v1 and v2), Warriner's csv, a table of word, valence, arousal, dominance, or a saved lexicon.

        A table is UTF-8, separated by tabs, commas or white space; a header may name the columns. Entries that are
        not one run of letters cannot match a token: they are left out and counted in the log.

        Args:
            path: the file.
            scale: "unit" [0, 1], "bipolar" [-1, 1], "nine_point" [1, 9], or "auto" to detect it (default). A saved
                file is always bipolar.
            expand_inflections: whether unlisted plurals, verb forms and comparatives get the values of their base
                form. Needs `lemminflect`. A saved file keeps the forms that it was saved with.
            name, license, redistributable: override what the file says; a table is not redistributable by default.
            matching: "word" or "piece", see the top of this module. A saved file keeps its own.

        Raises:
            ValueError: for an empty file, a malformed line, a value off the scale, an unknown scale, or a word with
                two values. The message names the file, the line and the remedy.
        """
        path = Path(path)
        header, columns, table = _read_table(path)
        is_saved = FORMAT_KEY in header
        if scale not in ("auto", *SCALES):
            raise ValueError(f"scale={scale!r}: choose 'auto' or one of {', '.join(map(repr, SCALES))}")
        if is_saved and scale not in ("auto", "bipolar"):
            raise ValueError(f"{path} is a saved lexicon, which is always bipolar: leave out scale={scale!r}")
        if scale == "auto":
            scale = "bipolar" if is_saved else _detect_scale(path, table)
        entries, left_out = _scaled_entries(table, scale)
        if is_saved:
            inflected = {row.word for row in table if row.inflected}
            about = _about_saved(path, header, len(entries) - len(inflected), len(inflected))
        else:
            if not entries:
                raise ValueError(f"{path}: no entry is one run of letters ({left_out[:3]}); is it a lexicon?")
            forms = _inflected_forms(entries) if expand_inflections else {}
            entries |= {form: entries[word] for form, word in sorted(forms.items())}
            inflected = set(forms)
            about = _about_table(path, columns) | {"matching": matching}

        override = {"name": name, "license": license, "redistributable": redistributable}
        about |= {key: value for key, value in override.items() if value is not None}
        lexicon = cls(entries, **about, inflected=inflected)
        rest = f" (not a run of letters, or a duplicate up to case; such as {left_out[0]!r})" if left_out else ""
        read = f"{len(lexicon) - len(inflected)} words of {lexicon.name} ({scale} scale)"
        logger.info("%s: %s, %d inflected forms, %d left out%s", path, read, len(inflected), len(left_out), rest)
        return lexicon

    @classmethod
    def embedded(cls) -> "VADLexicon":
        """Returns the small lexicon that ships with this module, for demonstrations and tests."""
        return cls.from_file(Path(__file__).with_name("embedded_vad.tsv"))

    def save(self, path: str | os.PathLike) -> None:
        """Writes words, values and metadata to one UTF-8 text file, atomically. `from_file` reads it back exactly."""
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
        """Returns the reader of token ids for a byte-level BPE tokenizer (GPT-2's family)."""
        return VADTokenReader(self, tokenizer)

    def compile(self, tokenizer: Any) -> dict[str, torch.Tensor | int]:
        """Returns the rule of this module as tensors: a trie of the lexicon's words over the tokenizer's pieces.

        A state is a prefix of a lexicon word that the tokenizer can spell in `MAX_WORD_TOKENS` tokens; state 0 is the
        root. The tokenizer is a byte-level BPE (GPT-2's family) with V tokens.

        Returns a dictionary:
            token_pieces (V,) int32: the token's piece, in [0, num_pieces); -2 for a piece that the trie does not have
                (the rest of its word has no VAD); -1 for a token that is not a piece (it ends the word).
            token_starts_word (V,) bool: whether the token is a piece with the leading space.
            transition_keys (N,) int64: `state * num_pieces + piece`, ascending.
            transition_states (N,) int32: the next state for each key.
            state_vad (S, 3) int32: valence, arousal, dominance in ten-thousandths; 0 where no word is complete.
            num_pieces, max_word_tokens: int.

        Raises:
            ValueError: if the tokenizer's tokens lose their leading space when decoded one by one.
        """
        token_texts, starts_word = _word_pieces(tokenizer, self.matching)
        longest = MAX_WORD_TOKENS if self.matching == "word" else 1
        edges = _trie_edges(self._vad, {text for text in token_texts if text is not None}, longest)
        # Sorted, so that the order of the entries does not matter.
        states = sorted({end for _, _, end in edges}, key=lambda text: (len(text), text))
        state_ids = {text: state for state, text in enumerate(["", *states])}
        piece_ids = {text: piece for piece, text in enumerate(sorted({piece for _, piece, _ in edges}))}
        num_pieces = len(piece_ids)

        keys = np.array([state_ids[start] * num_pieces + piece_ids[piece] for start, piece, _ in edges], np.int64)
        targets = np.array([state_ids[end] for _, _, end in edges], np.int32)
        order = np.argsort(keys)
        state_vad = np.array([self._vad.get(text, (0, 0, 0)) for text in state_ids]) * UNITS
        token_pieces = [-1 if text is None else piece_ids.get(text, -2) for text in token_texts]
        return {
            "token_pieces": torch.tensor(token_pieces, dtype=torch.int32),
            "token_starts_word": torch.tensor(starts_word, dtype=torch.bool),
            "transition_keys": torch.from_numpy(keys[order]),
            "transition_states": torch.from_numpy(targets[order]),
            "state_vad": torch.from_numpy(np.rint(state_vad).astype(np.int32)),
            "num_pieces": num_pieces,
            "max_word_tokens": longest,
        }


class VADTokenReader:
    """Maps the L token ids of one sequence to their VAD, a float32 array (L, 3) in [-1, 1], by this module's rule.

    Raises ValueError for an id that the tokenizer does not have, such as the -100 of ignored labels.
    """

    def __init__(self, lexicon: VADLexicon, tokenizer: Any):
        self._pieces, self._starts_word = _word_pieces(tokenizer, lexicon.matching)
        # Row 0 is for tokens that do not complete a word.
        self._row_of = {word: row for row, word in enumerate(lexicon, start=1)}
        self._values = np.array([(0, 0, 0), *lexicon.values()], dtype=np.float32)

    def __call__(self, token_ids: Sequence[int]) -> np.ndarray:
        pieces, starts_word, row_of = self._pieces, self._starts_word, self._row_of
        if len(token_ids) and not 0 <= min(token_ids) <= max(token_ids) < len(pieces):
            raise ValueError(f"token ids must be in [0, {len(pieces)}): got {min(token_ids)} to {max(token_ids)}")
        rows = []
        word, num_tokens = "", 0  # of the open word
        for token_id in token_ids:
            piece = pieces[token_id]
            if piece is None:
                word, num_tokens = "", 0
            elif not word or starts_word[token_id]:
                word, num_tokens = piece, 1
            else:
                word, num_tokens = word + piece, num_tokens + 1
            rows.append(row_of.get(word, 0) if num_tokens <= MAX_WORD_TOKENS else 0)
        return self._values[np.array(rows, dtype=np.int64)]


def _word_pieces(tokenizer: Any, matching: str) -> tuple[list[str | None], list[bool]]:
    """Returns each token's casefolded piece (None: not a word piece), and whether it starts a word."""
    unchanged = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    texts = tokenizer.batch_decode([[token_id] for token_id in range(len(tokenizer))], **unchanged)
    if "".join(texts[i] for i in tokenizer.encode(" a a", add_special_tokens=False)).count(" ") < 2:
        name = type(tokenizer).__name__
        raise ValueError(f"{name} loses a token's leading space; VAD needs a byte-level BPE tokenizer (as GPT-2's)")
    not_text = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    bare = ["" if token_id in not_text else text.removeprefix(" ") for token_id, text in enumerate(texts)]
    # U+FFFD, for broken UTF-8, is not a letter.
    pieces = [text.casefold() if text.isalpha() else None for text in bare]
    is_first = [matching == "piece" or text.startswith(" ") for text in texts]
    starts_word = [piece is not None and first for piece, first in zip(pieces, is_first, strict=True)]
    return pieces, starts_word


def _trie_edges(words: Collection[str], pieces: Collection[str], most_pieces: int) -> list[tuple[str, str, str]]:
    """Returns all edges (prefix, piece, longer prefix) on a path to a word of at most `most_pieces` pieces."""
    longest = max(map(len, pieces), default=0)
    beginnings = sorted({word[:end] for word in words for end in range(1, len(word) + 1)}, key=len)
    edges = [
        (text[:cut], text[cut:], text)
        for text in beginnings
        for cut in range(max(0, len(text) - longest), len(text))
        if text[cut:] in pieces
    ]
    # The fewest pieces from the root to each prefix, and from each prefix to the end of a word.
    before: defaultdict[str, float] = defaultdict(lambda: math.inf, {"": 0})
    after: defaultdict[str, float] = defaultdict(lambda: math.inf, dict.fromkeys(words, 0))
    for start, _, end in edges:
        before[end] = min(before[end], before[start] + 1)
    for start, _, end in reversed(edges):
        after[start] = min(after[start], after[end] + 1)
    return [edge for edge in edges if before[edge[0]] + 1 + after[edge[2]] <= most_pieces]


class _Row(NamedTuple):
    where: str  # file and line, for messages
    word: str
    values: tuple[float, ...]
    inflected: bool


def _read_table(path: Path) -> tuple[dict[str, str], list[str], list[_Row]]:
    """Returns the "# key: value" lines, the casefolded column names if the table has them, and the rows."""
    if not path.is_file():
        raise FileNotFoundError(f"no VAD lexicon at {path}: pass the path of a lexicon file (NRC-VAD-Lexicon.txt)")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        kind = "UTF-16" if error.object.startswith((b"\xff\xfe", b"\xfe\xff")) else "LATIN1"
        remedy = f"save it as UTF-8; if it is {kind}, with `iconv -f {kind} -t UTF-8`"
        raise ValueError(f"{path}, line {number}: not UTF-8 text: {error}; {remedy}") from error
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
    found = [[name for name in columns if name in names] for names in COLUMN_NAMES]
    if several := next((names for names in found if all(found) and len(names) > 1), None):
        raise ValueError(f"{lines[0][0]}: {' and '.join(several)} have the same meaning; remove or rename one")
    if all(found):
        places, width, lines = [columns.index(name) for (name,) in found], len(columns), lines[1:]
    else:
        columns, places, width = [], [0, 1, 2, 3], 4
    if not lines:
        raise ValueError(f"{path} holds no entries; expected lines of word, valence, arousal, dominance")

    rows = []
    for where, line in lines:
        fields = _fields(line, delimiter)
        if inflected := FORMAT_KEY in header and fields[4:] == [INFLECTED_MARK]:
            fields.pop()
        if len(fields) != width:
            raise ValueError(f"{where}: expected {width} fields, not {len(fields)}; correct or remove the line")
        word, *numbers = (fields[place] for place in places)
        try:
            values = tuple(float(number.replace("_", "?")) for number in numbers)  # Python reads 0_5 as 5
        except ValueError:
            values = (math.nan,)
        if not word or not all(map(math.isfinite, values)):
            columns_wanted = "a header must name Word, Valence, Arousal and Dominance"
            raise ValueError(f"{where}: expected a word and three finite numbers; correct the line ({columns_wanted})")
        rows.append(_Row(where, word, values, inflected))
    return header, columns, rows


def _fields(line: str, delimiter: str | None) -> list[str]:
    # Parses each line alone, so that a stray quotation mark does not swallow the next lines.
    fields = line.split() if delimiter is None else next(csv.reader([line], delimiter=delimiter))
    return [field.strip() for field in fields]


def _detect_scale(path: Path, rows: list[_Row]) -> str:
    """Returns the first scale that contains all values; an error if a few wrong lines may have decided it."""
    low, high = min(rows, key=lambda row: min(row.values)), max(rows, key=lambda row: max(row.values))
    lowest, highest = min(low.values), max(high.values)
    scale = next((name for name, (start, end) in SCALES.items() if start <= lowest and highest <= end), None)
    values_run = f"values run from {lowest:g} to {highest:g}"
    if scale is None:
        extremes = f"lowest: {low.where}; highest: {high.where}"
        raise ValueError(f"{path}: {values_run}, on none of {SCALES}. Correct them ({extremes}), or pass scale=.")
    negative = [row for row in rows if min(row.values) < 0]
    remedy = f"or pass scale={scale!r} if they are right"
    if scale == "bipolar" and len(rows) >= 100 and len(negative) < len(rows) / 50:
        few = f"as in {len(negative)} of {len(rows)} lines only; the others may be on the unit scale"
        raise ValueError(f"{negative[0].where}: a value below 0, {few}. Correct the line, {remedy}")
    if scale == "nine_point" and len(rows) >= 1000 and highest - lowest <= 6:
        raise ValueError(f"{path}: {values_run}, as on a scale of fewer than nine points. Convert them, {remedy}")
    return scale


def _scaled_entries(rows: list[_Row], scale: str) -> tuple[dict[str, tuple[float, ...]], list[str]]:
    """Returns casefolded words with bipolar values, exact to 1e-4, and the entries that are left out."""
    start, end = SCALES[scale]
    kept: dict[str, tuple[float, ...]] = {}
    origin: dict[str, str] = {}
    listed, left_out = {row.word for row in rows}, []
    for row in rows:
        if not all(start <= value <= end for value in row.values):
            limits = f"{scale} scale, {start:g} to {end:g}"
            raise ValueError(f"{row.where}: a value is off the {limits}; correct the line, or pass another scale=")
        word = row.word.casefold()
        values = tuple((round((v - start) / (end - start) * 2 * UNITS) - UNITS) / UNITS for v in row.values)
        # Warriner has "aids" and "AIDS". Tokens are casefolded, so the lower-case entry wins.
        if not word.isalpha() or (row.word != word and word in listed):
            left_out.append(row.word)
        elif kept.setdefault(word, values) == values:
            origin.setdefault(word, row.where)
        else:
            raise ValueError(f"{row.where}: other values than in {origin[word]}; keep one of the two lines")
    return kept, left_out


def _about_table(path: Path, columns: list[str]) -> dict[str, Any]:
    """Returns what the format or the file name says about the owner. Research lists may not be passed on."""
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
    """Returns the metadata of a saved file's header, after checking it against the entries."""
    if header[FORMAT_KEY] != FORMAT_VERSION:
        raise ValueError(f"{path}: {FORMAT_KEY} is {header[FORMAT_KEY]!r}, not {FORMAT_VERSION}; update this code")
    permission = "true" if header.get("redistributable") == "true" else "false"
    expected = {"redistributable": permission, "num_listed": str(num_listed), "num_inflected": str(num_inflected)}
    if wrong := [key for key, value in expected.items() if header.get(key) != value]:
        found = ", ".join(f"{key} is {header.get(key)!r}, not {expected[key]}" for key in wrong)
        raise ValueError(f"{path}: {found}; the file is truncated or was edited: save it again")
    about: dict[str, Any] = {key: header.get(key, "") for key in ("name", "version", "license")}
    about["matching"] = header.get("matching", "word")
    return about | {"redistributable": permission == "true"}


def _inflected_forms(listed: Collection[str]) -> dict[str, str]:
    """Returns inflected forms that are not listed, with the listed word that each takes its values from.

    If several words share a form, the shortest is used, then the alphabetically first ("leaves": leaf).
    """
    try:
        from lemminflect import getAllInflections
    except ImportError as error:
        raise ImportError("inflected forms: `pip install lemminflect`, or pass expand_inflections=False") from error
    forms: dict[str, str] = {}
    for word in sorted(listed, key=lambda word: (len(word), word)):
        for form in (form.casefold() for spellings in getAllInflections(word).values() for form in spellings):
            if form.isalpha() and form not in listed:
                forms.setdefault(form, word)
    return forms
