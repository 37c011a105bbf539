# Licensed under the Apache License, Version 2.0; see LICENSE.
"""All labels in one pass: a tree of tokens whose trunk is the prompt and whose branches are the labels.

    <bos> the emotion is +-- amusement
                         +-- awe
                         +-- something else

The branches lie side by side in one sequence; positions and mask make each of them believe that it follows the prompt
alone. A picture's patches are then attended to once instead of once per label.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass
class LabelTree:
    """
    Args:
        input_ids, position_ids: `(1, T)`.
        mask: `(1, 1, T, T)`, true where a node may look.
        nodes, tokens, labels: `(S,)` each; node `nodes[i]` predicts `tokens[i]`, a step of label `labels[i]`.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    nodes: torch.Tensor
    tokens: torch.Tensor
    labels: torch.Tensor


def build_label_tree(prompt: Sequence[int], label_tokens: Sequence[Sequence[int]], closing_token: int) -> LabelTree:
    """The tree of `prompt` and `label_tokens`; every label counts its own tokens and `closing_token` behind them."""
    ids, positions, branch_starts, steps = list(prompt), list(range(len(prompt))), [0] * len(prompt), []
    for label, tokens in enumerate(label_tokens):
        start = len(ids)
        # The end of the prompt predicts every label's first token.
        predicting = [len(prompt) - 1, *range(start, start + len(tokens))]
        steps += [(node, token, label) for node, token in zip(predicting, [*tokens, closing_token], strict=True)]
        ids += tokens
        positions += range(len(prompt), len(prompt) + len(tokens))
        branch_starts += [start] * len(tokens)
    node = torch.arange(len(ids))
    # A node sees the prompt and, of its own branch, itself and what stands before it.
    mask = (node[:, None] >= node) & ((node < len(prompt)) | (node >= torch.tensor(branch_starts)[:, None]))
    nodes, tokens, labels = torch.tensor(steps).T
    return LabelTree(torch.tensor([ids]), torch.tensor([positions]), mask[None, None], nodes, tokens, labels)
