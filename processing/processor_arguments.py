# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Which arguments of other processors and tokenizers SEVLMProcessor applies in a call, and which it refuses."""

from difflib import get_close_matches
from typing import Any

from transformers.processing_utils import ImagesKwargs


# Arguments of other processors: the values that describe what happens here in any case, and the remedy for others.
_FIXED: dict[str, tuple[tuple, str]] = {
    "input_data_format": ((), "the layouts (H, W, C) and (C, H, W) are recognised: omit it"),
    "data_format": (("channels_first",), "`pixel_values` are (B, 3, H, W): permute the result"),
    "do_convert_rgb": ((True,), "images are always read as RGB: omit it"),
    "device": (("cpu", "cpu:0"), "call `.to(device)` on the result"),
    "disable_grouping": ((), "it has no effect: omit it"),
    "image_seq_length": ((), "it has no effect: omit it"),
    "padding_side": ((), "prompts are padded on the left, training rows on the right: omit it"),
    "truncation": ((False,), "prompts are never cut; set `processor.max_length`, at which training rows are cut"),
    "add_special_tokens": ((True,), "the model needs them: omit it"),
    "return_attention_mask": ((True,), "remove `attention_mask` from the result"),
}
_OWN = "emotions explanations images max_megabytes max_megapixels return_tensors text timeout".split()
# transformers' groups of arguments.
_TEXT = {"padding", "padding_side", "max_length", "truncation", "add_special_tokens", "return_attention_mask"}
# transformers' groups of arguments, and known arguments that are not in a group.
_FOREIGN = {
    "images_kwargs": {*_OWN, *_TEXT},
    "text_kwargs": {*_OWN, *ImagesKwargs.__annotations__},
    "common_kwargs": {*_OWN},
}
# Settings of an image, and the steps that use them.
_STEPS = {
    **dict.fromkeys(("size", "resample", "default_to_square"), "do_resize"),
    **dict.fromkeys(("image_mean", "image_std"), "do_normalize"),
    "crop_size": "do_center_crop",
    "pad_size": "do_pad",
    "rescale_factor": "do_rescale",
}
# Steps that need a setting.
_NEEDED = {"do_center_crop": "crop_size", "do_pad": "pad_size"}


def flatten_groups(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments with those in transformers' groups (`images_kwargs`, `text_kwargs`, `common_kwargs`).

    Raises:
        ValueError: an argument in the wrong group, or given twice, except for an equal value in `common_kwargs`.
    """
    flat = {name: value for name, value in kwargs.items() if name not in _FOREIGN}
    for group in _FOREIGN:
        for name, value in (kwargs.get(group) or {}).items():
            if name != "return_tensors" and name in _FOREIGN[group]:
                raise ValueError(f"`{name}` is not an argument of `{group}`: pass it directly.")
            is_repeated = name in kwargs and group != "common_kwargs"
            if is_repeated or flat.get(name, value) != value:
                raise ValueError(f"`{name}` is given twice: leave one out.")
            flat[name] = value
    return flat


def prompt_length(kwargs: dict[str, Any]) -> tuple[int | None, bool]:
    """Takes `max_length` and `padding` out of the arguments for prompts. Returns the maximum, and whether prompts are
    filled to it."""
    max_length, padding = kwargs.pop("max_length", None), kwargs.pop("padding", None)
    if max_length is not None and not isinstance(max_length, int):
        raise ValueError(f"`max_length` is a number of tokens, not {max_length!r}.")
    if padding not in (None, True, "longest", "max_length"):
        raise ValueError(f"`padding={padding!r}` is not supported: prompts of one call are padded to the longest.")
    if padding == "max_length" and max_length is None:
        raise ValueError('`padding="max_length"` needs `max_length`: pass both.')
    return max_length, padding == "max_length"


def check_row_length(kwargs: dict[str, Any], max_length: int, is_filled: bool) -> None:
    """Takes `max_length` and `padding` out of the arguments for training rows. Both must be the processor's own."""
    asked, padding = kwargs.pop("max_length", None), kwargs.pop("padding", None)
    if asked not in (None, max_length):
        raise ValueError(f"Training rows are cut at {max_length} tokens: set `processor.max_length`.")
    if padding not in (None, *(["max_length"] if is_filled else [True, "longest"])):
        way = "`max_length`" if is_filled else "the longest"
        raise ValueError(f"Training rows are padded to {way}: set `processor.pad_to_max_length`.")


def image_settings(kwargs: dict[str, Any], image_processor) -> dict[str, Any]:
    """Returns the settings of `image_processor` in `kwargs`.

    Raises:
        ValueError: an argument that is unknown, would have no effect, or is fixed here at another value.
    """
    given = {name: value for name, value in kwargs.items() if value is not None}
    settings = image_processor.valid_kwargs.__annotations__
    for name, value in given.items():
        values, remedy = _FIXED.get(name, ((value,), ""))
        if (str(value) if name == "device" else value) not in values:
            raise ValueError(f"`{name}={value!r}` is not supported: {remedy}.")
        if name not in _FIXED and name not in settings:
            similar = get_close_matches(name, [*_OWN, *settings], n=1)
            remedy = f"Did you mean `{similar[0]}`?" if similar else f"Use {', '.join(_OWN)}."
            raise ValueError(f"Unknown argument `{name}`. {remedy}")
        step = _STEPS.get(name)
        if step is not None and not given.get(step, getattr(image_processor, step)):
            raise ValueError(f"`{name}` has no effect without `{step}=True`: pass both, or omit `{name}`.")
    for step, setting in _NEEDED.items():
        if given.get(step) and not getattr(image_processor, step) and setting not in given:
            raise ValueError(f"`{step}=True` needs `{setting}`, because this processor has none: pass both.")
    return {name: value for name, value in given.items() if name in settings}
