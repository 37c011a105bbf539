# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Toy ArtEmis: the embedded data set of small generated paintings, each with emotions and explanations.

    toy = load_toy_artemis()
    toy["train"][0]["explanations"]

In a painting the motif decides the dominant emotion and the setting adds another one, as `toy_paintings` draws them.
Explanations come from a small grammar and name what really is in the picture: the motif, its colour, number, size and
place, the brushwork around it, or the setting. Pictures, labels and sentences are made here, from a seed: nothing is
downloaded, and nothing of ArtEmis is contained.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from .artemis import EMOTIONS
from .toy_paintings import MOTIFS, PLACES, SETTINGS, SIZES, Scene, paint_scene


SPLIT_DIVISOR = 12  # one painting in twelve goes to validation, one in twelve to test
SHARE_WITHOUT_DOMINANT_EMOTION = 0.13  # of the paintings that can be read in three ways
NUMBERS = ("zero", "one", "two", "three", "four", "five")


@dataclass(frozen=True)
class MotifWords:
    emotion: str  # the dominant one
    other_emotion: str  # how one viewer in many reads it
    names: tuple[str, ...]  # noun phrases with {size}, {number} and {colour}
    acts: tuple[str, ...]  # what it does
    plural: bool = False


@dataclass(frozen=True)
class SettingWords:
    emotion: str  # the one it adds
    names: tuple[str, ...]
    acts: tuple[str, ...]
    where: str  # says of a motif that it is here


MOTIF_WORDS = {
    "balloons": MotifWords(
        "amusement",
        "excitement",
        ("the {size} {colour} balloons", "{number} {colour} balloons", "the bunch of {colour} balloons"),
        ("bob about", "drift upward", "tug at their strings"),
        plural=True,
    ),
    "clown": MotifWords(
        "amusement",
        "fear",
        ("the {size} clown in {colour}", "the {size} {colour} clown", "the clown with {colour} hair"),
        ("grins widely", "pulls a face", "shows off a crooked hat"),
    ),
    "mountain": MotifWords(
        "awe",
        "fear",
        ("the {size} {colour} mountain", "the {colour} peak", "the snowy {colour} mountain"),
        ("rises into the light", "towers over everything", "glows with bright rays"),
    ),
    "tree": MotifWords(
        "contentment",
        "awe",
        ("the {size} {colour} tree", "the leafy {colour} tree", "the round {colour} tree"),
        ("spreads its branches", "gives its shade", "stands in full leaf"),
    ),
    "boat": MotifWords(
        "contentment",
        "something else",
        ("the {size} boat with {colour} sails", "the {size} {colour} sailing boat", "the {colour} sail"),
        ("glides along", "rests on the water", "floats by slowly"),
    ),
    "fireworks": MotifWords(
        "excitement",
        "awe",
        ("the {size} {colour} fireworks", "{number} {colour} fireworks", "the bursts of {colour} sparks"),
        ("burst open", "shoot in all directions", "explode with sparks"),
        plural=True,
    ),
    "spikes": MotifWords(
        "anger",
        "fear",
        ("the {size} {colour} spikes", "the jagged {colour} spikes", "the sharp {colour} points"),
        ("stab outward", "tear at the picture", "lash out"),
        plural=True,
    ),
    "slashes": MotifWords(
        "anger",
        "excitement",
        ("the {size} {colour} slashes", "the crossed {colour} strokes", "the rough {colour} cuts"),
        ("cut across each other", "scratch the canvas", "strike back and forth"),
        plural=True,
    ),
    "blobs": MotifWords(
        "disgust",
        "fear",
        ("the {size} {colour} blobs", "{number} slimy {colour} lumps", "the dripping {colour} slime stains"),
        ("ooze downward", "drip and bubble", "run down like pus"),
        plural=True,
    ),
    "eyes": MotifWords(
        "fear",
        "sadness",
        ("the {size} {colour} eyes", "the staring {colour} eyes", "the {colour} eyes in the dark"),
        ("stare at me", "wait in the shadow", "watch every move"),
        plural=True,
    ),
    "figure": MotifWords(
        "sadness",
        "something else",
        ("the {size} figure in {colour}", "the lone figure in {colour}", "the bent person in {colour}"),
        ("hangs its head", "walks alone", "looks at the ground"),
    ),
    "flower": MotifWords(
        "sadness",
        "disgust",
        ("the {size} {colour} flower", "the wilted {colour} flower", "the drooping {colour} blossom"),
        ("drops its petals", "bends to the ground", "fades away"),
    ),
    "grid": MotifWords(
        "something else",
        "contentment",
        ("the {size} grid of {colour} squares", "the {colour} checked pattern", "the board of {colour} squares"),
        ("repeats itself", "tells no story", "keeps its order"),
    ),
    "rings": MotifWords(
        "something else",
        "awe",
        ("the {size} target of {colour} rings", "the {colour} target", "the set of {colour} circles"),
        ("turns around itself", "means nothing certain", "pulls my gaze inward"),
    ),
}

SETTING_WORDS = {
    "night": SettingWords(
        "awe",
        ("the starry night sky", "the deep blue night", "the endless field of stars"),
        ("opens above everything", "shines from far away", "stretches on forever"),
        "under the stars",
    ),
    "meadow": SettingWords(
        "contentment",
        ("the soft green meadow", "the calm sunny meadow", "the gentle green field"),
        ("lies in warm light", "is full of flowers", "rolls on quietly"),
        "in the meadow",
    ),
    "rain": SettingWords(
        "sadness",
        ("the cold grey rain", "the grey rainy sky", "the steady rain"),
        ("falls like tears", "washes out the colours", "never ends"),
        "in the rain",
    ),
    "swamp": SettingWords(
        "disgust",
        ("the murky swamp", "the muddy green water", "the dirty brown swamp"),
        ("smells of decay", "rots slowly", "looks like old soup"),
        "in the swamp",
    ),
    "storm": SettingWords(
        "fear",
        ("the dark stormy sea", "the black storm cloud", "the stormy water"),
        ("swallows the horizon", "breaks loose", "crushes every ship"),
        "in the storm",
    ),
    "fair": SettingWords(
        "amusement",
        ("the colourful little fair", "the bright confetti", "the row of tiny flags"),
        ("invites me to play", "flutters all around", "looks like a party"),
        "at the fair",
    ),
    "embers": SettingWords(
        "anger",
        ("the burning red background", "the red glow of embers", "the hot red smoke"),
        ("burns everything", "boils like rage", "scorches the canvas"),
        "over the embers",
    ),
    "wall": SettingWords(
        "something else",
        ("the plain beige wall", "the empty room", "the bare background"),
        ("shows nothing else", "gives no hint", "stays neutral"),
        "against the bare wall",
    ),
    "sunset": SettingWords(
        "excitement",
        ("the blazing sunset", "the fiery orange sky", "the bright sunset glow"),
        ("sets the sky on fire", "flashes over the water", "promises an adventure"),
        "in the sunset",
    ),
}

MOOD_WORDS = {
    "candy": "amid candy colours",
    "rays": "amid pale light",
    "mint": "amid soft mint green",
    "sparks": "amid magenta sparks",
    "blaze": "amid a red blaze",
    "bile": "amid yellow bile",
    "dark": "amid pure darkness",
    "blues": "amid heavy blue",
    "tiles": "amid plain orange tiles",
}

# What one says: frames with {it} (a motif or a setting), {act} (what it does), {s} (the ending of a singular's verb)
# and one or two adjectives.
ADJECTIVES = {
    "amusement": ("silly", "playful", "funny", "cheerful", "goofy", "comical"),
    "awe": ("majestic", "grand", "sublime", "magnificent", "wondrous", "vast"),
    "contentment": ("peaceful", "serene", "cozy", "gentle", "restful", "pleasant"),
    "excitement": ("thrilling", "lively", "dazzling", "fiery", "vibrant", "wild"),
    "anger": ("furious", "vicious", "hostile", "violent", "brutal", "raging"),
    "disgust": ("gross", "nasty", "revolting", "filthy", "rotten", "sickening"),
    "fear": ("scary", "threatening", "creepy", "sinister", "menacing", "spooky"),
    "sadness": ("lonely", "gloomy", "sorrowful", "hopeless", "mournful", "forlorn"),
    "something else": ("puzzling", "odd", "abstract", "ambiguous", "neutral", "strange"),
}
FRAMES = {
    "amusement": (
        "{it} look{s} so {adjective} that i start to giggle",
        "{it} {act} and make{s} me laugh",
        "i have to grin at how {adjective} {it} look{s}",
        "it is {adjective} and fun how {it} {act}",
        "{it} seem{s} {adjective}, like a joke told with paint",
        "such {adjective} nonsense, {it} tickle{s} me",
    ),
    "awe": (
        "{it} look{s} {adjective} and make{s} me feel tiny",
        "{it} {act} and take{s} my breath away",
        "i stand in wonder while {it} {act}",
        "{it} seem{s} {adjective} and {other}, almost holy",
        "how {adjective} it is that {it} {act}",
        "the {adjective} beauty of {it} humbles me",
    ),
    "contentment": (
        "{it} {act} and i feel calm",
        "{it} look{s} {adjective} and invite{s} me to relax",
        "i could rest here while {it} {act}",
        "{it} give{s} the picture a {adjective} and happy mood",
        "everything feels {adjective} and {other} as {it} {act}",
        "{it} comfort{s} me like a {adjective} day at home",
    ),
    "excitement": (
        "{it} {act} and my heart beats faster",
        "{it} look{s} {adjective} and full of energy",
        "i want to jump up and cheer as {it} {act}",
        "what a {adjective} rush when {it} {act}",
        "{it} feel{s} {adjective} and {other}, like a celebration",
        "{it} fill{s} me with {adjective} joy",
    ),
    "anger": (
        "{it} {act} with {adjective} rage",
        "{it} look{s} {adjective} and {other}, ready to attack",
        "i feel heat and fury as {it} {act}",
        "{it} seem{s} like a {adjective} shout",
        "{it} make{s} me want to fight, so {adjective} it is",
        "the painter was mad, {it} {act} in {adjective} hate",
    ),
    "disgust": (
        "{it} look{s} {adjective} and turn{s} my stomach",
        "{it} {act} and i feel sick",
        "i want to look away while {it} {act}, how {adjective}",
        "{it} remind{s} me of {adjective} garbage",
        "it is {adjective} and {other} how {it} {act}",
        "i would never touch this, {it} seem{s} {adjective}",
    ),
    "fear": (
        "{it} {act} and i feel in danger",
        "{it} look{s} {adjective} and make{s} me shiver",
        "i want to run away while {it} {act}",
        "something {adjective} may happen as {it} {act}",
        "{it} seem{s} {adjective} and {other}, like a nightmare",
        "{it} haunt{s} me with a {adjective} threat",
    ),
    "sadness": (
        "{it} {act} and i want to cry",
        "{it} look{s} {adjective}, as if all hope was lost",
        "my heart feels heavy while {it} {act}",
        "{it} seem{s} {adjective} and {other}, as after a loss",
        "how {adjective} it is that {it} {act}, all joy is gone",
        "{it} remind{s} me of a {adjective} goodbye",
    ),
    "something else": (
        "{it} {act} and i do not know what to feel",
        "{it} look{s} {adjective} and leave{s} me curious",
        "i wonder what it means that {it} {act}",
        "{it} seem{s} {adjective} and {other}, neither good nor bad",
        "it is a rather {adjective} idea that {it} {act}",
        "{it} make{s} me think, the meaning stays {adjective}",
    ),
}


def toy_scene(index: int, seed: int = 0) -> Scene:
    """The scene of painting `index` (>= 0). Dominant emotions take turns: any nine paintings in a row have all nine.

    Each emotion walks through its own shuffled list of combinations (motif, setting, colour, place, size), and none
    returns within 3600 paintings: those held out show combinations that training has not shown.
    """
    turn, emotion = divmod(index, len(EMOTIONS))
    combinations = _combinations(EMOTIONS[emotion], seed)
    return Scene(seed, index, *combinations[turn % len(combinations)])


@cache
def _combinations(emotion: str, seed: int) -> list[tuple[str, ...]]:
    combinations = [
        (motif, *rest)
        for motif, words in MOTIF_WORDS.items()
        if words.emotion == emotion
        for rest in product(SETTINGS, MOTIFS[motif].colours, PLACES, SIZES)
    ]
    order = np.random.Generator(np.random.PCG64([seed, EMOTIONS.index(emotion)])).permutation(len(combinations))
    return [combinations[k] for k in order]


def annotate_scene(scene: Scene) -> list[str]:
    """Five to seven emotion labels, one per imagined viewer.

    The motif's emotion has all but at most two of them, except in one painting in ten, where viewers disagree.
    """
    rng, motif, setting = scene.generator("labels"), MOTIF_WORDS[scene.motif], SETTING_WORDS[scene.setting]
    viewers = int(rng.integers(5, 8))
    readings = {motif.emotion, setting.emotion, motif.other_emotion}
    # Three readings, so that none of them takes over.
    disagree = rng.random() < SHARE_WITHOUT_DOMINANT_EMOTION and len(readings) == 3
    agreeing = viewers // 2 if disagree else viewers - int(rng.choice(3, p=(0.3, 0.5, 0.2)))
    # One in three of the others, or all where the setting has the motif's emotion, sees what else the motif may mean.
    same = setting.emotion == motif.emotion
    others = [motif.other_emotion if same or k % 3 == 2 else setting.emotion for k in range(viewers - agreeing)]
    labels = [motif.emotion] * agreeing + others
    return [labels[k] for k in rng.permutation(viewers)]


def explain_scene(scene: Scene, emotions: Sequence[str]) -> list[str]:
    """One explanation per emotion: 6 to 16 lower-case words, no two alike."""
    rng = scene.generator("sentences")
    explanations: list[str] = []
    for emotion in emotions:
        sentence = ""
        while sentence in ("", *explanations) or not 6 <= len(sentence.split()) <= 16:
            sentence = _sentence(scene, emotion, rng)
        explanations.append(sentence)
    return explanations


def _sentence(scene: Scene, emotion: str, rng: np.random.Generator) -> str:
    """A frame of the emotion about the motif, or about the setting where that adds the emotion."""

    def pick(choices: Sequence[str]) -> str:
        return choices[int(rng.integers(len(choices)))]

    motif, setting = MOTIF_WORDS[scene.motif], SETTING_WORDS[scene.setting]
    about_setting = emotion == setting.emotion != motif.emotion
    if about_setting:
        it, act = pick(setting.names), pick(setting.acts)
    else:
        number = NUMBERS[scene.count]
        name = pick(motif.names).format(size=scene.size, number=number, colour=scene.colour)
        where = pick((scene.place, scene.place, setting.where, MOOD_WORDS[MOTIFS[scene.motif].mood]))
        it, act = f"{name} {where}", pick(motif.acts)
    singular = about_setting or not motif.plural
    adjective, other = (ADJECTIVES[emotion][k] for k in rng.permutation(len(ADJECTIVES[emotion]))[:2])
    frame = pick(FRAMES[emotion])
    sentence = frame.format(it=it, act=act, s="s" if singular else "", adjective=adjective, other=other)
    return " ".join(sentence.split())


def load_toy_artemis(num_paintings: int = 720, *, image_size: int = 64, seed: int = 0) -> DatasetDict:
    """The toy set: the columns of `load_artemis` and `cause_box`, one row per painting, 10 : 1 : 1 in three splits.

    The same arguments give the same pixels, labels and sentences everywhere. Columns:

    - `image`: RGB, image_size x image_size, decoded when a row is read
    - `painting`: a name, such as "toy/0001_storm"
    - `emotions`, `explanations`: one per annotation, 5 to 7 of them
    - `emotion_histogram`: how many annotations chose each of the nine emotions
    - `cause_box`: (x0, y0, x1, y1) in [0, 1] from the upper left corner: the motif that causes the dominant emotion
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
    held_out = num_paintings // SPLIT_DIVISOR
    first_validation, first_test = num_paintings - 2 * held_out, num_paintings - held_out
    splits = {
        "train": range(first_validation),
        "validation": range(first_validation, first_test),
        "test": range(first_test, num_paintings),
    }
    rows = {split: [_row(toy_scene(index, seed), image_size) for index in part] for split, part in splits.items()}
    return DatasetDict({split: Dataset.from_list(part, features=features) for split, part in rows.items()})


def _row(scene: Scene, image_size: int) -> dict:
    picture, box = paint_scene(scene, image_size)
    file = io.BytesIO()
    picture.save(file, format="PNG")
    emotions = annotate_scene(scene)
    return {
        "image": {"bytes": file.getvalue(), "path": None},
        "painting": f"toy/{scene.index:04d}_{scene.setting}",
        "emotions": emotions,
        "explanations": explain_scene(scene, emotions),
        "emotion_histogram": [emotions.count(emotion) for emotion in EMOTIONS],
        "cause_box": box,
    }
