# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What the model says, to be looked at: scores as bars, words shaded by their feeling, trajectories, sheets.

    result = pipeline("art-emotion-explanation", model=MODEL)(image)
    emotion_bars(result["emotion_scores"])                            # a matplotlib figure
    emotion_bars_html(result["emotion_scores"])                       # for a page
    shaded_explanation(result["explanation"], result["vad"])          # for a page; ..._ansi for a terminal
    vad_trajectory(result["vad"], reference=other["vad"])
    gallery_sheet(images, results)

Functions of what the pipeline returns; they change no state, touch no file, and are safe in threads (figures do not go
through pyplot). Where a model looked is in `attention_map`. Never copied to the Hub. Those that draw need matplotlib
(`pip install -e '.[demo]'`).
"""

import html
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class EmotionStyle:
    colour: str
    hatch: str
    marker: str


# ArtEmis' order. The colours are far from each other for colour-blind eyes too, and in grey: no two are closer than 7
# steps of lightness (L* of 24, 32, ..., 87, pleasant ones lighter). Hatches and markers say the same without colour.
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
# For labels that are not ArtEmis'.
OTHER_STYLE = EmotionStyle("#6e6e6e", "", "o")
# The ends of a diverging scale that colour-blind eyes tell apart: unpleasant orange, pleasant blue.
UNPLEASANT, PLEASANT = (213, 94, 0), (0, 114, 178)
VAD_LINES = {"valence": ("#0072B2", "o", "-"), "arousal": ("#D55E00", "^", "--"), "dominance": ("#000000", "s", ":")}
BAR_ROW = "display:grid;grid-template-columns:8.5em 1fr 3.2em;gap:.5em;align-items:center;margin:.2em 0"
BAR_TRACK = "display:block;height:1em;border-radius:3px;background:rgba(128,128,128,.18)"
BAR = "display:block;height:100%;box-sizing:border-box;border-radius:3px;border:1px solid rgba(128,128,128,.8)"
HTML_ALPHA = 0.45  # of the strongest shade: text stays readable on it in a light and in a dark page


def emotion_style(emotion: str | None) -> EmotionStyle:
    """Colour, hatch and marker of a label; grey for one that is not of ArtEmis."""
    return EMOTION_STYLES.get(emotion, OTHER_STYLE)


def in_fixed_order(scores: Mapping[str, float]) -> dict[str, float]:
    """ArtEmis' labels in their order, then others in the order given."""
    known = {emotion: scores[emotion] for emotion in EMOTION_STYLES if emotion in scores}
    return known | {emotion: score for emotion, score in scores.items() if emotion not in known}


def emotion_bars(scores: Mapping[str, float], axes=None, *, named: str | None = None):
    """Scores as horizontal bars in the fixed order and colours, each with its value.

    Args:
        scores: label -> probability in [0, 1].
        axes: matplotlib axes to draw on; a new figure without.
        named: the label to print bold, such as the explained one.

    Returns:
        The matplotlib figure.
    """
    figure, axes = _axes(axes, (5.2, 3.2))
    scores = in_fixed_order(scores)
    for row, (emotion, score) in enumerate(scores.items()):
        style = emotion_style(emotion)
        axes.barh(row, score, color=style.colour, hatch=style.hatch, edgecolor="#00000055", linewidth=0.6)
        axes.text(score + 0.015, row, f"{score:.0%}", va="center", fontsize=8)
    axes.set_yticks(range(len(scores)), scores)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == named else "normal")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.14)  # room for the number of a full bar
    axes.set_xticks([0, 0.5, 1])
    axes.set_xlabel("score")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def emotion_bars_html(scores: Mapping[str, float], *, named: str | None = None) -> str:
    """Scores as bars in the fixed order and colours, in HTML that takes the page's font and text colour and any width;
    a screen reader hears a list of labels with their percentages."""
    rows = []
    for emotion, score in in_fixed_order(scores).items():
        weight, width = "700" if emotion == named else "400", 100 * min(1.0, max(0.0, score))
        rows.append(
            f'<li style="{BAR_ROW}">'
            f'<span style="font-weight:{weight};text-align:right">{html.escape(emotion)}</span>'
            f'<span aria-hidden="true" style="{BAR_TRACK}"><span style="{BAR};width:{width:.1f}%;'
            f'background:{emotion_style(emotion).colour}"></span></span>'
            f'<span style="font-weight:{weight};font-variant-numeric:tabular-nums">{score:.0%}</span></li>'
        )
    return '<ul class="sevlm-bars" style="list-style:none;margin:0;padding:0">' + "".join(rows) + "</ul>"


def shaded_explanation(explanation: str, vad: Sequence[Mapping] | None) -> str:
    """An explanation in HTML, each word of the lexicon on the colour of its valence: blue and underlined for pleasant,
    orange and dotted for unpleasant, the stronger the further from neutral. Pointing at a word, or reaching it with
    the keyboard, tells its valence, arousal and dominance.

    Args:
        explanation: what follows "because".
        vad: the pipeline's entries `{"word", "valence", "arousal", "dominance"}` in order, values in [-1, 1] or None;
            None without a lexicon.
    """
    parts = []
    for text, entry in split_at_words(explanation, vad):
        if entry is None or entry["valence"] is None:
            parts.append(html.escape(text))
            continue
        valence = entry["valence"]
        red, green, blue = PLEASANT if valence >= 0 else UNPLEASANT
        line = "solid" if valence >= 0 else "dotted"
        about = html.escape(f"{entry['word']}: {describe_vad(entry)}", quote=True)
        parts.append(
            f'<span class="sevlm-word" tabindex="0" title="{about}" aria-label="{about}" style="'
            f"background:rgba({red},{green},{blue},{HTML_ALPHA * min(1.0, abs(valence)):.3f});"
            f"border-bottom:2px {line} rgba({red},{green},{blue},{min(1.0, abs(valence)):.2f});"
            f'border-radius:3px;padding:0 .15em">{html.escape(text)}</span>'
        )
    return '<span class="sevlm-explanation" style="line-height:1.8">' + "".join(parts) + "</span>"


def shaded_explanation_ansi(explanation: str, vad: Sequence[Mapping] | None) -> str:
    """An explanation for a terminal with 24-bit colours, shaded as in [`shaded_explanation`]; pleasant words are
    underlined. Control characters of the text are left out."""
    parts = []
    for text, entry in split_at_words(explanation, vad):
        text = "".join(letter for letter in text if letter.isprintable())
        if entry is None or entry["valence"] is None:
            parts.append(text)
            continue
        red, green, blue = valence_colour(entry["valence"])
        underline = "4;" if entry["valence"] > 0 else ""
        parts.append(f"\033[{underline}38;2;0;0;0;48;2;{red};{green};{blue}m{text}\033[0m")
    return "".join(parts)


def valence_colour(valence: float) -> tuple[int, int, int]:
    """White at 0, towards orange at -1 and towards blue at 1; black text is readable on all of it."""
    strength = 0.6 * min(1.0, abs(valence))
    end = PLEASANT if valence >= 0 else UNPLEASANT
    return tuple(round(255 + (channel - 255) * strength) for channel in end)


def describe_vad(entry: Mapping) -> str:
    """`valence +0.62, arousal -0.10, dominance +0.31`."""
    return ", ".join(f"{name} {entry[name]:+.2f}" for name in VAD_LINES)


def split_at_words(explanation: str, vad: Sequence[Mapping] | None) -> list[tuple[str, Mapping | None]]:
    """The explanation in pieces that join to it again: words with their entry, and what stands between with None. An
    entry that is not found behind the one before it is passed over."""
    pieces, position = [], 0
    for entry in vad or ():
        start = explanation.find(entry["word"], position) if entry["word"] else -1
        if start < 0:
            continue
        if start > position:
            pieces.append((explanation[position:start], None))
        position = start + len(entry["word"])
        pieces.append((explanation[start:position], entry))
    if position < len(explanation):
        pieces.append((explanation[position:], None))
    return pieces


def vad_trajectory(vad: Sequence[Mapping], reference: Sequence[Mapping] | None = None, axes=None):
    """How valence, arousal and dominance go along an explanation, beside those of a reference, in paler lines.

    Args:
        vad: the pipeline's entries in order; words that the lexicon does not know leave a gap in the marks.
        reference: entries of another sentence, such as a viewer's; laid over by their share of the sentence.
        axes: matplotlib axes to draw on; a new figure without.

    Returns:
        The matplotlib figure.
    """
    figure, axes = _axes(axes, (max(5.0, 0.55 * len(vad) + 1.5), 3.0))
    for name, (colour, marker, line) in VAD_LINES.items():
        if reference:
            scale = max(1, len(vad) - 1) / max(1, len(reference) - 1)
            points = [(scale * k, entry[name]) for k, entry in enumerate(reference) if entry[name] is not None]
            axes.plot(*_columns(points), line, color=colour, alpha=0.3, linewidth=3, label=f"{name}, reference")
        points = [(k, entry[name]) for k, entry in enumerate(vad) if entry[name] is not None]
        axes.plot(*_columns(points), line, color=colour, marker=marker, markersize=5, label=name)
    axes.axhline(0, color="#7f7f7f", linewidth=0.8)
    axes.set_xticks(range(len(vad)), [plain(entry["word"]) for entry in vad], rotation=40, ha="right")
    axes.set_ylim(-1.05, 1.05)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2 if reference else 3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def gallery_sheet(
    images: Sequence[Image.Image],
    results: Sequence[Mapping],
    *,
    titles: Sequence[str] | None = None,
    references: Sequence[str] | None = None,
    columns: int = 4,
    title: str | None = None,
):
    """Pictures, each above its emotion and explanation, then the viewers' words and the nine scores if there are any.

    Args:
        results: one a picture, as the pipeline or `predict` gives them: `emotion`, `explanation`, and optionally
            `emotion_scores` by label.
        titles: a line above each picture.
        references: what viewers said of it.
        columns: pictures side by side.
        title: of the sheet.

    Returns:
        The matplotlib figure.
    """
    from matplotlib.figure import Figure

    columns = max(1, min(columns, len(images)))
    lines = -(-len(images) // columns)
    with_bars = any(result.get("emotion_scores") for result in results)
    words = 1.0 + (0.6 if references is not None else 0.0)
    heights = [3.2, words, 2.4] if with_bars else [3.2, words]
    figure = Figure(figsize=(3.6 * columns, sum(heights) * lines + (0.5 if title else 0)), layout="constrained")
    panels = figure.subplots(lines * len(heights), columns, squeeze=False, height_ratios=heights * lines)
    for panel in panels.flat:
        panel.set_axis_off()
    for number, (image, result) in enumerate(zip(images, results, strict=True)):
        row, column = divmod(number, columns)
        picture, text, *bars = panels[row * len(heights) : (row + 1) * len(heights), column]
        picture.imshow(image, interpolation="lanczos")
        if titles is not None:
            picture.set_title(plain(titles[number]), fontsize=10)
        emotion = result["emotion"]
        text.text(0.5, 1.0, emotion or "(no emotion named)", ha="center", va="top", fontsize=12, fontweight="bold")
        sentence = textwrap.fill(f"because {plain(result['explanation'])}", 38)
        if references is not None:
            sentence += "\n\n" + textwrap.fill(plain(references[number]), 38)
        text.text(0.5, 0.78, sentence, ha="center", va="top", fontsize=9, linespacing=1.2)
        if bars and result.get("emotion_scores"):
            bars[0].set_axis_on()
            emotion_bars(result["emotion_scores"], bars[0], named=emotion)
    if title:
        figure.suptitle(title)
    return figure


def _axes(axes, size: tuple[float, float]):
    if axes is not None:
        return axes.figure, axes
    # Not pyplot's, which keeps every figure and is not safe in threads.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def plain(text: str) -> str:
    """For matplotlib, which reads what stands between dollar signs as a formula."""
    return text.replace("$", r"\$")
