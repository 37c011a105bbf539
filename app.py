"""A web page that explains pictures with SEVLM: emotion, explanation, other emotions, candidates, attention.

    python app.py --model outputs/demo                    # http://127.0.0.1:7860, for this machine only
    python app.py --model org/sevlm-artemis --host 0.0.0.0

Requires the extra `app` (`pip install -e '.[app]'`). The file also runs as a Hugging Face Space: `python -m
modeling_sevlm.push MODEL_FOLDER org/name --space org/space` publishes one. Without `--model`, the model is taken from
the environment variable SEVLM_MODEL, or else from model.txt next to this file (as in a Space). The page works without
a network: it loads nothing from other servers and sends nothing to them.
"""

import argparse
import os
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import set_seed


# Gradio reads this on import. Otherwise the page asks a server for newer versions.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

import app_page  # noqa: E402
from app_page import UploadError, UploadLimits, open_upload  # noqa: E402
from modeling_sevlm.attention_map import attention_map, explanation_words, overlay_attention  # noqa: E402
from modeling_sevlm.lexicon import restore_lexicon  # noqa: E402
from modeling_sevlm.loading import open_pipeline  # noqa: E402
from processing.script_utils import errors_as_exit, load_lexicon  # noqa: E402


MODEL_FILE = Path(__file__).resolve().parent / "model.txt"
# "always_last": Gradio runs the newest click after the pending one; by default it drops it.
ONE_CALL_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "model", "trigger_mode": "always_last"}
AT_ONCE = {"queue": False, "trigger_mode": "multiple", "show_progress": "hidden", "api_visibility": "private"}
KEEP_UPLOADS = 3600  # seconds
MAX_SESSIONS = 300  # visitors whose pictures are kept in memory, about 5 MB each
DISPLAY_SIZE = 768  # pixels of the copy that attention maps are drawn on
SMALL_MODEL = 20_000_000  # parameters; the page warns about smaller models


@dataclass
class Session:
    """One visitor's picture and the answers about it."""

    path: str
    image: Image.Image  # at the size of the page
    pixel_values: torch.Tensor
    named: dict | None = None  # the pipeline's result for the likeliest emotion
    asked: dict | None = None  # the result for the emotion that the visitor chose
    sequence: torch.Tensor | None = None  # of the latest answer
    words: list[str] = field(default_factory=list)
    maps: np.ndarray | None = None  # of the latest answer, computed on demand
    draws: int = 0  # how often the visitor sampled

    @property
    def answers(self) -> list[dict]:
        return [self.named] if self.asked is None else [self.named, self.asked]


@dataclass
class Clicks:
    """What a visitor chose last. It may be newer than the answers, which take a second."""

    picture: str | None = None
    emotion: str | None = None
    word: int | None = None


class LatestClicks:
    """The latest clicks of the visitors' pages, so that an answer to an earlier click is not shown.

    Clients of the API choose nothing on a page, so no answer to them is late.
    """

    def __init__(self):
        self._clicks: OrderedDict[str, Clicks] = OrderedDict()
        self._lock = threading.Lock()

    def record(self, request: gr.Request, **choices) -> None:
        with self._lock:
            clicks = self._clicks.setdefault(request.session_hash, Clicks())
            vars(clicks).update(choices)
            self._clicks.move_to_end(request.session_hash)
            while len(self._clicks) > MAX_SESSIONS:
                self._clicks.popitem(last=False)

    def reset(self, request: gr.Request, *names: str) -> None:
        """Forgets choices that an answer removes from the page."""
        if request.session_hash in self._clicks:
            self.record(request, **dict.fromkeys(names))

    def of(self, request: gr.Request) -> Clicks | None:
        return self._clicks.get(request.session_hash)

    def are_newer(self, request: gr.Request, **about) -> bool:
        """Whether the visitor has chosen something else than what an answer is about."""
        clicks = self.of(request)
        return clicks is not None and any(getattr(clicks, name) != value for name, value in about.items())


class Explainer:
    """The pipeline of a checkpoint, which serves all visitors one call at a time. Sampling uses torch's global random
    state, and parallel calls would share the cores instead of being faster."""

    def __init__(self, model: str, limits: UploadLimits, num_candidates: int = 8, lexicon=None, **kwargs):
        self.explain = open_pipeline(model, **kwargs)
        self.model = self.explain.model
        if lexicon is not None:  # loading has warned about a missing one
            restore_lexicon(self.model, self.explain.processor, lexicon)
        self.name = Path(model).resolve().name if os.path.isdir(model) else model
        self.limits, self.num_candidates = limits, num_candidates
        self.is_small = self.model.num_parameters() < SMALL_MODEL
        self._lock = threading.Lock()

    def start_session(self, path: str | os.PathLike) -> Session:
        """Opens an uploaded picture, names the likeliest emotion and explains it. Raises `UploadError`, see
        `open_upload`."""
        with self._lock:  # decoding a large picture takes half a gigabyte
            image = open_upload(path, self.limits)
            pixel_values = self.explain.preprocess(image)["pixel_values"]
            image.thumbnail((DISPLAY_SIZE, DISPLAY_SIZE))
            session = Session(os.fspath(path), image, pixel_values)
            session.named = self._answer(session)
        return session

    def explain_emotion(self, session: Session, emotion: str) -> dict:
        """Explains the emotion that the visitor chose."""
        with self._lock:
            session.asked = self._answer(session, emotion=emotion)
        return session.asked

    def draw_candidates(self, session: Session, emotion: str | None = None) -> list[dict]:
        """Samples explanations of an emotion (default: that of the latest answer), ranked by alignment score. Each
        draw of a session differs; the n-th draw for a picture is the same for every visitor."""
        with self._lock:
            set_seed(session.draws)
            result, _ = self._run_pipeline(
                session.pixel_values,
                emotion=emotion or session.answers[-1]["emotion"],
                num_candidates=self.num_candidates,
                return_candidates=True,
            )
        session.draws += 1
        return result["candidates"]

    def attention_overlay(self, session: Session, number: int) -> Image.Image:
        """Returns the picture under the attention map of a word of the latest answer."""
        if session.maps is None:
            pixel_values = session.pixel_values.to(self.model.dtype)
            with self._lock:
                _, session.maps = attention_map(
                    self.model, self.explain.tokenizer, session.sequence, pixel_values=pixel_values
                )
        return overlay_attention(session.image, session.maps[number])

    def _answer(self, session: Session, **kwargs) -> dict:
        answer, sequence = self._run_pipeline(session.pixel_values, **kwargs)
        words = explanation_words(self.model, self.explain.tokenizer, sequence.tolist())
        session.sequence, session.words, session.maps = sequence, [word for word, _ in words], None
        return answer

    def _run_pipeline(self, pixel_values: torch.Tensor, **kwargs) -> tuple[dict, torch.Tensor]:
        """Returns the result and the tokens of its best sentence. Calling the pipeline would not return the tokens."""
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
            question = "Why might someone feel something else?"
            emotion = gr.Radio(model.config.emotions, label=question, elem_id="emotion")
            comparison = gr.HTML(elem_id="comparison")
            with gr.Accordion("More explanations, ranked", open=False, elem_id="more-explanations"):
                can_rank = model.contrastive_head is not None
                draw = gr.Button(f"Write {explainer.num_candidates} explanations", elem_id="draw", visible=can_rank)
                candidates = gr.HTML(app_page.EMPTY_CANDIDATES, elem_id="candidates")
            with gr.Accordion("Where the model looked", open=False, elem_id="where"):
                word = gr.Radio([], label="Choose a word of the explanation", elem_id="word")
                attention = gr.HTML(elem_id="attention")
            with gr.Accordion("The numbers", open=False, elem_id="numbers"):
                numbers = gr.JSON(show_label=False)
        with gr.Accordion("What this is, and what it is not", open=False, elem_id="about"):
            gr.Markdown(app_page.about(explainer.is_small))

        latest = LatestClicks()
        follow_ups = [comparison, candidates, word, attention, numbers]

        def words_of(current: Session):
            # Words may repeat, so a choice is a number.
            return gr.Radio(choices=[(text, number) for number, text in enumerate(current.words)], value=None)

        def current_session(current: Session | None) -> Session:
            if current is None:
                raise gr.Error("There is no picture (uploads are deleted after an hour): choose one.")
            return current

        def on_clear(alert_html: str = ""):
            hidden = [gr.Column(visible=False), None]
            empty = [gr.Radio(choices=[]), "", None]
            return [None, alert_html, None, app_page.INVITATION, "", *hidden, "", app_page.EMPTY_CANDIDATES, *empty]

        def click_picture(path: str | None, request: gr.Request):
            latest.record(request, picture=path, emotion=None, word=None)

        def click_emotion(chosen: str | None, request: gr.Request):
            latest.record(request, emotion=chosen, word=None)

        def click_word(chosen: int | None, request: gr.Request):
            latest.record(request, word=chosen)

        def on_clear_button(request: gr.Request):
            latest.reset(request, "picture", "emotion", "word")
            return on_clear()

        def on_picture(path: str | None, request: gr.Request):
            if path is None:
                return on_clear()
            refusal = ""
            try:
                current = explainer.start_session(path)
            except UploadError as error:
                refusal = str(error)
            if latest.are_newer(request, picture=path):
                return [gr.skip()] * len(everything)
            latest.reset(request, "emotion", "word")
            if refusal:
                latest.reset(request, "picture")
                return on_clear(app_page.alert(refusal))
            cards = app_page.answer_card(current.named), app_page.scores(current.named)
            rest = ["", app_page.EMPTY_CANDIDATES, words_of(current), "", current.answers]
            return [current, "", gr.skip(), *cards, gr.Column(visible=True), None, *rest]

        def on_emotion(current: Session | None, chosen: str | None, request: gr.Request):
            current = current_session(current)
            if chosen is None:
                raise gr.Error("Choose one of the emotions.")
            about = {"picture": current.path, "emotion": chosen}
            if not latest.are_newer(request, **about):
                explainer.explain_emotion(current, chosen)
            if latest.are_newer(request, **about):
                return [gr.skip()] * (1 + len(follow_ups))
            latest.reset(request, "word")
            cards = app_page.comparison(current.named, current.asked)
            return current, cards, app_page.EMPTY_CANDIDATES, words_of(current), "", current.answers

        def on_draw(current: Session | None, request: gr.Request):
            current = current_session(current)
            clicks = latest.of(request)
            chosen = None if clicks is None else clicks.emotion
            sampled = explainer.draw_candidates(current, chosen)
            if clicks is not None and latest.are_newer(request, picture=current.path, emotion=chosen):
                return [gr.skip()] * 3
            listed = app_page.candidates(sampled, sampled[0]["emotion"])
            return current, listed, [*current.answers, {"candidates": sampled}]

        def on_word(current: Session | None, chosen: int | None, request: gr.Request):
            current = current_session(current)
            asked = current.asked["emotion"] if current.asked else None
            about = {"picture": current.path, "emotion": asked, "word": chosen}
            if latest.are_newer(request, **about):
                return gr.skip()
            if chosen not in range(len(current.words)):
                raise gr.Error("Choose one of the words.")
            overlay = explainer.attention_overlay(current, chosen)
            if latest.are_newer(request, **about):
                return gr.skip()
            return app_page.attention(overlay, current.words[chosen], current.answers[-1]["emotion"])

        everything = [session, alert, painting, answer, scores, more, emotion, *follow_ups]
        # Each click is recorded at once, before the model is asked.
        uploaded = painting.upload(click_picture, painting, None, **AT_ONCE)
        uploaded.then(on_picture, painting, everything, api_name="explain", **ONE_CALL_AT_A_TIME)
        picked = gallery.load_input_event.then(click_picture, painting, None, **AT_ONCE)
        picked.then(on_picture, painting, everything, api_visibility="private", **ONE_CALL_AT_A_TIME)
        painting.clear(on_clear_button, None, everything, api_visibility="private", queue=False)
        requested = emotion.input(click_emotion, emotion, None, **AT_ONCE)
        requested.then(
            on_emotion, [session, emotion], [session, *follow_ups], api_name="explain_emotion", **ONE_CALL_AT_A_TIME
        )
        draw.click(on_draw, session, [session, candidates, numbers], api_name="candidates", **ONE_CALL_AT_A_TIME)
        pointed = word.input(click_word, word, None, **AT_ONCE)
        pointed.then(on_word, [session, word], attention, api_name="attention", **ONE_CALL_AT_A_TIME)
    return demo.queue(max_size=100)


def theme() -> gr.Theme:
    """A grey theme, so that colours stand for emotions. It uses system fonts, because others need a network."""
    plain = {"block_title_background_fill": "none", "block_title_text_color": "*body_text_color"}
    plain |= {"block_title_padding": "0", "block_label_background_fill": "*block_background_fill"}
    plain |= {"block_label_text_color": "*body_text_color", "border_color_primary": "*neutral_300"}
    dark = {f"{name}_dark": value for name, value in plain.items() if "text" in name or "fill" in name}
    plain |= {"body_background_fill": "*neutral_100"}
    fonts = {"font": ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]}
    fonts |= {"font_mono": ["ui-monospace", "monospace"]}
    return gr.themes.Soft(primary_hue="blue", secondary_hue="blue", **fonts).set(**plain, **dark)


def launch(demo: gr.Blocks, explainer: Explainer, *, host: str | None, port: int | None, wait: bool = True):
    """Serves the page. Visitors can read only uploads and examples. Request size and queue length are limited."""
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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, limits = parser.add_argument, UploadLimits()
    add("--model", help="checkpoint folder or name on the Hub (default: $SEVLM_MODEL)")
    add("--revision", help="branch, tag or commit of the model on the Hub")
    add("--vad_lexicon", help="lexicon file of a checkpoint that was saved without it (default: words are neutral)")
    add("--device", help="for example cuda:1 or cpu (default: the first GPU, else the CPU)")
    add("--host", help="address to listen on; 0.0.0.0 accepts connections from other machines (default: this machine)")
    add("--port", type=int, help="port (default: the first free one from 7860)")
    add("--num_candidates", type=int, default=8, help="explanations to sample and rank (default: 8)")
    add("--max_megabytes", type=float, default=limits.megabytes, help="largest upload in MB (default: %(default)g)")
    help = "largest picture in megapixels, about 15 MB of memory each (default: %(default)g)"
    add("--max_megapixels", type=float, default=limits.megapixels, help=help)
    args = parser.parse_args(argv)
    default = MODEL_FILE.read_text(encoding="utf-8").strip() if MODEL_FILE.is_file() else None
    model = args.model or os.environ.get("SEVLM_MODEL") or default
    if not model:
        parser.error("the model is missing: pass --model FOLDER_OR_NAME, or set SEVLM_MODEL.")
    if args.num_candidates < 2:
        parser.error("--num_candidates must be at least 2, because one explanation needs no ranking.")
    limits = UploadLimits(args.max_megabytes, args.max_megapixels)
    if not all(limit > 0 for limit in limits):  # NaN is not
        parser.error("--max_megabytes and --max_megapixels must be above 0.")
    with errors_as_exit():
        options = {"lexicon": load_lexicon(args.vad_lexicon), "device": args.device, "revision": args.revision}
        explainer = Explainer(model, limits, args.num_candidates, **options)
    with tempfile.TemporaryDirectory() as folder:
        launch(build(explainer, app_page.draw_examples(folder)), explainer, host=args.host, port=args.port)


if __name__ == "__main__":
    main()
