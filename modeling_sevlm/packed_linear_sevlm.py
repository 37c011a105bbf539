# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Matrix products on CPU with weights in oneDNN's blocked order.

A step of generation multiplies a few rows by every weight of the decoder: its time is that of reading the weights.
oneDNN's products of few rows are faster than the default kernels once the weights lie in its own order
(docs/performance.md).
That order is a second copy of the weights in memory, made on first use.

    with packed_linears(model):  # what `generate`, `emotion_scores` and `alignment_score` do
        ...

Nothing changes for other models and other threads, outside the block, under autograd or autocast, in a compiled graph,
on other devices, in other dtypes than float32 and bfloat16, or where a layer's weight is no plain parameter.
`model.pack_weights = False` keeps a model from it and frees the copy.
"""

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D


MIN_WEIGHTS = 2**10

_thread = threading.local()  # .packed: {layer: packed weight} of the blocks that this thread is in
_lock = threading.Lock()


@dataclass
class _Packed:
    source: torch.Tensor  # shares the weight's memory, so that its address is not given to another
    version: int
    sample: torch.Tensor
    weight: torch.Tensor

    def is_of(self, weight: torch.Tensor) -> bool:
        return (
            self.source.data_ptr() == weight.data_ptr()
            and self.source.dtype == weight.dtype
            and self.version == weight._version
            and torch.equal(self.sample, _sample(weight))
        )


# Not on the modules: packed weights cannot be copied, pickled or saved.
_known: WeakKeyDictionary[nn.Module, _Packed] = WeakKeyDictionary()


class PackableLinear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        packed = _packed_weight(self, input)
        return super().forward(input) if packed is None else _product(input, packed, self.bias)

    def _apply(self, fn, recurse=True):
        _known.pop(self, None)  # weights on the move are not needed where they were
        return super()._apply(fn, recurse)


class PackableConv1D(Conv1D):
    """GPT-2's linear layer, whose weight is stored transposed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        packed = _packed_weight(self, x)
        return super().forward(x) if packed is None else _product(x, packed, self.bias)

    def _apply(self, fn, recurse=True):
        _known.pop(self, None)
        return super()._apply(fn, recurse)


def make_packable(module: nn.Module):
    """Give the linear layers of `module` the forward of this file. Parameters and their names stay."""
    for layer in module.modules():
        # Of a small matrix the call itself takes the time.
        if isinstance(layer, nn.Linear | Conv1D) and layer.weight.numel() < MIN_WEIGHTS:
            continue
        if type(layer) is nn.Linear:
            layer.__class__ = PackableLinear
        elif type(layer) is Conv1D:
            layer.__class__ = PackableConv1D


def packable_layers(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, PackableLinear | PackableConv1D)]


@contextmanager
def packed_linears(module: nn.Module, enabled: bool = True, without: nn.Module | None = None):
    """Within this block and this thread, the layers of `module`, except those of `without`, compute with packed
    weights, made anew where weights have changed. Not `enabled`, they compute as ever.

    Changes through `.data` that touch single numbers are not noticed; those of rows, columns or matrices are, and all
    others."""
    before = getattr(_thread, "packed", {})
    layers = packable_layers(module)
    left_out = set(packable_layers(without)) if without is not None else set()
    active = {layer: weight for layer, weight in before.items() if enabled or layer not in layers}
    if enabled:
        with _lock:
            fresh = {layer: _pack(layer) for layer in layers if layer not in left_out}
        active |= {layer: weight for layer, weight in fresh.items() if weight is not None}
    _thread.packed = active
    try:
        yield
    finally:
        _thread.packed = before


def forget_packed(module: nn.Module):
    """Free the copies of the weights of `module`."""
    with _lock:
        for layer in packable_layers(module):
            _known.pop(layer, None)


def _can_pack(layer: nn.Module) -> bool:
    weight = layer._parameters.get("weight")
    if weight is None or is_parametrized(layer):  # pruned or normalised: computed anew before every call
        return False
    if type(weight.detach()) is not torch.Tensor or weight.is_inference():  # quantised; without a count of changes
        return False
    if weight.device.type != "cpu" or not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32


def _pack(layer: nn.Module) -> torch.Tensor | None:
    if not _can_pack(layer):
        _known.pop(layer, None)
        return None
    weight = layer.weight.detach()
    known = _known.get(layer)
    if known is None or not known.is_of(weight):
        rows = weight.t() if isinstance(layer, Conv1D) else weight
        packed = torch.ops.mkldnn._reorder_linear_weight(rows, None)
        known = _known[layer] = _Packed(weight, weight._version, _sample(weight).clone(), packed)
    return known.weight


def _sample(weight: torch.Tensor) -> torch.Tensor:
    """Some numbers of every row. Changes through `.data`, as of merged adapters and averaged weights, leave the
    version as it is; comparing all numbers would take as long as several steps of generation."""
    return weight.reshape(-1)[:: min(127, weight.shape[-1] // 2 | 1)]


def _packed_weight(layer: nn.Module, input: torch.Tensor) -> torch.Tensor | None:
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return None
    packed = getattr(_thread, "packed", None)
    weight = packed.get(layer) if packed else None
    return weight if weight is not None and input.dtype == layer.weight.dtype else None


def _product(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
