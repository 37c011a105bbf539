# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Where the model looked while it wrote a word: its cross-attention over the patches, as pictures.

    words, maps = attention_map(model, processor.tokenizer, sequence, pixel_values=inputs["pixel_values"])
    overlay_attention(image, maps[words.index("sea")])

Two measures, both from the cross-attention. `"attention"` are its weights. But a weight on a patch that says what all
patches say tells of no place: the output is the mean of the patches' values plus what the attended ones differ from
it, and `"contribution"`, the default, is the size of each patch's part in that difference (after Kobayashi et al.,
2020, who weigh by the values' norms). `python -m studies.attention` checks both on pictures with a known answer.

A map tells what the decoder took from where, which is not yet why it chose the word; and what stands at a patch of the
tower's last layer may come from elsewhere in the picture. Never copied to the Hub.
"""

import math
import threading
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import nn

from .pipeline_sevlm import words_of_explanation


# Of matplotlib's "magma", dark to light: even steps of lightness, the same in grey and for colour-blind eyes.
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
    head: int | None = None,
    grid: tuple[int, int] | None = None,
) -> tuple[list[str], np.ndarray]:
    """The words of an explanation and, for each, where the model looked in the step that produced it.

    The finished sentence goes through the decoder once more, in one pass. A word of several tokens has their mean.
    Nothing of the model is switched, so that other threads may use it meanwhile. (Call `eval()` first, as for
    `generate`.)

    Args:
        model: a `SEVLMForConditionalGeneration`.
        tokenizer: the one of its processor.
        sequence: `(L,)` or `(1, L)`, a row of what `generate` returned, prompt included.
        pixel_values: `(1, 3, H, W)` of its picture; or `image_features`: `(1, K, d)`.
        measure: `"contribution"` or `"attention"`, see the top of this file.
        layer: a decoder layer, `-1` for the last one; `"mean"` of all of them; or `"rollout"`, which follows what the
            words took from the patches through the self-attention of the layers above.
        head: one head instead of all: of attention their mean, of contributions their sum.
        grid: rows and columns of the patches; only needed where they are not as the configuration says.

    Returns:
        The words, those of the pipeline's `vad` in the same order, and `(words, rows, columns)` float32; each word's
        map is not negative and sums to 1.

    Raises:
        ValueError: for several sentences or pictures, an unknown measure, layer or head, patches that do not fill the
            grid.
    """
    sequence = sequence.reshape(1, -1) if sequence.dim() == 1 else sequence
    if sequence.dim() != 2 or sequence.shape[0] != 1:
        raise ValueError(f"attention_map takes one sentence, (L,) or (1, L), not {tuple(sequence.shape)}.")
    sequence = sequence.to(model.device)
    sequence = sequence[:, sequence[0].ne(model.config.pad_token_id)]
    if image_features is None:
        with torch.no_grad():
            image_features = model.get_image_features(pixel_values.to(model.device))
    if image_features.shape[0] != 1:
        raise ValueError(f"attention_map takes one picture, not {image_features.shape[0]}.")
    steps = reduce_layers(*patch_shares(model, sequence, image_features, measure=measure, head=head), layer)
    rows, columns = grid or patch_grid(model.config.vision_config, image_features.shape[1])
    if rows * columns != image_features.shape[1]:
        raise ValueError(f"{image_features.shape[1]} patches do not fill a grid of {rows} x {columns}: pass `grid=`.")
    words = explanation_words(model, tokenizer, sequence[0].tolist())
    # The token at a position was predicted from the one before it.
    maps = [steps[[position - 1 for position in positions]].mean(dim=0) for _, positions in words]
    maps = torch.stack(maps) if maps else steps.new_zeros(0, rows * columns)
    return [word for word, _ in words], maps.view(-1, rows, columns).float().cpu().numpy()


@torch.no_grad()
def attention_weights(model, sequences: torch.Tensor, image_features: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Attention of every step of a teacher-forced pass, float32 and without dropout: to the patches
    `(layers, N, heads, L, K)`, and to the text `(layers, N, heads, L, L)`.

    Args:
        sequences: `(N, L)` tokens without padding, prompts included, of N pictures.
        image_features: `(N, K, d)`.
    """
    with record_inputs(model.decoder) as inputs:
        model(input_ids=sequences, image_features=image_features, skip_logits=True)
    cross = [_to_patches(block.crossattention, *inputs[block.crossattention])[0] for block in model.decoder.h]
    text = [_to_text(block.attn, inputs[block.attn][0]) for block in model.decoder.h]
    return torch.stack(cross), torch.stack(text)


@torch.no_grad()
def patch_shares(
    model, sequence: torch.Tensor, image_features: torch.Tensor, *, measure: str, head: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """How each layer divides a step among the patches, `(layers, L, K)`, and among the text, `(layers, L, L)`: means
    over heads, rows that sum to 1. The arguments are those of [`attention_map`], for `(1, L)` and `(1, K, d)`."""
    if measure not in ("contribution", "attention"):
        raise ValueError(f"measure is 'contribution' or 'attention', not {measure!r}.")
    heads = model.config.text_config.n_head
    if head is not None and not 0 <= head < heads:
        raise ValueError(f"There is no head {head}: the decoder has heads 0 to {heads - 1}.")
    chosen = slice(None) if head is None else slice(head, head + 1)
    with record_inputs(model.decoder) as inputs:
        model(input_ids=sequence, image_features=image_features, skip_logits=True)
    cross, text = [], []
    for block in model.decoder.h:
        weights, values = (
            part[0, chosen] for part in _to_patches(block.crossattention, *inputs[block.crossattention])
        )
        if measure == "contribution":
            # What all patches have in common is there wherever one looks.
            parts = torch.einsum("hlk,hkd->lkd", weights, values - values.mean(dim=1, keepdim=True)).norm(dim=-1)
            total = parts.sum(dim=-1, keepdim=True)
            # Of patches that are all alike, none is looked at more than another.
            cross.append(torch.where(total > 0, parts / total, 1 / parts.shape[-1]))
        else:
            cross.append(weights.mean(dim=0))
        text.append(_to_text(block.attn, inputs[block.attn][0])[0].mean(dim=0))
    return torch.stack(cross), torch.stack(text)


def _to_patches(attention: nn.Module, hidden: torch.Tensor, patches: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Weights `(N, heads, L, K)` and what each head would add for a patch alone, `(N, heads, K, width)`."""
    keys, values = attention.c_attn(patches).split(hidden.shape[-1], dim=-1)
    weights = _weights(attention, attention.q_attn(hidden), keys)
    values = values.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    out = attention.c_proj.weight.unflatten(0, (attention.num_heads, -1))  # Conv1D: (in, out)
    return weights, values.float() @ out.float()


def _to_text(attention: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    queries, keys, _ = attention.c_attn(hidden).split(hidden.shape[-1], dim=-1)
    later = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool, device=hidden.device).triu(1)
    return _weights(attention, queries, keys, later)


def _weights(attention: nn.Module, queries: torch.Tensor, keys: torch.Tensor, unseen=None) -> torch.Tensor:
    """`(N, L, width)` and `(N, K, width)` -> `(N, heads, L, K)`, as `GPT2Attention` has them."""
    queries, keys = (states.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for states in (queries, keys))
    scores = queries.float() @ keys.float().transpose(-1, -2) * attention.scaling
    if unseen is not None:
        scores = scores.masked_fill(unseen, float("-inf"))
    return scores.softmax(dim=-1)


@contextmanager
def record_inputs(decoder: nn.Module):
    """What goes into the attentions of `decoder` in this thread: `{module: (hidden_states, patches or None)}`.

    The fused kernels give no weights, and another implementation cannot be chosen for one call only: with it, whoever
    uses the model in another thread would change too. So weights are computed once more from what is recorded here.
    """
    thread, inputs = threading.get_ident(), {}

    def record(module, args, kwargs=None):
        if threading.get_ident() == thread:
            kwargs = kwargs or {}
            inputs[module] = (args[0] if args else kwargs["hidden_states"], kwargs.get("encoder_hidden_states"))

    attentions = [attention for block in decoder.h for attention in (block.attn, block.crossattention)]
    hooks = [attention.register_forward_pre_hook(record, with_kwargs=True) for attention in attentions]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def reduce_layers(cross: torch.Tensor, text: torch.Tensor, layer: int | str) -> torch.Tensor:
    """What [`patch_shares`] gives -> one distribution over the patches a step, `(L, K)`."""
    if layer == "mean":
        return cross.mean(dim=0)
    if layer == "rollout":
        return _roll_out(cross, text)
    if not isinstance(layer, int) or not -len(cross) <= layer < len(cross):
        raise ValueError(f"There is no layer {layer!r}: choose 0 to {len(cross) - 1}, -1, 'mean' or 'rollout'.")
    return cross[layer]


def _roll_out(cross: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Attention rollout (Abnar and Zuidema, 2020), with the patches as a second source: `(layers, L, K)` and
    `(layers, L, L)` -> `(L, K)`.

    Each residual stream is taken as half what it was and half what attention brought. So a step's share of a patch is
    half of what it had through the text, its own and the attended positions', and half of what it attends to itself.
    """
    found = torch.zeros_like(cross[0])
    for to_patches, to_text in zip(cross, text, strict=True):
        found = (found + to_text @ found) / 2
        found = (found + to_patches) / 2
    return found / found.sum(dim=-1, keepdim=True)


def explanation_words(model, tokenizer, ids: list[int]) -> list[tuple[str, list[int]]]:
    """The words behind " because" and the positions of their tokens, as the pipeline's `vad` has them."""
    return words_of_explanation(tokenizer, ids, model.config.because_token_id)


def patch_grid(vision_config, patches: int) -> tuple[int, int]:
    """Rows and columns of so many patches: those of the configuration's picture and patch size if they fit, else a
    square."""

    def pair(value):
        return (value, value) if isinstance(value, int) else tuple(value or (0, 0))

    height, width = pair(getattr(vision_config, "image_size", None))
    patch_height, patch_width = pair(getattr(vision_config, "patch_size", None))
    if patch_height and patch_width:
        rows, columns = height // patch_height, width // patch_width
        if rows * columns == patches:
            return rows, columns
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"{patches} patches are no square: pass `grid=(rows, columns)`.")
    return side, side


def overlay_attention(image: Image.Image, weights: np.ndarray, *, strength: float = 0.65) -> Image.Image:
    """A picture under one word's map: what was looked at shines, the rest is darkened.

    Args:
        weights: `(rows, columns)`, not negative; scaled to its own largest value.
        strength: from 0, the picture alone, to 1, where it shows through what was looked at only.

    Returns:
        RGB, of the picture's size.
    """
    image = image.convert("RGB")
    weights = np.asarray(weights, dtype=np.float32)
    if weights.ndim != 2 or not weights.size:
        raise ValueError(f"overlay_attention takes one word's map, (rows, columns), not {weights.shape}.")
    top = float(weights.max())
    weights = weights / top if top > 0 else weights
    heat = Image.fromarray(weights).resize(image.size, Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(heat), 0, 1)
    colours = np.stack(
        [np.interp(share, np.linspace(0, 1, len(HEAT)), channel) for channel in zip(*HEAT, strict=True)]
    )
    # The hottest place shows the picture itself, a little lit.
    veil = strength * (1 - 0.65 * share)[..., None]
    mixed = np.asarray(image, dtype=np.float32) * (1 - veil) + colours.transpose(1, 2, 0) * veil
    return Image.fromarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8))
