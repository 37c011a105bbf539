# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Trains a small byte-level BPE tokenizer, for models that start without pretrained weights."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer

from .processing_sevlm import BECAUSE, PROMPT


END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(explanations: Iterable[str], emotions: Iterable[str], vocab_size: int = 2000) -> GPT2Tokenizer:
    """Trains a GPT-2 tokenizer of at most `vocab_size` tokens on the sentences as the model sees them. " because" and
    the labels become single tokens if the size allows it."""
    emotions, explanations = list(emotions), list(explanations)
    opening = "".join(f"{PROMPT} {emotion}{BECAUSE}" for emotion in emotions)
    # The opening is as frequent as in training, where every sentence has one.
    texts = [" " + sentence for sentence in explanations] + [opening] * (len(explanations) // len(emotions) + 2)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return GPT2Tokenizer(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
    )
