"""Predictions of SEVLM, of any image-text-to-text model of transformers, and of human annotators.

Each function returns one prediction per painting, in the data set's order: `{"painting", "emotion", "explanation"}`.
`emotion` is `None` if no label could be read from the text.
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

from evaluation.predictions_file import find_label
from modeling_sevlm.pipeline_sevlm import generate_ranked


ASK_BOTH = (
    "Which of these emotions does this painting evoke in a viewer: {emotions}? Answer in one sentence of the form "
    '"EMOTION because EXPLANATION".'
)
ASK_WHY = "Explain in one sentence why this painting makes a viewer feel {emotion}. Begin with what you see."


@torch.no_grad()
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
    """Predicts with SEVLM. Each prediction also has `emotion_scores`, a probability for every label.

    Under `accelerate launch` the processes share the batches. Each returns all predictions, as one process would.

    Args:
        features: cached tower features of the data set's images; the images are not decoded then.
        emotions: emotions to explain, one per painting (default: the model names one).
        num_candidates: samples per image; the one with the highest `alignment_score` (Eq. 6) is kept, with its score.
        generation: arguments of `generate` (default: greedy decoding).

    Raises:
        ValueError: several candidates, but the model has no contrastive head to rank them.
    """
    generation = {"do_sample": num_candidates > 1} | generation

    def explain(indices: list[int]) -> list[dict]:
        if features is not None:
            image_features = features.batch(indices).to(model.device)
        else:
            pixel_values = processor(images=dataset["image"][indices], return_tensors="pt")["pixel_values"]
            image_features = model.encode_images(pixel_values.to(model.device))
        scores = model.emotion_scores(image_features=image_features).float().cpu()
        asked = None if emotions is None else [emotions[index] for index in indices]
        options = {"emotions": asked, "num_candidates": num_candidates} | generation
        sequences, fits = generate_ranked(model, processor, image_features, **options)
        predictions = processor.read(sequences[:, 0])
        for row, prediction in enumerate(predictions):
            prediction["emotion_scores"] = scores[row].tolist()
            if fits is not None:
                prediction["alignment_score"] = float(fits[row, 0])
        return predictions

    was_training = model.training
    model.eval()
    try:
        return _in_batches(dataset, explain, batch_size, generation["do_sample"], seed, progress)
    finally:
        model.train(was_training)


def predict_with_pipeline(
    pipeline,
    dataset: Dataset,
    labels: Sequence[str],
    *,
    prompt: str | None = None,
    pattern: re.Pattern | None = None,
    emotions: Sequence[str] | None = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = False,
    **generation,
) -> list[dict]:
    """Predicts with any image-text-to-text model.

    Args:
        pipeline: transformers' "image-text-to-text" pipeline of the model.
        labels: the emotions that the model may name.
        prompt: text of the prompt (default: `ASK_BOTH`, or `ASK_WHY` with `emotions`). `{emotions}` is replaced by the
            labels, `{emotion}` by the emotion to explain. A model with a chat template gets it as the user's message.
        pattern: pattern for the reply, see [`read_reply`].
        emotions: emotions to explain, one per painting; the whole reply is then the explanation.
        others: see [`predict`].
    """
    prompt = prompt or (ASK_BOTH if emotions is None else ASK_WHY)
    generation = {"do_sample": False, "max_new_tokens": 60} | generation
    chat = getattr(pipeline.processor, "chat_template", None) is not None

    def explain(indices: list[int]) -> list[dict]:
        images = [image.convert("RGB") for image in dataset["image"][indices]]
        asked = [""] * len(indices) if emotions is None else [emotions[index] for index in indices]
        texts = [prompt.replace("{emotions}", ", ".join(labels)).replace("{emotion}", name) for name in asked]
        inputs = {"images": images, "text": texts}
        if chat:
            texts = [{"type": "text", "text": text} for text in texts]
            content = [[{"type": "image", "image": image}, text] for image, text in zip(images, texts, strict=True)]
            inputs = {"text": [[{"role": "user", "content": parts}] for parts in content]}
        options = {"batch_size": batch_size, "return_full_text": False, "generate_kwargs": dict(generation)}
        replies = pipeline(**inputs, **options)
        texts = [(reply[0] if isinstance(reply, list) else reply)["generated_text"] for reply in replies]
        if emotions is None:
            return [read_reply(text, labels, pattern) for text in texts]
        texts = [" ".join(text.split()) for text in texts]
        return [{"emotion": name, "explanation": text} for name, text in zip(asked, texts, strict=True)]

    return _in_batches(dataset, explain, batch_size, generation["do_sample"], seed, progress)


def compile_label_pattern(label_pattern: str) -> re.Pattern:
    """Compiles a regular expression for [`read_reply`]; raises ValueError if it is not one or lacks a group."""
    try:
        pattern = re.compile(label_pattern)
    except re.error as error:
        raise ValueError(f"{label_pattern!r} is not a regular expression: {error}.") from error
    if not {"emotion", "explanation"} <= set(pattern.groupindex):
        raise ValueError(f"The pattern {label_pattern!r} needs the groups (?P<emotion>...) and (?P<explanation>...).")
    return pattern


def read_reply(text: str, labels: Sequence[str], pattern: re.Pattern | None = None) -> dict[str, str | None]:
    """Reads emotion and explanation from a free reply.

    With `pattern`, they are its groups `emotion` and `explanation`. Otherwise two forms are recognized: `LABEL because
    EXPLANATION` after up to six words ("I feel"), and `LABEL: EXPLANATION` at the start. In any other reply the whole
    text is the explanation, and the emotion is the first label without a "not" before it, or `None`.
    """
    text = " ".join(text.split())
    spelled = {" ".join(label.lower().split()): label for label in labels}
    # Longer labels first: a label may be the beginning of another one.
    names = "|".join(re.escape(name) for name in sorted(spelled, key=len, reverse=True))
    mark = r"[\s*_\"'`]*"
    forms = [
        rf"(?i)^\W*(?:(?!not\b|{names})\w+\W+){{0,6}}?(?P<emotion>{names})\b{mark}[,;:.–—-]*{mark}"
        r"because\b(?:\s+of\b)?\W*(?P<explanation>\w.*)",
        rf"(?i)^\W*(?P<emotion>{names})\b{mark}[:.,;–—-]+{mark}(?P<explanation>\w.*)",
    ]
    for form in [pattern] if pattern is not None else map(re.compile, forms):
        found = form.search(text)
        label = find_label(found["emotion"], labels) if found else None
        if label is not None:
            return {"emotion": label, "explanation": (found["explanation"] or "").strip(" \"'")}
    named = re.search(rf"(?i)(?<!\bnot )\b({names})\b", text) if pattern is None else None
    return {"emotion": spelled[named[1].lower()] if named else None, "explanation": text}


def human_predictions(dataset: Dataset, seed: int = 0) -> tuple[list[dict], Dataset]:
    """Draws one annotation per painting as the prediction. Returns the predictions (`annotation`: its position) and a
    data set with the other annotations. Paintings with only one annotation are left out."""
    dataset = with_several_annotations(dataset)
    names = dataset.features["emotions"].feature.names
    predictions = []
    for row in dataset.select_columns(["painting", "emotions", "explanations"]):
        random = np.random.default_rng([seed, zlib.crc32(row["painting"].encode())])
        drawn = int(random.integers(len(row["emotions"])))
        prediction = {"emotion": names[row["emotions"][drawn]], "explanation": row["explanations"][drawn]}
        predictions.append({"painting": row["painting"]} | prediction | {"annotation": drawn})
    return predictions, without_annotations(dataset, [prediction["annotation"] for prediction in predictions])


def with_several_annotations(dataset: Dataset) -> Dataset:
    return dataset.select([row for row, emotions in enumerate(dataset["emotions"][:]) if len(emotions) > 1])


def without_annotations(dataset: Dataset, positions: Sequence[int]) -> Dataset:
    """Removes one annotation per painting, at `positions`; ValueError if it is missing or the only one."""
    dataset = dataset.select_columns(["painting", "emotions", "explanations", "emotion_histogram"])
    columns = dataset.to_dict()
    for painting, emotions, explanations, histogram, position in zip(*columns.values(), positions, strict=True):
        if len(emotions) < 2 or not 0 <= position < len(emotions):
            raise ValueError(f"{painting} has {len(emotions)} annotations; number {position} cannot be left out.")
        explanations.pop(position)
        histogram[emotions.pop(position)] -= 1
    return Dataset.from_dict(columns, features=dataset.features)


def _in_batches(dataset: Dataset, explain, batch_size: int, do_sample: bool, seed: int, progress: bool) -> list[dict]:
    """Divides the batches among the processes; each gets all predictions, in the data set's order."""
    state = PartialState()
    starts = np.array_split(range(0, len(dataset), batch_size), state.num_processes)[state.process_index]
    predictions = []
    for start in tqdm(starts.tolist(), desc="Explaining", disable=not progress or not state.is_main_process):
        # Samples depend on seed and batch only, and the caller's random state is kept.
        with torch.random.fork_rng(enabled=do_sample):
            if do_sample:
                torch.manual_seed(int(np.random.SeedSequence([seed, start // batch_size]).generate_state(1)[0]))
            predictions += explain(list(range(start, min(start + batch_size, len(dataset)))))
    pairs = zip(dataset["painting"][:], gather_object(predictions), strict=True)
    return [{"painting": painting} | prediction for painting, prediction in pairs]
