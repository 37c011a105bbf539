# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Files of the web: whole, and within a time and a size, whatever the server does."""

import io
import ssl
import time
import zlib
from functools import cache, partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)


TIMEOUT = 60.0  # seconds
MAX_MEGABYTES = 256.0
_CONNECT_TIMEOUT = 15.0  # seconds for each address of a host, of which there may be several
_CHUNK = 2**20
_SCHEMES = ("http", "https")


def download(address: str, timeout: float | None = None, max_megabytes: float | None = None) -> tuple[bytes, str]:
    """What a server sends for an address, and what it says that it is ("image/jpeg").

    Args:
        address: begins with http:// or https://. Redirections are followed to such addresses, and never from https to
            http.
        timeout: seconds for all of it, from the connection to the last byte; None: 60. `float("inf")` waits for ever.
        max_megabytes: of the file, unpacked if it comes packed; None: 256.

    Raises:
        ValueError: the server refuses, sends too much, or ends too early; it takes too long.
        OSError: it cannot be reached.
    """
    timeout = TIMEOUT if timeout is None else timeout
    limit = MAX_MEGABYTES if max_megabytes is None else max_megabytes
    # Museums' servers turn away those who do not say who they are.
    request = Request(quote(address, safe="%/:?#[]@!$&'()*+,;=~"), headers={"User-Agent": "SEVLM"})
    request.deadline = time.monotonic() + timeout
    try:
        with _opener().open(request, timeout=min(timeout, _CONNECT_TIMEOUT)) as answer:
            return _read(answer, limit), answer.headers.get_content_type()
    except HTTPError as error:
        with error:
            raise ValueError(f"the server answers {error.code} {' '.join(str(error.reason).split())}") from error
    except HTTPException as error:
        raise ValueError(f"the server's answer is no HTTP ({type(error).__name__}: {str(error).strip()})") from error
    except OSError as error:
        if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
            raise ValueError(
                f"the server takes too long: more than {timeout:g} seconds for all of it, or {_CONNECT_TIMEOUT:g} "
                "for the connection. Try again later, or with a longer `timeout` (command line: --timeout)"
            ) from error
        raise


def _read(answer: HTTPResponse, max_megabytes: float) -> bytes:
    too_much = ValueError(
        f"the server sends more than {max_megabytes:g} MB. If it is a picture all the same, set `max_megabytes` "
        "(command line: --max_megabytes)"
    )
    limit = int(max_megabytes * 2**20)
    if (answer.length or 0) > limit:
        raise too_much
    packing = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if packing not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise ValueError(f"the server packs the file in a way that was not asked for ({packing})")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32) if packing not in ("", "identity") else None
    parts, size = [], 0
    while part := answer.read(_CHUNK):
        if unpacker is not None:
            try:
                # A few kilobytes may be packed gigabytes.
                part = unpacker.decompress(part, limit + 1 - size)
            except zlib.error as error:
                raise ValueError(f"what the server sends is no {packing}, as it says it is ({error})") from error
        parts.append(part)
        size += len(part)
        if size > limit:
            raise too_much
    if answer.length or (unpacker is not None and not unpacker.eof):
        missing = f"{answer.length:,} bytes" if answer.length else "some bytes"
        raise ValueError(f"the connection ended {missing} before the end of the file: try again")
    if not size:
        raise ValueError(f"the server sends an empty file ({answer.status} {answer.reason})")
    return b"".join(parts)


class _TimelyReader(io.RawIOBase):
    """What arrives at a socket until a deadline. (A socket's own timeout begins anew with every byte.)"""

    def __init__(self, raw: io.RawIOBase, sock, deadline: float):
        self._raw, self._sock, self._deadline = raw, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int | None:
        self._sock.settimeout(_time_left(self._deadline))
        return self._raw.readinto(buffer)

    def close(self):
        self._raw.close()
        super().close()


class _TimelyResponse(HTTPResponse):
    def __init__(self, sock, *args, deadline: float, **kwargs):
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_TimelyReader(self.fp.detach(), sock, deadline))


class _TimelyConnection(HTTPConnection):
    def __init__(self, *args, deadline: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.response_class = partial(_TimelyResponse, deadline=deadline)


class _TimelySecureConnection(_TimelyConnection, HTTPSConnection):
    pass


class _Http(HTTPHandler):
    def http_open(self, request):
        return self.do_open(partial(_TimelyConnection, deadline=request.deadline), request)


class _Https(HTTPSHandler):
    def __init__(self):
        super().__init__()
        self._certificates = ssl.create_default_context()

    def https_open(self, request):
        connect = partial(_TimelySecureConnection, deadline=request.deadline)
        return self.do_open(connect, request, context=self._certificates)


class _Redirections(HTTPRedirectHandler):
    def redirect_request(self, request, fp, code, message, headers, address):
        scheme = urlsplit(address).scheme.lower()
        if scheme not in _SCHEMES or (scheme, request.type) == ("http", "https"):
            # Others could read files of this machine, or what was meant to travel encrypted.
            raise ValueError(f"the server sends on to {address[:200]!r}, which is not followed")
        following = super().redirect_request(request, fp, code, message, headers, address)
        if following is not None:
            following.deadline = request.deadline
            request.timeout = min(request.timeout, _time_left(request.deadline))
        return following


def _time_left(deadline: float) -> float | None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is over")
    return left if left < 1e6 else None  # seconds; no socket takes infinity


@cache
def _opener() -> OpenerDirector:
    """As `urllib.request.build_opener`, without what opens files and FTP."""
    opener = OpenerDirector()
    for handler in (ProxyHandler, UnknownHandler, _Http, _Https, HTTPDefaultErrorHandler, _Redirections):
        opener.add_handler(handler())
    opener.add_handler(HTTPErrorProcessor())
    return opener
