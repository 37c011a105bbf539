# Licensed under the Apache License, Version 2.0; see LICENSE.
"""A visitor in front of a picture: what they asked the model about it. Knows nothing of the page.

    studio = Studio.load("outputs/demo")
    sitting = studio.sit("painting.jpg")               # emotion, scores, explanation
    studio.ask_why(sitting, "sadness")                 # the explanation of another emotion beside it
    studio.draw_candidates(sitting)                    # samples, best fit first

One model serves all visitors, one call at a time: sampling uses torch's one random stream, and two calls at once would
share the cores rather than be faster.
"""

import os
import threading
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from transformers import pipeline, set_seed

import modeling_sevlm  # noqa: F401 - registers model and pipeline
from modeling_sevlm.attention_map import attention_map, explanation_words, overlay_attention
from modeling_sevlm.pipeline_sevlm import TASK, SEVLMPipeline

from .uploads import UploadLimits, open_upload


SHOWN_SIZE = 768  # pixels of the copy that is kept for drawing on
SMALL_MODEL = 20_000_000  # parameters; below, a model has not seen enough to know real paintings


@dataclass
class Sitting:
    """One picture of one visitor, and the answers so far: `named`, and `asked` for the emotion they chose, as the
    pipeline returns them; `candidates` of the last draw. `words` are those of the latest answer, `sequence` its
    tokens, and `maps` where the model looked at each word, once somebody wants to know."""

    picture: Image.Image
    pixel_values: torch.Tensor
    named: dict | None = None
    asked: dict | None = None
    sequence: torch.Tensor | None = None
    words: list[str] = field(default_factory=list)
    maps: np.ndarray | None = None
    candidates: list[dict] = field(default_factory=list)
    draws: int = 0

    @property
    def latest(self) -> dict:
        """The answer whose words can be looked at."""
        return self.named if self.asked is None else self.asked

    @property
    def answers(self) -> list[dict]:
        return [self.named] if self.asked is None else [self.named, self.asked]


class Studio:
    """The model, its limits, and a lock.

    Args:
        explainer: the pipeline `art-emotion-explanation`.
        name: what the page calls the model.
        num_candidates: how many explanations a draw samples.
    """

    def __init__(
        self,
        explainer: SEVLMPipeline,
        name: str,
        *,
        limits: UploadLimits | None = None,
        num_candidates: int = 8,
        seed: int = 0,
    ):
        self.explainer, self.name, self.limits = explainer, name, limits or UploadLimits()
        self.num_candidates, self.seed = num_candidates, seed
        self._lock = threading.Lock()

    @classmethod
    def load(cls, model: str, *, device: str | None = None, revision: str | None = None, **kwargs) -> "Studio":
        """Load a checkpoint folder or a model of the Hub, with this installation's code."""
        explainer = pipeline(TASK, model=model, device=device, revision=revision)
        return cls(explainer, os.path.basename(os.path.abspath(model)) if os.path.isdir(model) else model, **kwargs)

    @property
    def emotions(self) -> list[str]:
        return self.explainer.model.config.emotions

    @property
    def can_rank(self) -> bool:
        return self.explainer.model.contrastive_head is not None

    @property
    def is_small(self) -> bool:
        return self.explainer.model.num_parameters() < SMALL_MODEL

    def sit(self, path: str | os.PathLike) -> Sitting:
        """Open an uploaded picture and let the model name an emotion and explain it, greedily decoded.

        Raises:
            UploadError: the file is no picture, damaged or too large.
        """
        with self._lock:  # pictures too: a large one takes half a gigabyte while it is decoded
            picture = open_upload(path, self.limits)
            pixel_values = self.explainer.preprocess(picture)["pixel_values"]
            picture.thumbnail((SHOWN_SIZE, SHOWN_SIZE))
            sitting = Sitting(picture, pixel_values)
            sitting.named = self._answer(sitting)
        return sitting

    def ask_why(self, sitting: Sitting, emotion: str) -> dict:
        """Let the model explain `emotion`, whatever it named itself."""
        with self._lock:
            sitting.asked = self._answer(sitting, emotion=emotion)
        sitting.candidates = []
        return sitting.asked

    def draw_candidates(self, sitting: Sitting) -> list[dict]:
        """Sample explanations, of the emotion asked for if there is one, and rank them by alignment. Every draw gives
        others; for the same picture the first, second, ... draws are the same for everybody."""
        emotion = sitting.asked["emotion"] if sitting.asked else None
        with self._lock:
            set_seed(self.seed + sitting.draws)
            drawn, _ = self._explain(
                sitting.pixel_values,
                emotion=emotion,
                num_candidates=self.num_candidates,
                return_candidates=True,
                do_sample=True,
            )
        sitting.draws += 1
        sitting.candidates = drawn["candidates"]
        return sitting.candidates

    def look_at_word(self, sitting: Sitting, number: int) -> Image.Image:
        """The picture, lit up where the model looked while it wrote a word of the latest answer.

        Raises:
            IndexError: the answer has no such word.
        """
        if not 0 <= number < len(sitting.words):
            raise IndexError(f"The explanation has {len(sitting.words)} words and no number {number}.")
        if sitting.maps is None:
            model, tokenizer = self.explainer.model, self.explainer.tokenizer
            with self._lock:
                _, sitting.maps = attention_map(
                    model, tokenizer, sitting.sequence, pixel_values=sitting.pixel_values.to(model.dtype)
                )
        return overlay_attention(sitting.picture, sitting.maps[number])

    def _answer(self, sitting: Sitting, **kwargs) -> dict:
        """Explain greedily, and remember what is needed to look at the words."""
        answer, sequence = self._explain(sitting.pixel_values, do_sample=False, **kwargs)
        words = explanation_words(self.explainer.model, self.explainer.tokenizer, sequence.tolist())
        sitting.sequence, sitting.words, sitting.maps = sequence, [word for word, _ in words], None
        return answer

    def _explain(self, pixel_values: torch.Tensor, **kwargs) -> tuple[dict, torch.Tensor]:
        """What a call of the pipeline returns, and the tokens of its best sentence, which it does not return."""
        _, explaining, showing = self.explainer._sanitize_parameters(**kwargs)
        outputs = self.explainer.forward({"pixel_values": pixel_values}, **explaining)
        return self.explainer.postprocess(outputs, **showing), outputs["sequences"][0, 0]
