# Licensed under the Apache License, Version 2.0; see LICENSE.
"""SEVLM, the Small Emotional Vision Language Model (ECCV 2024): a painting in, an emotion and its explanation out.

    model = AutoModel.from_pretrained("org/sevlm-artemis", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained("org/sevlm-artemis", trust_remote_code=True)
    processor.read(model.generate(**processor(images=image, return_tensors="pt")))

Reading order: configuration_sevlm, vision_sevlm, emotion_sevlm, decoder_sevlm, heads_sevlm,
label_tree_sevlm, checkpoint_sevlm (loading, saving), this file.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText, GenerationMixin, LogitsProcessor
from transformers.utils import ModelOutput, can_return_tuple

from .checkpoint_sevlm import SEVLMPreTrainedModel
from .configuration_sevlm import SEVLMConfig
from .decoder_sevlm import SEVLMCache, SEVLMDecoder
from .emotion_sevlm import VAD_SIZE, SEVLMEmotionEncoder, VADLookup
from .heads_sevlm import SEVLMContrastiveHead, emotion_loss, language_loss, masked_mean
from .label_tree_sevlm import build_label_tree
from .packed_linear_sevlm import forget_packed, make_packable, packed_linears
from .vision_sevlm import build_vision_tower, encode_patches, ends_in_norm, vision_feature_size


@dataclass
class SEVLMOutput(ModelOutput):
    """What [`SEVLMForConditionalGeneration.forward`] returns. B pictures, P sentences each (no P axis if the input had
    none), L tokens.

    Args:
        loss: weighted sum of the parts below (Eq. 8), given `labels`.
        language_loss, emotion_loss, contrastive_loss, label_loss: the parts, unweighted.
        logits: `(B, [P,] L, vocab_size)`; none if `skip_logits`.
        vad_predictions: `(B, [P,] L, 3)`; position t predicts the VAD of token t + 1 (Eq. 4).
        alignment_scores: `(B, [P])` S(I, M, X) of Eq. 6, given `labels`.
        image_features: `(B, K, d)` patch features; may be given back as `image_features`.
        past_key_values, hidden_states, attentions, cross_attentions: as everywhere in transformers.
    """

    loss: torch.Tensor | None = None
    language_loss: torch.Tensor | None = None
    emotion_loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    label_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    vad_predictions: torch.Tensor | None = None
    alignment_scores: torch.Tensor | None = None
    image_features: torch.Tensor | None = None
    past_key_values: object | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
    cross_attentions: tuple | None = None


class NoSpecialTokens(LogitsProcessor):
    """Forbids tokens that are no text: padding amid a sentence would be left out by one reader and end it for another.

    Args:
        token_ids: the forbidden ones.
    """

    def __init__(self, token_ids: list[int]):
        self.token_ids = token_ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`(N, vocab_size)` scores of the next token."""
        scores = scores.clone()
        for token in self.token_ids:  # (a list as the index would be copied to the device at every step)
            scores[:, token] = float("-inf")
        return scores


class SEVLMForConditionalGeneration(SEVLMPreTrainedModel, GenerationMixin):
    """Image encoder, GPT-2 decoder with VAD fusion, language head, VAD head and contrastive head (Fig. 4)."""

    _tied_weights_keys = {"lm_head.weight": "decoder.wte.weight"}

    def __init__(self, config: SEVLMConfig):
        super().__init__(config)
        width, image_width = config.hidden_size, vision_feature_size(config.vision_config)
        self.vision_tower = build_vision_tower(config.vision_config) if config.use_vision_tower else None
        self.vision_projection = nn.Linear(image_width, width) if image_width != width else nn.Identity()
        if image_width != width and not ends_in_norm(config.vision_config):
            dropout = nn.Dropout(config.text_config.embd_pdrop)
            self.vision_projection = nn.Sequential(nn.LayerNorm(image_width), self.vision_projection, dropout)
        self.decoder = SEVLMDecoder(config.text_config, config.use_vad_features)
        self.vad_lookup = VADLookup((config.vad_lexicon or {}).get("table"))
        use_encoder = config.use_vad_features and config.use_emotion_encoder
        self.emotion_encoder = SEVLMEmotionEncoder(config) if use_encoder else None
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        self.vad_head = nn.Linear(width, VAD_SIZE) if config.use_vad_head else None
        self.contrastive_head = SEVLMContrastiveHead(width) if config.contrastive_negatives else None
        self.post_init()
        make_packable(self)
        self._pack_weights = True
        # Nucleus sampling as in the paper's comparison; saved as generation_config.json.
        self.generation_config.update(
            do_sample=True,
            top_p=0.9,
            top_k=0,
            temperature=1.0,
            max_new_tokens=25,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )
        self.warn_if_lexicon_missing()

    @property
    def pack_weights(self) -> bool:
        """Whether to keep, on CPU, a second copy of the weights in the order in which they are read fastest (see
        packed_linear_sevlm); setting it to `False` frees the copy."""
        return self._pack_weights

    @pack_weights.setter
    def pack_weights(self, value: bool):
        self._pack_weights = value
        if not value:
            forget_packed(self)

    def _packed(self, pixel_values):
        return packed_linears(self, self._pack_weights, without=self.vision_tower if pixel_values is None else None)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.decoder.wte

    def set_input_embeddings(self, value: nn.Embedding):
        self.decoder.wte = value

    def freeze_vision_tower(self):
        """No gradient for the tower, and evaluation mode whatever `train()` says. Call it after loading a checkpoint:
        `from_pretrained` does not keep it."""
        if self.vision_tower is not None:
            self.vision_tower.requires_grad_(False).eval()

    @property
    def vision_tower_is_frozen(self) -> bool:
        return self.vision_tower is not None and not any(p.requires_grad for p in self.vision_tower.parameters())

    def train(self, mode: bool = True):
        super().train(mode)
        if mode and self.vision_tower_is_frozen:
            self.vision_tower.eval()
        return self

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(B, 3, H, W)` normalised pictures -> `(B, K, d)` patch features; no gradient if the tower is frozen."""
        if self.vision_tower is None:
            raise ValueError(
                "This model was saved without its vision tower and cannot take `pixel_values`: pass `image_features` "
                "(B, K, d), or convert it again with a vision model."
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.vision_tower_is_frozen):
            return encode_patches(self.vision_tower, pixel_values.to(self.vision_tower.dtype))

    def _image_features(self, pixel_values, image_features) -> torch.Tensor:
        if (pixel_values is None) == (image_features is None):
            raise ValueError("Pass either `pixel_values` or `image_features`.")
        return self.get_image_features(pixel_values) if image_features is None else image_features

    def _image_embeds(self, image_features: torch.Tensor, rows: int) -> torch.Tensor:
        """`(B, K, n_embd)`: features in the decoder's width, for `rows` texts (a multiple of the pictures)."""
        if rows % image_features.shape[0]:
            raise ValueError(f"{rows} rows of text do not divide among {image_features.shape[0]} pictures.")
        return self.vision_projection(image_features.to(self.dtype)).contiguous()  # Conv1D views it

    def _prompt(self, batch_size: int) -> torch.Tensor:
        if self.config.prompt_token_ids is None:
            raise ValueError(
                "The config holds no `prompt_token_ids`: pass `input_ids` (from the processor), or build the model "
                "with `from_backbones(..., processor)` / `SEVLMConfig(**processor.token_layout())`."
            )
        return torch.tensor([self.config.prompt_token_ids] * batch_size, device=self.device)

    def segment_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """`(..., L)` segment token of every position: explanation from the first " because" on, emotion before it."""
        started = input_ids.eq(self.config.because_token_id).cumsum(dim=-1).gt(0)
        return torch.where(started, self.config.explanation_segment_id, self.config.emotion_segment_id)

    def explanation_mask(self, token_type_ids: torch.Tensor) -> torch.Tensor:
        """The explanation proper: its segment without its first token, which is " because" itself."""
        explanation = token_type_ids.eq(self.config.explanation_segment_id)
        behind = explanation.clone()
        behind[..., 1:] &= explanation[..., :-1]
        behind[..., 0] = False
        return behind

    def _derived_inputs(self, input_ids, attention_mask=None, token_type_ids=None, vad_values=None) -> dict:
        """What the decoder wants beside the tokens of whole sequences `(N, L)`: segments, positions, the mask of the
        explanation, and emotion features f^E (Eq. 2)."""
        if input_ids.shape[1] > self.config.max_positions:  # else no device is asked
            longest = input_ids.shape[1] if attention_mask is None else int(attention_mask.sum(dim=-1).max())
            if longest > self.config.max_positions:
                raise ValueError(
                    f"A text of {longest} tokens for a model of {self.config.max_positions} positions: shorten it, or "
                    "give the processor a smaller `max_length`."
                )
        if token_type_ids is None:
            token_type_ids = self.segment_ids(input_ids)
        if attention_mask is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        else:
            position_ids = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
        derived = {
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "explanation_mask": self.explanation_mask(token_type_ids),
            "emotion_features": None,
        }
        if self.config.use_vad_features:
            features = (self.vad_lookup(input_ids) if vad_values is None else vad_values).to(self.dtype)
            if self.emotion_encoder is not None:
                features = self.emotion_encoder(features, position_ids, attention_mask)
            derived["emotion_features"] = features
        return derived

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        vad_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        emotion_shares: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        explanation_mask: torch.Tensor | None = None,
        emotion_features: torch.Tensor | None = None,
        past_key_values=None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        skip_logits: bool = False,
        **kwargs,
    ) -> SEVLMOutput:
        """
        Args:
            input_ids: `(B, L)`, or `(B, P, L)` for P sentences about each of B pictures; else the config's prompt.
            pixel_values: `(B, 3, H, W)`; or `image_features`: `(B, K, d)` as the tower gives them.
            attention_mask: `(B, [P,] L)`, zero for padding.
            token_type_ids: `(B, [P,] L)` ids of the segment tokens; read off " because" if absent.
            vad_values: `(B, [P,] L, 3)` in [-1, 1], features and targets; looked up in the lexicon if absent.
            labels: `(B, [P,] L)`, -100 where nothing is asked; with them the losses are computed.
            emotion_shares: `(B, number of emotions)` shares of the viewers' labels, for the label loss.
            explanation_mask, emotion_features: `(B, L)` and `(B, L, 3)`; computed here, except for new tokens behind
                cached ones, of which they depend.
            past_key_values, use_cache: with a cache that holds tokens, `input_ids`, `token_type_ids`, `position_ids`,
                `explanation_mask` and `emotion_features` are those of the new tokens, as
                `prepare_inputs_for_generation` makes them.
            skip_logits: leave `logits` out and compute those that `labels` ask for only, as `SEVLMTrainer` does.
        """
        image_features = self._image_features(pixel_values, image_features)
        if input_ids is None:
            input_ids = self._prompt(image_features.shape[0])
        shape = input_ids.shape
        if labels is not None and shape[0] != image_features.shape[0]:
            raise ValueError(
                f"{shape[0]} rows of training text for {image_features.shape[0]} pictures: give several sentences of "
                "a picture the shape (B, P, L), so that the contrastive loss knows whose they are."
            )
        input_ids, attention_mask, token_type_ids, labels, position_ids = (
            x.flatten(0, 1) if x is not None and x.dim() == 3 else x
            for x in (input_ids, attention_mask, token_type_ids, labels, position_ids)
        )
        if vad_values is not None and vad_values.dim() == 4:
            vad_values = vad_values.flatten(0, 1)

        if explanation_mask is None:
            if past_key_values is not None and past_key_values.get_seq_length():
                raise ValueError(
                    "Tokens behind cached ones need `token_type_ids`, `position_ids`, `explanation_mask` and "
                    "`emotion_features` that know the cached ones: see `prepare_inputs_for_generation`."
                )
            if vad_values is None:
                vad_values = self.vad_lookup(input_ids)
            derived = self._derived_inputs(input_ids, attention_mask, token_type_ids, vad_values)
            token_type_ids, explanation_mask = derived["token_type_ids"], derived["explanation_mask"]
            position_ids = derived["position_ids"] if position_ids is None else position_ids
            emotion_features = derived["emotion_features"]

        if isinstance(past_key_values, SEVLMCache) and past_key_values.knows_patches:
            image_embeds = image_features  # not read again
        else:
            image_embeds = self._image_embeds(image_features, input_ids.shape[0])
        decoded = self.decoder(
            input_ids,
            image_embeds,
            token_type_ids,
            position_ids,
            attention_mask=attention_mask,
            emotion_features=emotion_features,
            fusion_mask=explanation_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = decoded.last_hidden_state
        kept = hidden[:, -logits_to_keep:] if logits_to_keep else hidden
        logits = None if skip_logits else self.lm_head(kept)
        vad_predictions = self.vad_head(kept) if self.vad_head is not None else None

        parts, scores = {}, None
        if labels is not None:
            present = attention_mask.bool() if attention_mask is not None else torch.ones_like(explanation_mask)
            explanation = explanation_mask & present
            # No label stands behind prompt and padding; the vocabulary is most of the work.
            asked = labels[:, 1:].ne(-100).flatten().nonzero().squeeze(1)
            source = hidden if skip_logits else logits
            wanted = source[:, :-1].flatten(0, 1).index_select(0, asked)
            wanted = self.lm_head(wanted) if skip_logits else wanted
            parts["language_loss"] = language_loss(wanted, labels[:, 1:].flatten()[asked])
            if vad_predictions is not None:
                parts["emotion_loss"] = emotion_loss(vad_predictions, vad_values, explanation)
            if self.contrastive_head is not None:
                parts["contrastive_loss"], scores = self._contrast(
                    input_ids, hidden, image_embeds, present & ~explanation_mask, explanation, shape
                )
            if self.config.label_loss_weight and emotion_shares is not None:
                parts["label_loss"] = -(emotion_shares * self._label_log_probs(image_features)).sum(dim=-1).mean()
        return SEVLMOutput(
            loss=self._weighted_sum(parts) if parts else None,
            **parts,
            logits=logits.view(*shape[:-1], *logits.shape[1:]) if logits is not None else None,
            vad_predictions=vad_predictions.view(*shape[:-1], -1, VAD_SIZE) if vad_predictions is not None else None,
            alignment_scores=scores,
            image_features=image_features,
            past_key_values=decoded.past_key_values,
            hidden_states=decoded.hidden_states,
            attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
        )

    def _weighted_sum(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        return sum(getattr(self.config, f"{name}_weight") * value for name, value in parts.items())

    def _contrast(self, input_ids, hidden, image_embeds, emotion_part, explanation_part, shape):
        """Contrastive loss and matched scores; the two parts are masks `(B * P, L)` of the sentences' two means."""
        pictures, sentences = shape[0], shape[1] if len(shape) == 3 else 1
        image = image_embeds.mean(dim=1, keepdim=True).expand(-1, sentences, -1)
        means = (masked_mean(hidden, emotion_part), masked_mean(hidden, explanation_part))
        emotion, explanation = (mean.view(pictures, sentences, -1) for mean in means)
        label_tokens = torch.where(emotion_part, input_ids, -1).view(pictures, sentences, -1)
        loss, scores = self.contrastive_head.loss(
            image,
            emotion,
            explanation,
            present=explanation_part.any(dim=-1).view(pictures, sentences),
            other_emotion=label_tokens.ne(label_tokens.roll(-1, dims=1)).any(dim=-1),
            negatives=self.config.contrastive_negatives,
        )
        return loss, scores if len(shape) == 3 else scores.squeeze(1)

    @torch.no_grad()
    def generate(self, inputs=None, *args, pixel_values=None, image_features=None, input_ids=None, **kwargs):
        """As in transformers, for `pixel_values` or `image_features` and, if given, prompts (padded on the left).

        Pictures go through the tower once, whatever the number of beams, returns or prompts per picture. Without
        `input_ids` the prompt is the config's. Segments and VAD are derived from the tokens, given and generated.
        Padding and the segments' tokens are never generated; what stands behind the end token is padding.

        Raises:
            ValueError: prompt and new tokens would need more positions than the model has.
        """
        with self._packed(pixel_values):
            image_features = self._image_features(pixel_values, image_features).to(self.device)
            input_ids = inputs if input_ids is None else input_ids
            if input_ids is None:
                input_ids = self._prompt(image_features.shape[0])
            if input_ids.shape[0] % image_features.shape[0]:
                raise ValueError(f"{input_ids.shape[0]} prompts for {image_features.shape[0]} pictures.")
            for derived in ("token_type_ids", "vad_values", "labels", "emotion_shares"):
                kwargs.pop(derived, None)
            if self.emotion_encoder is not None and not self.emotion_encoder.is_causal:
                # Every earlier emotion feature changes with each new word.
                if kwargs.get("use_cache"):
                    raise ValueError("A bidirectional emotion encoder decodes without a cache: drop `use_cache=True`.")
                kwargs["use_cache"] = False
            kwargs["logits_processor"] = [NoSpecialTokens(self._no_text()), *(kwargs.get("logits_processor") or ())]
            return super().generate(input_ids, *args, image_features=image_features, **kwargs)

    def _no_text(self) -> list[int]:
        """Tokens that never follow a prompt."""
        config = self.config
        ids = {config.pad_token_id, config.emotion_segment_id, config.explanation_segment_id, config.bos_token_id}
        # GPT-2 begins and ends with the same token.
        return sorted(token for token in ids - {None, config.eos_token_id} if token < config.vocab_size)

    def _validate_generated_length(self, generation_config, input_ids_length, has_default_max_length):
        super()._validate_generated_length(generation_config, input_ids_length, has_default_max_length)
        if generation_config.max_length > self.config.max_positions:
            # It would fail without a reason in the middle of a sentence, and only for those that get so long.
            new = generation_config.max_length - input_ids_length
            raise ValueError(
                f"A prompt of {input_ids_length} tokens and {new} new ones need more positions than the "
                f"{self.config.max_positions} that this model has: shorten the prompt, or lower `max_new_tokens`."
            )

    def _expand_inputs_for_generation(self, *args, image_features=None, **kwargs):
        # Beams and candidates of a picture share it.
        input_ids, kwargs = super()._expand_inputs_for_generation(*args, **kwargs)
        return input_ids, kwargs | {"image_features": image_features}

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        # `input_ids` is the whole sequence even when the cache needs the last token only.
        prepared = super().prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **kwargs)
        new = prepared["input_ids"].shape[1]
        for name, values in self._derived_inputs(input_ids, attention_mask).items():
            # Slices remember the length of the whole in their strides; a compiled graph would be made anew each step.
            prepared[name] = None if values is None else values[:, -new:].clone(memory_format=torch.contiguous_format)
        return prepared

    @torch.no_grad()
    def emotion_scores(self, pixel_values=None, image_features=None) -> torch.Tensor:
        """Distribution over `config.emotions`: `(B, number of emotions)` probabilities, float32.

        The language head's log-probability of " label because" after the prompt, normalised over the labels. All
        labels run in one pass as branches of a tree that share the prompt, so the patches are attended to once.
        (Call `eval()` first, as for `generate`: dropout would blur the scores.)
        """
        with self._packed(pixel_values):
            return self._label_log_probs(self._image_features(pixel_values, image_features)).exp()

    def _label_log_probs(self, image_features: torch.Tensor) -> torch.Tensor:
        """Logarithms of `emotion_scores`, with a gradient: `(B, number of emotions)`."""
        if self.config.emotion_token_ids is None:
            raise ValueError("The config holds no `emotion_token_ids`; see `processor.token_layout()`.")
        batch, prompt = image_features.shape[0], self._prompt(1)[0].tolist()
        tree = build_label_tree(prompt, self.config.emotion_token_ids, self.config.because_token_id)
        mask = torch.zeros(tree.mask.shape, dtype=self.dtype).masked_fill(~tree.mask, torch.finfo(self.dtype).min)
        input_ids = tree.input_ids.to(self.device).expand(batch, -1)
        hidden = self.decoder(
            input_ids,
            self._image_embeds(image_features, batch),
            torch.full_like(input_ids, self.config.emotion_segment_id),
            tree.position_ids.to(self.device),
            attention_mask=mask.to(self.device).expand(batch, -1, -1, -1),
        ).last_hidden_state
        log_probs = self.lm_head(hidden[:, len(prompt) - 1 :]).float().log_softmax(dim=-1)
        steps = log_probs[:, tree.nodes - (len(prompt) - 1), tree.tokens]
        scores = steps.new_zeros(batch, len(self.config.emotions))
        scores.index_add_(1, tree.labels.to(self.device), steps)
        return scores.log_softmax(dim=-1)

    @torch.no_grad()
    def alignment_score(
        self,
        input_ids: torch.Tensor,
        pixel_values=None,
        image_features=None,
        attention_mask=None,
        token_type_ids=None,
        vad_values=None,
    ) -> torch.Tensor:
        """S(I, M, X) of Eq. 6 for whole sentences, such as `generate` returns: higher means a better match.

        Args:
            input_ids: `(N, L)`; N a multiple of the pictures, the candidates of a picture side by side.
            attention_mask: `(N, L)`; without it `pad_token_id` counts as padding.

        Returns:
            `(N,)`.
        """
        if self.contrastive_head is None:
            raise ValueError("This checkpoint has no contrastive head (`contrastive_negatives` is empty).")
        if attention_mask is None:
            attention_mask = input_ids.ne(self.config.pad_token_id).long()
        with self._packed(pixel_values):
            embeds = self._image_embeds(self._image_features(pixel_values, image_features), input_ids.shape[0])
            derived = self._derived_inputs(input_ids, attention_mask, token_type_ids, vad_values)
            behind = derived.pop("explanation_mask")
            hidden = self.decoder(
                input_ids, embeds, attention_mask=attention_mask, fusion_mask=behind, **derived
            ).last_hidden_state
            image = embeds.mean(dim=1).repeat_interleave(input_ids.shape[0] // embeds.shape[0], dim=0)
            present = attention_mask.bool()
            return self.contrastive_head(
                image, masked_mean(hidden, present & ~behind), masked_mean(hidden, present & behind)
            )


SEVLMForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
AutoModel.register(SEVLMConfig, SEVLMForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(SEVLMConfig, SEVLMForConditionalGeneration, exist_ok=True)
