"""Views: fixed colours that are distinct for all eyes, and text that cannot break out of its page."""

import html.parser
import io
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from modeling_sevlm.views import (
    EMOTION_STYLES,
    HTML_ALPHA,
    PLEASANT,
    UNPLEASANT,
    emotion_bars,
    emotion_bars_html,
    gallery_sheet,
    shaded_explanation,
    shaded_explanation_ansi,
    split_at_words,
    vad_trajectory,
    valence_colour,
)
from processing.artemis import EMOTIONS


SCORES = {emotion: score for emotion, score in zip(reversed(EMOTIONS), np.arange(9) / 36, strict=True)}
VAD = [
    {"word": "the", "valence": None, "arousal": None, "dominance": None},
    {"word": "dark", "valence": -0.6, "arousal": 0.1, "dominance": -0.2},
    {"word": "golden", "valence": 0.55, "arousal": 0.2, "dominance": 0.45},
]
TEXT = "the dark, golden sea"
# Machado, Oliveira and Fernandes (2009), full strength, for linear RGB.
COLOUR_BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array([[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]),
    "deuteranopia": np.array([[0.3673, 0.8607, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]),
    "tritanopia": np.array([[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]]),
}
XYZ = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])


def linear(colour) -> np.ndarray:
    if isinstance(colour, str):
        colour = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    channels = np.asarray(colour, dtype=float) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    ratios = XYZ @ np.clip(light, 0, 1) / XYZ.sum(axis=1)
    roots = np.where(ratios > 216 / 24389, np.cbrt(ratios), (24389 / 27 * ratios + 16) / 116)
    return np.array([116 * roots[1] - 16, 500 * (roots[0] - roots[1]), 200 * (roots[1] - roots[2])])


def contrast(first, second) -> float:
    """The contrast ratio of WCAG, which requires 4.5 for text."""
    bright, dark = sorted((float(XYZ[1] @ linear(colour)) for colour in (first, second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_every_label_of_artemis_has_a_style_of_its_own():
    assert list(EMOTION_STYLES) == list(EMOTIONS)
    assert all(len(set(values)) == 9 for values in zip(*EMOTION_STYLES.values(), strict=True))


@pytest.mark.parametrize("eyes", COLOUR_BLINDNESS)
def test_colours_are_far_apart_for_all_eyes_and_in_grey(eyes):
    seen = {name: lab(COLOUR_BLINDNESS[eyes] @ linear(style.colour)) for name, style in EMOTION_STYLES.items()}
    assert min(np.linalg.norm(seen[a] - seen[b]) for a, b in combinations(seen, 2)) > 14
    if eyes == "none":
        assert min(abs(seen[a][0] - seen[b][0]) for a, b in combinations(seen, 2)) > 6.5


@pytest.mark.parametrize(("page", "text"), [((255, 255, 255), (31, 41, 55)), ((11, 15, 25), (229, 231, 235))])
def test_shaded_words_are_readable_on_light_and_dark_pages(page, text):
    for end in (PLEASANT, UNPLEASANT):
        shade = [HTML_ALPHA * over + (1 - HTML_ALPHA) * under for over, under in zip(end, page, strict=True)]
        assert contrast(shade, text) > 4.5


def test_black_text_is_readable_on_every_terminal_shade():
    assert all(contrast(valence_colour(valence), (0, 0, 0)) > 7 for valence in np.linspace(-1, 1, 21))
    assert valence_colour(0) == (255, 255, 255)
    assert valence_colour(0.9)[2] > valence_colour(0.9)[0] and valence_colour(-0.9)[0] > valence_colour(-0.9)[2]


class Page(html.parser.HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_shaded_explanation_keeps_its_text_and_shows_vad():
    page = Page(shaded_explanation(TEXT, VAD))
    assert page.text == TEXT
    words = [attributes for _, attributes in page.tags if attributes["class"] == "sevlm-word"]
    assert [word["title"] for word in words] == [
        "dark: valence -0.60, arousal +0.10, dominance -0.20",
        "golden: valence +0.55, arousal +0.20, dominance +0.45",
    ]
    assert all(word["tabindex"] == "0" for word in words)
    assert "rgba(213,94,0," in words[0]["style"] and "rgba(0,114,178," in words[1]["style"]


def test_words_cannot_break_out_of_the_page():
    evil = '"><script>alert(1)</script>'
    vad = [{"word": evil, "valence": 0.5, "arousal": 0.0, "dominance": 0.0}]
    for page in (Page(shaded_explanation(f"a {evil} <b>", vad)), Page(emotion_bars_html({evil: 0.5}))):
        assert {tag for tag, _ in page.tags} <= {"span", "ul", "li"} and evil in page.text


def test_pieces_join_to_the_explanation_for_any_entries():
    strange = [*VAD, *({"word": word, "valence": 1.0} for word in ("nowhere", "", "sea"))]
    pieces = list(split_at_words(TEXT, strange))
    assert "".join(text for text, _ in pieces) == TEXT == Page(shaded_explanation(TEXT, None)).text
    assert [text for text, entry in pieces if entry is not None] == ["dark", "golden", "sea"]


def test_the_terminal_gets_colours_but_no_control_characters_from_the_text():
    text = shaded_explanation_ansi("the dark\033[2J, golden\x07 sea", VAD)
    assert text.count("\033[") == 4 and "\033[2J" not in text and "\x07" not in text
    assert "\033[38;2;0;0;0;48;2;224;134;64m" not in text.split("golden")[1]
    assert "\033[4;" in text and text.index("\033[4;") > text.index("dark"), "pleasant words are underlined"


def test_bars_are_in_the_fixed_order():
    page = Page(emotion_bars_html(SCORES | {"nostalgia": 0.1}, named="awe"))
    assert [page.text.index(emotion) for emotion in EMOTIONS] == sorted(page.text.index(e) for e in EMOTIONS)
    assert page.text.endswith("nostalgia10%")
    figure = emotion_bars(SCORES, named="awe")
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == list(EMOTIONS)
    assert [label.get_fontweight() for label in labels].index("bold") == EMOTIONS.index("awe")
    assert [bar.get_width() for bar in figure.axes[0].patches] == [SCORES[emotion] for emotion in EMOTIONS]


def test_the_trajectory_skips_unknown_words_and_stretches_the_reference():
    def lines(vad, reference):
        return {line.get_label(): line for line in vad_trajectory(vad, reference).axes[0].lines}

    drawn = lines(VAD, VAD[1:])
    assert list(drawn["valence"].get_xdata()) == [1, 2] and list(drawn["valence"].get_ydata()) == [-0.6, 0.55]
    assert list(drawn["valence, reference"].get_xdata()) == [0, 2], "from the first word to the last"
    drawn = lines(VAD[1:2], VAD)
    assert list(drawn["valence, reference"].get_xdata()) == [0.5, 1], "not a vertical line next to a single word"
    assert vad_trajectory([], reference=[]).axes


def test_the_sheet_shows_each_image_with_its_words():
    images = [Image.new("RGB", (20, 30), colour) for colour in ("red", "green", "blue")]
    results = [{"emotion": emotion, "explanation": "it costs $5 and $6"} for emotion in ("awe", "fear", None)]
    results[0]["emotion_scores"] = SCORES
    figure = gallery_sheet(images, results, titles=list("abc"), references=["one", "two", "three"], columns=2)
    file = io.BytesIO()
    figure.savefig(file, dpi=40)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "awe" in texts and "(no emotion named)" in texts and any(text.endswith("three") for text in texts)
    assert Image.open(file).size[0] > 200
