# Licensed under the Apache License, Version 2.0; see LICENSE.
"""`generate`: images per second against the recompute yardstick, and a decoding step against the machine's floors.
`peers`: the same work by BLIP-base and GIT-base."""

import copy

import numpy as np
import torch
from transformers import CompileConfig

from modeling_sevlm.packed_linear_sevlm import packed_linears

from .floors import READ_BYTES, decode_step_floors, decode_step_work, machine_speeds
from .inputs import Inputs, make_inputs
from .measure import interleaved, speedup
from .peers import blip_base, git_base
from .recompute import Recompute
from .results import table


YARDSTICK = "recompute float32"
YARDSTICK_THEN = "recompute, eager attention float32"  # as transformers had it when the paper was written
STEP_BATCHES = (1, 8)


def run_generate(args) -> dict:
    """The command `generate`."""
    inputs, device = make_inputs(args.size), args.device
    models = models_by_dtype(inputs, args.dtype, device)
    reference = models.get("float32") or inputs.model().to(device)
    pixel_values = inputs.pixel_values(args.batch_size).to(device)
    new_tokens = inputs.size.new_tokens
    yardstick = Recompute(reference, inputs.processor)

    eager = Recompute(reference, inputs.processor, "eager")
    variants = {
        YARDSTICK: lambda: yardstick.generate(pixel_values, new_tokens),
        YARDSTICK_THEN: lambda: eager.generate(pixel_values, new_tokens),
    }
    for dtype, model in models.items():
        variants[f"tower alone {dtype}"] = tower(model, pixel_values)
        variants[f"ours {dtype}"] = generation(model, pixel_values=pixel_values)
        if args.compile or device.type == "cuda":
            variants[f"ours compiled {dtype}"] = generation(model, pixel_values=pixel_values, **compiled(device))
    timings = interleaved(variants, args.repeats, device=device, warmup=args.warmup)

    rows = []
    for name, timing in timings.items():
        dtype = name.rpartition(" ")[2]
        alone = timings.get(f"tower alone {dtype}")
        rows.append(
            [
                name,
                args.batch_size / timing.median,
                [timing.median, *timing.quartiles],
                speedup(timings[YARDSTICK], timing),
                speedup(timings[YARDSTICK_THEN], timing),
                speedup(timing, alone) if alone else None,
                _mib(timing.peak_memory),
            ]
        )
    tables = [
        table(
            f"Generation, batch {args.batch_size}, {new_tokens} new tokens, pictures included",
            [
                "",
                "images/s",
                "seconds (median, quartiles)",
                "x yardstick",
                "x eager yardstick",
                "/ tower time",
                "peak MiB on top",
            ],
            rows,
        )
    ]
    steps = measure_steps(inputs, models, args)
    tables.append(steps.pop("table"))
    checks = compare_tokens(inputs, yardstick, reference, models, pixel_values)
    if args.compile or device.type == "cuda":
        checks |= compare_compiled(models, pixel_values, device)
    return {
        "tables": tables,
        "checks": checks,
        "measurements": {name: timing.to_dict() for name, timing in timings.items()},
        "decode_step": steps,
    }


def run_peers(args) -> dict:
    """The command `peers`."""
    inputs, device = make_inputs(args.size), args.device
    new_tokens = inputs.size.new_tokens
    pixel_values = inputs.pixel_values(args.batch_size).to(device)
    variants, lengths = {}, {}
    for dtype in args.dtype:
        model = inputs.model().to(device, getattr(torch, dtype))
        variants[f"SEVLM {dtype}"] = generation(model, pixel_values=pixel_values)
        if args.compile or device.type == "cuda":
            variants[f"SEVLM compiled {dtype}"] = generation(model, pixel_values=pixel_values, **compiled(device))
        for name, build in (("BLIP-base", blip_base), ("GIT-base", git_base)):
            variants[f"{name} {dtype}"] = build(args.size, args.batch_size, new_tokens, device, getattr(torch, dtype))
    for name, variant in variants.items():
        lengths[f"new tokens of {name}"] = _new_tokens(name, variant(), inputs)
    wrong = {name: length for name, length in lengths.items() if length != new_tokens}
    if wrong:
        raise AssertionError(f"Every model is to make {new_tokens} new tokens, but: {wrong}.")
    timings = interleaved(variants, args.repeats, device=device, warmup=args.warmup)
    rows = []
    for name, timing in timings.items():
        dtype = name.rpartition(" ")[2]
        ratio = speedup(timing, timings[f"SEVLM {dtype}"])
        rows.append([name, args.batch_size / timing.median, [timing.median, *timing.quartiles], ratio])
    title = f"The same work by others: batch {args.batch_size}, {new_tokens} new tokens, pictures included"
    return {
        "tables": [table(title, ["", "images/s", "seconds (median, quartiles)", "SEVLM is faster by"], rows)],
        "checks": lengths,
        "measurements": {name: timing.to_dict() for name, timing in timings.items()},
    }


def _new_tokens(name: str, tokens: torch.Tensor, inputs: Inputs) -> int:
    prompt = len(inputs.processor.token_layout()["prompt_token_ids"]) if name.startswith("SEVLM") else 1
    return tokens.shape[1] - prompt


def models_by_dtype(inputs: Inputs, dtypes: list[str], device: torch.device) -> dict:
    model = inputs.model()
    return {dtype: copy.deepcopy(model).to(device, getattr(torch, dtype)) for dtype in dtypes}


def tower(model, pixel_values: torch.Tensor):
    """The tower as it runs inside of `generate`."""

    @torch.no_grad()
    def encode() -> torch.Tensor:
        with packed_linears(model, model.pack_weights):
            return model.get_image_features(pixel_values)

    return encode


def generation(model, **kwargs):
    return lambda: model.generate(**kwargs)


def compiled(device: torch.device) -> dict:
    """What to pass to `generate` for a static cache and a compiled step."""
    config = CompileConfig(fullgraph=False, dynamic=False)
    # Every batch size, dtype and cache length is a graph of its own; beyond the limit nothing would be compiled.
    torch._dynamo.config.recompile_limit = 64
    # On a GPU transformers compiles by itself where the cache is static.
    config._compile_all_devices = device.type != "cuda"
    return {"cache_implementation": "static", "compile_config": config}


def measure_steps(inputs: Inputs, models: dict, args) -> dict:
    """One decoding step: the time of many tokens minus that of one, divided by the steps between, in each round."""
    speeds = machine_speeds(args.device, [getattr(torch, dtype) for dtype in models], args.size)
    many = inputs.size.new_tokens
    variants, read = {}, speeds.pop("read")
    for batch_size in STEP_BATCHES:
        pixel_values = inputs.pixel_values(batch_size).to(args.device)
        for dtype, model in models.items():
            features = tower(model, pixel_values)().clone()
            for tokens in (1, many):
                kwargs = {"image_features": features, "max_new_tokens": tokens}
                variants[batch_size, dtype, False, tokens] = generation(model, **kwargs)
                if args.compile or args.device.type == "cuda":
                    kwargs |= compiled(args.device)
                    variants[batch_size, dtype, True, tokens] = generation(model, **kwargs)
    timings = interleaved(variants | {"read": read}, args.repeats, device=args.device, warmup=args.warmup)
    speeds["read_bytes_per_second"] = READ_BYTES[args.size] / timings["read"].median

    rows, measured = [], {}
    for batch_size, dtype, is_compiled, tokens in variants:
        if tokens != many:
            continue
        one, all_tokens = (timings[batch_size, dtype, is_compiled, n].seconds for n in (1, many))
        seconds = [(b - a) / (many - 1) for a, b in zip(one, all_tokens, strict=True)]
        step = float(np.median(seconds))
        patches = features.shape[1]
        work = decode_step_work(models[dtype], patches)
        floors = decode_step_floors(work, speeds, getattr(torch, dtype), batch_size)
        name = f"{dtype}{' compiled' if is_compiled else ''}"
        milliseconds = [1000 * value for value in (step, *floors.values())]
        rows.append([name, batch_size, *milliseconds, step / floors["weights"], step / floors["memory"]])
        measured[f"{name}, batch {batch_size}"] = {"seconds": seconds, "floors": floors, "work": work}
    columns = ["", "batch", "step ms", "floor: weights ms", "floor: weights + cache ms", "floor: products ms"]
    columns += ["/ weights", "/ weights + cache"]
    title = f"One decoding step (time of {many} tokens - time of 1) / {many - 1}"
    speed = f", memory read at {speeds['read_bytes_per_second'] / 1e9:.1f} GB/s"
    return {"table": table(title + speed, columns, rows), "speeds": speeds, "steps": measured}


@torch.no_grad()
def compare_tokens(inputs: Inputs, yardstick: Recompute, reference, models: dict, pixel_values) -> dict:
    """Tokens of every model against the yardstick's, free and behind " because", where the fusion is at work. In
    float32 they must be equal.

    Raises:
        AssertionError: tokens differ in float32, and not because of a near-tie.
    """
    checks = {}
    emotions = [inputs.processor.emotions[0]] * len(pixel_values)
    asked = inputs.processor(emotions=emotions, return_tensors="pt")["input_ids"].to(pixel_values.device)
    for text, prompt in (("free", {}), ("behind a label", {"input_ids": asked})):
        expected = yardstick.generate(pixel_values, inputs.size.new_tokens, **prompt)
        start = expected.shape[1] - inputs.size.new_tokens
        likely = mean_log_likelihood(reference, expected, pixel_values, start)
        for dtype, model in models.items():
            tokens = model.generate(pixel_values=pixel_values, **prompt)
            equal = tokens[:, start:].eq(expected[:, start:])
            checks[f"{dtype} tokens equal to the yardstick's, {text}"] = equal.float().mean().item()
            if dtype == "float32" and not equal.all():
                gap = _gap_at_first_difference(yardstick, tokens, expected, pixel_values)
                checks[f"{dtype} largest logit gap where they part, {text}"] = gap
                if gap > 1e-3:
                    raise AssertionError(f"Cached tokens are not the yardstick's ({text}): logits {gap:.3g} apart.")
            if dtype != "float32":
                change = mean_log_likelihood(model, expected, pixel_values, start) - likely
                checks[f"{dtype} change of log-likelihood per token, {text}"] = change
    return checks


def compare_compiled(models: dict, pixel_values: torch.Tensor, device: torch.device) -> dict:
    """Share of tokens that compiled generation and plain generation have in common."""
    shares = {}
    for dtype, model in models.items():
        plain = model.generate(pixel_values=pixel_values)
        same = model.generate(pixel_values=pixel_values, **compiled(device)).eq(plain)
        shares[f"{dtype} tokens equal, compiled and not"] = same.float().mean().item()
    return shares


def mean_log_likelihood(model, tokens: torch.Tensor, pixel_values: torch.Tensor, start: int) -> float:
    """Per token of `tokens` from `start` on, under `model`."""
    log_probs = (
        model(input_ids=tokens, pixel_values=pixel_values).logits[:, start - 1 : -1].float().log_softmax(dim=-1)
    )
    return log_probs.gather(-1, tokens[:, start:, None]).mean().item()


def _gap_at_first_difference(yardstick: Recompute, tokens, expected, pixel_values) -> float:
    """How much less the yardstick likes the other token where two sentences part, the most over the batch; a near-tie
    is about zero."""
    features = yardstick.model.get_image_features(pixel_values)
    gaps = []
    for row in range(len(tokens)):
        different = tokens[row].ne(expected[row]).nonzero()
        if len(different):
            first = int(different[0])
            logits = yardstick.logits(expected[row : row + 1, :first], features[row : row + 1])[0, -1]
            gaps.append((logits[expected[row, first]] - logits[tokens[row, first]]).item())
    return max(gaps)


def _mib(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else num_bytes / 2**20
