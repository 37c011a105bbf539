"""metrics/emotion_prediction and metrics/emotional_alignment against figures computed by hand."""

import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from metrics.emotion_prediction import emotion_prediction
from metrics.emotion_prediction.emotion_prediction import emotion_prediction_scores
from metrics.emotional_alignment import emotional_alignment
from metrics.emotional_alignment.emotional_alignment import emotional_alignment_scores
from processing.artemis import EMOTIONS, dominant_emotion
from processing.tiny_tokenizer import train_tokenizer


LABELS = ["amusement", "awe", "fear"]
# Dominant label: awe, awe, none (a tie), none (exactly half), fear, amusement.
HISTOGRAMS = [[0, 4, 1], [1, 3, 1], [2, 2, 0], [3, 2, 1], [0, 0, 1], [5, 0, 0]]


def test_acc_counts_paintings_with_a_dominant_label_and_unparsed_as_wrong():
    """Right: 0 and 4 of the four paintings 0, 1, 4, 5. Painting 1 is unparsed, 5 is wrong; 2 and 3 do not count."""
    scores = emotion_prediction_scores(["awe", None, "amusement", "amusement", "fear", "awe"], HISTOGRAMS, LABELS)
    assert scores["accuracy"] == 2 / 4
    assert scores["num_dominant"] == 4
    assert scores["unparsed"] == 1 / 6
    assert scores["confusion_matrix"] == [[0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]]
    # F1: amusement 0 (missed once), awe 2 / (2 + 1 false positive + 1 unparsed), fear 1.
    assert scores["macro_f1"] == pytest.approx((0 + 2 / 4 + 1) / 3)


def test_without_a_dominant_label_accuracy_is_none():
    scores = emotion_prediction_scores(["awe", ""], HISTOGRAMS[2:4], LABELS)
    nothing = [[0, 0, 0, 0]] * 3
    expected = {"accuracy": None, "num_dominant": 0, "macro_f1": None, "confusion_matrix": nothing, "unparsed": 1 / 2}
    assert scores == expected


def test_label_nll_is_the_cross_entropy_in_nats():
    """First painting: 4/5 of the viewers chose a label of score 1/2, 1/5 one of 1/4. Second: all chose one of 0."""
    scores = [[0.25, 0.5, 0.25], [0, 0.5, 0.5]]
    result = emotion_prediction_scores(["awe", "awe"], [[0, 4, 1], [5, 0, 0]], LABELS, scores)
    first = -(4 / 5 * math.log(1 / 2) + 1 / 5 * math.log(1 / 4))
    assert result["label_nll"] == pytest.approx((first - math.log(1e-12)) / 2)


def test_calibration_error_compares_confidence_with_the_share_of_people():
    """Two bins. (1/2, 1]: confidences 0.9 and 0.7, mean 0.8, of people 4/5 and 1/5, mean 0.5: gap 0.3 for two
    paintings. [0, 1/2]: confidence 0.5 (the edge belongs to the lower bin), people 3/4: gap 0.25, the other way."""
    scores = [[0.05, 0.9, 0.05], [0.7, 0.2, 0.1], [0.5, 0.3, 0.2]]
    histograms = [[0, 4, 1], [1, 3, 1], [3, 1, 0]]
    two = emotion_prediction_scores(["awe"] * 3, histograms, LABELS, scores, bins=2)
    assert two["expected_calibration_error"] == pytest.approx((2 * 0.3 + 0.25) / 3)
    # In one bin the gaps cancel in part.
    one = emotion_prediction_scores(["awe"] * 3, histograms, LABELS, scores, bins=1)
    assert one["expected_calibration_error"] == pytest.approx((2 * 0.3 - 0.25) / 3)


def test_the_human_distribution_is_calibrated():
    human = np.array(HISTOGRAMS) / np.sum(HISTOGRAMS, axis=1, keepdims=True)
    result = emotion_prediction_scores([None] * 6, HISTOGRAMS, LABELS, human)
    assert result["expected_calibration_error"] == pytest.approx(0)
    assert result["accuracy"] == 0


@given(
    st.lists(
        st.tuples(st.sampled_from([*LABELS, None]), st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(any)),
        min_size=1,
        max_size=12,
    )
)
def test_figures_equal_plain_counting(rows):
    predictions, histograms = zip(*rows, strict=True)
    scores = emotion_prediction_scores(predictions, histograms, LABELS)
    pairs = [(dominant_emotion(histogram), label) for label, histogram in rows]
    pairs = [(LABELS[truth], label or "unparsed") for truth, label in pairs if truth is not None]
    assert scores["num_dominant"] == len(pairs)
    assert np.sum(scores["confusion_matrix"]) == len(pairs)
    if pairs:
        f1 = []
        for name in {label for pair in pairs for label in pair} - {"unparsed"}:
            hits, occurrences = pairs.count((name, name)), sum(pair.count(name) for pair in pairs)
            f1.append(2 * hits / occurrences)
        assert scores["macro_f1"] == pytest.approx(np.mean(f1))
        assert scores["accuracy"] == pytest.approx(np.mean([truth == label for truth, label in pairs]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": []}, "No prediction"),
        ({"predictions": ["awe"]}, "2 rows for 1"),
        ({"predictions": ["awe", "bliss"]}, "Prediction 1 is 'bliss'"),
        ({"references": [[1, 0, 0], [1, 0]]}, "Row 1 of `references` must hold 3 counts"),
        ({"references": [[1, 0, 0], [0, 0, 0]]}, "Row 1 of `references`"),
        ({"references": [[1, 0, 0], [2, -1, 0]]}, "Row 1 of `references`"),
        ({"references": [[1, 0, 0], [2, math.nan, 0]]}, "Row 1 of `references`"),
        ({"scores": [[1, 0, 0]]}, "`scores` has 1 rows"),
        ({"scores": [[1, 0, 0], [1, 0]]}, "Row 1 of `scores` must hold 3 probabilities"),
        ({"scores": [[1, 0, 0], [0.5, math.nan, 0.5]]}, "Row 1 of `scores`"),
        ({"scores": [[1, 0, 0], [0.5, 0.4, 0]]}, "Row 1 of `scores`"),
        ({"scores": [[1, 0, 0], [1.5, -0.5, 0]]}, "Row 1 of `scores`"),
    ],
)
def test_bad_predictions_references_and_scores_are_refused_by_row(change, message):
    good = {"predictions": ["awe", "fear"], "references": [[1, 0, 0], [0, 1, 0]], "emotions": LABELS}
    with pytest.raises(ValueError, match=message):
        emotion_prediction_scores(**good | change)


def test_the_default_labels_are_those_of_the_data():
    assert emotion_prediction.EMOTIONS == EMOTIONS == emotional_alignment.EMOTIONS


SENTENCES = {"amusement": "funny clowns make me laugh", "awe": "a mighty mountain", "fear": "the dark wolf bites"}


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A tiny BERT trained on the three sentences, with its labels in another order than the annotations'."""
    trained = train_tokenizer(list(SENTENCES.values()), LABELS, vocab_size=300)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained.backend_tokenizer, pad_token="<pad>")
    names = ["fear", "amusement", "awe"]
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 40, "pad_token_id": tokenizer.pad_token_id}
    model = BertForSequenceClassification(BertConfig(**sizes, **dropout, **text, id2label=dict(enumerate(names))))
    batch = tokenizer(list(SENTENCES.values()), padding=True, return_tensors="pt", return_token_type_ids=False)
    labels = torch.tensor([names.index(name) for name in SENTENCES])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    folder = tmp_path_factory.mktemp("judge")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "judge.json").write_text(json.dumps({"accuracy": 0.75, "rows": 3, "model": "tiny"}))
    return str(folder)


def test_ea_is_the_share_of_explanations_judged_as_the_dominant_emotion(judge):
    """Judged: amusement, awe, awe, awe, fear, nothing. Dominant: awe, awe, -, -, fear, amusement: 2 of 4."""
    explanations = [SENTENCES[name] for name in ("amusement", "awe", "awe", "awe", "fear")] + [" "]
    scores = emotional_alignment_scores(explanations, HISTOGRAMS, LABELS, judge, batch_size=2, per_image=True)
    assert scores == {
        "emotional_alignment": 2 / 4,
        "num_dominant": 4,
        "judge_accuracy": 0.75,
        "judge_model": "tiny",
        "judge_text": "raw",
        "judge": judge,
        "judged_emotions": ["amusement", "awe", "awe", "awe", "fear", None],
    }
    # Neither the batches nor the explanations that do not count change the result.
    again = emotional_alignment_scores(explanations, HISTOGRAMS, LABELS, judge)
    assert again == {name: value for name, value in scores.items() if name != "judged_emotions"}


def test_labels_are_matched_by_name(judge):
    histograms, emotions = np.roll(HISTOGRAMS, 1, axis=1).tolist(), np.roll(LABELS, 1).tolist()
    scores = emotional_alignment_scores([SENTENCES["awe"]] * 6, histograms, emotions, judge, per_image=True)
    assert scores["emotional_alignment"] == 2 / 4 and scores["judged_emotions"] == ["awe"] * 6


def test_a_judge_of_unknown_accuracy_gives_one_warning(judge, tmp_path):
    folder = tmp_path / "unknown"
    BertForSequenceClassification.from_pretrained(judge).save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(judge).save_pretrained(folder)
    with pytest.warns(UserWarning, match="accuracy of the judge") as warned:
        scores = emotional_alignment_scores([SENTENCES["awe"]], [[0, 1, 0]], LABELS, str(folder))
    assert len(warned) == 1 and scores["judge_accuracy"] is None and scores["emotional_alignment"] == 1


def test_long_explanations_are_cut_at_the_longest_input_of_the_judge(judge):
    text = SENTENCES["fear"] + " the" * 500
    scores = emotional_alignment_scores([text, "awe"], [[0, 0, 1], [0, 1, 0]], LABELS, judge, per_image=True)
    assert len(scores["judged_emotions"]) == 2


@pytest.mark.parametrize(
    ("explanations", "histograms", "alignment", "num_dominant"),
    [(["", None, "\n"], HISTOGRAMS[:3], 0, 2), (["a", "b"], HISTOGRAMS[2:4], None, 0)],
    ids=["empty explanations are wrong", "no painting has a dominant emotion"],
)
def test_ea_of_special_cases(explanations, histograms, alignment, num_dominant, judge):
    scores = emotional_alignment_scores(explanations, histograms, LABELS, judge)
    assert (scores["emotional_alignment"], scores["num_dominant"]) == (alignment, num_dominant)


@pytest.mark.parametrize(
    ("predictions", "histograms", "emotions", "message"),
    [
        ([], [], LABELS, "No explanation"),
        (["a"], HISTOGRAMS[:2], LABELS, "2 rows for 1"),
        (["a", "b"], [[1, 0, 0], [1, 0]], LABELS, "Row 1 of `references`"),
        (["a", "b"], [[1, 0, 0], [0, 0, 0]], LABELS, "Row 1 of `references`"),
        (["a"] * 6, HISTOGRAMS, ["amusement", "awe", "joy"], r"\['fear', .*\]; .*'joy'\]"),
    ],
)
def test_bad_explanations_references_and_judges_are_refused(predictions, histograms, emotions, message, judge):
    with pytest.raises(ValueError, match=message):
        emotional_alignment_scores(predictions, histograms, emotions, judge)
    with pytest.raises(ValueError, match="classifier"):
        emotional_alignment_scores(predictions, histograms, emotions)
