"""The cleaning of utterances: each rule, the words that stay, and that it can be repeated."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processing.text_cleaning import clean_texts, spelling_corrector, split_tokens


PIECES = [
    *"abst'\"`’.,-!()& É\xa0",
    "n't",
    "'s",
    "'ll",
    "''",
    "i'm",
    "it",
    "don",
    "can",
    "not",
    "gon",
    "na",
    "paintng",
]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The Sea  is\tVAST", "the sea is vast"),
        ("a 'king' in 'red'", "a king in red"),
        ("it's what who's there's that's let's he's", "it is what who is there is that is let us he is"),
        ("i don't, isn't, can't, won't, ain't", "i do not is not can not will not is not"),
        ("i'm, you're, we've, they'll, he'd, would've", "i am you are we have they will he had would have"),
        ("don’t say “so”", "do not say `` so ''"),
        ("red.blue?green!one,two:three;four/five\\six-seven~", "red blue green one two three four five six seven"),
        ("*a_b=c[d]e–f—g{h}i$j^k@l|m%n#o<p>", "a b c d e f g h i j k l m n o p"),
        ("the man's hat, the outlet's sign", "the man 's hat the outlet 's sign"),
        ('("so sad") & calm', "( `` so sad '' ) & calm"),
        ("'so sad'", "' so sad '"),
        ("the artists' gonna wanna cannot", "the artists ' gon na wan na can not"),
        ("... -- !", ""),
    ],
)
def test_case_contractions_punctuation_and_tokens(text, expected):
    assert " ".join(split_tokens(text)) == expected
    assert clean_texts([text]) == [expected]


def test_a_misspelled_token_becomes_the_most_frequent_word_at_distance_one():
    wrong, right = ["peacful", "paintng", "teh-beatiful", "wonderfull"], ["peaceful", "painting", "teh beautiful"]
    assert clean_texts(wrong) == [*right, "wonderful"]
    assert clean_texts(["xqzvkwp"]) == ["xqzvkwp"], "there is no suggestion"


@pytest.mark.parametrize(
    "kind", ["colors cozy neighborhood", "gogh monet buddha", "dont isnt", "tv im oh", "19th café"]
)
def test_known_words_short_tokens_and_tokens_with_other_signs_stay(kind):
    assert clean_texts([kind]) == [kind]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=2), max_size=9).map("".join))
def test_cleaning_twice_equals_cleaning_once(text):
    once = clean_texts([text])
    assert clean_texts(once) == once


def test_every_text_is_cleaned_on_its_own():
    texts = ["peacful peacful peacful", "A Peacful 'scene'."]
    assert clean_texts(texts) == [*clean_texts(texts[:1]), *clean_texts(texts[1:])]


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "symspellpy", None)
    spelling_corrector.cache_clear()
    with pytest.raises(ValueError, match=r"^--clean_text needs symspellpy: pip install -e '\.\[clean\]'$"):
        clean_texts(["so sad"])
    monkeypatch.undo()
    assert clean_texts(["so sad"]) == ["so sad"]
