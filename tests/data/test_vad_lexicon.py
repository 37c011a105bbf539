# Copyright 2026 The SEVLM team. Licensed under the Apache License, Version 2.0;
# you may obtain a copy at http://www.apache.org/licenses/LICENSE-2.0
"""Lexicon files, THE RULE as the text reader applies it, and the compiled tables against the text reader.

All values are made up, but for the two public examples of NRC-VAD (banquet, funeral).
"""

import itertools
import json
import logging
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.dynamic_module_utils import get_imports, get_relative_imports

from processing import vad_lexicon
from processing.vad_lexicon import MAX_WORD_TOKENS, VADLexicon
from tests.helpers.examples import examples


FUN, FUNERAL, HAPPY, STRASSE, ELAN = (
    (0.5, 0.25, 0.125),
    (-0.854, -0.24, -0.214),
    (1, 0, -1),
    (0.1, 0.2, 0.3),
    (0.4,) * 3,
)
NOTHING = (0.0, 0.0, 0.0)
WORDS = {
    "fun": FUN,
    "funeral": FUNERAL,
    "happy": HAPPY,
    "happyhour": (0.9, 0.8, 0.7),
    "strasse": STRASSE,
    "élan": ELAN,
    "a": (0.0001, -0.0001, 0.9999),
    "abcdefgh": (-0.1, -0.2, -0.3),
    "abcdefghi": (-0.4, -0.5, -0.6),
    "unending": (0.01, 0.02, 0.03),
    "zürnen": (0.6, 0.6, 0.6),  # can be begun, but not completed: "ü" is two tokens
}


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like GPT-2's: all bytes, a few merges, special and added tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    text = [
        "a funeral is no fun",
        "(fun) a a a",
        "happy as can be, un end ing happy hour",
        "the (happy) few. fun, fun",
        "élan vital",
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    bpe.train_from_iterator(text * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    tokenizer.add_tokens(["<emotion>"], special_tokens=True)
    tokenizer.add_tokens(["happyhour"])  # letters only, but no word piece: it was added
    return tokenizer


def with_merged_token(left: str, right: str) -> PreTrainedTokenizerFast:
    """The same tokenizer with one more merge, its parts in the byte-level alphabet."""
    bpe = json.loads(train_tokenizer().backend_tokenizer.to_str())
    bpe["model"]["merges"].append([left, right])
    bpe["model"]["vocab"][left + right] = len(bpe["model"]["vocab"])
    bpe["added_tokens"] = []
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(bpe)))


TOKENIZER = train_tokenizer()
LEXICON = VADLexicon(WORDS, name="made up")
READER = LEXICON.token_reader(TOKENIZER)
TABLES = LEXICON.compile(TOKENIZER)


def letters(text: str) -> list[int]:
    """One token per character (a space first goes with its letter if there is such a token, so use none)."""
    return TOKENIZER.convert_tokens_to_ids(list(text))


def token(text: str) -> int:
    """The one token with this text."""
    (token_id,) = [i for i in range(len(TOKENIZER)) if TOKENIZER.decode([i]) == text]
    return token_id


def read(token_ids: list[int]) -> list[tuple[float, ...]]:
    return [tuple(round(float(value), 4) for value in row) for row in READER(token_ids)]


def read_tables(tables: dict, token_ids: list[int]) -> np.ndarray:
    """The tensor reader, in plain Python: what a model does with the compiled tables."""
    next_state = dict(zip(tables["transition_keys"].tolist(), tables["transition_states"].tolist(), strict=True))
    lost, states = -1, []
    state, num_tokens = lost, 0  # num_tokens 0: no word is open
    for token_id in token_ids:
        piece = int(tables["token_pieces"][token_id])
        if piece == -1:
            state, num_tokens = lost, 0
        else:
            if num_tokens == 0 or tables["token_starts_word"][token_id]:
                state, num_tokens = 0, 0
            num_tokens += 1
            known = piece >= 0 and state != lost and num_tokens <= tables["max_word_tokens"]
            state = next_state.get(state * tables["num_pieces"] + piece, lost) if known else lost
        states.append(max(state, 0))
    return (tables["state_vad"][states].float() / 10_000).reshape(-1, 3).numpy()


# ---------------------------------------------------------------------------------------------------- THE RULE


def test_a_token_carries_the_vad_of_the_word_that_it_completes():
    assert read([token(" fun"), *letters("eral")]) == [FUN, NOTHING, NOTHING, NOTHING, FUNERAL]


def test_a_word_needs_no_space_at_the_start_of_a_sequence():
    assert read(letters("fun")) == [NOTHING, NOTHING, FUN]


def test_a_leading_space_starts_a_new_word():
    assert read([token(" fun"), token(" fun")]) == [FUN, FUN]
    assert read([*letters("x"), token(" happy")]) == [NOTHING, HAPPY]


def test_a_piece_without_space_extends_the_open_word():
    assert read([*letters("x"), *letters("fun")]) == [NOTHING] * 4


def test_letter_case_does_not_count():
    assert read(letters("FuN")) == [NOTHING, NOTHING, FUN]
    assert LEXICON["FUNERAL"] == FUNERAL


@pytest.mark.parametrize("mark", ["(", ".", "-", "'", "1", "\n", " "])
def test_punctuation_digits_and_bare_spaces_end_a_word(mark):
    assert read([*letters("fun"), token(mark), *letters("fun")]) == [
        NOTHING,
        NOTHING,
        FUN,
        NOTHING,
        NOTHING,
        NOTHING,
        FUN,
    ]


def test_a_word_in_brackets_or_curly_quotes_is_read():
    for text in ("(happy", "“happy”", "‘Happy’s"):
        assert HAPPY in read(TOKENIZER.encode(text)), text
    # A curly quote is three bytes, three tokens here, and none of them is text on its own.
    assert read(TOKENIZER.encode("“fun")) == [NOTHING] * 3 + read(TOKENIZER.encode("fun"))


def test_special_and_added_tokens_are_no_words_and_end_one():
    for text in ("<|endoftext|>", "<emotion>", "happyhour"):
        added = TOKENIZER.convert_tokens_to_ids(text)
        assert read([*letters("fun"), added, *letters("eral")])[2:] == [FUN] + [NOTHING] * 5
        assert read([added, *letters("fun")]) == [NOTHING, NOTHING, NOTHING, FUN]


def test_a_character_that_is_split_into_bytes_ends_the_word():
    ids = TOKENIZER.encode("fuß")
    assert len(ids) >= 3 and TABLES["token_pieces"][ids[-1]] == -1
    assert read([*letters("fun"), ids[-1], *letters("eral")])[3:] == [NOTHING] * 5


def test_casefolding_may_lengthen_a_piece():
    tokenizer = with_merged_token("Ã", "Ł")  # the bytes of "ß"
    ids = [*tokenizer.convert_tokens_to_ids(list("stra")), *tokenizer.encode("ße", add_special_tokens=False)]
    assert len(ids) == 6
    vad = LEXICON.token_reader(tokenizer)(ids)
    assert vad[-1].tolist() == pytest.approx(STRASSE) and not vad[:-1].any()
    assert np.array_equal(read_tables(LEXICON.compile(tokenizer), ids), vad)


@pytest.mark.parametrize("space", ["Ġ", "Ċ"])
def test_only_one_leading_space_belongs_to_a_piece(space):
    tokenizer = with_merged_token(space, "Ġfun")
    token_id = tokenizer.convert_tokens_to_ids(f"{space}Ġfun")
    assert tokenizer.decode([token_id])[1:] == " fun"
    assert not LEXICON.token_reader(tokenizer)([token_id]).any()


def test_a_word_is_followed_for_eight_tokens():
    assert MAX_WORD_TOKENS == 8
    assert read(letters("abcdefghi")) == [WORDS["a"]] + [NOTHING] * 6 + [WORDS["abcdefgh"]] + [NOTHING]
    # The ninth token does not start anything: the word is still open.
    assert read(letters("abcdefghifun"))[8:] == [NOTHING] * 4
    assert read_tables(TABLES, letters("abcdefghifun"))[8:].any() == np.False_


def test_a_tokens_vad_depends_on_earlier_tokens_only():
    ids = TOKENIZER.encode("a funeral (happy) is Fun, unending élan")
    whole = READER(ids)
    for end in range(len(ids) + 1):
        assert np.array_equal(READER(ids[:end]), whole[:end])


def test_the_reader_gives_float32_rows_also_for_no_tokens():
    assert READER([]).shape == (0, 3)
    assert READER(letters("fun")).dtype == np.float32


@pytest.mark.parametrize("token_id", [-100, len(TOKENIZER)])
def test_the_reader_refuses_ids_that_the_tokenizer_does_not_have(token_id):
    with pytest.raises(ValueError, match="token ids must be in"):
        READER([0, token_id])


def test_the_reader_travels_to_data_loading_workers():
    ids = TOKENIZER.encode("a happy funeral")
    assert np.array_equal(pickle.loads(pickle.dumps(READER))(ids), READER(ids))


# ---------------------------------------------------------------------------------------------- compiled tables


FRAGMENTS = [
    " ",
    "a",
    " a",
    "fun",
    " fun",
    "eral",
    " Funeral",
    "HAPPY",
    "hour",
    " (happy",
    "“",
    "’s",
    "é",
    " Élan",
    "lan",
]
FRAGMENTS += [
    "ß",
    " straße",
    "STRASSE",
    "İ",
    "\u0345",
    "\ufffd",
    "\n",
    "abcdefgh",
    "i",
    "un",
    "end",
    "ing",
    "<emotion>",
]
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=12).map("".join)
KNOWN_PIECES = [i for i, piece in enumerate(TABLES["token_pieces"].tolist()) if piece >= 0]
TOKEN_IDS = st.lists(
    st.one_of(
        st.integers(0, len(TOKENIZER) - 1), st.sampled_from(KNOWN_PIECES), st.sampled_from(letters("abcdefghi"))
    ),
    max_size=40,
)


@examples(300)
@given(TEXTS)
def test_tables_and_text_reader_agree_on_any_text(text):
    ids = TOKENIZER.encode(text)
    assert read_tables(TABLES, ids).tobytes() == READER(ids).tobytes()


@examples(300)
@given(TOKEN_IDS)
def test_tables_and_text_reader_agree_on_any_token_ids(ids):
    assert read_tables(TABLES, ids).tobytes() == READER(ids).tobytes()


@examples(100)
@given(st.sampled_from(sorted(WORDS)), st.data())
def test_tables_know_every_segmentation_of_a_word(word, data):
    pieces = {TOKENIZER.decode([i]): i for i in KNOWN_PIECES}
    ids, rest = [], word
    while rest:
        heads = [rest[:end] for end in range(1, len(rest) + 1) if rest[:end] in pieces]
        if not heads:  # a letter of several bytes
            return
        head = data.draw(st.sampled_from(heads))
        ids.append(pieces[head])
        rest = rest.removeprefix(head)
    if len(ids) <= MAX_WORD_TOKENS:
        assert read_tables(TABLES, ids)[-1].tolist() == pytest.approx(WORDS[word])


def test_every_ten_thousandth_is_the_same_number_in_both_readers():
    units = np.arange(-10_000, 10_001)
    from_text = np.array([unit / 10_000 for unit in units.tolist()], dtype=np.float32)
    assert (torch.from_numpy(units).to(torch.int32).float() / 10_000).numpy().tobytes() == from_text.tobytes()


def test_compiled_tables_have_the_promised_shapes_and_types():
    num_states, num_transitions = len(TABLES["state_vad"]), len(TABLES["transition_keys"])
    expected = {
        "token_pieces": (torch.int32, (len(TOKENIZER),)),
        "token_starts_word": (torch.bool, (len(TOKENIZER),)),
        "transition_keys": (torch.int64, (num_transitions,)),
        "transition_states": (torch.int32, (num_transitions,)),
        "state_vad": (torch.int32, (num_states, 3)),
    }
    found = {
        key: (value.dtype, tuple(value.shape)) for key, value in TABLES.items() if isinstance(value, torch.Tensor)
    }
    assert found == expected
    assert TABLES.keys() - expected.keys() == {"num_pieces", "max_word_tokens"}
    assert TABLES["max_word_tokens"] == MAX_WORD_TOKENS
    assert (TABLES["transition_keys"].diff() > 0).all()
    assert not TABLES["state_vad"][0].any()
    assert TABLES["token_pieces"].max() == TABLES["num_pieces"] - 1


def test_token_pieces_tell_known_pieces_unknown_pieces_and_other_tokens_apart():
    pieces = TABLES["token_pieces"]
    assert pieces[token(" fun")] == pieces[token("fun")] >= 0
    assert pieces[token("Z")] == -2
    assert {int(pieces[i]) for i in (token("."), token(" "), *TOKENIZER.convert_tokens_to_ids(["<emotion>"]))} == {-1}
    assert TABLES["token_starts_word"][token(" fun")] and not TABLES["token_starts_word"][token("fun")]
    assert not TABLES["token_starts_word"][token(" ")]


def test_no_state_is_a_dead_end():
    sources = set((TABLES["transition_keys"] // TABLES["num_pieces"]).tolist())
    assert sources | set(TABLES["transition_states"].tolist()) == set(range(len(TABLES["state_vad"])))
    for state in set(range(len(TABLES["state_vad"]))) - sources:
        assert TABLES["state_vad"][state].any(), "a leaf has to be a word"


def test_words_that_take_too_many_tokens_leave_no_states():
    lexicon = VADLexicon({"zqzqzqzqz": HAPPY}, name="nine single letters")
    tables = lexicon.compile(TOKENIZER)
    assert len(tables["state_vad"]) == 1 and len(tables["transition_keys"]) == 0
    assert not read_tables(tables, letters("zqzqzqzqz")).any()


def test_tables_do_not_depend_on_the_order_of_the_entries():
    tables = VADLexicon(dict(reversed(WORDS.items())), name="made up").compile(TOKENIZER)
    assert all(torch.equal(torch.as_tensor(tables[key]), torch.as_tensor(TABLES[key])) for key in TABLES)


@pytest.mark.parametrize("kind", ["wordpiece", "sentencepiece"])
def test_tokenizers_that_hide_leading_spaces_are_refused(kind):
    vocab = {text: i for i, text in enumerate(["[UNK]", "a", "##a", "▁", "▁a"])}
    if kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    else:
        backend = Tokenizer(models.BPE(vocab, [("▁", "a")], unk_token="[UNK]"))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    for use in (LEXICON.token_reader, LEXICON.compile):
        with pytest.raises(ValueError, match="leading space.*byte-level BPE"):
            use(tokenizer)


# -------------------------------------------------------------------------------------------------- the mapping


def test_a_lexicon_is_a_mapping_from_words_to_three_floats():
    assert LEXICON["Fun"] == FUN and all(type(value) is float for value in LEXICON["happy"])
    assert "HAPPY" in LEXICON and "sad" not in LEXICON
    assert LEXICON.get("sad", NOTHING) == NOTHING and LEXICON.get("sad") is None
    assert list(LEXICON) == list(WORDS) and len(LEXICON) == len(WORDS)
    assert dict(LEXICON.items()) == {word: tuple(map(float, vad)) for word, vad in WORDS.items()}
    with pytest.raises(KeyError):
        LEXICON["sad"]


def test_values_are_kept_to_a_ten_thousandth():
    assert VADLexicon([("fun", (1 / 3, -2 / 3, 0.00004))], name="x")["fun"] == (0.3333, -0.6667, 0.0)


def test_metadata_says_who_owns_the_lexicon_and_how_large_it_is():
    lexicon = VADLexicon({"fun": FUN, "funs": FUN}, name="n", version="3", license="CC0", inflected=["Funs"])
    expected = {"name": "n", "version": "3", "license": "CC0", "redistributable": False}
    assert json.loads(json.dumps(lexicon.to_metadata())) == {**expected, "num_listed": 1, "num_inflected": 1}
    assert lexicon.listed == ["fun"] and lexicon.inflected == {"funs"} and lexicon.num_inflected == 1


@pytest.mark.parametrize(
    ("entries", "inflected", "problem"),
    [
        ({"two words": FUN}, (), "'two words' is not one run of letters"),
        ({"": FUN}, (), "not one run of letters"),
        ({"fun": (0, 0, 1.01)}, (), r"'fun' has a value outside \[-1, 1\]"),
        ({"fun": (0, float("nan"), 1)}, (), "outside"),
        ([("fun", FUN), ("FUN", HAPPY)], (), "'FUN' has two entries"),
        ({"fun": FUN}, ["funs"], "inflected forms without an entry: .*funs"),
    ],
)
def test_entries_that_cannot_be_kept_are_refused(entries, inflected, problem):
    with pytest.raises(ValueError, match=problem):
        VADLexicon(entries, name="x", inflected=inflected)


# ------------------------------------------------------------------------------------------------ reading files


def write(folder, content: str | bytes, name="words.txt"):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def load(path, **options) -> VADLexicon:
    return VADLexicon.from_file(path, **{"expand_inflections": False, **options})


def test_nrc_vad_version_1_is_read(tmp_path):
    path = write(
        tmp_path,
        "banquet\t0.765\t0.571\t0.600\nfuneral\t0.073\t0.380\t0.393\nmade up\t0\t1\t0\n",
        "NRC-VAD-Lexicon.txt",
    )
    lexicon = load(path)
    assert dict(lexicon.items()) == {"banquet": (0.53, 0.142, 0.2), "funeral": (-0.854, -0.24, -0.214)}
    assert (lexicon.name, lexicon.version, lexicon.redistributable) == ("NRC-VAD", "1", False)
    assert "NRC" in lexicon.license


def test_the_bipolar_variant_of_nrc_vad_is_read(tmp_path):
    lexicon = load(write(tmp_path, "banquet\t0.53\t0.142\t0.2\nfuneral\t-0.854\t-0.24\t-0.214\n"))
    assert lexicon["banquet"] == (0.53, 0.142, 0.2) and lexicon["funeral"] == FUNERAL


def test_nrc_vad_version_2_is_read(tmp_path, caplog):
    content = "term\tvalence\tarousal\tdominance\nfun\t0.5\t0.25\t0.125\nat sea\t-0.5\t0.1\t0\nnull\t-0.2\t0\t0.1\n"
    with caplog.at_level(logging.INFO):
        lexicon = load(write(tmp_path, content, "NRC-VAD-Lexicon-v2.1.txt"))
    assert dict(lexicon.items()) == {"fun": FUN, "null": (-0.2, 0.0, 0.1)}
    assert (lexicon.name, lexicon.version) == ("NRC-VAD", "2.1")
    assert "2 words of NRC-VAD (bipolar scale), 0 inflected forms, 1 left out" in caplog.text
    assert "'at sea'" in caplog.text


def test_warriners_csv_is_read(tmp_path):
    content = (
        ",Word,V.Mean.Sum,V.SD.Sum,A.Mean.Sum,D.Mean.Sum,V.Mean.M\n"
        '1,fun,8.25,1.0,5.01,"1",9\n2,"Funeral",1.5,2.2,9.0,4.99,2\n3,t-shirt,5,1,5,5,5\n'
    )
    lexicon = load(write(tmp_path, content, "ratings.csv"))
    assert dict(lexicon.items()) == {"fun": (0.8125, 0.0025, -1.0), "funeral": (-0.875, 1.0, -0.0025)}
    assert "Warriner" in lexicon.name and not lexicon.redistributable


@pytest.mark.parametrize(
    "content",
    [
        "fun\t0.5\t0.25\t0.125\nsad\t-1\t0\t1\n",
        "fun,0.5,0.25,0.125\nsad,-1,0,1\n",
        "fun 0.5  0.25 0.125\nsad -1 0 1",
        "Word,Valence,Arousal,Dominance\nfun,0.5,0.25,0.125\nsad,-1,0,1\n",
        '"d","word","a","v","n"\n"0.125","fun","0.25","0.5",""\n1,sad,0,-1,7\n',
        "word v a d\nfun 0.5 0.25 0.125\nsad -1 0 1\n",
        b"\xef\xbb\xbffun\t0.5\t0.25\t0.125\r\n\r\nsad\t-1\t0\t1\r\n",
        "fun\t0.5\t0.25\t0.125\rsad\t-1\t0\t1\r",
        "# of our own making\nfun\t0.5\t0.25\t0.125\nsad\t-1\t0\t1\n",
        "Fun\t0.5\t0.25\t0.125\nsad\t-1\t0\t1\nfun\t0.50\t0.25\t0.125\n",
    ],
    ids=[
        "tab",
        "comma",
        "spaces",
        "header",
        "other order, quoted",
        "header, spaces",
        "BOM, CRLF",
        "CR",
        "comment",
        "repeated",
    ],
)
def test_plain_tables_are_read(tmp_path, content):
    lexicon = load(write(tmp_path, content, "ours.txt"))
    assert dict(lexicon.items()) == {"fun": FUN, "sad": (-1.0, 0.0, 1.0)}
    assert (lexicon.name, lexicon.license, lexicon.redistributable) == ("ours", "unknown", False)


def test_name_license_and_terms_can_be_given(tmp_path):
    lexicon = load(write(tmp_path, "fun 1 1 0"), name="ours", license="CC0", redistributable=True)
    assert (lexicon.name, lexicon.license, lexicon.redistributable) == ("ours", "CC0", True)


@pytest.mark.parametrize(
    ("line", "scale", "vad"),
    [
        ("fun 0.75 0 1", "auto", (0.5, -1.0, 1.0)),
        ("fun 0.75 -0.5 1", "auto", (0.75, -0.5, 1.0)),
        ("fun 7 1 9", "auto", (0.5, -1.0, 1.0)),
        ("fun 0.75 0 1", "bipolar", (0.75, 0.0, 1.0)),
        ("fun 1 1 1", "nine_point", (-1.0, -1.0, -1.0)),
        ("fun 0.75 0 1", "unit", (0.5, -1.0, 1.0)),
    ],
)
def test_scales_are_told_from_the_values_or_taken_as_given(tmp_path, line, scale, vad):
    assert load(write(tmp_path, line), scale=scale)["fun"] == vad


def test_words_that_differ_in_case_only_give_way_to_the_lower_case_one(tmp_path, caplog):
    for content in ("Fun 0 0 0\nfun 1 1 0", "fun 1 1 0\nFun 0 0 0"):
        with caplog.at_level(logging.INFO):
            assert dict(load(write(tmp_path, content)).items()) == {"fun": (1.0, 1.0, -1.0)}
        assert "1 left out" in caplog.text and "'Fun'" in caplog.text
        caplog.clear()


SYLLABLES = ["".join(pair) for pair in itertools.product("bdfgklmnprstvw", "aeiou")]
MADE_UP = ["".join(pair) for pair in itertools.product(SYLLABLES, SYLLABLES)]
WIDE_UNIT = "".join(f"{word} {i % 11 / 10} 0.5 1\n" for i, word in enumerate(MADE_UP[:200]))
SEVEN_POINTS = "".join(f"{word} {1 + i % 7} 1 4\n" for i, word in enumerate(MADE_UP[:1000]))


def test_a_scale_that_is_named_is_not_doubted(tmp_path):
    path = write(tmp_path, WIDE_UNIT + "odd -0.5 0 1\n")
    assert load(path, scale="bipolar")["odd"] == (-0.5, 0.0, 1.0)
    assert load(write(tmp_path, SEVEN_POINTS), scale="nine_point")[MADE_UP[1]][0] == -0.75


@pytest.mark.parametrize(
    ("content", "options", "problem"),
    [
        ("", {}, "holds no entries"),
        ("\n# only a comment\n", {}, "holds no entries"),
        ("word\tvalence\tarousal\tdominance\n", {}, "holds no entries"),
        ("two words\t0\t0\t1\n", {}, "no entry is one run of letters .*two words"),
        ("fun 0 0 1\nsad 0 1\n", {}, "line 2: 'sad 0 1': expected 4 fields, not 3; correct or remove"),
        ("fun 0 0 1 1\n", {}, "line 1: .*expected 4 fields, not 5"),
        ("word,v,a,d,n\nfun,0,0,1\n", {}, "line 2: .*expected 5 fields, not 4"),
        ('fun,0,0,1\n"sad,0,0,1\nglad,0,0,1\n', {}, "line 2: .*sad.*expected 4 fields"),
        ("fun 0 0 1\nsad 0 x 1\n", {}, "line 2: 'sad 0 x 1': expected a word and three finite numbers"),
        ("fun 0 nan 1\n", {}, "line 1: .*finite"),
        ("fun 0 inf 1\n", {}, "line 1: .*finite"),
        (",0,0,1\n", {}, "line 1: .*expected a word"),
        ("mot valence reveil emprise\nfun 0 0 1\n", {}, "line 1: .*must name Word, Valence, Arousal and Dominance"),
        ("fun 0 0 1\n" + "x" * 500 + " 0 1\n", {}, r"line 2: 'x{57}\.\.\.': "),
        ("fun 0 -0.5 4.5\n", {}, "words.txt: values run from -0.5 to 4.5.*scale="),
        ("fun 0 0.5 1\nsad 0 0.5 1.5\n", {"scale": "unit"}, "line 2: 'sad 0 0.5 1.5': .*unit scale, 0 to 1.*scale="),
        ("fun 0 0 1\n", {"scale": "nine_point"}, "line 1: .*nine_point scale, 1 to 9"),
        (
            "fun 0 0 1\n",
            {"scale": "percent"},
            "scale='percent': choose 'auto' or one of 'unit', 'bipolar', 'nine_point'",
        ),
        ("fun 0 0 1\nsad 0 0 1\nfun 0 1 1\n", {}, "line 3: 'fun 0 1 1': other values than in .*line 1: 'fun 0 0 1'"),
        (b"fun 0 0 1\ncaf\xe9 0 0 1\n", {}, "line 2: not UTF-8 .*Latin-1.*plain text in UTF-8"),
        ("fun 0 0 1\n".encode("utf-16"), {}, "line 1: not UTF-8 text .UTF-16"),
        ("fun 0 0 1\n".encode("utf-16-le"), {}, "line 1: .*correct or remove"),
        ("fun\t0,5\t0,5\t0,5\n", {}, "line 1: .*three finite numbers"),
        ("fun,0,5,0,5,0,5\n", {}, "line 1: .*expected 4 fields, not 7"),
        ("fun 0,5 0,5 0,5\n", {}, "line 1: .*three finite numbers"),
        ("fun\t0\t\t1\n", {}, "line 1: .*three finite numbers"),
        ("fun\t0\t0_5\t1\n", {}, "line 1: .*three finite numbers"),
        ("word,v,valence,a,d\nfun,0,1,0,1\n", {}, "line 1: .*v and valence name one thing"),
        ("word,v,a,d\nfun,0,0,1\nword,v,a,d\n", {}, "line 3: .*three finite numbers"),
        (WIDE_UNIT + "odd -0.5 0 1\n", {}, "line 201: .*below 0, as in 1 of 201 lines.*scale='bipolar'"),
        (SEVEN_POINTS, {}, "run from 1 to 7, as on a scale of fewer than nine points.*scale='nine_point'"),
    ],
)
def test_files_that_cannot_be_read_say_where_and_what_to_do(tmp_path, content, options, problem):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=problem) as error:
        load(path, **options)
    assert str(path) in str(error.value) or "scale='percent'" in str(error.value)


def test_a_missing_file_says_what_to_pass(tmp_path):
    with pytest.raises(FileNotFoundError, match="no VAD lexicon at .*nowhere.txt: pass the path"):
        load(tmp_path / "nowhere.txt")


# ---------------------------------------------------------------------------------------------- inflected forms


def test_listed_words_give_their_values_to_forms_that_are_not_listed(tmp_path):
    lexicon = VADLexicon.from_file(write(tmp_path, "walk 0.1 0.2 0.3\nhappy 1 0 0\nchild 0 1 0\nwalking 0 0 0.5\n"))
    assert {"walks", "walked", "happier", "happiest", "children"} <= lexicon.inflected
    assert lexicon["walked"] == lexicon["walk"] and lexicon["children"] == lexicon["child"]
    assert lexicon["walking"] == (-1.0, -1.0, 0.0) and "walking" not in lexicon.inflected
    assert lexicon.listed == ["walk", "happy", "child", "walking"]


def test_a_form_of_two_words_takes_the_shorter_then_the_alphabetically_first_in_any_file_order(tmp_path):
    lines = ["leave 0.1 0 0", "leaf 0.2 0 0", "live 0.3 0 0", "life 0.4 0 0", "caddie 0.5 0 0", "caddy 0.6 0 0"]
    for ordered in (lines, lines[::-1]):
        lexicon = VADLexicon.from_file(write(tmp_path, "\n".join(ordered)))
        assert lexicon["leaves"] == lexicon["leaf"] != lexicon["leave"]
        assert lexicon["lives"] == lexicon["life"] != lexicon["live"]
        assert lexicon["caddies"] == lexicon["caddy"] != lexicon["caddie"]


def test_without_lemminflect_only_inflected_forms_are_out_of_reach(tmp_path, monkeypatch):
    path = write(tmp_path, "walk 0.1 0.2 0.3")
    monkeypatch.setitem(sys.modules, "lemminflect", None)
    assert list(load(path)) == ["walk"]
    with pytest.raises(ImportError, match="pip install lemminflect.*expand_inflections=False"):
        VADLexicon.from_file(path)


# -------------------------------------------------------------------------------------------------- saved files


SAVED = VADLexicon(
    {**WORDS, "funerals": FUNERAL, "strasses": STRASSE},
    name="made  up\nof nothing",
    version="1.2",
    license="CC0: take it",
    redistributable=True,
    inflected=["funerals", "strasses"],
)


@pytest.mark.parametrize("lexicon", [SAVED, LEXICON], ids=["all metadata", "few metadata"])
def test_a_saved_lexicon_is_read_back_exactly(tmp_path, lexicon):
    lexicon.save(tmp_path / "saved.tsv")
    again = VADLexicon.from_file(tmp_path / "saved.tsv")
    assert list(again.items()) == list(lexicon.items())
    assert again.inflected == lexicon.inflected
    assert again.to_metadata() == lexicon.to_metadata()
    again.save(tmp_path / "again.tsv")
    assert (tmp_path / "again.tsv").read_bytes() == (tmp_path / "saved.tsv").read_bytes()


def test_a_saved_file_says_what_it_is(tmp_path):
    SAVED.save(tmp_path / "saved.tsv")
    lines = (tmp_path / "saved.tsv").read_text(encoding="utf-8").splitlines()
    assert {"# name: made up of nothing", "# license: CC0: take it", "# redistributable: true"} <= set(lines)
    assert "funeral\t-0.854\t-0.24\t-0.214" in lines and "funerals\t-0.854\t-0.24\t-0.214\tinflected" in lines


def test_what_a_saved_file_says_can_be_overridden(tmp_path):
    SAVED.save(tmp_path / "saved.tsv")
    lexicon = VADLexicon.from_file(tmp_path / "saved.tsv", name="mine", redistributable=False)
    assert (lexicon.name, lexicon.license, lexicon.redistributable) == ("mine", "CC0: take it", False)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("_format: 1", "_format: 2", "vad_lexicon_format is '2', not 1; .*update"),
        ("redistributable: true", "redistributable: perhaps", "redistributable is 'perhaps', not true or false"),
        ("\nhappy\t1.0\t0.0\t-1.0", "", "num_listed is '11', not 10; the file was cut short or edited"),
        ("\tinflected", "", "num_listed is '11', not 12"),
        ("\tinflected", "\tguessed", "expected 4 fields"),
        ("happy\t1.0", "happy\t1.1", "off the bipolar scale"),
    ],
)
def test_a_saved_file_that_was_changed_is_refused(tmp_path, old, new, problem):
    path = tmp_path / "saved.tsv"
    SAVED.save(path)
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=problem):
        VADLexicon.from_file(path)


def test_a_saved_file_has_one_scale(tmp_path):
    LEXICON.save(tmp_path / "saved.tsv")
    with pytest.raises(ValueError, match="a saved lexicon is bipolar"):
        VADLexicon.from_file(tmp_path / "saved.tsv", scale="unit")


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    SAVED.save(tmp_path / "saved.tsv")
    before = (tmp_path / "saved.tsv").read_bytes()

    def fail(*paths):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        LEXICON.save(tmp_path / "saved.tsv")
    assert [path.name for path in tmp_path.iterdir()] == ["saved.tsv"]
    assert (tmp_path / "saved.tsv").read_bytes() == before


def test_the_embedded_lexicon_lies_beside_the_module(tmp_path, monkeypatch):
    SAVED.save(tmp_path / "embedded_vad.tsv")
    monkeypatch.setattr(vad_lexicon, "__file__", str(tmp_path / "vad_lexicon.py"))
    assert dict(VADLexicon.embedded()) == dict(SAVED)


# ------------------------------------------------------------------------------------------------------ the Hub


def test_the_module_can_be_copied_to_the_hub_alone():
    assert get_relative_imports(vad_lexicon.__file__) == []
    assert set(get_imports(vad_lexicon.__file__)) - set(sys.stdlib_module_names) == {"numpy", "torch"}
