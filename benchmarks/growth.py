# Licensed under the Apache License, Version 2.0; see LICENSE.
"""`growth`: how times and memory grow with the batch, the new tokens, the candidates, the lexicon and the data set; a
plot of each. Nothing may grow worse than linearly."""

import csv
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from modeling_sevlm.emotion_sevlm import VADLookup
from processing import SEVLMProcessor
from processing.artemis import EMOTIONS

from .epoch import ANNOTATIONS
from .fresh import fresh
from .generation import tower
from .growth_plots import draw
from .inputs import Inputs, make_inputs, make_lexicon, make_sentences, make_words
from .measure import Timing, growth_exponent, interleaved
from .results import table


POINTS = {
    "full": {
        "batch": (1, 2, 4, 8, 16, 32, 64),
        "new tokens": (5, 10, 20, 30, 40, 50),
        "candidates": (1, 2, 4, 8, 16),
        "lexicon words": (1_000, 3_000, 10_000, 20_000, 50_000),
        "paintings": (1_000, 5_000, 20_000, 80_000),
    },
    "tiny": {
        "batch": (1, 2, 4),
        "new tokens": (2, 4, 6),
        "candidates": (1, 2, 4),
        "lexicon words": (20, 60, 180),
        "paintings": (40, 80),
    },
}
TOKENS_BATCH = 8
LOOKUPS = 20  # in a row, as one takes less than a clock can tell


def run_growth(args) -> dict:
    """The command `growth`."""
    inputs, points = make_inputs(args.size), POINTS[args.size]
    # One dtype, the fast one if it was not left out: how a time grows does not hang on it.
    dtype = "bfloat16" if "bfloat16" in args.dtype else args.dtype[0]
    model = inputs.model().to(args.device, getattr(torch, dtype))
    series = {
        "generation by batch": by_batch(inputs, model, points["batch"], args),
        "generation by new tokens": by_new_tokens(inputs, model, points["new tokens"], args),
        "generation by candidates": by_candidates(inputs, model, points["candidates"], args),
    }
    del model
    series |= by_lexicon(inputs, points["lexicon words"], args)
    series["annotations by paintings"] = by_paintings(inputs, points["paintings"], args)
    rows = []
    for name, entry in series.items():
        sizes, seconds = entry["sizes"], entry["seconds"]
        entry["exponent"] = growth_exponent(sizes, seconds)
        entry["exponent_at_the_end"] = growth_exponent(sizes[-2:], seconds[-2:])
        growth = [f"{sizes[0]:,} to {sizes[-1]:,}", seconds[0], seconds[-1]]
        rows.append([name, *growth, entry["exponent"], entry["exponent_at_the_end"], _mib(entry, 0), _mib(entry, -1)])
    columns = ["", "from, to", "seconds at first", "at last", "exponent", "of the last step", "peak MiB at first"]
    files = draw(series, args.plots)
    return {
        "tables": [
            table(f"Growth ({dtype}; exponent 1 is linear, less is better)", [*columns, "at last"], rows),
            *[_points_table(name, entry) for name, entry in series.items()],
        ],
        "checks": {"pictures through the tower at every number of candidates": series_pictures(series)},
        "series": series,
        "plots": [str(file) for file in files],
    }


def series_pictures(series: dict) -> list[int]:
    return series["generation by candidates"]["tower_pictures"]


def _points_table(name: str, entry: dict) -> dict:
    unit, unit_seconds = entry["unit"], entry["seconds_a_unit"]
    rows = [list(row) for row in zip(entry["sizes"], entry["seconds"], unit_seconds, strict=True)]
    return table(name[0].upper() + name[1:], [name.rpartition(" by ")[2], "seconds", f"seconds a {unit}"], rows)


def _series(variants: dict[int, Callable], args, unit: str, units: list[int], calls: int = 1) -> dict:
    """Times of `variants`, keyed by size; a call does the thing `calls` times, for `units` things."""
    timings = interleaved(variants, args.repeats, device=args.device, warmup=args.warmup)
    return _entry(list(variants), timings, unit, units, calls)


def _entry(sizes: list[int], timings: dict[int, Timing], unit: str, units: list[int], calls: int = 1) -> dict:
    seconds = [timings[size].median / calls for size in sizes]
    return {
        "sizes": sizes,
        "seconds": seconds,
        "unit": unit,
        "seconds_a_unit": [value / count for value, count in zip(seconds, units, strict=True)],
        "peak_memory_bytes": [timings[size].peak_memory for size in sizes],
        "raw_seconds": [timings[size].seconds for size in sizes],
        "calls": calls,
    }


def _mib(entry: dict, index: int) -> float | None:
    value = entry["peak_memory_bytes"][index]
    return None if value is None else value / 2**20


def by_batch(inputs: Inputs, model, sizes, args) -> dict:
    pictures = inputs.pixel_values(min(8, max(sizes))).to(args.device)

    def run(size: int) -> Callable:
        pixel_values = pictures.repeat(-(-size // len(pictures)), 1, 1, 1)[:size]
        return lambda: model.generate(pixel_values=pixel_values)

    return _series({size: run(size) for size in sizes}, args, "picture", list(sizes))


def by_new_tokens(inputs: Inputs, model, sizes, args) -> dict:
    """Without the tower, whose time is the same for any number of tokens."""
    features = tower(model, inputs.pixel_values(TOKENS_BATCH).to(args.device))().clone()
    variants = {size: lambda size=size: model.generate(image_features=features, max_new_tokens=size) for size in sizes}
    return _series(variants, args, "token", list(sizes))


def by_candidates(inputs: Inputs, model, sizes, args) -> dict:
    """Of one picture, sampled.

    Raises:
        AssertionError: the tower saw the picture more than once.
    """
    pixel_values, seen = inputs.pixel_values(1).to(args.device), []

    def run(size: int) -> Callable:
        return lambda: model.generate(pixel_values=pixel_values, do_sample=True, top_k=0, num_return_sequences=size)

    variants = {size: run(size) for size in sizes}
    hook = model.vision_tower.register_forward_hook(
        lambda module, inputs, kwargs, output: seen.append(len(output.last_hidden_state)), with_kwargs=True
    )
    pictures = []
    for variant in variants.values():
        seen.clear()
        variant()
        pictures.append(sum(seen))
    hook.remove()
    if set(pictures) != {1}:
        raise AssertionError(f"Pictures through the tower for {list(sizes)} candidates of one: {pictures}.")
    return _series(variants, args, "candidate", list(sizes)) | {"tower_pictures": pictures}


def by_lexicon(inputs: Inputs, sizes, args) -> dict[str, dict]:
    """Compilation, look-up, and loading the processor."""
    tokenizer = inputs.processor.tokenizer
    words = make_words(max(sizes))
    lexicons = {size: make_lexicon(words, size) for size in sizes}
    tables = {size: lexicon.compile(tokenizer) for size, lexicon in lexicons.items()}
    ids = inputs.training_text(TOKENS_BATCH)["input_ids"][:, 0].to(args.device).contiguous()
    lookups = {size: VADLookup.from_tables(compiled).to(args.device) for size, compiled in tables.items()}

    def look_up(size: int) -> Callable:
        return lambda: [lookups[size](ids) for _ in range(LOOKUPS)]

    def load(folder: str) -> Callable:
        return lambda: SEVLMProcessor.from_pretrained(folder)

    compilation = {size: lambda size=size: lexicons[size].compile(tokenizer) for size in sizes}
    units = list(sizes)
    result = {
        "lexicon compilation by words": _series(compilation, args, "word", units),
        "VAD look-up by words": _series(
            {size: look_up(size) for size in sizes}, args, "call", [1] * len(units), LOOKUPS
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        for size, lexicon in lexicons.items():
            processor = SEVLMProcessor(inputs.processor.image_processor, tokenizer, vad_lexicon=lexicon)
            processor.save_pretrained(f"{folder}/{size}")
        loading = {size: load(f"{folder}/{size}") for size in sizes}
        result["loading the processor by words"] = _series(loading, args, "word", units)
    return result


def by_paintings(inputs: Inputs, sizes, args) -> dict:
    """Reading an annotation file of the layout and proportions of ArtEmis v1; each in a fresh process."""
    timings = {size: Timing() for size in sizes}
    annotations = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {size: Path(folder, f"{size}.csv") for size in sizes}
        for size, file in files.items():
            annotations[size] = write_annotations(inputs, file, size)
        for _ in range(args.repeats):
            for size, file in files.items():
                run = fresh("artemis", file, threads=args.threads)
                timings[size].seconds.append(run["seconds"])
                timings[size].peak_memory = max(run["bytes"], timings[size].peak_memory or 0)
    return _entry(list(sizes), timings, "painting", list(sizes)) | {"annotations": annotations}


def write_annotations(inputs: Inputs, file: Path, paintings: int, seed: int = 0) -> int:
    """A CSV file like that of ArtEmis v1, rows in no order; the number of its rows."""
    draw_ = np.random.default_rng(seed)
    counts = draw_.poisson(ANNOTATIONS - 1, size=paintings) + 1
    sentences = make_sentences(inputs.words, int(counts.sum()), seed)
    painting = draw_.permutation(np.repeat(np.arange(paintings), counts))
    labels = draw_.integers(len(EMOTIONS), size=len(painting))
    with open(file, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["art_style", "painting", "emotion", "utterance", "repetition"])
        for index, label, sentence in zip(painting.tolist(), labels.tolist(), sentences, strict=True):
            style, name = f"style_{index % 27}", f"painter-{index % 1119}_picture-{index}"
            writer.writerow([style, name, EMOTIONS[label], sentence, counts[index]])
    return len(painting)
