"""Toy ArtEmis: an embedded data set of small generated paintings, each with emotions and explanations.

    toy = load_toy_artemis()
    toy["train"][0]["explanations"]

The motif of a painting decides its dominant emotion, and the setting adds another (see `toy_paintings`). Explanations
are built from the words of toy_grammar.toml and name what the painting shows. Everything is generated from a seed.
Nothing is downloaded, and nothing comes from ArtEmis.
"""

import io
import tomllib
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from .artemis import EMOTIONS
from .image_column import read_by_project
from .toy_paintings import MOTIFS, PLACES, SETTINGS, SIZES, Scene, paint_scene


NUMBERS = ("zero", "one", "two", "three", "four", "five")
NUM_COMBINATIONS = 3600  # so many consecutive paintings all differ in motif, setting, colour, place or size


@cache
def load_grammar() -> dict[str, Any]:
    """Reads the words and frames of the explanations: tables `emotions`, `motifs` and `settings`."""
    return tomllib.loads(Path(__file__).with_name("toy_grammar.toml").read_text(encoding="utf-8"))


def toy_scene(index: int, seed: int = 0) -> Scene:
    """Returns the scene of painting `index` (>= 0). Nine consecutive paintings have the nine dominant emotions.

    Each emotion has its own shuffled list of combinations (motif, setting, colour, place, size). No combination is
    repeated within `NUM_COMBINATIONS` paintings, so held-out paintings show combinations that training does not.
    """
    turn, emotion = divmod(index, len(EMOTIONS))
    combinations = _combinations(EMOTIONS[emotion], seed)
    return Scene(seed, index, *combinations[turn % len(combinations)])


@cache
def _combinations(emotion: str, seed: int) -> list[tuple[str, ...]]:
    combinations = [
        (name, *rest)
        for name, motif in MOTIFS.items()
        if motif.emotion == emotion
        for rest in product(SETTINGS, motif.colours, PLACES, SIZES)
    ]
    order = np.random.Generator(np.random.PCG64([seed, EMOTIONS.index(emotion)])).permutation(len(combinations))
    return [combinations[k] for k in order]


def annotate_scene(scene: Scene) -> list[str]:
    """Returns five to seven emotion labels, one per imagined viewer.

    At most two viewers name another emotion than the motif's, except in one painting in ten.
    """
    rng, grammar, emotion = scene.generator("labels"), load_grammar(), MOTIFS[scene.motif].emotion
    added, other = grammar["settings"][scene.setting]["emotion"], grammar["motifs"][scene.motif]["other_emotion"]
    viewers = int(rng.integers(5, 8))
    # Needs three emotions, because with two the other one could become dominant.
    disagree = rng.random() < 0.13 and len({emotion, added, other}) == 3
    agreeing = viewers // 2 if disagree else viewers - int(rng.choice(3, p=(0.3, 0.5, 0.2)))
    # Every third of the other viewers names `other_emotion`; all do if the setting's emotion is the motif's.
    others = [other if added == emotion or k % 3 == 2 else added for k in range(viewers - agreeing)]
    labels = [emotion] * agreeing + others
    return [labels[k] for k in rng.permutation(viewers)]


def explain_scene(scene: Scene, emotions: Sequence[str]) -> list[str]:
    """Returns one explanation per emotion: 6 to 16 lower-case words, no two alike."""
    rng = scene.generator("sentences")
    explanations: list[str] = []
    for emotion in emotions:
        sentence = ""
        while sentence in ("", *explanations) or not 6 <= len(sentence.split()) <= 16:
            sentence = _sentence(scene, emotion, rng)
        explanations.append(sentence)
    return explanations


def _sentence(scene: Scene, emotion: str, rng: np.random.Generator) -> str:
    """Fills a frame of the emotion with the motif, or with the setting if the setting adds the emotion."""

    def pick(choices: Sequence[str]) -> str:
        return choices[int(rng.integers(len(choices)))]

    grammar, dominant = load_grammar(), MOTIFS[scene.motif].emotion
    motif, setting = grammar["motifs"][scene.motif], grammar["settings"][scene.setting]
    words = grammar["emotions"][emotion]
    about_setting = emotion == setting["emotion"] != dominant
    if about_setting:
        it, act = pick(setting["names"]), pick(setting["acts"])
    else:
        number = NUMBERS[scene.count]
        name = pick(motif["names"]).format(size=scene.size, number=number, colour=scene.colour)
        brushwork = grammar["emotions"][dominant]["brushwork"]
        where = pick((scene.place, scene.place, setting["where"], brushwork))
        it, act = f"{name} {where}", pick(motif["acts"])
    s = "s" if about_setting or not motif["plural"] else ""
    adjective, other = (words["adjectives"][k] for k in rng.permutation(len(words["adjectives"]))[:2])
    sentence = pick(words["frames"]).format(it=it, act=act, s=s, adjective=adjective, other=other)
    return " ".join(sentence.split())


def load_toy_artemis(num_paintings: int = 720, *, image_size: int = 64, seed: int = 0) -> DatasetDict:
    """Generates the toy set, split 10 : 1 : 1: one row per painting, the columns of `load_artemis`, and `cause_box`.

    The same arguments give the same pixels, labels and sentences everywhere. Images are RGB, image_size x image_size.
    A painting has a name such as "toy/0001_storm" and 5 to 7 annotations. `cause_box` is the box of the motif that
    causes the dominant emotion: (x0, y0, x1, y1) in [0, 1] from the upper left corner.
    """
    features = Features(
        {
            "image": Image(),
            "painting": Value("string"),
            "emotions": List(ClassLabel(names=list(EMOTIONS))),
            "explanations": List(Value("string")),
            "emotion_histogram": List(Value("int64")),
            "cause_box": List(Value("float32")),
        }
    )
    rows = [_row(toy_scene(index, seed), image_size) for index in range(num_paintings)]
    held_out = num_paintings // 12
    train, rest = rows[: num_paintings - 2 * held_out], rows[num_paintings - 2 * held_out :]
    splits = {"train": train, "validation": rest[:held_out], "test": rest[held_out:]}
    return DatasetDict(
        {split: read_by_project(Dataset.from_list(part, features=features)) for split, part in splits.items()}
    )


def _row(scene: Scene, image_size: int) -> dict:
    image, box = paint_scene(scene, image_size)
    file = io.BytesIO()
    image.save(file, format="PNG")
    emotions = annotate_scene(scene)
    return {
        "image": {"bytes": file.getvalue(), "path": None},
        "painting": f"toy/{scene.index:04d}_{scene.setting}",
        "emotions": emotions,
        "explanations": explain_scene(scene, emotions),
        "emotion_histogram": [emotions.count(emotion) for emotion in EMOTIONS],
        "cause_box": box,
    }
