"""`doctor --trainer`: the handshake of `serve` with real trainers, and with what is no trainer."""

from __future__ import annotations

import http.server
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from adc_edge import __version__
from adc_edge.cloud_trainer.access import Access
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime.doctor.command import doctor
from adc_edge.edge_runtime.doctor.report import DoctorRow
from adc_edge.edge_runtime.doctor.trainer import examine_trainer
from adc_edge.security import keystore
from adc_edge.storage.bundle import MANIFEST, Bundle
from adc_edge.wire import messages
from adc_edge.wire.headers import pack_header
from adc_edge.wire.link_messages import Pong
from tests.serving import logged, serving

Keyed = Callable[[str], Path]


def rows(endpoint: str, keys: Path | None = None, insecure: bool = False, bundle: Path | None = None) -> Any:
    """The rows about a trainer by name; all of them come within the bound."""
    start = time.monotonic()
    found = {row.name: row for row in examine_trainer(endpoint, keys, insecure, bundle)}
    assert time.monotonic() - start < 20  # 6 s, and a busy machine
    return found


def kinds(found: dict[str, DoctorRow]) -> dict[str, str]:
    return {name: row.kind for name, row in found.items()}


@pytest.fixture
def keyed(bundle: Bundle, training: HeadTraining, home: Path, tmp_path: Path) -> Iterator[Server]:
    """A trainer that wants keys."""
    with logged() as lines:
        sessions = SessionRegistry(tmp_path / "log")
        server = Server(bundle, training, "tcp://127.0.0.1:*", sessions, access=Access(home))
        server.lines = lines  # type: ignore[attr-defined]
        with serving(server):
            yield server


@pytest.fixture
def device_keys(home: Path, tmp_path: Path) -> Keyed:
    """Make the key directory of a device that trusts the trainer in ``home``."""

    def make(name: str) -> Path:
        keystore.make_keys(tmp_path / name)
        keystore.pin(tmp_path / name, keystore.load_pair(home).public)
        return tmp_path / name

    return make


def test_a_trainer_with_the_same_bundle_is_told_with_its_version(server: Server, bundle_dir: Path) -> None:
    found = rows(server.endpoint, bundle=bundle_dir)
    assert kinds(found) == {"connection": "ok", "version": "ok", "its bundle": "ok"}
    assert "answers in" in found["connection"].text
    assert found["version"].text == f"adc-edge {__version__}, as here"
    assert "the same as here" in found["its bundle"].text


def test_the_examination_opens_no_session_and_leaves_no_warning_at_the_trainer(server: Server) -> None:
    found = rows(server.endpoint)
    assert (found["its bundle"].kind, found["connection"].kind) == ("info", "ok")  # no --bundle to compare
    assert list(server.sessions) == []
    assert server.lines == []  # type: ignore[attr-defined]


def test_another_bundle_is_named_by_both_digests(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle.path, tmp_path / "other"))
    (other / MANIFEST).write_text((other / MANIFEST).read_text().replace("0.4", "0.5"))
    row = rows(server.endpoint, bundle=other)["its bundle"]
    here = Bundle.load(other, ()).digest
    assert row.fault
    assert row.text == f"{bundle.digest[:8]}…, here {here[:8]}…: another export"
    assert "copy the trainer's bundle" in (row.remedy or "")


def test_a_trainer_that_wants_keys_says_so_to_a_device_without(keyed: Server) -> None:
    row = rows(keyed.endpoint)["connection"]
    assert row.fault
    assert "keys on one side only, the trainer's" in row.text
    assert "use --keys DIR" in (row.remedy or "")


def test_an_allowed_key_gets_the_same_answers_encrypted(
    keyed: Server, home: Path, device_keys: Keyed, bundle_dir: Path
) -> None:
    keys = device_keys("orin")
    keystore.allow(home, "orin", keystore.load_pair(keys).public)
    found = rows(keyed.endpoint, keys, bundle=bundle_dir)
    assert kinds(found) == {"keys": "ok", "connection": "ok", "version": "ok", "its bundle": "ok"}
    assert "encrypted" in found["connection"].text


def test_a_key_that_is_not_allowed_comes_with_the_line_to_allow(keyed: Server, device_keys: Keyed) -> None:
    keys = device_keys("stranger")
    row = rows(keyed.endpoint, keys)["connection"]
    assert row.fault
    assert "does not know this device's key" in row.text
    assert "adc-edge keys allow" in (row.remedy or "")
    assert f"public = {keystore.load_pair(keys).public.decode()}" in (row.remedy or "")


def test_a_trainer_of_another_key_than_the_pinned_one_is_refused(keyed: Server, tmp_path: Path) -> None:
    keystore.make_keys(tmp_path / "device")
    keystore.pin(tmp_path / "device", keystore.make_keys(tmp_path / "another").public)
    row = rows(keyed.endpoint, tmp_path / "device")["connection"]
    assert row.fault
    assert "its key is not the one in trainer.key" in row.text
    assert "adc-edge keys pin FILE" in (row.remedy or "")


def test_a_trainer_without_keys_is_told_from_one_with_other_keys(server: Server, device_keys: Keyed) -> None:
    row = rows(server.endpoint, device_keys("orin"))["connection"]
    assert row.fault
    assert "keys on one side only, this device's" in row.text
    assert "start the trainer with its --keys DIR" in (row.remedy or "")


def test_a_key_directory_without_keys_is_named_and_nothing_is_sent(server: Server, tmp_path: Path) -> None:
    found = rows(server.endpoint, tmp_path)
    assert kinds(found) == {"keys": "bad"}
    assert "adc-edge keys new" in (found["keys"].remedy or "")


class Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, format: str, *values: Any) -> None:
        """Print nothing."""


@contextmanager
def http_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"tcp://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextmanager
def silent() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def nobody() -> Iterator[str]:
    with silent() as endpoint:
        pass
    yield endpoint


def test_what_is_no_trainer_is_named_within_seconds() -> None:
    expected = (
        ("an HTTP server answers", "check host and port"),
        ("accepts connections and says nothing", "start `adc-edge trainer`"),
        ("connection refused", "start `adc-edge trainer`"),
    )
    with http_server() as http_endpoint, silent() as silent_endpoint, nobody() as closed, ThreadPoolExecutor() as pool:
        found = list(pool.map(rows, (http_endpoint, silent_endpoint, closed)))  # at once: each takes some seconds
    for (words, remedy), answer in zip(expected, found, strict=True):
        assert answer["connection"].fault
        assert words in answer["connection"].text
        assert remedy in answer["connection"].remedy


@pytest.fixture
def old_trainer(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A trainer that knows no field `about`, as 0.7 and older."""
    monkeypatch.setattr(server._pongs, "about", {})
    return server


def test_an_old_trainer_that_tells_nothing_about_itself_can_be_served(old_trainer: Server, bundle_dir: Path) -> None:
    found = rows(old_trainer.endpoint, bundle=bundle_dir)
    assert kinds(found) == {"connection": "ok", "version": "info", "its bundle": "info"}
    assert "0.7 or older" in found["version"].text


def test_a_trainer_of_another_protocol_is_bad(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        server._pongs, "about", {"version": messages.VERSION + 1, "trainer": "9.0.0", "bundle": "0" * 12}
    )
    row = rows(server.endpoint)["version"]
    assert row.fault
    assert "speaks protocol 4, this device 3" in row.text


@pytest.mark.parametrize("options", [[], ["--health"]])
def test_what_a_trainer_tells_gives_the_terminal_no_orders(
    server: Server, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    told = {"version": messages.VERSION + 1, "trainer": "9\x1b[2J", "bundle": "0" * 12}
    monkeypatch.setattr(server._pongs, "about", told)
    result = CliRunner().invoke(doctor, ["--trainer", server.endpoint, *options], color=True)
    assert "\x1b[2J" not in result.output
    assert "adc-edge 9\\x1b[2J speaks" in " ".join(result.output.split())


def test_a_ping_that_does_not_ask_gets_the_bytes_it_always_got() -> None:
    """The link is measured by Pongs, and a device of 0.7 reads them."""
    assert pack_header(Pong(1, 2, 3)) == b"\x84\xa4kind\xa4pong\xa5nonce\x01\xaabody_bytes\x02\xa8transfer\x03"


def test_the_command_ends_with_1_and_the_line_to_type_next_has_the_same_options(
    keyed: Server, home: Path, device_keys: Keyed, bundle_dir: Path
) -> None:
    keys = device_keys("orin")
    command = ["--trainer", keyed.endpoint, "--bundle", str(bundle_dir), "--data", "digits"]
    refused = CliRunner().invoke(doctor, [*command, "--health"])
    assert refused.exit_code == 1
    assert "keys on one side only, the trainer's" in refused.output
    keystore.allow(home, "orin", keystore.load_pair(keys).public)
    can = CliRunner().invoke(doctor, [*command, "--keys", str(keys)])
    if can.exit_code == 0:  # an environment older than pyproject.toml may lack a package
        assert f"--trainer {keyed.endpoint} --data digits --keys {keys}" in can.output.splitlines()[-1]
