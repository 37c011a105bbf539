"""The page as people use it: in a browser, with mouse and keyboard, on a desktop and on a phone.

    python -m pytest tests/app/test_app.py                                # skipped without a browser: `make browser`
    SEVLM_APP_MODEL=outputs/demo SEVLM_APP_SCREENSHOTS=outputs/app_screenshots python -m pytest tests/app/test_app.py

SEVLM_APP_MODEL replaces the tiny random model, SEVLM_APP_SCREENSHOTS saves screenshots of the page.
"""

import os
import re
from pathlib import Path

import pytest
from PIL import Image


pytest.importorskip("gradio", reason="gradio is missing: pip install -e '.[app]'")

import app  # noqa: E402
from app_page import UploadLimits  # noqa: E402
from processing.toy_artemis import toy_scene  # noqa: E402
from processing.toy_paintings import paint_scene  # noqa: E402
from tests.helpers.app import serve  # noqa: E402
from tests.helpers.browser import DESKTOP, PHONE, open_browser, set_screen, wait_for, whole_page  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def address(folder, checkpoint):
    """The page on a free port."""
    model = os.environ.get("SEVLM_APP_MODEL", checkpoint)
    with serve(app.Explainer(model, UploadLimits(megabytes=2), num_candidates=4), folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def painting(folder):
    paint_scene(toy_scene(713), 256)[0].save(folder / "painting.png")
    return folder / "painting.png"


@pytest.fixture
def page(browser, address):
    """The page, newly loaded, on a light desktop."""
    set_screen(browser, DESKTOP, "light")
    load(browser, address)
    browser.get_log("browser")
    return browser


def load(browser, address: str) -> None:
    browser.get(address)
    wait_for(browser, lambda b: b.find_elements("css selector", "#examples button img"), "the page")


def text(page, name: str) -> str:
    return page.find_element("id", name).text


def upload(page, path: Path) -> None:
    page.find_element("css selector", "#painting input[type=file]").send_keys(str(path))


def answer(page) -> str:
    """Waits for the answer and returns its text. (A random model may find no words.)"""
    wait_for(page, lambda b: b.find_elements("css selector", "#answer article"), "an answer")
    return text(page, "answer")


def choose(page, name: str, label: str) -> None:
    for choice in page.find_elements("css selector", f"#{name} label"):
        if choice.text.strip() == label:
            return choice.click()
    raise AssertionError(f"#{name} offers no {label!r}: {text(page, name)}")


def unfold(page, name: str) -> None:
    page.find_element("css selector", f"#{name} button").click()


def save_screenshot(page, name: str) -> None:
    """Saves a screenshot of the whole page if SEVLM_APP_SCREENSHOTS is set."""
    folder = os.environ.get("SEVLM_APP_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{name}.png").write_bytes(whole_page(page))


def go_through(page, painting: Path) -> None:
    """Does everything that the page offers for a picture."""
    upload(page, painting)
    answer(page)
    choose(page, "emotion", "sadness")
    wait_for(page, lambda b: "sadness" in text(b, "comparison"), "the other emotion's explanation")
    unfold(page, "more-explanations")
    wait_for(page, lambda b: b.find_element("id", "draw"), "the button").click()
    wait_for(page, lambda b: b.find_elements("css selector", "#candidates li"), "candidates")
    unfold(page, "where")
    wait_for(page, lambda b: b.find_elements("css selector", "#word label"), "words")[1].click()
    wait_for(page, lambda b: b.find_elements("css selector", "#attention img"), "the attention")


def test_an_uploaded_picture_is_answered_with_an_emotion_scores_and_an_explanation(page, painting):
    upload(page, painting)
    shown = answer(page)
    assert re.search(r"alignment [+-]\d", shown)
    rows = page.find_elements("css selector", "#scores li")
    assert [row.text.split("\n")[0] for row in rows][:2] == ["amusement", "awe"] and len(rows) == 9
    shares = [int(re.search(r"(\d+)%", row.text).group(1)) for row in rows]
    assert 95 <= sum(shares) <= 105
    words = page.find_elements("css selector", "#answer .sevlm-word")
    assert all(re.search(r"valence [+-]", word.get_attribute("title")) for word in words)


def test_another_emotion_is_explained_next_to_the_first(page, painting):
    upload(page, painting)
    first = answer(page)
    choose(page, "emotion", "fear")
    wait_for(page, lambda b: "fear" in text(b, "comparison"), "fear")
    named, asked = page.find_elements("css selector", "#comparison article")
    assert named.text == first and asked.text != first
    # Next to each other on a desktop.
    assert named.rect["y"] == asked.rect["y"] and named.rect["x"] < asked.rect["x"]


def test_candidates_are_sorted_by_fit_and_a_word_shows_its_attention_map(page, painting):
    go_through(page, painting)
    fits = [float(element.text) for element in page.find_elements("css selector", "#candidates .sevlm-fit")]
    assert 1 <= len(fits) <= 4 and fits == sorted(fits, reverse=True)
    (image,) = page.find_elements("css selector", "#attention img")
    word = page.find_elements("css selector", "#word label")[1].text
    assert repr(word) in image.get_attribute("alt")
    assert page.execute_script("return arguments[0].naturalWidth", image) > 0


def test_one_click_explains_an_example(page):
    page.find_element("css selector", "#examples button").click()
    answer(page)
    assert page.find_elements("css selector", "#painting img")


def test_bad_files_are_refused_with_a_reason_and_a_good_one_works_afterwards(page, painting, folder):
    broken = folder / "broken.png"
    broken.write_bytes(painting.read_bytes()[:2000])
    upload(page, broken)
    wait_for(page, lambda b: "damaged" in text(b, "alert"), "the message")
    assert page.find_element("css selector", "#alert [role=alert]").is_displayed()
    assert not page.find_elements("css selector", "#answer article")
    save_screenshot(page, "desktop_light_damaged")

    load(page, page.current_url)
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    upload(page, folder / "huge.png")
    wait_for(page, lambda b: "100 megapixels" in text(b, "alert"), "the message")
    assert "up to 50" in text(page, "alert")
    save_screenshot(page, "desktop_light_100_megapixels")

    upload(page, painting)
    answer(page)
    assert text(page, "alert") == ""


def test_the_browser_refuses_a_file_above_the_limit(page, folder):
    (folder / "heavy.png").write_bytes(os.urandom(3_000_000))
    upload(page, folder / "heavy.png")
    wait_for(
        page, lambda b: re.search(r"(?i)file.*(size|large)", b.find_element("tag name", "body").text), "a message"
    )
    save_screenshot(page, "desktop_light_too_heavy")


def test_everything_works_with_the_keyboard_alone(page):
    from selenium.webdriver.common.keys import Keys

    def focused():
        return page.switch_to.active_element

    def tab_to(condition, what):
        for _ in range(60):
            focused().send_keys(Keys.TAB)
            if condition(focused()):
                return focused()
        raise AssertionError(f"the Tab key does not reach {what}")

    tab_to(lambda e: e.find_elements("css selector", "img") and "gallery" in e.get_attribute("class"), "an example")
    focused().send_keys(Keys.ENTER)
    answer(page)
    tab_to(lambda e: e.get_attribute("type") == "radio", "the emotions").send_keys(Keys.SPACE)
    wait_for(page, lambda b: b.find_elements("css selector", "#comparison article"), "an explanation")
    tab_to(lambda e: e.tag_name == "button" and "More explanations" in e.text, "the candidates").send_keys(Keys.ENTER)
    wait_for(page, lambda b: b.find_element("id", "draw"), "the button")
    tab_to(lambda e: e.get_attribute("id") == "draw", "the button").send_keys(Keys.ENTER)
    wait_for(page, lambda b: b.find_elements("css selector", "#candidates li"), "candidates")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", ["desktop", "phone"])
def test_the_page_fits_the_screen_and_follows_its_color_scheme(browser, address, painting, screen, scheme):
    size = {"desktop": DESKTOP, "phone": PHONE}[screen]
    set_screen(browser, size, scheme)
    load(browser, address)
    save_screenshot(browser, f"{screen}_{scheme}_empty")
    go_through(browser, painting)
    save_screenshot(browser, f"{screen}_{scheme}")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert (brightness < 100) == (scheme == "dark"), ground


def test_the_page_requests_nothing_from_other_hosts_and_logs_no_error(page, painting, address):
    go_through(page, painting)
    names = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in names if not name.startswith((address, "data:", "blob:"))] == []
    severe = [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []
