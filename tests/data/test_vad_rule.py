"""The rule that gives tokens their VAD, as the reader of token ids applies it, and the compiled tables against it."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from processing.vad_lexicon import MAX_WORD_TOKENS, VADLexicon
from tests.helpers.examples import examples


FUN, FUNERAL, HAPPY, STRASSE = (0.5, 0.25, 0.125), (-0.854, -0.24, -0.214), (1, 0, -1), (0.1, 0.2, 0.3)
NOTHING = (0.0, 0.0, 0.0)
WORDS = {
    "fun": FUN,
    "funeral": FUNERAL,
    "happy": HAPPY,
    "happyhour": (0.9, 0.8, 0.7),
    "strasse": STRASSE,
    "élan": (0.4,) * 3,
    "a": (0.0001, -0.0001, 0.9999),
    "abcdefgh": (-0.1, -0.2, -0.3),
    "abcdefghi": (-0.4, -0.5, -0.6),
    "unending": (0.01, 0.02, 0.03),
    "zürnen": (0.6, 0.6, 0.6),  # cannot be completed: "ü" is two tokens
}


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like GPT-2's: all bytes, a few merges, special and added tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    text = ["a funeral is no fun", "(fun) a a a", "happy as can be, un end ing happy hour"]
    text += ["the (happy) few. fun, fun", "élan vital"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    bpe.train_from_iterator(text * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    tokenizer.add_tokens(["<emotion>"], special_tokens=True)
    tokenizer.add_tokens(["happyhour"])  # has only letters, but is not a word piece, because it was added
    return tokenizer


def with_merged_token(left: str, right: str) -> PreTrainedTokenizerFast:
    """The same tokenizer with one more merge. Its parts are in the byte-level alphabet."""
    bpe = json.loads(train_tokenizer().backend_tokenizer.to_str())
    bpe["model"]["merges"].append([left, right])
    bpe["model"]["vocab"][left + right] = len(bpe["model"]["vocab"])
    bpe["added_tokens"] = []
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(bpe)))


TOKENIZER = train_tokenizer()
TOKEN_IDS = {TOKENIZER.decode([i]): i for i in range(len(TOKENIZER))}
LEXICON = VADLexicon(WORDS, name="made up")
READER = LEXICON.token_reader(TOKENIZER)
TABLES = LEXICON.compile(TOKENIZER)
BY_PIECE = VADLexicon(WORDS, name="made up", matching="piece")


def read(token_ids: list[int]) -> list[tuple[float, ...]]:
    return [tuple(round(float(value), 4) for value in row) for row in READER(token_ids)]


def ids_of(*texts: str) -> list[int]:
    return [TOKEN_IDS[text] for text in texts]


def read_tables(tables: dict, token_ids: list[int]) -> np.ndarray:
    """What a model does with the compiled tables, in plain Python."""
    next_state = dict(zip(tables["transition_keys"].tolist(), tables["transition_states"].tolist(), strict=True))
    lost, states = -1, []
    state, num_tokens = lost, 0  # of the open word
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


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([" fun", *"eral"], [FUN, NOTHING, NOTHING, NOTHING, FUNERAL]),
        ([*"fun"], [NOTHING, NOTHING, FUN]),
        ([" fun", " fun"], [FUN, FUN]),
        (["x", " happy"], [NOTHING, HAPPY]),
        (["x", *"fun"], [NOTHING] * 4),
        ([*"FuN"], [NOTHING, NOTHING, FUN]),
        # The ninth token completes nothing and starts nothing: the word is still open.
        ([*"abcdefghifun"], [WORDS["a"], *[NOTHING] * 6, WORDS["abcdefgh"], *[NOTHING] * 4]),
        *(([*"fun", mark, *"fun"], [NOTHING, NOTHING, FUN, *[NOTHING] * 3, FUN]) for mark in "(.-'1\n "),
        *(
            ([*"fun", added, *"eral"], [NOTHING, NOTHING, FUN, *[NOTHING] * 5])
            for added in ("<|endoftext|>", "<emotion>", "happyhour")
        ),
    ],
)
def test_a_token_carries_the_vad_of_the_word_that_it_completes(tokens, expected):
    assert read(ids_of(*tokens)) == expected
    assert read_tables(TABLES, ids_of(*tokens)).tobytes() == READER(ids_of(*tokens)).tobytes()


def test_words_in_brackets_and_curly_quotes_are_read():
    for text in ("(happy", "“happy”", "‘Happy’s"):
        assert HAPPY in read(TOKENIZER.encode(text)), text
    # A curly quote is three bytes, here three tokens that are not text on their own.
    assert read(TOKENIZER.encode("“fun")) == [NOTHING] * 3 + read(TOKENIZER.encode("fun"))


def test_a_character_split_into_bytes_ends_the_word():
    ids = TOKENIZER.encode("fuß")
    assert len(ids) >= 3 and TABLES["token_pieces"][ids[-1]] == -1
    assert read([*ids_of(*"fun"), ids[-1], *ids_of(*"eral")])[3:] == [NOTHING] * 5


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


def test_a_tokens_vad_depends_on_earlier_tokens_only():
    ids = TOKENIZER.encode("a funeral (happy) is Fun, unending élan")
    whole = READER(ids)
    assert whole.dtype == np.float32 and READER([]).shape == (0, 3)
    assert np.array_equal(pickle.loads(pickle.dumps(READER))(ids), whole), "loader workers get it pickled"
    for end in range(len(ids) + 1):
        assert np.array_equal(READER(ids[:end]), whole[:end])


@pytest.mark.parametrize("token_id", [-100, len(TOKENIZER)])
def test_the_reader_refuses_ids_that_the_tokenizer_does_not_have(token_id):
    with pytest.raises(ValueError, match="token ids must be in"):
        READER([0, token_id])


FRAGMENTS = [" ", "a", " a", "fun", " fun", "eral", " Funeral", "HAPPY", "hour", " (happy", "“", "’s", "é", " Élan"]
FRAGMENTS += ["lan", "ß", " straße", "STRASSE", "İ", "\u0345", "\ufffd", "\n", "abcdefgh", "i", "un", "end", "ing"]
TEXTS = st.lists(st.one_of(st.sampled_from([*FRAGMENTS, "<emotion>"]), st.text(max_size=4)), max_size=12).map("".join)
KNOWN_PIECES = [i for i, piece in enumerate(TABLES["token_pieces"].tolist()) if piece >= 0]
ANY_ID = st.integers(0, len(TOKENIZER) - 1) | st.sampled_from(KNOWN_PIECES) | st.sampled_from(ids_of(*"abcdefghi"))


@examples(300)
@given(TEXTS)
def test_tables_and_text_reader_agree_on_any_text(text):
    ids = TOKENIZER.encode(text)
    assert read_tables(TABLES, ids).tobytes() == READER(ids).tobytes()


def test_by_piece_a_token_has_the_vad_of_its_own_text_only():
    reader = BY_PIECE.token_reader(TOKENIZER)
    tokens = ids_of(" fun", "fun", *"fun", "x", " happy")
    assert [tuple(round(float(v), 4) for v in row) for row in reader(tokens)] == [FUN, FUN, *[NOTHING] * 4, HAPPY]


@examples(100)
@given(st.lists(ANY_ID, max_size=40))
def test_by_piece_tables_and_text_reader_agree_on_any_token_ids(ids):
    tables, reader = BY_PIECE.compile(TOKENIZER), BY_PIECE.token_reader(TOKENIZER)
    assert read_tables(tables, ids).tobytes() == reader(ids).tobytes()


def test_a_saved_lexicon_keeps_its_matching(tmp_path):
    BY_PIECE.save(tmp_path / "lexicon.tsv")
    assert VADLexicon.from_file(tmp_path / "lexicon.tsv").matching == "piece"
    assert BY_PIECE.to_metadata()["matching"] == "piece" and "matching" not in LEXICON.to_metadata()
    with pytest.raises(ValueError, match="choose 'word' or 'piece'"):
        VADLexicon(WORDS, name="made up", matching="token")


@examples(300)
@given(st.lists(ANY_ID, max_size=40))
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


def test_compiled_tables_have_the_documented_shapes_and_types():
    num_states, num_transitions = len(TABLES["state_vad"]), len(TABLES["transition_keys"])
    expected = {
        "token_pieces": (torch.int32, (len(TOKENIZER),)),
        "token_starts_word": (torch.bool, (len(TOKENIZER),)),
        "transition_keys": (torch.int64, (num_transitions,)),
        "transition_states": (torch.int32, (num_transitions,)),
        "state_vad": (torch.int32, (num_states, 3)),
    }
    assert TABLES.keys() - expected.keys() == {"num_pieces", "max_word_tokens"}
    assert {key: (TABLES[key].dtype, tuple(TABLES[key].shape)) for key in expected} == expected
    assert TABLES["max_word_tokens"] == MAX_WORD_TOKENS == 8
    assert (TABLES["transition_keys"].diff() > 0).all()
    assert not TABLES["state_vad"][0].any()
    assert TABLES["token_pieces"].max() == TABLES["num_pieces"] - 1


def test_token_pieces_distinguish_known_pieces_unknown_pieces_and_other_tokens():
    pieces = dict(zip(TOKEN_IDS, TABLES["token_pieces"][list(TOKEN_IDS.values())].tolist(), strict=True))
    assert pieces[" fun"] == pieces["fun"] >= 0
    assert (pieces["Z"], pieces["."], pieces[" "], pieces["<emotion>"]) == (-2, -1, -1, -1)
    assert TABLES["token_starts_word"][ids_of(" fun", "fun", " ")].tolist() == [True, False, False]
    # No state is a dead end.
    sources = set((TABLES["transition_keys"] // TABLES["num_pieces"]).tolist())
    assert sources | set(TABLES["transition_states"].tolist()) == set(range(len(TABLES["state_vad"])))
    leaves = set(range(len(TABLES["state_vad"]))) - sources
    assert TABLES["state_vad"][list(leaves)].any(dim=1).all(), "a leaf has to be a word"


def test_tables_have_no_states_for_too_long_words_and_do_not_depend_on_the_order_of_the_entries():
    tables = VADLexicon({"zqzqzqzqz": HAPPY}, name="nine single letters").compile(TOKENIZER)
    assert len(tables["state_vad"]) == 1 and len(tables["transition_keys"]) == 0
    assert not read_tables(tables, ids_of(*"zqzqzqzqz")).any()
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
