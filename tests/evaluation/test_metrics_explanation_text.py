"""metrics/explanation_text against figures computed by hand and a plain longest common subsequence."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from metrics.explanation_text import explanation_text
from metrics.explanation_text.explanation_text import explanation_text_scores, longest_common_subsequences, words


def plain_lcs(left: list[str], right: list[str]) -> int:
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


SENTENCE = st.lists(st.sampled_from(["sea", "Sky,", "a", "the", "don't", "🙂", "other"]), max_size=9).map(" ".join)


@given(st.lists(SENTENCE, min_size=1, max_size=5), st.lists(SENTENCE, min_size=1, max_size=6))
def test_lcs_equals_the_plain_algorithm(texts, others):
    expected = [max(plain_lcs(words(text), words(other)) for other in others) for text in texts]
    assert longest_common_subsequences(texts, others).tolist() == expected


def test_lcs_of_long_texts_and_many_words():
    """rapidfuzz takes another code path above 64 words, and a byte cannot count more than 255."""
    numbers = range(400)
    text, other = (" ".join(f"word{n}" for n in order) for order in (numbers, [*reversed(numbers), *numbers[::2]]))
    assert longest_common_subsequences([text], [other]).tolist() == [plain_lcs(words(text), words(other))]


def test_lcs_does_not_depend_on_the_block_size(monkeypatch):
    texts = [f"the sea has wave {number} and {number % 7}" for number in range(50)] * 2
    others = [f"wave {number} has the sea" for number in range(0, 90, 3)]
    expected = longest_common_subsequences(texts, others).tolist()
    monkeypatch.setattr(explanation_text, "PAIRS", 100)
    assert longest_common_subsequences(texts, others).tolist() == expected


def test_unique_compares_strings_and_length_counts_words():
    """Three of the four differ; 3, 3, 3 and 2 words."""
    scores = explanation_text_scores(["The sea calms", "The sea calms", "the sea, calms!", "don't ... know"])
    assert scores == {"unique": 3 / 4, "mean_length": 11 / 4, "metaphor_share": 0}


@pytest.mark.parametrize(
    "phrase",
    "could be|appear to be|appears to be|remind me|reminds me|seems like|look like|looks like|is like|are like|"
    "think of|resembles|resembling".split("|"),
)
def test_every_phrase_of_a_metaphor_counts_in_any_case(phrase):
    texts = [f"it {phrase} a storm", f"IT {phrase.upper().replace(' ', '  ')} A STORM", f"it a{phrase}ly storm"]
    assert explanation_text_scores(texts)["metaphor_share"] == 2 / 3, "not inside other words"


def test_novelty_is_the_share_of_words_outside_the_common_subsequence():
    """LCS: 4 of 5 words ("looks like a storm"), 0 of 2, and 0 of 0 words, which counts as not new."""
    training = ["The sky looks like a storm.", "a calm sea"]
    scores = explanation_text_scores(["It looks like a storm!", "bright colours", ""], iter(training))
    assert scores["max_lcs"] == pytest.approx((4 + 0 + 0) / 3)
    assert scores["novelty"] == pytest.approx(1 - (4 / 5 + 0 + 1) / 3)
    assert explanation_text_scores(["a calm sea"], training)["novelty"] == 0


@pytest.mark.parametrize(
    ("predictions", "training", "message"),
    [([], None, "No explanation"), (["a", None], None, "Explanation 1"), (["a"], [], "No training explanation")],
)
def test_bad_input_is_refused(predictions, training, message):
    with pytest.raises(ValueError, match=message):
        explanation_text_scores(predictions, training)
