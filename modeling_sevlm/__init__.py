"""The SEVLM model. Importing this package registers it with transformers' Auto classes."""

from .configuration_sevlm import SEVLMConfig
from .modeling_sevlm import SEVLMForConditionalGeneration, SEVLMOutput


__all__ = ["SEVLMConfig", "SEVLMForConditionalGeneration", "SEVLMOutput"]
