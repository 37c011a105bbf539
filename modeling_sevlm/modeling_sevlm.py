# Licensed under the Apache License, Version 2.0; see LICENSE.
"""SEVLM, the Small Emotional Vision Language Model (ECCV 2024), which names an emotion for a painting and explains it.

    model = AutoModel.from_pretrained("org/sevlm-artemis", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained("org/sevlm-artemis", trust_remote_code=True)
    processor.read(model.generate(**processor(images=image, return_tensors="pt")))

`forward` is the data path of Fig. 4. Read the files in this order:

    configuration_sevlm   the configuration: sizes, and the parts that can be switched off
    vision_sevlm          pixel_values -> image_features (encode_patches) -> image_embeds (vision_projection)
    emotion_sevlm         input_ids -> VAD (VADLookup) -> emotion features f^E (SEVLMEmotionEncoder)
    decoder_sevlm         SEVLMDecoder.forward fuses word embeddings and f^E (Eq. 2), then runs GPT-2's blocks
    generation_sevlm      generate
    heads_sevlm           losses and the contrastive head
    label_tree_sevlm      the one-pass scoring of all labels in emotion_scores
    packed_linear_sevlm   faster linear layers on CPU
    checkpoint_sevlm      the base class: loading, saving, pushing; card_sevlm compares weights with a model card
    modeling_sevlm        this file: forward, emotion_scores, alignment_score; pipeline_sevlm calls them and generate
    pipeline_inputs_sevlm   what the pipeline accepts
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .checkpoint_sevlm import SEVLMPreTrainedModel
from .configuration_sevlm import SEVLMConfig
from .decoder_sevlm import SEVLMCache, SEVLMDecoder
from .emotion_sevlm import VAD_SIZE, SEVLMEmotionEncoder, VADLookup
from .generation_sevlm import SEVLMGenerationMixin
from .heads_sevlm import SEVLMContrastiveHead, emotion_loss, language_loss, sentence_means
from .label_tree_sevlm import build_label_tree
from .packed_linear_sevlm import forget_packed, make_packable, packed_linears, use_linear_layers
from .vision_sevlm import build_vision_projection, encode_patches


@dataclass
class SEVLMOutput(ModelOutput):
    """Output of [`SEVLMForConditionalGeneration.forward`] for B images with P sentences each. The P axis is absent if
    `input_ids` has none.

    Args:
        loss: weighted sum of the parts below (Eq. 8), given `labels`.
        language_loss, emotion_loss, contrastive_loss, label_loss: the parts, unweighted.
        logits: `(B, [P,] L, vocab_size)`; `None` with `skip_logits`.
        vad_predictions: `(B, [P,] L, 3)`; position t predicts the VAD of token t + 1 (Eq. 4).
        alignment_scores: `(B, [P])` S(I, M, X) of Eq. 6, given `labels`.
        image_features: `(B, K, d)` patch features, for a later call with `image_features`.
        past_key_values, hidden_states, attentions, cross_attentions: as in transformers, with B * P rows.
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


class SEVLMForConditionalGeneration(SEVLMPreTrainedModel, SEVLMGenerationMixin):
    """Image encoder, GPT-2 decoder with VAD fusion, language head, VAD head and contrastive head (Fig. 4)."""

    _tied_weights_keys = {"lm_head.weight": "decoder.wte.weight"}

    def __init__(self, config: SEVLMConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config) if config.use_vision_tower else None
        self.vision_projection = build_vision_projection(config)
        as_identity = config.vad_fusion_init == "identity"
        self.decoder = SEVLMDecoder(config.text_config, config.use_vad_features, as_identity)
        self.vad_lookup = VADLookup((config.vad_lexicon or {}).get("table"))
        use_encoder = config.use_vad_features and config.use_emotion_encoder
        self.emotion_encoder = SEVLMEmotionEncoder(config) if use_encoder else None
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.vad_head = nn.Linear(config.hidden_size, VAD_SIZE) if config.use_vad_head else None
        self.contrastive_head = SEVLMContrastiveHead(config.hidden_size) if config.contrastive_negatives else None
        self.post_init()
        make_packable(self)
        self._pack_weights = True
        # Nucleus sampling as in the paper's comparison; saved as generation_config.json.
        self.generation_config.update(do_sample=True, top_p=0.9, top_k=0, temperature=1.0, max_new_tokens=25)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(self.generation_config, name, getattr(config, name))
        self.warn_if_lexicon_missing()

    @can_return_tuple
    def forward(  # type: ignore[misc]  # `position_ids` is one of `TransformersKwargs`, too
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> SEVLMOutput:
        """
        Args:
            input_ids: `(B, L)`, or `(B, P, L)` for P sentences about each of B images; the config's prompt by default.
            pixel_values: `(B, 3, H, W)`; or `image_features`: `(B, K, d)`, the output of `encode_images`.
            attention_mask: `(B, [P,] L)`, zero for padding.
            token_type_ids: `(B, [P,] L)` ids of the segment tokens; derived from the first " because" by default.
            vad_values: `(B, [P,] L, 3)` in [-1, 1], VAD of the tokens; looked up in the lexicon by default.
            labels: `(B, [P,] L)`, -100 where no token is predicted. With labels the losses are computed.
            emotion_shares: `(B, number of emotions)` shares of the viewers' labels, for the label loss.
            position_ids, explanation_mask, emotion_features: `(B, L)`, `(B, L)` and `(B, L, 3)`; derived by default.
            past_key_values, use_cache: once the cache holds tokens, `input_ids`, `token_type_ids`, `position_ids`,
                `explanation_mask` and `emotion_features` are those of the new tokens. All are required then, because
                they depend on the cached tokens; `prepare_inputs_for_generation` makes them.
            skip_logits: return no `logits`, and compute them only where `labels` needs them; `SEVLMTrainer` does this.
        """
        image_features = self._image_features(pixel_values, image_features)
        if input_ids is None:
            input_ids = self._prompt(image_features.shape[0])
        batch_shape = input_ids.shape[:-1]  # (B,) or (B, P)
        if labels is not None and batch_shape[0] != image_features.shape[0]:
            raise ValueError(
                f"{batch_shape[0]} rows of training text do not match {image_features.shape[0]} images. Give several "
                "sentences per image as (B, P, L): the contrastive loss needs to know their image."
            )
        input_ids, attention_mask, token_type_ids, labels, position_ids = (
            _merge_sentence_axis(x, 3) for x in (input_ids, attention_mask, token_type_ids, labels, position_ids)
        )
        vad_values = _merge_sentence_axis(vad_values, 4)

        if explanation_mask is None:
            if past_key_values is not None and past_key_values.get_seq_length():
                raise ValueError(
                    "Tokens after cached ones need `token_type_ids`, `position_ids`, `explanation_mask` and "
                    "`emotion_features` that depend on the cached ones: call `prepare_inputs_for_generation`."
                )
            if vad_values is None:
                vad_values = self.vad_lookup(input_ids)
            derived = self._derived_inputs(input_ids, attention_mask, token_type_ids, vad_values)
            token_type_ids, explanation_mask = derived["token_type_ids"], derived["explanation_mask"]
            position_ids = derived["position_ids"] if position_ids is None else position_ids
            emotion_features = derived["emotion_features"]

        image_embeds = self._image_embeds(image_features, input_ids.shape[0], past_key_values)
        decoded = self.decoder(
            input_ids,
            image_embeds,
            token_type_ids,
            position_ids,
            explanation_mask=explanation_mask,
            emotion_features=emotion_features,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )

        hidden = decoded.last_hidden_state
        kept = hidden[:, -logits_to_keep:] if logits_to_keep else hidden
        logits = None if skip_logits else self.lm_head(kept)
        vad_predictions = self.vad_head(kept) if self.vad_head is not None else None

        losses, alignment_scores = {}, None
        if labels is not None:
            present = attention_mask.bool() if attention_mask is not None else torch.ones_like(explanation_mask)
            explanation = explanation_mask & present
            losses["language_loss"] = self._language_loss(hidden, logits, labels)
            if vad_predictions is not None:
                losses["emotion_loss"] = emotion_loss(vad_predictions, vad_values, explanation)
            if self.contrastive_head is not None:
                losses["contrastive_loss"], alignment_scores = self._contrastive_loss(
                    input_ids, hidden, image_embeds, present & ~explanation, explanation
                )
            if self.config.label_loss_weight and emotion_shares is not None:
                losses["label_loss"] = -(emotion_shares * self._label_log_probs(image_features)).sum(dim=-1).mean()
        weighted = [getattr(self.config, f"{name}_weight") * value for name, value in losses.items()]
        return SEVLMOutput(
            loss=sum(weighted) if weighted else None,
            **losses,
            logits=_restore_sentence_axis(logits, batch_shape),
            vad_predictions=_restore_sentence_axis(vad_predictions, batch_shape),
            alignment_scores=alignment_scores.view(batch_shape) if alignment_scores is not None else None,
            image_features=image_features,
            past_key_values=decoded.past_key_values,
            hidden_states=decoded.hidden_states,
            attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
        )

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Returns the tower's output for `(B, 3, H, W)` normalised images; `pooler_output` holds the patch features of
        [`encode_images`], as generation in transformers expects. `kwargs` go to the tower."""
        if self.vision_tower is None:
            raise ValueError(
                "This model was saved without its vision tower and cannot take `pixel_values`: pass `image_features` "
                "(B, K, d), or convert it again with a vision model."
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.vision_tower_is_frozen):
            return encode_patches(self.vision_tower, pixel_values.to(self.vision_tower.dtype), **kwargs)

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(B, 3, H, W)` normalised images -> `(B, K, d)` patch features; no gradient if the tower is frozen."""
        return self.get_image_features(pixel_values, return_dict=True).pooler_output

    def _image_features(self, pixel_values, image_features) -> torch.Tensor:
        if (pixel_values is None) == (image_features is None):
            raise ValueError("Pass either `pixel_values` or `image_features`.")
        if image_features is None:
            return self.encode_images(pixel_values)
        return getattr(image_features, "pooler_output", image_features)

    def _image_embeds(self, image_features: torch.Tensor, rows: int, past_key_values=None) -> torch.Tensor:
        """Returns `(B, K, n_embd)`, the features in the decoder's width, for `rows` sentences (a multiple of B)."""
        if isinstance(past_key_values, SEVLMCache) and past_key_values.has_patches:
            return image_features  # the decoder does not read them
        if rows % image_features.shape[0]:
            raise ValueError(f"{rows} rows of text are not a multiple of {image_features.shape[0]} images.")
        return self.vision_projection(image_features.to(self.dtype)).contiguous()  # GPT-2's Conv1D calls `view`

    def _prompt(self, batch_size: int) -> torch.Tensor:
        if self.config.prompt_token_ids is None:
            remedy = "pass `input_ids`, or set them with `SEVLMConfig(**processor.token_layout())`"
            raise ValueError(f"The config has no `prompt_token_ids`: {remedy}.")
        return torch.tensor([self.config.prompt_token_ids] * batch_size, device=self.device)

    def segment_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns the segment token of every position, `(..., L)`: explanation from the first " because" on."""
        started = input_ids.eq(self.config.because_token_id).cumsum(dim=-1).gt(0)
        return torch.where(started, self.config.explanation_segment_id, self.config.emotion_segment_id)

    def explanation_mask(self, token_type_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Returns a mask `(..., L)` of the explanation: its segment without the first token, " because"; or the
        positions from `config.explanation_start` on (`position_ids` by default: 0 to L - 1)."""
        if self.config.explanation_start is not None:
            if position_ids is None:
                position_ids = torch.arange(token_type_ids.shape[-1], device=token_type_ids.device)
            return position_ids.ge(self.config.explanation_start).expand_as(token_type_ids)
        segment = token_type_ids.eq(self.config.explanation_segment_id)
        return segment & nn.functional.pad(segment[..., :-1], (1, 0))

    def _derived_inputs(self, input_ids, attention_mask=None, token_type_ids=None, vad_values=None) -> dict:
        """Returns the decoder's inputs that follow from the tokens of whole sequences `(N, L)`: segments, positions,
        the mask of the explanation, and emotion features f^E (Eq. 2)."""
        if input_ids.shape[1] > self.config.max_positions:  # counting the mask waits for the device
            longest = input_ids.shape[1] if attention_mask is None else int(attention_mask.sum(dim=-1).max())
            if longest > self.config.max_positions:
                raise ValueError(
                    f"A text of {longest} tokens is too long for a model of {self.config.max_positions} positions: "
                    "shorten it, or give the processor a smaller `max_length`."
                )
        if token_type_ids is None:
            token_type_ids = self.segment_ids(input_ids)
        if attention_mask is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        else:
            position_ids = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
        emotion_features = None
        if self.config.use_vad_features:
            emotion_features = (self.vad_lookup(input_ids) if vad_values is None else vad_values).to(self.dtype)
        if self.emotion_encoder is not None:
            emotion_features = self.emotion_encoder(emotion_features, position_ids, attention_mask)
        return {
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "explanation_mask": self.explanation_mask(token_type_ids, position_ids),
            "emotion_features": emotion_features,
        }

    def _language_loss(self, hidden, logits, labels) -> torch.Tensor:
        """Returns the language loss. Without `logits`, computes them for tokens with a label only: the product with
        the vocabulary is most of the work."""
        targets = labels[:, 1:].flatten()
        positions = targets.ne(-100).nonzero().squeeze(1)
        states = hidden if logits is None else logits
        predicted = states[:, :-1].flatten(0, 1).index_select(0, positions)
        return language_loss(self.lm_head(predicted) if logits is None else predicted, targets[positions])

    def _contrastive_loss(self, input_ids, hidden, image_embeds, emotion_mask, explanation_mask):
        """Returns the contrastive loss and the matched scores `(B, P)`."""
        label_tokens = torch.where(emotion_mask, input_ids, -1).unflatten(0, (image_embeds.shape[0], -1))
        return self.contrastive_head.loss(
            *sentence_means(image_embeds, hidden, emotion_mask, explanation_mask),
            present=explanation_mask.any(dim=-1).view(label_tokens.shape[:2]),
            other_emotion=label_tokens.ne(label_tokens.roll(-1, dims=1)).any(dim=-1),
            negatives=self.config.contrastive_negatives,
        )

    @torch.no_grad()
    def emotion_scores(self, pixel_values=None, image_features=None) -> torch.Tensor:
        """Returns a distribution over `config.emotions`: `(B, number of emotions)` probabilities, float32.

        The score of a label is the language head's log-probability of " label because" after the prompt, normalised
        over the labels. All labels run in one pass, as branches of a tree that share the prompt, so each image is
        attended to once. Call `eval()` first, as for `generate`: dropout would add noise to the scores.
        """
        with self._packed(pixel_values):
            return self._label_log_probs(self._image_features(pixel_values, image_features)).exp()

    def _label_log_probs(self, image_features: torch.Tensor) -> torch.Tensor:
        """Returns the logarithms of `emotion_scores`, with a gradient: `(B, number of emotions)`."""
        if self.config.emotion_token_ids is None:
            raise ValueError("The config has no `emotion_token_ids`: set them from `processor.token_layout()`.")
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
        """Returns S(I, M, X) of Eq. 6 for whole sentences, such as `generate` returns; higher means a better match.

        Args:
            input_ids: `(N, L)`; N a multiple of the images, the candidates of an image consecutive.
            attention_mask: `(N, L)`; by default every `pad_token_id` counts as padding.

        Returns:
            `(N,)` scores.
        """
        if self.contrastive_head is None:
            raise ValueError("This checkpoint has no contrastive head (`contrastive_negatives` is empty).")
        if attention_mask is None:
            attention_mask = input_ids.ne(self.config.pad_token_id).long()
        with self._packed(pixel_values):
            embeds = self._image_embeds(self._image_features(pixel_values, image_features), input_ids.shape[0])
            derived = self._derived_inputs(input_ids, attention_mask, token_type_ids, vad_values)
            hidden = self.decoder(input_ids, embeds, **derived, attention_mask=attention_mask).last_hidden_state
            present, explanation = attention_mask.bool(), derived["explanation_mask"]
            means = sentence_means(embeds, hidden, present & ~explanation, present & explanation)
            return self.contrastive_head(*means).flatten()

    def use_linear_layers(self):
        """Prepares the model for quantisers that look for `nn.Linear`: replaces GPT-2's transposed layers, which hold
        two thirds of the decoder's weights. The model cannot be saved afterwards. Returns the model."""
        use_linear_layers(self)
        self.saves_weights = False
        return self

    def freeze_vision_tower(self):
        """Turns off the tower's gradient and keeps it in evaluation mode. Call this after loading a checkpoint:
        `from_pretrained` does not freeze the tower."""
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

    @property
    def pack_weights(self) -> bool:
        """Whether to keep, on CPU, a second copy of the weights in a layout that is faster to read (see
        packed_linear_sevlm). Setting it to `False` frees the copy."""
        return self._pack_weights

    @pack_weights.setter
    def pack_weights(self, value: bool):
        self._pack_weights = value
        if not value:
            forget_packed(self)

    def _apply(self, fn, recurse=True):
        forget_packed(self)  # the weights are about to move or to change their dtype
        return super()._apply(fn, recurse)

    def _packed(self, pixel_values):
        return packed_linears(self, self._pack_weights, without=self.vision_tower if pixel_values is None else None)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.decoder.wte

    def set_input_embeddings(self, value: nn.Embedding):
        self.decoder.wte = value


def _merge_sentence_axis(tensor: torch.Tensor | None, dims: int) -> torch.Tensor | None:
    """`(B, P, L, ...)` -> `(B * P, L, ...)` if the tensor has `dims` axes."""
    return tensor.flatten(0, 1) if tensor is not None and tensor.dim() == dims else tensor


def _restore_sentence_axis(tensor: torch.Tensor | None, batch_shape: torch.Size) -> torch.Tensor | None:
    """`(B * P, L, ...)` -> `(B, [P,] L, ...)`."""
    return tensor.view(*batch_shape, *tensor.shape[1:]) if tensor is not None else None


SEVLMForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
AutoModel.register(SEVLMConfig, SEVLMForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(SEVLMConfig, SEVLMForConditionalGeneration, exist_ok=True)
