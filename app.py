"""A web page that explains pictures with SEVLM: the likeliest emotion and why, other emotions, where it looked.

    python app.py --model outputs/demo                    # http://127.0.0.1:7860, for this machine only
    python app.py --model org/sevlm-artemis --host 0.0.0.0

Requires the extra `app` (`pip install -e '.[app]'`). The file also runs as a Hugging Face Space: `python -m
modeling_sevlm.push MODEL_FOLDER org/name --space org/space` publishes one. Without `--model`, the model is taken from
the environment variable SEVLM_MODEL, or else from model.txt next to this file (as in a Space). The page works without
a network: it loads nothing from other servers and sends nothing to them.

All nine emotions of a picture are explained at once, so choosing an emotion or a word asks nobody (app_page.js).
"""

import argparse
import os
import tempfile
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import set_seed


# Gradio reads this on import. Otherwise the page asks a server for newer versions.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

import app_page  # noqa: E402
from app_page import Answer  # noqa: E402
from app_uploads import (  # noqa: E402
    MEGABYTE,
    ImageUpload,
    RequestLimits,
    UploadError,
    UploadLimits,
    open_upload,
    uploaded_path,
)
from modeling_sevlm.attention_map import attention_map  # noqa: E402
from modeling_sevlm.lexicon import restore_lexicon  # noqa: E402
from modeling_sevlm.loading import open_pipeline  # noqa: E402
from modeling_sevlm.pipeline_sevlm import generate_ranked  # noqa: E402
from processing.script_utils import errors_as_exit, load_lexicon  # noqa: E402


MODEL_FILE = Path(__file__).resolve().parent / "model.txt"
# "multiple": all clicks are answered in their order, and the page shows the answer to the newest. By default Gradio
# drops clicks while one is pending; with "always_last" the newest of three quick uploads got no answer.
ONE_CALL_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "model", "trigger_mode": "multiple"}
KEEP_UPLOADS = 3600  # seconds
MAX_SESSIONS = 300  # visitors whose pictures are kept in memory, about 5 MB each
DISPLAY_SIZE = 1024  # pixels of the copy on the page
SMALL_MODEL = 20_000_000  # parameters; the page warns about smaller models
GONE = "There is no picture (uploads are deleted after an hour): choose one."


@dataclass
class Session:
    """A picture and the answers about it, likeliest emotion first."""

    image: Image.Image  # at the size of the page
    pixel_values: torch.Tensor
    answers: list[Answer]
    number: int = 0  # the page's number of the request that chose the picture
    draws: int = 0  # how often the visitor sampled

    @property
    def named(self) -> dict:
        return self.answers[0].result

    def about(self, emotion: str) -> dict:
        return next(answer.result for answer in self.answers if answer.result["emotion"] == emotion)


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
        """Opens an uploaded picture and explains each emotion. Raises `UploadError`, see `open_upload`."""
        with self._lock:  # decoding a large picture takes half a gigabyte
            image = open_upload(path, self.limits)
            pixel_values = self.explain.preprocess(image)["pixel_values"]
            image.thumbnail((DISPLAY_SIZE, DISPLAY_SIZE))
            return Session(image, pixel_values, self._answers(pixel_values))

    def draw_candidates(self, session: Session, emotion: str) -> list[dict]:
        """Samples explanations of an emotion, ranked by alignment score. Each draw of a session differs; the n-th draw
        for a picture is the same for every visitor."""
        with self._lock:
            set_seed(session.draws)
            session.draws += 1
            arguments = {"emotion": emotion, "num_candidates": self.num_candidates}
            inputs = {"pixel_values": session.pixel_values}
            return self.explain(inputs, **arguments, return_candidates=True)["candidates"]

    @torch.inference_mode()
    def _answers(self, pixel_values: torch.Tensor) -> list[Answer]:
        """Explains every emotion in one batch, greedily as the pipeline does, likeliest emotion first."""
        model, emotions = self.model, self.model.config.emotions
        features = model.encode_images(pixel_values.to(model.device, model.dtype))
        scores = model.emotion_scores(image_features=features)
        order = scores[0].argsort(descending=True, stable=True).tolist()
        rows = features.expand(len(emotions), -1, -1)
        sequences, _ = generate_ranked(
            model, self.explain.processor, rows, emotions=[emotions[label] for label in order], do_sample=False
        )
        fits = None
        if model.contrastive_head is not None:
            fits = model.alignment_score(sequences[:, 0], image_features=rows).unsqueeze(1)
        vad = model.vad_lookup(sequences[:, 0]) if model.vad_lookup.has_table else None
        answers = []
        for row in range(len(emotions)):
            one = slice(row, row + 1)
            outputs = {"emotion_scores": scores.cpu(), "sequences": sequences[one].cpu()}
            outputs |= {"alignment_scores": None if fits is None else fits[one].cpu()}
            result = self.explain.postprocess(outputs | {"vad": None if vad is None else vad[one].cpu()})
            words, maps = attention_map(model, self.explain.tokenizer, sequences[row, 0], image_features=features)
            answers.append(Answer(result, words, maps))
        return answers


class Examples(Mapping[str, Path]):
    """The example pictures by name, with their sessions, which every visitor can share because nobody changes them."""

    def __init__(self, explainer: Explainer, files: Mapping[str, Path]):
        self.explainer, self.files, self._sessions = explainer, files, dict[str, Session]()

    def __getitem__(self, name: str) -> Path:
        return self.files[name]

    def __iter__(self):
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def session(self, name: str, number: int = 0) -> Session:
        if name not in self._sessions:
            self._sessions[name] = self.explainer.start_session(self.files[name])
        known = self._sessions[name]
        return Session(known.image, known.pixel_values, known.answers, number)

    def prepare(self) -> None:
        """Explains all, so that a click on one is answered at once."""
        for name in self:
            self.session(name)


def build(explainer: Explainer, files: Mapping[str, Path]) -> gr.Blocks:
    """Lays out the page and connects its events; each `on_...` function handles one."""
    examples = Examples(explainer, files)
    first = next(iter(examples))
    can_rank = explainer.model.contrastive_head is not None
    with gr.Blocks(title="SEVLM", analytics_enabled=False, delete_cache=(KEEP_UPLOADS, KEEP_UPLOADS)) as demo:
        session = gr.State(None, time_to_live=KEEP_UPLOADS)
        page = gr.HTML(
            html_template=app_page.frame(explainer.name, explainer.is_small, examples, explainer.limits),
            js_on_load=app_page.script(),
            apply_default_css=False,
            elem_id="page",
        )
        with gr.Column(visible=False):  # for clients of the API
            painting = ImageUpload(label="Picture", type="filepath", image_mode=None)
            emotion = gr.Textbox(label="Emotion")
            answers = gr.JSON()
            asked, drawn = gr.Button(), gr.Button()

        def show(current: Session, caption: str = "") -> dict:
            html = app_page.view(current.image, current.answers, caption=caption, can_rank=can_rank)
            return {"number": current.number, "view": html}

        def on_open():
            current = examples.session(first)
            threading.Thread(target=examples.prepare, daemon=True).start()
            return current, show(current, first)

        def on_picture(event: gr.EventData):
            """Answers a visitor who chose an example or uploaded a file."""
            chosen = event._data if isinstance(event._data, dict) else {}
            number, name = chosen.get("number", 0), chosen.get("example")
            try:
                if name in examples:
                    current = examples.session(name, number)
                    return current, show(current, name)
                current = explainer.start_session(uploaded_path(chosen.get("path"), page))
            except UploadError as error:
                return gr.skip(), {"number": number, "error": str(error)}
            except Exception:
                traceback.print_exc()
                return gr.skip(), {"number": number, "error": "Something went wrong here. Try again in a moment."}
            current.number = number
            return current, show(current)

        def on_draw(current: Session | None, event: gr.EventData):
            """Writes more explanations of the emotion that a visitor looks at."""
            chosen = event._data if isinstance(event._data, dict) else {}
            about = {"number": chosen.get("number"), "emotion": chosen.get("emotion")}
            if current is None or current.number != about["number"]:
                return gr.skip(), about | {"candidates": f"<p>{GONE}</p>"}
            listed = app_page.candidates(explainer.draw_candidates(current, about["emotion"]))
            return current, about | {"candidates": listed}

        def current_session(current: Session | None) -> Session:
            if current is None:
                raise gr.Error(GONE)
            return current

        def known(label: str | None) -> str:
            if label not in explainer.model.config.emotions:
                raise gr.Error(f"Choose one of the emotions: {', '.join(explainer.model.config.emotions)}.")
            return label

        def explain(path: str | None):
            try:
                current = explainer.start_session(path) if path else current_session(None)
            except UploadError as error:
                raise gr.Error(str(error)) from error
            return current, current.named

        def explain_emotion(current: Session | None, label: str | None):
            return current_session(current).about(known(label))

        def draw(current: Session | None, label: str | None):
            return current, explainer.draw_candidates(current_session(current), known(label))

        demo.load(on_open, None, [session, page], api_visibility="private", show_progress="hidden")
        quietly = {"show_progress": "hidden", "api_visibility": "private"} | ONE_CALL_AT_A_TIME
        page.submit(on_picture, None, [session, page], **quietly)
        page.select(on_draw, session, [session, page], **quietly)
        painting.upload(explain, painting, [session, answers], api_name="explain", **ONE_CALL_AT_A_TIME)
        asked.click(explain_emotion, [session, emotion], answers, api_name="explain_emotion", **ONE_CALL_AT_A_TIME)
        drawn.click(draw, [session, emotion], [session, answers], api_name="candidates", **ONE_CALL_AT_A_TIME)
    return demo.queue(max_size=100)


def theme() -> gr.Theme:
    """System fonts, because others need a network, on the page's own ground."""
    fonts = {"font": ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]}
    fonts |= {"font_mono": ["ui-monospace", "monospace"]}
    return gr.themes.Base(**fonts).set(body_background_fill="#f5f4f1", body_background_fill_dark="#171716")


def launch(demo: gr.Blocks, explainer: Explainer, *, host: str | None, port: int | None, wait: bool = True):
    """Serves the page. Visitors can read only their uploads. Request size and queue length are limited."""
    megabytes = explainer.limits.megabytes
    return demo.launch(
        server_name=host,
        server_port=port,
        share=False,
        show_error=True,
        allowed_paths=[],
        max_file_size=int(megabytes * MEGABYTE),
        state_session_capacity=MAX_SESSIONS,
        app_kwargs={"middleware": [Middleware(RequestLimits, upload_megabytes=megabytes)]},
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=["api"],
        prevent_thread_lock=not wait,
        theme=theme(),
        css=app_page.style(),
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
