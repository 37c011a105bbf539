# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What the page says, as HTML: colours, bars and shaded words come from `modeling_sevlm.views`."""

import base64
import io
from collections import Counter
from html import escape
from pathlib import Path

from PIL import Image

from modeling_sevlm.views import emotion_bars_html, emotion_style, shaded_explanation

from .sitting import Sitting, Studio


INVITATION = (
    '<div class="sevlm-card sevlm-empty"><p>Drop a picture on the left, or pick one of the examples. '
    "The model names an emotion and says why.</p></div>"
)
EMPTY_CANDIDATES = '<p class="sevlm-note">Nothing drawn yet.</p>'


def style(studio: Studio) -> str:
    """The style sheet, with a dot of its colour before each emotion that can be chosen."""
    dots = "".join(
        f"#emotion label:nth-of-type({number}) {{ --emotion: {emotion_style(emotion).colour}; }}\n"
        for number, emotion in enumerate(studio.emotions, start=1)
    )
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8") + dots


def header(studio: Studio) -> str:
    small = ""
    if studio.is_small:
        small = (
            '<p class="sevlm-warning">This is a demonstration model of a million parameters, trained for minutes on '
            "generated pictures like the examples. Of real paintings it knows nothing.</p>"
        )
    return (
        '<header class="sevlm-header"><h1>What does this picture make a viewer feel, and why?</h1>'
        f"<p>SEVLM, a small emotional vision-language model, guesses. Model: <b>{escape(studio.name)}</b></p>"
        f"{small}</header>"
    )


def about(studio: Studio) -> str:
    known = "generated pictures of our own" if studio.is_small else "paintings and what people wrote about them"
    return f"""
The model learned from {known}. It predicts **what such viewers would write**. It does not know what you feel, and
there is no wrong feeling about a picture.

- **Scores** are the model's probabilities of the nine labels, given the picture. They add up to 100 %.
- **The explanation** is generated word by word. It can name things that are not in the picture.
- **Shades** show how pleasant or unpleasant psychologists' lexicon takes a word to be *by itself*: "not happy" has a
  pleasant word in it. Words without a shade are not in the lexicon.
- **Alignment** says how well picture, emotion and explanation fit in the model's eyes. It ranks explanations of *one*
  picture; numbers of different pictures cannot be compared.
- **Where it looked** shows the decoder's cross-attention while it wrote a word. It is a trace, not a reason.
- Emotions of art depend on culture and person. The labels are in English, and most of ArtEmis's paintings are Western.

Do not use it to judge people, or to decide what may be shown to whom. Uploaded pictures stay on the machine that runs
this app and are deleted within two hours; nothing is sent anywhere else.
"""


def message(text: str) -> str:
    """An error, read out by screen readers when it appears; empty text removes it."""
    return f'<div class="sevlm-alert" role="alert">{escape(text)}</div>' if text else ""


def answer_card(answer: dict, title: str) -> str:
    """Emotion, shaded explanation and alignment of what the pipeline returned."""
    emotion = answer["emotion"] or "no emotion of the nine"
    fit = answer["alignment_score"]
    note = "" if fit is None else f'<p class="sevlm-note">alignment <b class="sevlm-fit">{fit:+.2f}</b></p>'
    return (
        f'<article class="sevlm-card" style="--emotion: {emotion_style(answer["emotion"]).colour}">'
        f'<p class="sevlm-note">{escape(title)}</p><h2 class="sevlm-emotion">{escape(emotion)}</h2>'
        f'<div class="sevlm-because">{_explanation(answer)}</div>{note}</article>'
    )


def first_answer(sitting: Sitting) -> str:
    return answer_card(sitting.named, "The model names")


def comparison(sitting: Sitting) -> str:
    """The explanation of the emotion that was asked for, beside the one that the model named."""
    if sitting.asked is None:
        return ""
    share = sitting.named["emotion_scores"].get(sitting.asked["emotion"], 0)
    cards = answer_card(sitting.named, "The model names") + answer_card(
        sitting.asked, f"You ask for (the model gives it {share:.0%})"
    )
    return f'<div class="sevlm-side-by-side">{cards}</div>'


def scores(sitting: Sitting) -> str:
    bars = emotion_bars_html(sitting.named["emotion_scores"], named=sitting.named["emotion"])
    return f'<section class="sevlm-card sevlm-plain" aria-label="Scores of the emotions">{bars}</section>'


def candidates(sitting: Sitting) -> str:
    """The samples, best fit first; what came up several times stands once."""
    times = Counter((c["alignment_score"], c["emotion"], c["explanation"]) for c in sitting.candidates)
    rows = "".join(
        f'<li style="--emotion: {emotion_style(emotion).colour}"><b class="sevlm-fit">{fit:+.2f}</b>'
        f'<span><span class="sevlm-label">{escape(emotion or "no emotion")}</span> because {escape(explanation)}'
        + (f' <span class="sevlm-note">({count} times)</span>' if count > 1 else "")
        + "</span></li>"
        for (fit, emotion, explanation), count in times.items()
    )
    asked = f" of {sitting.asked['emotion']}" if sitting.asked else ""
    return (
        f'<p class="sevlm-note">{len(sitting.candidates)} sampled explanations{escape(asked)}, the best fit first. '
        f'The number is the alignment score.</p><ol class="sevlm-candidates">{rows}</ol>'
    )


def word_choices(sitting: Sitting) -> list[tuple[str, int]]:
    """What a visitor picks from: words, which may come twice, and their numbers."""
    return [(word, number) for number, word in enumerate(sitting.words)]


def attention(sitting: Sitting, number: int, image: Image.Image) -> str:
    word, emotion = sitting.words[number], sitting.latest["emotion"] or "no emotion"
    return picture(
        image,
        f"The picture, lit up where the model looked while it wrote {word!r}",
        f"Lit up: where the decoder’s cross-attention was while it wrote “{word}” ({emotion}).",
    )


def picture(image: Image.Image, alt: str, caption: str) -> str:
    """An image inside the page, so that no file of a visitor lies around to be asked for."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure class="sevlm-figure"><img src="data:image/jpeg;base64,{data}" alt="{escape(alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _explanation(answer: dict) -> str:
    if not answer["explanation"]:
        return "<p>(the model found no words)</p>"
    return f"because {shaded_explanation(answer['explanation'], answer['vad'])}"
