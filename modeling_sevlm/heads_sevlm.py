# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The paper's training signals: language loss, emotion loss (Eq. 4-5), contrastive loss (Eq. 6-7).

Each loss is a mean over its own kind of item: label tokens, explanation tokens found in the lexicon, sentences with at
least one negative. A batch without such an item gives zero and still has a gradient path, because distributed training
waits for the gradient of every parameter.
"""

from itertools import pairwise

import torch
from torch import nn


def language_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the cross-entropy of the next token, mean over T tokens.

    Args:
        logits: `(T, V)`.
        targets: `(T,)` token ids.
    """
    total = nn.functional.cross_entropy(_at_least_float32(logits), targets, reduction="sum")
    return total / max(1, targets.shape[0])


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def emotion_targets(vad_values: torch.Tensor, explanation_mask: torch.Tensor) -> torch.Tensor:
    """Returns a mask `(..., L)` of the tokens in the emotion loss: explanation tokens with a VAD except (0, 0, 0)."""
    return explanation_mask & vad_values.ne(0).any(dim=-1)


def emotion_loss(
    vad_predictions: torch.Tensor, vad_values: torch.Tensor, explanation_mask: torch.Tensor
) -> torch.Tensor:
    """Returns the mean squared error of Eq. 5 between the VAD predicted at t - 1 and the VAD of token t.

    Args:
        vad_predictions, vad_values: `(N, L, 3)`.
        explanation_mask: `(N, L)`, true for tokens after " because", without padding.
    """
    targets = emotion_targets(vad_values, explanation_mask)[:, 1:].unsqueeze(-1)
    predicted, wanted = _at_least_float32(vad_predictions[:, :-1]), _at_least_float32(vad_values[:, 1:])
    errors = (predicted - wanted).square() * targets
    return errors.sum() / (targets.sum() * vad_values.shape[-1]).clamp(min=1)


def masked_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the mean of `(..., L, d)` over the positions where `mask` `(..., L)` is true; zero if there are none."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=-2) / weights.sum(dim=-2).clamp(min=1)


def sentence_means(
    image_embeds: torch.Tensor, hidden: torch.Tensor, emotion_mask: torch.Tensor, explanation_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns I, M and X of Eq. 6: means over patches, emotion segment and explanation, each `(B, P, d)`.

    Args:
        image_embeds: `(B, K, d)` patch features.
        hidden: `(B * P, L, d)` last hidden states of the decoder.
        emotion_mask, explanation_mask: `(B * P, L)`.
    """
    image = image_embeds.mean(dim=1, keepdim=True)
    emotion = masked_mean(hidden, emotion_mask).view(image.shape[0], -1, image.shape[2])
    explanation = masked_mean(hidden, explanation_mask).view_as(emotion)
    return image.expand_as(emotion), emotion, explanation


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
        """Computes Eq. 7 as -log softmax of the matched score against its negatives (the paper omits the log).

        The "emotion" negative of a sentence is the next explanation of the same image. The "image" negative is the
        explanation in the same slot of the next image. A negative that does not exist (same emotion, single image,
        empty slot) is left out. A sentence without negatives is not counted.

        Args:
            image, emotion, explanation: `(B, P, d)` means for B images with P sentences each.
            present: `(B, P)`, false for an empty sentence slot.
            other_emotion: `(B, P)`, true where the next sentence of the same image has another emotion.
            negatives: subset of "emotion" and "image".

        Returns:
            The loss, and the matched scores `(B, P)`.
        """
        matched = self(image, emotion, explanation)
        # The matched score stays finite in every slot, so that slots that are not counted give 0 instead of NaN.
        scores, exists = [matched], [torch.ones_like(present)]
        if "emotion" in negatives and matched.shape[1] > 1:
            scores.append(self(image, emotion, explanation.roll(-1, dims=1)))
            exists.append(present & present.roll(-1, dims=1) & other_emotion)
        if "image" in negatives and matched.shape[0] > 1:
            scores.append(self(image, emotion, explanation.roll(-1, dims=0)))
            exists.append(present & present.roll(-1, dims=0))
        existing = torch.stack(exists, dim=-1)
        stacked = _at_least_float32(torch.stack(scores, dim=-1))
        log_softmax = stacked.masked_fill(~existing, float("-inf")).log_softmax(dim=-1)
        counted = present & existing[..., 1:].any(dim=-1)
        return (-log_softmax[..., 0] * counted).sum() / counted.sum().clamp(min=1), matched
