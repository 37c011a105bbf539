# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The three training signals of the paper: language loss, emotion loss (Eq. 4-5), contrastive loss (Eq. 6-7).

Each loss is a mean over its own kind of item: label tokens, explanation tokens found in the lexicon, sentences that
have at least one negative. A batch without such an item gives zero, with a gradient path, so that distributed
training never waits for a missing gradient.
"""

from itertools import pairwise

import torch
from torch import nn


def language_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the next token, mean over the tokens that are asked for.

    Args:
        logits: `(T, V)`, where the T tokens were predicted.
        targets: `(T,)` token ids.
    """
    total = nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
    return total / max(1, targets.shape[0])


def emotion_targets(vad_values: torch.Tensor, explanation_mask: torch.Tensor) -> torch.Tensor:
    """Tokens whose VAD is to be predicted: `(..., L)` bool, explanation tokens with a VAD other than (0, 0, 0)."""
    return explanation_mask & vad_values.ne(0).any(dim=-1)


def emotion_loss(
    vad_predictions: torch.Tensor, vad_values: torch.Tensor, explanation_mask: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of Eq. 5 between the VAD predicted at t - 1 and the VAD of token t.

    Args:
        vad_predictions, vad_values: `(N, L, 3)`.
        explanation_mask: `(N, L)`, true for tokens behind " because" that are no padding.
    """
    wanted = emotion_targets(vad_values, explanation_mask)[:, 1:].unsqueeze(-1)
    errors = (vad_predictions[:, :-1].float() - vad_values[:, 1:].float()).square() * wanted
    return errors.sum() / (wanted.sum() * vad_values.shape[-1]).clamp(min=1)


def masked_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `(..., L, d)` over the positions where `mask` `(..., L)` is true; zero where there is none."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=-2) / weights.sum(dim=-2).clamp(min=1)


class SEVLMContrastiveHead(nn.Module):
    """Alignment score S(I, M, X) of Eq. 6: an MLP over the means of image, emotion and explanation features."""

    def __init__(self, hidden_size: int):
        super().__init__()
        widths = [3 * hidden_size] + 4 * [hidden_size]
        layers = [layer for d_in, d_out in pairwise(widths) for layer in (nn.Linear(d_in, d_out), nn.ReLU())]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_size, 1))

    def forward(self, image: torch.Tensor, emotion: torch.Tensor, explanation: torch.Tensor) -> torch.Tensor:
        """`(..., d)` three times -> `(...)` scores; higher means a better match."""
        return self.mlp(torch.cat([image, emotion, explanation], dim=-1)).squeeze(-1)

    def loss(
        self,
        image: torch.Tensor,
        emotion: torch.Tensor,
        explanation: torch.Tensor,
        present: torch.Tensor,
        other_emotion: torch.Tensor,
        negatives: list[str],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. 7 with the logarithm that it needs: -log softmax of the matched score among the negatives.

        The "emotion" negative of a sentence is the explanation of the row's next sentence, the "image" negative the
        explanation of the same sentence slot of the batch's next picture. A negative that does not exist (the same
        emotion, a single picture, an empty slot) is left out; a sentence without any negative is not counted.

        Args:
            image, emotion, explanation: `(B, P, d)` means for B pictures with P sentences each.
            present: `(B, P)`, false for an empty sentence slot.
            other_emotion: `(B, P)`, true where the row's next sentence has another emotion.
            negatives: subset of "emotion" and "image".

        Returns:
            The loss, and the matched scores `(B, P)`.
        """
        matched = self(image, emotion, explanation)
        scores, exists = [matched], [present]
        if "emotion" in negatives and matched.shape[1] > 1:
            scores.append(self(image, emotion, explanation.roll(-1, dims=1)))
            exists.append(present & present.roll(-1, dims=1) & other_emotion)
        if "image" in negatives and matched.shape[0] > 1:
            scores.append(self(image, emotion, explanation.roll(-1, dims=0)))
            exists.append(present & present.roll(-1, dims=0))
        exists = torch.stack(exists, dim=-1)
        stacked = torch.stack(scores, dim=-1).float()
        counted = present & exists[..., 1:].any(dim=-1)
        # The matched score stays finite everywhere, so that slots that are not counted give 0 and no NaN.
        exists[..., 0] = True
        losses = -stacked.masked_fill(~exists, float("-inf")).log_softmax(dim=-1)[..., 0]
        return (losses * counted).sum() / counted.sum().clamp(min=1), matched
