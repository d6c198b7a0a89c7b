"""A bundle with its whole model, timm's model with the same weights, and a trainer that serves the head."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors.torch import load_file

from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
from adc_edge.edge_runtime.infer.link import TrainerLink
from adc_edge.edge_runtime.infer.models import LocalModel, TrunkSender
from adc_edge.edge_runtime.infer.places import JudgingPlaces
from adc_edge.export.whole import whole_graph
from adc_edge.files import sha256
from adc_edge.method.split import create_vit
from adc_edge.storage.bundle import HEAD, MANIFEST, TRUNK, WHOLE, Bundle
from tests.inferring import Device, Whole, head_server
from tests.serving import serving


@pytest.fixture(scope="session")
def whole(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    path = tmp_path_factory.mktemp("whole") / "bundle"
    shutil.copytree(bundle_dir, path)
    manifest = Bundle.load(path, ()).manifest
    vit = create_vit(manifest.model, manifest.model_args, manifest.classes)
    vit.load_state_dict(load_file(path / TRUNK) | load_file(path / HEAD))
    (path / WHOLE).write_bytes(whole_graph(vit, manifest.trunk).SerializeToString())
    files = manifest.files | {WHOLE: sha256(path / WHOLE)}
    (path / MANIFEST).write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, files=files)))
    return Whole(Bundle.load(path, (WHOLE, HEAD)), vit.eval())


@pytest.fixture
def head(whole: Whole, tmp_path: Path) -> Iterator[Server]:
    """A trainer that serves the bundle's head, and knows names of its first two outputs."""
    with serving(head_server(whole.bundle, tmp_path / "log", names=["cat", "dog"])) as server:
        yield server


@pytest.fixture
def device(whole: Whole) -> Iterator[Callable[..., Any]]:
    """Make a device: ``device(endpoint, local=, precision=, ratio=, mode=, deadline_s=)``."""
    with ExitStack() as stack:

        def make(endpoint: str | None, local: bool = True, **options: Any) -> Device:
            return stack.enter_context(_device(whole, endpoint, local, **options))

        yield make


@contextmanager
def _device(
    whole: Whole,
    endpoint: str | None,
    local: bool,
    precision: Any = "fp32",
    ratio: Any = None,
    mode: str = "split",
    deadline_s: float | None = None,
    learned: Any = msgspec.UNSET,
) -> Iterator[Device]:
    bundle = whole.bundle
    with ExitStack() as stack:
        here = LocalModel(bundle.file(WHOLE), threads=1) if local else None
        split = link = None
        if endpoint is not None:
            engine = stack.enter_context(OnnxEngine(bundle.client("fp32"), bundle.manifest.trunk, threads=1))
            split = TrunkSender(bundle, engine, precision, ratio, learned)
            link = TrainerLink(endpoint, bundle.digest, bundle.manifest.classes, wants_names=True)
            stack.callback(link.close)
            link.open(20, 1000, 1000)
        yield Device(JudgingPlaces(split, link, here, mode == "auto", deadline_s), link, split)
