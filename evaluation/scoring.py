"""Computes all figures of a system with the metrics of `metrics/`."""

import hashlib
import logging
import warnings
from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from transformers import AutoConfig

import evaluation.lstm_judge  # noqa: F401 (makes AutoConfig and the metric know LSTM judges)
from metrics.emotion_prediction.emotion_prediction import emotion_prediction_scores
from metrics.emotional_alignment.emotional_alignment import emotional_alignment_scores, read_judge_file
from processing.images import nfc


logger = logging.getLogger(__name__)


def score(
    predictions: Sequence[dict],
    dataset: Dataset,
    *,
    train: Dataset | None = None,
    judge: str | None = None,
    captions: bool = True,
    novelty: bool = True,
    device=None,
) -> tuple[dict, dict]:
    """Computes all figures of one system.

    Args:
        predictions: one per painting, in the data set's order: `painting`, `emotion` (a label, or `None` if unparsed;
            missing in all predictions if the system does not name emotions), `explanation`, and optionally
            `emotion_scores`, a list of probabilities.
        dataset: paintings with `emotions`, `explanations`, `emotion_histogram`; images are not needed.
        train: training paintings, for novelty and for the likelihood of the training prior.
        judge: text-to-emotion checkpoint for the emotional alignment (default: no emotional alignment).
        captions: compute BLEU, METEOR and ROUGE-L, which are slow.
        novelty: compute the novelty, which is slow; needs `train` and `captions`.
        device: device of the judge (default: the GPU if there is one).

    Returns:
        The figures, with `None` for those that need missing emotions or Java, and the scores per painting for paired
        tests: `painting`, `bleu_statistics`, `meteor`, `rouge_l`, `label_nll`.
    """
    labels = dataset.features["emotions"].feature.names
    histograms = dataset["emotion_histogram"][:]
    explanations = [prediction["explanation"] for prediction in predictions]
    per_painting = {"painting": [prediction["painting"] for prediction in predictions]}
    distributions = [prediction.get("emotion_scores") for prediction in predictions]
    distributions = None if None in distributions else distributions
    emotions = [prediction.get("emotion") for prediction in predictions]
    figures = {"num_paintings": len(predictions)}
    figures |= emotion_prediction_scores(emotions, histograms, labels, scores=distributions)
    if not any("emotion" in prediction for prediction in predictions):
        # A system that does not name emotions has no accuracy.
        figures |= dict.fromkeys(("accuracy", "macro_f1", "confusion_matrix", "unparsed"))
    human = label_distributions(histograms)
    if distributions is not None:
        per_painting["label_nll"] = _label_nll(human, np.asarray(distributions)).tolist()
    if train is not None:
        # A guess without the image: the mean label distribution of the training paintings.
        prior = label_distributions(train["emotion_histogram"][:]).mean(axis=0)
        figures["prior_label_nll"] = float(_label_nll(human, prior).mean())
    if captions:
        figures |= _caption_figures(explanations, dataset["explanations"][:], per_painting)
    if judge is not None:
        figures |= emotional_alignment_scores(explanations, histograms, labels, judge, device=device)
    figures |= _text_figures(explanations, train if captions and novelty else None)
    return figures, per_painting


def bleu_4(predictions: Sequence[dict], dataset: Dataset) -> float:
    """Returns corpus BLEU-4 of the explanations. Raises `ImportError` without pycocoevalcap."""
    from metrics.coco_caption.coco_caption import coco_caption_scores

    explanations = [prediction["explanation"] for prediction in predictions]
    return coco_caption_scores(explanations, dataset["explanations"][:], meteor=False)["bleu_4"]


def painting_digest(name: str) -> str:
    """Returns twelve hexadecimal digits that identify a painting's name in any Unicode normal form."""
    return hashlib.sha256(nfc(name).encode()).hexdigest()[:12]


def check_judge(judge: str, labels: Sequence[str], paintings: Sequence[str], text: str) -> None:
    """Warns if the judge was trained on explanations of these paintings; ValueError if it has other labels, or was
    trained on another form of the text than `text`, the data's (`text_form`)."""
    known = list(AutoConfig.from_pretrained(judge).id2label.values())
    if sorted(known) != sorted(labels):
        raise ValueError(f"the judge {judge} has the labels {', '.join(known)}; the data has {', '.join(labels)}.")
    record = read_judge_file(judge, "judge.json")
    if record is not None and record["text"] != text:
        remedies = {"cleaned": "--clean_text true", "raw": "neither --clean_text nor --text_column"}
        remedy = f"Pass {remedies.get(record['text'], '--text_column ' + record['text'])}, or train another judge."
        raise ValueError(f"the judge {judge} was trained on {record['text']} text; the data has {text} text. {remedy}")
    trained_on = set(read_judge_file(judge, "train_paintings.json") or ())
    shared = sum(painting_digest(painting) in trained_on for painting in paintings)
    if shared:
        part = f"{shared} of the {len(paintings)} paintings"
        logger.warning("The judge %s was trained on explanations of %s, so EA is too high.", judge, part)


def _caption_figures(explanations: list[str], references: list[list[str]], per_painting: dict) -> dict:
    try:
        from metrics.coco_caption.coco_caption import coco_caption_scores
    except ImportError as error:
        warnings.warn(f"BLEU, METEOR and ROUGE-L are left out: {error}. pip install -e '.[eval]'", stacklevel=2)
        return dict.fromkeys(("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l"))
    scores = coco_caption_scores(explanations, references, per_image=True)
    per_painting |= scores.pop("per_image")
    return scores


def _text_figures(explanations: list[str], train: Dataset | None) -> dict:
    try:
        from metrics.explanation_text.explanation_text import explanation_text_scores
    except ImportError as error:
        warnings.warn(f"Length, metaphors and novelty are left out: {error}. pip install -e '.[eval]'", stacklevel=2)
        return {"unique": len(set(explanations)) / len(explanations)}
    training = None if train is None else [text for texts in train["explanations"][:] for text in texts]
    return explanation_text_scores(explanations, training)


def label_distributions(histograms: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns `(paintings, labels)` shares of the human labels."""
    counts = np.asarray(histograms, dtype=np.float64)
    return counts / counts.sum(axis=1, keepdims=True)


def _label_nll(human: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return -(human * np.log(np.maximum(predicted, 1e-12))).sum(axis=-1)


def average(per_seed: Sequence[dict]) -> tuple[dict, dict]:
    """Returns mean and standard deviation (n - 1) over seeds of each figure; the mean is `None` if a seed lacks it."""
    means, deviations = {}, {}
    for name, first in per_seed[0].items():
        values = [figures[name] for figures in per_seed]
        if all(value == first for value in values):
            means[name] = first
            if isinstance(first, float):
                deviations[name] = 0.0
        elif None in values:
            means[name] = None
        elif isinstance(first, list):  # the confusion matrix
            means[name] = np.mean(values, axis=0).tolist()
        else:
            means[name], deviations[name] = float(np.mean(values)), float(np.std(values, ddof=1))
    return means, deviations
