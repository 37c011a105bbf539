# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The base class of SEVLM: how a model comes from files and goes into them, and whose lexicon may go along."""

import math
from functools import partial

import torch
from huggingface_hub import HfApi
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging

from .configuration_sevlm import SEVLMConfig
from .emotion_sevlm import SEVLMEmotionEncoder, VADLookup
from .heads_sevlm import SEVLMContrastiveHead
from .pipeline_sevlm import CUSTOM_PIPELINES
from .vision_sevlm import load_vision_tower


logger = logging.get_logger(__name__)


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
    ) -> "SEVLMPreTrainedModel":
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

    def tell_of_missing_lexicon(self):
        """Say so, once, if the model was trained with a lexicon that is not there."""
        config = self.config
        if config.vad_lexicon is not None and not config.vad_lexicon.get("table") and config.use_vad_features:
            logger.warning_once(
                f"This checkpoint was trained with the VAD lexicon {config.vad_lexicon.get('name')!r} and saved "
                "without it: every word counts as neutral until you restore it with "
                "`model.set_vad_lexicon(VADLexicon.from_file(PATH), tokenizer)`."
            )

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
