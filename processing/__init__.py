"""SEVLM's processor, VAD lexicons and data. Importing this package registers the processor with AutoProcessor."""

from transformers import AutoProcessor, PreTrainedConfig

from .processing_sevlm import SEVLMProcessor, add_sevlm_tokens
from .vad_lexicon import VADLexicon


class _SEVLMProcessorKey(PreTrainedConfig):
    """AutoProcessor files processors under configuration classes. This package does not import the model's, and the
    look-up goes by the processor's class name, so any class serves as the key."""

    model_type = "sevlm"


AutoProcessor.register(_SEVLMProcessorKey, SEVLMProcessor, exist_ok=True)

__all__ = ["SEVLMProcessor", "VADLexicon", "add_sevlm_tokens"]
