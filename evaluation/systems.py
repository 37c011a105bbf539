# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Systems that explain pictures: SEVLM, any image-text-to-text model of transformers, and people.

Each gives one prediction per painting, in the data set's order: `{"painting", "emotion", "explanation"}`, with
`emotion` `None` where none of the labels could be read from the text.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm

from modeling_sevlm.pipeline_sevlm import generate_ranked


ASK_BOTH = (
    "Which of these emotions does this painting evoke in a viewer: {emotions}? Answer in one sentence of the form "
    '"EMOTION because EXPLANATION".'
)
ASK_WHY = "Explain in one sentence why this painting makes a viewer feel {emotion}. Begin with what you see."


def predict(
    model,
    processor,
    dataset: Dataset,
    *,
    batch_size: int = 32,
    features=None,
    emotions: Sequence[str] | None = None,
    num_candidates: int = 1,
    seed: int = 0,
    progress: bool = False,
    **generation,
) -> list[dict]:
    """SEVLM's predictions, each with `emotion_scores`, a probability for every label.

    Every picture goes through the tower once. Under `accelerate launch` the batches are dealt out to the processes,
    and each process gets all predictions back; neither their order nor what is drawn in sampling depends on how many
    processes there are.

    Args:
        features: cached tower features of the data set's pictures; none is decoded then.
        emotions: explain these, one per painting (the second stage of a two-stage system), instead of naming one.
        num_candidates: of so many sampled explanations keep the one with the highest `alignment_score` (Eq. 6), which
            is added to the prediction.
        seed: of the sampling.
        generation: arguments of `generate`, greedy decoding by default.
    """
    generation = {"do_sample": num_candidates > 1} | generation
    if num_candidates > 1 and model.contrastive_head is None:
        raise ValueError("This model has no contrastive head to rank candidates with: leave out num_candidates.")

    def explain(indices: list[int], batch_number: int) -> list[dict]:
        if features is not None:
            image_features = features.batch(indices).to(model.device)
        else:
            images = dataset.select_columns(["image"])
            pixel_values = processor(images=[images[index]["image"] for index in indices], return_tensors="pt")
            image_features = model.get_image_features(pixel_values["pixel_values"].to(model.device))
        scores = model.emotion_scores(image_features=image_features).float().cpu()
        asked = None if emotions is None else [emotions[index] for index in indices]
        with torch.random.fork_rng(enabled=generation["do_sample"]):
            if generation["do_sample"]:
                torch.manual_seed(_seed(seed, batch_number))
            sequences, fits = generate_ranked(
                model, processor, image_features, emotions=asked, num_candidates=num_candidates, **generation
            )
        extra = [{} for _ in indices] if fits is None else [{"alignment_score": fit} for fit in fits[:, 0].tolist()]
        return [
            sentence | {"emotion_scores": distribution.tolist()} | more
            for sentence, distribution, more in zip(processor.read(sequences[:, 0]), scores, extra, strict=True)
        ]

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _in_batches(dataset, batch_size, explain, progress)
    finally:
        model.train(was_training)


def predict_with_pipeline(
    pipeline,
    dataset: Dataset,
    labels: Sequence[str],
    *,
    prompt: str | None = None,
    label_pattern: str | None = None,
    emotions: Sequence[str] | None = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = False,
    **generation,
) -> list[dict]:
    """Predictions of any image-text-to-text model.

    Args:
        pipeline: transformers' "image-text-to-text" pipeline of the model.
        labels: the emotions it may name.
        prompt: what it is asked. `{emotions}` stands for the labels, `{emotion}` for the given one; by default
            `ASK_BOTH`, or `ASK_WHY` where emotions are given. A model with a chat template gets it as the user's
            message.
        label_pattern: a regular expression that reads the reply, with the groups `emotion` and `explanation`; see
            [`read_reply`] for the default.
        emotions: explain these, one per painting; the whole reply is the explanation then.
        generation: arguments of `generate`, greedy decoding by default.
    """
    prompt = prompt or (ASK_BOTH if emotions is None else ASK_WHY)
    pattern = compile_label_pattern(label_pattern)
    generation = {"do_sample": False, "max_new_tokens": 60} | generation
    chat = getattr(pipeline.processor, "chat_template", None) is not None

    def explain(indices: list[int], batch_number: int) -> list[dict]:
        images = [dataset[index]["image"].convert("RGB") for index in indices]
        given = [None if emotions is None else emotions[index] for index in indices]
        texts = [prompt.replace("{emotions}", ", ".join(labels)).replace("{emotion}", e or "") for e in given]
        if chat:
            content = [
                [{"type": "image", "image": image}, {"type": "text", "text": text}]
                for image, text in zip(images, texts, strict=True)
            ]
            inputs = {"text": [[{"role": "user", "content": parts}] for parts in content]}
        else:
            inputs = {"images": images, "text": texts}
        with torch.random.fork_rng(enabled=generation["do_sample"]):
            if generation["do_sample"]:
                torch.manual_seed(_seed(seed, batch_number))
            replies = pipeline(
                **inputs, batch_size=batch_size, return_full_text=False, generate_kwargs=dict(generation)
            )
        texts = [(reply[0] if isinstance(reply, list) else reply)["generated_text"] for reply in replies]
        return [
            {"emotion": emotion, "explanation": " ".join(text.split())}
            if emotion is not None
            else read_reply(text, labels, pattern)
            for text, emotion in zip(texts, given, strict=True)
        ]

    return _in_batches(dataset, batch_size, explain, progress)


def compile_label_pattern(label_pattern: str | None) -> re.Pattern | None:
    """Raises:
    ValueError: it is no regular expression, or lacks one of the groups.
    """
    if label_pattern is None:
        return None
    try:
        pattern = re.compile(label_pattern)
    except re.error as error:
        raise ValueError(f"{label_pattern!r} is no regular expression: {error}.") from error
    if not {"emotion", "explanation"} <= set(pattern.groupindex):
        raise ValueError(f"The pattern {label_pattern!r} needs the groups (?P<emotion>...) and (?P<explanation>...).")
    return pattern


def read_reply(text: str, labels: Sequence[str], pattern: re.Pattern | None = None) -> dict[str, str | None]:
    """A free reply -> emotion and explanation.

    With `pattern`: its groups `emotion` and `explanation`. Without, two forms are taken apart, in any case and with up
    to six words in front ("I feel", "The emotion is"): `LABEL because EXPLANATION`, and, at the very beginning,
    `LABEL: EXPLANATION`. Of any other reply the explanation is the whole text, and the emotion is the label that is
    named first, unless with "not" in front; `None` where there is none.
    """
    text = " ".join(text.split())
    spelled = {" ".join(label.lower().split()): label for label in labels}
    # Longer labels first: one may be the beginning of another.
    names = "|".join(re.escape(name) for name in sorted(spelled, key=len, reverse=True))
    mark = r"[\s*_\"'`]*"
    forms = [
        rf"(?i)^\W*(?:(?!not\b|{names})\w+\W+){{0,6}}?(?P<emotion>{names})\b{mark}[,;:.–—-]*{mark}"
        r"because\b(?:\s+of\b)?\W*(?P<explanation>\w.*)",
        rf"(?i)^\W*(?P<emotion>{names})\b{mark}[:.,;–—-]+{mark}(?P<explanation>\w.*)",
    ]
    for form in [pattern] if pattern is not None else map(re.compile, forms):
        found = form.search(text)
        label = spelled.get(" ".join((found["emotion"] or "").lower().split())) if found else None
        if label is not None:
            return {"emotion": label, "explanation": (found["explanation"] or "").strip(" \"'")}
    named = re.search(rf"(?i)(?<!\bnot )\b({names})\b", text) if pattern is None else None
    return {"emotion": spelled[named[1].lower()] if named else None, "explanation": text}


def human_predictions(dataset: Dataset, seed: int = 0) -> tuple[list[dict], Dataset]:
    """One annotator of every painting as if a system: the annotation is drawn by seed and painting, and the others
    stay as references.

    Returns:
        The predictions, which name the drawn annotation's position as `annotation`, and the data set without it
        ([`without_annotations`]). Paintings with a single annotation are left out of both.
    """
    dataset = with_several_annotations(dataset)
    names = dataset.features["emotions"].feature.names
    predictions = []
    for painting, emotions, explanations in zip(
        *(dataset[name][:] for name in ("painting", "emotions", "explanations")), strict=True
    ):
        drawn = int(np.random.default_rng([seed, zlib.crc32(painting.encode())]).integers(len(emotions)))
        predictions.append(
            {
                "painting": painting,
                "emotion": names[emotions[drawn]],
                "explanation": explanations[drawn],
                "annotation": drawn,
            }
        )
    return predictions, without_annotations(dataset, [prediction["annotation"] for prediction in predictions])


def with_several_annotations(dataset: Dataset) -> Dataset:
    return dataset.select([row for row, emotions in enumerate(dataset["emotions"][:]) if len(emotions) > 1])


def without_annotations(dataset: Dataset, positions: Sequence[int]) -> Dataset:
    """Paintings and what is left of their annotations without one of each, which then is no reference of its own.

    Raises:
        ValueError: a painting has no such annotation, or no other.
    """
    columns = {name: [] for name in ("emotions", "explanations", "emotion_histogram")}
    for painting, emotions, explanations, histogram, left_out in zip(
        *(dataset[name][:] for name in ("painting", *columns)), positions, strict=True
    ):
        if len(emotions) < 2 or not 0 <= left_out < len(emotions):
            raise ValueError(f"{painting} has {len(emotions)} annotations; number {left_out} cannot be left out.")
        others = [i for i in range(len(emotions)) if i != left_out]
        columns["emotions"].append([emotions[i] for i in others])
        columns["explanations"].append([explanations[i] for i in others])
        columns["emotion_histogram"].append(
            [count - (label == emotions[left_out]) for label, count in enumerate(histogram)]
        )
    features = dataset.features
    dataset = dataset.select_columns(["painting"])
    for name, values in columns.items():
        dataset = dataset.add_column(name, values, feature=features[name])
    return dataset


def _in_batches(dataset: Dataset, batch_size: int, explain, progress: bool) -> list[dict]:
    """Deal fixed batches out to the processes and bring the predictions together in order."""
    state = PartialState()
    starts = list(enumerate(range(0, len(dataset), batch_size)))[state.process_index :: state.num_processes]
    done = []
    for number, start in tqdm(starts, desc="Explaining", disable=not progress or not state.is_main_process):
        indices = list(range(start, min(start + batch_size, len(dataset))))
        done.append((number, indices, explain(indices, number)))
    paintings = dataset["painting"][:]
    return [
        {"painting": paintings[index]} | prediction
        for _, indices, predictions in sorted(gather_object(done), key=lambda batch: batch[0])
        for index, prediction in zip(indices, predictions, strict=True)
    ]


def _seed(seed: int, batch_number: int) -> int:
    return int(np.random.SeedSequence([seed, batch_number]).generate_state(1)[0])
