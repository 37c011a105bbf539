# Licensed under the Apache License, Version 2.0; see LICENSE.
"""A tree of tokens that scores all labels in one pass. The prompt is the trunk; each label is a branch.

    <bos> the emotion is +-- amusement
                         +-- awe
                         +-- something else

The branches follow one another in one sequence. Position ids and the attention mask let each branch see the prompt
and itself only, so it is scored like a separate sequence. Each image is attended to once instead of once per label.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass
class LabelTree:
    """
    Args:
        input_ids, position_ids: `(1, T)`.
        mask: `(1, 1, T, T)` bool, true where a node (row) may attend to a node (column).
        nodes, tokens, labels: `(S,)` each; the output at `nodes[i]` predicts `tokens[i]`, which belongs to label
            `labels[i]`.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    nodes: torch.Tensor
    tokens: torch.Tensor
    labels: torch.Tensor


def build_label_tree(prompt: Sequence[int], label_tokens: Sequence[Sequence[int]], closing_token: int) -> LabelTree:
    """Builds the tree. A label is scored on its own tokens and on `closing_token` after them."""
    ids, positions, branch_starts = list(prompt), list(range(len(prompt))), [0] * len(prompt)
    steps: list[tuple[int, int, int]] = []
    for label, tokens in enumerate(label_tokens):
        start = len(ids)
        # The last token of the prompt predicts the first token of every label.
        nodes = [len(prompt) - 1, *range(start, start + len(tokens))]
        steps += [(node, token, label) for node, token in zip(nodes, [*tokens, closing_token], strict=True)]
        ids += tokens
        positions += range(len(prompt), len(prompt) + len(tokens))
        branch_starts += [start] * len(tokens)
    node = torch.arange(len(ids))
    mask = (node[:, None] >= node) & ((node < len(prompt)) | (node >= torch.tensor(branch_starts)[:, None]))
    return LabelTree(torch.tensor([ids]), torch.tensor([positions]), mask[None, None], *torch.tensor(steps).T)
