# Licensed under the Apache License, Version 2.0; see LICENSE.
"""A headless Chromium for the page's tests (`make browser` installs Debian's).

It resolves no host name, so a page that needs another server fails visibly.
"""

import base64
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


DESKTOP, PHONE = (1280, 900), (390, 844)
WAIT = 60  # seconds for an answer on a busy machine


@contextmanager
def open_browser() -> Iterator["webdriver.Chrome"]:  # noqa: F821 - selenium is optional
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing: pip install -e '.[dev]'")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium with its chromedriver: `make browser` installs them")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless=new",
        "--no-sandbox",  # containers run tests as root
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def set_screen(browser, size: tuple[int, int], scheme: str) -> None:
    """Sets the viewport, in CSS pixels, and the preferred color scheme ("light" or "dark")."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)


def wait_for(browser, condition: Callable, what: str):
    """Waits until `condition(browser)` is true and returns its value."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException, TimeoutException
    from selenium.webdriver.support.wait import WebDriverWait

    passing = [NoSuchElementException, StaleElementReferenceException]
    waiting = WebDriverWait(browser, WAIT, poll_frequency=0.1, ignored_exceptions=passing)
    try:
        return waiting.until(condition)
    except TimeoutException:
        text = browser.find_element("tag name", "body").text
        raise AssertionError(f"waited {WAIT} s for {what}; the page shows:\n{text}") from None


def whole_page(browser) -> bytes:
    """A PNG of the whole page."""
    height = browser.execute_script("return document.documentElement.scrollHeight")
    width = browser.execute_script("return window.innerWidth")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    return base64.b64decode(shot["data"])
