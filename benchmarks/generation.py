# Licensed under the Apache License, Version 2.0; see LICENSE.
"""`generate`: images per second against the recompute yardstick, and a decoding step against its lower bounds.
`peers`: the same work by BLIP-base and GIT-base of transformers, with random weights."""

from functools import partial

import numpy as np
import torch
from transformers import BlipConfig, BlipForConditionalGeneration, CompileConfig, GitConfig, GitForCausalLM

from modeling_sevlm.packed_linear_sevlm import packed_linears

from .floors import READ_BYTES, machine_speeds, step_floors
from .inputs import TINY_VISION, Inputs, make_inputs
from .measure import Timing, interleaved, mib, speedup
from .recompute import Recompute
from .results import rate_table, table


YARDSTICK, EAGER = "recompute float32", "recompute, eager attention float32"
STEP_BATCHES = (1, 8)
TINY_TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
TINY_TEXT |= {"vocab_size": 600, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0}


def run_generate(args) -> dict:
    inputs = make_inputs(args.size)
    new_tokens, pixel_values = inputs.size.new_tokens, inputs.pixel_values(args.batch_size).to(args.device)
    models = {dtype: inputs.model().to(args.device, getattr(torch, dtype)) for dtype in args.dtype}
    reference = models.get("float32") or inputs.model().to(args.device)
    yardstick, eager = (Recompute(reference, inputs.processor, attention) for attention in ("sdpa", "eager"))
    variants = {YARDSTICK: partial(yardstick.generate, pixel_values, new_tokens)}
    variants[EAGER] = partial(eager.generate, pixel_values, new_tokens)
    for dtype, model in models.items():
        variants[f"tower alone {dtype}"] = partial(image_features, model, pixel_values)
        for way, kwargs in ways(args).items():
            variants[f"ours{way} {dtype}"] = partial(model.generate, pixel_values=pixel_values, **kwargs)
    timings = interleaved(variants, args.repeats, device=args.device, warmup=args.warmup)
    title = f"Generation, batch {args.batch_size}, {new_tokens} new tokens, images included"

    def tower_ratio(dtype: str, timing: Timing) -> float | None:
        return speedup(timing, timings[f"tower alone {dtype}"]) if dtype in models else None

    columns = {
        "x yardstick": lambda name, timing: speedup(timings[YARDSTICK], timing),
        "x eager yardstick": lambda name, timing: speedup(timings[EAGER], timing),
        "/ tower time": lambda name, timing: tower_ratio(name.rpartition(" ")[2], timing),
        "peak MiB on top": lambda name, timing: mib(timing.peak_memory),
    }
    steps_table, steps = measure_steps(inputs, models, args)
    return {
        "tables": [rate_table(title, timings, args.batch_size, "images", columns), steps_table],
        "checks": compare_tokens(inputs, yardstick, reference, models, pixel_values),
        "measurements": timings,
        "decode_step": steps,
    }


def run_peers(args) -> dict:
    inputs = make_inputs(args.size)
    pixel_values, new_tokens = inputs.pixel_values(args.batch_size).to(args.device), inputs.size.new_tokens
    prompt, variants, checks = len(inputs.processor.token_layout()["prompt_token_ids"]), {}, {}
    for dtype in args.dtype:
        model = inputs.model().to(args.device, getattr(torch, dtype))
        for way, kwargs in ways(args).items():
            variants[f"SEVLM{way} {dtype}"] = partial(model.generate, pixel_values=pixel_values, **kwargs)
        for name in ("BLIP-base", "GIT-base"):
            peer = make_peer(name, args.size).to(args.device, getattr(torch, dtype)).eval()
            side = peer.config.vision_config.image_size
            pixels = torch.randn(args.batch_size, 3, side, side).to(args.device, peer.dtype)
            greedy = {"max_new_tokens": new_tokens, "do_sample": False}
            variants[f"{name} {dtype}"] = partial(peer.generate, pixel_values=pixels, **greedy)
    for name, variant in variants.items():
        checks[f"new tokens of {name}"] = variant().shape[1] - (prompt if name.startswith("SEVLM") else 1)
    if set(checks.values()) != {new_tokens}:
        raise AssertionError(f"Every model must generate {new_tokens} new tokens: {checks}.")
    timings = interleaved(variants, args.repeats, device=args.device, warmup=args.warmup)
    title = f"The same work by other models: batch {args.batch_size}, {new_tokens} new tokens, images included"
    columns = {"SEVLM is faster by": lambda name, timing: speedup(timing, timings[f"SEVLM {name.split()[-1]}"])}
    tables = [rate_table(title, timings, args.batch_size, "images", columns)]
    return {"tables": tables, "checks": checks, "measurements": timings}


def make_peer(name: str, size: str):
    """A model of transformers with random weights and without an end token, so that all models generate equally
    much."""
    text, vision = (TINY_TEXT, TINY_VISION) if size == "tiny" else ({}, {})
    if name == "GIT-base":
        model = GitForCausalLM(GitConfig(vision_config=vision, **text))
        model.generation_config.eos_token_id = None
        return model
    # The published captioning checkpoint has twelve heads; the library's default is eight.
    config = BlipConfig(text_config={"num_attention_heads": 12} | text, vision_config=vision)
    config.text_config.sep_token_id = None
    return BlipForConditionalGeneration(config)


def image_features(model, pixel_values: torch.Tensor) -> torch.Tensor:
    """The tower as it runs in `generate`."""
    with torch.no_grad(), packed_linears(model, model.pack_weights):
        return model.get_image_features(pixel_values)


def ways(args) -> dict[str, dict]:
    """Arguments of plain generation and, on a GPU or with `--compile`, of a static cache with a compiled step."""
    if not args.compile and args.device.type != "cuda":
        return {"": {}}
    config = CompileConfig(fullgraph=False, dynamic=False)
    # Every batch size, dtype and cache length needs its own graph. Above the limit nothing is compiled.
    torch._dynamo.config.recompile_limit = 64
    # On a GPU transformers compiles without being asked when the cache is static.
    config._compile_all_devices = args.device.type != "cuda"
    return {"": {}, " compiled": {"cache_implementation": "static", "compile_config": config}}


def measure_steps(inputs: Inputs, models: dict, args) -> tuple[dict, dict]:
    """A decoding step of each model against its lower bounds: (time of all tokens - time of one) / tokens between."""
    speeds, read = machine_speeds(args.device, list(models), args.size)
    many, variants, rows, steps = inputs.size.new_tokens, {}, [], {}
    for batch_size in STEP_BATCHES:
        pixel_values = inputs.pixel_values(batch_size).to(args.device)
        for dtype, model in models.items():
            features = image_features(model, pixel_values).clone()
            for way, kwargs in ways(args).items():
                for tokens in (1, many):
                    generate = partial(model.generate, image_features=features, max_new_tokens=tokens, **kwargs)
                    variants[dtype, way, batch_size, tokens] = generate
    # The speed of memory drifts by a factor of two on shared machines, so reading takes turns with generation.
    timings = interleaved(variants | {"read": read}, args.repeats, device=args.device, warmup=args.warmup)
    speeds["read_bytes_per_second"] = rate = READ_BYTES[args.size] / timings["read"].median
    for dtype, way, batch_size, _ in list(variants)[::2]:
        one, every = (timings[dtype, way, batch_size, tokens].seconds for tokens in (1, many))
        seconds = np.subtract(every, one) / (many - 1)
        products = speeds["multiply_adds_per_second"][dtype]
        floors = step_floors(models[dtype], features.shape[1], batch_size, rate, products)
        step = float(np.median(seconds))
        milliseconds = [1000 * value for value in (step, *floors.values())]
        rows.append([dtype + way, batch_size, *milliseconds, step / floors["weights"], step / floors["memory"]])
        steps[f"{dtype}{way}, batch {batch_size}"] = {"seconds": seconds.tolist(), "floors": floors}
    columns = ["", "batch", "step ms", "floor: weights ms", "floor: weights + cache ms", "floor: products ms"]
    columns += ["/ weights", "/ weights + cache"]
    title = f"One decoding step (time of {many} tokens - time of 1) / {many - 1}, memory read at {rate / 1e9:.1f} GB/s"
    return table(title, columns, rows), {"speeds": speeds, "steps": steps}


@torch.no_grad()
def compare_tokens(inputs: Inputs, yardstick: Recompute, reference, models: dict, pixel_values) -> dict[str, float]:
    """Compares every model's tokens with the yardstick's, after the plain prompt and after a label, where VAD is
    fused.

    Raises:
        AssertionError: float32 tokens differ, and not because two words were equally likely.
    """
    checks, new_tokens = {}, inputs.size.new_tokens
    asked = inputs.processor(emotions=[inputs.processor.emotions[0]] * len(pixel_values), return_tensors="pt")
    prompts = {"free": {}, "after a label": {"input_ids": asked["input_ids"].to(pixel_values.device)}}
    for text, prompt in prompts.items():
        expected = yardstick.generate(pixel_values, new_tokens, **prompt)
        likelihood = log_likelihood(reference, expected, pixel_values, new_tokens)
        for dtype, model in models.items():
            tokens = model.generate(pixel_values=pixel_values, **prompt)
            different = tokens.ne(expected)
            share = different[:, -new_tokens:].float().mean().item()
            checks[f"{dtype} tokens equal to the yardstick's, {text}"] = 1 - share
            if dtype != "float32":
                change = log_likelihood(model, expected, pixel_values, new_tokens) - likelihood
                checks[f"{dtype} change of log-likelihood per token, {text}"] = change
            elif different.any():
                rows = different.any(dim=1).nonzero()[:, 0]
                first = different[rows].int().argmax(dim=1)
                logits = yardstick.logits(expected, image_features(reference, pixel_values))[rows, first - 1]
                both = torch.stack([expected[rows, first], tokens[rows, first]], dim=1)
                gap = logits.gather(1, both).diff(dim=1).abs().max().item()
                checks[f"{dtype} largest logit gap at a first different token, {text}"] = gap
                if gap > 1e-3:
                    raise AssertionError(f"Cached tokens are not the yardstick's ({text}): logits {gap:.3g} apart.")
    return checks


def log_likelihood(model, tokens: torch.Tensor, pixel_values: torch.Tensor, last: int) -> float:
    """Mean over the `last` tokens."""
    logits = model(input_ids=tokens, pixel_values=pixel_values).logits[:, -last - 1 : -1]
    return logits.float().log_softmax(dim=-1).gather(-1, tokens[:, -last:, None]).mean().item()
