# Licensed under the Apache License, Version 2.0; see LICENSE.
"""EA: does an explanation of a painting speak of the emotion that most people felt?

    emotional_alignment_scores(explanations, histograms, emotions, "outputs/emotion-classifier")
    evaluate.load("metrics/emotional_alignment").compute(predictions=..., references=..., classifier=...)

A text-to-emotion classifier, the judge, reads each explanation. Its figure depends on how good it is, so every result
carries the judge's own accuracy on held-out human explanations.
"""

import json
import warnings
from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import cached_file


# The labels of ArtEmis in the order of its histograms.
EMOTIONS = ["amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness", "something else"]
MAX_LENGTH = 512


def emotional_alignment_scores(
    predictions: Sequence[str | None],
    histograms: Sequence[Sequence[float]],
    emotions: Sequence[str] = EMOTIONS,
    classifier: str | None = None,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    per_image: bool = False,
) -> dict:
    """The share of explanations that the judge assigns to the painting's dominant emotion (Achlioptas et al. 2021).

    Only paintings count one of whose labels has more than half of the annotations. An empty explanation is wrong.

    Args:
        predictions: an explanation per painting.
        histograms: `(paintings, labels)` human annotations per label, in the order of `emotions`.
        emotions: names of the labels.
        classifier: folder or Hub name of a sequence classification checkpoint of transformers, with tokenizer, whose
            `config.id2label` names the same labels in any order. `judge.json` in it says how good the judge is:
            {"accuracy": ...} on held-out human explanations.
        batch_size: explanations per forward pass.
        device: where the judge runs; by default the GPU if there is one.
        per_image: add "judged_emotions", the judge's label of each explanation (None where it is empty).

    Returns:
        emotional_alignment in [0, 1], None if no painting has a dominant label; num_dominant, how many have one;
        judge_accuracy, None (and a warning) where the checkpoint does not say; judge, its name as given.

    Raises:
        ValueError: no judge, other labels than the judge's, lengths or shapes that differ, no painting, a row of
            `histograms` that holds no counts.
        OSError: there is no such checkpoint.
    """
    emotions = list(emotions)
    if classifier is None:
        raise ValueError("`classifier` must name the judge: the folder or Hub name of a text-to-emotion classifier.")
    truth = _dominant_labels(histograms, len(predictions), emotions)
    judge = str(classifier)
    model = AutoModelForSequenceClassification.from_pretrained(judge, dtype=torch.float32)
    label_ids = _label_ids(model.config.id2label, emotions, judge)

    read = [
        index
        for index, text in enumerate(predictions)
        if text is not None and text.strip() and (per_image or truth[index] >= 0)
    ]
    judged = np.full(len(predictions), -1)
    if read:
        tokenizer = AutoTokenizer.from_pretrained(judge)
        texts = [predictions[index] for index in read]
        judged[read] = label_ids[judge_texts(texts, model, tokenizer, batch_size=batch_size, device=device)]
    dominant = truth >= 0
    scores = {
        "emotional_alignment": float((judged == truth)[dominant].mean()) if dominant.any() else None,
        "num_dominant": int(dominant.sum()),
        "judge_accuracy": judge_accuracy(judge),
        "judge": judge,
    }
    if per_image:
        scores["judged_emotions"] = [emotions[label] if label >= 0 else None for label in judged]
    return scores


@torch.no_grad()
def judge_texts(
    texts: Sequence[str], model, tokenizer, *, batch_size: int = 64, device: str | torch.device | None = None
) -> np.ndarray:
    """`(texts,)` class ids with the highest logit. Texts are cut at the model's longest input (at most 512 tokens)."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = model.to(device).eval()
    limits = [MAX_LENGTH, tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    max_length = min(limit for limit in limits if limit)
    # Longest first: hardly any padding, and a batch that does not fit into memory fails at once.
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    labels = np.empty(len(texts), dtype=np.int64)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer(
            [texts[row] for row in rows],
            padding=True,
            truncation=True,
            max_length=max_length,
            split_special_tokens=True,  # "[SEP]" written out is text
            return_tensors="pt",
        )
        labels[rows] = model(**batch.to(device)).logits.argmax(dim=-1).cpu().numpy()
    return labels


def judge_accuracy(judge: str) -> float | None:
    """The accuracy in the checkpoint's `judge.json`; None, with a warning, where there is none."""
    path = cached_file(
        judge,
        "judge.json",
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    accuracy = None
    if path is not None:
        with open(path, encoding="utf-8") as file:
            accuracy = json.load(file).get("accuracy")
    if accuracy is None:
        warnings.warn(
            f"The accuracy of the judge {judge!r} is unknown: it has no judge.json with an accuracy. How far EA can "
            "be trusted depends on it.",
            stacklevel=3,
        )
        return None
    return float(accuracy)


def _label_ids(id2label: dict[int, str], emotions: list[str], judge: str) -> np.ndarray:
    """The judge's class id -> index in `emotions`."""
    names = [id2label[index] for index in sorted(id2label)]
    if sorted(names) != sorted(emotions):
        raise ValueError(f"The judge {judge!r} knows the labels {names}, the annotations have {emotions}.")
    return np.array([emotions.index(name) for name in names])


def _dominant_labels(histograms, paintings: int, emotions: list[str]) -> np.ndarray:
    """`(paintings,)` ids of the labels with more than half of a painting's annotations, -1 where there is none."""
    if not paintings:
        raise ValueError("No explanation to score.")
    if len(histograms) != paintings:
        raise ValueError(f"{len(histograms)} histograms for {paintings} explanations.")
    for index, row in enumerate(histograms):
        if len(row) != len(emotions):
            raise ValueError(f"Row {index} of `histograms` has {len(row)} entries for {len(emotions)} labels.")
    histograms = np.asarray(histograms, dtype=np.float64)
    bad = ~(np.isfinite(histograms) & (histograms >= 0)).all(axis=1) | (histograms.sum(axis=1) <= 0)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"Row {row} of `histograms` must hold counts, and at least one: {histograms[row].tolist()}.")
    return np.where(2 * histograms.max(axis=1) > histograms.sum(axis=1), histograms.argmax(axis=1), -1)


_DESCRIPTION = """Emotional alignment (EA): the share of generated explanations that a text-to-emotion classifier
assigns to the emotion that more than half of the painting's annotators named."""
_INPUTS = """
Args:
    predictions: an explanation per painting.
    references: human annotations per emotion, a list of counts per painting.
    classifier: folder or Hub name of the sequence classification checkpoint that judges.
    emotions: names of the emotions in the order of the counts (default: the nine of ArtEmis).
    batch_size, device, per_image: see the module's card.
Returns:
    emotional_alignment, num_dominant, judge_accuracy, judge; with per_image also judged_emotions.
"""
_CITATION = """@inproceedings{achlioptas2021artemis,
  title={{ArtEmis}: Affective Language for Visual Art},
  author={Achlioptas, Panos and Ovsjanikov, Maks and Haydarov, Kilichbek and Elhoseiny, Mohamed and Guibas, Leonidas},
  booktitle={CVPR},
  year={2021}
}"""


class EmotionalAlignment(evaluate.Metric):
    """`emotional_alignment_scores` as a module of `evaluate`."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("float64")),
                }
            ),
            reference_urls=["https://www.artemisdataset.org"],
        )

    def _enforce_nested_string_type(self, schema, obj):
        # The base class takes no None for a string, but a model may have nothing to say.
        if obj is not None:
            super()._enforce_nested_string_type(schema, obj)

    def _compute(self, predictions, references, classifier=None, emotions=EMOTIONS, **kwargs):
        return emotional_alignment_scores(predictions, references, emotions, classifier, **kwargs)
