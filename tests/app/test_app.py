"""The page as people use it: in a browser, with mouse, touch and keyboard, on a desktop and on a phone.

    python -m pytest tests/app/test_app.py                                # skipped without a browser: `make browser`
    SEVLM_APP_MODEL=outputs/demo SEVLM_APP_SCREENSHOTS=outputs/app_screenshots python -m pytest tests/app/test_app.py

SEVLM_APP_MODEL replaces the tiny random model, SEVLM_APP_SCREENSHOTS saves screenshots of the page.
"""

import io
import os
import re
from base64 import b64decode
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image


pytest.importorskip("gradio", reason="gradio is missing: pip install -e '.[app]'")

import app  # noqa: E402
from app_uploads import UploadLimits  # noqa: E402
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
    wait_for(browser, lambda b: b.find_elements("css selector", "#page .answer"), "the first example's answer")


def one(page, selector: str):
    return page.find_element("css selector", selector)


def seen(page, selector: str) -> list:
    """The elements that are displayed. (One waits for it to be complete with `wait_for`.)"""
    return [element for element in page.find_elements("css selector", selector) if element.is_displayed()]


def upload(page, path: Path) -> None:
    one(page, ".choose input").send_keys(str(path))


def answered(page) -> None:
    """Waits for the answer about an uploaded picture. (A random model may find no words.)"""
    wait_for(page, lambda b: seen(b, ".painting[alt='Your picture']") and seen(b, ".answer"), "an answer")


def sentence(page) -> str:
    (shown,) = seen(page, ".answer .sentence")
    return shown.text


def choose(page, emotion: str) -> None:
    one(page, f".chip:has(input[value='{emotion}'])").click()


def emotion_named(page) -> str:
    return one(page, ".chip input:checked").get_attribute("value")


def save_screenshot(page, name: str) -> None:
    """Saves a screenshot of the whole page if SEVLM_APP_SCREENSHOTS is set."""
    folder = os.environ.get("SEVLM_APP_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{name}.png").write_bytes(whole_page(page))


def go_through(page, painting: Path) -> None:
    """Does everything that the page offers for a picture."""
    upload(page, painting)
    answered(page)
    choose(page, "sadness")
    one(page, ".compare").click()
    one(page, ".draw").click()
    wait_for(page, lambda b: seen(b, ".candidates li"), "more explanations")
    one(page, ".compare").click()
    seen(page, ".answer .numbers summary")[0].click()
    seen(page, ".word")[0].click()


@pytest.fixture
def saved_card(page):
    """Clicks on `Save as a picture` and returns the file's name and the image."""

    def save() -> tuple[str, Image.Image]:
        page.execute_script(
            """window.card = null;
            HTMLAnchorElement.prototype.click = function () {
              fetch(this.href).then(r => r.blob()).then(blob => {
                const reader = new FileReader();
                reader.onload = () => { window.card = [this.download, reader.result]; };
                reader.readAsDataURL(blob);
              });
            };"""
        )
        page.switch_to.active_element.send_keys("\ue007")  # Enter
        name, data = wait_for(page, lambda b: b.execute_script("return window.card"), "the card")
        return name, Image.open(io.BytesIO(b64decode(data.split(",")[1])))

    return save


def test_the_page_opens_with_an_answered_example(page):
    assert one(page, ".painting").get_attribute("alt").startswith("Example: ")
    assert sentence(page).startswith(emotion_named(page))


def test_an_uploaded_picture_is_answered_with_an_emotion_shares_and_an_explanation(page, painting):
    upload(page, painting)
    answered(page)
    shares = [re.search(r"<?(\d+)%", chip.text) for chip in seen(page, ".chip")]
    assert len(shares) == 9 and 95 <= sum(int(share.group(1)) for share in shares) <= 109
    assert emotion_named(page) == one(page, ".chip input").get_attribute("value"), "the likeliest comes first"
    assert sentence(page).startswith(emotion_named(page))


def test_another_emotion_swaps_the_sentence_and_two_can_be_compared(page, painting):
    upload(page, painting)
    answered(page)
    first = sentence(page)
    choose(page, "fear")
    assert sentence(page).startswith("fear") and sentence(page) != first
    one(page, ".compare").click()
    choose(page, "anger")
    left, right = seen(page, ".answer")
    assert {shown.text.split(",")[0] for shown in (left, right)} == {"fear", "anger"}
    assert left.rect["y"] == right.rect["y"], "next to each other on a desktop"
    one(page, ".compare").click()
    assert len(seen(page, ".answer")) == 1


def test_pointing_at_a_word_lights_up_the_picture_and_says_what_the_shade_means(page, painting):
    from selenium.webdriver import ActionChains

    upload(page, painting)
    answered(page)
    choose(page, "sadness")
    veils = set()
    for word in seen(page, ".word")[:3]:
        ActionChains(page).move_to_element(word).perform()
        assert word.text in seen(page, ".hint")[0].text
        opacity, image = page.execute_script(
            "const style = document.querySelector('.veil').style; return [style.opacity, style.backgroundImage]"
        )
        assert opacity == "1" and word.get_attribute("data-veil") in image
        veils.add(image)
    assert len(veils) > 1
    ActionChains(page).move_to_element(one(page, "h1")).perform()
    assert page.execute_script("return document.querySelector('.veil').style.opacity") == "0"


def test_more_explanations_are_sorted_by_fit(page, painting):
    upload(page, painting)
    answered(page)
    one(page, ".draw").click()
    wait_for(page, lambda b: seen(b, ".candidates li"), "more explanations")
    fits = [float(element.text) for element in seen(page, ".candidates .fit")]
    assert 1 <= len(fits) <= 4 and fits == sorted(fits, reverse=True)


def test_one_click_explains_an_example(page):
    example = page.find_elements("css selector", ".example")[3]
    example.click()
    name = example.get_attribute("data-example")
    wait_for(page, lambda b: seen(b, f".painting[alt='Example: {name}']") and seen(b, ".answer"), "its answer")


def test_bad_files_are_refused_with_a_reason_and_the_answer_before_stays(page, painting, folder):
    before = sentence(page)
    (folder / "broken.png").write_bytes(painting.read_bytes()[:2000])
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    (folder / "heavy.png").write_bytes(os.urandom(3_000_000))
    (folder / "a.pdf").write_bytes(b"%PDF-1.7 a catalogue")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    reasons = {"broken.png": "damaged", "huge.png": "100 megapixels", "heavy.png": "3 MB", "a.pdf": "PDF"}
    for name, reason in (reasons | {"phone.heic": "HEIC"}).items():
        upload(page, folder / name)
        wait_for(page, lambda b, reason=reason: reason in one(b, ".alert").text, name)
        assert one(page, ".alert[role=alert]").is_displayed() and sentence(page) == before
        save_screenshot(page, f"desktop_light_{name}")
    upload(page, painting)
    answered(page)
    assert not one(page, ".alert").is_displayed()


def test_everything_works_with_the_keyboard_alone(page, painting, saved_card):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    def focused():
        return page.switch_to.active_element

    def press(key):
        ActionChains(page).send_keys(key).perform()

    def tab_to(condition, what):
        for _ in range(60):
            press(Keys.TAB)
            if condition(focused()):
                return focused()
        raise AssertionError(f"the Tab key does not reach {what}")

    # The dialogue of the system cannot be operated here, so the file is given to the field that has the focus.
    tab_to(lambda e: e.get_attribute("type") == "file", "the choice of a file").send_keys(str(painting))
    answered(page)
    tab_to(lambda e: "word" in e.get_attribute("class"), "a word")
    assert focused().text in seen(page, ".hint")[0].text
    before = emotion_named(page)
    tab_to(lambda e: e.get_attribute("name") == "emotion", "the emotions")
    press(Keys.ARROW_DOWN)
    assert emotion_named(page) != before and sentence(page).startswith(emotion_named(page))
    tab_to(lambda e: "save" in e.get_attribute("class"), "the card")
    name, card = saved_card()
    assert name == f"{emotion_named(page).replace(' ', '-')}.png"
    assert card.width == 1080 and card.height > 1080 and len(card.convert("RGB").getcolors(2**24)) > 100
    tab_to(lambda e: "example" in e.get_attribute("class"), "an example").send_keys(Keys.ENTER)
    wait_for(page, lambda b: seen(b, ".painting[alt^='Example']") and seen(b, ".answer"), "an answer")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", ["desktop", "phone"])
def test_the_page_fits_the_screen_follows_its_color_scheme_and_is_accessible(
    browser, address, painting, screen, scheme
):
    size = {"desktop": DESKTOP, "phone": PHONE}[screen]
    set_screen(browser, size, scheme)
    load(browser, address)
    save_screenshot(browser, f"{screen}_{scheme}_start")
    go_through(browser, painting)
    save_screenshot(browser, f"{screen}_{scheme}")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert (brightness < 100) == (scheme == "dark"), ground
    targets = [element.rect for element in seen(browser, "#page :is(.button, .chip, .example, summary)")]
    assert len(targets) > 20 and min(min(r["width"], r["height"]) for r in targets) >= 44
    assert serious_findings(browser) == []


def serious_findings(browser) -> list[str]:
    """What axe-core finds serious or critical on the page."""
    script = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    browser.execute_script(script)
    results = browser.execute_async_script("axe.run('#page').then(arguments[arguments.length - 1])")
    assert len(results["passes"]) > 10
    found = [finding for finding in results["violations"] if finding["impact"] in ("serious", "critical")]
    return [f"{f['id']}: {node['html'][:200]} {node['failureSummary']}" for f in found for node in f["nodes"]]


def test_the_page_requests_nothing_from_other_hosts_and_logs_no_error(page, painting, address):
    go_through(page, painting)
    names = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in names if not name.startswith((address, "data:", "blob:"))] == []
    severe = [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []
