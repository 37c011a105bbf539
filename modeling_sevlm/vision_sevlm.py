# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The vision tower: any image model of `AutoModel`, read as a sequence of patch features.

Towers differ in three ways, and `encode_patches` handles all of them: tokens before the patches (CLS, registers),
whether the last LayerNorm has been applied, and the input format of SigLIP2.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_sevlm import SEVLMConfig


def load_vision_tower(name_or_path: str, config: PreTrainedConfig, **kwargs) -> nn.Module:
    """Loads a pretrained tower; of a two-tower model, the vision half.

    Raises:
        ValueError: if the checkpoint lacks weights of the patch features, which would stay random.
    """
    tower, info = AutoModel.from_pretrained(name_or_path, config=config, output_loading_info=True, **kwargs)
    # Patch features need no pooling head, and checkpoints of classifiers do not have one.
    missing = [name for name in info["missing_keys"] if not name.startswith(("pooler.", "head."))]
    if missing or tower.main_input_name != "pixel_values":
        reason = f"it lacks {len(missing)} weights, such as {missing[0]}" if missing else "it takes no `pixel_values`"
        raise ValueError(f"{name_or_path} is not a checkpoint of a {config.model_type!r} vision tower: {reason}.")
    return tower


def vision_feature_size(config: PreTrainedConfig) -> int:
    """Returns the width of the tower's patch features; of a convolutional tower, the width of its last stage."""
    if hasattr(config, "hidden_size"):
        return config.hidden_size
    if config.model_type == "efficientnet":
        return config.hidden_dim
    if hasattr(config, "hidden_sizes"):
        return config.hidden_sizes[-1]
    raise ValueError(f"The config of this {config.model_type!r} tower has no `hidden_size`: its width is unknown.")


def build_vision_projection(config: SEVLMConfig) -> nn.Module:
    """Returns a module `(..., d) -> (..., n_embd)`: the identity where the tower has the decoder's width."""
    image_width, width = vision_feature_size(config.vision_config), config.hidden_size
    if image_width == width:
        return nn.Identity()
    linear = nn.Linear(image_width, width)
    if hasattr(config.vision_config, "num_attention_heads"):
        return linear
    # Transformers end in a LayerNorm. Features of convolutional networks may have any scale.
    return nn.Sequential(nn.LayerNorm(image_width), linear, nn.Dropout(config.text_config.embd_pdrop))


def encode_patches(tower: Any, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
    """Runs the tower and selects the features of the patches, without CLS or register tokens.

    Args:
        tower: an image model of `AutoModel`.
        pixel_values: `(B, channels, height, width)`, normalised images.
        kwargs: arguments of the tower, such as `output_hidden_states`.

    Returns:
        The tower's output. Its `pooler_output` holds `(B, K, d)` features f^I of Sec. 4.1: K patches in row-major
        order, after the tower's final LayerNorm.
    """
    if tower.config.model_type == "siglip2_vision_model":
        output = tower(**_siglip2_patches(pixel_values, tower.config.patch_size), **kwargs)
    else:
        output = tower(pixel_values=pixel_values, **kwargs)
    features = output.last_hidden_state
    if features.dim() == 4:  # (B, d, h, w) of a convolutional tower
        features = features.flatten(2).transpose(1, 2).contiguous()
    else:
        features = features[:, _num_prefix_tokens(tower.config, features.shape[1], pixel_values) :].contiguous()
    if tower.config.model_type in ("clip_vision_model", "chinese_clip_vision_model"):
        # CLIP applies its last LayerNorm to the pooled CLS token only; the paper applies it to the patches.
        features = tower.post_layernorm(features)
    fields = {name: output.get(name) for name in ("last_hidden_state", "hidden_states", "attentions")}
    return BaseModelOutputWithPooling(pooler_output=features, **fields)


def _num_prefix_tokens(config: PreTrainedConfig, num_tokens: int, pixel_values: torch.Tensor) -> int:
    """Counts the tokens before the patches. Hierarchical towers merge patches and have none."""
    patch_size = getattr(config, "patch_size", None)
    if patch_size is None:
        return 0
    patch_height, patch_width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    height, width = pixel_values.shape[-2:]
    return max(0, num_tokens - (height // patch_height) * (width // patch_width))


def _siglip2_patches(pixel_values: torch.Tensor, patch_size: int) -> dict[str, torch.Tensor]:
    """Returns SigLIP2's inputs: flattened patches (row, column, channel), their mask, and the shape of the grid."""
    batch, channels, height, width = pixel_values.shape
    rows, columns = height // patch_size, width // patch_size
    patches = pixel_values.reshape(batch, channels, rows, patch_size, columns, patch_size)
    patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size * patch_size * channels)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": patches.new_ones((batch, rows * columns), dtype=torch.long),
        "spatial_shapes": torch.tensor([[rows, columns]] * batch, device=patches.device),
    }
