"""Raw sockets against the page: what it refuses, and that it goes on answering."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.meanwhile import repeated
from tests.watch.synthetic import SyntheticRun
from tests.watch.watching import Watching, eventually


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyntheticRun]:
    with SyntheticRun(tmp_path_factory.mktemp("runs") / "fleet") as run:
        run.join(0)
        run.step()
        yield run


@pytest.fixture(scope="module")
def local(run: SyntheticRun) -> Iterator[Watching]:
    with Watching(run.path) as watching:
        yield watching


@pytest.fixture(scope="module")
def guarded(run: SyntheticRun) -> Iterator[Watching]:
    with Watching(run.path, options=("--web", "0.0.0.0:*")) as watching:
        yield watching


def ask(port: int, request: bytes, seconds: float = 10.0) -> bytes:
    """Return the answer of the server until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        connection.settimeout(seconds)
        connection.sendall(request)
        received = b""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while piece := connection.recv(65536):
                received += piece
        return received


def get(target: str, *headers: str, host: str = "127.0.0.1", method: str = "GET") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def token_of(watching: Watching) -> str:
    return watching.url.partition("?token=")[2]


@pytest.mark.parametrize("target", ["/", "/healthz", "/api/state", "/static/live.js", "/static/uPlot.iife.min.js"])
def test_loopback_needs_no_token_and_every_answer_has_strict_headers(local: Watching, target: str) -> None:
    assert "token" not in local.url
    answer = ask(local.port, get(target))
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert status(answer) == 200
    for part in (b"default-src 'none'", b"script-src 'self'", b"frame-ancestors 'none'", b"nosniff", b"no-referrer"):
        assert part in head, head
    assert b"unsafe" not in head
    assert b"\r\nserver:" not in head


def test_the_page_has_no_inline_script_style_or_handler_and_no_address_of_another_server() -> None:
    web = Path(__file__).parents[3] / "watch" / "web"
    page = (web / "index.html").read_text()
    assert " on" not in page.replace(" on ", "").lower().replace(" one", "")
    assert "<style" not in page
    assert "style=" not in page
    assert page.count("<script") == page.count("<script src=")
    for file in (web / name for name in ("index.html", "live.js", "feed.js", "live.css")):
        assert "http://" not in file.read_text()
        assert "https://" not in file.read_text()
        assert "innerHTML" not in file.read_text()


def test_any_other_address_needs_the_token(guarded: Watching) -> None:
    token = token_of(guarded)
    assert len(token) >= 43
    for target in ("/", "/api/state", "/events", "/static/live.js", "/nothing"):
        assert status(ask(guarded.port, get(target))) == 401
    assert status(ask(guarded.port, get("/healthz"))) == 200
    assert status(ask(guarded.port, get("/api/state", f"Authorization: Bearer {token}"))) == 200


@pytest.mark.parametrize("wrong", ["", "x", "A" * 43, "é", "%00", "a&token=b"])
def test_a_wrong_token_is_refused_and_sets_no_cookie(guarded: Watching, wrong: str) -> None:
    answers = [
        ask(guarded.port, get(f"/?token={wrong}")),
        ask(guarded.port, get("/", f"Authorization: Bearer {wrong}")),
        ask(guarded.port, get("/", f"Cookie: adc_edge_{guarded.port}={wrong}")),
    ]
    for answer in answers:
        assert status(answer) in (400, 401)  # 400: no HTTP
        assert b"set-cookie" not in answer.lower()


@pytest.mark.parametrize("shown", ["x", "{token}x", "x&token={token}"])
def test_a_wrong_token_in_an_address_gets_no_cookie_where_none_is_needed_or_another_is_right(
    guarded: Watching, shown: str
) -> None:
    token = token_of(guarded)
    query = shown.format(token=token)
    answers = [
        ask(guarded.port, get(f"/healthz?token={query}")),
        ask(guarded.port, get(f"/api/state?token={query}", f"Authorization: Bearer {token}")),
    ]
    for answer in answers:
        assert status(answer) == 200
        assert b"set-cookie" not in answer.lower()
        assert token.encode() not in answer


def test_the_tokens_address_sets_a_cookie_that_scripts_and_other_sites_do_not_get(guarded: Watching) -> None:
    token = token_of(guarded)
    answer = ask(guarded.port, get(f"/?token={token}"))
    (cookie,) = [line for line in answer.split(b"\r\n") if line.lower().startswith(b"set-cookie:")]
    value = cookie.partition(b":")[2].strip().decode()
    assert status(answer) == 200
    assert value.endswith("; HttpOnly; SameSite=Strict; Path=/")
    assert status(ask(guarded.port, get("/api/state", f"Cookie: {value.partition(';')[0]}"))) == 200
    assert status(ask(guarded.port, get("/api/state", f"Cookie: {value.partition(';')[0]}x"))) == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "a b"])
def test_a_name_that_another_site_made_to_point_here_is_refused(local: Watching, host: str) -> None:
    assert status(ask(local.port, get("/api/state", host=host))) in (400, 421)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9999", "LOCALHOST", "[::1]:80"])
def test_the_machines_own_names_are_answered_also_through_a_tunnel(local: Watching, host: str) -> None:
    assert status(ask(local.port, get("/api/state", host=host))) == 200


def test_a_page_of_another_site_reads_nothing(local: Watching) -> None:
    assert status(ask(local.port, get("/events", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"))) == 403


@pytest.mark.parametrize(
    "target",
    [
        "/static/../../pyproject.toml",
        "/static/..%2f..%2fpyproject.toml",
        "/static/%2e%2e/view.py",
        "/static//etc/passwd",
        "/static/app.py",
        "/static/live.js%00",
        "/../etc/passwd",
        "/static/",
        "//etc/passwd",
    ],
)
def test_no_file_beyond_the_list_is_served(local: Watching, target: str) -> None:
    answer = ask(local.port, get(target))
    assert status(answer) in (307, 400, 404), answer[:100]
    assert b"root:" not in answer
    assert b"import" not in answer


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (get("/", method="POST"), {405}),
        (get("/", method="DELETE"), {405}),
        (get("/", "Content-Length: 10") + b"0123456789", {413}),
        (get("/", "Content-Length: 99999999999"), {413}),
        (get("/", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n", {413}),
        (get("/" + "a" * 4000), {414}),
        (get("/?token=" + "a" * 4000), {414}),
        (get("/" + "a" * 70_000), {400, 414, 0}),
        (get("/", "X: " + "a" * 17_000), {431}),
        (get("/", "X: " + "a" * 70_000), {400, 431, 0}),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000, {400, 0}),
        (get("/", "Host: other"), {400, 421}),
        (b"GET / HTTP/1.0\r\n\r\n", {421}),
        (b"\x16\x03\x01\x02\x00" + os.urandom(300), {400}),
        (b"hello\r\n\r\n", {400}),
        (get("/", "Upgrade: websocket", "Sec-WebSocket-Key: x").replace(b"close", b"close, Upgrade"), {200}),
        (get("/events", method="HEAD"), {200}),
    ],
    ids=range(17),
)
def test_oversize_and_malformed_requests_are_refused(local: Watching, request_bytes: bytes, expected: set[int]) -> None:
    assert status(ask(local.port, request_bytes)) in expected
    assert local.state()["runs"]  # and it goes on


@pytest.mark.slow
def test_a_thousand_idle_connections_keep_no_other_client_out_and_no_writer_back(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    idle: list[socket.socket] = []
    with SyntheticRun(tmp_path / "run") as run, Watching(run.path) as watching:
        run.join(0)
        try:
            for number in range(1000):
                idle.append(socket.create_connection(("127.0.0.1", watching.port), 10))
                if number % 3 == 0:
                    idle[-1].sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")  # and never the end of the request
                if number % 100 == 0:
                    run.step()
            with repeated(lambda: idle.append(socket.create_connection(("127.0.0.1", watching.port), 10)), 0.005):
                done = watching.state()["runs"][0]["about"]["steps_done"]  # though there are always more of them
            run.step()
            eventually(lambda: watching.state()["runs"][0]["about"]["steps_done"] > done)
            assert open_sockets(watching) < 300
            assert watching.memory_mb() < 250
            eventually(lambda: open_sockets(watching) < 20)  # after 10 s
        finally:
            for connection in idle:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_the_65th_stream_is_told_to_come_later_and_the_others_go_on(tmp_path: Path) -> None:
    with SyntheticRun(tmp_path / "run") as run, Watching(run.path) as watching, contextlib.ExitStack() as open_now:
        streams = []
        for _ in range(64):
            stream = open_now.enter_context(socket.create_connection(("127.0.0.1", watching.port), 10))
            stream.sendall(get("/events"))
            eventually(functools.partial(says_hello, stream))
            streams.append(stream)
        assert status(ask(watching.port, get("/events"))) == 503
        assert watching.state()["runs"]
        run.step()
        assert b"event: update" in streams[0].recv(65536)
        streams.pop().close()
        eventually(lambda: _first_status(watching.port) == 200)


def says_hello(stream: socket.socket) -> bool:
    return b"event: hello" in stream.recv(4096)


def _first_status(port: int) -> int:
    with socket.create_connection(("127.0.0.1", port), 10) as stream:
        stream.sendall(get("/events"))
        return status(stream.recv(4096))


def open_sockets(watching: Watching) -> int:
    """Return the number of sockets of the process."""
    links = Path(f"/proc/{watching.process.pid}/fd").iterdir()
    found = 0
    for link in links:
        with contextlib.suppress(OSError):
            found += os.readlink(link).startswith("socket:")
    return found


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_page_that_stops_reading_is_dropped_and_the_others_go_on(tmp_path: Path) -> None:
    names = [f"device-{number}-{'x' * 40}" for number in range(60)]
    with SyntheticRun(tmp_path / "run", devices=names) as run, Watching(run.path) as watching:
        for device in range(60):
            run.join(device)
        before, sockets = watching.memory_mb(), open_sockets(watching)
        with socket.socket() as dead:
            dead.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            dead.connect(("127.0.0.1", watching.port))
            dead.sendall(get("/events"))
            eventually(lambda: open_sockets(watching) > sockets)

            def dropped() -> bool:
                for device in range(60):
                    run.step(device)
                time.sleep(0.4)
                return open_sockets(watching) <= sockets

            eventually(dropped, 90)
        assert watching.memory_mb() < before + 30
        assert watching.state()["runs"][0]["about"]["steps_done"] > 100
