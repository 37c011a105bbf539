"""The app without a browser: uploads and requests it accepts or refuses, its API, and ten visitors at once."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.hub_fixtures import ROOT


pytest.importorskip("gradio", reason="gradio is missing: pip install -e '.[app]'")

import httpx  # noqa: E402
from gradio_client import Client, handle_file  # noqa: E402

import app  # noqa: E402
import app_uploads  # noqa: E402
from app_uploads import UploadError, UploadLimits, open_upload  # noqa: E402
from processing.artemis import EMOTIONS  # noqa: E402
from processing.toy_artemis import toy_scene  # noqa: E402
from processing.toy_paintings import paint_scene  # noqa: E402
from tests.helpers.app import serve  # noqa: E402


VISITORS = 10
FILE = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def explainer(checkpoint):
    return app.Explainer(checkpoint, UploadLimits(megabytes=2), num_candidates=4)


@pytest.fixture(scope="module")
def address(explainer, tmp_path_factory):
    with serve(explainer, tmp_path_factory.mktemp("examples")) as address:
        yield address


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(VISITORS):
        paint_scene(toy_scene(index), 96)[0].save(folder / f"{index}.png")
    return [folder / f"{index}.png" for index in range(VISITORS)]


def same(given: dict, expected: dict) -> bool:
    """Whether two answers are equal up to rounding by another batch size."""
    scores = ([answer["emotion_scores"][emotion] for emotion in EMOTIONS] for answer in (given, expected))
    return (
        all(given[name] == expected[name] for name in ("emotion", "explanation"))
        and np.allclose(*scores, atol=1e-5)
        and abs(given["alignment_score"] - expected["alignment_score"]) < 1e-4
    )


def test_ten_simultaneous_visitors_each_get_their_own_answers(address, explainer, pictures):
    explain = explainer.explain
    wanted = [EMOTIONS[index % len(EMOTIONS)] for index in range(VISITORS)]
    named = [explain(str(picture), do_sample=False) for picture in pictures]
    asked = [explain(str(p), emotion=e, do_sample=False) for p, e in zip(pictures, wanted, strict=True)]
    drawn = []
    for picture, emotion in zip(pictures, wanted, strict=True):
        torch.manual_seed(0)
        sampled = explain(str(picture), emotion=emotion, num_candidates=4, return_candidates=True, do_sample=True)
        drawn.append(sampled["candidates"])
    # Identical answers would hide a mix-up.
    assert len({answer["explanation"] for answer in asked}) == VISITORS
    together = threading.Barrier(VISITORS)

    def visit(number: int) -> list:
        visitor = Client(address, verbose=False)
        together.wait(timeout=120)
        first = visitor.predict(handle_file(pictures[number]), api_name="/explain")
        second = visitor.predict(wanted[number], api_name="/explain_emotion")
        third = visitor.predict(wanted[number], api_name="/candidates")
        return [first, second, third]

    with ThreadPoolExecutor(VISITORS) as threads:
        for number, (first, second, third) in enumerate(threads.map(visit, range(VISITORS))):
            assert same(first, named[number]) and same(second, asked[number]), number
            given = [(c["emotion"], c["explanation"]) for c in third]
            assert given == [(c["emotion"], c["explanation"]) for c in drawn[number]], number


def test_draws_differ_within_a_session_and_agree_between_visitors(explainer, pictures):
    mine, yours = explainer.start_session(pictures[0]), explainer.start_session(pictures[0])
    first, second = explainer.draw_candidates(mine, "awe"), explainer.draw_candidates(mine, "awe")
    assert first == explainer.draw_candidates(yours, "awe") and first != second


def test_all_emotions_are_explained_as_the_pipeline_explains_each(explainer, pictures):
    session = explainer.start_session(pictures[0])
    shares = [session.named["emotion_scores"][answer.result["emotion"]] for answer in session.answers]
    assert len(shares) == 9 and shares == sorted(shares, reverse=True)
    for answer in session.answers:
        alone = explainer.explain(str(pictures[0]), emotion=answer.result["emotion"])
        assert same(answer.result, alone)
        assert [entry["word"] for entry in alone["vad"]] == answer.words
        assert np.allclose(answer.maps.sum(axis=(1, 2)), 1, atol=1e-4) and len(answer.maps) == len(answer.words)


def test_a_question_without_a_picture_is_refused_with_a_reason(address):
    visitor = Client(address, verbose=False)
    with pytest.raises(Exception, match="no picture"):
        visitor.predict("awe", api_name="/explain_emotion")
    with pytest.raises(Exception, match="no picture"):
        visitor.predict("awe", api_name="/candidates")


@pytest.mark.parametrize("name", ["/etc/passwd", "app.py", "setup.cfg", "app_page.css", "../../etc/passwd"])
def test_no_file_of_the_server_can_be_read(address, name):
    for path in (name, str((ROOT / name).resolve())):
        assert httpx.get(f"{address}/gradio_api/file={path}").status_code in (403, 404)


def ask(address: str, file) -> str:
    """The app's answer to a request that names a file instead of uploading one."""
    event = httpx.post(f"{address}/gradio_api/call/explain", json={"data": [file]}).json()["event_id"]
    return httpx.get(f"{address}/gradio_api/call/explain/{event}", timeout=60).text


def test_paths_and_urls_are_refused_in_place_of_an_upload(address):
    for path in ("/etc/passwd", str(ROOT / "docs" / "painting.png"), "docs/painting.png"):
        for more in ({}, {"meta": None}, {"is_stream": True}, {"is_stream": True, "meta": {}}):
            assert "event: error" in ask(address, {"path": path, "meta": FILE} | more), (path, more)
    assert "Addresses are not opened" in ask(address, {"path": f"{address}/static/img/logo.svg", "meta": FILE})


def save(folder, name, image, **kwargs):
    image.save(folder / name, **kwargs)
    return folder / name


def test_images_of_all_common_formats_are_opened_upright_and_in_rgb(tmp_path):
    image = paint_scene(toy_scene(3), 64)[0]
    for name in ("a.jpg", "a.png", "a.webp", "a.gif", "a.bmp", "a.tif"):
        assert open_upload(save(tmp_path, name, image), UploadLimits()).mode == "RGB"
    # The content decides, not the name.
    shutil.copy(tmp_path / "a.jpg", tmp_path / "photo.txt")
    assert open_upload(tmp_path / "photo.txt", UploadLimits()).size == (64, 64)
    exif = Image.Exif()
    exif[274] = 6
    turned = open_upload(save(tmp_path, "b.jpg", image.resize((64, 32)), exif=exif), UploadLimits())
    assert turned.size == (32, 64)


@pytest.mark.parametrize(
    "content",
    [
        b"Dear Sir or Madam",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
        b"",
    ],
)
def test_files_that_are_not_images_are_refused(tmp_path, content):
    (tmp_path / "file.png").write_bytes(content)
    with pytest.raises(UploadError, match="not a picture" if content else "empty"):
        open_upload(tmp_path / "file.png", UploadLimits())


def test_damaged_and_oversized_images_are_refused_before_decoding(tmp_path):
    image = paint_scene(toy_scene(3), 128)[0]
    whole = save(tmp_path, "a.png", image).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UploadError, match="damaged"):
        open_upload(tmp_path / "half.png", UploadLimits())
    hundred = save(tmp_path, "hundred.png", Image.new("1", (10_000, 10_000)))
    with pytest.raises(UploadError, match=r"100 megapixels \(10,000 x 10,000\), and this app takes up to 50"):
        open_upload(hundred, UploadLimits())
    with pytest.raises(UploadError, match=r"400 megapixels \(20,000 x 20,000\)"):
        open_upload(save(tmp_path, "bomb.png", Image.new("1", (20_000, 20_000))), UploadLimits())
    assert open_upload(hundred, UploadLimits(megapixels=100)).size == (10_000, 10_000)
    with pytest.raises(UploadError, match="strip"):
        open_upload(save(tmp_path, "strip.png", Image.new("L", (30_000, 2))), UploadLimits())
    with pytest.raises(UploadError, match="up to 0.001"):
        open_upload(tmp_path / "a.png", UploadLimits(megabytes=0.001))


def test_a_single_candidate_is_refused():
    with pytest.raises(SystemExit):
        app.main(["--model", "anything", "--num_candidates", "1"])


def test_the_page_config_reports_no_analytics_and_loads_no_web_fonts(address):
    config = httpx.get(f"{address}/config").json()
    assert not config.get("is_space") and config["analytics_enabled"] is False
    assert "fonts.googleapis" not in httpx.get(address).text


def test_no_api_request_makes_the_server_contact_another_host(address):
    asked = []

    class Inside(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Inside)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    inside = f"http://127.0.0.1:{server.server_port}"
    ways = [{"path": inside}, {"url": inside}, {"path": None, "url": inside}, {"path": "/etc/passwd", "url": inside}]
    ways += [{"path": "file:///etc/passwd"}, {"path": inside, "is_stream": True}]
    try:
        for way in [*ways, *(way | {"meta": FILE} for way in ways), inside]:
            assert "event: error" in ask(address, way), way
        for path in (f"file={inside}", f"proxy={inside}"):
            assert httpx.get(f"{address}/gradio_api/{path}").status_code in (400, 403, 404)
    finally:
        server.shutdown()
        server.server_close()
    assert asked == []


def test_oversized_requests_of_every_kind_are_refused_with_a_reason(address):
    def chunks(megabytes):
        for _ in range(megabytes):
            yield b"a" * 2**20

    upload, call = f"{address}/gradio_api/upload", f"{address}/gradio_api/call/explain"
    large = httpx.post(upload, files={"files": ("a.png", b"a" * 3 * 2**20)})
    assert (large.status_code, "up to 2 MB" in large.text) == (413, True)
    several = httpx.post(upload, files=[("files", ("a.png", b"a" * 2**20))] * 4)
    assert several.status_code == 413
    for length in (None, "chunked"):
        body = {"content": chunks(8)} if length else {"json": {"data": ["a" * 2**23]}}
        refused = httpx.post(call, headers={"Content-Type": "application/json"}, **body)
        assert (refused.status_code, "more than 1 MB" in refused.text) == (413, True), length
    assert httpx.post(upload, files={"files": ("a.png", b"a" * 2**20)}).status_code == 200


def test_uploads_are_refused_while_the_disk_is_full(address, monkeypatch):
    monkeypatch.setattr(app_uploads, "MIN_FREE_BYTES", 2**60)
    refused = httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.png", b"a")})
    assert (refused.status_code, "no room" in refused.text) == (507, True)


@pytest.mark.parametrize("limit", ["0", "-1", "nan"])
def test_limits_that_are_not_above_zero_are_refused(limit, capsys):
    with pytest.raises(SystemExit):
        app.main(["--model", "no/model", f"--max_megapixels={limit}"])
    assert "must be above 0" in capsys.readouterr().err
