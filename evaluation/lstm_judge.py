"""The LSTM judge: ArtEmis' classifier from explanations to emotions (Achlioptas et al. 2021) as a transformers model.

    python -m evaluation.train_emotion_classifier --model lstm --annotations artemis.csv --output_dir outputs/judge

Importing this module registers the model with the Auto classes, so its checkpoints contain no code.

Two differences to ArtEmis. There, padding enters the maximum over time as zeros, so the scores of a text depend on the
longest text of its batch; here padding is left out of the maximum. And raw text must be readable here, so punctuation
marks are tokens: "'s" of cleaned text is two tokens.
"""

import contextlib
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from processing.csv_files import not_utf8


GROUP = 128  # texts that the LSTM reads together
PAD, UNKNOWN, END = "<pad>", "<unk>", "<eos>"


class LSTMJudgeConfig(PreTrainedConfig):
    """Configuration of [`LSTMJudgeForSequenceClassification`]. The defaults are ArtEmis' sizes without GloVe."""

    model_type = "lstm_judge"

    vocab_size: int = 10_000
    embedding_size: int = 128
    hidden_size: int = 256
    head_size: int = 100
    dropout: float = 0.25
    pad_token_id: int | None = 0


class LSTMJudgeForSequenceClassification(PreTrainedModel):
    """Word embeddings, a two-layer perceptron per word, an LSTM, the maximum over time, and a two-layer head."""

    config_class = LSTMJudgeConfig
    _input_embed_layer = "embeddings"

    def __init__(self, config: LSTMJudgeConfig):
        super().__init__(config)
        width, dropout = config.hidden_size, config.dropout
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size, config.pad_token_id)
        self.words = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(config.embedding_size, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
        )
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.dense = nn.Linear(width, config.head_size)
        self.norm = nn.BatchNorm1d(config.head_size)
        self.classifier = nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(config.head_size, config.num_labels))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # PyTorch's initialization, as in ArtEmis; that of transformers is N(0, 0.02).
        if isinstance(module, nn.Embedding | nn.Linear | nn.LSTM | nn.BatchNorm1d):
            module.reset_parameters()

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
    ) -> SequenceClassifierOutput:
        """Returns `logits` `(N, labels)` and, with `labels` `(N,)`, the cross-entropy `loss`. `input_ids` `(N, L)` are
        padded on the right, so that the LSTM reaches a text's words before its padding."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        features = self.dense(self.encode(input_ids, mask))
        # The last batch of an epoch may be a single row, which has no variance.
        self.norm.train(self.training and len(features) > 1)
        logits = self.classifier(self.norm(features))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def encode(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Returns `(N, hidden_size)`: the maximum of the LSTM's states over the tokens of each text."""
        # Padding costs as much as words, so texts of similar length are read together.
        lengths = attention_mask.sum(dim=1)
        order = lengths.argsort()
        maxima = []
        for rows in order.split(GROUP):
            longest = int(lengths[rows[-1]])
            states, _ = self.lstm(self.words(self.embeddings(input_ids[rows, :longest])))
            padding = attention_mask[rows, :longest, None] == 0
            maxima.append(states.masked_fill(padding, -math.inf).amax(dim=1))
        return torch.cat(maxima)[order.argsort()]


def count_words(texts: Iterable[str], tokenizer: Tokenizer) -> Counter:
    """Counts the words into which normalizer and pre-tokenizer split the texts."""
    counts: Counter = Counter()
    for text in texts:
        words = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        counts.update(word for word, _ in words)
    return counts


def build_word_tokenizer(texts: Iterable[str], min_count: int) -> PreTrainedTokenizerFast:
    """Builds a lower-case tokenizer of words and punctuation marks. Its vocabulary has those that are in the texts at
    least `min_count` times, the most frequent first; the others become `<unk>`. Every text ends in `<eos>`."""
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    counts = count_words(texts, tokenizer)
    words = sorted((word for word in counts if counts[word] >= min_count), key=lambda word: (-counts[word], word))
    vocabulary = {word: i for i, word in enumerate([PAD, UNKNOWN, END, *words])}
    tokenizer.model = models.WordLevel(vocabulary, unk_token=UNKNOWN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, vocabulary[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"pad_token": PAD, "unk_token": UNKNOWN, "eos_token": END, "padding_side": "right"},
        model_input_names=["input_ids", "attention_mask"],
    )


def read_word_vectors(path: str | os.PathLike, words: Collection[str]) -> dict[str, torch.Tensor]:
    """Reads the vectors of `words` from a text file: in each line a word and its numbers, separated by blanks.

    Raises:
        ValueError: lines of different lengths, text in the place of a number, text that is not UTF-8, or no vector
            for any of the words. The message names file, line and remedy.
    """
    vectors, width = {}, None
    with open(path, encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                word, *values = line.rstrip().split(" ")
                width = len(values) if width is None else width
                if len(values) != width or not values:
                    expected = f"as many as line 1, {width}" if width else "some"
                    problem = f"{len(values)} numbers follow the word, not {expected}"
                    raise ValueError(f"{path}, line {number}: {problem}. Pass a file like glove.6B.100d.txt.")
                if word in words:
                    vectors[word] = torch.tensor([_finite(value, f"{path}, line {number}") for value in values])
        except UnicodeDecodeError as error:
            raise ValueError(not_utf8(path)) from error
    if not vectors:
        raise ValueError(
            f"{path}: no vector for any of the {len(words)} words. Pass vectors of lower-case English words."
        )
    return vectors


def _finite(text: str, place: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    raise ValueError(f"{place}: {text[:40]!r} is not a finite number. Correct the line.")


AutoConfig.register(LSTMJudgeConfig.model_type, LSTMJudgeConfig)
AutoModelForSequenceClassification.register(LSTMJudgeConfig, LSTMJudgeForSequenceClassification)
