"""LoRA adapters of `peft`: small weights that are added to a trained model, which does not change.

    python train.py --base_model org/sevlm-artemis --lora_rank 8 --annotations mine.csv --images mine/
    AutoModel.from_pretrained("outputs/sevlm")      # loads the adapter's folder on the model that it names

The folder of an adapter has weights and settings of the adapter and the processor, but no `config.json`: transformers
would take it for that of a whole model.
"""

import importlib.util
import json
import os
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig
from transformers.utils.peft_utils import find_adapter_config_file

from .card_sevlm import is_hub_name
from .modeling_sevlm import SEVLMForConditionalGeneration
from .training_folder import TRAINING_FILE


ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# The decoder's attention, cross-attention and MLP layers.
TARGETS = ["c_attn", "q_attn", "c_proj", "c_fc"]


def check_peft() -> None:
    if importlib.util.find_spec("peft") is None:
        raise ValueError("Adapters need peft: pip install -e '.[lora]'.")


def add_lora(model: SEVLMForConditionalGeneration, rank: int):
    """Freezes the model and adds trainable matrices of rank `rank` to the decoder's layers. Returns a `PeftModel`."""
    check_peft()
    import peft

    if rank < 1:
        raise ValueError(f"The rank of LoRA must be at least 1, not {rank}.")
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, fan_in_fan_out=True)
    return peft.get_peft_model(model, config)


def is_adapter(model) -> bool:
    """Whether `model` is a `PeftModel`."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def base_model_of(checkpoint: str | os.PathLike) -> str | None:
    """Returns the name or folder of the model to which an adapter belongs; `None` if `checkpoint` is not an adapter.

    Raises:
        ValueError: it is an adapter, and `peft` is missing.
    """
    file = find_adapter_config_file(os.fspath(checkpoint))
    if file is None:
        return None
    check_peft()
    return json.loads(Path(file).read_text(encoding="utf-8"))["base_model_name_or_path"] or ""


def load_config(checkpoint: str | os.PathLike) -> PreTrainedConfig:
    """Loads the configuration of a model, or of the model to which an adapter belongs.

    Raises:
        ValueError: the adapter's model is not in the folder that it names.
    """
    base = base_model_of(checkpoint)
    if base is not None and not is_hub_name(base) and not os.path.isdir(base):
        raise ValueError(
            f"{checkpoint} is an adapter for the model in {base}, which does not exist. If the model has moved, "
            f"correct base_model_name_or_path in {ADAPTER_CONFIG}."
        )
    return AutoConfig.from_pretrained(base or checkpoint)


def check_resumable(checkpoint: str | os.PathLike, lora_rank: int | None, base_weights: str | None) -> None:
    """Raises `ValueError` unless a checkpoint is an adapter of this rank (`None`: a whole model) for a model with
    this digest of its weights, as far as the checkpoint's run has recorded it."""
    about, record = _read(Path(checkpoint, ADAPTER_CONFIG)), _read(Path(checkpoint).parent / TRAINING_FILE)
    if about.get("r") != lora_rank:
        kind = f"an adapter of rank {about['r']}" if about else "a whole model"
        raise ValueError(f"training cannot resume from {checkpoint}: it is {kind} (--lora_rank).")
    known = record.get("base_model", {}).get("weights")
    if about and known and base_weights and known != base_weights:
        raise ValueError(f"training cannot resume from {checkpoint}: its base model had other weights ({known}).")


def _read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
