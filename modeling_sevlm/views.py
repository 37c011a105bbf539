"""Views of a result of the pipeline: scores as bars, words shaded by valence, VAD along a sentence, sheets of images.

    result = pipeline("art-emotion-explanation", model=MODEL)(image)
    emotion_bars(result["emotion_scores"])

Figures need matplotlib (`pip install -e '.[demo]'`). They bypass pyplot, which keeps every figure in memory.
"""

import html
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from PIL import Image


class EmotionStyle(NamedTuple):
    colour: str
    hatch: str
    marker: str


# In ArtEmis' order. The colours are also distinct for colour-blind readers and in grey: their lightness differs by at
# least 7 (L* = 24, 32, ..., 87; pleasant emotions are lighter). Hatches and markers work without colour.
EMOTION_STYLES = {
    "amusement": EmotionStyle("#f6d951", "", "o"),
    "awe": EmotionStyle("#85ccf7", "//", "^"),
    "contentment": EmotionStyle("#50af4b", "..", "s"),
    "excitement": EmotionStyle("#e3537a", "xx", "D"),
    "anger": EmotionStyle("#970d29", "\\\\", "v"),
    "disgust": EmotionStyle("#677926", "++", "P"),
    "fear": EmotionStyle("#8142a3", "--", "X"),
    "sadness": EmotionStyle("#38268c", "||", "*"),
    "something else": EmotionStyle("#aeaeae", "oo", "p"),
}
# The ends of a diverging scale, distinct for colour-blind eyes: orange and blue.
UNPLEASANT, PLEASANT = (213, 94, 0), (0, 114, 178)
VAD_LINES = {"valence": ("#0072B2", "o", "-"), "arousal": ("#D55E00", "^", "--"), "dominance": ("#000000", "s", ":")}
BAR_ROW = "display:grid;grid-template-columns:8.5em 1fr 3.2em;gap:.5em;align-items:center;margin:.2em 0"
BAR_TRACK = "display:block;height:1em;border-radius:3px;background:rgba(128,128,128,.18)"
BAR = "display:block;height:100%;box-sizing:border-box;border-radius:3px;border:1px solid rgba(128,128,128,.8)"
HTML_ALPHA = 0.45  # opacity of the strongest shade; text stays readable on light and dark pages


def emotion_style(emotion: str | None) -> EmotionStyle:
    """Colour, hatch and marker of a label; grey for a label outside ArtEmis."""
    return EMOTION_STYLES.get(emotion, EmotionStyle("#6e6e6e", "", "o"))


def in_fixed_order(scores: Mapping[str, float]) -> dict[str, float]:
    """Sorts ArtEmis' labels in their order, followed by others in the given order."""
    known = {emotion: scores[emotion] for emotion in EMOTION_STYLES if emotion in scores}
    return known | {emotion: score for emotion, score in scores.items() if emotion not in known}


def emotion_bars(scores: Mapping[str, float], axes=None, *, named: str | None = None):
    """Draws scores in [0, 1] as horizontal bars in the fixed order and colours, the label `named` in bold. Returns the
    figure of the matplotlib `axes` (default: a new figure)."""
    axes = axes or new_figure(5.2, 3.2).add_subplot()
    for emotion, score in in_fixed_order(scores).items():
        style = emotion_style(emotion)
        bar = axes.barh(emotion, score, color=style.colour, hatch=style.hatch, edgecolor="#00000055", linewidth=0.6)
        axes.bar_label(bar, fmt="{:.0%}", padding=2, fontsize=8)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == named else "normal")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.14)  # room for the number of a full bar
    axes.set_xticks([0, 0.5, 1])
    axes.set_xlabel("score")
    axes.spines[["top", "right"]].set_visible(False)
    return axes.figure


def emotion_bars_html(scores: Mapping[str, float], *, named: str | None = None) -> str:
    """Renders scores as a list of bars in HTML, with the page's font and text colour, in any width."""
    rows = []
    for emotion, score in in_fixed_order(scores).items():
        weight = "700" if emotion == named else "400"
        rows.append(
            f'<li style="{BAR_ROW}">'
            f'<span style="font-weight:{weight};text-align:right">{html.escape(emotion)}</span>'
            f'<span aria-hidden="true" style="{BAR_TRACK}"><span style="{BAR};width:{score:.1%};'
            f'background:{emotion_style(emotion).colour}"></span></span>'
            f'<span style="font-weight:{weight};font-variant-numeric:tabular-nums">{score:.0%}</span></li>'
        )
    return '<ul class="sevlm-bars" style="list-style:none;margin:0;padding:0">' + "".join(rows) + "</ul>"


def shaded_explanation(explanation: str, vad: Sequence[Mapping] | None) -> str:
    """Renders the pipeline's `explanation` and `vad` in HTML. Pleasant words are blue and underlined, unpleasant ones
    orange and dotted, with a stronger shade for a stronger valence. A tooltip shows valence, arousal and dominance."""
    parts = []
    for text, entry in split_at_words(explanation, vad):
        text = html.escape(text)
        if entry is not None:
            valence = entry["valence"]
            (red, green, blue), line = (PLEASANT, "solid") if valence >= 0 else (UNPLEASANT, "dotted")
            about = f"{text}: " + ", ".join(f"{name} {entry[name]:+.2f}" for name in VAD_LINES)
            text = (
                f'<span class="sevlm-word" tabindex="0" title="{about}" aria-label="{about}" style="'
                f"background:rgba({red},{green},{blue},{HTML_ALPHA * abs(valence):.3f});"
                f"border-bottom:2px {line} rgba({red},{green},{blue},{abs(valence):.2f});"
                f'border-radius:3px;padding:0 .15em">{text}</span>'
            )
        parts.append(text)
    return '<span class="sevlm-explanation" style="line-height:1.8">' + "".join(parts) + "</span>"


def shaded_explanation_ansi(explanation: str, vad: Sequence[Mapping] | None) -> str:
    """Renders an explanation for a terminal with 24-bit colours, as [`shaded_explanation`]. Pleasant words are
    underlined, and control characters are removed from the text."""
    parts = []
    for text, entry in split_at_words(explanation, vad):
        text = "".join(filter(str.isprintable, text))
        if entry is not None:
            red, green, blue = valence_colour(entry["valence"])
            underline = "4;" if entry["valence"] > 0 else ""
            text = f"\033[{underline}38;2;0;0;0;48;2;{red};{green};{blue}m{text}\033[0m"
        parts.append(text)
    return "".join(parts)


def valence_colour(valence: float) -> tuple[int, ...]:
    """White at 0, towards orange at -1 and blue at 1; black text is readable on each."""
    end = PLEASANT if valence >= 0 else UNPLEASANT
    return tuple(round(255 + 0.6 * abs(valence) * (channel - 255)) for channel in end)


def split_at_words(explanation: str, vad: Sequence[Mapping] | None) -> Iterator[tuple[str, Mapping | None]]:
    """Yields the words of the lexicon with their entry, and all other text with None. Skips an entry that is not found
    after the previous one."""
    position = 0
    for entry in vad or ():
        start, word = explanation.find(entry["word"], position), entry["word"]
        if word and start >= 0:
            yield explanation[position:start], None
            yield word, None if entry["valence"] is None else entry
            position = start + len(word)
    yield explanation[position:], None


def vad_trajectory(vad: Sequence[Mapping], reference: Sequence[Mapping] | None = None):
    """Draws valence, arousal and dominance along an explanation, without words outside the lexicon. `reference` is the
    `vad` of another sentence, drawn paler and stretched to the same length. Returns the matplotlib figure."""
    axes = new_figure(max(5.0, 0.55 * len(vad) + 1.5), 3.0).add_subplot()

    def plot(entries, name, scale, **style):
        points = [(scale * k, entry[name]) for k, entry in enumerate(entries) if entry[name] is not None]
        axes.plot([x for x, _ in points], [y for _, y in points], **style)

    for name, (colour, marker, line) in VAD_LINES.items():
        style = {"color": colour, "linestyle": line}
        if reference:
            scale = max(1, len(vad) - 1) / max(1, len(reference) - 1)
            plot(reference, name, scale, alpha=0.3, linewidth=3, label=f"{name}, reference", **style)
        plot(vad, name, 1, marker=marker, markersize=5, label=name, **style)
    axes.axhline(0, color="#7f7f7f", linewidth=0.8)
    axes.set_xticks(range(len(vad)), [plain(entry["word"]) for entry in vad], rotation=40, ha="right")
    axes.set_ylim(-1.05, 1.05)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2 if reference else 3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return axes.figure


def gallery_sheet(
    images: Sequence[Image.Image],
    results: Sequence[Mapping],
    *,
    titles: Sequence[str] | None = None,
    references: Sequence[str] | None = None,
    columns: int = 4,
    title: str | None = None,
):
    """Draws rows of `columns` images, each with its title above and its result and reference (a viewer's words) below.
    Returns the matplotlib figure. A result is the pipeline's or `predict`'s: `emotion`, `explanation` and optional
    `emotion_scores`."""
    columns = min(columns, len(images))
    lines = math.ceil(len(images) / columns)
    heights = [3.2, 1.6 if references is not None else 1.0, 2.4]
    figure = new_figure(3.6 * columns, sum(heights) * lines + (0.5 if title else 0))
    panels = figure.subplots(3 * lines, columns, squeeze=False, height_ratios=heights * lines)
    for panel in panels.flat:
        panel.set_axis_off()
    for number, (image, result) in enumerate(zip(images, results, strict=True)):
        row, column = divmod(number, columns)
        picture, text, bars = panels[3 * row : 3 * row + 3, column]
        picture.imshow(image, interpolation="lanczos")
        if titles is not None:
            picture.set_title(plain(titles[number]), fontsize=10)
        emotion = result["emotion"]
        text.text(0.5, 1.0, emotion or "(no emotion named)", ha="center", va="top", fontsize=12, fontweight="bold")
        sentence = textwrap.fill(f"because {plain(result['explanation'])}", 38)
        if references is not None:
            sentence += "\n\n" + textwrap.fill(plain(references[number]), 38)
        text.text(0.5, 0.78, sentence, ha="center", va="top", fontsize=9, linespacing=1.2)
        if result.get("emotion_scores"):
            bars.set_axis_on()
            emotion_bars(result["emotion_scores"], bars, named=emotion)
    if title:
        figure.suptitle(title)
    return figure


def new_figure(width: float, height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain(text: str) -> str:
    """Escapes dollar signs, which enclose formulas in matplotlib."""
    return text.replace("$", r"\$")
