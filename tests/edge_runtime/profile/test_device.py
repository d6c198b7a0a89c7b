"""`adc-edge profile` on a small bundle: times that add up, a file that is read back, and nothing that changes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from adc_edge.cli import main
from adc_edge.cloud_trainer.server import Server
from adc_edge.codec.precision import PRECISIONS
from adc_edge.edge_runtime.engines.onnxruntime import OnnxEngine
from adc_edge.edge_runtime.profile.device import DeviceMeasurement
from adc_edge.edge_runtime.profile.fitted import fit_forward
from adc_edge.edge_runtime.profile.parts import graph_bytes, pass_seconds
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.edge_runtime.trunk.trainer import Shim
from adc_edge.errors import SettingError
from adc_edge.files import sha256
from adc_edge.machine.description import describe_machine
from adc_edge.method.ratio import Shape
from adc_edge.method.spec import TrunkSpec
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.planning.profile import DeviceProfile, check_profile, read_profile
from adc_edge.planning.timing import finished, timed
from adc_edge.planning.work import last_work
from adc_edge.storage.bundle import CLIENT, TRUNK, Bundle


@pytest.fixture(scope="module", autouse=True)
def processor_time() -> Iterator[None]:
    """Times are those of the processor, which another process does not lengthen: everything has one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", time.process_time)
        yield


@pytest.fixture(scope="module")
def profile(bundle: Bundle, processor_time: None) -> DeviceProfile:
    return DeviceMeasurement(ServeSettings(bundle.path, "", threads=1)).run()


@pytest.mark.slow
@pytest.mark.timed
def test_its_parts_add_up_to_whole_forwards(bundle: Bundle) -> None:
    rng = np.random.default_rng(0)
    images, rows = rng.standard_normal((16, 3, 16, 16), np.float32), np.arange(10)
    ratios = []
    with OnnxEngine(bundle.file(CLIENT), bundle.manifest.trunk, threads=1) as engine:
        work = {"forward": lambda: engine.compress(images, rows, 10)}
        for _ in range(3):  # a machine that others use has another speed from one second to the next
            measured = DeviceMeasurement(ServeSettings(bundle.path, "", threads=1)).run()
            whole = finished(timed(work, 15, 5.0))["forward"]
            parts = measured.embedding.forward + sum(block.forward for block in measured.blocks)
            ratios.append((measured.call_seconds + 16 * parts) / whole)
    assert 0.4 < float(np.median(ratios)) < 2.5, ratios


def test_every_part_phase_and_precision_has_a_time(bundle: Bundle, profile: DeviceProfile) -> None:
    assert (profile.bundle, profile.split, len(profile.blocks)) == (bundle.digest, 2, 2)
    assert (profile.images, profile.tokens, profile.dim, profile.mlp_dim) == (16, 17, 32, 128)
    assert profile.trains
    assert not profile.keeps_graph
    for part in (profile.embedding, *profile.blocks):
        assert min(part.forward, part.recompute, part.backward) >= 0
    assert sum(block.backward for block in profile.blocks) > 0
    assert min(profile.update_seconds, profile.data_seconds) > 0
    assert profile.codec.keys() == set(PRECISIONS)
    assert all(codec.encode.seconds(500) > 0 < codec.decode.seconds(500) for codec in profile.codec.values())


def test_exact_times_give_exact_parts() -> None:
    spec = TrunkSpec((32, 32), (4, 4), 3, 64, 2, 4, 256)
    shapes = [Shape(32, 65, 16, 30), Shape(8, 65, 4, 30), Shape(2, 65, 2, 30), Shape(32, 65, 16, 65)]
    works = [last_work(shape, 64, 256) for shape in shapes]

    def seconds(shape: Shape, work: float) -> float:
        return 0.002 + shape.images * (0.001 + 3 * 0.004 + 0.001 + 0.003 * work)

    image = 0.001 + 3 * 0.004 + 0.001 + 0.003 * works[0]
    shares = [part / image for part in (0.001, 0.004, 0.004, 0.004, 0.001 + 0.003 * works[0])]
    found = fit_forward(spec, shapes, [seconds(*pair) for pair in zip(shapes, works, strict=True)], shares)
    assert found.forward_call == pytest.approx(0.002)
    assert found.embedding.forward == pytest.approx(0.001)
    assert [block.forward for block in found.blocks[:3]] == pytest.approx([0.004] * 3)
    assert found.last.forward.seconds(works[3]) == pytest.approx(0.001 + 0.003 * works[3])


def test_the_parts_of_a_pass_add_up_and_its_graph_is_counted(bundle: Bundle) -> None:
    shim = Shim(bundle.manifest.trunk, bundle.file(TRUNK), OptimizerSettings())
    images = np.random.default_rng(0).standard_normal((8, 3, 16, 16), np.float32)
    sent = shim.compress(images, np.arange(4), 8)
    shim.drop()
    found = pass_seconds(shim, images, sent)
    assert len(found.recompute) == len(found.backward) == 3  # embedding and two blocks
    assert min(*found.recompute, *found.backward) > 0
    assert shim.waiting == 0
    _, block, last = graph_bytes(shim, images, sent)
    values = 17 * 32 * 4  # bytes of an image's tokens
    assert 12 * values < block < 25 * values  # about 17: the MLP alone has 8
    assert 0 < last < block


def test_the_weights_stay_as_they_are(bundle: Bundle, profile: DeviceProfile) -> None:
    assert {name: sha256(bundle.path / name) for name in bundle.manifest.files} == bundle.manifest.files


def test_torch_s_own_forward_serves_the_backward(bundle: Bundle) -> None:
    found = DeviceMeasurement(ServeSettings(bundle.path, "", engine="torch", threads=1, batch_size=4)).run()
    assert found.keeps_graph
    assert found.images == 4
    assert found.call_seconds + sum(block.forward for block in found.blocks) > 0


def test_the_command_fits_80_columns_and_writes_what_plan_reads(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "out" / "profile.json"
    command = ["profile", "--bundle", str(bundle.path), "--trainer", server.endpoint, "--threads", "1"]
    done = CliRunner(env={"COLUMNS": "80"}).invoke(main, [*command, "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 80
    for words in ("block 2 with ADC", "pca0.25", "trainer  cpu, blocks 3 to 4", "device and trainer on one machine"):
        assert words in done.output
    found = read_profile(file)
    assert found.trainer is not None
    check_profile(found, bundle, describe_machine())
    assert list(file.parent.iterdir()) == [file]


def test_a_frozen_trunk_is_measured_without_torch(bundle: Bundle, tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from adc_edge.cli import main; main()"
    file = tmp_path / "p.json"
    options = ["--bundle", str(bundle.path), "--trunk", "frozen", "--json", str(file)]
    done = subprocess.run(
        [sys.executable, "-c", code, "profile", *options], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "backward" not in done.stdout
    found = read_profile(file)
    assert found.trainer is None
    assert not found.device.trains
    assert {(b.recompute, b.backward, b.graph_bytes) for b in found.device.blocks} == {(0.0, 0.0, 0)}
    assert sum(block.forward for block in found.device.blocks) > 0


@pytest.mark.parametrize(
    ("more", "words"),
    [({"compute": "int8"}, "--trunk frozen"), ({"engine": "torch", "compute": "fp16"}, "--compute fp16")],
)
def test_settings_that_serve_refuses_are_refused(bundle: Bundle, more: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        DeviceMeasurement(ServeSettings(bundle.path, "", **more))
