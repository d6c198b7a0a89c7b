"""The round trip of wire.py through other libraries: a payload up, the same bytes back, two processes, loopback.

    VENV/bin/python benchmarks/rivals.py --json out/rivals.json

The libraries do not all fit into one environment, so this file needs only rich and pyzmq, and skips a library that is
not installed. The reference of each row is raw ZeroMQ with the same payload in the same run; the calls take turns.

Measured with Python 3.11 and grpcio 1.85.1, nvflare 2.9.0, hivemind 1.1.12, pyzmq 27.3.0. Each is set up for speed:

- grpcio: one unary method of plain bytes, no protobuf, no limit of the message size.
- nvflare: `CoreCell` is its lowest layer, and its jobs use `Cell`. Bytes are sent unchanged. Arrays, which a job sends,
  pass its decomposers and, in a Cell, its downloads.
- hivemind: a unary call with the bytes in its own Tensor message, uvloop, its limit of 4 MiB raised. Its two libp2p
  daemons are separate processes and always encrypt.

Flower is left out: its SuperLink keeps messages until a SuperNode polls for them, every 3 s.
"""

from __future__ import annotations

import asyncio
import importlib.util
import multiprocessing
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import zmq
from harness import Result, arguments, compare, medians_ms, show

LARGEST_BYTES = 64 * 1024 * 1024
SIZES = (("64 kB", 64 * 1024), ("1 MB", 1024 * 1024), ("10 MB", 10 * 1024 * 1024))
START_S = 60.0

Call = Callable[[bytes], Any]  # returns the answer as any buffer


class Rival(NamedTuple):
    """A library to compare. ``serve`` sends its address through the pipe and serves until an object arrives there."""

    name: str
    package: str
    module: str
    serve: Callable[[Connection], None]
    connect: Callable[[Any], AbstractContextManager[Call]]


# Raw ZeroMQ


def serve_raw(pipe: Connection) -> None:
    router: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    router.bind("tcp://127.0.0.1:*")
    pipe.send(router.getsockopt_string(zmq.LAST_ENDPOINT))
    poller = zmq.Poller()
    poller.register(router, zmq.POLLIN)
    poller.register(pipe.fileno(), zmq.POLLIN)
    while not pipe.poll():
        if router in dict(poller.poll()):
            router.send_multipart(router.recv_multipart(copy=False), copy=False)
    router.close(0)


@contextmanager
def connect_raw(endpoint: str) -> Iterator[Call]:
    dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    dealer.connect(endpoint)

    def call(payload: bytes) -> Any:
        dealer.send(payload, copy=False)
        return dealer.recv(copy=False).buffer

    try:
        yield call
    finally:
        dealer.close(0)


# grpcio

_METHOD = "/bench.Bench/Echo"
_GRPC_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def serve_grpc(pipe: Connection) -> None:
    grpc, futures = import_module("grpc"), import_module("concurrent.futures")
    server = grpc.server(futures.ThreadPoolExecutor(2), options=_GRPC_OPTIONS)
    echo = grpc.unary_unary_rpc_method_handler(lambda payload, context: payload)
    service, _, method = _METHOD[1:].partition("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: echo}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    pipe.send(f"127.0.0.1:{port}")
    pipe.poll(None)
    server.stop(0).wait()


@contextmanager
def connect_grpc(address: str) -> Iterator[Call]:
    with import_module("grpc").insecure_channel(address, options=_GRPC_OPTIONS) as channel:
        yield channel.unary_unary(_METHOD)


# NVFlare

_CHANNEL, _TOPIC, _SERVER = "bench", "echo", "server"


def _cell(name: str, url: str, kind: str) -> Any:
    made = getattr(import_module(f"nvflare.fuel.f3.cellnet.{'cell' if kind == 'Cell' else 'core_cell'}"), kind)
    cell = made(name, url, secure=False, credentials={})
    cell.start()
    return cell


def serve_nvflare(kind: str, scheme: str, pipe: Connection) -> None:
    reply = import_module("nvflare.fuel.f3.cellnet.utils").make_reply
    _register_arrays()
    with socket.create_server(("127.0.0.1", 0)) as free:  # nvflare does not accept port 0
        url = f"{scheme}://127.0.0.1:{free.getsockname()[1]}"
    cell = _cell(_SERVER, url, kind)
    cell.register_request_cb(channel=_CHANNEL, topic=_TOPIC, cb=lambda request: reply("ok", body=request.payload))
    pipe.send(url)
    pipe.poll(None)
    cell.stop()


@contextmanager
def connect_nvflare(kind: str, arrays: bool, url: str) -> Iterator[Call]:
    message = import_module("nvflare.fuel.f3.message").Message
    return_code = import_module("nvflare.fuel.f3.cellnet.defs").MessageHeaderKey.RETURN_CODE
    array = import_module("numpy").frombuffer
    _register_arrays()
    cell = _cell(f"site-{time.monotonic_ns()}", url, kind)

    def call(payload: bytes) -> Any:
        request = message(payload={"x": array(payload, "<f4")} if arrays else payload)
        where = {"channel": _CHANNEL, "topic": _TOPIC, "target": _SERVER}
        answer = cell.send_request(**where, request=request, timeout=START_S)
        if answer.get_header(return_code) != "ok":
            raise ConnectionError(answer.get_header(return_code))
        return answer.payload["x"].data if arrays else answer.payload

    try:
        _until_it_answers(call)
        yield call
    finally:
        cell.stop()  # otherwise its threads keep the script from ending


def _register_arrays() -> None:
    decomposer = import_module("nvflare.app_common.decomposers.numpy_decomposers").NumpyArrayDecomposer
    import_module("nvflare.fuel.utils.fobs").register(decomposer)


def _until_it_answers(call: Call) -> None:
    """Repeat a call until it succeeds: the cells find each other in background threads."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            call(bytes(8))
            return
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


# hivemind

_HIVEMIND_OPTIONS = {
    "persistent_conn_max_msg_size": LARGEST_BYTES,
    "auto_nat": False,
    "nat_port_map": False,
    "use_relay": False,
}


def serve_hivemind(pipe: Connection) -> None:
    p2p, tensor = import_module("hivemind.p2p").P2P, import_module("hivemind.proto.runtime_pb2").Tensor

    async def echo(request: Any, context: Any) -> Any:
        return tensor(buffer=request.buffer)

    async def work() -> None:
        here = await p2p.create(**_HIVEMIND_OPTIONS)
        await here.add_protobuf_handler(_TOPIC, echo, tensor)
        pipe.send((here.peer_id.to_base58(), [str(address) for address in await here.get_visible_maddrs()]))
        await asyncio.get_running_loop().run_in_executor(None, pipe.poll, None)
        await here.shutdown()

    import_module("uvloop").run(work())


@contextmanager
def connect_hivemind(address: tuple[str, list[str]]) -> Iterator[Call]:
    p2p, tensor = import_module("hivemind.p2p").P2P, import_module("hivemind.proto.runtime_pb2").Tensor
    peer = import_module("hivemind.p2p").PeerID.from_base58(address[0])
    loop: asyncio.AbstractEventLoop = import_module("uvloop").new_event_loop()
    asyncio.set_event_loop(loop)
    here = loop.run_until_complete(p2p.create(initial_peers=address[1], **_HIVEMIND_OPTIONS))

    def call(payload: bytes) -> Any:
        request = here.call_protobuf_handler(peer, _TOPIC, tensor(buffer=payload), tensor)
        return loop.run_until_complete(request).buffer

    try:
        loop.run_until_complete(here.wait_for_at_least_n_peers(1))
        yield call
    finally:
        loop.run_until_complete(here.shutdown())


# The measurement


def _nvflare(kind: str, scheme: str, arrays: bool) -> Rival:
    name = f"nvflare {kind} {scheme} {'arrays' if arrays else 'bytes'}"
    serve, connect = partial(serve_nvflare, kind, scheme), partial(connect_nvflare, kind, arrays)
    return Rival(name, "nvflare", "nvflare", serve, connect)


RIVALS = (
    Rival("grpcio", "grpcio", "grpc", serve_grpc, connect_grpc),
    _nvflare("CoreCell", "tcp", arrays=False),
    _nvflare("CoreCell", "tcp", arrays=True),
    _nvflare("Cell", "tcp", arrays=False),
    _nvflare("Cell", "tcp", arrays=True),
    _nvflare("Cell", "grpc", arrays=True),
    Rival("hivemind", "hivemind", "hivemind", serve_hivemind, connect_hivemind),
)


@contextmanager
def server(serve: Callable[[Connection], None]) -> Iterator[Any]:
    """Run ``serve`` in a process that ends with the context. Yield the address that it sends."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # so that the end of the server is noticed
    try:
        if not ours.poll(START_S):
            raise TimeoutError(f"the server did not start within {START_S:.0f} s")
        yield ours.recv()
    finally:
        if process.is_alive():
            ours.send("over")
        process.join(10)
        process.kill()


def measure(rival: Rival, raw: Call, rounds: int) -> list[Result]:
    results: list[Result] = []
    with server(rival.serve) as address, rival.connect(address) as call:
        for name, size in SIZES:
            payload = random.Random(0).randbytes(size)
            if bytes(call(payload)) != payload:
                raise ValueError(f"the answer to {name} differs from the bytes that were sent")
            cases = {"rival": partial(call, payload), "raw": partial(raw, payload)}
            ms = medians_ms(cases, rounds, warm_up=5)
            row = f"{rival.name} {version(rival.package)}, {name} each way"
            results.append(compare(row, ms["rival"], ms["raw"], "ms"))
    return results


def main() -> None:
    parser = arguments("Round trip of equal payloads through other libraries v raw ZeroMQ, loopback.")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--only", default="", help="measure only libraries whose name has this prefix")
    args = parser.parse_args()
    results: list[Result] = []
    with server(serve_raw) as address, connect_raw(address) as raw:
        for rival in (rival for rival in RIVALS if rival.name.startswith(args.only)):
            if importlib.util.find_spec(rival.module) is None:
                print(f"{rival.name} is not installed: pip install {rival.package}")
                continue
            try:
                results += measure(rival, raw, args.rounds)
            except Exception as error:  # the other rows are useful without it
                print(f"{rival.name} cannot be measured here: {type(error).__name__}: {error}", file=sys.stderr)
    show(f"round trips on loopback, median of {args.rounds}", results, args.json)


if __name__ == "__main__":
    main()
