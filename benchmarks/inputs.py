# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Made-up inputs of real size: words, sentences, a lexicon, a tokenizer, pictures, and a model with random weights.

Nothing is downloaded, and nothing depends on what the words mean. What a time depends on is as in the real thing: the
vocabulary of GPT-2's size, the lexicon's 20,000 words, tokens per word, words per sentence, and every size of the
network.
"""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, GPT2Config

from modeling_sevlm import SEVLMConfig, SEVLMForConditionalGeneration
from processing import SEVLMProcessor, VADLexicon
from processing.artemis import EMOTIONS
from processing.tiny_tokenizer import train_tokenizer


ONSETS = "b br c ch d f fl g gr h j k l m n p pl qu r s sh sk st t tr v w z".split()
VOWELS = "a e i o u ai ea oo".split()
CODAS = ["", "", *"n r s t l m nd st".split()]
SENTENCE_WORDS = (8, 24)  # about as long as ArtEmis' utterances; some are cut at 30 tokens


@dataclass(frozen=True)
class Size:
    """How large a benchmark is. Without `vision` and `text` it is the paper's model."""

    words: int  # that sentences are made of
    lexicon: int  # of them known to the lexicon
    sentences: int  # that the tokenizer is trained on
    vocabulary: int  # before SEVLM's four tokens
    image_size: int
    new_tokens: int
    vision: dict | None = None
    text: dict | None = None


SIZES = {
    "full": Size(60_000, 20_000, 40_000, 50_257, 224, 25),
    "tiny": Size(
        300,
        100,
        300,
        600,
        32,
        6,
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        {"n_embd": 48, "n_layer": 2, "n_head": 2, "n_positions": 64},
    ),
}


def make_words(count: int, seed: int = 0) -> list[str]:
    """Distinct words of one to four syllables; the first ones are those that sentences use most."""
    draw = np.random.default_rng(seed)
    words = {}
    while len(words) < count:
        syllables = draw.choice(4, p=[0.1, 0.4, 0.35, 0.15]) + 1
        words["".join(map(_syllable, [draw] * syllables))] = None
    return list(words)


def _syllable(draw: np.random.Generator) -> str:
    return "".join(parts[draw.integers(len(parts))] for parts in (ONSETS, VOWELS, CODAS))


def make_sentences(words: list[str], count: int, seed: int = 0) -> list[str]:
    """Sentences whose words are as unevenly frequent as in a language (Zipf's law)."""
    draw = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, len(words) + 1)
    lengths = draw.integers(SENTENCE_WORDS[0], SENTENCE_WORDS[1] + 1, size=count)
    chosen = iter(draw.choice(len(words), size=lengths.sum(), p=frequency / frequency.sum()).tolist())
    return [" ".join(words[next(chosen)] for _ in range(length)) for length in lengths.tolist()]


def make_lexicon(words: list[str], count: int, seed: int = 0) -> VADLexicon:
    """`count` of the words, frequent and rare ones alike."""
    draw = np.random.default_rng(seed)
    chosen = draw.choice(len(words), size=count, replace=False)
    values = draw.uniform(-1, 1, size=(count, 3)).round(3)
    entries = {words[i]: tuple(vad) for i, vad in zip(chosen, values.tolist(), strict=True)}
    return VADLexicon(entries, name="generated", redistributable=True)


@dataclass
class Inputs:
    """What the commands share: words, sentences, and a processor with tokenizer and lexicon."""

    size: Size
    words: list[str]
    sentences: list[str]
    processor: SEVLMProcessor

    def model(self, seed: int = 0) -> SEVLMForConditionalGeneration:
        """Random weights in float32 on the CPU, enlarged so that different inputs give different tokens; tower frozen,
        evaluation mode, and generation that never ends early."""
        torch.manual_seed(seed)
        text = GPT2Config(
            **{"n_layer": 6} | (self.size.text or {}),
            vocab_size=len(self.processor.tokenizer),
            bos_token_id=None,  # the processor's, below
            eos_token_id=None,
        )
        vision = None if self.size.vision is None else CLIPVisionConfig(**self.size.vision)
        config = SEVLMConfig(vision_config=vision, text_config=text, **self.processor.token_layout())
        model = SEVLMForConditionalGeneration(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and not name.startswith("decoder.wte"):
                    parameter.mul_(4)
        model.set_vad_lexicon(self.processor.vad_lexicon, self.processor.tokenizer)
        model.freeze_vision_tower()
        model.generation_config.update(
            eos_token_id=None, do_sample=False, top_p=1.0, top_k=50, max_new_tokens=self.size.new_tokens
        )
        return model.eval()

    def pixel_values(self, batch_size: int, seed: int = 0) -> torch.Tensor:
        """`(B, 3, H, W)` normalised pictures."""
        pictures = [make_picture(self.size.image_size, seed=seed + i) for i in range(batch_size)]
        return torch.from_numpy(self.processor.image_processor(pictures, return_tensors="np")["pixel_values"])

    def training_text(self, batch_size: int, seed: int = 0) -> dict[str, torch.Tensor]:
        """Text `(B, 2, L)` as the collator makes it: two sentences of different emotions for each of B pictures."""
        draw = np.random.default_rng(seed)
        labels = [draw.choice(EMOTIONS, size=2, replace=False).tolist() for _ in range(batch_size)]
        sentences = make_sentences(self.words, 2 * batch_size, seed=seed + 1)
        pairs = list(zip(sentences[::2], sentences[1::2], strict=True))
        return dict(self.processor(emotions=labels, explanations=pairs, return_tensors="pt"))


def make_inputs(size: str | Size, seed: int = 0) -> Inputs:
    size = SIZES[size] if isinstance(size, str) else size
    words = make_words(size.words, seed)
    sentences = make_sentences(words, size.sentences, seed)
    # Every word is seen, so that the vocabulary can be filled.
    rare = [" ".join(words[i : i + 16]) for i in range(0, len(words), 16)]
    tokenizer = train_tokenizer([*sentences, *rare, *rare], EMOTIONS, vocab_size=size.vocabulary)
    processor = SEVLMProcessor.from_tokenizer(
        tokenizer, image_size=size.image_size, vad_lexicon=make_lexicon(words, size.lexicon, seed)
    )
    return Inputs(size, words, sentences, processor)


def make_picture(width: int, height: int | None = None, seed: int = 0) -> Image.Image:
    """Soft patches of colour with some grain."""
    draw = np.random.default_rng(seed)
    height = width if height is None else height
    colours = Image.fromarray(draw.integers(0, 256, size=(7, 7, 3), dtype=np.uint8))
    soft = np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    grain = draw.integers(-16, 17, size=soft.shape, dtype=np.int16)
    return Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8))


def make_jpeg(width: int, height: int, seed: int = 0) -> bytes:
    file = io.BytesIO()
    make_picture(width, height, seed).save(file, "JPEG", quality=90)
    return file.getvalue()
