"""People are recognised in a browser, or by whatever speaks HTTP: one encoder and one gallery, kept in memory.

GET    /                     a page on which one drops photographs, enrols and removes people
GET    /people               who is enrolled, the threshold, the encoder
POST   /people               enrol: a form with `name` and `photographs`; 201 for a new person, else 200
DELETE /people?name=NAME     (not a part of the path, for a person may be called ".." or "a/b")
POST   /identify             a form with `photographs`: for each the name, the score and the verdict
POST   /verify               a form with two `photographs`: the score, and whether that is the same person

Answers are JSON; of what is refused, {"error": a sentence}. Photographs stay in memory and are never written to disk.

Whoever reaches the address may do all of this: there is neither a login nor encryption, and it is for the users of one
machine unless another address is asked for. Browsers are kept from doing it for other websites: by the Host header
(their names, led to this address), and by Sec-Fetch-Site or Origin (their scripts and forms).
"""

import contextlib
import io
import ipaddress
import json
import logging
import os
import pathlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from metricjax.data.decoder import UNREADABLE
from metricjax.ground.extras import extra
from metricjax.ground.names import printable
from metricjax.recognition.gallery_file import name_of
from metricjax.recognition.recognizer import Recognizer

with extra("serve"):
    import flask
    import waitress
    from waitress.channel import HTTPChannel
    from waitress.task import ErrorTask
    from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

__all__ = ["LONGEST_NAME", "MOST_BYTES", "MOST_PHOTOGRAPHS", "application", "bound", "is_loopback", "run"]

MOST_BYTES = 32 * 2**20  # of a request
MOST_PHOTOGRAPHS = 16  # in a request
LONGEST_NAME = 200  # characters; all names of a gallery take the room of the longest
MOST_CONNECTIONS = 40  # each may hold a request in memory
THREADS = 4  # photographs are decoded side by side, and embedded one after the other
PAGE = pathlib.Path(__file__).parent / "page"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


# --- what is asked and answered -------------------------------------------------------------------------------------


class _Refused(Exception):
    """An answer that is an error: its status and its sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class _InMemory(flask.Request):
    def _get_file_stream(self, *_, **__) -> io.BytesIO:  # larger uploads would go to a file on the disk otherwise
        return io.BytesIO()


def _photographs(least: int = 1, most: int = MOST_PHOTOGRAPHS) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the files of the request."""
    files = [file for file in flask.request.files.getlist("photographs") if file.filename]
    if not least <= len(files) <= most:
        wanted = f"{least}" if least == most else f"{least} to {most}"
        raise _Refused(400, f"photographs holds {len(files)} files; wanted {wanted}")
    return ((printable(str(file.filename)), file.read()) for file in files)


def _embedded(recognizer: Recognizer, **number: int) -> tuple[dict[int, np.ndarray], list[dict[str, Any]]]:
    """Embeddings by the numbers of their files, and for each file its name, with an error where it cannot be read."""
    embeddings, notes = {}, []
    for index, (name, photograph) in enumerate(_photographs(**number)):
        notes.append({"file": name})
        try:
            embeddings[index] = recognizer.embedding(photograph)
        except UNREADABLE as error:
            notes[index]["error"] = f"{name} cannot be read: {error}"
    if not embeddings:
        raise _Refused(422, notes[0]["error"])
    return embeddings, notes


def _identify(recognizer: Recognizer):
    embeddings, notes = _embedded(recognizer)
    for index, embedding in embeddings.items():
        name, score, threshold = recognizer.identify(embedding)
        verdict = None if threshold is None else "unknown" if name is None else "known"
        found = {"name": None if name is None else printable(name), "verdict": verdict}
        notes[index] |= {**found, "score": round(score, 6), "threshold": threshold}
    return {"answers": notes}


def _verify(recognizer: Recognizer):
    embeddings, notes = _embedded(recognizer, least=2, most=2)
    for note in notes:
        if "error" in note:
            raise _Refused(422, note["error"])
    score, threshold = float(embeddings[0] @ embeddings[1]), recognizer.threshold(recognizer.people())
    same = None if threshold is None else score >= threshold
    return {"score": round(score, 6), "threshold": threshold, "same": same}


def _people(recognizer: Recognizer):
    people = recognizer.people()
    counts = zip(people.names, people.photographs, strict=True)
    held = sorted((printable(name), count) for name, count in counts if name)
    return {
        "people": [{"name": name, "photographs": count} for name, count in held],
        "threshold": recognizer.threshold(people),
        "calibrated": people.calibrated if recognizer.given is None else "as the server was told",
        "gallery": printable(recognizer.gallery.name),
        "encoder": printable(recognizer.encoder.name),
        "most": {"bytes": MOST_BYTES, "photographs": MOST_PHOTOGRAPHS, "characters": LONGEST_NAME},  # in a request
    }


def _enrol(recognizer: Recognizer):
    try:
        name = name_of(flask.request.form.get("name", ""))
    except ValueError as error:
        raise _Refused(400, str(error)) from None
    if len(name) > LONGEST_NAME:
        raise _Refused(400, f"the name has {len(name)} characters; wanted {LONGEST_NAME} at most")
    embeddings, notes = _embedded(recognizer)
    before, _ = recognizer.enrol([name] * len(embeddings), np.stack(list(embeddings.values())))
    is_new = name not in before.names
    left_out = [note for note in notes if "error" in note]
    return {"name": name, "new": is_new, "photographs": len(embeddings), "left_out": left_out}, 201 if is_new else 200


def _remove(recognizer: Recognizer):
    asked = flask.request.args.get("name", "")
    shown = {printable(name): name for name in recognizer.people().enrolled}
    if asked not in shown:
        raise _Refused(404, f"{printable(asked)[:LONGEST_NAME]} is not enrolled")
    recognizer.remove(shown[asked])
    return {"name": asked}


# --- who may ask ----------------------------------------------------------------------------------------------------


def _check_host(hosts: set[str], any_address: bool) -> None:
    """Another website may lead its own name to this machine; what its scripts ask then comes with that name."""
    try:
        host = urlsplit(f"//{flask.request.headers.get('Host', '')}").hostname or ""
    except ValueError:
        host = ""
    if host not in hosts and not (any_address and _address(host)):
        raise _Refused(421, "the Host header names another server; wanted the address that the server told")


def _check_origin() -> None:
    """A website, too, can send a form to this address; browsers tell where a request comes from."""
    site, origin = (flask.request.headers.get(name) for name in ("Sec-Fetch-Site", "Origin"))
    if site is not None:
        own = site in ("same-origin", "none")
    else:
        own = origin is None or origin.partition("://")[2] == flask.request.headers.get("Host")
    if not own and flask.request.method not in ("GET", "HEAD", "OPTIONS"):
        raise _Refused(403, "the request comes from another website; wanted the page of this server, or no browser")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


# --- Flask ----------------------------------------------------------------------------------------------------------


def _error(error: Exception):
    """Each error in JSON, with a sentence, and never with what only the log should hold."""
    if isinstance(error, _Refused):
        return {"error": str(error)}, error.status
    if isinstance(error, HTTPException):
        response: Any = error.get_response()
        too_large = isinstance(error, RequestEntityTooLarge)
        response.data = json.dumps({"error": _too_large() if too_large else error.description})
        response.content_type = "application/json"
        return response
    if isinstance(error, ValueError):  # of the gallery: nobody in it, another encoder's, damaged, locked
        return {"error": printable(str(error))}, 409
    return {"error": printable(f"the gallery cannot be read or written: {error}")}, 500


def _too_large() -> str:
    return f"the request is too large; wanted {MOST_BYTES >> 20} MiB at most, and {MOST_PHOTOGRAPHS} photographs"


def application(recognizer: Recognizer, host: str = "127.0.0.1", loopback: bool = True) -> flask.Flask:
    """The WSGI application. Only requests with `host`, or with localhost and its addresses, in their Host are answered.

    Not `loopback`: also those with the name of this machine, or with any address in digits, to which nobody's name
    can have led.
    """
    app = flask.Flask(__name__, static_folder=PAGE, static_url_path="/page")
    app.request_class = _InMemory
    app.config.update(MAX_CONTENT_LENGTH=MOST_BYTES, MAX_FORM_MEMORY_SIZE=2**16, MAX_FORM_PARTS=MOST_PHOTOGRAPHS + 8)
    hosts = {host.lower(), "localhost", "127.0.0.1", "::1"}
    hosts |= set() if loopback else {socket.gethostname().lower(), socket.getfqdn().lower()}

    @app.before_request
    def check() -> None:
        _check_host(hosts, not loopback)
        _check_origin()

    @app.after_request
    def add_headers(response: flask.Response) -> flask.Response:
        response.headers.update(HEADERS)
        return response

    app.add_url_rule("/", "page", lambda: app.send_static_file("index.html"))
    asked = {"GET /people": _people, "POST /people": _enrol, "DELETE /people": _remove}
    asked |= {"POST /identify": _identify, "POST /verify": _verify}
    for rule, answer in asked.items():
        method, path = rule.split()
        app.add_url_rule(path, rule, lambda answer=answer: answer(recognizer), methods=[method])
    for kind in (_Refused, HTTPException, ValueError, OSError):
        app.register_error_handler(kind, _error)
    return app


# --- waitress -------------------------------------------------------------------------------------------------------


class _Refusal(ErrorTask):
    """What waitress refuses before Flask sees it, in JSON too."""

    def execute(self) -> None:
        error = self.request.error
        sentence = _too_large() if error.code == 413 else f"{error.reason}: {error.body}"
        body = json.dumps({"error": sentence}).encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers += [("Content-Type", "application/json"), *HEADERS.items()]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):
    error_task_class = _Refusal


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that is bound to this address, and does not listen yet; port 0: any that is free."""
    if not 0 <= port < 2**16:
        raise ValueError(f"port is {port}; wanted 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        at = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise _cannot_listen(host, port, error) from None
    with at:
        if os.name == "posix":  # elsewhere it would let two servers listen at one port
            at.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            at.bind(address)
        except OSError as error:
            raise _cannot_listen(host, port, error) from None
        yield at


def _cannot_listen(host: str, port: int, error: Exception) -> ValueError:
    return ValueError(f"cannot listen at {host!r}, port {port}: {getattr(error, 'strerror', None) or error}")


def is_loopback(at: socket.socket) -> bool:
    """Whether only this machine reaches the address that the socket is bound to."""
    address = _address(at.getsockname()[0])
    return address is not None and address.is_loopback


def run(recognizer: Recognizer, at: socket.socket, host: str, tell: Callable[[str], None]) -> None:
    """Serve at a socket that is bound, until SIGINT or SIGTERM; `tell` is given the address as soon as it listens."""
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns of every question that has to wait
    try:
        server: Any = waitress.create_server(
            application(recognizer, host, is_loopback(at)),
            sockets=[at],
            threads=THREADS,
            connection_limit=MOST_CONNECTIONS,
            max_request_body_size=MOST_BYTES + 1,
            inbuf_overflow=MOST_BYTES + 1,  # in memory below this, and never on the disk
            ident=None,
        )
    except OSError as error:
        raise _cannot_listen(host, at.getsockname()[1], error) from None
    server.channel_class = _Channel
    before = signal.signal(signal.SIGTERM, _end)
    try:
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            tell(_url(at, host))
            server.run()  # which lets questions that are being answered end
    finally:
        server.close()
        signal.signal(signal.SIGTERM, before)


def _end(*_: Any) -> None:
    raise SystemExit


def _url(at: socket.socket, host: str) -> str:
    address, port = at.getsockname()[:2]
    bound_to = _address(address)
    name = socket.gethostname() if bound_to is not None and bound_to.is_unspecified else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"
