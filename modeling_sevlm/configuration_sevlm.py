# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Configuration of SEVLM, the Small Emotional Vision Language Model (ECCV 2024).

Every part that the paper ablates is a field, so a checkpoint records which system it is. The defaults give the full
system; `SEVLMConfig(use_vad_features=False, use_vad_head=False, contrastive_negatives=[])` gives the baseline of
Sec. 4.1.
"""

import copy
from itertools import chain
from typing import Any

import torch
from transformers import AutoConfig, CLIPVisionConfig, GPT2Config, PreTrainedConfig


ARTEMIS_EMOTIONS = (
    *("amusement", "awe", "contentment", "excitement"),
    *("anger", "disgust", "fear", "sadness"),
    "something else",
)


DTYPES = ("float16", "bfloat16", "float32")


class DtypeError(AttributeError):
    """A dtype that a model cannot be loaded in.

    It is not a ValueError, because `pipeline` of transformers loads in float32 after one.
    """


class SEVLMConfig(PreTrainedConfig):
    r"""
    Configuration of [`SEVLMForConditionalGeneration`]. The defaults give the paper's model: CLIP ViT-B/16, DistilGPT2
    with cross-attention, and all of Sec. 4.2 (186,054,331 parameters).

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*):
            Any vision model that `AutoModel` knows; CLIP ViT-B/16 by default.
        text_config (`GPT2Config` or `dict`, *optional*):
            The decoder. Cross-attention is always added.
        use_vision_tower (`bool`):
            `False` leaves the tower out; the model then takes `image_features` only.
        emotions (`list[str]`):
            The labels, in the order of `emotion_scores`.
        prompt_token_ids (`list[int]`, *optional*):
            `<bos> the emotion is`, the prompt of `generate` without `input_ids`.
        emotion_token_ids (`list[list[int]]`, *optional*):
            For each label, the tokens between the prompt and " because".
        because_token_id (`int`):
            The token " because", which opens the explanation segment.
        emotion_segment_id, explanation_segment_id (`int`):
            Tokens whose word embeddings serve as the two segment embeddings.
        use_vad_features (`bool`):
            VAD features fused into the explanation's embeddings (Eq. 2; Fig. 5).
        use_emotion_encoder (`bool`):
            Encode the VAD rows before the fusion; `False` fuses the raw rows (Fig. 6).
        emotion_encoder_attention (`str`):
            `"causal"`, or `"bidirectional"` as in the authors' release (decodes without a cache).
        emotion_encoder_attention_dropout (`float`):
            Dropout of the encoder's attention weights (the authors: 0.1).
        emotion_encoder_position_std (`float`, *optional*):
            Initial standard deviation of the encoder's positions (default: `initializer_range`; the authors: 1).
        vad_fusion_init (`str`):
            `"identity"`: the fusion starts as the words' embeddings plus a little VAD, so that a pretrained decoder
            still sees the words. `"normal"`, as the authors: it starts at random and hides them.
        explanation_start (`int`, *optional*):
            Position where the explanation begins for the fusion, the emotion loss and the means of Eq. 6. By default
            it begins after " because". The authors' code has 6, one too few for a label of two tokens.
        use_vad_head (`bool`):
            VAD head and emotion loss (Eq. 4-5; Fig. 5).
        contrastive_negatives (`list[str]`):
            Subset of `"emotion"` and `"image"` (Eq. 7; Fig. 7). Empty: no contrastive head (Fig. 5).
        contrastive_head_init (`str`):
            `"uniform"`, PyTorch's own; or `"normal"`, as the authors, whose scores start almost equal.
        language_loss_weight, emotion_loss_weight, contrastive_loss_weight (`float`):
            Weights of Eq. 8; the last one is the paper's alpha.
        label_loss_weight (`float`):
            Weight of a loss that the paper does not have (0: off): the cross-entropy of `emotion_scores` against the
            shares of all viewers' labels. The language loss sees only the labels of the drawn sentences.
        vad_lexicon (`dict`, *optional*):
            Name, version, licence and further facts of the VAD lexicon; under `"table"` the sizes of the compiled
            table in the weights; under `"trained_with"` the facts of the lexicon used in training, if it was another
            one. Written by `set_vad_lexicon`.
        protocol (`dict`, *optional*):
            Preset and text options of the training, which `evaluate_sevlm.py` repeats. Written by `train.py`.
    """

    model_type = "sevlm"
    sub_configs = {"vision_config": AutoConfig, "text_config": GPT2Config}
    # Trainer gathers all outputs of an evaluation step except these; logits over the vocabulary would fill the memory.
    keys_to_ignore_at_inference = [
        *("language_loss", "emotion_loss", "contrastive_loss", "label_loss"),
        *("logits", "vad_predictions", "alignment_scores", "image_features"),
        *("past_key_values", "hidden_states", "attentions", "cross_attentions"),
    ]

    vision_config: Any = None  # a PreTrainedConfig after __post_init__
    text_config: Any = None  # a GPT2Config after __post_init__
    use_vision_tower: bool = True

    emotions: list[str] | tuple[str, ...] = ARTEMIS_EMOTIONS
    prompt_token_ids: list[int] | None = None
    emotion_token_ids: list[list[int]] | None = None
    because_token_id: int = 780
    emotion_segment_id: int = 50259
    explanation_segment_id: int = 50260
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    use_vad_features: bool = True
    use_emotion_encoder: bool = True
    emotion_encoder_attention: str = "causal"
    emotion_encoder_layers: int = 3
    emotion_encoder_intermediate_size: int = 128
    emotion_encoder_max_positions: int = 5000
    emotion_encoder_dropout: float = 0.1
    emotion_encoder_attention_dropout: float = 0.0
    emotion_encoder_position_std: float | None = None
    vad_fusion_init: str = "identity"
    explanation_start: int | None = None
    use_vad_head: bool = True
    contrastive_negatives: list[str] | tuple[str, ...] = ("emotion", "image")
    contrastive_head_init: str = "uniform"

    language_loss_weight: float = 1.0
    emotion_loss_weight: float = 1.0
    contrastive_loss_weight: float = 2.0
    label_loss_weight: float = 0.0

    vad_lexicon: dict[str, Any] | None = None
    protocol: dict[str, Any] | None = None
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        self.vision_config = self._vision_config(self.vision_config)
        self.text_config = self._text_config(self.text_config)
        # Special tokens may be set here or in the decoder's config. They are copied, so that both configs agree.
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.text_config, name, None))
            setattr(self.text_config, name, getattr(self, name))
        self.emotions = list(self.emotions)
        self.contrastive_negatives = list(self.contrastive_negatives)
        choices = {
            "emotion_encoder_attention": ("causal", "bidirectional"),
            "vad_fusion_init": ("identity", "normal"),
            "contrastive_head_init": ("uniform", "normal"),
        }
        for name, (first, second) in choices.items():
            if (value := getattr(self, name)) not in (first, second):
                raise ValueError(f"{name} must be {first!r} or {second!r}, not {value!r}.")
        if unknown := set(self.contrastive_negatives) - {"emotion", "image"}:
            raise ValueError(f"contrastive_negatives takes 'emotion' and 'image', not {sorted(unknown)}.")
        if self.emotion_token_ids is not None and len(self.emotion_token_ids) != len(self.emotions):
            entries = len(self.emotion_token_ids)
            raise ValueError(f"emotion_token_ids has {entries} entries for {len(self.emotions)} emotions.")
        self._check_dtype()
        super().__post_init__(**kwargs)
        if self.dtype is None:
            # Without a dtype, transformers opens the weights to find it before we can refuse a pickle.
            self.dtype = torch.float32

    def _check_dtype(self):
        dtype = getattr(torch, self.dtype, None) if isinstance(self.dtype, str) else self.dtype
        if self.dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            name, choices = str(self.dtype).removeprefix("torch."), ", ".join(f'"{choice}"' for choice in DTYPES)
            raise DtypeError(f'dtype="{name}" is not one that this model can be loaded in: use {choices} or "auto".')

    @staticmethod
    def _vision_config(config):
        if config is None:
            return CLIPVisionConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, patch_size=16)
        if isinstance(config, dict):
            if "model_type" not in config:
                raise ValueError("vision_config has no `model_type`: add one, for example 'clip_vision_model'.")
            return AutoConfig.for_model(**config)
        return config

    @staticmethod
    def _text_config(config):
        if config is None:
            # DistilGPT2 with the four tokens of the authors' release: <pad>, <prefix>, <emotion>, <explanation>.
            special: dict[str, Any] = {"bos_token_id": 50256, "eos_token_id": 50256, "pad_token_id": 50257}
            config = GPT2Config(vocab_size=50261, n_layer=6, **special)
        elif isinstance(config, dict):
            config = GPT2Config(**config)
        if not isinstance(config, GPT2Config):
            raise ValueError(f"text_config must be a GPT2Config (GPT-2 family), not {type(config).__name__}.")
        config = copy.deepcopy(config)  # the caller's object stays unchanged
        config.add_cross_attention = True
        return config

    @property
    def vocab_size(self) -> int:
        return self.text_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int):  # `resize_token_embeddings` writes it
        self.text_config.vocab_size = value

    @property
    def last_token_id(self) -> int:
        """The largest token id that the model itself uses."""
        special = (self.pad_token_id, self.bos_token_id, self.eos_token_id)
        own = (self.because_token_id, self.emotion_segment_id, self.explanation_segment_id)
        texts = chain(self.prompt_token_ids or (), *(self.emotion_token_ids or ()))
        return max(token for token in (*special, *own, *texts) if token is not None)

    @property
    def hidden_size(self) -> int:
        return self.text_config.n_embd

    @property
    def max_positions(self) -> int:
        """The longest text in tokens, prompt included."""
        if self.use_vad_features and self.use_emotion_encoder:
            return min(self.text_config.n_positions, self.emotion_encoder_max_positions)
        return self.text_config.n_positions


SEVLMConfig.register_for_auto_class()
AutoConfig.register(SEVLMConfig.model_type, SEVLMConfig, exist_ok=True)
