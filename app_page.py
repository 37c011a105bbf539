"""What the page of `app.py` shows (HTML) and what it accepts (uploads, requests). Importing it loads no model."""

import base64
import io
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import gradio as gr
from PIL import Image

from modeling_sevlm.views import emotion_bars_html, emotion_style, shaded_explanation
from processing.images import TooManyPixels, identify, open_file, open_image
from processing.toy_artemis import toy_scene
from processing.toy_paintings import paint_scene


MEGABYTE = 2**20  # bytes, as Gradio's page counts when it refuses a large file
MAX_REQUEST_MEGABYTES = 1  # per request without an upload; the page sends kilobytes
MIN_FREE_BYTES = 2**30  # of the disk that uploads are stored on
# Pillow reads about fifty formats; some of them run other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO")
# Paintings of the embedded data's test split (660 to 719), one for every emotion that has a name.
EXAMPLE_SCENES = (676, 713, 705, 684, 708, 718, 706, 698)

INVITATION = (
    '<div class="sevlm-card sevlm-empty"><p>Drop a picture on the left, or pick one of the examples. '
    "The model names the likeliest emotion and says why.</p></div>"
)
EMPTY_CANDIDATES = '<p class="sevlm-note">No explanations yet.</p>'
SMALL_MODEL_NOTICE = (
    '<p class="sevlm-warning">This is a demonstration model of a million parameters, trained for minutes on '
    "generated pictures like the examples. It knows nothing about real paintings.</p>"
)
ABOUT = """
The model learned from {data}. It predicts **what such viewers would write**. It does not know what you feel, and
there is no wrong feeling about a picture.

- **Scores** are the model's probabilities of the nine labels, given the picture. They add up to 100 %.
- **The emotion** that is named is the one with the highest score.
- **The explanation** is generated for it, word by word. It can name things that are not in the picture.
- **Shades** show how pleasant or unpleasant a psychologists' lexicon rates a word *without its context*: "happy" stays
  pleasant in "not happy". Words without a shade are not in the lexicon.
- **Alignment** is the model's score of how well picture, emotion and explanation fit. It ranks explanations of *one*
  picture; scores of different pictures cannot be compared.
- **Where it looked** shows the decoder's cross-attention while it wrote a word. It does not explain the choice.
- Emotions of art depend on culture and person. The labels are in English, and most of ArtEmis's paintings are Western.

Do not use it to judge people, or to decide what may be shown to whom. Uploaded pictures stay on the machine that runs
this app and are deleted within two hours; nothing is sent anywhere else.
"""


def style(emotions: Sequence[str]) -> str:
    """Returns the style sheet, with a colour for the dot of each emotion that can be chosen."""
    rules = Path(__file__).with_name("app_page.css").read_text(encoding="utf-8")
    for number, emotion in enumerate(emotions, start=1):
        rules += f"#emotion label:nth-of-type({number}) {{ --emotion: {emotion_style(emotion).colour}; }}\n"
    return rules


def header(model_name: str, is_small: bool) -> str:
    return (
        '<header class="sevlm-header"><h1>What does this picture make a viewer feel, and why?</h1>'
        f"<p>SEVLM, a small emotional vision-language model, guesses. Model: <b>{escape(model_name)}</b></p>"
        f"{SMALL_MODEL_NOTICE if is_small else ''}</header>"
    )


def about(is_small: bool) -> str:
    data = "generated pictures of our own" if is_small else "paintings and what people wrote about them"
    return ABOUT.format(data=data)


def alert(text: str) -> str:
    """Returns an error that screen readers announce when it appears."""
    return f'<div class="sevlm-alert" role="alert">{escape(text)}</div>'


def answer_card(answer: dict, title: str = "The model names") -> str:
    """Returns emotion, shaded explanation and alignment score of one result of the pipeline."""
    emotion, fit = answer["emotion"], answer["alignment_score"]
    explanation = "<p>(the explanation is empty)</p>"
    if answer["explanation"]:
        explanation = f"because {shaded_explanation(answer['explanation'], answer['vad'])}"
    note = "" if fit is None else f'<p class="sevlm-note">alignment <b class="sevlm-fit">{fit:+.2f}</b></p>'
    return (
        f'<article class="sevlm-card" style="--emotion: {emotion_style(emotion).colour}">'
        f'<p class="sevlm-note">{escape(title)}</p><h2 class="sevlm-emotion">{escape(emotion)}</h2>'
        f'<div class="sevlm-because">{explanation}</div>{note}</article>'
    )


def comparison(named: dict, asked: dict) -> str:
    """Returns the model's own answer and the one for the chosen emotion, side by side."""
    share = named["emotion_scores"].get(asked["emotion"], 0)
    cards = answer_card(named) + answer_card(asked, f"You asked for this (the model's score: {share:.0%})")
    return f'<div class="sevlm-side-by-side">{cards}</div>'


def scores(answer: dict) -> str:
    bars = emotion_bars_html(answer["emotion_scores"], named=answer["emotion"])
    return f'<section class="sevlm-card sevlm-plain" aria-label="Scores of the emotions">{bars}</section>'


def candidates(sampled: Sequence[dict], emotion: str) -> str:
    """Returns the sampled explanations of `emotion`, best fit first; repeated ones once with their count."""
    counts = Counter((c["alignment_score"], c["explanation"]) for c in sampled)
    colour, label = emotion_style(emotion).colour, escape(emotion)
    rows = "".join(
        f'<li style="--emotion: {colour}"><b class="sevlm-fit">{fit:+.2f}</b>'
        f'<span><span class="sevlm-label">{label}</span> because {escape(explanation)}'
        + (f' <span class="sevlm-note">({count} times)</span>' if count > 1 else "")
        + "</span></li>"
        for (fit, explanation), count in counts.items()
    )
    return (
        f'<p class="sevlm-note">{len(sampled)} sampled explanations of {label}, the best fit first. '
        f'The number is the alignment score.</p><ol class="sevlm-candidates">{rows}</ol>'
    )


def attention(image: Image.Image, word: str, emotion: str) -> str:
    """Returns the image of an attention map. It is part of the page, so that no visitor's file can be requested."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=88)
    alt = f"The picture, brighter where the model looked while it wrote {word!r}"
    caption = f"Brighter: the decoder’s cross-attention while it wrote “{word}” ({emotion})."
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure class="sevlm-figure"><img src="data:image/jpeg;base64,{data}" alt="{escape(alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def draw_examples(folder: str | Path) -> list[Path]:
    """Paints the example pictures into `folder`. They are generated, and the demo's model has not seen them."""
    files = []
    for index in EXAMPLE_SCENES:
        scene = toy_scene(index)
        files.append(Path(folder, f"{scene.motif}_{scene.setting}.png"))
        paint_scene(scene, 448)[0].save(files[-1])
    return files


class ImageUpload(gr.Image):
    """An upload field that passes on the path of an uploaded file without opening it, so that `open_upload` can check
    it first. It does not fetch URLs, because the server might reach hosts that the visitor cannot."""

    is_template = True  # the page shows it as a gr.Image

    def preprocess(self, payload) -> str | None:
        if payload is None:
            return None
        # Gradio checks a path only if the request declares it as a file, so other paths could name any file here.
        uploads = os.path.realpath(self.GRADIO_CACHE)
        path = os.path.realpath(payload.path or "")
        if not path.startswith(uploads + os.sep) or not os.path.isfile(path):
            raise gr.Error("Upload the picture as a file.")
        return path

    async def async_move_resource_to_block_cache(self, url_or_file_path):
        if str(url_or_file_path).startswith(("http://", "https://")):
            raise gr.Error("Addresses are not opened: download the picture and upload it as a file.")
        return await super().async_move_resource_to_block_cache(url_or_file_path)


class UploadError(ValueError):
    """An upload that is refused; the message is for the visitor."""


class UploadLimits(NamedTuple):
    megabytes: float = 20
    megapixels: float = 50


def open_upload(path: str | os.PathLike, limits: UploadLimits) -> Image.Image:
    """Opens an uploaded file as an upright RGB image. The header is checked before anything is decoded.

    Raises:
        UploadError: the file is empty, not an image, damaged, too large, or a strip.
    """
    size = os.path.getsize(path)
    if not size:
        raise UploadError("The file is empty. Save or download the picture again, then upload it.")
    if size > limits.megabytes * MEGABYTE:
        raise UploadError(
            f"The file has {size / MEGABYTE:.0f} MB, and this app takes up to {limits.megabytes:g}. Save the picture "
            "smaller, or as a JPEG."
        )
    with open_file(path) as file:
        try:
            image = identify(file, limits.megapixels, FORMATS)
        except TooManyPixels as error:
            raise UploadError(
                f"The picture has {error.width * error.height / 1e6:,.0f} megapixels ({error.width:,} x "
                f"{error.height:,}), and this app takes up to {limits.megapixels:g}. Make it smaller, for example "
                "2,000 pixels wide."
            ) from error
        except Exception as error:  # Pillow's plug-ins raise far more than OSError on damaged headers
            formats = "JPEG, PNG, WebP, GIF, BMP or TIFF file"
            raise UploadError(f"This file is not a picture that can be read here. Choose a {formats}.") from error
        if max(image.size) > 50 * min(image.size):  # the model would see it squeezed to a square
            raise UploadError(
                f"The picture is a strip of {image.width:,} x {image.height:,} pixels, and the model would not "
                "recognise anything in it. Crop it."
            )
        try:
            return open_image(image)
        except ValueError as error:
            raise UploadError(
                f"The picture is damaged and cannot be read to its end ({error}). Save or download it again, or "
                "choose another."
            ) from error


class RequestLimits:
    """ASGI middleware. Gradio limits each uploaded file; this limits every request.

    Uploads above `upload_megabytes` and other requests above 1 MB are answered with 413, uploads with 507 while the
    disk has less than 1 GB left.
    """

    def __init__(self, app, upload_megabytes: float):
        self.app, self.upload_megabytes = app, upload_megabytes

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"].rstrip("/").endswith("/upload"):
            if shutil.disk_usage(tempfile.gettempdir()).free < MIN_FREE_BYTES:
                return await _answer(send, 507, "There is no room for pictures now: try again later.")
            megabytes = self.upload_megabytes + 0.1  # the form around the file
            refusal = f"This app takes up to {self.upload_megabytes:g} MB, in one file: save the picture smaller."
        else:
            megabytes = MAX_REQUEST_MEGABYTES
            refusal = f"A request of more than {MAX_REQUEST_MEGABYTES} MB. Upload pictures as files."
        remaining = int(megabytes * MEGABYTE)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > remaining:
            return await _answer(send, 413, refusal)
        answered = False

        async def limited_receive():
            nonlocal remaining
            message = await receive()
            remaining -= len(message.get("body", b""))
            if remaining < 0:
                raise _RequestTooLarge
            return message

        async def recording_send(message):
            nonlocal answered
            if remaining >= 0 or answered:  # drops the app's error about the incomplete body
                answered = True
                await send(message)

        try:
            await self.app(scope, limited_receive, recording_send)
        except _RequestTooLarge:
            pass
        if remaining < 0 and not answered:
            await _answer(send, 413, refusal)


class _RequestTooLarge(Exception):
    pass


async def _answer(send, status: int, text: str):
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
