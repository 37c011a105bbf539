# Licensed under the Apache License, Version 2.0; see LICENSE.
"""How SEVLM generates text: transformers' `generate` for images, with segments and VAD of every new token."""

from typing import Any

import torch
from transformers import GenerationMixin, LogitsProcessor


class ForbiddenTokens(LogitsProcessor):
    """Gives `token_ids` the score -inf. transformers' `SuppressTokensLogitsProcessor` searches the vocabulary for them
    at every step, which takes 0.6 ms on CPU."""

    def __init__(self, token_ids: list[int], device: torch.device):
        self.token_ids = torch.tensor(token_ids, dtype=torch.long, device=device)

    def __call__(self, input_ids, scores):
        return scores.index_fill(1, self.token_ids, float("-inf"))


class SEVLMGenerationMixin(GenerationMixin):
    """`generate` of [`SEVLMForConditionalGeneration`], which has these attributes."""

    config: Any
    device: Any
    emotion_encoder: Any
    _derived_inputs: Any
    _image_features: Any
    _packed: Any
    _prompt: Any

    @torch.no_grad()
    def generate(self, inputs=None, *args, pixel_values=None, image_features=None, input_ids=None, **kwargs):
        """Generates as in transformers, from `pixel_values` or `image_features` and optional left-padded prompts.

        Each image goes through the tower once, for any number of beams, returned sequences or prompts per image.
        Without `input_ids` the prompt is the config's. Segments and VAD are derived from the tokens. The model never
        generates padding or segment tokens; only padding follows the end token.

        Raises:
            ValueError: if prompt and new tokens need more positions than the model has; for `prefill_chunk_size`.
        """
        length = getattr(kwargs.get("generation_config"), "max_length", None)
        new_tokens = getattr(kwargs.get("generation_config"), "max_new_tokens", None)
        if kwargs.get("max_length") is not None or (length is not None and new_tokens is None):
            # transformers would prefer the `max_new_tokens` of the model's generation config.
            kwargs.setdefault("max_new_tokens", None)
        with self._packed(pixel_values):
            image_features = self._image_features(pixel_values, image_features).to(self.device)
            input_ids = inputs if input_ids is None else input_ids
            if input_ids is None:
                input_ids = self._prompt(image_features.shape[0])
            if input_ids.dim() != 2:
                remedy = "Pass images only. During training, generate in `SEVLMTrainer(generation_metrics=...)`."
                raise ValueError(
                    f"`generate` takes prompts (B, L), not sentence pairs {(*input_ids.shape,)}. {remedy}"
                )
            if input_ids.shape[0] % image_features.shape[0]:
                raise ValueError(f"{len(input_ids)} prompts are not a multiple of {len(image_features)} images.")
            for unused in ("token_type_ids", "vad_values", "labels", "emotion_shares"):
                kwargs.pop(unused, None)
            if self.emotion_encoder is not None and not self.emotion_encoder.is_causal:
                # Each new word changes the emotion features of all earlier ones.
                if kwargs.get("use_cache"):
                    raise ValueError("A bidirectional emotion encoder decodes without a cache: drop `use_cache=True`.")
                kwargs["use_cache"] = False
            config = self.config
            segments = (config.emotion_segment_id, config.explanation_segment_id)
            # GPT-2 has one token for the start and the end of a text.
            special = {config.pad_token_id, config.bos_token_id, *segments} - {None, config.eos_token_id}
            ids = sorted(token for token in special if token < config.vocab_size)
            forbidden = ForbiddenTokens(ids, self.device)
            kwargs["logits_processor"] = [forbidden, *(kwargs.get("logits_processor") or ())]
            return super().generate(input_ids, *args, image_features=image_features, **kwargs)  # type: ignore[misc]

    def _validate_generated_length(self, generation_config, input_ids_length, *args):
        super()._validate_generated_length(generation_config, input_ids_length, *args)  # type: ignore[misc]
        if generation_config.max_length > self.config.max_positions:
            # Without this check, an index error would end the longest sentences in the middle.
            new = generation_config.max_length - input_ids_length
            raise ValueError(
                f"A prompt of {input_ids_length} tokens and {new} new ones need more positions than the "
                f"{self.config.max_positions} of this model: shorten the prompt, or lower `max_new_tokens`."
            )

    def _prefill(self, input_ids, generation_config, *args, **kwargs):
        if generation_config.prefill_chunk_size is not None:
            # A part of the prompt does not show where the explanation starts, nor the words that it continues.
            raise ValueError("SEVLM reads its prompt, a few tokens, in one pass: omit `prefill_chunk_size`.")
        return super()._prefill(input_ids, generation_config, *args, **kwargs)  # type: ignore[misc]

    def _expand_inputs_for_generation(self, *args, image_features=None, **kwargs):
        # Beams and candidates of an image share its features.
        input_ids, kwargs = super()._expand_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        return input_ids, kwargs | {"image_features": image_features}

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        # `input_ids` is the whole sequence, even if the cache holds all of it except the last token.
        kwargs["attention_mask"] = attention_mask
        prepared = super().prepare_inputs_for_generation(input_ids, **kwargs)  # type: ignore[misc]
        new = prepared["input_ids"].shape[1]
        for name, values in self._derived_inputs(input_ids, attention_mask).items():
            # A slice's strides depend on the whole length, so `torch.compile` would compile again at every step.
            prepared[name] = None if values is None else values[:, -new:].clone(memory_format=torch.contiguous_format)
        return prepared
