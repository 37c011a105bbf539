"""SEVLM's processor, VAD lexicons and data. Importing this package registers the processor with AutoProcessor."""

from transformers import AutoProcessor, PreTrainedConfig

from .processing_sevlm import SEVLMProcessor, add_sevlm_tokens
from .vad_lexicon import VADLexicon


class _SEVLMProcessorKey(PreTrainedConfig):
    """The configuration class that AutoProcessor needs as a key. It looks processors up by class name, so any key
    works, and this package does not import the model's."""

    model_type = "sevlm"


AutoProcessor.register(_SEVLMProcessorKey, SEVLMProcessor, exist_ok=True)

__all__ = ["SEVLMProcessor", "VADLexicon", "add_sevlm_tokens"]
