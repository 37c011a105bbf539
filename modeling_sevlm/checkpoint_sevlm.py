# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The base class of SEVLM: how a model comes from files and goes into them, and whose lexicon may go along."""

import copy
import hashlib
import json
import math
import os
import re
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import ModelCard, hf_hub_download, metadata_load
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file, logging

from .configuration_sevlm import SEVLMConfig
from .emotion_sevlm import SEVLMEmotionEncoder, VADLookup
from .heads_sevlm import SEVLMContrastiveHead
from .pipeline_sevlm import CUSTOM_PIPELINES
from .vision_sevlm import load_vision_tower


logger = logging.get_logger(__name__)

CARD_FILE = "README.md"
TABLE = "vad_lookup."
# Two lexicons that agree in these are taken for the same.
LEXICON_IDENTITY = ("name", "version", "num_listed", "num_inflected")
WHERE = ("cache_dir", "force_download", "token", "local_files_only", "revision", "subfolder")


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
            OSError: if there are no others, or none at all; if they cannot be had.
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("SEVLM does not read pickled weights, which can run code: drop `use_safetensors=False`.")
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except PickledWeightsError as error:
            reason = str(error)
        except OSError as error:
            if not re.search("no file named|not appear to have a file named", str(error)):
                raise
            where = {name: kwargs[name] for name in WHERE if name in kwargs}
            try:
                # The library says "no file" of one that it could not ask for, too. Asked so, it tells them apart.
                cached_file(pretrained_model_name_or_path, SAFE_WEIGHTS_NAME, **where)
            except OSError as missing:
                if "not appear to have a file named" not in str(missing):
                    raise OSError(f"The weights of {pretrained_model_name_or_path} are not here: {missing}") from error
            reason = f"there is no {SAFE_WEIGHTS_NAME}"
        # The library's advice would be to read the pickle.
        raise PickledWeightsError(
            f"{pretrained_model_name_or_path} has no weights in safetensors: {reason}. A pickled pytorch_model.bin is "
            "not read, as it can run code: ask its owner to save the model again with `save_pretrained`, or, if you "
            "trust the file, rewrite it with `torch.load(..., weights_only=True)` and `safetensors.torch.save_file`. "
            "(For the release of the paper's authors there is `python -m modeling_sevlm.convert_sevlm_checkpoint`.)"
        )

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs):
        # Here all files come by that are going to be read, whoever named them; an index may name pickles.
        for file in checkpoint_files or ():
            if not os.fspath(file).endswith(".safetensors"):
                raise PickledWeightsError(f"{os.path.basename(file)} is named as the file to read")
        info, *rest = PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)
        lacking = sorted(name for name in info.missing_and_mismatched() if name.startswith(TABLE))
        if lacking and model.vad_lookup.has_table:
            # The library leaves them as the memory happens to be.
            known = model.config.vad_lexicon
            model.vad_lookup, model.config.vad_lexicon = VADLookup(), known | {"table": None}
            logger.warning(
                f"The config promises the compiled VAD lexicon {known.get('name')!r}, but the weights lack "
                f"{', '.join(lacking)}: every word counts as neutral until you restore it with "
                "`model.set_vad_lexicon(VADLexicon.from_file(PATH), tokenizer)`."
            )
        return info, *rest

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

    def warn_if_lexicon_missing(self):
        """Say so, once, if the model was trained with a lexicon that is not there."""
        config = self.config
        if config.vad_lexicon is not None and not config.vad_lexicon.get("table") and config.use_vad_features:
            logger.warning_once(
                f"This checkpoint was trained with the VAD lexicon {config.vad_lexicon.get('name')!r} and saved "
                "without it: every word counts as neutral until you restore it with "
                "`model.set_vad_lexicon(VADLexicon.from_file(PATH), tokenizer)`."
            )

    def set_vad_lexicon(self, lexicon, tokenizer=None):
        """Compile `lexicon` (a `VADLexicon`) for this model's `tokenizer` and keep the table with the weights.

        The config keeps a record of the lexicon that the model was trained with: if another one takes its place, a
        warning says so, and the record stays as `config.vad_lexicon["trained_with"]`. `None` removes both table and
        record; call it first to train anew with another lexicon.

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
        given, trained = lexicon.to_metadata(), training_lexicon(self.config.vad_lexicon)
        self.vad_lookup = VADLookup.from_tables(lexicon.compile(tokenizer)).to(self.device)
        self.config.vad_lexicon = given | {"table": self.vad_lookup.sizes}
        if trained and any(given.get(name) != trained.get(name) for name in LEXICON_IDENTITY):
            self.config.vad_lexicon["trained_with"] = trained
            logger.warning(
                f"The model was trained with the VAD lexicon {describe_lexicon(trained)} and now reads "
                f"{describe_lexicon(given)}: words get other values than it has learned with. To train with this one, "
                "call `model.set_vad_lexicon(None)` first."
            )

    def save_pretrained(self, save_directory, *, include_vad_lexicon: bool = False, state_dict=None, **kwargs):
        """As in transformers, except for what is of this machine: a compiled lexicon that its owner does not allow to
        be passed on is left out unless `include_vad_lexicon=True`, meant for folders that stay on your machine; paths
        of the towers are always left out."""
        own, known, has_table = self.config, self.config.vad_lexicon or {}, self.vad_lookup.has_table
        saved = copy.deepcopy(own)
        # Saving adds the class that the code file registers; `AutoModel` is the other way to ask for it.
        auto_map = {"AutoModel": "modeling_sevlm.SEVLMForConditionalGeneration"}
        saved.auto_map = (getattr(own, "auto_map", None) or {}) | auto_map
        saved.custom_pipelines = CUSTOM_PIPELINES
        for tower in (saved.vision_config, saved.text_config):
            # The name of a tower on the Hub tells a reader something, a path on this machine does not.
            if not is_hub_name(tower._name_or_path):
                tower._name_or_path = ""
        if has_table and (known.get("redistributable") or include_vad_lexicon):
            known = known or {"name": "unknown", "redistributable": False}
            saved.vad_lexicon = known | {"table": self.vad_lookup.sizes}
        elif has_table or known:
            if has_table:
                logger.warning_once(
                    f"The VAD lexicon {known.get('name', 'unknown')!r} may not be passed on and is left out of saved "
                    "models. Restore it after loading with `model.set_vad_lexicon(...)`, or save with "
                    "`include_vad_lexicon=True` if the folder stays with you."
                )
            saved.vad_lexicon = training_lexicon(known) | {"table": None} if known else None
            state_dict = self.state_dict() if state_dict is None else state_dict
            state_dict = {name: tensor for name, tensor in state_dict.items() if not name.startswith(TABLE)}
        try:
            self.config = saved
            return super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)
        finally:
            self.config = own

    def push_to_hub(self, repo_id: str, *, include_vad_lexicon: bool = False, **kwargs):
        """As in transformers: config, weights, generation config and code, plus a model card. A lexicon that its owner
        does not allow to be passed on stays here unless `include_vad_lexicon=True`. Processor and tokenizer come with
        `processor.push_to_hub`.

        A card says of which weights and which lexicon it speaks. The repository's own is kept if it speaks of these,
        or is none of ours; otherwise the one comes along that lies where the model was loaded from, if that one does;
        otherwise a new one is written, for which this project has to be installed."""
        # What the library calls takes no arguments of ours.
        self.save_pretrained = partial(self.save_pretrained, include_vad_lexicon=include_vad_lexicon)
        try:
            return super().push_to_hub(repo_id, **kwargs)
        finally:
            del self.save_pretrained

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        # Both ways of pushing end here, with the library's draft of a card, or the repository's card of `main`.
        revision, facts = kwargs.get("revision"), card_facts(working_dir)
        there = _published_card(repo_id, revision, kwargs.get("token"))
        if not self._choose_card(Path(working_dir), repo_id, facts, there, keep_draft=revision is None):
            logger.warning(
                f"{repo_id} gets no model card: none that speaks of these weights lies where they were loaded from, "
                "and without the package modeling_sevlm none can be written."
            )
        elif there is not None and read_facts(there) is None:
            logger.warning(
                f"The model card of {repo_id} is none that this project wrote and stays as it is: see that what it "
                f"says of licence and VAD lexicon ({facts['vad_lexicon']}) is true of this model."
            )
        elif there is not None and read_facts(there) != facts:
            logger.warning(
                f"The model card of {repo_id} spoke of other weights or another lexicon and was replaced; the old one "
                "is in the repository's history."
            )
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def _choose_card(self, folder: Path, repo_id: str, facts: dict, there: Path | None, *, keep_draft: bool) -> bool:
        """Put the card into `folder` that is to be published; whether there is one."""
        card = folder / CARD_FILE
        if there is not None and read_facts(there) in (facts, None):
            if not keep_draft:  # the library's draft is this card, with the tags that were asked for
                card.write_text(there.read_text(encoding="utf-8"), encoding="utf-8")
            return True
        source = self._source(facts)
        # Writing one needs the template of the installed package, which code from the Hub may not have.
        try:
            from modeling_sevlm.model_card import write_model_card
        except ImportError:
            write_model_card = None
        if write_model_card is not None:
            write_model_card(folder, repo_id, records=source)
        elif source is not None and read_facts(source / CARD_FILE) == facts:
            card.write_text(renamed_card(source / CARD_FILE, repo_id), encoding="utf-8")
        elif there is not None:
            # Nothing can be removed here, and what it says of these weights, their licence or lexicon is not true.
            card.write_text(f"---\nlibrary_name: transformers\n---\n\n# {repo_id.split('/')[-1]}\n\n{NO_CARD}\n")
        else:
            card.unlink(missing_ok=True)
            return False
        return True

    def _source(self, facts: dict) -> Path | None:
        """The folder that these very weights were loaded from, with a card or records of training and evaluation."""
        name = self.config._name_or_path
        if os.path.isdir(name):
            return Path(name) if card_facts(name)["weights"] == facts["weights"] else None
        quiet = ("missing_entries", "connection_errors", "gated_repo")
        try:
            asked = {f"_raise_exceptions_for_{kind}": False for kind in quiet}
            card = cached_file(name, CARD_FILE, **asked) if is_hub_name(name) else None
        except OSError:
            return None
        return Path(card).parent if card is not None and read_facts(card) == facts else None


class PickledWeightsError(OSError):
    """A checkpoint whose weights are pickled only."""


NO_CARD = (
    "The card that was here spoke of other weights or another lexicon than this repository holds now. "
    "`python -m modeling_sevlm.push` writes a new one."
)


def training_lexicon(known: dict | None) -> dict | None:
    """Of `config.vad_lexicon` what is said of the lexicon that the model was trained with."""
    known = (known or {}).get("trained_with", known)
    return {name: value for name, value in known.items() if name != "table"} if known else None


def describe_lexicon(known: dict) -> str:
    version = f" {known['version']}" if known.get("version") else ""
    return f"{known.get('name')}{version} ({known.get('num_listed')} words, {known.get('num_inflected')} forms)"


def is_hub_name(name: str | None) -> bool:
    """Whether a string is a repository's name rather than a path."""
    return re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name or "") is not None and not os.path.exists(name)


def card_facts(folder: str | os.PathLike) -> dict:
    """What the metadata of a card must say (under `sevlm`) to speak of the model in `folder`: a digest of its weights,
    its lexicons, and whether the compiled one is there."""
    lexicon = json.loads(Path(folder, "config.json").read_text(encoding="utf-8")).get("vad_lexicon")
    facts = {"weights": weights_digest(folder), "vad_lexicon": "none", "includes_vad_lexicon": False}
    if lexicon:
        facts |= {
            "vad_lexicon": describe_lexicon(training_lexicon(lexicon)),
            "includes_vad_lexicon": bool(lexicon.get("table")),
        }
        if "trained_with" in lexicon:
            facts["replaced_by"] = describe_lexicon(lexicon)
    return facts


def weights_digest(folder: str | os.PathLike) -> str:
    """Of the parameters in the safetensors files, however they are split among them; without the lexicon's table."""
    lines = []
    for file in Path(folder).glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no dict)
                if not name.startswith(TABLE):
                    tensor = tensors.get_tensor(name)
                    content = hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy()).hexdigest()
                    lines.append(f"{name} {tensor.dtype} {list(tensor.shape)} {content}\n")
    return "sha256:" + hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()[:32]


def read_facts(card: str | os.PathLike) -> dict | None:
    """What a card says of the model it speaks of; `None` if there is no card, or not one of ours."""
    try:
        return (metadata_load(card) or {}).get("sevlm")
    except (OSError, ValueError):
        return None


def renamed_card(card: str | os.PathLike, repository: str) -> str:
    """A card's text for another repository of the same model."""
    text = Path(card).read_text(encoding="utf-8")
    found = re.search(r'from_pretrained\("([^"]+)"', text)
    if found:
        old, new = found[1], repository
        for before, after in (('"', '"'), ("evaluate_sevlm.py ", " "), ("https://huggingface.co/", "#")):
            text = text.replace(f"{before}{old}{after}", f"{before}{new}{after}")
        old, new = (re.escape(old.split("/")[-1]), new.split("/")[-1])
        text = re.sub(rf"^(# |- name: ){old}$", rf"\g<1>{new}", text, flags=re.MULTILINE)
    card = ModelCard(text, ignore_metadata_errors=True)
    if card.data.get("license") == "other":
        card.data["license_link"] = license_link(repository)
    return str(card)


def license_link(repository: str) -> str | None:
    """Where the terms stand. The Hub wants an address, or a file that is called LICENSE."""
    return f"https://huggingface.co/{repository}#data-and-terms" if "/" in repository else None


def _published_card(repository: str, revision: str | None, token) -> Path | None:
    """The card that a push to a branch meets. A branch that is not there yet begins as `main`."""
    for branch in dict.fromkeys((revision, None)):
        try:
            return Path(hf_hub_download(repository, CARD_FILE, revision=branch, token=token))
        except RevisionNotFoundError:
            continue
        except EntryNotFoundError:
            return None
    return None
