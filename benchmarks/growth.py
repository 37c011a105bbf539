"""`growth`: how times and memory grow with the batch, the new tokens, the candidates, the lexicon and the data."""

import tempfile
from functools import partial
from pathlib import Path

import torch

from modeling_sevlm.emotion_sevlm import VADLookup
from processing import SEVLMProcessor
from processing.artemis import load_artemis

from .generation import image_features
from .inputs import make_inputs, make_lexicon, make_words, write_annotations
from .measure import growth_exponent, interleaved, mib, table


LEXICON_SIZES = [1_000, 3_000, 10_000, 20_000, 50_000]
PLOTS = {"generation": slice(3), "lexicon": slice(3, 6)}  # file -> its series


def run_growth(args) -> dict:
    inputs, words = make_inputs(args.size), make_words(LEXICON_SIZES[-1])
    processor = inputs.processor
    # One dtype is enough: the exponents do not depend on it.
    dtype = "bfloat16" if "bfloat16" in args.dtype else args.dtype[0]
    model, images = inputs.model().to(args.device, getattr(torch, dtype)), inputs.pixel_values(64).to(args.device)
    # Without the tower, whose time does not depend on the number of tokens.
    features = image_features(model, images[:8]).clone()
    ids = inputs.training_text(8)["input_ids"][:, 0].to(args.device).contiguous()
    generate, sample = model.generate, {"pixel_values": images[:1], "do_sample": True, "top_k": 0}

    def lookup(size: int):
        tables = make_lexicon(words, size).compile(processor.tokenizer)
        return partial(VADLookup.from_tables(tables).to(args.device), ids)

    def loading(size: int):
        lexicon = make_lexicon(words, size)
        SEVLMProcessor(processor.image_processor, processor.tokenizer, lexicon).save_pretrained(f"{folder}/{size}")
        return partial(SEVLMProcessor.from_pretrained, f"{folder}/{size}")

    def reading(size: int):
        write_annotations(inputs.words, f"{folder}/{size}.csv", size)
        return partial(load_artemis, f"{folder}/{size}.csv", with_images=False)

    def compiling(size: int):
        return partial(make_lexicon(words, size).compile, processor.tokenizer)

    def tokens(size: int):
        return partial(generate, image_features=features, max_new_tokens=size)

    kinds = {  # series -> sizes, which count what follows "by", and the call for a size
        "generation by batch": ([1, 2, 4, 8, 16, 32, 64], lambda n: partial(generate, pixel_values=images[:n])),
        "generation by new tokens": ([5, 10, 20, 30, 40, 50], tokens),
        "generation by candidates": ([1, 2, 4, 8, 16], lambda n: partial(generate, num_return_sequences=n, **sample)),
        "lexicon compilation by words": (LEXICON_SIZES, compiling),
        "VAD look-up by words": (LEXICON_SIZES, lookup),
        "loading the processor by words": (LEXICON_SIZES, loading),
        "annotations by paintings": ([1_000, 5_000, 20_000, 80_000], reading),
    }
    series, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name, (sizes, call) in kinds.items():
            sizes = sizes[:2] if args.size == "tiny" else sizes
            timings = interleaved({size: call(size) for size in sizes}, args.repeats, args.device).values()
            seconds, memory = [timing.median for timing in timings], [timing.peak_memory for timing in timings]
            exponent, last = growth_exponent(sizes, seconds), growth_exponent(sizes[-2:], seconds[-2:])
            series[name] = {"sizes": sizes, "seconds": seconds, "peak_memory_bytes": memory, "exponent": exponent}
            growth = [f"{sizes[0]:,} to {sizes[-1]:,}", seconds[0], seconds[-1], exponent, last]
            rows.append([name, *growth, mib(memory[0]), mib(memory[-1])])
    columns = ["", "from, to", "seconds at first", "at last", "exponent", "of the last step", "peak MiB at first"]
    draw(series, args.plots)
    title = f"Growth ({dtype}; exponent 1 is linear, less is better)"
    return {"tables": [table(title, [*columns, "at last"], rows)], "series": series}


def draw(series: dict[str, dict], folder: Path) -> None:
    """Writes `performance_*.png`: time on logarithmic axes, next to the line of linear growth."""
    from matplotlib.figure import Figure  # an optional dependency

    folder.mkdir(parents=True, exist_ok=True)
    for file, chosen in PLOTS.items():
        entries = list(series.items())[chosen]
        figure = Figure(figsize=(12, 3.4), layout="constrained")
        for axes, (name, measured) in zip(figure.subplots(1, 3), entries, strict=True):
            sizes, seconds = measured["sizes"], measured["seconds"]
            axes.loglog(sizes, seconds, "o-", color="black", label="measured")
            linear = [seconds[-1] * size / sizes[-1] for size in sizes]
            axes.loglog(sizes, linear, "--", color="0.55", label="linear through the last")
            axes.set(title=f"{name}\nexponent {measured['exponent']:.2f}", ylabel="seconds")
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
            axes.legend(frameon=False)
        figure.savefig(folder / f"performance_{file}.png", dpi=150)
