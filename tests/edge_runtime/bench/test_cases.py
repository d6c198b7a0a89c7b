"""`bench`: cases measured in processes of their own, what may go wrong there, and how it is told."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from adc_edge.edge_runtime import board
from adc_edge.edge_runtime.bench import case as bench_case
from adc_edge.edge_runtime.bench import report as bench_report
from adc_edge.edge_runtime.bench.cases import (
    Bench,
    BenchCase,
    BenchRequest,
    BenchResult,
    BenchSettings,
    choose_cases,
    find_cases,
    measure_all,
    open_engine,
    run_case,
)
from adc_edge.edge_runtime.bench.command import bench
from adc_edge.errors import BundleError, SettingError
from adc_edge.files import sha256
from adc_edge.method.ratio import Ratio, Shape
from adc_edge.storage.bundle import CALIBRATION, CLIENT, CLIENT_INT8, GOLDEN, MANIFEST, TRUNK, Bundle
from tests.edge_runtime.made_up_board import NVPMODEL, ORIN, ORIN_NANO, put, script
from tests.wrong_graph import spoil

ONNX, INT8, TORCH = (
    BenchCase("onnxruntime", "fp32", 16),
    BenchCase("onnxruntime", "int8", 16),
    BenchCase("torch", "fp32", 16),
)


def copy(bundle_dir: Path, to: Path) -> Path:
    return Path(shutil.copytree(bundle_dir, to / "bundle"))


def calibrated(path: Path) -> Path:
    """With client.onnx in the place of an int8 graph."""
    shutil.copy(path / CLIENT, path / CLIENT_INT8)
    digest = sha256(path / CLIENT)
    calibration = {"format": 1, "client": digest, "int8": digest, "method": "percentile", "images": 8, "report": {}}
    (path / CALIBRATION).write_text(json.dumps(calibration))
    return path


def load(path: Path) -> Bundle:
    return Bundle.load(path, ())


def quick(path: Path, rounds: int = 2) -> BenchSettings:
    return BenchSettings(path, rounds=rounds, seconds=0.0)


def test_by_default_it_is_what_is_possible_here(bundle_dir: Path, tmp_path: Path) -> None:
    cases, absent = find_cases(load(bundle_dir), [16])
    assert cases[0] == ONNX
    assert TORCH in cases
    assert any(text.startswith("onnxruntime int8: no client.int8.onnx") for text in absent)
    assert all(":" in text for text in absent)  # each says what to do about it
    path = calibrated(copy(bundle_dir, tmp_path))
    (path / TRUNK).unlink()
    cases, absent = find_cases(load(path), [8, 16])
    assert {BenchCase("onnxruntime", "int8", 8), INT8} <= set(cases)
    assert any(text.startswith(f"torch: no {TRUNK}") for text in absent)


def test_what_is_asked_for_by_name_gets_a_row_whether_possible_or_not(bundle_dir: Path) -> None:
    bundle = load(bundle_dir)
    assert choose_cases(bundle, [], [], [], [16]) == find_cases(bundle, [16])
    assert choose_cases(bundle, ["tensorrt"], [], [], [16])[0] == [BenchCase("tensorrt", "fp32", 16)]
    assert choose_cases(bundle, [], ["cuda", "cpu"], ["fp16"], [4])[0] == [
        BenchCase("onnxruntime", "fp16", 4, "cuda"),
        BenchCase("onnxruntime", "fp16", 4, "cpu"),
    ]
    both, _ = choose_cases(bundle, ["onnxruntime", "torch"], [], ["fp32", "int8"], [16])
    assert both == [ONNX, INT8, TORCH, BenchCase("torch", "int8", 16)]


def test_a_case_in_a_process_of_its_own(bundle_dir: Path) -> None:
    result = run_case(BenchRequest(ONNX, quick(bundle_dir, rounds=7)))
    assert (result.status, result.reason, result.case, result.rounds) == ("passed", "", ONNX, 7)
    assert result.p50_ms is not None
    assert result.p90_ms is not None
    assert 0 < result.p50_ms <= result.p90_ms <= (result.p99_ms or 0)
    assert result.images_s == pytest.approx(16e3 / result.p50_ms)
    assert (result.assignment, result.tokens) == (1.0, 1.0)
    assert (result.difference or 0) < 1e-4
    assert result.size_mb == (bundle_dir / CLIENT).stat().st_size / 1e6
    assert (result.refresh_ms or 0) >= 0
    assert result.refresh_ms is not None
    if sys.platform == "linux":
        assert 20 < (result.peak_mb or 0) < 250  # this process, with torch in it, holds far more


def test_energy_is_measured_where_there_is_tegrastats(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A made-up one that draws 5 W more from the moment when there is work."""
    working = tmp_path / "working"
    busy = ORIN_NANO.replace("VDD_IN 4824mW", "VDD_IN 9824mW").replace("RAM 3452", "RAM 3600")
    lines = f"if [ -e '{working}' ]; then echo '{busy}'; else echo '{ORIN_NANO}'; fi"
    script(tmp_path / "bin", "tegrastats", f"while :; do {lines}; sleep 0.03; done\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    make_batch = bench_case._batch

    def begin(bundle: Bundle, shape: Shape) -> Any:
        working.touch()
        return make_batch(bundle, shape)

    monkeypatch.setattr(bench_case, "_batch", begin)
    result = bench_case.measure_case(BenchRequest(ONNX, BenchSettings(bundle_dir, rounds=1, seconds=0.6)))
    assert (result.rails, result.energy_note, result.idle_mw) == ("VDD_IN", "", 4824)
    assert 8000 < (result.busy_mw or 0) <= 9825
    seconds = (result.mj_image or 0) * 16 * result.rounds / ((result.busy_mw or 0) - 4824)
    assert 0.6 <= seconds < 2
    assert result.board_mb == 148


def test_a_trunk_of_int8_is_not_refreshed_and_what_is_not_there_is_said(bundle_dir: Path, tmp_path: Path) -> None:
    path = calibrated(copy(bundle_dir, tmp_path))
    frozen = bench_case.measure_case(BenchRequest(INT8, quick(path)))
    assert (frozen.status, frozen.refresh_ms, frozen.refresh_note) == ("passed", None, "–")
    (path / TRUNK).unlink()
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["files"][GOLDEN]
    (path / MANIFEST).write_text(json.dumps(manifest))
    bare = bench_case.measure_case(BenchRequest(ONNX, quick(path)))
    assert (bare.status, bare.reason) == ("not validated", "the bundle has no golden pair")
    assert (bare.assignment, bare.refresh_ms) == (None, None)
    assert bare.refresh_note == f"not measured: no {TRUNK}"
    if shutil.which("tegrastats") is None:
        assert (bare.mj_image, bare.energy_note) == (None, "not measured: no tegrastats here")


def test_an_engine_that_computes_something_else_fails_and_keeps_its_numbers(bundle_dir: Path, tmp_path: Path) -> None:
    path = copy(bundle_dir, tmp_path)
    spoil(path)
    result = bench_case.measure_case(BenchRequest(ONNX, quick(path)))
    assert result.status == "exported but failed validation"
    assert "activations differ" in result.reason
    assert (result.p50_ms or 0) > 0
    assert (result.tokens or 1) < 0.99
    assert not result.good


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
def test_a_process_that_dies_hangs_or_fails_costs_one_row(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_int8 = BenchCase("torch", "int8", 16)
    assert run_case(BenchRequest(torch_int8, quick(bundle_dir))).reason == "engine torch in int8"
    slow = run_case(BenchRequest(ONNX, quick(bundle_dir)), timeout_s=0.05)
    assert (slow.status, slow.reason) == ("failed", "took more than 0 s")
    (tmp_path / "onnxruntime.py").write_text(
        "import os, signal, sys\nprint('out of memory', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 9)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    dead = run_case(BenchRequest(ONNX, quick(bundle_dir)))
    assert (dead.status, dead.reason) == ("failed", "its process ends in SIGKILL: out of memory")


def test_what_cannot_be_is_said_before_anything_is_measured(bundle_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        measure_all(quick(tmp_path / "none"))
    with pytest.raises(SettingError, match="either --ratio"):
        measure_all(BenchSettings(bundle_dir, Ratio(xi=0.2, batch=0.5)))
    bundle = load(bundle_dir)
    shape = quick(bundle_dir).shape(bundle, 4)
    with pytest.raises(SettingError, match="--engine or --compute"):
        open_engine(BenchCase("torch", "fp16", 4), bundle, shape)


@pytest.mark.slow
def test_torch_is_measured_too(bundle_dir: Path) -> None:
    result = run_case(BenchRequest(TORCH, quick(bundle_dir)))
    assert (result.status, result.refresh_ms is not None) == ("passed", True)
    assert result.size_mb == (bundle_dir / TRUNK).stat().st_size / 1e6


def test_the_command_prints_a_table_and_writes_both_files(bundle_dir: Path, tmp_path: Path) -> None:
    arguments = f"--bundle {bundle_dir} --engine onnxruntime --compute fp32 --compute fp16 --rounds 2 --batch-size 8"
    files = f"--ratio 0.3 --markdown {tmp_path}/bench.md --json {tmp_path}/bench.json"
    result = CliRunner().invoke(bench, f"{arguments} {files}".split(), env={"COLUMNS": "100"})
    assert result.exit_code == 1, result.output  # fp16 is not in the bundle, and was asked for
    assert "onnxruntime cpu fp16 B=8: failed:" in result.output
    assert "next: adc-edge serve --bundle" in result.output
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [row["status"] for row in found["results"]] == ["passed", "failed"]
    assert [row["case"]["compute"] for row in found["results"]] == ["fp32", "fp16"]
    assert found["settings"]["ratio"]["xi"] == 0.3
    text = (tmp_path / "bench.md").read_text()
    assert text.count("\n| ") == 4
    assert "| onnxruntime cpu | fp16 | 8 | – |" in text


FULL = BenchResult(
    ONNX, "passed", "", 6, 10, 50, "cpu", 0.2, 123.4, 130.0, 140.0, 129.66, 0.4, "", 137.2, 12.0, 41.25, 9000.0, 4000.0,
    "VDD_IN", "", 7.79, 1.0, 0.9951, 1.2e-6,
)  # fmt: skip


def a_bench(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, *results: BenchResult) -> Bench:
    """On a made-up Orin that grew hot meanwhile."""
    script(tmp_path / "bin", "nvpmodel", NVPMODEL)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    before = board.board_state(put(tmp_path, ORIN))
    put(tmp_path, {"sys/class/thermal/thermal_zone8/temp": "88125\n"})
    put(tmp_path, {"sys/class/thermal/cooling_device8/cur_state": "1\n"})
    after = board.board_state(tmp_path)
    absent = ["torch: not installed: pip install 'adc-edge[train]'"]
    return Bench(quick(Path("out dir")), bundle, board.describe_board(tmp_path), before, after, results, absent)


def test_the_header_tells_what_the_numbers_depend_on(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = bench_report.header(a_bench(tmp_path, bundle, monkeypatch, FULL))
    assert header["board"].endswith("Developer Kit Super, JetPack 6.2.1 (L4T 36.4.7)")
    assert header["power mode"] == "15W (0)"
    assert header["clocks"].endswith("GPU 306 of 625 MHz (nvhost_podgov)")
    assert header["temperature"] == "tj 49.1 → 88.1 °C"
    assert header["throttling"] == "cpu-throttle-alert"
    assert "onnxruntime" in header["versions"]
    assert header["batches"] == "16 images to 6 clusters, 10 of 17 tokens (ξ=0.221)"
    assert header["energy"].startswith("VDD_IN, beyond")


def test_the_table_fits_and_marks_what_nobody_measured(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = msgspec.structs.replace(FULL, mj_image=None, refresh_ms=None, rails="", energy_note="not measured: why")
    broken = BenchResult(BenchCase("tensorrt", "fp16", 256), "failed", "no GPU")
    wrong = msgspec.structs.replace(FULL, status="exported but failed validation", reason="other numbers", p50_ms=12345)
    run = a_bench(tmp_path, bundle, monkeypatch, FULL, bare, broken, wrong)
    output = io.StringIO()
    Console(file=output, width=100).print(bench_report.bench_table(run))
    assert max(len(line.rstrip()) for line in output.getvalue().splitlines()) <= 100
    for word in ("onnxruntime", "cpu fp32", "41.2", "measured", "12345", "validation", "tensorrt"):
        assert word in output.getvalue(), output.getvalue()
    assert bench_report.cells(FULL)[2:] == (
        "16", "123", "130", "140", "130", "0.40", "137", "41.2", "7.79", "100% 100% 1e-06", "passed",
    )  # fmt: skip
    assert bench_report.cells(bare)[9] == "not measured"
    assert set(bench_report.cells(broken)[3:-1]) == {"–"}
    notes = bench_report.bench_notes(run)
    assert notes == [
        "tensorrt fp16 B=256: failed: no GPU",
        "onnxruntime cpu fp32 B=16: exported but failed validation: other numbers",
        "mJ/image not measured: why",
        "not here: torch: not installed: pip install 'adc-edge[train]'",
    ]
    text = bench_report.bench_markdown(run)
    assert all(note in text for note in notes)
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {len(bench_report.COLUMNS) + 1}
    assert json.dumps(bench_report.bench_dict(run))


def test_a_narrow_terminal_leaves_columns_out_and_cuts_no_number_short(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = BenchResult(
        BenchCase("onnxruntime", "fp32", 256), "exported but failed validation",
        p50_ms=13731.0, p90_ms=14000.0, p99_ms=1e5,
        images_s=1234.5, refresh_ms=1176.0, peak_mb=4760.0, mj_image=123.4, size_mb=173.0, assignment=0.5, tokens=0.5,
        difference=0.25,
    )  # fmt: skip
    run = a_bench(tmp_path, bundle, monkeypatch, row)
    for width, shown in ((60, "images/s"), (80, "agreement"), (120, "p99")):
        output = io.StringIO()
        Console(file=output, width=width).print(bench_report.bench_table(run, width))
        text = output.getvalue()
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        assert {"onnxruntime", "validation", "1234", "13731", shown} <= set(text.split())
        assert ("have p90 ms, p99 ms, peak MB, size" in " ".join(text.split())) == (width < 98)


def test_the_next_command_is_the_fastest_that_may_be_used(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(case: BenchCase, images_s: float, refresh_ms: float | None = 1.0) -> BenchResult:
        return msgspec.structs.replace(FULL, case=case, images_s=images_s, refresh_ms=refresh_ms)

    cpu, torch, int8 = row(ONNX, 100), row(TORCH, 90), row(INT8, 300, None)
    trt = row(BenchCase("tensorrt", "fp16", 16), 900)
    wrong = msgspec.structs.replace(trt, status="exported but failed validation")

    def command(*results: BenchResult, torch: bool = True) -> str | None:
        return bench_report.next_command(a_bench(tmp_path, bundle, monkeypatch, *results), torch)

    start = "adc-edge serve --bundle 'out dir' --trainer tcp://HOST:5700 --data folder:PHOTOS --batch-size 16 "
    assert command(cpu, torch, int8) == start + "--engine auto"
    assert command(cpu, int8, wrong) == start + "--engine onnxruntime --provider cpu --compute fp32"
    assert command(cpu, torch, trt) == start + "--engine tensorrt --compute fp16"
    frozen = "--engine onnxruntime --provider cpu --compute int8 --trunk frozen"
    assert command(cpu, int8, torch=False) == start + frozen
    half = row(BenchCase("onnxruntime", "fp16", 16), 200)
    assert command(cpu, torch, half) == start + "--engine onnxruntime --provider cpu --compute fp16"
    assert command(wrong) is None
