"""What our messages cost beside raw ZeroMQ: round trips of equal payloads on loopback, server in another process.

    python benchmarks/wire.py --json out/wire.json

The head's work is left out on both sides (the gradient is the activations sent back), so that the difference is the
protocol's: headers, checks, chunks, encoding to fp32 and back, label triples, the answer kept for a repeat.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import zmq
from harness import Result, arguments, compare, medians_ms, show

from adc_edge.bundle import HEAD, Bundle
from adc_edge.cloud_trainer.head import HeadTraining, Learned
from adc_edge.cloud_trainer.server import Server
from adc_edge.cloud_trainer.sessions import Sessions
from adc_edge.device_channel import DeviceChannel
from adc_edge.export.build import Settings, export_bundle
from adc_edge.journal import Journal, Key
from adc_edge.labels import label_triples
from adc_edge.learning import OptimizerSettings
from adc_edge.precision import Float32, decode, encode, encoded_bytes
from adc_edge.protocol import VERSION, Gradient, Hello, Step, pack
from adc_edge.ratio import Ratio
from adc_edge.split import head_from_manifest

DIM, KEPT = 64, 16  # 4 kB a cluster at fp32
MODEL_ARGS = {"patch_size": 4, "img_size": 16, "embed_dim": DIM, "num_heads": 2, "depth": 2}


class Echo(HeadTraining):
    """A head whose gradient is what it was given."""

    def learn(self, activations: Float32, soft: Float32, gradient: bool, planned_steps: int) -> Learned:
        return Learned(0.0, 0.0, activations, 0.0)


def serve(bundle_dir: Path, pipe: Connection) -> None:
    bundle = Bundle.load(bundle_dir, (HEAD,))
    head = Echo(head_from_manifest(bundle.manifest), OptimizerSettings())
    server = Server(bundle, head, "tcp://127.0.0.1:*", Sessions(bundle_dir / "log"), max_images=4096)
    raw: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    raw.bind("tcp://127.0.0.1:*")
    pipe.send((server.endpoint, raw.getsockopt_string(zmq.LAST_ENDPOINT)))
    both = zmq.Poller()
    both.register(raw, zmq.POLLIN)
    both.register(server._socket, zmq.POLLIN)
    while not pipe.poll():
        for socket, _ in both.poll(50):
            if socket is raw:
                raw.send_multipart(raw.recv_multipart(copy=False), copy=False)
            else:
                server._receive()
    server.close()
    raw.close(0)


class Device:
    """One device's end, sending the same step with a new number each time."""

    def __init__(self, bundle: Bundle, endpoint: str, size_bytes: int) -> None:
        self.clusters = size_bytes // (4 * KEPT * DIM)
        self.shape = (self.clusters, KEPT, DIM)
        self.activations = np.random.default_rng(0).standard_normal(self.shape).astype(np.float32)
        self.next = 0
        session = size_bytes
        hello = Hello(VERSION, bundle.digest, session, session, "bench", 0, 0, 0)
        self.session = session
        self.journal = Journal(bundle.path / f"journal-{session}")
        self.channel = DeviceChannel(
            endpoint, lambda: hello, self.journal, gradient_bytes=lambda g: encoded_bytes(self.shape, g.precision)
        )
        self.channel.open(30)

    def step(self) -> None:
        labels = np.zeros(self.clusters, np.int64)
        triples = label_triples(np.arange(self.clusters, dtype=np.int64), labels, 10)
        body = encode(self.activations, "fp32") + triples.tobytes()
        counts = (self.clusters, self.clusters, KEPT, len(triples))
        message = Step(self.session, self.next, 0, 1, self.next + 1, len(body), *counts, "fp32", True, self.next)
        self.journal.append(Key(self.next), pack(message), body)
        self.channel.submit(message, body)
        answer, gradient = self.channel.result()
        assert isinstance(answer, Gradient)
        decode(gradient, self.shape, "fp32")
        self.next += 1


def main() -> None:
    parser = arguments("Round trip of our messages v raw ZeroMQ of the same size each way, loopback.")
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "bundle"
        export_bundle(Settings("vit_tiny_patch16_224", 1, path, Ratio(xi=0.5), classes=10, model_args=MODEL_ARGS))
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(path, theirs))
        process.start()
        endpoint, raw_endpoint = ours.recv()
        raw: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        raw.connect(raw_endpoint)
        bundle = Bundle.load(path, ())
        for name, size in (("64 kB", 64 * 1024), ("1 MB", 1024 * 1024)):
            payload = bytes(size)

            def echo(payload: bytes = payload) -> None:
                raw.send(payload, copy=False)
                raw.recv(copy=False)

            device = Device(bundle, endpoint, size)
            ms = medians_ms({"ours": device.step, "raw": echo}, args.rounds, warm_up=10)
            results.append(compare(f"step of {name} each way v raw ZeroMQ", ms["ours"], ms["raw"], "ms"))
            device.channel.close()
        ours.send("over")
        process.join()
        raw.close(0)
    show(f"round trips on loopback, median of {args.rounds}", results, args.json)


if __name__ == "__main__":
    main()
