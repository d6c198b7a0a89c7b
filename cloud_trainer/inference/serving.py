"""`trainer --serve-only`: a head that answers inference until it is told to end. Nothing is written to the run."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from adc_edge.cloud_trainer.inference.answers import HeadInference
from adc_edge.cloud_trainer.inference.head_source import find_head
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.runner import Trainer
from adc_edge.cloud_trainer.server import Server
from adc_edge.data.classes import short_list
from adc_edge.errors import CheckpointError

_TELL_EVERY_S = 60.0

logger = logging.getLogger(__name__)


def serve_head(trainer: Trainer, on_listen: Callable[[str], None] = lambda endpoint: None) -> None:
    """Answer inference until the trainer's ``stop`` returns True.

    Args:
        trainer: assembled from checked settings; its head gets the weights that are served.
        on_listen: told the address once it listens.

    Raises:
        CheckpointError: the run has no head of this bundle, or it is damaged.
        SettingError: the address cannot be bound.
    """
    settings, training = trainer.settings, trainer.training
    source = find_head(trainer.bundle, settings.run)
    if settings.run is not None:
        weights = {name: torch.from_numpy(value.copy()) for name, value in source.state.weights().items()}
        try:
            training.head.vit.load_state_dict(weights)
        except RuntimeError as error:
            received = f"{source.state.path}: {error}"
            raise CheckpointError(received, "the weights of the bundle's head", "name the right --run") from None
    nowhere = Path(tempfile.gettempdir()) / "adc-edge-no-session"  # no session is ever opened, so nothing is made there
    server = Server(
        trainer.bundle,
        training,
        settings.bind,
        SessionRegistry(nowhere),
        access=trainer.access,
        max_images=settings.max_images,
    )
    try:
        server.inference = inference = HeadInference(trainer.bundle, training, source.state, source.names)
        manifest = trainer.bundle.manifest
        logger.info("model    %s, cut after block %d of %d", manifest.model, manifest.split, manifest.depth)
        logger.info("head     %s, on %s; it answers inference and does not learn", source.where, training.device)
        if source.names:
            logger.info("classes  %s (%d of %d)", short_list(source.names), len(source.names), manifest.classes)
        trainer.log_access()
        logger.info("listens  %s, until Ctrl-C", server.endpoint)
        on_listen(server.endpoint)
        server.serve(_telling(trainer.stop, inference))
    finally:
        server.close()
    _tell(inference)


def _telling(stop: Callable[[], bool], inference: HeadInference) -> Callable[[], bool]:
    """Return ``stop`` that tells the numbers so far once a minute, if there are new ones."""
    told_s, told = time.monotonic(), 0

    def asked() -> bool:
        nonlocal told_s, told
        if time.monotonic() - told_s > _TELL_EVERY_S:
            told_s = time.monotonic()
            if inference.requests > told:
                told = inference.requests
                _tell(inference)
        return stop()

    return asked


def _tell(inference: HeadInference) -> None:
    each = 1e3 * inference.seconds / max(1, inference.requests)
    logger.info("answered %d requests of %d rows, %.1f ms each", inference.requests, inference.rows, each)
