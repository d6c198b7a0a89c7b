"""The handshake of a connection (CURVE): encrypted, both sides proved, strangers kept out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from adc_edge.errors import RunError
from adc_edge.security.keystore import Devices, KeyPair, fingerprint

Context = zmq.Context[zmq.Socket[bytes]]
_DOMAIN = "adc-edge"
_SELF_TEST_MS = 5_000
_CUT_OFF = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_VERDICTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | _CUT_OFF


class Authenticator(ThreadAuthenticator):
    """From ``start`` to ``stop`` its thread tells libzmq who may connect, and ``on_refused`` who was refused."""

    def __init__(self, context: Context, devices: Devices, on_refused: Callable[[str], None]) -> None:
        super().__init__(context)
        self._devices, self._on_refused = devices, on_refused
        self.expected_stranger = b""  # the self-test's, not worth a word
        self.configure_curve_callback(_DOMAIN, self)

    def callback(self, domain: str, key: bytes) -> bool:
        """Called by pyzmq, whose thread an exception would end: every handshake, and ``stop``, would hang."""
        try:
            why = self._devices.refusal(key)
        except Exception as error:
            why = f"not to be checked ({error})"
        if why is not None and key != self.expected_stranger:
            with contextlib.suppress(Exception):
                self._on_refused(f"refused a device: its key {fingerprint(key)} is {why}")
        return why is None

    async def handle_zap_message(self, msg: list[bytes]) -> None:
        """Called by pyzmq, which by itself lets in whoever comes without encryption where a socket offers that."""
        await super().handle_zap_message(msg if msg[5:6] == [b"CURVE"] else [*msg[:5], b"refused"])


def secure_server(socket: zmq.Socket[bytes], pair: KeyPair) -> None:
    """Before ``bind``: let in only keys that the context's Authenticator allows. Raises RunError: libzmq is too old."""
    if zmq.zmq_version_info() < (4, 3, 3):
        raise RunError(f"libzmq {zmq.zmq_version()} has known holes", "4.3.3 or newer", "pip install --upgrade pyzmq")
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
    socket.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN.encode())
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without it a missing Authenticator lets everybody in


def secure_client(socket: zmq.Socket[bytes], pair: KeyPair, trainer: bytes) -> None:
    """Before ``connect``: speak only to the owner of the key ``trainer``."""
    socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
    socket.setsockopt(zmq.CURVE_SERVERKEY, trainer)


def self_test(endpoint: str, server_public: bytes, authenticator: Authenticator | None = None) -> None:
    """Knock at a bound socket as strangers do, unheard by ``on_refused``. Raises RunError if one is not refused."""
    stranger = KeyPair(*zmq.curve_keypair())
    if authenticator is not None:
        authenticator.expected_stranger = stranger.public
    for who, pair in (("a client without a key", None), ("a key that nobody allowed", stranger)):
        verdict = _knock(endpoint, pair, server_public)
        # A hang-up will do for the first; the second must hear "no", which proves that its key was asked about.
        if verdict == zmq.EVENT_HANDSHAKE_FAILED_AUTH or (pair is None and verdict & _CUT_OFF):
            continue
        came = {zmq.EVENT_HANDSHAKE_SUCCEEDED: "was let in", 0: "had no answer"}.get(verdict, "was cut off unasked")
        remedy = "do not use it so: pip install --upgrade pyzmq, and if that does not help, report it"
        raise RunError(f"self-test of {endpoint}: {who} {came}", "a refusal", remedy)


def _knock(endpoint: str, pair: KeyPair | None, server_public: bytes) -> int:
    """The event that ends one handshake, 0 if none came."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.IPV6, int("[" in host))
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        if pair is not None:
            secure_client(socket, pair, server_public)
        with socket.get_monitor_socket(_VERDICTS) as monitor:  # left open it would keep the context from ending
            socket.connect(f"tcp://{host}:{port}")
            return recv_monitor_message(monitor)["event"] if monitor.poll(_SELF_TEST_MS) else 0
