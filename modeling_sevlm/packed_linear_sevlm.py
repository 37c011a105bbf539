# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Matrix products on CPU with weights in oneDNN's blocked order.

A step of generation multiplies a few rows by every weight of the decoder: its time is that of reading the weights.
The default kernels reach half of the memory's speed for one row and a quarter for eight; oneDNN reaches it, once
weights lie in its own order. That order is a second copy of the weights in memory, made on first use.

    with packed_linears(model):  # what `generate`, `emotion_scores` and `alignment_score` do
        ...

Nothing changes outside the block, under autograd, in a compiled graph, on other devices or in other dtypes than
float32 and bfloat16. `model.pack_weights = False` keeps a model from it, which saves the memory.
"""

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


MIN_WEIGHTS = 2**10

_state = threading.local()
_lock = threading.Lock()


@dataclass
class _Packed:
    source: torch.Tensor  # shares the weight's memory, so that its address is not given to another
    version: int
    checksum: torch.Tensor
    weight: torch.Tensor

    def is_of(self, weight: torch.Tensor) -> bool:
        return (
            self.source.data_ptr() == weight.data_ptr()
            and self.source.dtype == weight.dtype
            and self.version == weight._version
            and bool(self.checksum == _checksum(weight))
        )


# Not on the modules: packed weights cannot be copied, pickled or saved.
_packed: WeakKeyDictionary[nn.Module, _Packed] = WeakKeyDictionary()


class PackableLinear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        packed = _packed_weight(self, input)
        return super().forward(input) if packed is None else _product(input, packed, self.bias)


class PackableConv1D(Conv1D):
    """GPT-2's linear layer, whose weight is stored transposed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        packed = _packed_weight(self, x)
        return super().forward(x) if packed is None else _product(x, packed, self.bias)


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


@contextmanager
def packed_linears(module: nn.Module, enabled: bool = True):
    """Within this block and this thread, the layers of `module` compute with packed weights, made anew where weights
    have changed. If not `enabled`, packed weights of earlier blocks are dropped and the block changes nothing."""
    layers = [layer for layer in module.modules() if isinstance(layer, PackableLinear | PackableConv1D)]
    with _lock:
        for layer in layers:
            if enabled:
                _pack(layer)
            else:
                _packed.pop(layer, None)
    before = getattr(_state, "active", False)
    _state.active = True
    try:
        yield
    finally:
        _state.active = before


def _can_pack(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32


def _pack(layer: nn.Module):
    weight = layer.weight.detach()
    known = _packed.get(layer)
    if known is not None and known.is_of(weight):
        return
    _packed.pop(layer, None)
    if _can_pack(weight):
        rows = weight.t() if isinstance(layer, Conv1D) else weight
        packed = torch.ops.mkldnn._reorder_linear_weight(rows, None)
        _packed[layer] = _Packed(weight, weight._version, _checksum(weight), packed)


def _checksum(weight: torch.Tensor) -> torch.Tensor:
    """Changes through `.data` leave the version as it is; reading the weights once costs no more than one step."""
    flat = weight.reshape(-1)
    whole = flat.numel() * flat.element_size() // 8 * 8 // flat.element_size()
    return flat[:whole].view(torch.int64).sum() + flat[whole:].double().sum().to(torch.int64)


def _packed_weight(layer: nn.Module, input: torch.Tensor) -> torch.Tensor | None:
    if torch.compiler.is_compiling() or not getattr(_state, "active", False) or torch.is_grad_enabled():
        return None
    packed = _packed.get(layer)
    return packed.weight if packed is not None and input.dtype == packed.source.dtype else None


def _product(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
