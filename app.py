# Licensed under the Apache License, Version 2.0; see LICENSE.
"""A web page that explains pictures with SEVLM: emotion, explanation, other emotions, candidates, attention.

    python app.py --model outputs/demo                    # http://127.0.0.1:7860, for this machine only
    python app.py --model org/sevlm-artemis --host 0.0.0.0

Requires the extra `app` (`pip install -e '.[app]'`). The file also runs as a Hugging Face Space: `python -m
modeling_sevlm.push MODEL_FOLDER org/name --space org/space` publishes one. Without `--model`, the environment variable
SEVLM_MODEL names the model, or the file model.txt next to this one, as in a Space. The page works without a network:
it loads nothing from other servers and reports nothing to anybody.
"""

import argparse
import os
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import pipeline, set_seed


# Gradio reads it on import; a page that looks for newer versions of itself needs a network.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

import app_page  # noqa: E402
import modeling_sevlm  # noqa: E402, F401 - registers model and pipeline
from app_page import UploadError, UploadLimits, open_upload  # noqa: E402
from modeling_sevlm.attention_map import attention_map, explanation_words, overlay_attention  # noqa: E402
from modeling_sevlm.pipeline_sevlm import TASK, SEVLMPipeline  # noqa: E402
from processing.script_utils import errors_as_exit  # noqa: E402


MODEL_VARIABLE, MODEL_FILE = "SEVLM_MODEL", Path(__file__).resolve().parent / "model.txt"
ONE_CALL_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "model"}
QUEUE_LENGTH = 100
KEEP_UPLOADS = 3600  # seconds
MAX_SESSIONS = 300  # visitors whose pictures are kept in memory, about 5 MB each
DISPLAY_SIZE = 768  # pixels of the copy that attention maps are drawn on
SMALL_MODEL = 20_000_000  # parameters; smaller models have not seen enough real paintings
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]


@dataclass
class Session:
    """One visitor's picture and the answers about it.

    Attributes:
        image: the picture at the size of the page.
        named: the pipeline's result for the emotion that the model names.
        asked: the result for the emotion that the visitor chose, if any.
        sequence, words: tokens and words of the latest answer; maps: its attention maps, computed on demand.
        candidates: the latest sampled explanations; draws: how often the visitor sampled.
    """

    image: Image.Image
    pixel_values: torch.Tensor
    named: dict | None = None
    asked: dict | None = None
    sequence: torch.Tensor | None = None
    words: list[str] = field(default_factory=list)
    maps: np.ndarray | None = None
    candidates: list[dict] = field(default_factory=list)
    draws: int = 0

    @property
    def answers(self) -> list[dict]:
        return [self.named] if self.asked is None else [self.named, self.asked]


class Explainer:
    """The pipeline behind a lock: one model serves all visitors, one call at a time. Sampling uses torch's global
    random state, and parallel calls would share the cores instead of being faster.

    Args:
        explain: the pipeline `art-emotion-explanation`.
        name: the model's name on the page.
        num_candidates: explanations per draw.
    """

    def __init__(self, explain: SEVLMPipeline, name: str, limits: UploadLimits | None = None, num_candidates: int = 8):
        self.explain, self.model, self.name = explain, explain.model, name
        self.limits, self.num_candidates = limits or UploadLimits(), num_candidates
        self._lock = threading.Lock()

    @classmethod
    def load(cls, model: str, device: str | None = None, revision: str | None = None, **kwargs) -> "Explainer":
        """Loads a checkpoint folder or a model of the Hub, with the code of this installation."""
        explain = pipeline(TASK, model=model, device=device, revision=revision)
        return cls(explain, os.path.basename(os.path.abspath(model)) if os.path.isdir(model) else model, **kwargs)

    @property
    def is_small(self) -> bool:
        return self.model.num_parameters() < SMALL_MODEL

    def start_session(self, path: str | os.PathLike) -> Session:
        """Opens an uploaded picture, names an emotion and explains it (greedy decoding).

        Raises:
            UploadError: the file is refused, see `open_upload`.
        """
        with self._lock:  # decoding a large picture takes half a gigabyte
            image = open_upload(path, self.limits)
            pixel_values = self.explain.preprocess(image)["pixel_values"]
            image.thumbnail((DISPLAY_SIZE, DISPLAY_SIZE))
            session = Session(image, pixel_values)
            session.named = self._answer(session)
        return session

    def explain_emotion(self, session: Session, emotion: str) -> dict:
        """Explains the emotion that the visitor chose."""
        with self._lock:
            session.asked = self._answer(session, emotion=emotion)
        session.candidates = []
        return session.asked

    def draw_candidates(self, session: Session) -> list[dict]:
        """Samples explanations of the chosen emotion, if any, ranked by alignment score. Each draw of a session
        differs; the n-th draw for a picture is the same for every visitor."""
        with self._lock:
            set_seed(session.draws)
            result, _ = self._run_pipeline(
                session.pixel_values,
                emotion=session.asked["emotion"] if session.asked else None,
                num_candidates=self.num_candidates,
                return_candidates=True,
                do_sample=True,
            )
        session.draws += 1
        session.candidates = result["candidates"]
        return session.candidates

    def attention_overlay(self, session: Session, number: int) -> Image.Image:
        """Returns the picture under the attention map of a word of the latest answer.

        Raises:
            IndexError: the answer has fewer words.
        """
        if not 0 <= number < len(session.words):
            raise IndexError(f"The explanation has {len(session.words)} words and no number {number}.")
        if session.maps is None:
            pixel_values = session.pixel_values.to(self.model.dtype)
            with self._lock:
                _, session.maps = attention_map(
                    self.model, self.explain.tokenizer, session.sequence, pixel_values=pixel_values
                )
        return overlay_attention(session.image, session.maps[number])

    def _answer(self, session: Session, **kwargs) -> dict:
        answer, sequence = self._run_pipeline(session.pixel_values, do_sample=False, **kwargs)
        words = explanation_words(self.model, self.explain.tokenizer, sequence.tolist())
        session.sequence, session.words, session.maps = sequence, [word for word, _ in words], None
        return answer

    def _run_pipeline(self, pixel_values: torch.Tensor, **kwargs) -> tuple[dict, torch.Tensor]:
        """Returns the pipeline's result and the tokens of its best sentence, which a call does not return."""
        _, forward_kwargs, postprocess_kwargs = self.explain._sanitize_parameters(**kwargs)
        outputs = self.explain.forward({"pixel_values": pixel_values}, **forward_kwargs)
        return self.explain.postprocess(outputs, **postprocess_kwargs), outputs["sequences"][0, 0]


def build(explainer: Explainer, examples: list[Path]) -> gr.Blocks:
    """Lays out the page and connects its events; each `on_...` function handles one."""
    model = explainer.model
    with gr.Blocks(title="SEVLM", analytics_enabled=False, delete_cache=(KEEP_UPLOADS, KEEP_UPLOADS)) as demo:
        session = gr.State(None, time_to_live=KEEP_UPLOADS)
        gr.HTML(app_page.header(explainer.name, explainer.is_small))
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                painting = app_page.ImageUpload(
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
                answer = gr.HTML(app_page.INVITATION, elem_id="answer")
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
                model.config.emotions, label="Why might someone feel something else?", elem_id="emotion", type="value"
            )
            comparison = gr.HTML(elem_id="comparison")
            with gr.Accordion("More explanations, ranked", open=False, elem_id="more-explanations"):
                draw = gr.Button(
                    f"Write {explainer.num_candidates} explanations",
                    elem_id="draw",
                    visible=model.contrastive_head is not None,
                )
                candidates = gr.HTML(app_page.EMPTY_CANDIDATES, elem_id="candidates")
            with gr.Accordion("Where the model looked", open=False, elem_id="where"):
                word = gr.Radio([], label="Choose a word of the explanation", elem_id="word")
                attention = gr.HTML(elem_id="attention")
            with gr.Accordion("The numbers", open=False, elem_id="numbers"):
                numbers = gr.JSON(show_label=False)
        with gr.Accordion("What this is, and what it is not", open=False, elem_id="about"):
            gr.Markdown(app_page.about(explainer.is_small))

        answer_parts = [session, alert, painting, answer, scores, more, emotion]
        follow_ups = [comparison, candidates, word, attention, numbers]

        def words_of(current: Session):
            # Words may repeat, so a choice is a number.
            return gr.Radio(choices=[(text, number) for number, text in enumerate(current.words)], value=None)

        def current_session(current: Session | None) -> Session:
            if current is None:
                raise gr.Error("There is no picture (uploads are forgotten after an hour): choose one.")
            return current

        def on_clear(alert_html: str = ""):
            hidden = [gr.Column(visible=False), None]
            return [None, alert_html, None, app_page.INVITATION, "", *hidden, "", app_page.EMPTY_CANDIDATES] + [
                gr.Radio(choices=[]), "", None,
            ]  # fmt: skip

        def on_picture(path: str | None):
            if path is None:
                return on_clear()
            try:
                current = explainer.start_session(path)
            except UploadError as error:
                return on_clear(app_page.alert(str(error)))
            shown = [
                app_page.answer_card(current.named),
                app_page.scores(current.named),
                gr.Column(visible=True),
                None,
            ]
            return [current, "", gr.skip(), *shown, "", app_page.EMPTY_CANDIDATES] + [
                words_of(current), "", current.answers,
            ]  # fmt: skip

        def on_emotion(current: Session | None, chosen: str | None):
            current = current_session(current)
            if chosen is None:
                raise gr.Error("Choose one of the emotions.")
            explainer.explain_emotion(current, chosen)
            cards = app_page.comparison(current.named, current.asked)
            return current, cards, app_page.EMPTY_CANDIDATES, words_of(current), "", current.answers

        def on_draw(current: Session | None):
            current = current_session(current)
            sampled = explainer.draw_candidates(current)
            listed = app_page.candidates(sampled, current.asked["emotion"] if current.asked else None)
            return current, listed, [*current.answers, {"candidates": sampled}]

        def on_word(current: Session | None, chosen: int | None):
            current = current_session(current)
            if chosen is None:
                raise gr.Error("Choose one of the words.")
            overlay = explainer.attention_overlay(current, chosen)
            return app_page.attention(overlay, current.words[chosen], current.answers[-1]["emotion"])

        everything = answer_parts + follow_ups
        painting.upload(on_picture, painting, everything, api_name="explain", **ONE_CALL_AT_A_TIME)
        gallery.load_input_event.then(on_picture, painting, everything, api_visibility="private", **ONE_CALL_AT_A_TIME)
        painting.clear(on_clear, None, everything, api_visibility="private", queue=False)
        emotion.input(
            on_emotion, [session, emotion], [session, *follow_ups], api_name="explain_emotion", **ONE_CALL_AT_A_TIME
        )
        draw.click(on_draw, session, [session, candidates, numbers], api_name="candidates", **ONE_CALL_AT_A_TIME)
        word.input(on_word, [session, word], attention, api_name="attention", **ONE_CALL_AT_A_TIME)
    return demo.queue(max_size=QUEUE_LENGTH)


def theme() -> gr.Theme:
    """A quiet theme, so that colours belong to emotions. Fonts are the visitor's, because others need a network."""
    plain = {"block_title_background_fill": "none", "block_title_text_color": "*body_text_color"}
    plain |= {"block_title_padding": "0", "block_label_background_fill": "*block_background_fill"}
    plain |= {"block_label_text_color": "*body_text_color", "border_color_primary": "*neutral_300"}
    dark = {f"{name}_dark": value for name, value in plain.items() if "text" in name or "fill" in name}
    plain |= {"body_background_fill": "*neutral_100"}
    fonts = {"font": FONTS, "font_mono": ["ui-monospace", "monospace"]}
    return gr.themes.Soft(primary_hue="blue", secondary_hue="blue", **fonts).set(**plain, **dark)


def launch(demo: gr.Blocks, explainer: Explainer, *, host: str | None, port: int | None, wait: bool = True):
    """Serves the page. Of the disk it exposes only uploads and examples; requests and the queue are bounded."""
    megabytes = explainer.limits.megabytes
    return demo.launch(
        server_name=host,
        server_port=port,
        share=False,
        show_error=True,
        allowed_paths=[],
        max_file_size=int(megabytes * app_page.MEGABYTE),
        state_session_capacity=MAX_SESSIONS,
        app_kwargs={"middleware": [Middleware(app_page.RequestLimits, upload_megabytes=megabytes)]},
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=["api"],
        prevent_thread_lock=not wait,
        theme=theme(),
        css=app_page.style(explainer.model.config.emotions),
    )


def default_model() -> str | None:
    written = MODEL_FILE.read_text(encoding="utf-8").strip() if MODEL_FILE.is_file() else None
    return os.environ.get(MODEL_VARIABLE) or written


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=default_model(), help=f"checkpoint folder or name on the Hub (default: ${MODEL_VARIABLE})"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    parser.add_argument("--device", help="for example cuda:1 or cpu (default: the first GPU, else the CPU)")
    parser.add_argument("--host", help="address to listen on; 0.0.0.0 accepts others (default: this machine only)")
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    parser.add_argument("--num_candidates", type=int, default=8, help="explanations to sample and rank (default: 8)")
    limits = UploadLimits()
    parser.add_argument(
        "--max_megabytes", type=float, default=limits.megabytes, help="largest upload in MB (default: %(default)g)"
    )
    parser.add_argument(
        "--max_megapixels",
        type=float,
        default=limits.megapixels,
        help="largest picture in megapixels, about 15 MB of memory each (default: %(default)g)",
    )
    args = parser.parse_args(argv)
    if not args.model:
        parser.error(f"the model is missing: pass --model FOLDER_OR_NAME, or set {MODEL_VARIABLE}.")
    if args.num_candidates < 2:
        parser.error("--num_candidates must be at least 2, because one explanation needs no ranking.")
    with errors_as_exit():
        limits = UploadLimits(args.max_megabytes, args.max_megapixels)
        explainer = Explainer.load(
            args.model, args.device, args.revision, limits=limits, num_candidates=args.num_candidates
        )
    with tempfile.TemporaryDirectory() as folder:
        launch(build(explainer, app_page.draw_examples(folder)), explainer, host=args.host, port=args.port)


if __name__ == "__main__":
    main()
