"""`generate`: speed compared with `recompute.py`, which decodes without a cache; step time with its lower bound.
`peers`: the same task with transformers' BLIP-base and GIT-base, randomly initialised."""

from functools import partial

import numpy as np
import torch
from torch.nn.functional import linear
from transformers import BlipConfig, BlipForConditionalGeneration, GitConfig, GitForCausalLM

from modeling_sevlm.packed_linear_sevlm import packed_linears

from .inputs import TINY_VISION, Inputs, make_inputs
from .measure import interleaved, mib, rate_table, speedup, step_bytes, table
from .recompute import Recompute


YARDSTICK, EAGER = "recompute float32", "recompute, eager attention float32"
READ_BYTES = {"full": 2**29, "tiny": 2**22}  # full: far more than the caches hold
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
    variants["tower alone float32"] = partial(image_features, reference, pixel_values)
    for dtype, model in models.items():
        variants[f"tower alone {dtype}"] = partial(image_features, model, pixel_values)
        variants[f"ours {dtype}"] = partial(model.generate, pixel_values=pixel_values)
    timings = interleaved(variants, args.repeats, args.device)
    columns = {
        "x yardstick": lambda name, timing: speedup(timings[YARDSTICK], timing),
        "x eager yardstick": lambda name, timing: speedup(timings[EAGER], timing),
        "/ tower time": lambda name, timing: speedup(timing, timings[f"tower alone {name.split()[-1]}"]),
        "peak MiB on top": lambda name, timing: mib(timing.peak_memory),
    }
    title = f"Generation, batch {args.batch_size}, {new_tokens} new tokens, images included"
    tables = [rate_table(title, timings, args.batch_size, "images", columns), measure_steps(inputs, models, args)]
    checks = compare_tokens(inputs, yardstick, models, pixel_values)
    return {"tables": tables, "checks": checks, "measurements": timings}


def run_peers(args) -> dict:
    inputs = make_inputs(args.size)
    pixel_values, new_tokens = inputs.pixel_values(args.batch_size).to(args.device), inputs.size.new_tokens
    prompt, variants, checks = len(inputs.processor.token_layout()["prompt_token_ids"]), {}, {}
    for dtype in args.dtype:
        model = inputs.model().to(args.device, getattr(torch, dtype))
        variants[f"SEVLM {dtype}"] = partial(model.generate, pixel_values=pixel_values)
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
    timings = interleaved(variants, args.repeats, args.device)
    title = f"The same work by other models: batch {args.batch_size}, {new_tokens} new tokens, images included"
    columns = {"SEVLM is faster by": lambda name, timing: speedup(timing, timings[f"SEVLM {name.split()[-1]}"])}
    tables = [rate_table(title, timings, args.batch_size, "images", columns)]
    return {"tables": tables, "checks": checks, "measurements": timings}


def make_peer(name: str, size: str):
    """A model with random weights and without an end token, so that all models generate the same number of tokens."""
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
        return model.encode_images(pixel_values)


def measure_steps(inputs: Inputs, models: dict, args) -> dict:
    """Compares each model's time per decoding step, (time for N tokens - time for 1) / (N - 1), with the time needed
    to read its weights."""
    many, variants, rows = inputs.size.new_tokens, {}, []
    for batch_size in (1, 8):
        pixel_values = inputs.pixel_values(batch_size).to(args.device)
        for dtype, model in models.items():
            features = image_features(model, pixel_values).clone()
            for tokens in (1, many):
                generate = partial(model.generate, image_features=features, max_new_tokens=tokens)
                variants[dtype, batch_size, tokens] = generate
    # The speed of memory drifts by a factor of two on shared machines, so reading takes turns with generation.
    matrix = torch.ones(READ_BYTES[args.size] // 4096, 1024, device=args.device)
    ways = {"sum": matrix.sum, "max": matrix.max, "vector product": lambda: linear(matrix[:1], matrix)}
    timings = interleaved(variants | ways, args.repeats, args.device)
    rate = READ_BYTES[args.size] / min(timings[way].median for way in ways)
    for dtype, batch_size, _ in list(variants)[::2]:
        one, every = (timings[dtype, batch_size, tokens].seconds for tokens in (1, many))
        step, floor = float(np.median(np.subtract(every, one))) / (many - 1), step_bytes(models[dtype]) / rate
        rows.append([dtype, batch_size, 1000 * step, 1000 * floor, step / floor])
    title = f"One decoding step (time of {many} tokens - time of 1) / {many - 1}, memory read at {rate / 1e9:.1f} GB/s"
    return table(title, ["", "batch", "step ms", "floor: weights ms", "/ weights"], rows)


@torch.no_grad()
def compare_tokens(inputs: Inputs, yardstick: Recompute, models: dict, pixel_values) -> dict[str, float]:
    """Shares of tokens that equal the yardstick's, after the plain prompt and after a label, where VAD is fused.
    Raises an AssertionError if float32 tokens differ, unless the two candidates' logits are almost equal."""
    checks, new_tokens = {}, inputs.size.new_tokens
    asked = inputs.processor(emotions=[inputs.processor.emotions[0]] * len(pixel_values), return_tensors="pt")
    prompts = {"free": {}, "after a label": {"input_ids": asked["input_ids"].to(pixel_values.device)}}
    for text, prompt in prompts.items():
        expected = yardstick.generate(pixel_values, new_tokens, **prompt)
        for dtype, model in models.items():
            tokens = model.generate(pixel_values=pixel_values, **prompt)
            different = tokens.ne(expected)
            share = different[:, -new_tokens:].float().mean().item()
            checks[f"{dtype} tokens equal to the yardstick's, {text}"] = 1 - share
            if dtype == "float32" and share:
                rows = different.any(dim=1).nonzero()[:, 0]
                first = different[rows].int().argmax(dim=1)
                logits = yardstick.logits(expected, image_features(yardstick.model, pixel_values))[rows, first - 1]
                both = torch.stack([expected[rows, first], tokens[rows, first]], dim=1)
                gap = logits.gather(1, both).diff(dim=1).abs().max().item()
                if gap > 1e-3:
                    raise AssertionError(f"Other tokens than recomputing ({text}): their logits differ by {gap:.3g}.")
    return checks
