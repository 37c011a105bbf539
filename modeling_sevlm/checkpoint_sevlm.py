# Licensed under the Apache License, Version 2.0; see LICENSE.
"""SEVLM's base class. Loads only safetensors, saves neither local paths nor restricted lexicons, pushes to the Hub."""

import copy
import math
import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file, logging

from .card_sevlm import (
    CARD_FILE,
    LEXICON_TABLE,
    card_facts,
    describe_lexicon,
    is_hub_name,
    published_card,
    read_facts,
    renamed_card,
    training_lexicon,
)
from .configuration_sevlm import SEVLMConfig
from .emotion_sevlm import SEVLMEmotionEncoder, VADLookup
from .heads_sevlm import SEVLMContrastiveHead
from .pipeline_sevlm import CUSTOM_PIPELINES
from .vision_sevlm import load_vision_tower


logger = logging.get_logger(__name__)
LOCATION_ARGUMENTS = ("cache_dir", "force_download", "token", "local_files_only", "revision", "subfolder")
RESTORE = "every word counts as neutral until you call `model.set_vad_lexicon(VADLexicon.from_file(PATH), tokenizer)`."
OUTDATED = "The previous card described another model. `python -m modeling_sevlm.push` writes a new one."


class PickledWeightsError(OSError):
    """A checkpoint without weights in safetensors."""

    def __init__(self, repository: str | os.PathLike, reason: str):
        super().__init__(
            f"{repository} has no weights in safetensors: {reason}. Pickles can run code and are not read. Ask the "
            "owner to save the model again with `save_pretrained`, or, if you trust the file, convert it with "
            "`torch.load(..., weights_only=True)` and `safetensors.torch.save_file`."
        )


class SEVLMPreTrainedModel(PreTrainedModel):
    config_class = SEVLMConfig
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPT2Block"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    # The branches of `emotion_scores` need a mask that flash attention does not take.
    _supports_flash_attn = False
    _supports_attention_backend = True
    # A checkpoint saved without its lexicon has no table.
    _keys_to_ignore_on_load_missing = [r"^vad_lookup\."]
    # Version 0.1.0 saved empty tables.
    _keys_to_ignore_on_load_unexpected = [r"^vad_lookup\."]
    # The losses are per-batch means; a trainer must not pass a count to divide by.
    accepts_loss_kwargs = False
    saves_weights = True

    @property
    def device(self) -> torch.device:
        """The device of the inputs. Parts that accelerate keeps elsewhere are on "meta" until they are used."""
        if not hasattr(self, "_hf_hook"):
            return super().device
        hooks = (getattr(module, "_hf_hook", None) for module in self.modules())
        devices = (getattr(hook, "execution_device", None) for hook in hooks)
        return next((torch.device(device) for device in devices if device is not None), super().device)

    def _initialize_weights(self, module, is_custom_code: bool = False):
        # transformers would skip modules without parameters of their own, because code outside its package may
        # overwrite loaded parameters. `_init_weights` does not: the functions of `init` leave them alone.
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        config, is_encoder = self.config, isinstance(module, SEVLMEmotionEncoder)
        if is_encoder and config.emotion_encoder_position_std is not None:
            init.normal_(module.positions.weight, std=config.emotion_encoder_position_std)
        is_head = isinstance(module, SEVLMContrastiveHead) and config.contrastive_head_init == "uniform"
        if is_encoder or is_head:
            # With std 0.02 the signal vanishes in layers of width 3 and in a deep MLP. This is PyTorch's own scale.
            for layer in module.modules():
                if isinstance(layer, nn.Linear):
                    bound = 1 / math.sqrt(layer.in_features)
                    init.uniform_(layer.weight, -bound, bound)
                    init.uniform_(layer.bias, -bound, bound)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Loads a model as `PreTrainedModel.from_pretrained` does, from safetensors only.

        Raises:
            ValueError: if `use_safetensors=False`.
            OSError: if the checkpoint has no weights in safetensors, or if they cannot be downloaded.
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("SEVLM does not read pickled weights, which can run code: drop `use_safetensors=False`.")
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except OSError as error:
            if not re.search("no file named|not appear to have a file named", str(error)):
                raise
            # transformers raises the same error if it cannot connect. Asking for one file tells the two cases apart.
            location = {name: kwargs[name] for name in LOCATION_ARGUMENTS if name in kwargs}
            try:
                cached_file(pretrained_model_name_or_path, SAFE_WEIGHTS_NAME, **location)
            except OSError as missing:
                if "not appear to have a file named" not in str(missing):
                    raise OSError(f"Cannot load the weights of {pretrained_model_name_or_path}: {missing}") from error
            # `from None` hides the library's message, which recommends reading the pickle.
            raise PickledWeightsError(pretrained_model_name_or_path, f"there is no {SAFE_WEIGHTS_NAME}") from None

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs):
        # Checks the files that transformers is about to read: an index or the config may name pickles.
        for file in checkpoint_files or ():
            if not os.fspath(file).endswith(".safetensors"):
                raise PickledWeightsError(model.config.name_or_path, f"it refers to {os.path.basename(file)}")
        info, *rest = PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)
        missing = sorted(name for name in info.missing_and_mismatched() if name.startswith(LEXICON_TABLE))
        # The weights of an adapter, which are loaded into a complete model, lack everything else.
        is_adapter = getattr(model, "_hf_peft_config_loaded", False)
        if missing and model.vad_lookup.has_table and not is_adapter:
            # The library leaves missing buffers uninitialised.
            known = model.config.vad_lexicon
            model.vad_lookup, model.config.vad_lexicon = VADLookup(), known | {"table": None}
            info.missing_keys.difference_update(missing)
            info.mismatched_keys.difference_update([key for key in info.mismatched_keys if key[0] in missing])
            logger.warning(f"Missing: {', '.join(missing)} (part of the lexicon {known.get('name')!r}): {RESTORE}")
        return info, *rest

    @classmethod
    def from_backbones(
        cls, vision_name_or_path: str, text_name_or_path: str, processor, *, text_config: dict | None = None, **config
    ) -> "SEVLMPreTrainedModel":
        """Builds a model from a pretrained vision tower, which is frozen, and a pretrained GPT-2. Everything else is
        initialised randomly, including cross-attention and the embeddings of added tokens.

        Args:
            vision_name_or_path: for example `"openai/clip-vit-base-patch16"`; two-tower models: the vision half.
            text_name_or_path: a GPT-2, for example `"distilgpt2"`.
            processor: the `SEVLMProcessor` whose tokenizer extends that GPT-2's vocabulary.
            text_config: fields of the decoder's configuration to change, for example dropout.
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
        model: Any = cls(SEVLMConfig(**backbones | processor.token_layout() | config))
        text = AutoModelForCausalLM.from_pretrained(text_name_or_path, dtype=model.dtype).transformer.state_dict()
        model.decoder.wte.weight.data[:base_vocab_size] = text.pop("wte.weight")
        if unexpected := model.decoder.load_state_dict(text, strict=False).unexpected_keys:
            raise ValueError(f"{text_name_or_path} has weights that SEVLM's decoder lacks: {unexpected}.")
        if model.vision_tower is not None:
            tower = load_vision_tower(vision_name_or_path, vision_config, dtype=model.dtype)
            model.vision_tower.load_state_dict(tower.state_dict())
            model.freeze_vision_tower()
        if processor.vad_lexicon is not None:
            model.set_vad_lexicon(processor.vad_lexicon, processor.tokenizer)
        return model.eval()

    def warn_if_lexicon_missing(self):
        """Warns once if the model was trained with a VAD lexicon that it does not hold."""
        known = self.config.vad_lexicon
        if known is not None and not known.get("table") and self.config.use_vad_features:
            lexicon = f"the VAD lexicon {known.get('name')!r}"
            logger.warning_once(f"This model was trained with {lexicon} and saved without it: {RESTORE}")

    def set_vad_lexicon(self, lexicon, tokenizer=None):
        """Compiles `lexicon` (a `VADLexicon`) for the model's `tokenizer` and stores the table with the weights.

        If the model was trained with another lexicon, this warns and keeps the old lexicon's metadata under
        "trained_with" in `config.vad_lexicon`. `None` removes table and metadata: for training with another lexicon.

        Raises:
            ValueError: if the tokenizer is missing or cannot be the model's.
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
        given, trained = lexicon.to_metadata(), training_lexicon(self.config.vad_lexicon)
        self.vad_lookup = VADLookup.from_tables(lexicon.compile(tokenizer)).to(self.device)
        self.config.vad_lexicon = given | {"table": self.vad_lookup.sizes}
        if trained and describe_lexicon(given) != describe_lexicon(trained):
            self.config.vad_lexicon["trained_with"] = trained
            logger.warning(
                f"The model was trained with the VAD lexicon {describe_lexicon(trained)} and now reads "
                f"{describe_lexicon(given)}. To train with the new one, call `model.set_vad_lexicon(None)` first."
            )

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs):
        """Resizes as transformers does. Raises `ValueError` if a token that the config names would be lost."""
        last = self.config.last_token_id
        if new_num_tokens is not None and new_num_tokens < self.config.vocab_size and new_num_tokens <= last:
            raise ValueError(
                f"A vocabulary of {new_num_tokens} tokens would lose token {last}, which the model needs for prompt, "
                f"labels, segments or padding: keep at least {last + 1}."
            )
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)

    def save_pretrained(self, save_directory, *, include_vad_lexicon: bool = False, state_dict=None, **kwargs):
        """Saves as `PreTrainedModel.save_pretrained` does, without local paths of the towers and without a compiled
        lexicon whose owner does not allow redistribution. `include_vad_lexicon=True` saves that lexicon too, for
        folders that stay on your machine."""
        if not self.saves_weights:
            raise ValueError("This model's weights are transposed (`use_linear_layers`): save it before that call.")
        own, known, has_table = self.config, self.config.vad_lexicon or {}, self.vad_lookup.has_table
        saved = copy.deepcopy(own)
        # `register_for_auto_class` adds only one auto class to `auto_map`; `AutoModel` is added here.
        auto_map = {"AutoModel": "modeling_sevlm.SEVLMForConditionalGeneration"}
        saved.auto_map = (getattr(own, "auto_map", None) or {}) | auto_map
        saved.custom_pipelines = CUSTOM_PIPELINES
        for tower in (saved.vision_config, saved.text_config):
            if not is_hub_name(tower._name_or_path):
                tower._name_or_path = ""
        if has_table and (known.get("redistributable") or include_vad_lexicon):
            known = known or {"name": "unknown", "redistributable": False}
            saved.vad_lexicon = known | {"table": self.vad_lookup.sizes}
        elif has_table or known:
            if has_table:
                logger.warning_once(
                    f"The VAD lexicon {known.get('name', 'unknown')!r} may not be redistributed and is not saved. In "
                    "a folder that stays on your machine, save it with `include_vad_lexicon=True`."
                )
            saved.vad_lexicon = training_lexicon(known) | {"table": None} if known else None
            state_dict = self.state_dict() if state_dict is None else state_dict
            state_dict = {name: tensor for name, tensor in state_dict.items() if not name.startswith(LEXICON_TABLE)}
        try:
            self.config = saved
            return super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)
        finally:
            self.config = own

    def push_to_hub(self, repo_id: str, *, include_vad_lexicon: bool = False, **kwargs):
        """Pushes config, weights, generation config, code and a model card. `include_vad_lexicon` is as in
        [`save_pretrained`]. Push processor and tokenizer with `processor.push_to_hub`.

        Keeps the published card if it describes these weights and this lexicon, or if this project did not write it.
        Otherwise writes a new one, or without this project installed, reuses the loaded card with the new name."""
        # The library calls `save_pretrained` without our argument.
        save = partial(self.save_pretrained, include_vad_lexicon=include_vad_lexicon)
        self.save_pretrained = save  # type: ignore[method-assign]
        try:
            return super().push_to_hub(repo_id, **kwargs)  # type: ignore[arg-type]
        finally:
            del self.save_pretrained

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        # Every push calls this. By now transformers has written a card to the folder: that of `main`, or a draft.
        card, facts, revision = Path(working_dir, CARD_FILE), card_facts(working_dir), kwargs.get("revision")
        published = published_card(repo_id, revision, kwargs.get("token"))
        stated = read_facts(published)
        if published is not None and stated in (facts, None):
            if revision is not None:
                shutil.copyfile(published, card)
            if stated is None:
                logger.warning(
                    f"The model card of {repo_id} is kept, because this project did not write it. Check what it says "
                    f"about licence and VAD lexicon (this model: {facts['vad_lexicon']})."
                )
        elif (text := self._new_card(working_dir, repo_id, facts)) or published is not None:
            # A push cannot delete the old card, which describes other weights.
            card.write_text(text or f"---\nlibrary_name: transformers\n---\n\n{OUTDATED}\n", encoding="utf-8")
            if published is not None:
                logger.warning(f"The card of {repo_id} is replaced: it described other weights or another lexicon.")
        else:
            card.unlink(missing_ok=True)
            logger.warning(f"{repo_id} gets no model card. Install the package modeling_sevlm to write one.")
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def _new_card(self, folder: str, repo_id: str, facts: dict) -> str | None:
        source = self._source(facts)
        try:
            # The template is in the package, which may not be installed if the model was loaded from the Hub.
            from modeling_sevlm.model_card import render_model_card
        except ImportError:
            is_ours = source is not None and read_facts(source / CARD_FILE) == facts
            return renamed_card(source / CARD_FILE, repo_id) if is_ours else None
        return str(render_model_card(folder, repo_id, records=source))

    def _source(self, facts: dict) -> Path | None:
        """Returns the folder (card, records) that the weights were loaded from; `None` if they have changed since."""
        name = self.config._name_or_path
        try:
            if os.path.isdir(name):
                return Path(name) if card_facts(name)["weights"] == facts["weights"] else None
            card = Path(cached_file(name, CARD_FILE))
        except OSError:
            return None
        return card.parent if read_facts(card) == facts else None
