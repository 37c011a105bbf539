"""`growth`: how times and memory grow with the batch, the new tokens, the candidates and the lexicon."""

from functools import partial
from pathlib import Path

import torch

from .generation import image_features
from .inputs import make_inputs, make_lexicon, make_words
from .measure import growth_exponent, interleaved, mib, table


def run_growth(args) -> dict:
    inputs, words = make_inputs(args.size), make_words(50_000)
    # One dtype is enough: the exponents do not depend on it.
    dtype = "bfloat16" if "bfloat16" in args.dtype else args.dtype[0]
    model, images = inputs.model().to(args.device, getattr(torch, dtype)), inputs.pixel_values(64).to(args.device)
    # Without the tower, whose time does not depend on the number of tokens.
    cached = {"image_features": image_features(model, images[:8]).clone()}
    generate, tokenizer = model.generate, inputs.processor.tokenizer
    sample = {"pixel_values": images[:1], "do_sample": True, "top_k": 0}

    kinds = {  # series -> sizes, which count what follows "by", and the call for a size
        "generation by batch": ([1, 2, 4, 8, 16, 32, 64], lambda n: partial(generate, pixel_values=images[:n])),
        "generation by new tokens": ([5, 10, 20, 30, 40, 50], lambda n: partial(generate, **cached, max_new_tokens=n)),
        "generation by candidates": ([1, 2, 4, 8, 16], lambda n: partial(generate, num_return_sequences=n, **sample)),
        "lexicon compilation by words": (
            [1_000, 3_000, 10_000, 20_000, 50_000],
            lambda n: partial(make_lexicon(words, n).compile, tokenizer),
        ),
    }
    series, rows = {}, []
    for name, (sizes, call) in kinds.items():
        sizes = sizes[:2] if args.size == "tiny" else sizes
        timings = interleaved({size: call(size) for size in sizes}, args.repeats, args.device).values()
        seconds, memory = [timing.median for timing in timings], [timing.peak_memory for timing in timings]
        exponent, last = growth_exponent(sizes, seconds), growth_exponent(sizes[-2:], seconds[-2:])
        series[name] = {"sizes": sizes, "seconds": seconds, "peak_memory_bytes": memory, "exponent": exponent}
        growth = [f"{sizes[0]:,} to {sizes[-1]:,}", seconds[0], seconds[-1], exponent, last]
        rows.append([name, *growth, mib(memory[0]), mib(memory[-1])])
    columns = ["", "from, to", "seconds at first", "at last", "exponent", "of the last step", "peak MiB at first"]
    draw({name: measured for name, measured in series.items() if "generation" in name}, args.plots)
    title = f"Growth ({dtype}; exponent 1 is linear, less is better)"
    return {"tables": [table(title, [*columns, "at last"], rows)], "series": series}


def draw(series: dict[str, dict], folder: Path) -> None:
    """Writes `performance_generation.png`: time on logarithmic axes, next to the line of linear growth."""
    from matplotlib.figure import Figure  # an optional dependency

    figure = Figure(figsize=(4 * len(series), 3.4), layout="constrained")
    for axes, (name, measured) in zip(figure.subplots(1, len(series)), series.items(), strict=True):
        sizes, seconds = measured["sizes"], measured["seconds"]
        axes.loglog(sizes, seconds, "o-", color="black", label="measured")
        linear = [seconds[-1] * size / sizes[-1] for size in sizes]
        axes.loglog(sizes, linear, "--", color="0.55", label="linear through the last")
        axes.set(title=f"{name}\nexponent {measured['exponent']:.2f}", ylabel="seconds")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
        axes.legend(frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "performance_generation.png", dpi=150)
