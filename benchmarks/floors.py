# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Lower bounds of a decoding step, from the speeds of this machine's memory and matrix products.

A bound is valid only if the machine cannot beat it. Each speed is therefore the highest of several ways to reach it.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import linear
from torch.utils.benchmark import Timer


READ_BYTES = {"full": 2**29, "tiny": 2**22}  # full: far more than the caches hold
PRODUCT_SIZE = {"full": 3072, "tiny": 128}
SECONDS = {"full": 1.0, "tiny": 0.01}  # spent on each way


def machine_speeds(device: torch.device, dtypes: list[str], size: str) -> tuple[dict, Callable[[], object]]:
    """Rates of all ways of reading and multiplying, the best of them, and the fastest way of reading as a call."""
    ones = torch.ones(READ_BYTES[size] // 4, device=device)
    matrix, halves = ones.view(-1, 1024), torch.ones(2 * len(ones), device=device).bfloat16().view(-1, 1024)
    reads = {"sum float32": ones.sum, "sum int64": ones.view(torch.int64).sum, "max float32": ones.max}
    reads["vector product float32"] = lambda: linear(matrix[:1], matrix)
    reads["vector product bfloat16"] = lambda: linear(halves[:1], halves)
    rates = {name: READ_BYTES[size] / _fastest(way, size) for name, way in reads.items()}
    products, side = {}, PRODUCT_SIZE[size]
    for dtype in dtypes:
        a, b = torch.ones(2, side, side, device=device, dtype=getattr(torch, dtype))
        ways = {"matmul": lambda a=a, b=b: a @ b, "linear": lambda a=a, b=b: linear(a, b)}
        products[dtype] = {name: side**3 / _fastest(way, size) for name, way in ways.items()}
    best = {dtype: max(ways.values()) for dtype, ways in products.items()}
    speeds = {"read_ways": rates, "product_ways": products, "multiply_adds_per_second": best}
    return speeds, reads[max(rates, key=rates.get)]


def _fastest(call: Callable[[], object], size: str) -> float:
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=SECONDS[size]).times)


def step_floors(model, patches: int, batch_size: int, bytes_per_second: float, products_per_second: float) -> dict:
    """Seconds that a step of cached decoding cannot beat: `weights` for reading the weights that every new token is
    multiplied with, `memory` for the cached keys and values of the patches too, `products` for multiplying."""
    blocks = model.decoder.h.named_parameters()
    # The projections of the patches are cached.
    weights = sum(parameter.numel() for name, parameter in blocks if "crossattention.c_attn" not in name)
    weights += sum(parameter.numel() for parameter in [*model.decoder.vad_fusion.parameters(), model.lm_head.weight])
    cached = batch_size * 2 * len(model.decoder.h) * patches * model.config.hidden_size
    return {
        "weights": weights * model.dtype.itemsize / bytes_per_second,
        "memory": (weights + cached) * model.dtype.itemsize / bytes_per_second,
        "products": (batch_size * weights + cached) / products_per_second,
    }
