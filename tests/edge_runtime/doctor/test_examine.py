"""`doctor`: what it says of made-up boards, of this machine, of bundles good and bad."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime import packages
from adc_edge.edge_runtime.doctor import bundle as doctor_bundle
from adc_edge.edge_runtime.doctor.command import doctor
from adc_edge.edge_runtime.doctor.examine import examine as doctor_examine
from adc_edge.edge_runtime.doctor.report import DoctorReport, DoctorRow, health_line, lines
from adc_edge.edge_runtime.packages import Import, Package, ask_torch_cuda
from adc_edge.edge_runtime.trunk.torch_cuda import TorchCuda
from adc_edge.errors import SettingError
from adc_edge.files import sha256
from adc_edge.machine.description import installed_version
from adc_edge.storage.bundle import CALIBRATION, CLIENT, CLIENT_INT8, GOLDEN, HEAD, MANIFEST, TRUNK
from tests.edge_runtime.made_up_board import ORIN, RASPBERRY_PI, put
from tests.wrong_graph import spoil

JETPACK_6: dict[str, str | None] = {  # with the wheels of its maker
    "numpy": "1.26.4",
    "onnxruntime-gpu": "1.23.0",
    "onnxruntime": None,
    "torch": "2.5.0a0+872d972e41.nv24.08",
    "tensorrt": "10.3.0",
    "cuda-python": "12.6.2",
    "timm": None,
    "torchvision": None,
}


def versions(changes: dict[str, str | None]) -> packages.Versions:
    """This machine's, but for the changes."""
    return lambda name: changes[name] if name in changes else installed_version(name) or "99"


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., DoctorReport]:
    """`doctor` on a machine whose imports go well and cost nothing."""
    more = {"onnxruntime": ["CPUExecutionProvider"], "zmq": True}
    monkeypatch.setattr(packages, "try_imports", lambda names: {n: Import(None, more.get(n)) for n in names})
    monkeypatch.setattr(packages, "ask_torch_cuda", lambda: None)
    return doctor_examine


def row(report: DoctorReport, name: str) -> DoctorRow:
    return next(row for row in report.rows if row.name == name)


def shown(report: DoctorReport, width: int = 100) -> str:
    return click.unstyle("\n".join(lines(report, width, "adc-edge serve")))


def copy(bundle_dir: Path, to: Path) -> Path:
    return Path(shutil.copytree(bundle_dir, to / "bundle"))


def test_an_orin_with_jetpack_6(examine: Callable[..., DoctorReport], tmp_path: Path) -> None:
    report = examine(root=put(tmp_path, ORIN), versions=versions(JETPACK_6))
    assert row(report, "model").text.startswith("NVIDIA Jetson Orin Nano")
    assert row(report, "JetPack").text == "6.2.1 (L4T 36.4.7)"
    assert row(report, "processor").text == "Cortex-A78AE, 6 cores (4 switched on)"
    assert row(report, "clocks").remedy == "sudo jetson_clocks, for numbers that repeat"
    assert row(report, "throttling").text == "peak over-current 37 times since it is on"
    assert (row(report, "TCP").kind, "modprobe tcp_bbr" in (row(report, "TCP").remedy or "")) == ("missing", True)
    assert "onnxruntime 1.23.0" in row(report, "device").text  # by the name of its distribution for GPUs
    assert (row(report, "train").kind, row(report, "tensorrt").kind) == ("ok", "ok")
    assert (row(report, "host").kind, row(report, "host").remedy) == ("missing", "pip install 'adc-edge[host]'")
    assert not report.faults
    assert report.trains
    assert "this device can serve, and train its trunk" in shown(report)


@pytest.mark.parametrize(
    ("name", "version", "remedy"),
    [("numpy", "2.2.1", "pip install 'numpy<2'"), ("cuda-python", "13.0.1", "pip install 'cuda-python<13'")],
)
def test_what_jetpack_6_cannot_use_is_warned_of(
    name: str, version: str, remedy: str, examine: Callable[..., DoctorReport], tmp_path: Path
) -> None:
    orin = put(tmp_path, ORIN)
    report = examine(root=orin, versions=versions(JETPACK_6 | {name: version}))
    assert (row(report, name).kind, row(report, name).remedy) == ("warning", remedy)
    others: tuple[tuple[Path, dict[str, str | None]], ...] = ((tmp_path / "none", {name: version}), (orin, JETPACK_6))
    for root, changes in others:
        assert name not in [row.name for row in examine(root=root, versions=versions(changes)).rows]


def test_on_a_jetson_torch_is_not_got_with_pip_alone(examine: Callable[..., DoctorReport], tmp_path: Path) -> None:
    without = versions({"torch": None, "tensorrt": None})
    jetson = examine(root=put(tmp_path / "jetson", ORIN), versions=without)
    other = examine(root=put(tmp_path / "pi", RASPBERRY_PI), versions=without)
    assert "docs/boards.md" in (row(jetson, "train").remedy or "")
    assert row(other, "train").remedy == "pip install 'adc-edge[train]'"
    assert not jetson.faults  # a frozen trunk needs no torch
    assert not jetson.trains
    assert "this device can serve with a frozen trunk" in shown(jetson)
    assert "--trunk frozen" in shown(jetson).splitlines()[-1]


TORCH_MODULE = """
__version__ = "2.12.0"
class version:
    cuda, hip = "13.2", None
class cuda:
    is_available, get_device_name = (lambda: True), (lambda: "Orin")
    get_device_capability, get_arch_list = (lambda: (8, 7)), (lambda: ["sm_80", "sm_90"])
"""


def test_doctor_says_whether_torchs_cuda_fits_the_board(
    examine: Callable[..., DoctorReport], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text(TORCH_MODULE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    lacking = ask_torch_cuda()
    fitting = TorchCuda("2.10.0", "13.2", "Orin", "sm_87")
    rows = []
    for found in (lacking, fitting):
        monkeypatch.setattr(packages, "ask_torch_cuda", lambda found=found: found)
        rows.append(row(examine(root=put(tmp_path / "orin", ORIN), versions=versions(JETPACK_6)), "torch on the GPU"))
    text = "torch 2.12.0 (CUDA 13.2) is built for sm_80, sm_90, and Orin is sm_87"
    assert (rows[0].kind, rows[0].text, "docs/boards.md" in (rows[0].remedy or "")) == ("warning", text, True)
    assert (rows[1].kind, rows[1].text) == ("ok", "works on Orin (sm_87): serve --shim-device cuda")


@pytest.mark.parametrize(
    ("board", "changes", "more"),
    [(RASPBERRY_PI, {}, {}), (ORIN, {"torch": None}, {}), (ORIN, {}, {"golden": False})],
    ids=["no GPU", "no torch", "--health"],
)
def test_doctor_does_not_start_torch_for_nothing(
    examine: Callable[..., DoctorReport],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    board: dict[str, str],
    changes: dict[str, str | None],
    more: dict[str, bool],
) -> None:
    monkeypatch.setattr(packages, "ask_torch_cuda", lambda: pytest.fail("torch was asked"))
    report = examine(root=put(tmp_path, board), versions=versions(changes), **more)
    assert "torch on the GPU" not in [row.name for row in report.rows]


def test_a_raspberry_pi_that_is_throttled(examine: Callable[..., DoctorReport], tmp_path: Path) -> None:
    report = examine(root=put(tmp_path, RASPBERRY_PI), versions=versions({}))
    assert row(report, "model").text == "Raspberry Pi 5 Model B Rev 1.0"
    assert row(report, "throttling").text == "under-voltage now, throttled now"
    assert row(report, "throttling").kind == "warning"
    assert row(report, "TCP").kind == "ok"


@pytest.mark.parametrize(("version", "words"), [(None, "onnxruntime missing"), ("1.17.3", "1.17.3: older than 1.20")])
def test_a_device_without_what_it_needs_cannot_serve(
    examine: Callable[..., DoctorReport], version: str | None, words: str, tmp_path: Path
) -> None:
    changes = {"onnxruntime": version, "onnxruntime-gpu": None}
    report = examine(tmp_path / "bundle", root=tmp_path, versions=versions(changes))
    assert (row(report, "device").kind, row(report, "device").remedy) == ("bad", "pip install --upgrade adc-edge")
    assert words in row(report, "device").text
    assert "this device cannot serve: device, " in shown(report)  # and its bundle is not looked at
    assert health_line(report).startswith("bad: device: ")


def test_a_good_bundle(examine: Callable[..., DoctorReport], bundle_dir: Path, tmp_path: Path) -> None:
    report = examine(bundle_dir, root=tmp_path, versions=versions({"tensorrt": "10.3.0"}))
    assert not report.faults, shown(report)
    assert {CLIENT, TRUNK, HEAD, GOLDEN} <= set(row(report, "digests").text.removeprefix("right: ").split(", "))
    assert (row(report, "computes in").text, row(report, "computes in").kind) == ("fp32", "ok")
    assert "adc-edge calibrate" in (row(report, "computes in").remedy or "")
    assert "100% of assignments" in row(report, "golden pair").text
    assert row(report, "TensorRT").text == "opset 20; TensorRT 10.3.0 takes 9 to 20"
    assert (row(report, "TensorRT").kind, row(report, "TensorRT").remedy) == ("ok", None)


def test_a_copy_for_a_device_may_lack_what_others_need(
    examine: Callable[..., DoctorReport], bundle_dir: Path, tmp_path: Path
) -> None:
    path = copy(bundle_dir, tmp_path)
    (path / HEAD).unlink()
    (path / TRUNK).unlink()
    report = examine(path, root=tmp_path, versions=versions({}))
    assert (row(report, HEAD).kind, row(report, HEAD).text) == ("missing", "not here: the trainer's alone")
    assert "--trunk frozen" in row(report, TRUNK).text
    assert not report.faults
    assert not report.trains


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"?")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        (CLIENT, Path.unlink, "missing"),
        (CLIENT, damage, "changed or damaged"),
        (TRUNK, damage, "changed or damaged"),
        (MANIFEST, truncate, MANIFEST),
    ],
)
def test_a_bad_bundle_is_named(
    examine: Callable[..., DoctorReport],
    name: str,
    harm: Callable[[Path], None],
    words: str,
    bundle_dir: Path,
    tmp_path: Path,
) -> None:
    path = copy(bundle_dir, tmp_path)
    harm(path / name)
    report = examine(path, root=tmp_path, versions=versions({}))
    assert [row.section for row in report.faults] == ["bundle"]
    assert words in report.faults[0].text
    assert report.faults[0].remedy


def test_a_bundle_that_computes_something_else_here_is_bad(
    examine: Callable[..., DoctorReport], bundle_dir: Path, tmp_path: Path
) -> None:
    """Digests are right, the engine is not: here because the golden pair belongs to other weights."""
    path = copy(bundle_dir, tmp_path)
    spoil(path)
    report = examine(path, root=tmp_path, versions=versions({}))
    assert [row.name for row in report.faults] == ["golden pair"]
    assert "activations differ" in report.faults[0].text
    assert not examine(path, root=tmp_path, versions=versions({}), golden=False).faults


def test_a_calibrated_bundle_computes_in_int8(
    examine: Callable[..., DoctorReport], bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy(bundle_dir, tmp_path)
    shutil.copy(path / CLIENT, path / CLIENT_INT8)
    digest = sha256(path / CLIENT)
    calibration = {"format": 1, "client": digest, "int8": digest, "method": "percentile", "images": 8, "report": {}}
    (path / CALIBRATION).write_text(json.dumps(calibration))
    for saturates in (False, True):
        monkeypatch.setattr(doctor_bundle, "int8_saturates", lambda: saturates)  # noqa: B023
        report = examine(path, root=tmp_path, versions=versions({}))
        assert row(report, "computes in").text == "fp32, int8"
        assert [row.kind for row in report.rows if row.name == "int8"] == ["warning"] * saturates
        assert ("no VNNI" in shown(report)) is saturates


def test_a_trainer_that_serves_and_one_that_is_not_there(
    examine: Callable[..., DoctorReport], server: Server, tmp_path: Path
) -> None:
    assert not examine(trainer=server.endpoint, root=tmp_path, versions=versions({})).faults
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
    report = examine(trainer=address, root=tmp_path, versions=versions({}))
    assert [row.name for row in report.faults] == ["connection"]
    assert "adc-edge trainer" in (report.faults[0].remedy or "")
    for wrong in ("127.0.0.1:5700", "tcp://host", "tcp://host:port"):
        with pytest.raises(SettingError, match="tcp://HOST:PORT"):
            examine(trainer=wrong, root=tmp_path, versions=versions({}))
    with pytest.raises(SettingError, match="--keys and --insecure"):
        examine(keys=tmp_path, insecure=True, root=tmp_path)


def test_without_the_packages_for_a_handshake_the_address_alone_is_examined(
    examine: Callable[..., DoctorReport], server: Server, tmp_path: Path
) -> None:
    without = versions({"pyzmq": None})
    found = row(examine(trainer=server.endpoint, data="digits", root=tmp_path, versions=without), "connection")
    assert (found.kind, "not checked: packages are missing" in found.text) == ("info", True)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        report = examine(trainer=address, data="digits", root=tmp_path, versions=without)
    assert [row.name for row in report.faults] == ["device", "digits", "connection"]
    assert "says nothing" in row(report, "connection").text


def call(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(doctor, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_command_says_it_on_a_terminal_in_json_and_in_one_line(bundle_dir: Path, tmp_path: Path) -> None:
    result = call("--bundle", bundle_dir, "--json", tmp_path / "doctor.json")
    able = result.exit_code == 0  # an environment older than pyproject.toml may lack a package
    assert result.output.splitlines()[-1].startswith("next: adc-edge serve" if able else "this device cannot serve")
    found = json.loads((tmp_path / "doctor.json").read_text())
    assert found["can_serve"] is able
    assert found["imports"]["pyzmq"]["more"] is True
    assert "CPUExecutionProvider" in found["imports"]["onnxruntime"]["more"]
    assert {"board", "state", "packages", "rows"} <= set(found)
    health = call("--health", "--bundle", bundle_dir)
    assert (health.exit_code, health.output.count("\n")) == (result.exit_code, 1)
    assert health.output.startswith("ok: " if able else "bad: ")
    assert call("--health", "--bundle", tmp_path / "none").output.startswith("bad: ")


def test_looking_imports_nothing_that_may_be_missing() -> None:
    code = (
        "import sys; from adc_edge.edge_runtime.doctor.examine import examine; examine()\n"
        "from adc_edge.edge_runtime.bench import command\n"
        "heavy = {'torch', 'numpy', 'onnxruntime', 'zmq', 'rich', 'msgspec', 'timm', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
def test_a_package_that_kills_the_process_or_does_not_import_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "illegal.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    (tmp_path / "broken.py").write_text("print('[1]\\nnoise'); raise ImportError('libcudnn.so.9: no such\\nfile')")
    (tmp_path / "leaves.py").write_text("import os; os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = packages.try_imports(["json", "illegal", "broken", "absent_of_course", "leaves", "click"])
    assert {name: how.fault for name, how in found.items()} == {
        "json": None,
        "illegal": "its import ends in SIGILL",
        "broken": "ImportError: libcudnn.so.9: no such file",
        "absent_of_course": "ModuleNotFoundError: No module named 'absent_of_course'",
        "leaves": "its import ends the process (exit code 3)",
        "click": None,
    }


def test_where_no_process_can_be_started_nothing_is_said_of_what_only_one_can_tell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no process")

    monkeypatch.setattr(subprocess, "run", fail)  # as in an emulated user space
    report = doctor_examine(root=tmp_path)
    assert not {"CURVE", "ONNX Runtime"} & {row.name for row in report.rows}
    assert not report.faults


def test_the_groups_are_those_of_the_package() -> None:
    found = packages.find(versions({"torch": "2.6.0"}))
    assert {package.name for package in found if package.group == "device"} >= {"numpy", "onnxruntime", "pyzmq", "rich"}
    torch = {package.group: package for package in found if package.name == "torch"}
    assert torch["train"].good
    assert torch["export"] == Package("torch", "export", ">=2.9", "2.6.0", "older than 2.9")
    assert not {"mypy", "adc-edge"} & {package.name for package in found}


def test_without_packaging_doctor_names_it_and_how_to_get_it(
    examine: Callable[..., DoctorReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)  # its import fails
    report = examine(root=put(tmp_path, ORIN))
    assert (row(report, "device").text, row(report, "device").remedy) == (
        "packaging missing",
        "pip install --upgrade adc-edge",
    )
    assert [row.name for row in report.faults] == ["device"]


@pytest.mark.parametrize(
    ("version", "release"), [("2.5.0a0+872d972e41.nv24.08", (2, 5, 0)), ("10.16.1.11", (10, 16, 1, 11)), ("?", ())]
)
def test_versions_as_they_come(version: str, release: tuple[int, ...]) -> None:
    assert packages.release(version) == release


def test_every_line_fits_a_narrow_terminal(
    examine: Callable[..., DoctorReport], bundle_dir: Path, tmp_path: Path
) -> None:
    report = examine(bundle_dir, root=put(tmp_path, ORIN), versions=versions(JETPACK_6 | {"numpy": "2.0"}))
    *rows, _, _ = shown(report, 80).splitlines()
    assert max(map(len, rows)) <= 80
    assert os.sep not in health_line(report)
