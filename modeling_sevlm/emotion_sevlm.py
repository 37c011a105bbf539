# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Valence, arousal and dominance inside the model: the look-up by token ids and the emotion encoder.

`VADLookup` is the tensor reader of the rule that `processing/vad_lexicon.py` states for strings: walk a word's tokens
from its first one; the token that completes a string found in the lexicon carries that word's VAD, every other token
(0, 0, 0). The lexicon is compiled against the vocabulary into a trie of tensors that is saved with the weights, so
`generate()` needs no text and no Python per token.
"""

from collections.abc import Mapping

import torch
from torch import nn


VAD_SIZE = 3
# The table keeps VAD as whole ten-thousandths: casting a model to half precision must not round a lexicon. (int32,
# because distributed training broadcasts buffers, and gloo knows no int16.)
VAD_UNIT = 10_000
# Less than any edge of the trie, whatever state it is added to.
NO_PIECE = -(2**62)


class VADLookup(nn.Module):
    """Token ids -> VAD, by a trie whose edges are vocabulary pieces.

    Buffers (all persistent, all integer): `token_pieces` (V,) piece of a token, negative if none; `token_starts_word`
    (V,); `transition_keys` (N,) ascending `state * num_pieces + piece`; `transition_states` (N,); `state_vad` (S, 3)
    in ten-thousandths, state 0 being the root. With no table every token is neutral.

    Args:
        table: sizes `{"vocab_size", "num_transitions", "num_states", "num_pieces", "max_word_tokens"}` of the table
            that is about to be loaded, or `None`.
    """

    def __init__(self, table: Mapping[str, int] | None = None):
        super().__init__()
        table = table or {}
        self.num_pieces = table.get("num_pieces", 0)
        self.max_word_tokens = table.get("max_word_tokens", 0)
        vocab_size, transitions = table.get("vocab_size", 0), table.get("num_transitions", 0)
        self.register_buffer("token_pieces", torch.zeros(vocab_size, dtype=torch.int32))
        self.register_buffer("token_starts_word", torch.zeros(vocab_size, dtype=torch.bool))
        self.register_buffer("transition_keys", torch.zeros(transitions, dtype=torch.int64))
        self.register_buffer("transition_states", torch.zeros(transitions, dtype=torch.int32))
        self.register_buffer("state_vad", torch.zeros(table.get("num_states", 0), VAD_SIZE, dtype=torch.int32))

    @property
    def has_table(self) -> bool:
        return self.transition_keys.numel() > 0

    @classmethod
    def from_tables(cls, tables: Mapping[str, torch.Tensor | int]) -> "VADLookup":
        """The look-up that `VADLexicon.compile(tokenizer)` describes."""
        lookup = cls()
        for name in lookup.state_dict():
            setattr(lookup, name, tables[name])
        lookup.num_pieces, lookup.max_word_tokens = tables["num_pieces"], tables["max_word_tokens"]
        return lookup

    @property
    def sizes(self) -> dict[str, int]:
        """What `__init__` needs to make room for this table."""
        return {
            "vocab_size": self.token_pieces.shape[0],
            "num_transitions": self.transition_keys.shape[0],
            "num_states": self.state_vad.shape[0],
            "num_pieces": self.num_pieces,
            "max_word_tokens": self.max_word_tokens,
        }

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """VAD of every token.

        Args:
            input_ids: `(..., L)` whole sequences, from their first token.

        Returns:
            `(..., L, 3)` float32 in [-1, 1].
        """
        if not self.has_table:
            return torch.zeros(*input_ids.shape, VAD_SIZE, device=input_ids.device)
        # Rows added to the vocabulary after the lexicon was compiled are no word pieces.
        known = input_ids < self.token_pieces.shape[0]
        ids = torch.where(known, input_ids, 0)
        pieces = torch.where(known, self.token_pieces[ids], -1).long()
        is_piece = pieces != -1
        follows_piece = torch.zeros_like(is_piece)
        follows_piece[..., 1:] = is_piece[..., :-1]
        starts = is_piece & (self.token_starts_word[ids] | ~follows_piece)

        # How many tokens of its word stand before a piece: position minus that of the word's first token.
        position = torch.arange(input_ids.shape[-1], device=input_ids.device).expand_as(input_ids)
        depth = position - torch.where(starts, position, -1).cummax(dim=-1).values
        depth = torch.where(is_piece, depth, 0)

        # All words advance together: round d settles the state of every word's d-th token from its (d-1)-th.
        pieces = torch.where(pieces >= 0, pieces, NO_PIECE)
        states = torch.where(starts, self._follow(pieces), -1)
        # Few words are long, and fewer are beginnings of a lexicon word so far. Elsewhere asking would wait for the
        # device.
        may_ask = states.device.type == "cpu" and not torch.compiler.is_compiling()
        for d in range(1, min(self.max_word_tokens, input_ids.shape[-1])):
            before = nn.functional.pad(states[..., :-1], (1, 0), value=-1)
            goes_on = (depth == d) & (before >= 0)
            if may_ask and not goes_on.any():
                break
            states = torch.where(goes_on, self._follow(before * self.num_pieces + pieces), states)
        vad = self.state_vad[states.clamp(min=0)].float() / VAD_UNIT
        return torch.where((states >= 0).unsqueeze(-1), vad, 0.0)

    def _follow(self, keys: torch.Tensor) -> torch.Tensor:
        """The states that edges of the trie lead to; -1 where there is no such edge."""
        slots = torch.searchsorted(self.transition_keys, keys).clamp(max=self.transition_keys.shape[0] - 1)
        return torch.where(self.transition_keys[slots] == keys, self.transition_states[slots].long(), -1)


class SEVLMEmotionEncoder(nn.Module):
    """The transformer encoder of Eq. 2 over rows of VAD: width 3, one head, learned positions.

    The authors' encoder sees every position from every position. By default this one is causal with the same weights:
    no look at later words in training, and cached generation equals recomputing.
    """

    def __init__(self, config):
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
        length = vad_values.shape[1]
        if position_ids is None:
            position_ids = torch.arange(length, device=vad_values.device).unsqueeze(0)
        hidden = self.norm(vad_values + self.positions(position_ids))
        mask = self._mask(length, attention_mask, vad_values.device)
        for layer in self.layers:
            # The authors add each block's output to its input once more, around the residuals inside the block.
            hidden = hidden + layer(hidden, mask)
        return hidden

    def _mask(self, length: int, attention_mask: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
        """Boolean, broadcastable to `(B, L, L)`, true where a query may look. A position always sees itself, so that
        rows of padding stay finite."""
        if not self.is_causal and attention_mask is None:
            return None
        ones = torch.ones(length, length, dtype=torch.bool, device=device)
        mask = ones.tril() if self.is_causal else ones
        if attention_mask is None:
            return mask
        diagonal = torch.eye(length, dtype=torch.bool, device=device)
        return mask & attention_mask.bool()[:, None, :] | diagonal


class SEVLMEmotionLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.query = nn.Linear(VAD_SIZE, VAD_SIZE)
        self.key = nn.Linear(VAD_SIZE, VAD_SIZE)
        self.value = nn.Linear(VAD_SIZE, VAD_SIZE)
        self.fc_in = nn.Linear(VAD_SIZE, config.emotion_encoder_intermediate_size)
        self.fc_out = nn.Linear(config.emotion_encoder_intermediate_size, VAD_SIZE)
        self.norm_attention = nn.LayerNorm(VAD_SIZE)
        self.norm_output = nn.LayerNorm(VAD_SIZE)
        self.dropout = nn.Dropout(config.emotion_encoder_dropout)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        # No fused kernel takes heads of width 3, and the fallback spends more operations than this.
        scores = self.query(hidden) @ self.key(hidden).transpose(-1, -2) * VAD_SIZE**-0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        attended = scores.softmax(dim=-1) @ self.value(hidden)
        attended = self.norm_attention(hidden + self.dropout(attended))
        transformed = self.fc_out(nn.functional.relu(self.fc_in(attended)))
        return self.norm_output(attended + self.dropout(transformed))
