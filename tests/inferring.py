"""Parts of the tests of `infer`: a bundle with timm's model of both halves, a server of its head, image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from adc_edge.arrays import Float32
from adc_edge.cloud_trainer.access import Access
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.inference.answers import HeadInference
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.data.preprocessing import Preprocessing
from adc_edge.edge_runtime.infer.images import read_picture, version_of
from adc_edge.edge_runtime.infer.link import TrainerLink
from adc_edge.edge_runtime.infer.models import TrunkSender
from adc_edge.edge_runtime.infer.places import JudgingPlaces
from adc_edge.method.split import head_from_manifest
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import HEAD, Bundle
from adc_edge.storage.halves import HalfState


class Whole(NamedTuple):
    """The bundle, and timm's model of both its halves."""

    bundle: Bundle
    vit: torch.nn.Module

    @torch.no_grad()
    def logits(self, images: Float32) -> Float32:
        found: Float32 = self.vit(torch.from_numpy(images)).numpy()
        return found

    def images(self, count: int, seed: int = 0) -> Float32:
        spec = self.bundle.manifest.trunk
        shape = (count, spec.channels, *spec.image_size)
        return np.random.default_rng(seed).standard_normal(shape, np.float32)


class Device(NamedTuple):
    """The parts of a device that judges images."""

    places: JudgingPlaces
    link: TrainerLink | None
    split: TrunkSender | None


def head_server(
    bundle: Bundle,
    directory: Path,
    bind: str = "tcp://127.0.0.1:*",
    names: Sequence[str] = (),
    access: Access | None = None,
    steps: int = 0,
    frozen: bool = False,
) -> Server:
    """A trainer that serves the bundle's head, as if that had learned ``steps``."""
    head = head_from_manifest(bundle.manifest)
    head.vit.load_state_dict(load_file(bundle.path / HEAD))
    training = HeadTraining(head, OptimizerSettings())
    server = Server(bundle, training, bind, SessionRegistry(directory), access=access)
    server.inference = HeadInference(bundle, training, HalfState(bundle.path / HEAD, {}, steps, frozen), names)
    return server


def write_images(folder: Path, count: int, first: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04}.png" for number in range(first, first + count)]
    for number, path in enumerate(paths, first):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return paths


def pixels_of(paths: Sequence[Path], preprocessing: Preprocessing) -> Float32:
    """The images of files as the model takes them, ``[B, C, H, W]``."""
    found = [read_picture(version_of(path), preprocessing).pixels for path in paths]
    return np.stack([pixels for pixels in found if pixels is not None])
