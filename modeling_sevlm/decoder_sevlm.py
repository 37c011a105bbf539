# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The language decoder (Sec. 4.1-4.2): GPT-2 with cross-attention to the patches, two segments, and VAD fusion."""

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, GPT2Config, GPT2Model
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.utils.output_capturing import capture_outputs

from .emotion_sevlm import VAD_SIZE


class SEVLMDecoder(GPT2Model):
    """GPT-2's embeddings, blocks and final LayerNorm, with what the paper adds between embeddings and blocks.

    It differs from `GPT2Model` in one place: behind word + position + segment embedding and dropout, the explanation's
    embeddings are replaced by `Linear(embedding ; emotion feature)` (Eq. 2).
    """

    def __init__(self, config: GPT2Config, use_vad_features: bool):
        super().__init__(config)
        self.vad_fusion = nn.Linear(config.n_embd + VAD_SIZE, config.n_embd) if use_vad_features else None
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor,
        image_embeds: torch.Tensor,
        token_type_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        emotion_features: torch.Tensor | None = None,
        fusion_mask: torch.Tensor | None = None,
        past_key_values=None,
        use_cache: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        Args:
            input_ids, token_type_ids: `(B, L)`; the second holds the ids of the segment tokens.
            image_embeds: `(B, K, n_embd)` patch features, wanted at every step.
            position_ids: `(B, L)` or `(1, L)`.
            attention_mask: `(B, past + L)`, or a prepared 4D additive mask.
            emotion_features: `(B, L, 3)` f^E, fused where `fusion_mask` `(B, L)` is true.

        Returns:
            `last_hidden_state` `(B, L, n_embd)` behind the final LayerNorm, and `past_key_values`.
        """
        if use_cache and not isinstance(past_key_values, EncoderDecoderCache):
            # The second half keeps the patches' keys and values, which are computed once.
            own = past_key_values if past_key_values is not None else DynamicCache(config=self.config)
            past_key_values = EncoderDecoderCache(own, DynamicCache(config=self.config))

        hidden = self.wte(input_ids) + self.wpe(position_ids)
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            # Positions would be searched for packed sequences, which a left-padded row without mask resembles.
            position_ids=None,
        )
        image_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden, attention_mask=None, encoder_hidden_states=image_embeds
        )
        hidden = self.drop(hidden + self.wte(token_type_ids))
        if emotion_features is not None:
            fused = self.vad_fusion(torch.cat([hidden, emotion_features.to(hidden.dtype)], dim=-1))
            hidden = torch.where(fusion_mask.unsqueeze(-1), fused, hidden)

        for block in self.h:
            hidden = block(
                hidden,
                past_key_values,
                causal_mask,
                image_embeds,  # positional, as gradient checkpointing wants it
                encoder_attention_mask=image_mask,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.ln_f(hidden), past_key_values=past_key_values if use_cache else None
        )
