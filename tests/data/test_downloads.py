# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Downloads: an image or a reason within the time and size limits, for any behaviour of the server."""

import asyncio
import re
import socket
import time

import pytest

from processing.images import _check_redirect, download, httpx, open_image, read_image
from tests.helpers.bad_servers import BEHAVIOURS, LENGTH, MEGABYTES, PICTURE, SIZE, TIMEOUT, answer, moved, serving


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_any_server_gives_an_image_or_a_reason_in_time(behaviour):
    talk, reason = BEHAVIOURS[behaviour]
    start = time.monotonic()
    with serving(talk) as address:
        if reason is None:
            assert open_image(address, TIMEOUT, None, MEGABYTES).size == SIZE
        else:
            with pytest.raises(ValueError, match=reason) as error:
                open_image(address, TIMEOUT, None, MEGABYTES)
            assert "\n" not in str(error.value)
    assert time.monotonic() - start < TIMEOUT + 2


def test_a_redirect_to_another_server_is_followed():
    with serving(answer(LENGTH)) as last, serving(moved(last)) as first:
        assert download(first, timeout=5)[0] == PICTURE


def test_no_redirect_leaves_encryption():
    request = httpx.Request("GET", "https://museum.example/a.png")
    response = httpx.Response(302, headers={"Location": "http://museum.example/a.png"}, request=request)
    with pytest.raises(ValueError, match="redirects to 'http://museum.example/a.png', which is not followed"):
        asyncio.run(_check_redirect(response))


def test_a_notebook_whose_event_loop_is_running_can_download():
    async def cell(address):
        return open_image(address, 5)

    with serving(answer(LENGTH)) as address:
        assert asyncio.run(cell(address)).size == SIZE


def test_size_and_time_limits_can_be_raised(processor):
    talk, _ = BEHAVIOURS["sends no length"]
    with serving(talk) as address:
        with pytest.raises(ValueError, match=f"{re.escape(address)}.*--max_megabytes"):
            processor(images=address, max_megabytes=0.0001)
        assert processor(images=address, max_megabytes=1, timeout=float("inf"))["pixel_values"].shape[0] == 1
    with pytest.raises(ValueError, match="the download failed .ConnectError"):
        read_image("http://127.0.0.1:1/a.png", 5)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://kunsthalle-zürich.invalid/bild.jpg", "xn--kunsthalle-zrich-uzb.invalid", 80),
        ("http://kunsthalle-zu\u0308rich.invalid/bild.jpg", "xn--kunsthalle-zrich-uzb.invalid", 80),
        ("http://kunsthalle-z%C3%BCrich.invalid/bild.jpg", "xn--kunsthalle-zrich-uzb.invalid", 80),
        ("http://xn--kunsthalle-zrich-uzb.invalid/bild.jpg", "xn--kunsthalle-zrich-uzb.invalid", 80),
        ("https://me:pass%40word@MÜNCHEN.invalid:8443/ü.jpg?a=@b#ä", "xn--mnchen-3ya.invalid", 8443),
        ("http://例え.invalid", "xn--r8jz45g.invalid", 80),
        ("http://museum.invalid/@/a.jpg", "museum.invalid", 80),
        ("http://museum.invalid%2F@other.invalid/a.jpg", "other.invalid", 80),
        ("http://museum.invalid%2Fa.jpg", "museum.invalid%2fa.jpg", 80),
    ],
)
def test_the_host_of_a_url_is_looked_up_in_ascii(monkeypatch, url, host, port):
    asked = []

    def look_up(host, port, *args, **kwargs):
        asked.append((host.decode() if isinstance(host, bytes) else host, port))
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(ValueError, match="the download failed .ConnectError"):
        download(url, 5)
    assert asked == [(host, port)]


@pytest.mark.parametrize(
    "url", ["http://", "http:///a.jpg", "ftp://museum.invalid/a.jpg", "museum", "http://♥.invalid/"]
)
def test_a_url_that_cannot_be_looked_up_is_refused(url):
    with pytest.raises(ValueError, match="the download failed .*check the URL"):
        download(url, 5)
