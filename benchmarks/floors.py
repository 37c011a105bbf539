# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What the machine could do at best: the speeds of its memory and of its matrix products, and what one step of
decoding has to read and to multiply.

A floor is only honest if the machine cannot beat it. Speeds are therefore the highest of several ways to reach them.
The speed of memory drifts by a factor of two on shared machines: the fastest way of reading is timed once more, in
turns with what it is compared with.
"""

import time
from collections.abc import Callable

import torch
from torch import nn

from .measure import synchronise


READ_BYTES = {"full": 2**29, "tiny": 2**22}  # far more than the caches hold, except where it is only to be tried
PRODUCT_SIZE = {"full": 3072, "tiny": 128}
SECONDS_AT_LEAST = {"full": 1.0, "tiny": 0.01}  # spent on each way


def machine_speeds(device: torch.device, dtypes: list[torch.dtype], size: str) -> dict:
    """`read`, the fastest way of reading `READ_BYTES[size]`; `multiply_adds_per_second` by dtype; with the rate of
    every way tried."""
    reads, seconds = _reads(device, READ_BYTES[size]), SECONDS_AT_LEAST[size]
    read_rates = {name: READ_BYTES[size] / _fastest(way, device, seconds) for name, way in reads.items()}
    products = {}
    for dtype in dtypes:
        side = PRODUCT_SIZE[size]
        ways = _products(device, dtype, side)
        products[_name(dtype)] = {name: side**3 / _fastest(way, device, seconds) for name, way in ways.items()}
    return {
        "read": reads[max(read_rates, key=read_rates.get)],
        "read_ways": read_rates,
        "multiply_adds_per_second": {dtype: max(rates.values()) for dtype, rates in products.items()},
        "product_ways": products,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _fastest(way: Callable[[], object], device: torch.device, seconds_at_least: float) -> float:
    way()
    best, spent = float("inf"), 0.0
    while spent < seconds_at_least:
        synchronise(device)
        start = time.perf_counter()
        way()
        synchronise(device)
        taken = time.perf_counter() - start
        best, spent = min(best, taken), spent + taken
    return best


def _reads(device: torch.device, num_bytes: int) -> dict[str, Callable[[], object]]:
    """Ways to read `num_bytes` once: reductions, and products of a matrix with one vector."""
    floats = torch.ones(num_bytes // 4, device=device)
    halves = torch.ones(num_bytes // 2, device=device, dtype=torch.bfloat16)
    columns = 1024
    matrix, half_matrix = floats.view(-1, columns), halves.view(-1, columns)
    vector, half_vector = floats[:columns].view(1, -1), halves[:columns].view(1, -1)
    ways = {
        "sum float32": floats.sum,
        "sum int64": floats.view(torch.int64).sum,
        "max float32": floats.max,
        "vector product float32": lambda: nn.functional.linear(vector, matrix),
        "vector product bfloat16": lambda: nn.functional.linear(half_vector, half_matrix),
    }
    for name, weight, row in (("float32", matrix, vector), ("bfloat16", half_matrix, half_vector)):
        packed = _packed(weight)
        if packed is not None:
            ways[f"oneDNN vector product {name}"] = lambda packed=packed, row=row: _packed_product(row, packed)
    return ways


def _products(device: torch.device, dtype: torch.dtype, side: int) -> dict[str, Callable[[], object]]:
    """Ways to multiply two matrices of `side` rows and columns."""
    a, b = torch.ones(2, side, side, device=device, dtype=dtype)
    ways = {"matmul": lambda: a @ b, "linear": lambda: nn.functional.linear(a, b)}
    packed = _packed(b)
    if packed is not None:
        ways["oneDNN linear"] = lambda: _packed_product(a, packed)
    return ways


def _packed(weight: torch.Tensor) -> torch.Tensor | None:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def _packed_product(rows: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")


def decode_step_work(model, patches: int) -> dict[str, int]:
    """What one step of cached decoding cannot do without.

    Returns:
        `weights`: parameters that are multiplied with every new token: blocks (without the projections of the
        patches, which are cached), vocabulary, VAD fusion. `cached_values_per_picture`: numbers among the cached keys
        and values of a picture's patches.
    """
    decoder = model.decoder
    in_blocks = sum(
        parameter.numel() for name, parameter in decoder.h.named_parameters() if "crossattention.c_attn" not in name
    )
    fusion = sum(parameter.numel() for parameter in decoder.vad_fusion.parameters())
    width, layers = model.config.hidden_size, len(decoder.h)
    return {
        "weights": in_blocks + fusion + model.lm_head.weight.numel(),
        "cached_values_per_picture": 2 * layers * patches * width,
    }


def decode_step_floors(work: dict, speeds: dict, dtype: torch.dtype, batch_size: int) -> dict[str, float]:
    """Seconds that a step cannot beat: `weights` reading the weights, `memory` reading them and the patches' keys and
    values, `products` multiplying."""
    bytes_each = torch.finfo(dtype).bits // 8
    rate = speeds["read_bytes_per_second"]
    weights = work["weights"] * bytes_each / rate
    return {
        "weights": weights,
        "memory": weights + batch_size * work["cached_values_per_picture"] * bytes_each / rate,
        "products": batch_size
        * (work["weights"] + work["cached_values_per_picture"])
        / speeds["multiply_adds_per_second"][_name(dtype)],
    }
