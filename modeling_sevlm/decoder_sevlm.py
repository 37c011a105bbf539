# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The language decoder (Sec. 4.1-4.2): GPT-2 with cross-attention to the patches, two segments, and VAD fusion."""

import torch
from torch import nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, GPT2Config, GPT2Model
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention, eager_attention_forward
from transformers.utils.output_capturing import capture_outputs

from .emotion_sevlm import VAD_SIZE


class SEVLMCache(EncoderDecoderCache):
    """Keys and values of the text, one row per sentence, and of the patches, one row per image."""

    @classmethod
    def wrap(cls, cache: Cache | None, config: GPT2Config) -> "SEVLMCache":
        """Returns a `SEVLMCache` with both halves of an `EncoderDecoderCache`, or with `cache` as the text's half."""
        if isinstance(cache, cls):
            return cache
        if isinstance(cache, EncoderDecoderCache):
            return cls(cache.self_attention_cache, cache.cross_attention_cache)
        return cls(DynamicCache(config=config) if cache is None else cache, DynamicCache(config=config))

    @property
    def has_patches(self) -> bool:
        return bool(self.is_updated.get(0))

    def reorder_cache(self, beam_idx: torch.LongTensor):
        # Beams are reordered within their image only, so the rows of the patches stay.
        self.self_attention_cache.reorder_cache(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor):
        raise NotImplementedError("The cache has one row per sentence for text and one per image: start a new cache.")

    def batch_repeat_interleave(self, repeats: int):
        # The sentences of an image stay consecutive and share its patches.
        self.self_attention_cache.batch_repeat_interleave(repeats)


class SEVLMCrossAttention(GPT2Attention):
    """GPT-2's cross-attention for several sentences per image. Their queries are concatenated, so that the keys and
    values of the image are computed, stored and read once."""

    def __init__(self, config: GPT2Config, layer_idx: int):
        super().__init__(config, is_cross_attention=True, layer_idx=layer_idx)

    def forward(
        self,
        hidden_states: torch.Tensor,
        past_key_values: SEVLMCache | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: `(N, L, n_embd)`; N a multiple of the B images, the sentences of an image consecutive.
            past_key_values: if it holds the patches already, `encoder_hidden_states` is not read.
            encoder_hidden_states: `(B, K, n_embd)` patch features.

        Returns:
            `(N, L, n_embd)`, and weights `(N, heads, L, K)` if the attention implementation returns them.
        """
        rows, length, width = hidden_states.shape
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            cached = past_key_values.cross_attention_cache.layers[self.layer_idx]
            keys, values = cached.keys, cached.values
        else:
            keys, values = map(self._split_heads, self.c_attn(encoder_hidden_states).split(width, dim=-1))
            if past_key_values is not None:
                keys, values = past_key_values.cross_attention_cache.update(keys, values, self.layer_idx)
                past_key_values.is_updated[self.layer_idx] = True
        queries = self._split_heads(self.q_attn(hidden_states).reshape(keys.shape[0], -1, width))

        implementation = self.config._attn_implementation
        if implementation == "sdpa" and keys.device.type == "cpu" and queries.shape[2] == 1:
            # For one query per image, two batched products are up to four times as fast on CPU as the fused kernel.
            implementation = "eager"
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.attn_dropout.p if self.training else 0.0
        # Without `is_causal`, the kernels use the attribute of GPT2Attention, which is for text.
        output, weights = attention(
            self, queries, keys, values, None, dropout=dropout, scaling=self.scaling, is_causal=False
        )
        if weights is not None:  # (B, heads, sentences * L, K)
            weights = weights.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)
        return self.resid_dropout(self.c_proj(output.reshape(rows, length, width))), weights

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


class SEVLMFusion(nn.Linear):
    """`Linear([embedding ; emotion feature])` of Eq. 2."""

    def __init__(self, width: int, starts_as_identity: bool):
        super().__init__(width + VAD_SIZE, width)
        self.starts_as_identity = starts_as_identity


class SEVLMDecoder(GPT2Model):
    """GPT-2's embeddings, blocks and final LayerNorm, with the paper's VAD fusion between embeddings and blocks.

    After word, position and segment embeddings are added and dropout is applied, `vad_fusion` replaces the embeddings
    of the explanation by `Linear([embedding ; emotion feature])` (Eq. 2).
    """

    def __init__(self, config: GPT2Config, use_vad_features: bool, fusion_starts_as_identity: bool = True):
        super().__init__(config)
        for layer_idx, block in enumerate(self.h):
            block.crossattention = SEVLMCrossAttention(config, layer_idx)
            if config.activation_function == "gelu_new":
                # The same formula in one operation instead of eight.
                block.mlp.act = ACT2FN["gelu_pytorch_tanh"]
        self.vad_fusion = SEVLMFusion(config.n_embd, fusion_starts_as_identity) if use_vad_features else None
        self.post_init()

    def _initialize_weights(self, module, is_custom_code: bool = False):
        super()._initialize_weights(module)  # see `SEVLMPreTrainedModel`

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, SEVLMFusion) and module.starts_as_identity:
            weight = torch.eye(*module.weight.shape, device=module.weight.device)
            vad = torch.empty_like(weight[:, -VAD_SIZE:]).normal_(std=self.config.initializer_range)
            init.copy_(module.weight, torch.cat([weight[:, :-VAD_SIZE], vad], dim=1).to(module.weight.dtype))

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor,
        image_embeds: torch.Tensor,
        token_type_ids: torch.Tensor,
        position_ids: torch.Tensor,
        explanation_mask: torch.Tensor | None = None,
        emotion_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        Args:
            input_ids: `(N, L)`; N a multiple of the B images, the sentences of an image consecutive.
            image_embeds: `(B, K, n_embd)` patch features. Required at every step, but not read if the cache holds the
                patches.
            token_type_ids: `(N, L)` ids of the segment tokens.
            position_ids: `(N, L)` or `(1, L)`.
            explanation_mask, emotion_features: `(N, L)` and `(N, L, 3)`; f^E is fused where the mask is true.
            attention_mask: `(N, past + L)`, or a prepared 4D additive mask.

        Returns:
            `last_hidden_state` `(N, L, n_embd)` after the final LayerNorm, and `past_key_values`.
        """
        if use_cache:
            past_key_values = SEVLMCache.wrap(past_key_values, self.config)

        # One look-up for words and segments: each look-up costs a gradient of the vocabulary's size.
        words, segments = self.wte(torch.stack(torch.broadcast_tensors(input_ids, token_type_ids)))
        embeddings = words + self.wpe(position_ids)
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            # transformers detects packed sequences by their positions and would take a left-padded row for one.
            position_ids=None,
        )
        hidden = self.drop(embeddings + segments)
        if emotion_features is not None:
            fused = self.vad_fusion(torch.cat([hidden, emotion_features.to(hidden.dtype)], dim=-1))
            hidden = torch.where(explanation_mask.unsqueeze(-1), fused, hidden)

        for block in self.h:
            hidden = block(
                hidden,
                past_key_values,
                causal_mask,
                image_embeds,  # positional, because gradient checkpointing tracks positional arguments only
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.ln_f(hidden), past_key_values=past_key_values if use_cache else None
        )
