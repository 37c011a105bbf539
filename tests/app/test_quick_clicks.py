"""Quick clicks on the page with a slow model: everything on it speaks of the same picture, emotion and word."""

import json
import time

import pytest


pytest.importorskip("gradio", reason="gradio is missing: pip install -e '.[app]'")

import app  # noqa: E402
from app_page import draw_examples  # noqa: E402
from app_uploads import UploadLimits  # noqa: E402
from processing.toy_artemis import toy_scene  # noqa: E402
from processing.toy_paintings import paint_scene  # noqa: E402
from tests.helpers.app import serve  # noqa: E402
from tests.helpers.browser import DESKTOP, open_browser, set_screen, wait_for  # noqa: E402


SLOWNESS = 0.7  # seconds that the model takes more


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        set_screen(browser, DESKTOP, "light")
        yield browser


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(3):
        paint_scene(toy_scene(index), 96)[0].save(folder / f"{index}.png")
    return [folder / f"{index}.png" for index in range(3)]


@pytest.fixture(scope="module")
def served(browser, checkpoint, tmp_path_factory):
    """The address of a page whose model is slow, and its explainer."""
    explainer = app.Explainer(checkpoint, UploadLimits(), num_candidates=2)
    answer, draw = explainer._answers, explainer.draw_candidates

    def slow_answer(pixel_values):
        time.sleep(SLOWNESS)
        return answer(pixel_values)

    def slow_draw(session, emotion):
        time.sleep(SLOWNESS)
        return draw(session, emotion)

    explainer._answers, explainer.draw_candidates = slow_answer, slow_draw
    with serve(explainer, tmp_path_factory.mktemp("examples")) as address:
        yield address, explainer


def open_page(browser, address):
    browser.get(address)
    wait_for(browser, lambda b: b.find_elements("css selector", "#page .answer"), "the first example's answer")


def facts(browser) -> dict:
    """What the page says about its picture."""
    return browser.execute_script(
        """const view = document.querySelector("#page .view");
        const shown = [...view.querySelectorAll(".answer:not([hidden])")];
        return {
          scores: view.dataset.scores, picture: view.querySelector(".painting").src,
          emotion: view.querySelector(".chip input:checked").value,
          sentences: shown.map(one => [one.dataset.emotion, one.dataset.explanation]),
        };"""
    )


def wait_for_rest(browser) -> None:
    """Waits until the page has an answer and nothing is pending for longer than the model takes."""
    wait_for(browser, lambda b: b.find_elements("css selector", "#page .answer"), "an answer")
    time.sleep(2 * SLOWNESS + 1)


def is_about(browser, session) -> bool:
    shown = facts(browser)
    expected = {answer.result["emotion"]: answer.result["explanation"] for answer in session.answers}
    scores = json.loads(shown["scores"])
    return all(abs(scores[name] - share) < 1e-5 for name, share in session.named["emotion_scores"].items()) and all(
        expected[emotion] == explanation for emotion, explanation in shown["sentences"]
    )


def draw_examples_sessions(explainer, tmp_path):
    return {name: explainer.start_session(file) for name, file in draw_examples(tmp_path).items()}


@pytest.mark.parametrize("gap", [0, 0.2, 0.9])
def test_of_quickly_chosen_pictures_the_last_one_is_shown_with_its_own_answer(served, browser, pictures, gap):
    address, explainer = served
    open_page(browser, address)
    field = browser.find_element("css selector", ".choose input")
    for picture in pictures:
        field.send_keys(str(picture))
        time.sleep(gap)
    wait_for_rest(browser)
    sessions = [explainer.start_session(picture) for picture in pictures]
    assert [is_about(browser, session) for session in sessions] == [False, False, True]


def test_an_example_that_is_clicked_while_an_upload_is_answered_stays(served, browser, pictures, tmp_path):
    address, explainer = served
    open_page(browser, address)
    browser.find_element("css selector", ".choose input").send_keys(str(pictures[0]))
    time.sleep(0.2)
    example = browser.find_elements("css selector", ".example")[2]
    example.click()
    wait_for_rest(browser)
    assert example.get_attribute("aria-label") == browser.find_element("css selector", ".painting").get_attribute(
        "alt"
    )
    sessions = draw_examples_sessions(explainer, tmp_path)
    assert is_about(browser, sessions[example.get_attribute("data-example")])


@pytest.mark.parametrize("gap", [0, 0.05, 0.3])
def test_quick_clicks_on_emotions_and_words_show_the_last_one(served, browser, pictures, gap):
    address, explainer = served
    open_page(browser, address)
    browser.find_element("css selector", ".choose input").send_keys(str(pictures[1]))
    wait_for_rest(browser)
    for emotion in ("fear", "anger", "awe", "sadness"):
        browser.find_element("css selector", f".chip:has(input[value='{emotion}'])").click()
        time.sleep(gap)
    assert facts(browser)["emotion"] == "sadness" and facts(browser)["sentences"][0][0] == "sadness"
    assert is_about(browser, explainer.start_session(pictures[1]))
    words = [word for word in browser.find_elements("css selector", ".word") if word.is_displayed()][:3]
    for word in words:
        word.click()
        time.sleep(gap)
    veil = browser.execute_script("return document.querySelector('.veil').style.backgroundImage")
    assert words[-1].get_attribute("data-veil") in veil
    hint = next(one.text for one in browser.find_elements("css selector", ".hint") if one.is_displayed())
    assert hint.startswith(f"“{words[-1].text}”")


def test_more_explanations_appear_under_the_emotion_they_were_asked_for_and_never_under_another_picture(
    served, browser, pictures
):
    address, _ = served
    open_page(browser, address)
    browser.find_element("css selector", ".choose input").send_keys(str(pictures[0]))
    wait_for_rest(browser)
    browser.find_element("css selector", ".chip:has(input[value='fear'])").click()
    browser.find_element("css selector", ".draw").click()
    browser.find_element("css selector", ".chip:has(input[value='anger'])").click()
    wait_for_rest(browser)
    listed = browser.execute_script(
        "return [...document.querySelectorAll('.answer')].filter(one => one.querySelector('.candidates li'))"
        ".map(one => one.dataset.emotion)"
    )
    assert listed == ["fear"]
    browser.find_element("css selector", ".draw").click()
    browser.find_element("css selector", ".choose input").send_keys(str(pictures[1]))
    wait_for_rest(browser)
    assert not browser.find_elements("css selector", ".candidates li")


def test_two_tabs_have_their_own_pictures(served, browser, pictures):
    address, explainer = served
    tabs = [browser.current_window_handle]
    browser.switch_to.new_window("tab")
    tabs.append(browser.current_window_handle)
    try:
        for tab in tabs:
            browser.switch_to.window(tab)
            open_page(browser, address)
        for tab, picture in zip(tabs, pictures, strict=False):
            browser.switch_to.window(tab)
            browser.find_element("css selector", ".choose input").send_keys(str(picture))
        for tab, picture in zip(tabs, pictures, strict=False):
            browser.switch_to.window(tab)
            wait_for_rest(browser)
            assert is_about(browser, explainer.start_session(picture))
            browser.find_element("css selector", ".draw").click()
            wait_for(browser, lambda b: b.find_elements("css selector", ".candidates li"), "more explanations")
    finally:
        browser.switch_to.window(tabs[1])
        browser.close()
        browser.switch_to.window(tabs[0])
