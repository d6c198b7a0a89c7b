"""Trainers that keep what devices send."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from adc_edge.cloud_trainer.checkpoints import TrainerCheckpoints
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.cloud_trainer.store.alone import AloneTraining
from adc_edge.cloud_trainer.store.stores import ActivationStores
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.run_dir import STORE, RunDir
from tests.serving import serving


@contextmanager
def waiting_trainer(
    bundle: Bundle, training: HeadTraining, run: Path
) -> Iterator[tuple[Server, Callable[[bool], bool]]]:
    """A trainer that keeps its run and does no step alone yet, and what does these steps."""
    with closing(RunDir(run, {}, {})) as run_dir:
        sessions = SessionRegistry(run_dir.journal, stores=ActivationStores(run / STORE, 1e9))
        checkpoints = TrainerCheckpoints(training, sessions, run_dir, 2)
        checkpoints.resume()
        alone = AloneTraining(bundle.manifest, training, sessions, checkpoints, seed=0)
        with serving(Server(bundle, training, "tcp://127.0.0.1:*", sessions, checkpoints)) as server:
            yield server, alone.work
