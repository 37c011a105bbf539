# Licensed under the Apache License, Version 2.0; see LICENSE.
"""BLIP-base and GIT-base of transformers, with random weights: what a user would pick instead."""

from collections.abc import Callable

import torch
from transformers import BlipConfig, BlipForConditionalGeneration, GitConfig, GitForCausalLM


TINY_TEXT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
TINY_TEXT |= {"vocab_size": 600, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0}
TINY_VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_VISION |= {"image_size": 32, "patch_size": 16}


def blip_base(
    size: str, batch_size: int, new_tokens: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], torch.Tensor]:
    """Greedy, cached captioning of a batch by BLIP-base (384 pixels)."""
    # As in the published captioning checkpoint; the library's default has eight heads.
    text, vision = {"num_attention_heads": 12}, {}
    if size == "tiny":
        text, vision = TINY_TEXT | {"encoder_hidden_size": 48}, TINY_VISION
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=vision.get("hidden_size", 768))
    # No end of a sentence: every model makes the same number of tokens.
    config.text_config.sep_token_id = None
    model = BlipForConditionalGeneration(config).to(device, dtype).eval()
    return _captioning(model, config.vision_config.image_size, batch_size, new_tokens)


def git_base(
    size: str, batch_size: int, new_tokens: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], torch.Tensor]:
    """Greedy, cached captioning of a batch by GIT-base (224 pixels)."""
    text, vision = (TINY_TEXT, TINY_VISION) if size == "tiny" else ({}, {})
    torch.manual_seed(0)
    config = GitConfig(vision_config=vision, **text)
    model = GitForCausalLM(config).to(device, dtype).eval()
    model.generation_config.eos_token_id = None
    return _captioning(model, config.vision_config.image_size, batch_size, new_tokens)


def _captioning(model, image_size: int, batch_size: int, new_tokens: int) -> Callable[[], torch.Tensor]:
    pixel_values = torch.randn(batch_size, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    pixel_values = pixel_values.to(model.device, model.dtype)

    @torch.no_grad()
    def caption() -> torch.Tensor:
        return model.generate(pixel_values=pixel_values, max_new_tokens=new_tokens, do_sample=False, use_cache=True)

    return caption
