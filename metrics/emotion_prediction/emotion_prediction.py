"""Agreement of predicted emotions with the labels that several viewers gave to each painting.

    emotion_prediction_scores(["awe", None], [[0, 4, 1], [2, 2, 0]], ["amusement", "awe", "fear"])
    evaluate.load("metrics/emotion_prediction").compute(predictions=labels, references=counts, scores=scores)

Accuracy (ACC), macro-F1 and the confusion matrix use the paintings with a dominant label: one that more than half of
the viewers chose. Likelihood and calibration of the model's scores use all paintings.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from sklearn.metrics import confusion_matrix, f1_score


# ArtEmis' labels in the order of its counts.
EMOTIONS = ["amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness", "something else"]


def emotion_prediction_scores(
    predictions: Sequence[str | None],
    references: Sequence[Sequence[float]],
    emotions: Sequence[str] = EMOTIONS,
    scores: Sequence[Sequence[float]] | None = None,
    bins: int = 15,
) -> dict:
    """Computes accuracy, macro-F1 and confusion matrix of the labels, and likelihood and calibration of the scores.

    Args:
        predictions: a label per painting; None or an empty text if the model named none ("unparsed").
        references: `(paintings, labels)` counts of human annotations, in the order of `emotions`.
        emotions: names of the labels (default: the nine of ArtEmis).
        scores: `(paintings, labels)` probabilities of the labels (optional).
        bins: number of bins of the calibration error.

    Returns:
        accuracy: ACC (Sec. 5.1), the share of paintings with a dominant label whose prediction is that label. None
            if no painting has one.
        num_dominant: number of paintings with a dominant label.
        macro_f1: mean F1 = 2 TP / (2 TP + FP + FN) over the labels that occur as dominant label or as prediction. An
            unparsed prediction is a false negative. None if no painting has a dominant label.
        confusion_matrix: counts; a row per dominant label, a column per predicted label, a last column for unparsed.
        unparsed: share of unparsed predictions among all paintings.

        With `scores`:
        label_nll: mean cross-entropy of human label distribution and scores, in nats; scores are clipped at 1e-12.
        expected_calibration_error: in [0, 1] (Guo et al. 2017), the mean over paintings of |mean confidence - mean
            correctness| in their bin of confidence. A painting's confidence is its highest score, its correctness the
            share of annotations with that label. The bins (a, b] have equal width.

    Raises:
        ValueError: lengths or shapes differ, there are no paintings, a prediction is not a label, or a row does not
            hold counts or probabilities.
    """
    emotions = list(emotions)
    if not len(predictions):
        raise ValueError("No prediction to score.")
    shape = (len(predictions), len(emotions))
    references = _matrix("references", references, shape)
    truth = dominant_labels(references)
    unparsed = len(emotions)
    predicted = np.array([_label_id(index, label, emotions) for index, label in enumerate(predictions)])
    dominant = truth >= 0
    figures = {
        "accuracy": None,
        "num_dominant": int(dominant.sum()),
        "macro_f1": None,
        "confusion_matrix": np.zeros((unparsed, unparsed + 1), dtype=int).tolist(),
        "unparsed": float((predicted == unparsed).mean()),
    }
    if dominant.any():  # scikit-learn refuses empty input
        pair = truth[dominant], predicted[dominant]
        occurring = np.setdiff1d(pair, [unparsed])
        figures["accuracy"] = float((pair[0] == pair[1]).mean())
        figures["macro_f1"] = float(f1_score(*pair, labels=occurring, average="macro", zero_division=0))
        figures["confusion_matrix"] = confusion_matrix(*pair, labels=range(unparsed + 1))[:-1].tolist()
    if scores is not None:
        scores = _matrix("scores", scores, shape, probabilities=True)
        human = references / references.sum(axis=1, keepdims=True)
        figures["label_nll"] = float(-(human * np.log(np.maximum(scores, 1e-12))).sum(axis=1).mean())
        figures["expected_calibration_error"] = expected_calibration_error(scores, human, bins)
    return figures


def dominant_labels(counts: np.ndarray) -> np.ndarray:
    """Returns `(paintings,)` ids of the labels with more than half of a painting's annotations, -1 if none has."""
    return np.where(2 * counts.max(axis=1) > counts.sum(axis=1), counts.argmax(axis=1), -1)


def expected_calibration_error(scores: np.ndarray, human: np.ndarray, bins: int = 15) -> float:
    """See `emotion_prediction_scores`; both arguments are `(paintings, labels)` distributions."""
    confidence = scores.max(axis=1)
    correctness = np.take_along_axis(human, scores.argmax(axis=1)[:, None], axis=1)[:, 0]
    index = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1).astype(np.int64)
    # |mean confidence - mean correctness| of a bin, times its size.
    gaps = np.bincount(index, weights=confidence - correctness, minlength=bins)
    return float(np.abs(gaps).sum() / len(scores))


def _label_id(index: int, label: str | None, emotions: list[str]) -> int:
    if label and label not in emotions:
        raise ValueError(f"Prediction {index} is {label!r}. Use one of {emotions}, or None for no label.")
    return emotions.index(label) if label else len(emotions)


def _matrix(name: str, rows, shape: tuple[int, int], probabilities: bool = False) -> np.ndarray:
    if len(rows) != shape[0]:
        raise ValueError(f"`{name}` has {len(rows)} rows for {shape[0]} predictions.")
    needed = "probabilities with sum 1" if probabilities else "counts, not all 0"
    for index, row in enumerate(rows):
        total = sum(map(float, row))
        # The sum of half-precision probabilities may differ from 1 by up to 1e-3.
        good = abs(total - 1) <= 1e-3 if probabilities else 0 < total < np.inf
        if len(row) != shape[1] or not good or min(row) < 0:
            raise ValueError(f"Row {index} of `{name}` must hold {shape[1]} {needed}; found {list(row)}.")
    return np.asarray(rows, dtype=np.float64)


class EmotionPrediction(evaluate.Metric):
    """`emotion_prediction_scores` as a module of `evaluate`. Pass `scores` to `compute`, not to `add`."""

    def _info(self):
        inputs = {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("float64"))}
        return evaluate.MetricInfo(
            description=__doc__,
            inputs_description=emotion_prediction_scores.__doc__,
            citation="Achlioptas et al., ArtEmis: Affective Language for Visual Art, CVPR 2021",
            features=datasets.Features(inputs),
            reference_urls=["https://www.artemisdataset.org"],
        )

    def _enforce_nested_string_type(self, schema, obj):
        # The base class refuses None as a string, but an unparsed prediction is None.
        if obj is not None:
            super()._enforce_nested_string_type(schema, obj)

    def _compute(self, predictions, references, **options):
        return emotion_prediction_scores(predictions, references, **options)
