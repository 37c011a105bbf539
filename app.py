# Licensed under the Apache License, Version 2.0; see LICENSE.
"""A web page to look at pictures with SEVLM: emotion, explanation, other emotions, candidates, attention.

    python app.py --model outputs/demo                    # http://127.0.0.1:7860, for this machine only
    python app.py --model org/sevlm-artemis --host 0.0.0.0

It needs the extra `app` (`pip install -e '.[app]'`). It is a Hugging Face Space as it stands: `python -m
modeling_sevlm.push MODEL_FOLDER org/name --space org/space` publishes one. Without `--model`, the environment variable
SEVLM_MODEL names the model, or the file model.txt beside this one, as in a Space. Everything the page needs comes from
this process; nothing is reported to anybody.
"""

import argparse
import os
import tempfile
from pathlib import Path


# Read when gradio is imported; a page that looks for newer versions of itself would need a network.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

from web import page  # noqa: E402
from web.painting_field import Painting  # noqa: E402
from web.paintings import draw_examples  # noqa: E402
from web.requests import MEGABYTE, RequestLimits  # noqa: E402
from web.sitting import Sitting, Studio  # noqa: E402
from web.uploads import UploadError, UploadLimits  # noqa: E402


MODEL_VARIABLE, MODEL_FILE = "SEVLM_MODEL", Path(__file__).resolve().parent / "model.txt"
# One call at a time, whatever it asks for: see `Studio`.
TURN = {"concurrency_limit": 1, "concurrency_id": "model"}
QUEUE_LENGTH = 100
UPLOADS_KEPT = 3600  # seconds
VISITORS_KEPT = 300  # whose pictures are remembered, about 5 MB each
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]


def build(studio: Studio, examples: list[Path]) -> gr.Blocks:
    """The page and what its parts do. Each function that is called `on_...` answers one event."""
    with gr.Blocks(title="SEVLM", analytics_enabled=False, delete_cache=(UPLOADS_KEPT, UPLOADS_KEPT)) as demo:
        sitting = gr.State(None, time_to_live=UPLOADS_KEPT)
        gr.HTML(page.header(studio))
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                painting = Painting(
                    label="Picture",
                    sources=["upload", "clipboard"],
                    buttons=["fullscreen"],
                    image_mode=None,
                    type="filepath",
                    height=340,
                    elem_id="painting",
                    alt_text="The picture that you chose",
                )
                alert = gr.HTML(elem_id="alert")
            with gr.Column(scale=6, min_width=300):
                answer = gr.HTML(page.INVITATION, elem_id="answer")
                scores = gr.HTML(elem_id="scores")
        gallery = gr.Examples(
            [[str(file)] for file in examples],
            painting,
            label="Examples, drawn for this project",
            cache_examples=False,
            elem_id="examples",
        )
        with gr.Column(visible=False) as more:
            emotion = gr.Radio(
                studio.emotions, label="Why might someone feel something else?", elem_id="emotion", type="value"
            )
            comparison = gr.HTML(elem_id="comparison")
            with gr.Accordion("More explanations, ranked", open=False, elem_id="more-explanations"):
                draw = gr.Button(
                    f"Write {studio.num_candidates} explanations", elem_id="draw", visible=studio.can_rank
                )
                candidates = gr.HTML(page.EMPTY_CANDIDATES, elem_id="candidates")
            with gr.Accordion("Where the model looked", open=False, elem_id="where"):
                word = gr.Radio([], label="Choose a word of the explanation", elem_id="word")
                attention = gr.HTML(elem_id="attention")
            with gr.Accordion("The numbers", open=False, elem_id="numbers"):
                numbers = gr.JSON(show_label=False)
        with gr.Accordion("What this is, and what it is not", open=False, elem_id="about"):
            gr.Markdown(page.about(studio))

        everything = [
            sitting, alert, painting, answer, scores, more, emotion, comparison, candidates, word, attention, numbers,
        ]  # fmt: skip

        def on_picture(path: str | None):
            if path is None:
                return on_clear()
            try:
                now = studio.sit(path)
            except UploadError as error:
                return [None, page.message(str(error)), None, page.INVITATION, "", *nothing_more()]
            return [
                now,
                "",
                gr.skip(),
                page.first_answer(now),
                page.scores(now),
                gr.Column(visible=True),
                None,
                "",
                page.EMPTY_CANDIDATES,
                gr.Radio(choices=page.word_choices(now), value=None),
                "",
                now.answers,
            ]

        def on_clear():
            return [None, "", None, page.INVITATION, "", *nothing_more()]

        def nothing_more():
            return [gr.Column(visible=False), None, "", page.EMPTY_CANDIDATES, gr.Radio(choices=[]), "", None]

        def on_emotion(now: Sitting | None, chosen: str | None):
            now = present(now)
            if chosen is None:
                raise gr.Error("Choose one of the emotions.")
            studio.ask_why(now, chosen)
            words = gr.Radio(choices=page.word_choices(now), value=None)
            return now, page.comparison(now), page.EMPTY_CANDIDATES, words, "", now.answers

        def on_draw(now: Sitting | None):
            now = present(now)
            studio.draw_candidates(now)
            return now, page.candidates(now), [*now.answers, {"candidates": now.candidates}]

        def on_word(now: Sitting | None, chosen: int | None):
            now = present(now)
            if chosen is None:
                raise gr.Error("Choose one of the words.")
            return page.attention(now, chosen, studio.look_at_word(now, chosen))

        def present(now: Sitting | None) -> Sitting:
            if now is None:
                raise gr.Error("There is no picture (uploads are forgotten after an hour): choose one.")
            return now

        painting.upload(on_picture, painting, everything, api_name="explain", **TURN)
        gallery.load_input_event.then(on_picture, painting, everything, api_visibility="private", **TURN)
        painting.clear(on_clear, None, everything, api_visibility="private", queue=False)
        asked = [sitting, comparison, candidates, word, attention, numbers]
        emotion.input(on_emotion, [sitting, emotion], asked, api_name="explain_emotion", **TURN)
        draw.click(on_draw, sitting, [sitting, candidates, numbers], api_name="candidates", **TURN)
        word.input(on_word, [sitting, word], attention, api_name="attention", **TURN)
    return demo.queue(max_size=QUEUE_LENGTH)


def theme() -> gr.Theme:
    """Quiet, so that colours are those of emotions; fonts are the visitor's, as others would have to be fetched."""
    plain = {"block_title_background_fill": "none", "block_title_text_color": "*body_text_color"}
    plain |= {"block_title_padding": "0", "block_label_background_fill": "*block_background_fill"}
    plain |= {"block_label_text_color": "*body_text_color", "border_color_primary": "*neutral_300"}
    dark = {f"{name}_dark": value for name, value in plain.items() if "text" in name or "fill" in name}
    plain |= {"body_background_fill": "*neutral_100"}
    fonts = {"font": FONTS, "font_mono": ["ui-monospace", "monospace"]}
    return gr.themes.Soft(primary_hue="blue", secondary_hue="blue", **fonts).set(**plain, **dark)


def launch(demo: gr.Blocks, studio: Studio, *, host: str | None, port: int | None, wait: bool = True):
    """Serve the page. Of the disk it shows nothing but what was uploaded and the examples. A request is bounded by
    `RequestLimits`, the queue by `QUEUE_LENGTH`, and the model takes one call at a time."""
    return demo.launch(
        server_name=host,
        server_port=port,
        share=False,
        show_error=True,
        allowed_paths=[],
        max_file_size=int(studio.limits.megabytes * MEGABYTE),
        state_session_capacity=VISITORS_KEPT,
        app_kwargs={"middleware": [Middleware(RequestLimits, upload_megabytes=studio.limits.megabytes)]},
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=["api"],
        prevent_thread_lock=not wait,
        theme=theme(),
        css=page.style(studio),
    )


def default_model() -> str | None:
    written = MODEL_FILE.read_text(encoding="utf-8").strip() if MODEL_FILE.is_file() else None
    return os.environ.get(MODEL_VARIABLE) or written


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        default=default_model(),
        help=f"folder, or name on the Hub (default: ${MODEL_VARIABLE})",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    parser.add_argument("--device", help="for example cuda:1 or cpu; the first GPU if there is one by default")
    parser.add_argument("--host", help="address to listen at; 0.0.0.0 lets others in (default: this machine only)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--num_candidates", type=int, default=8, help="explanations to sample and rank")
    parser.add_argument("--max_megabytes", type=float, default=UploadLimits.megabytes, help="of an uploaded file")
    parser.add_argument(
        "--max_megapixels",
        type=float,
        default=UploadLimits.megapixels,
        help="of a picture (about 15 MB of memory each)",
    )
    args = parser.parse_args(argv)
    if not args.model:
        parser.error(f"which model? Give --model FOLDER_OR_NAME, or set {MODEL_VARIABLE}.")
    if args.num_candidates < 2:
        parser.error("--num_candidates is a number from 2: one explanation needs no ranking.")
    try:
        limits = UploadLimits(args.max_megabytes, args.max_megapixels)
        studio = Studio.load(
            args.model, device=args.device, revision=args.revision, limits=limits, num_candidates=args.num_candidates
        )
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        launch(build(studio, draw_examples(folder)), studio, host=args.host, port=args.port)


if __name__ == "__main__":
    main()
