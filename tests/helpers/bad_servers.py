"""Servers that answer a request for an image in many wrong ways and a few right ones."""

import gzip
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count

from PIL import Image


TIMEOUT, MEGABYTES = 0.8, 2  # limits of a download; the reasons below contain them
_buffer = io.BytesIO()
Image.radial_gradient("L").resize((60, 40)).convert("RGB").save(_buffer, "PNG")
PICTURE = _buffer.getvalue()
SIZE = (60, 40)


def answer(*headers: str, body: bytes = PICTURE, status: str = "200 OK") -> Callable:
    return say("\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body)


def say(content: bytes) -> Callable:
    return lambda connection: connection.sendall(content)


def then(*steps: Callable) -> Callable:
    return lambda connection: [step(connection) for step in steps]


def wait(seconds: float) -> Callable:
    return lambda connection: time.sleep(seconds)


def drip(content: bytes) -> Callable:
    return then(*(step for i in range(len(content)) for step in (say(content[i : i + 1]), wait(TIMEOUT / 10))))


def endlessly(content: bytes) -> Callable:
    return lambda connection: [connection.sendall(content) for _ in count()]


def chunked(body: bytes = b"") -> Callable:
    return answer("Transfer-Encoding: chunked", body=body)


def moved(address: str) -> Callable:
    return answer(f"Location: {address}", "Content-Length: 0", body=b"", status="302 Found")


LENGTH = f"Content-Length: {len(PICTURE)}"
ZEROS = b"\0" * 2**16
LATE, MUCH = "takes too long: more than 0.8 seconds", r"more than 2 MB.*--max_megabytes"
CUT, REFUSED = "before the end", "RemoteProtocolError"
# Name -> what the server does, and the expected reason; None where the image is still read.
BEHAVIOURS = {
    "is correct": (answer(LENGTH), None),
    "sends no length": (answer(), None),
    "names another type": (answer(LENGTH, "Content-Type: text/html"), None),
    "compresses as announced": (answer("Content-Encoding: gzip", body=gzip.compress(PICTURE)), None),
    "sends a negative length": (answer("Content-Length: -5"), "bad Content-Length"),
    "sends letters as its length": (answer("Content-Length: many"), "bad Content-Length"),
    "hangs": (wait(5), LATE),
    "hangs after the headers": (then(answer(LENGTH, body=b""), wait(5)), LATE),
    "hangs in the picture": (then(answer(LENGTH, body=PICTURE[:99]), wait(5)), LATE),
    "drips headers": (drip(b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 999), LATE),
    "drips the picture": (then(answer(LENGTH, body=b""), drip(PICTURE)), LATE),
    "drips chunks": (then(chunked(), drip(b"1\r\na\r\n" * 99)), LATE),
    "sends 100 Continue forever": (endlessly(b"HTTP/1.1 100 Continue\r\n\r\n"), LATE),
    "redirects slowly forever": (then(wait(TIMEOUT / 3), moved("/a.png")), LATE),
    "announces more than it sends": (answer(f"Content-Length: {len(PICTURE) + 9}"), "peer closed connection"),
    "announces less than it sends": (answer(f"Content-Length: {len(PICTURE) - 99}"), "truncated"),
    "announces gigabytes": (answer("Content-Length: 99999999999"), MUCH),
    "sends without end": (then(answer(body=b""), endlessly(ZEROS)), MUCH),
    "sends chunks without end": (then(chunked(), endlessly(b"10000\r\n" + ZEROS + b"\r\n")), MUCH),
    "sends headers without end": (then(say(b"HTTP/1.1 200 OK\r\n"), endlessly(b"X-More: a\r\n")), REFUSED),
    "cuts a chunk": (chunked(b"fff\r\nabc"), f"{REFUSED}: peer closed"),
    "sends an invalid chunk size": (chunked(b"zzz\r\nabc"), f"{REFUSED}: illegal chunk"),
    "cuts compressed data": (answer("Content-Encoding: gzip", body=gzip.compress(PICTURE)[:-20]), CUT),
    "announces gzip and does not compress": (answer("Content-Encoding: gzip"), "announces gzip but"),
    "sends a compression bomb": (answer("Content-Encoding: gzip", body=gzip.compress(ZEROS * 500)), MUCH),
    "uses a compression nobody requested": (answer("Content-Encoding: br"), "not requested .br"),
    "sends a page": (answer("Content-Type: text/html", body=b"<html>gone</html>"), "sends text/html, not an image"),
    "sends nothing": (answer("Content-Length: 0", body=b""), "an empty file"),
    "has no content": (answer(body=b"", status="204 No Content"), "an empty file"),
    "ends at once": (wait(0), REFUSED),
    "speaks something else": (say(b"SSH-2.0-OpenSSH_9\r\n"), REFUSED),
    "answers with an error 404": (answer(status="404 Not Found", body=b""), "answers 404 Not Found"),
    "answers with an error 500": (answer(status="500 Oh", body=b""), "answers 500 Oh"),
    "redirects in circles": (moved("/a.png"), "TooManyRedirects"),
    "redirects to a file": (moved("file:///etc/passwd"), "not followed"),
    "redirects to FTP": (moved("ftp://127.0.0.1/a.png"), "not followed"),
    "redirects to nowhere": (answer(status="302 Found", body=b""), "answers 302"),
}


@contextmanager
def serving(talk: Callable) -> Iterator[str]:
    """Yields the URL of an image on a server that answers each request with `talk`."""
    server = socket.create_server(("127.0.0.1", 0))

    def talk_to(connection):
        with connection, suppress(OSError):  # the client has closed the connection
            connection.recv(2**16)
            talk(connection)

    def accept():
        with suppress(OSError):  # the server is closed
            while True:
                threading.Thread(target=talk_to, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/a.png"
    finally:
        server.close()
