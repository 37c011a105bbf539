# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Pictures of the web: whole, or a reason, within the time and the size that were given, whatever the server does."""

import re
import time
from urllib.request import Request

import pytest

from processing.images import _check_redirect, download
from processing.images import open_image, read_image
from tests.helpers.bad_servers import BEHAVIOURS, LENGTH, MEGABYTES, PICTURE, SIZE, TIMEOUT, answer, moved, serving


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_whatever_a_server_does_there_is_a_picture_or_a_reason_in_time(behaviour):
    talk, reason = BEHAVIOURS[behaviour]
    began = time.monotonic()
    with serving(talk) as address:
        if reason is None:
            assert open_image(address, TIMEOUT, None, MEGABYTES).size == SIZE
        else:
            with pytest.raises(ValueError, match=reason) as error:
                open_image(address, TIMEOUT, None, MEGABYTES)
            assert "\n" not in str(error.value)
    assert time.monotonic() - began < TIMEOUT + 2


def test_a_redirection_to_another_server_is_followed_and_shares_the_time():
    with serving(answer(LENGTH)) as last, serving(moved(last)) as first:
        assert download(first, timeout=5)[0] == PICTURE


def test_no_redirection_leaves_encryption():
    request = Request("https://museum.example/a.png")
    with pytest.raises(ValueError, match="sends on to 'http://museum.example/a.png', which is not followed"):
        _Redirections().redirect_request(request, None, 302, "Found", {}, "http://museum.example/a.png")


def test_size_and_time_can_be_raised_where_pictures_are_opened(processor):
    talk, _ = BEHAVIOURS["says no length"]
    with serving(talk) as address:
        with pytest.raises(ValueError, match=f"{re.escape(address)}.*--max_megabytes"):
            processor(images=address, max_megabytes=0.0001)
        assert processor(images=address, max_megabytes=1, timeout=float("inf"))["pixel_values"].shape[0] == 1
    with pytest.raises(ValueError, match="URLError.*refused"):
        read_image("http://127.0.0.1:1/a.png", 5)
