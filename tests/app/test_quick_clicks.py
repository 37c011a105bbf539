"""Quick clicks on the page: the newest one is answered, and an answer about an earlier one is not shown."""

import threading
from types import SimpleNamespace

import pytest


pytest.importorskip("gradio", reason="gradio is missing: pip install -e '.[app]'")

import app  # noqa: E402
from app_page import UploadLimits, draw_examples  # noqa: E402


SKIPPED = {"__type__": "update"}  # what `gr.skip()` returns


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return draw_examples(tmp_path_factory.mktemp("examples"))


@pytest.fixture
def explainer(checkpoint):
    return app.Explainer(checkpoint, UploadLimits(), num_candidates=2)


@pytest.fixture
def page(explainer, examples):
    """The functions that handle the events of the page, by name, as one visitor calls them."""
    demo, visitor = app.build(explainer, examples), SimpleNamespace(session_hash="visitor")

    def handler(function):
        given = function.__code__.co_varnames[: function.__code__.co_argcount]
        return lambda *inputs, request=visitor: function(*inputs, *([request] if "request" in given else []))

    page = SimpleNamespace(
        demo=demo, **{event.fn.__name__: handler(event.fn) for event in demo.fns.values() if event.fn}
    )

    def choose(path):
        page.click_picture(str(path))
        return page.on_picture(str(path))[0]

    page.choose = choose
    return page


def is_skipped(outputs) -> bool:
    return all(output == SKIPPED for output in (outputs if isinstance(outputs, list | tuple) else [outputs]))


@pytest.fixture
def slowly(explainer, monkeypatch):
    """Runs an event, and `meanwhile` when the model has its answer ready."""

    def slowly(event, meanwhile):
        ready, go_on, run, outputs = threading.Event(), threading.Event(), explainer._run_pipeline, []

        def slow(*args, **kwargs):
            answer = run(*args, **kwargs)
            ready.set()
            assert go_on.wait(60)
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(explainer, "_run_pipeline", slow)
            thread = threading.Thread(target=lambda: outputs.append(event()))
            thread.start()
            assert ready.wait(60)
            meanwhile()
            go_on.set()
            thread.join()
        return outputs[0]

    return slowly


def test_events_that_ask_the_model_keep_the_newest_click_and_clicks_are_recorded_first(page):
    events = page.demo.fns
    names = {"on_picture", "on_emotion", "on_draw", "on_word"}
    asking = [event for event in events.values() if event.fn and event.fn.__name__ in names]
    assert len(asking) == 5 and {event.trigger_mode for event in asking} == {"always_last"}
    assert {(event.concurrency_id, event.concurrency_limit) for event in asking} == {("model", 1)}
    for event in asking:
        if event.fn.__name__ != "on_draw":
            before = events[event.trigger_after]
            assert before.fn.__name__ == event.fn.__name__.replace("on_", "click_")
            assert (before.queue, before.trigger_mode) == (False, "multiple")


def test_the_answer_about_an_earlier_picture_is_not_shown(page, slowly, examples):
    first, second = map(str, examples[:2])
    page.click_picture(first)
    assert is_skipped(slowly(lambda: page.on_picture(first), lambda: page.click_picture(second)))
    session, _, _, answer, *_ = page.on_picture(second)
    assert session.path == second and session.named["emotion"] in answer


def test_the_answer_about_a_removed_picture_is_not_shown(page, slowly, examples):
    first = str(examples[0])
    page.click_picture(first)
    assert is_skipped(slowly(lambda: page.on_picture(first), page.on_clear_button))
    assert not is_skipped(page.on_picture(None))


def test_the_refusal_of_an_earlier_file_is_not_shown(page, examples, tmp_path):
    (tmp_path / "text.png").write_text("a painting")
    page.click_picture(str(tmp_path / "text.png"))
    assert "not a picture" in page.on_picture(str(tmp_path / "text.png"))[1]
    page.click_picture(str(examples[0]))
    assert is_skipped(page.on_picture(str(tmp_path / "text.png")))


def test_the_answer_about_an_earlier_emotion_is_not_shown(page, slowly, examples):
    session = page.choose(examples[0])
    page.click_emotion("fear")
    assert is_skipped(slowly(lambda: page.on_emotion(session, "fear"), lambda: page.click_emotion("anger")))
    _, comparison, *_ = page.on_emotion(session, "anger")
    assert "anger" in comparison and session.asked["emotion"] == "anger"


def test_an_emotion_that_was_chosen_for_the_picture_before_is_not_shown(page, examples):
    session = page.choose(examples[0])
    page.click_emotion("fear")
    page.click_picture(str(examples[1]))
    assert is_skipped(page.on_emotion(session, "fear")) and session.asked is None
    newer = page.on_picture(str(examples[1]))[0]
    # The answer about the new picture has emptied the choice.
    assert is_skipped(page.on_emotion(newer, "fear"))
    page.click_emotion("fear")
    assert not is_skipped(page.on_emotion(newer, "fear"))


def test_candidates_are_about_the_emotion_that_is_chosen_and_not_about_the_last_answer(page, slowly, examples):
    session = page.choose(examples[0])
    page.click_emotion("fear")
    page.on_emotion(session, "fear")
    page.click_emotion("anger")  # its answer is not there yet
    _, listed, numbers = page.on_draw(session)
    assert "explanations of anger" in listed and "fear" not in listed
    assert {candidate["emotion"] for candidate in numbers[-1]["candidates"]} == {"anger"}
    assert is_skipped(slowly(lambda: page.on_draw(session), lambda: page.click_emotion("awe")))
    assert is_skipped(slowly(lambda: page.on_draw(session), lambda: page.click_picture(str(examples[1]))))


def test_the_map_of_an_earlier_word_emotion_or_picture_is_not_shown(page, explainer, examples, monkeypatch):
    session = page.choose(examples[0])
    page.click_emotion("awe")
    page.on_emotion(session, "awe")
    page.click_word(0)
    assert "(awe)" in page.on_word(session, 0)
    overlay = explainer.attention_overlay
    for newer in (lambda: page.click_word(1), lambda: page.click_emotion("fear"), lambda: page.click_picture("b.png")):
        page.click_picture(str(examples[0]))
        page.click_emotion("awe")
        page.click_word(0)
        with monkeypatch.context() as patch:
            patch.setattr(explainer, "attention_overlay", lambda *args, newer=newer: newer() or overlay(*args))
            assert is_skipped(page.on_word(session, 0))
        assert is_skipped(page.on_word(session, 0)), "it is not even started"


def test_visitors_and_clients_of_the_api_do_not_disturb_one_another(page, examples):
    session = page.choose(examples[0])
    other = SimpleNamespace(session_hash="other")
    page.click_picture(str(examples[1]), request=other)
    page.click_emotion("fear")
    assert not is_skipped(page.on_emotion(session, "fear"))
    assert not is_skipped(page.on_emotion(session, "anger", request=SimpleNamespace(session_hash="api")))


def test_the_latest_clicks_of_a_limited_number_of_visitors_are_kept(monkeypatch):
    monkeypatch.setattr(app, "MAX_SESSIONS", 2)
    latest = app.LatestClicks()
    visitors = [SimpleNamespace(session_hash=name) for name in "abc"]
    for visitor in visitors:
        latest.record(visitor, picture="a.png")
    assert [latest.of(visitor) is None for visitor in visitors] == [True, False, False]
