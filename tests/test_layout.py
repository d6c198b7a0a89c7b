"""The rules of the house that a reader relies on (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("calibration", "cloud_trainer", "edge_runtime", "evaluation", "export")
SOURCES = sorted(p for part in ("adc_edge", *PARTS) for p in (ROOT / part).glob("*.py"))
LIGHT = {"click", "json", "math", "pathlib", "typing", "__future__"}  # what a command module may import at its head
NO_TORCH = (  # what a device with a frozen trunk imports
    "adc_edge/bundle.py adc_edge/channel.py adc_edge/checkpoint.py adc_edge/cli.py adc_edge/data.py "
    "adc_edge/loader.py adc_edge/augment.py adc_edge/precision.py adc_edge/protocol.py adc_edge/framing.py "
    "adc_edge/labels.py adc_edge/learning.py adc_edge/ratio.py adc_edge/run_dir.py adc_edge/spec.py adc_edge/tcp.py "
    "adc_edge/files.py adc_edge/connection.py adc_edge/device_channel.py adc_edge/journal.py adc_edge/curve.py "
    "adc_edge/handshake.py adc_edge/noise.py adc_edge/machine.py edge_runtime/settings.py edge_runtime/state.py "
    "edge_runtime/engine.py edge_runtime/loop.py edge_runtime/onnx_engine.py edge_runtime/runner.py "
    "edge_runtime/tally.py edge_runtime/display.py calibration/link.py adc_edge/agreement.py adc_edge/golden.py "
    "adc_edge/lowrank.py adc_edge/bit_plan.py adc_edge/normal.py "
    "adc_edge/tensorrt_ops.py adc_edge/onnx_session.py edge_runtime/providers.py edge_runtime/board.py "
    "edge_runtime/power.py edge_runtime/packages.py edge_runtime/doctor.py edge_runtime/doctor_report.py "
    "edge_runtime/doctor_bundle.py edge_runtime/bench.py edge_runtime/bench_case.py edge_runtime/bench_report.py "
    "edge_runtime/cuda.py edge_runtime/tensorrt_build.py edge_runtime/tensorrt_cache.py "
    "edge_runtime/tensorrt_check.py edge_runtime/tensorrt_engine.py edge_runtime/tensorrt_library.py "
    "edge_runtime/tensorrt_session.py"
).split()


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("part", PARTS)
def test_a_part_imports_the_core_and_itself_never_another_part(part: str) -> None:
    others = [f"adc_edge.{other}" for other in PARTS if other != part]
    for path in (ROOT / part).glob("*.py"):
        wrong = [m for m in imports(path) if m.startswith(tuple(others)) or m.partition(".")[0] in PARTS]
        assert not wrong, f"{name(path)} imports {wrong}"


def test_the_core_imports_no_part() -> None:
    for path in (ROOT / "adc_edge").glob("*.py"):
        wrong = [m for m in imports(path) if m.startswith(tuple(f"adc_edge.{part}" for part in PARTS))]
        assert not wrong, f"{name(path)} imports {wrong}"


@pytest.mark.parametrize("path", [*ROOT.glob("*/*command.py"), ROOT / "adc_edge" / "options.py"], ids=name)
def test_a_command_module_imports_only_click_at_its_head(path: Path) -> None:
    heavy = {m for m in imports(path, top_level_only=True) if m.partition(".")[0] not in LIGHT | {"collections"}}
    assert heavy <= {"adc_edge.options", "adc_edge.errors"}


@pytest.mark.parametrize("path", [ROOT / p for p in NO_TORCH], ids=name)
def test_what_a_frozen_device_runs_imports_no_torch_and_no_timm(path: Path) -> None:
    heavy = [m for m in imports(path, top_level_only=True) if m.partition(".")[0] in {"torch", "timm", "torchvision"}]
    assert not heavy


def test_only_the_seam_and_the_exporter_know_timm() -> None:
    users = {name(path) for path in SOURCES if any(m.partition(".")[0] == "timm" for m in imports(path))}
    assert users == {"adc_edge/split.py", "export/build.py"}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_and_functions_stay_within_the_house_numbers(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
            assert lines <= 60, f"{node.name}: {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_is_ever_unpickled(path: Path) -> None:
    tree = ast.parse(path.read_text())
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"torch.load", "recv_pyobj", "send_pyobj", "eval", "exec"}
    assert not {"pickle", "cloudpickle", "dill", "marshal", "shelve"} & set(imports(path))


def test_every_part_is_reachable_through_its_link() -> None:
    for part in PARTS:
        link = ROOT / "adc_edge" / part
        assert link.is_symlink()
        assert link.resolve() == ROOT / part
        assert not Path(link.readlink()).is_absolute()


def test_the_changelog_names_the_package_version() -> None:
    from adc_edge import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
