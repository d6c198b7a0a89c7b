"""A bundle with everything that engines want."""

from __future__ import annotations

import shutil

import msgspec
import onnx
import pytest
from safetensors.torch import load_file

from adc_edge.export.graph import client_graph, without_weights
from adc_edge.files import sha256
from adc_edge.method.trunk import Trunk
from adc_edge.storage.bundle import CLIENT_BARE, CLIENT_FP16, MANIFEST, TRUNK, Bundle


@pytest.fixture(scope="package")
def half(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small bundle with what `export --tensorrt` adds: graphs in fp16, with weights and without."""
    path = tmp_path_factory.mktemp("half") / "tiny"
    shutil.copytree(bundle.path, path)
    trunk = Trunk(bundle.manifest.trunk)
    trunk.load_state_dict(load_file(path / TRUNK))
    graph = client_graph(trunk, half=True)
    onnx.save(graph, path / CLIENT_FP16)
    onnx.save(without_weights(graph), path / CLIENT_BARE)
    files = bundle.manifest.files | {name: sha256(path / name) for name in (CLIENT_FP16, CLIENT_BARE)}
    (path / MANIFEST).write_bytes(msgspec.json.encode(msgspec.structs.replace(bundle.manifest, files=files)))
    return Bundle.load(path, tuple(files))
