"""Gives a checkpoint the VAD lexicon of its training. A lexicon that may not be redistributed is not saved with it."""

import copy
import os

from processing import SEVLMProcessor, VADLexicon

from .card_sevlm import training_lexicon
from .modeling_sevlm import SEVLMForConditionalGeneration


def load_with_lexicon(
    checkpoint: str | os.PathLike, lexicon: VADLexicon | None
) -> tuple[SEVLMForConditionalGeneration, SEVLMProcessor]:
    """Loads model (in evaluation mode) and processor; raises ValueError as [`restore_lexicon`] does."""
    model = SEVLMForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = SEVLMProcessor.from_pretrained(checkpoint)
    restore_lexicon(model, processor, lexicon)
    return model, processor


def restore_lexicon(model, processor, lexicon: VADLexicon | None) -> None:
    """Sets the lexicon of a checkpoint that was saved without it.

    Raises:
        ValueError: the checkpoint lacks its lexicon and none is given, or another one than in training is given.
    """
    known = training_lexicon(model.config.vad_lexicon)
    if lexicon is not None and known:
        lexicon = copy.copy(lexicon)
        lexicon.matching = known.get("matching", "word")  # the file does not say by which rule the model reads it
    if lexicon is not None and lexicon.to_metadata() != known:
        raise ValueError(f"the model was trained with the VAD lexicon {known}, not with {lexicon.to_metadata()}.")
    if known and processor.vad_lexicon is None:
        if lexicon is None:
            raise ValueError(f"the checkpoint lacks its VAD lexicon {known['name']!r}. Pass --vad_lexicon FILE.")
        processor.vad_lexicon = lexicon
        model.set_vad_lexicon(lexicon, processor.tokenizer)
