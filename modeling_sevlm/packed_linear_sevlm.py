# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Linear layers on CPU with weights in oneDNN's blocked layout.

A step of generation multiplies a few rows by every weight of the decoder and mostly waits for the weights to be read.
For few rows, oneDNN's products are faster than the default kernels once the weights are in its own layout
(docs/performance.md). The blocked weights are a second copy in memory, made on first use.

    with packed_linears(model):  # as in `generate`, `emotion_scores` and `alignment_score`
        ...

Layers use the copy inside the block, in the thread that entered it. They do not use it under autograd or autocast, in
a compiled graph, on other devices than the CPU, in other dtypes than float32 and bfloat16, or where the weight is not
a plain parameter. `model.pack_weights = False` turns packing off and frees the copy.
"""

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D


# For a smaller matrix, the call takes longer than the product.
MIN_WEIGHTS = 2**10

_thread = threading.local()  # .packed: {layer: packed weight} of the blocks that this thread has entered
_lock = threading.Lock()


@dataclass
class _Packed:
    source: torch.Tensor  # shares the weight's memory, so that no other tensor gets its address
    version: int
    sample: torch.Tensor
    weight: torch.Tensor

    def matches(self, weight: torch.Tensor) -> bool:
        return (
            self.source.data_ptr() == weight.data_ptr()
            and self.source.dtype == weight.dtype
            and self.version == weight._version
            and torch.equal(self.sample, _sample(weight))
        )


# Not an attribute of the layers: packed weights cannot be copied, pickled or saved.
_cache: WeakKeyDictionary[nn.Module, _Packed] = WeakKeyDictionary()


def make_packable(module: nn.Module):
    """Makes the large linear layers of `module` able to use packed weights.

    Only the method `forward` of each layer changes. Tools that quantise, hook or adapt layers go by the class, which
    stays `nn.Linear` or `Conv1D`.
    """
    for layer in module.modules():
        if type(layer) in (nn.Linear, Conv1D) and layer.get_parameter("weight").numel() >= MIN_WEIGHTS:
            layer.forward = MethodType(forward, layer)


def forward(layer: nn.Module, input: torch.Tensor) -> torch.Tensor:
    # A pickle finds the method by its name, `forward`. A layer read from a pickle is not packable.
    packed = _packed_weight(layer, input)
    if packed is None:
        return type(layer).forward(layer, input)
    return _product(input, packed, layer._parameters.get("bias"))


def use_linear_layers(module: nn.Module):
    """Replaces GPT-2's `Conv1D` layers by `nn.Linear` with the same weights, which most quantisers look for. The
    weights are transposed then, so the model cannot be saved any more.

    Raises:
        ValueError: a layer has an adapter, or its weights are on another device until it is used.
    """
    layers = {name: layer for name, layer in module.named_modules() if type(layer) is Conv1D}
    if any(name.endswith("base_layer") for name in layers):
        raise ValueError("The layers have adapters: merge these, or call `use_linear_layers` before adding them.")
    if any(layer.weight.is_meta for layer in layers.values()):
        raise ValueError("The layers are offloaded: load the model without a device map before `use_linear_layers`.")
    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if type(layer) is Conv1D:
                linear = nn.Linear(layer.nx, layer.nf, device="meta")
                linear.weight = nn.Parameter(layer.weight.detach().t().contiguous(), layer.weight.requires_grad)
                linear.bias = layer.bias
                setattr(parent, name, linear)
    make_packable(module)


def packable_layers(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if _is_packable(layer)]


def _is_packable(layer: nn.Module) -> bool:
    own = layer.__dict__.get("forward")
    # accelerate's hooks keep the method that they replace.
    return any(getattr(method, "__func__", None) is forward for method in (own, layer.__dict__.get("_old_forward")))


@contextmanager
def packed_linears(module: nn.Module, enabled: bool = True, without: nn.Module | None = None):
    """Inside this block and thread, the layers of `module`, except those of `without`, use packed weights.

    Weights that changed since the last block are packed again. A change through `.data` of single numbers is not
    noticed; all other changes are. With `enabled=False` the layers use their plain weights, even inside another block.
    """
    outer = getattr(_thread, "packed", {})
    layers = packable_layers(module)
    excluded = set(packable_layers(without)) if without is not None else set()
    active = {layer: weight for layer, weight in outer.items() if enabled or layer not in layers}
    if enabled:
        with _lock:
            packed = {layer: _pack(layer) for layer in layers if layer not in excluded}
        active |= {layer: weight for layer, weight in packed.items() if weight is not None}
    _thread.packed = active
    try:
        yield
    finally:
        _thread.packed = outer


def forget_packed(module: nn.Module):
    """Frees the packed weights of `module`."""
    with _lock:
        for layer in packable_layers(module):
            _cache.pop(layer, None)


def _can_pack(layer: nn.Module) -> bool:
    weight = layer._parameters.get("weight")
    if weight is None or is_parametrized(layer):  # pruned or normalised weights are computed before every call
        return False
    if type(weight.detach()) is not torch.Tensor or weight.is_inference():  # quantised; no version counter
        return False
    if weight.device.type != "cpu" or not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32


def _pack(layer: nn.Module) -> torch.Tensor | None:
    if not _can_pack(layer):
        _cache.pop(layer, None)
        return None
    weight: torch.Tensor = layer._parameters["weight"].detach()
    cached = _cache.get(layer)
    if cached is None or not cached.matches(weight):
        rows = weight.t() if isinstance(layer, Conv1D) else weight
        packed = torch.ops.mkldnn._reorder_linear_weight(rows, None)
        cached = _cache[layer] = _Packed(weight, weight._version, _sample(weight).clone(), packed)
    return cached.weight


def _sample(weight: torch.Tensor) -> torch.Tensor:
    """Returns some numbers of every row, to notice changes of `.data`, as by merged adapters, which do not change
    the version. Comparing all numbers would take as long as several steps of generation."""
    return weight.reshape(-1)[:: min(127, weight.shape[-1] // 2 | 1)]


def _packed_weight(layer: nn.Module, input: torch.Tensor) -> torch.Tensor | None:
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return None
    weight = getattr(_thread, "packed", {}).get(layer)
    return weight if weight is not None and input.dtype == layer.weight.dtype else None


def _product(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
