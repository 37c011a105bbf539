"""SEVLM's processor, VAD lexicons and data. Importing this package registers the processor with AutoProcessor."""

from transformers import AutoProcessor, PreTrainedConfig

from .processing_sevlm import SEVLMProcessor, add_sevlm_tokens
from .vad_lexicon import VADLexicon


class _SEVLMProcessorKey(PreTrainedConfig):
    """A key for AutoProcessor's mapping. Look-ups use the processor's class name, so this stands in for SEVLMConfig,
    which this package does not import."""

    model_type = "sevlm"


AutoProcessor.register(_SEVLMProcessorKey, SEVLMProcessor, exist_ok=True)

__all__ = ["SEVLMProcessor", "VADLexicon", "add_sevlm_tokens"]
