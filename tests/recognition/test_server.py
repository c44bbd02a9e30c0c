"""`metricjax recognize serve`: what it answers, whom it refuses, and a gallery that others change meanwhile."""

import dataclasses
import io
import json
import os
import pathlib
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import jax
import numpy as np
import pytest

from tests.helpers.compilations import compilations
from tests.helpers.people import write_people
from tests.helpers.projection import Projection

pytest.importorskip("flask")
pytest.importorskip("waitress")
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]
HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "../../etc",
    "a/b",
    "..",
    "אדה",
    "%2e?&#",
    "x" * 200,
]


@pytest.fixture(scope="module")
def server():
    from metricjax.recognition import server

    return server


@pytest.fixture(scope="module")
def gallery_file():
    from metricjax.recognition import gallery_file

    return gallery_file


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("people"), photographs=[4] * 6, size=(23, 28), noise=2)


@pytest.fixture
def recognizer(tmp_path):
    return recognizer_of(tmp_path)


def recognizer_of(tmp_path, **given):
    from metricjax.recognition.recognizer import Recognizer

    return Recognizer(Projection(pathlib.Path("run")), tmp_path / "staff.npz", pathlib.Path("run"), **given)


@pytest.fixture
def client(server, recognizer):
    return server.application(recognizer).test_client()


def photograph(people, person, number=1):
    return people / f"Person_{person}" / f"Person_{person}_{number:04d}.png"


def form(*files, **fields):
    shown = [
        (file, "file.png") if isinstance(file, io.BytesIO) else (io.BytesIO(file.read_bytes()), file.name)
        for file in files
    ]
    return {"data": {"photographs": shown, **fields}}


def enrolled(client):
    return {person["name"]: person["photographs"] for person in client.get("/people").json["people"]}


def test_people_are_enrolled_found_and_removed(client, people, tmp_path):
    assert client.get("/people").json["people"] == [] and not (tmp_path / "staff.npz").exists()
    done = client.post("/people", **form(photograph(people, 0), photograph(people, 0, 2), name="  Ada "))
    assert (done.status_code, done.json) == (201, {"name": "Ada", "new": True, "photographs": 2, "left_out": []})
    assert client.post("/people", **form(photograph(people, 1), name="Grace")).status_code == 201
    done = client.post("/people", **form(photograph(people, 1, 2), name="Grace"))
    assert (done.status_code, done.json["new"]) == (200, False)
    assert enrolled(client) == {"Ada": 2, "Grace": 2}
    z = Projection(pathlib.Path("run"))([*(photograph(people, i, j) for i, j in ((0, 3), (0, 1), (0, 2), (1, 3)))])
    found = client.post("/identify", **form(photograph(people, 0, 3), photograph(people, 1, 3))).json["answers"]
    template = (z[1] + z[2]) / np.linalg.norm(z[1] + z[2])
    assert found[0]["score"] == pytest.approx(z[0] @ template, abs=2e-6)
    assert [(a["file"], a["name"], a["verdict"]) for a in found] == [
        ("Person_0_0003.png", "Ada", None),
        ("Person_1_0003.png", "Grace", None),
    ]
    found = client.post("/verify", **form(photograph(people, 0, 3), photograph(people, 1, 3))).json
    assert found == {"score": pytest.approx(z[0] @ z[3], abs=2e-6), "same": None, "threshold": None}
    assert client.delete("/people?name=Ada").status_code == 200
    assert enrolled(client) == {"Grace": 2}
    assert client.delete("/people?name=Ada").status_code == 404


def test_the_threshold_decides(server, client, people, gallery_file, tmp_path):
    client.post("/people", **form(photograph(people, 0), name="Ada"))
    ask = lambda client: client.post("/identify", **form(photograph(people, 0, 2), photograph(people, 3))).json[
        "answers"
    ]
    own, other = (answer["score"] for answer in ask(client))
    told = client.get("/people").json
    assert (told["threshold"], told["calibrated"]) == (None, "")
    calibrated = lambda people: dataclasses.replace(people, threshold=(own + other) / 2, calibrated="for a FAR of 0.1")
    gallery_file.change(tmp_path / "staff.npz", calibrated)
    told = client.get("/people").json
    assert (told["threshold"], told["calibrated"]) == ((own + other) / 2, "for a FAR of 0.1")
    assert [(a["name"], a["verdict"], a["threshold"]) for a in ask(client)] == [
        ("Ada", "known", (own + other) / 2),
        (None, "unknown", (own + other) / 2),
    ]
    assert client.post("/verify", **form(photograph(people, 0), photograph(people, 0, 2))).json["same"] is True
    assert client.post("/verify", **form(photograph(people, 0), photograph(people, 3))).json["same"] is False
    without = lambda people: dataclasses.replace(people, threshold=-np.inf, calibrated="for an FPIR of 1")
    gallery_file.change(tmp_path / "staff.npz", without)
    assert [(a["verdict"], a["threshold"]) for a in ask(client)] == [("known", -2.0)] * 2  # JSON has no infinity
    strict = server.application(recognizer_of(tmp_path, threshold=0.99999)).test_client()
    assert [a["verdict"] for a in ask(strict)] == ["unknown", "unknown"]
    assert strict.get("/people").json["calibrated"] == "as the server was told"


def test_what_others_change_is_noticed(client, people, gallery_file, tmp_path):
    path, embedding = tmp_path / "staff.npz", np.eye(1, 32, dtype=np.float32)
    client.post("/people", **form(photograph(people, 0), name="Ada"))
    assert list(enrolled(client)) == ["Ada"]
    gallery_file.change(path, lambda people: people.enrol(["Other"], embedding).remove("Ada"))
    assert list(enrolled(client)) == ["Other"]
    assert client.post("/identify", **form(photograph(people, 0))).json["answers"][0]["name"] == "Other"
    client.post("/people", **form(photograph(people, 1), name="Grace"))
    assert gallery_file.read(path).enrolled == ["Grace", "Other"]
    held = path.read_bytes()
    gallery_file.change(path, lambda people: dataclasses.replace(people, encoder="another"))
    for answer in (
        client.get("/people"),
        client.post("/people", **form(photograph(people, 1), name="Grace")),
        client.post("/identify", **form(photograph(people, 1))),
        client.delete("/people?name=Grace"),
    ):
        wanted = f"{path} was made by another encoder than that of run; enrol anew"
        assert (answer.status_code, answer.json) == (409, {"error": wanted})
    path.write_bytes(b"torn")
    assert "or a damaged one" in client.get("/people").json["error"]
    path.write_bytes(held)
    assert list(enrolled(client)) == ["Grace", "Other"]
    path.unlink()
    answer = client.post("/identify", **form(photograph(people, 1)))
    assert (answer.status_code, answer.json) == (409, {"error": f"{path} holds nobody; enrol somebody first"})


def test_what_is_in_memory_is_not_read_again(client, people, gallery_file, monkeypatch):
    client.post("/people", **form(photograph(people, 0), name="Ada"))
    assert enrolled(client) == {"Ada": 1}
    monkeypatch.setattr(gallery_file, "read", None)
    assert client.post("/identify", **form(photograph(people, 0))).json["answers"][0]["name"] == "Ada"
    assert enrolled(client) == {"Ada": 1}


def test_nothing_is_compiled_as_people_come_and_go(client, people, recognizer):
    jax.clear_caches()
    with compilations() as names:
        recognizer.ready()
    assert any("identify" in name for name in names)
    with compilations() as names:
        client.post("/people", **form(photograph(people, 0), name="Ada"))
        client.delete("/people?name=Ada")
    assert names  # of enrolling and removing, once
    assert not any("identify" in name for name in names)
    with compilations() as names:
        for person in range(6):
            files = [photograph(people, person, number) for number in range(1, 2 + person % 3)]
            assert client.post("/people", **form(*files, name=f"{person}")).status_code == 201
            found = client.post("/identify", **form(*files, photograph(people, person, 4))).json["answers"]
            assert {answer["name"] for answer in found} == {f"{person}"}
        client.delete("/people?name=3")
        assert client.post("/identify", **form(photograph(people, 3))).json["answers"][0]["name"] != "3"
    assert names == []


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(client, people, name):
    assert client.post("/people", **form(photograph(people, 0), name=name)).json["name"] == name
    found = client.post("/identify", **form(photograph(people, 0)))
    assert found.json["answers"][0]["name"] == name and found.content_type == "application/json"
    assert enrolled(client) == {name: 1}
    assert client.delete("/people", query_string={"name": name}).json == {"name": name}
    assert enrolled(client) == {}


def test_names_that_cannot_be_shown(client, people, gallery_file, tmp_path):
    assert (
        client.post("/people", **form(photograph(people, 0), name="\u202egnp\n.\u0000")).json["name"]
        == r"\u202egnp\n.\x00"
    )
    odd = ["\udcff", "Ada\tL", "unknown"]  # as no command line enrols them
    gallery_file.change(tmp_path / "staff.npz", lambda people: people.enrol(odd, np.eye(3, 32, dtype=np.float32)))
    shown = [r"Ada\tL", r"\u202egnp\n.\x00", r"\xff", "unknown"]
    assert list(enrolled(client)) == shown
    for name in shown:
        assert client.delete("/people", query_string={"name": name}).status_code == 200
    assert enrolled(client) == {}


def test_what_cannot_be_read_is_left_out(client, people):
    torn = io.BytesIO(photograph(people, 0).read_bytes()[:200])
    done = client.post("/people", **form(photograph(people, 0), torn, name="Ada"))
    left_out = [{"file": "file.png", "error": "file.png cannot be read: image file is truncated"}]
    assert (done.status_code, done.json["photographs"], done.json["left_out"]) == (201, 1, left_out)
    found = client.post("/identify", **form(io.BytesIO(b"GIF89a"), photograph(people, 0))).json["answers"]
    assert (
        found[0] == {"file": "file.png", "error": found[0]["error"]} and "is not one of BMP, JPEG" in found[0]["error"]
    )
    assert found[1]["name"] == "Ada"
    for path in ("/people", "/identify"):
        answer = client.post(path, **form(io.BytesIO(b"no image"), name="Eve"))
        assert answer.status_code == 422 and answer.json["error"].startswith(
            "file.png cannot be read: it is not one of"
        )
    two = form(photograph(people, 0), io.BytesIO(b"no image"))
    assert client.post("/verify", **two).status_code == 422
    assert enrolled(client) == {"Ada": 1}


OTHER = "the request comes from another website"
REFUSED = [
    ("POST", "/identify", {}, {}, 400, "photographs holds 0 files; wanted 1 to 16"),
    ("POST", "/identify", {"photographs": [(b"", f"{i}.png") for i in range(17)]}, {}, 400, "17 files; wanted 1 to 16"),
    ("POST", "/identify", {"photographs": [(b"", f"{i}.png") for i in range(30)]}, {}, 413, "and 16 photographs"),
    ("POST", "/people", {"name": "x" * 2**17, "photographs": [(b"", "a.png")]}, {}, 413, "wanted 32 MiB at most"),
    ("POST", "/people", {"name": "x" * 201, "photographs": [(b"", "a.png")]}, {}, 400, "201 characters; wanted 200"),
    ("POST", "/people", {"name": " ", "photographs": [(b"", "a.png")]}, {}, 400, "is not a name for a person"),
    ("POST", "/people", {"name": "unknown", "photographs": [(b"", "a.png")]}, {}, 400, "is not a name for a person"),
    ("POST", "/verify", {"photographs": [(b"", "a.png")]}, {}, 400, "photographs holds 1 files; wanted 2"),
    ("DELETE", "/people", {}, {}, 404, " is not enrolled"),
    ("PUT", "/people", {}, {}, 405, "The method is not allowed"),
    ("GET", "/nowhere", {}, {}, 404, "not found"),
    ("GET", "/page/../server.py", {}, {}, 404, "not found"),
    ("GET", "/people", {}, {"Host": "evil.example"}, 421, "names another server"),
    ("GET", "/", {}, {"Host": "evil.example:8000"}, 421, "names another server"),
    ("GET", "/people", {}, {"Host": "localhost.evil.example"}, 421, "names another server"),
    ("GET", "/people", {}, {"Host": "192.168.1.5"}, 421, "names another server"),
    ("POST", "/identify", {}, {"Origin": "http://evil.example"}, 403, OTHER),
    ("POST", "/people", {}, {"Origin": "http://localhost:3000"}, 403, OTHER),
    ("POST", "/people", {}, {"Origin": "null"}, 403, OTHER),
    ("POST", "/people", {}, {"Origin": "http://[::1"}, 403, OTHER),
    ("POST", "/people", {}, {"Sec-Fetch-Site": "cross-site"}, 403, OTHER),
    ("POST", "/people", {}, {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"}, 403, OTHER),
    ("DELETE", "/people?name=Ada", {}, {"Origin": "http://evil.example"}, 403, OTHER),
]


@pytest.mark.parametrize("method, path, data, headers, status, error", REFUSED)
def test_refused(client, people, method, path, data, headers, status, error):
    client.post("/people", **form(photograph(people, 0), name="Ada"))
    if "photographs" in data:
        data = {**data, "photographs": [(io.BytesIO(held), name) for held, name in data["photographs"]]}
    answer = client.open(path, method=method, data=data, headers=headers)
    assert answer.status_code == status and error in answer.json["error"]
    assert list(answer.json) == ["error"] and "\n" not in answer.json["error"]
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Allow"] if status == 405 else True
    assert enrolled(client) == {"Ada": 1}


def test_who_may_ask(server, client, recognizer):
    for host in ("localhost", "localhost:8000", "127.0.0.1:9", "[::1]:8000", "LOCALHOST"):
        assert client.get("/people", headers={"Host": host}).status_code == 200
    for own in ({"Origin": "http://localhost"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
        assert client.post("/identify", headers=own).status_code == 400  # for want of a photograph
    everywhere = server.application(recognizer, "faces.example", loopback=False).test_client()
    for host in ("faces.example", "192.168.1.5:80", "[fe80::1]", socket.gethostname(), "localhost"):
        assert everywhere.get("/people", headers={"Host": host}).status_code == 200
    assert everywhere.get("/people", headers={"Host": "evil.example"}).status_code == 421


def test_errors_of_the_server_show_nothing_of_it(server, client, people, recognizer, monkeypatch, caplog):
    def broken(*_):
        raise TypeError("inside")

    monkeypatch.setattr(recognizer, "people", broken)
    answer = client.get("/people")
    assert answer.status_code == 500 and "inside" not in answer.text and list(answer.json) == ["error"]
    assert "inside" in caplog.text

    def full(*_):
        raise OSError(28, "No space left on device", "staff.npz")

    monkeypatch.setattr(recognizer, "enrol", full)
    answer = client.post("/people", **form(photograph(people, 0), name="Ada"))
    assert (answer.status_code, answer.json["error"].count("No space left")) == (500, 1)


def test_the_page(client):
    get = lambda path: client.get(path, buffered=True)
    page = get("/")
    assert page.status_code == 200 and page.headers["X-Content-Type-Options"] == "nosniff"
    policy = page.headers["Content-Security-Policy"]
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert not [word for word in ("<script>", "onclick", "style=", "http:", "https:") if word in page.text]
    for name in ("page.js", "page.css"):
        assert f"/page/{name}" in page.text and get(f"/page/{name}").status_code == 200
    assert "innerHTML" not in get("/page/page.js").text


def test_large_requests(client, people, monkeypatch):
    """They do not go to the disk, and they end somewhere."""
    from tests.helpers.serving import multipart

    for name in ("tempfile.TemporaryFile", "tempfile.NamedTemporaryFile", "werkzeug.formparser.SpooledTemporaryFile"):
        monkeypatch.setattr(name, None)
    post = lambda path, form: client.post(path, data=form[0], content_type=form[1])
    large = photograph(people, 0).read_bytes() + bytes(2**24)
    assert post("/people", multipart(("large.png", large), name="Ada")).status_code == 201
    answer = post("/people", multipart(("larger.png", large + bytes(2**24)), name="Eve"))
    assert (answer.status_code, "wanted 32 MiB at most" in answer.json["error"]) == (413, True)
    assert enrolled(client) == {"Ada": 1}


# --- real processes -------------------------------------------------------------------------------------------------

NO_FILES = "import tempfile\ntempfile.TemporaryFile = tempfile.SpooledTemporaryFile = tempfile.mkstemp = None"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    from tests.helpers.serving import untrained

    return untrained(tmp_path_factory.mktemp("encoder") / "encoder.npz")


def raw(url, sent):
    """What is answered to these bytes, until the server hangs up."""
    at = urlsplit(url)
    with socket.create_connection((at.hostname, at.port), timeout=30) as connection:
        connection.sendall(sent)
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_a_real_server(encoder, people, tmp_path):
    from tests.helpers.serving import THRESHOLD, asked, serving

    with serving(encoder, tmp_path / "staff.npz", "--threshold", THRESHOLD, before=NO_FILES) as url:
        at = urlsplit(url)
        with pytest.raises(ConnectionRefusedError):  # it listens at one address
            socket.create_connection(("127.0.0.2", at.port), timeout=5)
        for person in range(3):
            done = asked(url, "POST", "/people", photograph(people, person), name=f"<b>{person}")
            assert (done[0], done[1]["name"]) == (201, f"<b>{person}")
        big = tmp_path / "big.png"
        big.write_bytes(photograph(people, 2, 2).read_bytes() + bytes(2**24))
        ask = lambda file: asked(url, "POST", "/identify", file)[1]["answers"][0]
        with ThreadPoolExecutor(6) as threads:
            found = list(threads.map(ask, [photograph(people, i % 6, 3) for i in range(24)] + [big] * 2))
        wanted = [f"<b>{i % 6}" if i % 6 < 3 else None for i in range(24)] + ["<b>2"] * 2
        assert [answer["name"] for answer in found] == wanted
        assert asked(url, "GET", "/people", headers={"Host": "evil.example"})[0] == 421
        assert asked(url, "DELETE", "/people?name=%3Cb%3E0", headers={"Origin": "http://evil.example"})[0] == 403
        assert asked(url, "DELETE", "/people?name=%3Cb%3E0")[0] == 200
        head = f"POST /identify HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Length: {2**40}\r\n\r\n".encode()
        status, answer = raw(url, head)
        assert (status, "wanted 32 MiB at most" in answer["error"]) == (413, True)
        for host in (b"Host: [::1\r\n", b""):
            status, answer = raw(url, b"GET / HTTP/1.0\r\n" + host + b"\r\n")
            assert (status, "names another server" in answer["error"]) == (421, True)
        status, answer = raw(url, b"GET / HTTP/1.1\r\nBad Header\r\n\r\n")
        assert (status, list(answer)) == (400, ["error"])
    assert sorted(os.listdir(tmp_path)) == [".staff.npz.lock", "big.png", "staff.npz"]


def test_two_servers_and_the_command_line_change_one_gallery(encoder, people, gallery_file, tmp_path):
    from tests.helpers.serving import asked, serving

    path = tmp_path / "staff.npz"
    names = [f"{who}-{i}" for who in "abc" for i in range(8)]
    embedding = np.eye(1, 16, dtype=np.float32)
    with serving(encoder, path) as a, serving(encoder, path) as b:
        assert asked(a, "POST", "/people", photograph(people, 0), name="first")[0] == 201

        def enrol(name):
            if name.startswith("c"):
                gallery_file.change(path, lambda people: people.enrol([name], embedding))
            else:
                url = a if name.startswith("a") else b
                assert asked(url, "POST", "/people", photograph(people, 0), name=name)[0] == 201

        with ThreadPoolExecutor(6) as threads:
            list(threads.map(enrol, names))
        assert asked(b, "DELETE", "/people?name=first")[0] == 200
        for url in (a, b):
            assert [person["name"] for person in asked(url, "GET", "/people")[1]["people"]] == names
    assert gallery_file.read(path).photographs.count(1) == 24


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def serve(monkeypatch, capsys, tmp_path):
    """The message with which the command ends."""
    from metricjax.commands import recognize

    monkeypatch.setattr("metricjax.trained.load", Projection)

    def call(*options):
        given = ["--checkpoint", tmp_path / "run", "--gallery", tmp_path / "staff.npz", *options]
        with pytest.raises(SystemExit) as caught:
            recognize.main(["serve", *map(str, given)])
        return f"{caught.value.code} {capsys.readouterr().err}"

    return call


def test_messages_of_the_command(serve, gallery_file, monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"metricjax recognize: cannot listen at '127.0.0.1', port {port}: Address already in use" in serve(
            "--port", port
        )
    assert "cannot listen at '203.0.113.1', port 0: Cannot assign requested address" in serve(
        "--host", "203.0.113.1", "--port", 0
    )
    assert "port is 70000; wanted 0 to 65535" in serve("--port", 70000)
    assert "threshold is nan; wanted a finite number" in serve("--port", 0, "--threshold", "nan")
    assert "is in no folder" in serve("--port", 0, "--gallery", tmp_path / "nowhere" / "staff.npz")
    gallery_file.write(tmp_path / "staff.npz", gallery_file.People.nobody(32, "another"))
    assert "staff.npz was made by another encoder" in serve("--port", 0)


def test_who_is_told_that_others_may_ask(monkeypatch, capsys, tmp_path):
    from metricjax.commands import recognize

    monkeypatch.setattr("metricjax.trained.load", Projection)
    monkeypatch.setattr("metricjax.recognition.server.run", lambda recognizer, at, host, tell: tell(host))
    given = ["serve", "--checkpoint", tmp_path / "run", "--gallery", tmp_path / "staff.npz", "--port", 0]
    for host in ("127.0.0.1", "0.0.0.0"):
        recognize.main([*map(str, given), "--host", host])
        printed = capsys.readouterr()
        assert printed.out == f"{host} answers; Ctrl-C ends it\n"
        assert ("there is no login and no encryption" in printed.err) == (host == "0.0.0.0")


def test_without_the_extra(serve, monkeypatch):
    monkeypatch.delitem(sys.modules, "metricjax.recognition.server", raising=False)
    monkeypatch.delattr("metricjax.recognition.server", raising=False)
    monkeypatch.setitem(sys.modules, "flask", None)
    assert 'python -m pip install "metricjax[serve]"' in serve()


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_other_addresses_are_told_of_and_signals_end_it(server, recognizer, number):
    told = []

    def tell(address):
        told.append(address)
        signal.raise_signal(number)

    before = signal.getsignal(signal.SIGTERM)
    with server.bound("0.0.0.0", 0) as at:
        assert not server.is_loopback(at)
        port = at.getsockname()[1]
        server.run(recognizer, at, "0.0.0.0", tell)
        assert told == [f"http://{socket.gethostname()}:{port}/"]
    assert signal.getsignal(signal.SIGTERM) is before
    with server.bound("127.0.0.1", 0) as at:
        assert server.is_loopback(at)
