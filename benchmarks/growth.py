# Licensed under the Apache License, Version 2.0; see LICENSE.
"""`growth`: how times and memory grow with the batch, the new tokens, the candidates, the lexicon and the data."""

import itertools
import tempfile
from functools import partial
from pathlib import Path

import torch

from modeling_sevlm.emotion_sevlm import VADLookup
from processing import SEVLMProcessor
from processing.artemis import load_artemis

from .generation import image_features
from .inputs import make_inputs, make_lexicon, make_words, write_annotations
from .measure import growth_exponent, interleaved, mib
from .parts import LOOKUPS, look_up
from .results import table


SIZES = {  # series -> its sizes, full and tiny; what they count follows "by"
    "generation by batch": ([1, 2, 4, 8, 16, 32, 64], [1, 2, 4]),
    "generation by new tokens": ([5, 10, 20, 30, 40, 50], [2, 4, 6]),
    "generation by candidates": ([1, 2, 4, 8, 16], [1, 2, 4]),
    "lexicon compilation by words": ([1_000, 3_000, 10_000, 20_000, 50_000], [20, 60, 180]),
    "VAD look-up by words": ([1_000, 3_000, 10_000, 20_000, 50_000], [20, 60, 180]),
    "loading the processor by words": ([1_000, 3_000, 10_000, 20_000, 50_000], [20, 60, 180]),
    "annotations by paintings": ([1_000, 5_000, 20_000, 80_000], [40, 80]),
}
PLOTS = {"generation": 3, "lexicon": 3, "dataset": 1}  # file -> how many of the series


def run_growth(args) -> dict:
    inputs, words = make_inputs(args.size), make_words(50_000 if args.size == "full" else 180)
    tokenizer, image_processor = inputs.processor.tokenizer, inputs.processor.image_processor
    # One dtype is enough: the exponents do not depend on it.
    dtype = "bfloat16" if "bfloat16" in args.dtype else args.dtype[0]
    model = inputs.model().to(args.device, getattr(torch, dtype))
    images = inputs.pixel_values(8).to(args.device)
    # Without the tower, whose time does not depend on the number of tokens.
    features = image_features(model, images).clone()
    ids = inputs.training_text(8)["input_ids"][:, 0].to(args.device).contiguous()
    sample = partial(model.generate, pixel_values=images[:1], do_sample=True, top_k=0)

    def lookup(size: int):
        vad_lookup = VADLookup.from_tables(make_lexicon(words, size).compile(tokenizer)).to(args.device)
        return partial(look_up, vad_lookup, ids)

    def loading(size: int):
        processor = SEVLMProcessor(image_processor, tokenizer, vad_lexicon=make_lexicon(words, size))
        processor.save_pretrained(f"{folder}/{size}")
        return partial(SEVLMProcessor.from_pretrained, f"{folder}/{size}")

    def reading(size: int):
        write_annotations(inputs.words, f"{folder}/{size}.csv", size)
        return partial(load_artemis, f"{folder}/{size}.csv", with_images=False)

    calls = [
        lambda size: partial(model.generate, pixel_values=images.repeat(-(-size // 8), 1, 1, 1)[:size]),
        lambda size: partial(model.generate, image_features=features, max_new_tokens=size),
        lambda size: partial(sample, num_return_sequences=size),
        lambda size: partial(make_lexicon(words, size).compile, tokenizer),
        lookup,
        loading,
        reading,
    ]
    seen = []
    hook = model.vision_tower.register_forward_hook(lambda *args: seen.append(len(args[-1].last_hidden_state)))
    for size in (1, 2, 4):
        sample(num_return_sequences=size)
    hook.remove()
    if seen != [1, 1, 1]:
        raise AssertionError(f"Images through the tower for 1, 2 and 4 candidates of one image: {seen}.")
    series, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for (name, sizes), call in zip(SIZES.items(), calls, strict=True):
            sizes = sizes[args.size == "tiny"]
            timings = interleaved(
                {size: call(size) for size in sizes}, args.repeats, device=args.device, warmup=args.warmup
            )
            seconds = [timing.median / (LOOKUPS if call is lookup else 1) for timing in timings.values()]
            memory = [timing.peak_memory for timing in timings.values()]
            exponent, last = growth_exponent(sizes, seconds), growth_exponent(sizes[-2:], seconds[-2:])
            series[name] = {"sizes": sizes, "seconds": seconds, "peak_memory_bytes": memory, "exponent": exponent}
            growth = [f"{sizes[0]:,} to {sizes[-1]:,}", seconds[0], seconds[-1], exponent, last]
            rows.append([name, *growth, mib(memory[0]), mib(memory[-1])])
    columns = ["", "from, to", "seconds at first", "at last", "exponent", "of the last step", "peak MiB at first"]
    draw(series, args.plots)
    return {
        "tables": [table(f"Growth ({dtype}; exponent 1 is linear, less is better)", [*columns, "at last"], rows)],
        "checks": {"images through the tower for 1, 2 and 4 candidates": seen},
        "series": series,
    }


def draw(series: dict[str, dict], folder: Path) -> None:
    """Writes `performance_*.png` and `.svg`: time and, for the data, memory on logarithmic axes, next to the line of
    linear growth."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    names = iter(series)
    for file, count in PLOTS.items():
        panels = [(name, "seconds") for name in itertools.islice(names, count)]
        panels += [(panels[0][0], "peak_memory_bytes")] if file == "dataset" else []
        figure = Figure(figsize=(4 * len(panels), 3.4), layout="constrained")
        for axes, (name, what) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            sizes, values = series[name]["sizes"], [value or 0 for value in series[name][what]]
            axes.loglog(sizes, values, "o-", color="black", label="measured")
            linear = [values[-1] * size / sizes[-1] for size in sizes]
            axes.loglog(sizes, linear, "--", color="0.55", label="linear through the last")
            exponent = f"\nexponent {series[name]['exponent']:.2f}" if what == "seconds" else ""
            axes.set(title=name + exponent, ylabel=what.replace("_", " "))
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
            axes.legend(frameon=False)
        for suffix, metadata in ((".png", None), (".svg", {"Date": None})):
            figure.savefig(folder / f"performance_{file}{suffix}", dpi=150, metadata=metadata)
