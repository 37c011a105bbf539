# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Valence, arousal and dominance (VAD) in the model: the look-up by token id, and the emotion encoder of Eq. 2.

`processing/vad_lexicon.py` defines the VAD of a token: the token that completes a word of the lexicon has that word's
VAD, every other token (0, 0, 0). `VADLookup` applies the same rule to token ids. It stores the lexicon with the
weights, as a trie of tensors, so `generate()` needs no text and no Python per token.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .configuration_sevlm import SEVLMConfig


VAD_SIZE = 3
# The table stores integers, one unit being 1/10,000: casting a model to half precision must not round the lexicon.
VAD_UNIT = 10_000
# Smaller than every key of the trie, even after a state's offset is added.
NO_PIECE = -(2**62)


class VADLookup(nn.Module):
    """Maps token ids to VAD with a trie whose edges are pieces of words. Without a table every token is neutral.

    Args:
        table: buffer sizes, as the property `sizes` has them, for `load_state_dict` to fill; `None`: no table.
    """

    # Distributed training broadcasts buffers, and gloo has no int16. So the table is int32.
    token_pieces: torch.Tensor  # (V,) piece of each token; -1: not part of a word, -2: not in any word of the lexicon
    token_starts_word: torch.Tensor  # (V,) bool
    transition_keys: torch.Tensor  # (N,) int64, ascending: state * num_pieces + piece; state 0 is the root
    transition_states: torch.Tensor  # (N,) state that each key leads to
    state_vad: torch.Tensor  # (S, 3) in units of 1/10,000

    def __init__(self, table: Mapping[str, int] | None = None):
        super().__init__()
        table = table or {}
        self.num_pieces = table.get("num_pieces", 0)
        self.max_word_tokens = table.get("max_word_tokens", 0)
        vocab_size, transitions = table.get("vocab_size", 0), table.get("num_transitions", 0)
        buffers = {
            "token_pieces": torch.zeros(vocab_size, dtype=torch.int32),
            "token_starts_word": torch.zeros(vocab_size, dtype=torch.bool),
            "transition_keys": torch.zeros(transitions, dtype=torch.int64),
            "transition_states": torch.zeros(transitions, dtype=torch.int32),
            "state_vad": torch.zeros(table.get("num_states", 0), VAD_SIZE, dtype=torch.int32),
        }
        for name, buffer in buffers.items():
            # Empty tensors would all have the same address, as tied weights have.
            self.register_buffer(name, buffer if table else None)

    @property
    def has_table(self) -> bool:
        return self.transition_keys is not None and self.transition_keys.numel() > 0

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any]) -> "VADLookup":
        """Builds the look-up from the result of `VADLexicon.compile(tokenizer)`."""
        lookup = cls()
        for name in tuple(lookup._buffers):
            setattr(lookup, name, tables[name])
        lookup.num_pieces, lookup.max_word_tokens = tables["num_pieces"], tables["max_word_tokens"]
        return lookup

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that `__init__` takes."""
        return {
            "vocab_size": self.token_pieces.shape[0],
            "num_transitions": self.transition_keys.shape[0],
            "num_states": self.state_vad.shape[0],
            "num_pieces": self.num_pieces,
            "max_word_tokens": self.max_word_tokens,
        }

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns the VAD of every token.

        Args:
            input_ids: `(..., L)` whole sequences, from their first token.

        Returns:
            `(..., L, 3)` float32 in [-1, 1].
        """
        if not self.has_table:
            return torch.zeros(*input_ids.shape, VAD_SIZE, device=input_ids.device)
        # Tokens that were added after the lexicon was compiled are not part of words.
        known = input_ids < self.token_pieces.shape[0]
        ids = torch.where(known, input_ids, 0)
        pieces = torch.where(known, self.token_pieces[ids], -1).long()
        in_word = pieces != -1
        follows_word = nn.functional.pad(in_word[..., :-1], (1, 0))
        starts = in_word & (self.token_starts_word[ids] | ~follows_word)
        pieces = torch.where(pieces >= 0, pieces, NO_PIECE)

        # All words in parallel: round d computes the trie state of each word's d-th token from that of the one before.
        states = torch.where(starts, self._follow(pieces), -1)
        # Most words are short, so the loop can stop early. On a GPU, the check would wait for the device.
        may_stop_early = states.device.type == "cpu" and not torch.compiler.is_compiling()
        for _ in range(1, min(self.max_word_tokens, input_ids.shape[-1])):
            previous = nn.functional.pad(states[..., :-1], (1, 0), value=-1)
            continues = in_word & ~starts & (previous >= 0)
            advanced = torch.where(continues, self._follow(previous * self.num_pieces + pieces), states)
            if may_stop_early and torch.equal(advanced, states):
                break
            states = advanced
        vad = self.state_vad[states.clamp(min=0)].float() / VAD_UNIT
        return torch.where((states >= 0).unsqueeze(-1), vad, 0.0)

    def _follow(self, keys: torch.Tensor) -> torch.Tensor:
        """Returns the states that the keys lead to; -1 where the trie has no such edge."""
        slots = torch.searchsorted(self.transition_keys, keys).clamp(max=self.transition_keys.shape[0] - 1)
        return torch.where(self.transition_keys[slots] == keys, self.transition_states[slots].long(), -1)


class SEVLMEmotionEncoder(nn.Module):
    """The transformer encoder of Eq. 2 over rows of VAD: width 3, one head, learned positions.

    The authors' encoder is bidirectional. By default this one has the same parameters but a causal mask. Training
    then does not see later words, and cached generation gives the same result as recomputing.
    """

    def __init__(self, config: SEVLMConfig):
        super().__init__()
        self.is_causal = config.emotion_encoder_attention == "causal"
        self.positions = nn.Embedding(config.emotion_encoder_max_positions, VAD_SIZE)
        self.norm = nn.LayerNorm(VAD_SIZE)
        self.layers = nn.ModuleList([SEVLMEmotionLayer(config) for _ in range(config.emotion_encoder_layers)])

    def forward(
        self,
        vad_values: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            vad_values: `(B, L, 3)` in [-1, 1], whole sequences from their first token.
            position_ids: `(B, L)` or `(1, L)`; 0..L-1 by default.
            attention_mask: `(B, L)`, zero for padding, which no other position attends to.

        Returns:
            `(B, L, 3)` emotion features f^E.
        """
        length, device = vad_values.shape[1], vad_values.device
        if position_ids is None:
            position_ids = torch.arange(length, device=device).unsqueeze(0)
        mask = torch.ones(length, length, dtype=torch.bool, device=device)
        mask = mask.tril() if self.is_causal else mask
        if attention_mask is not None:
            # Padding attends to itself, so that its rows stay finite.
            mask = mask & attention_mask.bool()[:, None, :] | torch.eye(length, dtype=torch.bool, device=device)
        hidden = self.norm(vad_values + self.positions(position_ids))
        for layer in self.layers:
            # The authors' code also adds a residual around the layer, which already has its own.
            hidden = hidden + layer(hidden, mask)
        return hidden


class SEVLMEmotionLayer(nn.Module):
    """One post-norm encoder layer with a single head of width 3."""

    def __init__(self, config: SEVLMConfig):
        super().__init__()
        self.query = nn.Linear(VAD_SIZE, VAD_SIZE)
        self.key = nn.Linear(VAD_SIZE, VAD_SIZE)
        self.value = nn.Linear(VAD_SIZE, VAD_SIZE)
        self.fc_in = nn.Linear(VAD_SIZE, config.emotion_encoder_intermediate_size)
        self.fc_out = nn.Linear(config.emotion_encoder_intermediate_size, VAD_SIZE)
        self.norm_attention = nn.LayerNorm(VAD_SIZE)
        self.norm_output = nn.LayerNorm(VAD_SIZE)
        self.dropout = nn.Dropout(config.emotion_encoder_dropout)
        self.attention_dropout = nn.Dropout(config.emotion_encoder_attention_dropout)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`(B, L, 3)` -> `(B, L, 3)`; `mask` is boolean, `(L, L)` or `(B, L, L)`, true where a row may attend."""
        # No fused kernel takes heads of width 3, and the fallback of `scaled_dot_product_attention` is slower.
        scores = self.query(hidden) @ self.key(hidden).transpose(-1, -2) * VAD_SIZE**-0.5
        weights = self.attention_dropout(scores.masked_fill(~mask, float("-inf")).softmax(dim=-1))
        attended = weights @ self.value(hidden)
        attended = self.norm_attention(hidden + self.dropout(attended))
        transformed = self.fc_out(nn.functional.relu(self.fc_in(attended)))
        return self.norm_output(attended + self.dropout(transformed))
