"""Examine a trainer: the handshake of `serve`, with its keys, and what the trainer tells without a session."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from msgspec import UNSET

from adc_edge import __version__
from adc_edge.edge_runtime.doctor.report import START_TRAINER, DoctorRow
from adc_edge.errors import AdcEdgeError, SettingError
from adc_edge.files import sha256
from adc_edge.security.keystore import fingerprint
from adc_edge.storage.bundle import MANIFEST
from adc_edge.wire.channel import Channel
from adc_edge.wire.connection import ClientKeys, LinkLost, Stopped
from adc_edge.wire.link_messages import Ping, Pong
from adc_edge.wire.messages import BUNDLE_DIGITS, VERSION
from adc_edge.wire.sockets import check_endpoint

_LIMIT_S = 6.0  # for everything, whatever stands at the address
_ANSWER_MS = 3_000.0
_SHOWN = 8  # digits of a bundle's digest
_BUSY = "try again: a trainer that computes a long step answers after it"


def examine_trainer(endpoint: str, keys: Path | None, insecure: bool, bundle: Path | None) -> Iterator[DoctorRow]:
    """Yield rows about the trainer at ``endpoint``, within a few seconds. No session is opened there.

    Args:
        endpoint: ``tcp://HOST:PORT``.
        keys: this device's key directory.
        insecure: an address that is not loopback is allowed without keys.
        bundle: this device's bundle, to be compared with the trainer's.
    """
    pinned = None
    if keys is not None:
        try:
            pinned = ClientKeys.load(keys)
        except SettingError as error:
            yield _bad("keys", error.received, error.remedy)
            return
        text = f"this device's is {fingerprint(pinned.own.public)}, the trainer's {fingerprint(pinned.trainer)}"
        yield DoctorRow("trainer", "keys", "ok", text)
    answer = _ask(endpoint, pinned)
    if isinstance(answer, DoctorRow):
        yield answer
        return
    pong, rtt_ms = answer
    how = "encrypted" if pinned else "in the clear"
    text = f"{endpoint} answers in {rtt_ms:.1f} ms, {how}; `adc-edge link` measures the rest"
    yield DoctorRow("trainer", "connection", "ok", text, needed=True)
    try:
        check_endpoint(endpoint, insecure, pinned is not None, connecting=True)
    except SettingError as error:
        yield _bad("keys", error.received, error.remedy)
    yield _version(pong)
    if bundle is not None and (bundle / MANIFEST).is_file():
        yield _same_bundle(pong, sha256(bundle / MANIFEST)[:BUNDLE_DIGITS])
    elif pong.bundle is not UNSET:
        yield DoctorRow("trainer", "its bundle", "info", f"{pong.bundle[:_SHOWN]}…; --bundle DIR compares it")


def _ask(endpoint: str, keys: ClientKeys | None) -> tuple[Pong, float] | DoctorRow:
    """Return the trainer's Pong and the milliseconds that it took, or the row that says why there is none."""
    deadline, connected = time.monotonic() + _LIMIT_S, False
    channel = Channel(endpoint, keys=keys, stop=lambda: time.monotonic() > deadline)
    try:
        channel.connect()
        connected, sent = True, time.monotonic()
        channel.send(Ping(1, 0, about=True))
        pong, _ = channel.receive(_ANSWER_MS)
        if isinstance(pong, Pong):
            return pong, (time.monotonic() - sent) * 1e3
        return _bad("connection", f"{endpoint} answers a Ping with a {type(pong).__name__}", _BUSY)
    except LinkLost as lost:
        return _bad("connection", f"{endpoint}: {lost}", lost.remedy or (_BUSY if connected else START_TRAINER))
    except Stopped:
        return _bad("connection", f"{endpoint}: no answer within {_LIMIT_S:g} s", START_TRAINER)
    except AdcEdgeError as error:
        return _bad("connection", f"{endpoint}: {error.received}", error.remedy)
    finally:
        channel.close()


def _version(pong: Pong) -> DoctorRow:
    if pong.version is UNSET:
        text = "adc-edge 0.7 or older: it does not tell which, nor its bundle; `serve` compares the bundles"
        return DoctorRow("trainer", "version", "info", text)
    if pong.version != VERSION:
        text = f"adc-edge {pong.trainer} speaks protocol {pong.version}, this device {VERSION}"
        return _bad("version", text, "install the same version of adc-edge on the device and the trainer")
    here = "as here" if pong.trainer == __version__ else f"here {__version__}, which speaks the same protocol"
    return DoctorRow("trainer", "version", "ok", f"adc-edge {pong.trainer}, {here}", needed=True)


def _same_bundle(pong: Pong, here: str) -> DoctorRow:
    if pong.bundle is UNSET:
        return DoctorRow("trainer", "its bundle", "info", f"not told; here {here[:_SHOWN]}…")
    if pong.bundle == here:
        return DoctorRow("trainer", "its bundle", "ok", f"{here[:_SHOWN]}…, the same as here", needed=True)
    text = f"{pong.bundle[:_SHOWN]}…, here {here[:_SHOWN]}…: another export"
    return _bad("its bundle", text, "copy the trainer's bundle to this device, or start the trainer with this one")


def _bad(name: str, text: str, remedy: str) -> DoctorRow:
    return DoctorRow("trainer", name, "bad", text, remedy, needed=True)
