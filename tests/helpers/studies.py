"""Made-up scores of evaluations, as the significance tests and the studies read them."""

from pathlib import Path

import numpy as np

from metrics.coco_caption.coco_caption import bleu_from_statistics
from processing.files import write_json


def made_up_scores(
    seed: int, quality: float = 0.5, meteor: float = 0.12, paintings: int = 120, seeds: int = 2
) -> dict:
    """BLEU statistics `(seeds, paintings, 10)` of 12-word explanations with a share `quality` of correct words, and
    METEOR `(seeds, paintings)`."""
    rng = np.random.default_rng(seed)
    guesses = np.array([12, 11, 10, 9])
    correct = rng.binomial(guesses, [quality, quality**2, quality**3, quality**4], size=(seeds, paintings, 4))
    lengths = np.full((seeds, paintings, 2), 12)
    statistics = np.concatenate([lengths, correct, np.broadcast_to(guesses, correct.shape)], axis=-1)
    return {"bleu_statistics": statistics.astype(float), "meteor": rng.normal(meteor, 0.05, (seeds, paintings))}


def made_up_runs(folder: Path) -> dict[str, list[Path]]:
    """Evaluation folders of two variants, the second one worse, with two seeds each."""
    runs = {"full": [], "no VAD head": []}
    for number, folders in enumerate(runs.values()):
        for seed in range(2):
            run = folder / f"{number}-{seed}"
            values = made_up_scores(10 * number + seed, quality=0.7 - 0.2 * number, seeds=1)
            scores = {name: value[0].tolist() for name, value in values.items()}
            nll = np.random.default_rng(seed).normal(1.9, 0.2, 120).tolist()
            write_json(
                run / "painting_scores.json", scores | {"painting": list(map(str, range(120))), "label_nll": nll}
            )
            bleu = bleu_from_statistics(values["bleu_statistics"][0].sum(axis=0))[3]
            figures = {"accuracy": 0.5 + 0.1 * seed, "bleu_4": float(bleu), "meteor": 0.12, "label_nll": 1.9}
            write_json(run / "results.json", figures | {"prior_label_nll": 1.99, "emotional_alignment": None})
            folders.append(run)
    return runs
