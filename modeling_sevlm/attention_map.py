"""Shows where the model looked when it wrote a word: its cross-attention over the patches, as pictures.

    words, maps = attention_map(model, processor.tokenizer, sequence, pixel_values=inputs["pixel_values"])
    overlay_attention(image, maps[words.index("sea")])

The measure `"attention"` takes the attention weights. But a weight on a patch whose value is that of all others points
to no place. `"contribution"`, the default, is the norm of what a patch adds to the output: its weight times the
difference of its value from the mean (after Kobayashi et al., 2020). docs/figures.md compares the two.
A map shows where the decoder read, not why it chose the word.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from .pipeline_sevlm import explanation_words


# matplotlib's "magma", dark to light in even steps, which are also visible in grey and to colour-blind readers.
HEAT = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))


def attention_map(
    model,
    tokenizer,
    sequence: torch.Tensor,
    *,
    pixel_values: torch.Tensor | None = None,
    image_features: torch.Tensor | None = None,
    measure: str = "contribution",
    layer: int | str = "mean",
) -> tuple[list[str], np.ndarray]:
    """Returns the words of an explanation, as in the pipeline's `vad`, and where the model looked for each: maps
    `(words, rows, columns)`, float32, that are non-negative and sum to 1. A word of several tokens gets their mean.
    Other threads may use the model at the same time.

    Args:
        model, tokenizer: a `SEVLMForConditionalGeneration` in `eval()` mode and the tokenizer of its processor.
        sequence: `(L,)` or `(1, L)`, a row that `generate` returned, prompt included.
        pixel_values: `(1, 3, H, W)`; or `image_features`: `(1, K, d)`.
        measure: `"contribution"` or `"attention"`, see above.
        layer: a decoder layer, `-1` for the last one; `"mean"` of all; or `"rollout"`, which follows the patches
            through the self-attention of the layers above.

    Raises:
        ValueError: several sentences or images; an unknown measure or layer; patches that do not fill a rectangle.
    """
    sequence = torch.atleast_2d(sequence).to(model.device)
    if image_features is None:
        with torch.no_grad():
            image_features = model.encode_images(pixel_values.to(model.device))
    if len(sequence) != 1 or len(image_features) != 1:
        raise ValueError(f"One sentence and one image at a time, not {len(sequence)} and {len(image_features)}.")
    sequence = sequence[:, sequence[0].ne(model.config.pad_token_id)]
    steps = reduce_layers(*patch_shares(model, sequence, image_features, measure=measure), layer)
    rows, columns = patch_grid(model.config.vision_config, image_features.shape[1])
    words = explanation_words(model, tokenizer, sequence[0].tolist())
    maps = steps.new_zeros(len(words), rows, columns)
    for word_map, (_, positions) in zip(maps, words, strict=True):
        # The token at a position was predicted from the one before it.
        word_map[:] = steps[torch.tensor(positions) - 1].mean(dim=0).view(rows, columns)
    return [word for word, _ in words], maps.float().cpu().numpy()


@torch.no_grad()
def patch_shares(
    model, sequence: torch.Tensor, image_features: torch.Tensor, *, measure: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the shares of the patches `(layers, L, K)` and of the text `(layers, L, L)` in each step, over all
    heads. Takes a sequence `(1, L)` and features `(1, K, d)`. Rows sum to 1."""
    if measure not in ("contribution", "attention"):
        raise ValueError(f"measure must be 'contribution' or 'attention', not {measure!r}.")
    with record_inputs(model.decoder) as inputs:
        model(input_ids=sequence, image_features=image_features, skip_logits=True)
    cross, text = [], []
    for block in model.decoder.h:
        attention, (hidden, patches) = block.crossattention, inputs[block.crossattention]
        keys, values = _by_head(attention, attention.c_attn(patches), 2)
        (queries,) = _by_head(attention, attention.q_attn(hidden), 1)
        weights = _weights(attention, queries, keys)
        if measure == "contribution":
            # The output of each head for one patch alone, (heads, K, width).
            values = values @ attention.c_proj.weight.float().unflatten(0, (attention.num_heads, -1))
            parts = torch.einsum("hlk,hkd->lkd", weights, values - values.mean(dim=1, keepdim=True)).norm(dim=-1)
            total = parts.sum(dim=-1, keepdim=True)
            # Identical patches share equally.
            cross.append(torch.where(total > 0, parts / total, 1 / parts.shape[-1]))
        else:
            cross.append(weights.mean(dim=0))
        queries, keys, _ = _by_head(block.attn, block.attn.c_attn(inputs[block.attn][0]), 3)
        later = torch.full((len(sequence[0]),) * 2, -torch.inf, device=sequence.device).triu(1)
        text.append(_weights(block.attn, queries, keys, later).mean(dim=0))
    return torch.stack(cross), torch.stack(text)


def _by_head(attention: Any, states: torch.Tensor, number: int) -> tuple[torch.Tensor, ...]:
    """Splits `(1, L, number * width)` into `number` tensors `(heads, L, width / heads)`."""
    parts = states[0].float().chunk(number, dim=-1)
    return tuple(part.unflatten(-1, (attention.num_heads, -1)).transpose(0, 1) for part in parts)


def _weights(attention: Any, queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor | float = 0.0):
    return (queries @ keys.transpose(-1, -2) * attention.scaling + mask).softmax(dim=-1)


@contextmanager
def record_inputs(decoder: nn.Module) -> Iterator[dict]:
    """Records the inputs of the decoder's attentions in this thread: `{module: (hidden_states, patches or None)}`.
    Fused kernels return no weights, and switching the implementation would affect other threads."""
    thread, inputs = threading.get_ident(), dict[nn.Module, tuple]()

    def record(module, args, kwargs):
        if threading.get_ident() == thread:
            inputs[module] = args[0], kwargs.get("encoder_hidden_states")

    with ExitStack() as hooks:
        for block in decoder.h:
            for attention in (block.attn, block.crossattention):
                hooks.enter_context(attention.register_forward_pre_hook(record, with_kwargs=True))
        yield inputs


def reduce_layers(cross: torch.Tensor, text: torch.Tensor, layer: int | str) -> torch.Tensor:
    """Reduces the layers of [`patch_shares`] to one distribution over the patches per step, `(L, K)`."""
    if layer == "mean":
        return cross.mean(dim=0)
    if layer == "rollout":
        # Abnar and Zuidema (2020): half of a residual stream is its input, half the attention's output.
        share = torch.zeros_like(cross[0])
        for to_patches, to_text in zip(cross, text, strict=True):
            share = ((share + to_text @ share) / 2 + to_patches) / 2
        return share / share.sum(dim=-1, keepdim=True)
    if not isinstance(layer, int) or not -len(cross) <= layer < len(cross):
        raise ValueError(f"There is no layer {layer!r}: choose 0 to {len(cross) - 1}, -1, 'mean' or 'rollout'.")
    return cross[layer]


def patch_grid(vision_config, patches: int) -> tuple[int, int]:
    """Returns rows and columns of the patches: from the configuration if they fit, otherwise a square."""
    image_size, patch_size = (getattr(vision_config, name, None) or 1 for name in ("image_size", "patch_size"))
    rows, columns = np.broadcast_to(np.floor_divide(image_size, patch_size), 2).tolist()
    if rows * columns != patches:
        rows = columns = math.isqrt(patches)
    if rows * columns != patches:
        raise ValueError(f"{patches} patches fill neither the grid of the configuration nor a square.")
    return rows, columns


def attention_veil(weights: np.ndarray, size: int) -> Image.Image:
    """Returns one word's map `(rows, columns)` as a veil to lay over the image, RGBA, with the longer side `size`
    pixels long: dark where the model did not look, thin where it did."""
    weights = np.asarray(weights, dtype=np.float32)
    rows, columns = weights.shape
    scale = size / max(rows, columns)
    target = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    return _veil(weights, target)


def overlay_attention(image: Image.Image, weights: np.ndarray) -> Image.Image:
    """Lays one word's map `(rows, columns)` over the image, dark where the model did not look. Returns RGB."""
    veil = _veil(np.asarray(weights, dtype=np.float32), image.size)
    return Image.alpha_composite(image.convert("RGBA"), veil).convert("RGB")


def _veil(weights: np.ndarray, size: tuple[int, int]) -> Image.Image:
    heat = Image.fromarray(weights / (weights.max() or 1)).resize(size, Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(heat), 0, 1)
    levels = np.linspace(0, 1, len(HEAT))
    colours = [np.interp(share, levels, channel) for channel in zip(*HEAT, strict=True)]
    opacity = 255 * 0.65 * (1 - 0.65 * share)
    return Image.fromarray(np.rint(np.stack([*colours, opacity], axis=-1)).astype(np.uint8), "RGBA")
