"""The CURVE handshake of a connection: encryption, proof of both identities, refusal of unauthenticated peers."""

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
    """Decides which keys may connect, in a thread of its own, and reports refused keys to ``on_refused``."""

    def __init__(self, context: Context, devices: Devices, on_refused: Callable[[str], None]) -> None:
        super().__init__(context)
        self._devices, self._on_refused = devices, on_refused
        self.self_test_key = b""  # the refusal of this key is not reported
        self.configure_curve_callback(_DOMAIN, self)

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a key may connect. Called in pyzmq's thread: an exception there would block all handshakes."""
        try:
            why = self._devices.refusal(key)
        except Exception as error:
            why = f"not to be checked ({error})"
        if why is not None and key != self.self_test_key:
            with contextlib.suppress(Exception):
                self._on_refused(f"refused a device: its key {fingerprint(key)} is {why}")
        return why is None

    async def handle_zap_message(self, msg: list[bytes]) -> None:
        """Refuse every mechanism but CURVE. By itself pyzmq would accept unencrypted peers on a socket that does."""
        await super().handle_zap_message(msg if msg[5:6] == [b"CURVE"] else [*msg[:5], b"refused"])


def secure_server(socket: zmq.Socket[bytes], pair: KeyPair) -> None:
    """Accept only keys that the context's Authenticator allows. Call it before ``bind``.

    Raises:
        RunError: libzmq is too old.
    """
    if zmq.zmq_version_info() < (4, 3, 3):
        received = f"libzmq {zmq.zmq_version()}, which has known security holes"
        raise RunError(received, "4.3.3 or newer", "pip install --upgrade pyzmq")
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
    socket.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN.encode())
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # otherwise every key may connect if there is no Authenticator


def secure_client(socket: zmq.Socket[bytes], pair: KeyPair, trainer: bytes) -> None:
    """Connect only to the owner of the key ``trainer``. Call it before ``connect``."""
    socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
    socket.setsockopt(zmq.CURVE_SERVERKEY, trainer)


def self_test(endpoint: str, server_public: bytes, authenticator: Authenticator | None = None) -> None:
    """Probe a bound socket as an unauthenticated peer. ``on_refused`` gets no report of the probes.

    Raises:
        RunError: a probe was not refused.
    """
    unknown = KeyPair(*zmq.curve_keypair())
    if authenticator is not None:
        authenticator.self_test_key = unknown.public
    for who, pair in (("a client without a key", None), ("a client whose key is not allowed", unknown)):
        verdict = _probe(endpoint, pair, server_public)
        # A closed connection is enough for the first client. The second one must be refused by the Authenticator,
        # which proves that its key was checked.
        if verdict == zmq.EVENT_HANDSHAKE_FAILED_AUTH or (pair is None and verdict & _CUT_OFF):
            continue
        outcomes = {zmq.EVENT_HANDSHAKE_SUCCEEDED: "could connect", 0: "had no answer"}
        came = outcomes.get(verdict, "was cut off before its key was checked")
        remedy = "do not use this socket: pip install --upgrade pyzmq, and if that does not help, report it"
        raise RunError(f"self-test of {endpoint}: {who} {came}", "a refusal", remedy)


def _probe(endpoint: str, pair: KeyPair | None, server_public: bytes) -> int:
    """Attempt one handshake. Return the event that ended it, 0 if none came."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "127.0.0.1"}.get(host, host)  # [::] takes both families
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.IPV6, int("[" in host))
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        if pair is not None:
            secure_client(socket, pair, server_public)
        with socket.get_monitor_socket(_VERDICTS) as monitor:  # an open monitor would block the end of the context
            socket.connect(f"tcp://{host}:{port}")
            return recv_monitor_message(monitor)["event"] if monitor.poll(_SELF_TEST_MS) else 0
