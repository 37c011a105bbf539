"""Emotional alignment (EA): does an explanation express the emotion that most viewers felt?

    emotional_alignment_scores(explanations, counts, emotions, "outputs/judge")
    evaluate.load("metrics/emotional_alignment").compute(predictions=..., references=..., classifier=...)

A text-to-emotion classifier, the judge, reads each explanation. EA depends on the quality of the judge, so every
result includes the judge's accuracy on held-out human explanations.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import datasets
import evaluate
import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedConfig
from transformers.utils import cached_file


# ArtEmis' labels in the order of its counts.
EMOTIONS = ["amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness", "something else"]
MAX_LENGTH = 512


def emotional_alignment_scores(
    predictions: Sequence[str | None],
    references: Sequence[Sequence[float]],
    emotions: Sequence[str] = EMOTIONS,
    classifier: str | None = None,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    per_image: bool = False,
) -> dict:
    """Computes the share of explanations that the judge assigns to the dominant emotion (Achlioptas et al. 2021).

    Only paintings with a dominant emotion count: more than half of the annotations. Empty explanations count as wrong.

    Args:
        predictions: an explanation per painting.
        references: `(paintings, labels)` counts of human annotations, in the order of `emotions`.
        emotions: names of the labels (default: the nine of ArtEmis).
        classifier: folder or Hub name of the judge, a sequence classification checkpoint of transformers with the same
            labels in any order. Facts about the judge are read from its `judge.json`: {"accuracy": ..., "model": ...,
            "text": ...}.
        batch_size: explanations per forward pass.
        device: where the judge runs (default: the GPU if there is one).
        per_image: add "judged_emotions", the judge's label of each explanation, None for an empty one.

    Returns:
        emotional_alignment in [0, 1], None if no painting has a dominant emotion; num_dominant, the number of
        paintings that have one; judge_accuracy, None (with a warning) if it is unknown; judge_model, the kind of model
        ("lstm", "minilm", ...), and judge_text, the form of the text that it was trained on ("raw", "cleaned"), None
        if unknown; judge, `classifier` as given.

    Raises:
        ValueError: no judge, a judge of unknown type or of other labels, lengths or shapes differ, there are no
            paintings, or a row does not hold counts.
        OSError: the checkpoint does not exist.
    """
    emotions = list(emotions)
    if classifier is None:
        raise ValueError("`classifier` must be the folder or Hub name of a text-to-emotion classifier, the judge.")
    truth = _dominant_labels(references, len(predictions), emotions)
    judge = str(classifier)
    model_type = PreTrainedConfig.get_config_dict(judge)[0].get("model_type")
    if model_type is not None and model_type not in CONFIG_MAPPING:
        remedy = "Import the module that defines it first: for lstm_judge, evaluation.lstm_judge of SEVLM's checkout."
        raise ValueError(f"The judge {judge!r} is a {model_type!r}, which transformers does not know. {remedy}")
    model = AutoModelForSequenceClassification.from_pretrained(judge, dtype=torch.float32)
    names = [name for _, name in sorted(model.config.id2label.items())]
    if sorted(names) != sorted(emotions):
        raise ValueError(f"The judge {judge!r} has the labels {names}; the annotations have {emotions}.")
    label_ids = np.array([emotions.index(name) for name in names])

    dominant = truth >= 0
    read = [i for i, text in enumerate(predictions) if (text or "").strip() and (per_image or dominant[i])]
    judged = np.full(len(predictions), -1)
    tokenizer = AutoTokenizer.from_pretrained(judge)
    options = {"batch_size": batch_size, "device": device}
    judged[read] = label_ids[judge_texts([predictions[i] for i in read], model, tokenizer, **options)]
    scores = {
        "emotional_alignment": float((judged == truth)[dominant].mean()) if dominant.any() else None,
        "num_dominant": int(dominant.sum()),
        **judge_facts(judge),
        "judge": judge,
    }
    if per_image:
        scores["judged_emotions"] = [emotions[label] if label >= 0 else None for label in judged]
    return scores


@torch.no_grad()
def judge_texts(
    texts: Sequence[str], model, tokenizer, *, batch_size: int = 64, device: str | torch.device | None = None
) -> np.ndarray:
    """Returns `(texts,)` class ids with the highest logit. Texts are cut at the model's limit, 512 tokens at most."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = model.to(device).eval()
    limits = [MAX_LENGTH, tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    max_length = min(limit for limit in limits if limit)
    # Longest first: little padding, and a batch that does not fit into memory fails at once.
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    labels = np.empty(len(texts), dtype=np.int64)
    # A "[SEP]" in an explanation is plain text.
    options = {"padding": True, "truncation": True, "max_length": max_length, "split_special_tokens": True}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer([texts[row] for row in rows], return_tensors="pt", **options)
        labels[rows] = model(**batch.to(device)).logits.argmax(dim=-1).cpu().numpy()
    return labels


def judge_facts(judge: str) -> dict:
    """Reads judge_accuracy, judge_model and judge_text from the checkpoint's `judge.json`; warns about an unknown
    accuracy."""
    record = read_judge_file(judge, "judge.json") or {}
    facts = {f"judge_{name}": record.get(name) for name in ("accuracy", "model", "text")}
    if facts["judge_accuracy"] is None:
        warnings.warn(f"The accuracy of the judge {judge!r} is unknown, so EA cannot be interpreted.", stacklevel=3)
    return facts


def read_judge_file(judge: str, name: str):
    """Reads a JSON file of the judge's checkpoint; returns None if it has no such file."""
    problems = ("gated_repo", "missing_entries", "connection_errors")
    path = cached_file(judge, name, **{f"_raise_exceptions_for_{problem}": False for problem in problems})
    if path is None:
        return None
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    # Earlier versions trained on raw text only and did not record it.
    return {"text": "raw"} | content if name == "judge.json" else content


def _dominant_labels(references, paintings: int, emotions: list[str]) -> np.ndarray:
    """Returns `(paintings,)` ids of the dominant labels, -1 if there is none."""
    if not paintings:
        raise ValueError("No explanation to score.")
    if len(references) != paintings:
        raise ValueError(f"`references` has {len(references)} rows for {paintings} explanations.")
    for index, row in enumerate(references):
        if len(row) != len(emotions) or not all(0 <= count < np.inf for count in row) or not any(row):
            raise ValueError(f"Row {index} of `references` must hold {len(emotions)} counts, not all 0: {row}.")
    counts = np.asarray(references, dtype=np.float64)
    return np.where(2 * counts.max(axis=1) > counts.sum(axis=1), counts.argmax(axis=1), -1)


class EmotionalAlignment(evaluate.Metric):
    """`emotional_alignment_scores` as a module of `evaluate`."""

    def _info(self):
        inputs = {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("float64"))}
        return evaluate.MetricInfo(
            description=__doc__,
            inputs_description=emotional_alignment_scores.__doc__,
            citation="Achlioptas et al., ArtEmis: Affective Language for Visual Art, CVPR 2021",
            features=datasets.Features(inputs),
            reference_urls=["https://www.artemisdataset.org"],
        )

    def _enforce_nested_string_type(self, schema, obj):
        # The base class refuses None as a string, but a model may give no explanation.
        if obj is not None:
            super()._enforce_nested_string_type(schema, obj)

    def _compute(self, predictions, references, **options):
        return emotional_alignment_scores(predictions, references, **options)
