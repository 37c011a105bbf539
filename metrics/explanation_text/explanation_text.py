"""Variety, length, metaphors and novelty of generated explanations. No references are needed.

    explanation_text_scores(["it looks like a storm"], training_explanations=["the sky looks like a storm"])
    evaluate.load("metrics/explanation_text").compute(predictions=..., training_explanations=...)

A model that repeats a few safe sentences has a low `unique`; one that recites its training text, a low `novelty`.
"""

import re
from collections.abc import Iterable, Sequence

import datasets
import evaluate
import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import LCSseq


# Phrases that mark a simile or metaphor (Achlioptas et al. 2021).
METAPHOR = re.compile(
    r"\b(?:could be|appears? to be|reminds? me|seems like|looks? like|(?:is|are) like|think of|resembl(?:es|ing))\b"
)
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
# Pairs of texts compared at once; their lengths take 64 MiB.
PAIRS = 2**25


def explanation_text_scores(
    predictions: Sequence[str], training_explanations: Iterable[str] | None = None
) -> dict[str, float]:
    """Computes variety, length and metaphors of explanations, and their overlap with the training text.

    A word is a run of letters and digits in lower case, with apostrophes inside: "Don't," is "don't".

    Args:
        predictions: one explanation per image; may be empty.
        training_explanations: all explanations that the model was trained on (optional).

    Returns:
        unique: number of distinct explanations / number of explanations, compared character by character.
        mean_length: words per explanation.
        metaphor_share: share of explanations with a phrase that ArtEmis counts as simile or metaphor (`METAPHOR`).

        With training text:
        max_lcs: mean length, in words, of the longest common subsequence with any training explanation.
        novelty: 1 - mean of (that length / the explanation's length), in [0, 1]. An explanation without words adds 0.

    Raises:
        ValueError: there are no explanations or no training explanations, or an explanation is not text.
    """
    if not len(predictions):
        raise ValueError("No explanation to score.")
    if None in predictions:
        raise ValueError(f"Explanation {list(predictions).index(None)} must be text, not None.")
    lengths = np.array([len(words(text)) for text in predictions])
    spaced = [" ".join(text.lower().split()) for text in predictions]
    scores = {
        "unique": len(set(predictions)) / len(predictions),
        "mean_length": float(lengths.mean()),
        "metaphor_share": float(np.mean([METAPHOR.search(text) is not None for text in spaced])),
    }
    if training_explanations is not None:
        lcs = longest_common_subsequences(predictions, training_explanations)
        scores["max_lcs"] = float(lcs.mean())
        scores["novelty"] = float(1 - np.mean(np.where(lengths > 0, lcs / np.maximum(lengths, 1), 1.0)))
    return scores


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def longest_common_subsequences(texts: Sequence[str], others: Iterable[str]) -> np.ndarray:
    """Returns `(texts,)` lengths, in words, of the longest common subsequence of each text with any of `others`."""
    # One character per word, because rapidfuzz compares 64 characters in one instruction. 0x10000 is above the
    # surrogates, which are not characters.
    codes: dict[str, str] = {}
    coded = ["".join(codes.setdefault(word, chr(0x10000 + len(codes))) for word in words(text)) for text in texts]
    # Words that no text has cannot be in a common subsequence; without them many of the others become equal.
    others = sorted({"".join(codes.get(word, "") for word in words(other)) for other in others})
    if not others:
        raise ValueError("No training explanation to compare with.")
    distinct, rows = np.unique(coded, return_inverse=True)
    longest = []
    block = max(1, PAIRS // len(others))
    for start in range(0, len(distinct), block):
        part = distinct[start : start + block].tolist()
        longest += process.cdist(part, others, scorer=LCSseq.similarity, dtype=np.uint16).max(axis=1).tolist()
    return np.array(longest, dtype=np.int64)[rows]


class ExplanationText(evaluate.Metric):
    """`explanation_text_scores` as a module of `evaluate`."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            inputs_description=explanation_text_scores.__doc__,
            citation="Achlioptas et al., ArtEmis: Affective Language for Visual Art, CVPR 2021",
            features=datasets.Features({"predictions": datasets.Value("string")}),
            reference_urls=["https://www.artemisdataset.org"],
        )

    def _compute(self, predictions, training_explanations=None):
        return explanation_text_scores(predictions, training_explanations)
