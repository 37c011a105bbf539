"""Generated inputs of real size: words, sentences, a lexicon, a tokenizer, images, and a model with random weights.

Everything that a time depends on is as in the real data: the sizes of the network, the vocabulary and the lexicon,
tokens per word, and words per sentence.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from transformers import CLIPVisionConfig, GPT2Config

from modeling_sevlm import SEVLMConfig, SEVLMForConditionalGeneration
from processing import SEVLMProcessor, VADLexicon
from processing.artemis import EMOTIONS
from processing.tiny_tokenizer import train_tokenizer


ONSETS = "b br c ch d f fl g gr h j k l m n p pl qu r s sh sk st t tr v w z".split()
VOWELS = "a e i o u ai ea oo".split()
CODAS = ["", "", *"n r s t l m nd st".split()]
SENTENCE_WORDS = (8, 24)  # about the length of ArtEmis' utterances; some are cut at 30 tokens
ANNOTATIONS = 5.68  # per painting of ArtEmis v1: 454,684 / 80,031


@dataclass(frozen=True)
class Size:
    words: int  # different words in the sentences
    lexicon: int  # words in the lexicon
    sentences: int  # training text of the tokenizer
    vocabulary: int  # without SEVLM's four tokens
    image_size: int
    new_tokens: int
    vision: dict  # arguments of the configurations
    text: dict


TINY_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_VISION |= {"image_size": 32, "patch_size": 8}
TINY_TEXT = {"n_embd": 48, "n_layer": 2, "n_head": 2, "n_positions": 64}
SIZES = {
    "full": Size(60_000, 20_000, 40_000, 50_257, 224, 25, {"patch_size": 16}, {"n_layer": 6}),
    "tiny": Size(300, 100, 300, 600, 32, 6, TINY_VISION, TINY_TEXT),
}


def make_words(count: int) -> list[str]:
    """Distinct words of one to four syllables, the most frequent ones first."""
    draw, words = np.random.default_rng(0), {}
    while len(words) < count:
        syllables = draw.choice(4, p=[0.1, 0.4, 0.35, 0.15]) + 1
        parts = (ONSETS, VOWELS, CODAS) * syllables
        words["".join(part[draw.integers(len(part))] for part in parts)] = None
    return list(words)


def make_sentences(words: list[str], count: int, seed: int = 0) -> list[str]:
    """Sentences whose word frequencies follow Zipf's law."""
    draw = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, len(words) + 1)
    lengths = draw.integers(SENTENCE_WORDS[0], SENTENCE_WORDS[1] + 1, size=count)
    chosen = iter(draw.choice(len(words), size=lengths.sum(), p=frequency / frequency.sum()).tolist())
    return [" ".join(words[next(chosen)] for _ in range(length)) for length in lengths.tolist()]


def make_lexicon(words: list[str], count: int) -> VADLexicon:
    """A lexicon of `count` of the words, frequent and rare ones alike."""
    draw = np.random.default_rng(0)
    chosen = draw.choice(words, size=count, replace=False).tolist()
    values = map(tuple, draw.uniform(-1, 1, size=(count, 3)).round(3).tolist())
    return VADLexicon(dict(zip(chosen, values, strict=True)), name="generated", redistributable=True)


def write_annotations(words: list[str], file: str, paintings: int) -> None:
    """Writes a CSV file in the layout and proportions of ArtEmis v1, its rows shuffled."""
    draw = np.random.default_rng(0)
    counts = draw.poisson(ANNOTATIONS - 1, size=paintings) + 1
    index = draw.permutation(np.repeat(np.arange(paintings), counts))
    columns = {
        "art_style": [f"style_{i % 27}" for i in index],
        "painting": [f"painter-{i % 1119}_picture-{i}" for i in index],
        "emotion": [EMOTIONS[label] for label in draw.integers(len(EMOTIONS), size=len(index))],
        "utterance": make_sentences(words, len(index)),
        "repetition": counts[index],
    }
    pd.DataFrame(columns).to_csv(file, index=False, lineterminator="\n")


@dataclass
class Inputs:
    size: Size
    words: list[str]
    processor: SEVLMProcessor  # with tokenizer and lexicon

    def model(self, seed: int = 0) -> SEVLMForConditionalGeneration:
        """A float32 model on the CPU with a frozen tower. Its random weights are enlarged so that different inputs
        give different tokens; its sentences never end early."""
        torch.manual_seed(seed)
        size = self.size
        # The token ids are those of the processor.
        tokens = {"vocab_size": len(self.processor.tokenizer), "bos_token_id": None, "eos_token_id": None}
        configs = {"vision_config": CLIPVisionConfig(**size.vision), "text_config": GPT2Config(**size.text, **tokens)}
        config = SEVLMConfig(**configs, **self.processor.token_layout())
        model = SEVLMForConditionalGeneration(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not name.startswith("decoder.wte"):
                parameter.data.mul_(4)
        model.set_vad_lexicon(self.processor.vad_lexicon, self.processor.tokenizer)
        model.freeze_vision_tower()
        greedy = {"do_sample": False, "top_p": 1.0, "top_k": 50, "eos_token_id": None}
        model.generation_config.update(**greedy, max_new_tokens=size.new_tokens)
        return model.eval()

    def pixel_values(self, batch_size: int) -> torch.Tensor:
        """`(B, 3, H, W)` random images."""
        size, draw = self.size.image_size, torch.Generator().manual_seed(0)
        return torch.randn(batch_size, 3, size, size, generator=draw)

    def training_text(self, batch_size: int) -> dict[str, torch.Tensor]:
        """Text `(B, 2, L)` as the collator makes it: two sentences of different emotions for each of B images."""
        draw = np.random.default_rng(0)
        labels = [draw.choice(EMOTIONS, size=2, replace=False).tolist() for _ in range(batch_size)]
        sentences = make_sentences(self.words, 2 * batch_size, seed=1)
        pairs = list(zip(sentences[::2], sentences[1::2], strict=True))
        return dict(self.processor(emotions=labels, explanations=pairs, return_tensors="pt"))


def make_inputs(name: str) -> Inputs:
    size = SIZES[name]
    words = make_words(size.words)
    # Every word occurs, so that the vocabulary can be filled.
    rare = [" ".join(words[i : i + 16]) for i in range(0, len(words), 16)]
    texts = [*make_sentences(words, size.sentences), *rare, *rare]
    tokenizer = train_tokenizer(texts, EMOTIONS, vocab_size=size.vocabulary)
    lexicon = make_lexicon(words, size.lexicon)
    processor = SEVLMProcessor.from_tokenizer(tokenizer, image_size=size.image_size, vad_lexicon=lexicon)
    return Inputs(size, words, processor)
