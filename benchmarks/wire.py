"""Round trip of our messages compared with raw ZeroMQ: equal payloads, loopback, servers in other processes.

    python benchmarks/wire.py --json out/wire.json

Trunk and head compute nothing (the gradient is the activations sent back), so the difference is the cost of the
protocol: headers, seals, checks, chunks, encoding and decoding on both sides, label triples. One row adds a journal and
a log on disk, as with --run on both sides. Steps follow without a pause, so a step waits for the trainer's work after
its last answer; ``--rest-ms`` adds a pause. Other libraries: rivals.py.
"""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from harness import Result, arguments, compare, show
from rivals import connect_raw, serve_raw, server
from torch import Tensor

from adc_edge.arrays import Float32
from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.head import HeadTraining, Learned
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.codec.precision import Precision, decode, encode, encoded_bytes
from adc_edge.edge_runtime.session import DeviceSession
from adc_edge.export.build import ExportSettings, export_bundle
from adc_edge.method.labels import label_triples
from adc_edge.method.ratio import Ratio
from adc_edge.method.split import head_from_manifest
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import HEAD, Bundle
from adc_edge.storage.journal import Journal, JournalKey
from adc_edge.wire.headers import pack_header
from adc_edge.wire.messages import VERSION, Gradient, Hello, Step

DIM, KEPT = 192, 16  # DeiT-T: 12 kB a cluster in fp32
CLASSES = 10
MAX_IMAGES = 1024  # one image a cluster: 12 MiB a message
MODEL_ARGS = {"patch_size": 4, "img_size": 16, "embed_dim": DIM, "num_heads": 3, "depth": 2}
CASES: tuple[tuple[str, int, Precision, bool], ...] = (  # the last field: both sides keep their runs on disk
    ("64 kB", 64 * 1024, "fp32", False),
    ("1 MB", 1024 * 1024, "fp32", False),
    ("1 MB", 1024 * 1024, "fp32", True),
    ("10 MB", 10 * 1024 * 1024, "fp32", False),
    ("1 MB", 1024 * 1024, "fp16", False),
    ("1 MB", 1024 * 1024, "int8", False),
)
CHECKPOINT_EVERY = 50  # steps; journal and log keep the messages since the checkpoint before the last one
WARM_UP = 5


class Echo(HeadTraining):
    """A head that returns the activations as their gradient."""

    def learn(self, activations: Tensor, soft: Float32, gradient: bool, step: StepAccumulator) -> Learned:
        step.add([None], 0.0, 0.0)
        return Learned(0.0, 0.0, activations, 0.0)

    def update(self, step: StepAccumulator, planned_steps: int) -> None:
        self.steps += 1


class PromisedCheckpoints(TrainerCheckpoints):
    """Checkpoints that are never written, of a trainer that tells its devices the same as if they were."""

    def durable(self, session: int) -> int | None:
        return next((older_checkpoint(s.applied) for s in self._sessions if s.id == session), 0)


def older_checkpoint(step: int) -> int:
    """The first step that a side at ``step`` may restart from."""
    return max(0, step // CHECKPOINT_EVERY - 1) * CHECKPOINT_EVERY


def serve(bundle_dir: Path, kept: bool, pipe: Connection) -> None:
    bundle = Bundle.load(bundle_dir, (HEAD,))
    head = Echo(head_from_manifest(bundle.manifest), OptimizerSettings())
    sessions = SessionRegistry(bundle_dir / f"log-{kept}")
    checkpoints = PromisedCheckpoints(head, sessions) if kept else None
    trainer = Server(bundle, head, "tcp://127.0.0.1:*", sessions, checkpoints, max_images=MAX_IMAGES)
    over = threading.Event()

    def wait() -> None:  # polling the pipe after each message would cost more than the message
        pipe.poll(None)
        over.set()

    threading.Thread(target=wait).start()
    pipe.send(trainer.endpoint)
    trainer.serve(over.is_set)
    trainer.close()


class Device:
    """A device that sends the same step again and again, with a new number each time."""

    _sessions = itertools.count(1)

    def __init__(self, bundle: Bundle, endpoint: str, size_bytes: int, precision: Precision, kept: bool) -> None:
        self.precision: Precision = precision
        self.kept = kept
        self.clusters = size_bytes // (4 * KEPT * DIM)
        self.shape = (self.clusters, KEPT, DIM)
        self.activations = np.random.default_rng(0).standard_normal(self.shape).astype(np.float32)
        self.next = 0
        self.number = next(self._sessions)
        hello = Hello(VERSION, bundle.digest, self.number, self.number, "bench", 0, 0 if kept else None, 0)
        self.journal = Journal(bundle.path / f"journal-{self.number}")
        self.session = DeviceSession(endpoint, lambda: hello, self.journal, DIM)

    def step(self) -> Float32:
        """Do everything in a step but the computation of trunk and head. Return the gradient."""
        images = np.arange(self.clusters, dtype=np.int64)
        triples = label_triples(images, np.zeros_like(images), CLASSES)
        body = encode(self.activations, self.precision, triples.tobytes())
        message = Step(
            session=self.number,
            step=self.next,
            micro_batch=0,
            transfer=self.next + 1,
            body_bytes=len(body),
            images=self.clusters,
            clusters=self.clusters,
            kept=KEPT,
            triples=len(triples),
            precision=self.precision,
            gradient=self.precision,
            durable=older_checkpoint(self.next) if self.kept else None,
        )
        self.session.submit(message, body)
        if self.session.trainer_keeps:
            self.journal.append(JournalKey(self.next), pack_header(message), body)  # while the message is in transit
        answer, gradient = self.session.result()
        assert isinstance(answer, Gradient)
        self.next += 1
        return decode(gradient, self.shape, self.precision)


@contextmanager
def device(bundle: Bundle, endpoint: str, size_bytes: int, precision: Precision, kept: bool) -> Iterator[Device]:
    """A connected device, after a check that its gradient is the activations."""
    one = Device(bundle, endpoint, size_bytes, precision, kept)
    one.session.open(30)
    try:
        np.testing.assert_allclose(one.step(), one.activations, atol=0.05)
        yield one
    finally:
        one.session.close()


def medians_rested_ms(cases: Mapping[str, Callable[[], object]], rounds: int, rest_s: float) -> dict[str, float]:
    """The same as harness.medians_ms, with a pause before each call in which the trainer finishes the call before."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    order, rng = list(cases), random.Random(0)
    for turn in range(WARM_UP + rounds):
        rng.shuffle(order)
        for name in order:
            time.sleep(rest_s)
            start = time.perf_counter()
            cases[name]()
            if turn >= WARM_UP:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(
    bundle: Bundle, endpoints: Mapping[bool, str], raw: Callable[[bytes], object], rounds: int, rest_s: float
) -> Iterator[Result]:
    for name, size, precision, kept in CASES:
        with device(bundle, endpoints[kept], size, precision, kept) as one:
            sent = encoded_bytes(one.shape, precision)
            cases: dict[str, Callable[[], object]] = {"ours": one.step, "raw": partial(raw, bytes(sent))}
            ms = medians_rested_ms(cases, rounds if size < 2**23 else max(1, rounds // 4), rest_s)
        what = f"{name} each way" if precision == "fp32" else f"{name} as {precision}, {sent / 2**20:.2f} MB each way"
        what += ", journal and log on disk" if kept else ""
        yield compare(f"step of {what} v raw ZeroMQ", ms["ours"], ms["raw"], "ms")
        yield compare(f"step of {what}, ours minus raw", ms["ours"] - ms["raw"], ms["raw"], "ms")


def main() -> None:
    parser = arguments("Round trip of our messages v raw ZeroMQ of the same size each way, loopback.")
    parser.add_argument("--rounds", type=int, default=200, help="number of round trips; a quarter of it for 10 MB")
    parser.add_argument("--rest-ms", type=float, default=0.0, help="pause before each round trip")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "bundle"
        export_bundle(
            ExportSettings("vit_tiny_patch16_224", 1, path, Ratio(xi=0.5), classes=CLASSES, model_args=MODEL_ARGS)
        )
        bundle = Bundle.load(path, ())
        with (
            server(partial(serve, path, False)) as loose,
            server(partial(serve, path, True)) as kept,
            server(serve_raw) as there,
            connect_raw(there) as raw,
        ):
            results = list(measure(bundle, {False: loose, True: kept}, raw, args.rounds, args.rest_ms / 1e3))
    show(f"round trips on loopback, median of {args.rounds}; target: 1 MB within 2 ms of raw", results, args.json)


if __name__ == "__main__":
    main()
