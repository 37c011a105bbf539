"""Pictures and comparisons for the tests of the pipeline."""

import numpy as np
import pytest
from PIL import Image


TASK = "art-emotion-explanation"
GREEDY = {"do_sample": False, "max_new_tokens": 6}


def painting(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8))


def same(first: dict, second: dict) -> bool:
    """Equal except for the last digits, which depend on the batch size."""
    exact = all(first[name] == second[name] for name in ("emotion", "explanation", "vad"))
    return exact and first["alignment_score"] == pytest.approx(second["alignment_score"], abs=1e-6)
