"""What the page of `app.py` shows: HTML of a picture with its answers. Importing it loads no model.

`app_page.js` brings it to life: it swaps emotions, lights up the picture, saves cards. `app_page.css` is its style.
"""

import base64
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from app_uploads import UploadLimits
from modeling_sevlm.attention_map import attention_veil
from modeling_sevlm.views import HTML_ALPHA, PLEASANT, UNPLEASANT, VAD_LINES, emotion_style
from processing.toy_artemis import toy_scene
from processing.toy_paintings import paint_scene


HERE = Path(__file__).parent
# Paintings of the embedded data's test split (660 to 719), one for every emotion that has a name.
EXAMPLE_SCENES = (713, 676, 705, 684, 708, 718, 706, 698)
VEIL_SIZE = 42  # pixels of a veil's longer side; browsers enlarge it smoothly
CLEAR = 0.2  # a word below it on a scale of the lexicon is neither pleasant nor unpleasant

LEGEND = (
    f'<p class="legend">Words: <span style="border-bottom:3px solid rgb{PLEASANT}">pleasant</span> '
    f'<span style="border-bottom:3px dotted rgb{UNPLEASANT}">unpleasant</span></p>'
)
SMALL_MODEL_NOTICE = (
    '<p class="warning">A demonstration model of a million parameters, trained for minutes on '
    "generated pictures like the examples. It knows nothing about real paintings.</p>"
)
ABOUT = """
<p>The model learned from {data}. It predicts <b>what such viewers would write</b>. It does not know what you feel, and
there is no wrong feeling about a picture.</p>
<ul>
<li><b>The shares</b> of the nine emotions are the model's probabilities. The likeliest one is shown first.</li>
<li><b>The sentence</b> is generated for an emotion, word by word. It can name things that are not in the picture.</li>
<li><b>Blue and orange</b> mark words that a psychologists' lexicon rates as pleasant or unpleasant <i>without their
context</i>: "happy" stays pleasant in "not happy". Other words are in the middle, or not in the lexicon.</li>
<li><b>The light on the picture</b> shows where the decoder read while it wrote a word (its cross-attention). It does
not explain the choice of the word.</li>
<li><b>Alignment</b>, in the details, is the model's score of how well picture, emotion and sentence fit. Scores of
different pictures cannot be compared.</li>
<li>Emotions of art depend on culture and person. The labels are in English, and most of ArtEmis's paintings are
Western.</li>
</ul>
<p>Do not use it to judge people, or to decide what may be shown to whom. Uploaded pictures stay on the machine that
runs this page and are deleted within two hours; nothing is sent anywhere else.</p>
"""


class Answer(NamedTuple):
    """The explanation of one emotion: the pipeline's result, and a map `(rows, columns)` for each of its words."""

    result: dict
    words: Sequence[str]
    maps: np.ndarray


def frame(model_name: str, is_small: bool, examples: Mapping[str, Path], limits: UploadLimits) -> str:
    """Returns what stays on the page around the pictures: title, choice of a picture, examples, notes."""
    thumbnails = "".join(
        f'<button type="button" class="example" data-example="{escape(name)}" aria-label="Example: {escape(name)}" '
        f'title="{escape(name)}"><img alt="" src="{data_address(Image.open(file).resize((144, 144)))}"></button>'
        for name, file in examples.items()
    )
    data = "generated pictures of our own" if is_small else "paintings and what people wrote about them"
    return (
        f'<div class="page" data-megabytes="{limits.megabytes:g}"><header>'
        "<h1>What does this picture make a viewer feel, and why?</h1>"
        '<label class="button primary choose"><input type="file" accept="image/*,.heic,.heif,.avif">'
        "Choose a picture</label></header>"
        '<div class="alert" role="alert" hidden></div>'
        '<main class="slot" aria-live="off"></main>'
        f'<section class="examples" aria-label="Examples, drawn for this project"><p>Or try one of these</p>'
        f"<div>{thumbnails}</div></section>"
        f'<details class="about"><summary>What this is, and what it is not</summary>{ABOUT.format(data=data)}'
        "</details>"
        f"<footer><p>SEVLM, a small emotional vision-language model. Model: <b>{escape(model_name)}</b></p>"
        f"{SMALL_MODEL_NOTICE if is_small else ''}</footer></div>"
    )


def view(image: Image.Image, answers: Sequence[Answer], *, caption: str = "", can_rank: bool = True) -> str:
    """Returns a picture with the answers for all emotions, likeliest first, of which the first one is shown."""
    scores = answers[0].result["emotion_scores"]
    alt = f"Example: {caption}" if caption else "Your picture"
    chips = "".join(
        f'<label class="chip" style="--emotion: {emotion_style(emotion).colour}; --share: {share:.1%}">'
        f'<input type="radio" name="emotion" value="{escape(emotion)}"{" checked" if number == 0 else ""}>'
        f'<span class="label">{escape(emotion)}</span> <span class="share">{escape(percent(share))}</span></label>'
        for number, (emotion, share) in enumerate(sorted(scores.items(), key=lambda item: -item[1]))
    )
    articles = "".join(article(answer, shown=number == 0) for number, answer in enumerate(answers))
    more = '<button type="button" class="button draw">Other ways to say it</button>' if can_rank else ""
    return (
        f'<div class="view" data-scores="{escape(json.dumps(scores))}"><figure class="picture">'
        f'<img class="painting" alt="{escape(alt)}" src="{data_address(image)}"><div class="veil"></div></figure>'
        f'<div class="sentences">{articles}</div>'
        f'<div class="aside"><fieldset class="chips"><legend>What viewers might feel</legend>{chips}</fieldset>'
        '<div class="actions"><button type="button" class="button compare" aria-pressed="false">Compare two emotions'
        f'</button>{more}<button type="button" class="button save">Save as a picture</button></div></div></div>'
    )


def article(answer: Answer, *, shown: bool) -> str:
    """Returns the sentence of one emotion with its details."""
    emotion, fit = answer.result["emotion"], answer.result["alignment_score"]
    numbers = "" if fit is None else f'<p>alignment <b class="fit">{fit:+.2f}</b></p>'
    if answer.result["vad"]:
        rows = "".join(
            f'<tr><th scope="row">{escape(entry["word"])}</th>'
            + "".join("<td>–</td>" if entry[n] is None else f"<td>{entry[n]:+.2f}</td>" for n in VAD_LINES)
            + "</tr>"
            for entry in answer.result["vad"]
        )
        heads = "".join(f'<th scope="col">{name}</th>' for name in ("word", *VAD_LINES))
        numbers += f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    explanation = answer.result["explanation"]
    sentence = f", because {marked_words(answer)}" if explanation else " (the model found no words)"
    return (
        f'<article class="answer" data-emotion="{escape(emotion)}" data-explanation="{escape(explanation)}" '
        f'style="--emotion: {emotion_style(emotion).colour}"{"" if shown else " hidden"}>'
        f'<p class="sentence"><strong class="emotion">{escape(emotion)}</strong>{sentence}</p>'
        f'<p class="hint" aria-live="polite"></p>{LEGEND if answer.result["vad"] else ""}'
        '<div class="candidates"></div>'
        f'<details class="numbers"><summary>Details</summary>{numbers}</details></article>'
    )


def marked_words(answer: Answer) -> str:
    """Returns the explanation with a button for each word. It carries the veil of its map; the words that a lexicon
    rates as pleasant are blue and underlined, the unpleasant ones orange and dotted."""
    text, position, parts = answer.result["explanation"], 0, []
    entries = answer.result["vad"] or [None] * len(answer.words)
    for word, weights, entry in zip(answer.words, answer.maps, entries, strict=True):
        start = text.find(word, position)
        if start < 0:
            continue
        meaning = describe(entry)
        style = ""
        if entry and entry["valence"] is not None and abs(entry["valence"]) >= CLEAR:
            valence = entry["valence"]
            (red, green, blue), line = (PLEASANT, "solid") if valence > 0 else (UNPLEASANT, "dotted")
            style = (
                f"background:rgba({red},{green},{blue},{HTML_ALPHA * abs(valence):.2f});"
                f"border-bottom:2px {line} rgb({red},{green},{blue})"
            )
        veil = data_address(attention_veil(weights, VEIL_SIZE), "PNG")
        parts.append(
            f'{escape(text[position:start])}<button type="button" class="word" style="{style}" '
            f'data-meaning="{escape(meaning)}" data-veil="{veil}">{escape(word)}</button>'
        )
        position = start + len(word)
    return "".join(parts) + escape(text[position:])


def describe(entry: Mapping | None) -> str:
    """Says how a lexicon rates a word, for example "pleasant, calm, in control"; "" for one without rating."""
    if not entry or entry["valence"] is None:
        return ""
    names = {"valence": ("unpleasant", "pleasant"), "arousal": ("calm", "stirring")}
    names["dominance"] = ("powerless", "in control")
    found = [names[name][entry[name] > 0] for name in VAD_LINES if abs(entry[name]) >= CLEAR]
    return ", ".join(found) or "neutral"


def candidates(sampled: Sequence[dict]) -> str:
    """Returns the sampled explanations of an emotion, best fit first; repeated ones once with their count."""
    counts = Counter((c["alignment_score"], c["explanation"]) for c in sampled)
    rows = "".join(
        f'<li>because {escape(explanation)} <span class="note">fit <b class="fit">{fit:+.2f}</b>'
        f"{f', {count} times' if count > 1 else ''}</span></li>"
        for (fit, explanation), count in counts.items()
    )
    return f"<p>{len(sampled)} more tries, the best fit first:</p><ol>{rows}</ol>"


def percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "<1%"


def data_address(image: Image.Image, kind: str = "JPEG") -> str:
    """Returns an image as a data URL. As a part of the page, no visitor's picture can be requested by others."""
    buffer = io.BytesIO()
    (image.convert("RGB") if kind == "JPEG" else image).save(buffer, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def script() -> str:
    return (HERE / "app_page.js").read_text(encoding="utf-8")


def style() -> str:
    return (HERE / "app_page.css").read_text(encoding="utf-8")


def draw_examples(folder: str | Path) -> dict[str, Path]:
    """Paints the example pictures into `folder`, named by what they show. The demo's model has not seen them."""
    files = {}
    for index in EXAMPLE_SCENES:
        scene = toy_scene(index)
        files[f"{scene.motif}, {scene.setting}"] = file = Path(folder, f"{scene.motif}_{scene.setting}.png")
        paint_scene(scene, 448)[0].save(file)
    return files
