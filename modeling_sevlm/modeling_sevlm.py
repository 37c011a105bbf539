# Licensed under the Apache License, Version 2.0; see LICENSE.
"""SEVLM, the Small Emotional Vision Language Model (ECCV 2024): a painting in, an emotion and its explanation out.

    model = AutoModel.from_pretrained("org/sevlm-artemis", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained("org/sevlm-artemis", trust_remote_code=True)
    processor.read(model.generate(**processor(images=image, return_tensors="pt")))

Reading order: configuration_sevlm, vision_sevlm, emotion_sevlm, decoder_sevlm, heads_sevlm,
label_tree_sevlm, this file.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from huggingface_hub import HfApi
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple, logging

from .configuration_sevlm import SEVLMConfig
from .decoder_sevlm import SEVLMCache, SEVLMDecoder
from .emotion_sevlm import VAD_SIZE, SEVLMEmotionEncoder, VADLookup
from .heads_sevlm import SEVLMContrastiveHead, emotion_loss, language_loss, masked_mean
from .label_tree_sevlm import build_label_tree
from .packed_linear_sevlm import make_packable, packed_linears
from .pipeline_sevlm import CUSTOM_PIPELINES
from .vision_sevlm import build_vision_tower, encode_patches, ends_in_norm, load_vision_tower, vision_feature_size


logger = logging.get_logger(__name__)


@dataclass
class SEVLMOutput(ModelOutput):
    """What [`SEVLMForConditionalGeneration.forward`] returns. B pictures, P sentences each (no P axis if the input had
    none), L tokens.

    Args:
        loss: weighted sum of the parts below (Eq. 8), given `labels`.
        language_loss, emotion_loss, contrastive_loss, label_loss: the parts, unweighted.
        logits: `(B, [P,] L, vocab_size)`; none in training, see `skip_logits`.
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


class SEVLMPreTrainedModel(PreTrainedModel):
    config_class = SEVLMConfig
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPT2Block"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    # The branches of `emotion_scores` need a mask that flash attention does not take.
    _supports_flash_attn = False
    _supports_attention_backend = True
    # A checkpoint saved without its lexicon lacks the table, and its config says so.
    _keys_to_ignore_on_load_missing = [r"^vad_lookup\."]
    # The losses are per-batch means; a trainer must not hand in a count to divide by.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, (SEVLMEmotionEncoder, SEVLMContrastiveHead)):
            # A normal of std 0.02 vanishes in layers of width 3 and in a deep MLP; PyTorch's own scale does not.
            for layer in module.modules():
                if isinstance(layer, nn.Linear):
                    bound = 1 / math.sqrt(layer.in_features)
                    init.uniform_(layer.weight, -bound, bound)
                    init.uniform_(layer.bias, -bound, bound)


class SEVLMForConditionalGeneration(SEVLMPreTrainedModel, GenerationMixin):
    """Image encoder, GPT-2 decoder with VAD fusion, language head, VAD head and contrastive head (Fig. 4)."""

    _tied_weights_keys = {"lm_head.weight": "decoder.wte.weight"}
    # On CPU, keep a second copy of the weights in the order in which they are read fastest; see packed_linear_sevlm.
    pack_weights = True

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
        if config.vad_lexicon is not None and not config.vad_lexicon.get("table") and config.use_vad_features:
            logger.warning_once(
                f"This checkpoint was trained with the VAD lexicon {config.vad_lexicon.get('name')!r} and saved "
                "without it: every word counts as neutral until you restore it with "
                "`model.set_vad_lexicon(VADLexicon.from_file(PATH), tokenizer)`."
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers, from safetensors only.

        Raises:
            ValueError: if pickled weights are asked for.
            OSError: if there are no others, or none at all.
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("SEVLM does not read pickled weights, which can run code: drop `use_safetensors=False`.")
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except OSError as error:
            # The library's advice would be to read the pickle.
            if "safetensors" not in str(error):
                raise
            raise OSError(
                f"{pretrained_model_name_or_path} has no weights in safetensors (model.safetensors). A pickled "
                "pytorch_model.bin is not read, as it can run code: ask its owner to save the model again with "
                "`save_pretrained`, or, if you trust the file, rewrite it with `torch.load(..., weights_only=True)` "
                "and `safetensors.torch.save_file`. (For the release of the paper's authors there is "
                "`python -m modeling_sevlm.convert_sevlm_checkpoint`.)"
            ) from error

    @classmethod
    def from_backbones(
        cls, vision_name_or_path: str, text_name_or_path: str, processor, *, text_config: dict | None = None, **config
    ) -> "SEVLMForConditionalGeneration":
        """Start from a pretrained vision tower and a pretrained GPT-2; everything else is freshly initialised,
        cross-attention and the rows of added tokens included (the VAD fusion to pass words on unchanged, plus a
        little of their VAD). The tower is frozen.

        Args:
            vision_name_or_path: for example `"openai/clip-vit-base-patch16"`; of a two-tower model the vision half.
            text_name_or_path: a GPT-2, for example `"distilgpt2"`.
            processor: the `SEVLMProcessor` whose tokenizer extends that GPT-2's vocabulary.
            text_config: fields of the decoder's configuration to change, dropout for example.
            config: fields of [`SEVLMConfig`].
        """
        vision_config = AutoConfig.from_pretrained(vision_name_or_path)
        vision_config = getattr(vision_config, "vision_config", vision_config)
        text_config = AutoConfig.from_pretrained(text_name_or_path, **(text_config or {}))
        base_vocab_size, text_config.vocab_size = text_config.vocab_size, len(processor.tokenizer)
        if base_vocab_size > text_config.vocab_size:
            raise ValueError(
                f"The processor's tokenizer has {text_config.vocab_size} tokens, {text_name_or_path} has "
                f"{base_vocab_size}: build the processor from that model's tokenizer."
            )
        backbones = {"vision_config": vision_config, "text_config": text_config}
        model = cls(SEVLMConfig(**backbones | processor.token_layout() | config))

        text = AutoModelForCausalLM.from_pretrained(text_name_or_path, dtype=model.dtype).transformer.state_dict()
        embeddings = text.pop("wte.weight")
        model.decoder.wte.weight.data[:base_vocab_size] = embeddings
        missing = model.decoder.load_state_dict(text, strict=False)
        if missing.unexpected_keys:
            raise ValueError(f"{text_name_or_path} has weights that SEVLM's decoder lacks: {missing.unexpected_keys}.")
        if model.decoder.vad_fusion is not None:
            # It replaces the embeddings of the explanation. From random weights it would take the words away from a
            # decoder that knows them, so it begins by passing them on.
            model.decoder.vad_fusion.weight.data[:, : text_config.n_embd] = torch.eye(text_config.n_embd)
        if model.vision_tower is not None:
            tower = load_vision_tower(vision_name_or_path, vision_config, dtype=model.dtype)
            model.vision_tower.load_state_dict(tower.state_dict())
            model.freeze_vision_tower()
        if processor.vad_lexicon is not None:
            model.set_vad_lexicon(processor.vad_lexicon, processor.tokenizer)
        return model.eval()

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

    def set_vad_lexicon(self, lexicon, tokenizer=None):
        """Compile `lexicon` (a `VADLexicon`) for this model's `tokenizer` and keep the table with the weights; `None`
        removes it.

        Raises:
            ValueError: if there is no tokenizer, or one that cannot be this model's.
        """
        if lexicon is None:
            self.vad_lookup, self.config.vad_lexicon = VADLookup(), None
            return
        if tokenizer is None:
            raise ValueError("A lexicon is compiled for a vocabulary: pass the model's tokenizer too.")
        if len(tokenizer) > self.config.vocab_size or tokenizer.pad_token_id != self.config.pad_token_id:
            raise ValueError(
                f"This tokenizer ({len(tokenizer)} tokens, padding {tokenizer.pad_token_id}) is not the model's "
                f"({self.config.vocab_size} tokens, padding {self.config.pad_token_id})."
            )
        self.vad_lookup = VADLookup.from_tables(lexicon.compile(tokenizer)).to(self.device)
        self.config.vad_lexicon = lexicon.to_metadata() | {"table": self.vad_lookup.sizes}

    def save_pretrained(self, save_directory, *, include_vad_lexicon: bool = False, state_dict=None, **kwargs):
        """As in transformers, except for the compiled VAD table: a lexicon that its owner does not allow to be passed
        on is left out unless `include_vad_lexicon=True`, meant for folders that stay on your machine."""
        # Saving adds the class that the code file registers; `AutoModel` is the other way to ask for it.
        auto_map = {"AutoModel": "modeling_sevlm.SEVLMForConditionalGeneration"}
        self.config.auto_map = (getattr(self.config, "auto_map", None) or {}) | auto_map
        self.config.custom_pipelines = CUSTOM_PIPELINES
        known = self.config.vad_lexicon
        has_table = bool(known and known.get("table"))
        if not known or (has_table and (known.get("redistributable") or include_vad_lexicon)):
            return super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)
        if has_table:
            logger.warning_once(
                f"The VAD lexicon {known.get('name')!r} may not be passed on and is left out of saved models. Restore "
                "it after loading with `model.set_vad_lexicon(...)`, or save with `include_vad_lexicon=True` if the "
                "folder stays with you."
            )
        state_dict = self.state_dict() if state_dict is None else state_dict
        state_dict = {name: tensor for name, tensor in state_dict.items() if not name.startswith("vad_lookup.")}
        try:
            self.config.vad_lexicon = known | {"table": None}
            return super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)
        finally:
            self.config.vad_lexicon = known

    def push_to_hub(self, repo_id: str, *, include_vad_lexicon: bool = False, **kwargs):
        """As in transformers: config, weights, generation config and code, plus a model card if the repository has
        none. A lexicon that its owner does not allow to be passed on stays here unless `include_vad_lexicon=True`.
        Processor and tokenizer come with `processor.push_to_hub`."""
        # What the library calls takes no arguments of ours.
        self.save_pretrained = partial(self.save_pretrained, include_vad_lexicon=include_vad_lexicon)
        try:
            return super().push_to_hub(repo_id, **kwargs)
        finally:
            del self.save_pretrained

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        # Both ways of pushing end here, with the library's draft of a card where there is none yet. Ours needs the
        # template of the installed package, which code from the Hub may not have.
        try:
            from modeling_sevlm.model_card_sevlm import write_model_card
        except ImportError:
            write_model_card = None
        if write_model_card and not HfApi(token=kwargs.get("token")).file_exists(repo_id, "README.md"):
            write_model_card(working_dir, repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

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
        skip_logits: bool | None = None,
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
            skip_logits: leave `logits` out and compute those that `labels` ask for only; so by default in training.
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
        if skip_logits is None:
            skip_logits = self.training and labels is not None
        logits = None if skip_logits else self.lm_head(kept)
        vad_predictions = self.vad_head(kept) if self.vad_head is not None else None

        parts, scores = {}, None
        if labels is not None:
            present = attention_mask.bool() if attention_mask is not None else torch.ones_like(explanation_mask)
            explanation = explanation_mask & present
            # No label stands behind prompt and padding; the vocabulary is most of the work.
            asked = labels[:, 1:].ne(-100)
            asked_logits = self.lm_head(hidden[:, :-1][asked]) if skip_logits else logits[:, :-1][asked]
            parts["language_loss"] = language_loss(asked_logits, labels[:, 1:][asked])
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
        """
        with packed_linears(self, self.pack_weights):
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
            return super().generate(input_ids, *args, image_features=image_features, **kwargs)

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
        with packed_linears(self, self.pack_weights):
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
        with packed_linears(self, self.pack_weights):
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
