"""`serve --plan`: the run begins as the plan says, and may send what loses little accuracy."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from adc_edge.cloud_trainer.server import Server
from adc_edge.codec.by_epoch import PrecisionsByEpoch
from adc_edge.edge_runtime.choosing.plan import forms_to_follow, with_plan
from adc_edge.edge_runtime.noise import NoiseSettings
from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.settings import ServeSettings, StepSettings
from adc_edge.errors import SettingError
from adc_edge.files import json_bytes
from adc_edge.method.ratio import Ratio, Shape
from adc_edge.planning.accuracy.frontier import SentSetting, estimate
from adc_edge.planning.accuracy.studies import shipped_studies
from adc_edge.planning.plan_file import PLAN_FORMAT, PlanFile, PlannedGoal, PlannedStep, PlannedValue
from adc_edge.storage.bundle import Bundle


def planned(loss: float = -0.5, **changes: Any) -> PlannedStep:
    step = PlannedStep(
        split=2,
        batch_size=16,
        ratio=Ratio(batch=1.0, token=0.5),
        precision="int8",
        gradient_precision="int4",
        micro_batches=2,
        window=1,
        trunk="train",
        freeze_first=1,
        clusters=8,
        kept=8,
        seconds=1.0,
        bytes_up=1000,
        bytes_down=500,
        memory_bytes=0,
        accuracy=PlannedValue(loss, 1.0, ("a",), "b"),
        ssim=None,
    )
    return msgspec.structs.replace(step, **changes)


def written(path: Path, bundle: Bundle, *front: PlannedStep, goals: tuple[PlannedGoal, ...] = ()) -> Path:
    inputs = {"bundle": bundle.digest}
    plan = PlanFile(
        PLAN_FORMAT, "0", inputs, "tcp://a:1", True, list(goals), planned(), "", [], [planned(), *front], []
    )
    path.write_bytes(json_bytes(plan))
    return path


def settings(bundle: Bundle, plan: Path | str | None, **more: Any) -> ServeSettings:
    return ServeSettings(bundle.path, "tcp://127.0.0.1:1", plan=plan, **more)  # type: ignore[arg-type]


def step_settings(bundle: Bundle, **more: Any) -> StepSettings:
    manifest = bundle.manifest
    shape = Shape(16, manifest.tokens, 16, manifest.tokens)
    step = StepSettings(1, shape, manifest.prefix, manifest.dim, manifest.classes, "pca1", "pca0.25", 10)
    return msgspec.structs.replace(step, **more)


def test_the_run_begins_with_the_settings_of_the_plan(tmp_path: Path, bundle: Bundle) -> None:
    found, plan = with_plan(settings(bundle, written(tmp_path / "plan.json", bundle)), bundle)
    assert plan is not None
    assert (found.precision, found.gradient_precision, found.micro_batches, found.window) == ("int8", "int4", 2, 1)
    assert (found.ratio, found.batch_size, found.freeze_first) == (Ratio(batch=1.0, token=0.5), 16, 1)


def test_an_option_that_contradicts_the_plan_is_refused_by_name(tmp_path: Path, bundle: Bundle) -> None:
    file = written(tmp_path / "plan.json", bundle)
    assert with_plan(settings(bundle, file, precision="int8"), bundle)[0].precision == "int8"
    same = settings(bundle, file, precision="int8, int8", gradient_precision="int4,int4,int4")
    assert with_plan(same, bundle)[0].by_epoch(bundle.manifest) == PrecisionsByEpoch(("int8",), ("int4",))
    with pytest.raises(SettingError, match="--precision fp16 with --plan"):
        with_plan(settings(bundle, file, precision="fp16"), bundle)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "plan.json"),
        (b"{}", "missing required field"),
        (b'{"up_mbit_s": 1}', "missing required field"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, bundle: Bundle, content: bytes | None, says: str) -> None:
    file = tmp_path / "plan.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingError, match=says):
        with_plan(settings(bundle, file), bundle)


def test_a_plan_for_another_bundle_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    file = written(tmp_path / "plan.json", bundle)
    file.write_bytes(file.read_bytes().replace(bundle.digest.encode(), b"0" * 64))
    with pytest.raises(SettingError, match="a plan for another bundle"):
        with_plan(settings(bundle, file), bundle)


def test_min_accuracy_belongs_to_auto_and_noise_to_no_plan(bundle: Bundle) -> None:
    with pytest.raises(SettingError, match="--min-accuracy -2 without --plan auto"):
        with_plan(settings(bundle, None, min_accuracy=-2.0), bundle)
    with pytest.raises(SettingError, match="noise"):
        with_plan(settings(bundle, "auto", noise=NoiseSettings(20.0)), bundle)


def test_without_a_plan_nothing_is_followed(bundle: Bundle) -> None:
    assert forms_to_follow(settings(bundle, None), None, bundle.manifest, step_settings(bundle)) == []


def test_a_plan_is_followed_among_settings_of_its_front_that_keep_its_goals(tmp_path: Path, bundle: Bundle) -> None:
    front = (
        planned(loss=-0.9, precision="pca1"),
        planned(loss=-5.0, precision="pca0.5"),  # loses too much
        planned(loss=-0.1, freeze_first=0),  # another trunk
        planned(loss=-0.2, precision="fp16", bytes_up=9_000),  # too many bytes
    )
    file = written(tmp_path / "plan.json", bundle, *front, goals=(PlannedGoal("--max-bytes-per-step", "bytes", 2_000),))
    found, plan = with_plan(settings(bundle, file), bundle)
    forms = forms_to_follow(found, plan, bundle.manifest, step_settings(bundle))
    assert [form.precision for form in forms] == ["int8", "pca1"]


def test_auto_follows_among_settings_that_were_measured_to_lose_little(bundle: Bundle) -> None:
    manifest, step = bundle.manifest, step_settings(bundle)
    for least in (None, -4.0):
        forms = forms_to_follow(settings(bundle, "auto", min_accuracy=least), None, manifest, step)
        assert len(forms) > 3
        assert len(set(forms)) == len(forms)
        studies = [one for one in shipped_studies() if one.quantity == "accuracy" and one.tokens == manifest.tokens]
        for form in forms:
            if (form.precision, form.gradient_precision) == (step.precision, step.gradient_precision):
                continue  # whoever chose that knows its accuracy
            tokens = form.shape.kept / form.shape.tokens
            asked = SentSetting(1.0, tokens, form.precision, form.gradient_precision)
            values = [found.value for study in studies if (found := estimate([study], asked))]
            assert not values or max(values) >= (-1.0 if least is None else least) - 0.5
            assert form.micro_batches * form.shape.images == 16


def test_a_number_of_micro_batches_that_is_named_stays(bundle: Bundle) -> None:
    named = settings(bundle, "auto", micro_batches=1)
    forms = forms_to_follow(named, None, bundle.manifest, step_settings(bundle))
    assert {form.micro_batches for form in forms} == {1}


def test_merging_is_never_undone(bundle: Bundle) -> None:
    merged = step_settings(bundle, shape=Shape(16, bundle.manifest.tokens, 8, bundle.manifest.tokens))
    forms = forms_to_follow(settings(bundle, "auto"), None, bundle.manifest, merged)
    assert all(form.shape.clusters / form.shape.images == 0.5 for form in forms)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_a_run_that_follows_takes_its_steps_with_either_engine(
    bundle: Bundle, server: Server, tmp_path: Path, engine: str
) -> None:
    more: dict[str, Any] = {"engine": engine, "steps": 2, "evaluate_images": 8, "threads": 1, "micro_batches": 1}
    found = ServeSettings(bundle.path, server.endpoint, run=tmp_path / "run", plan="auto", **more)
    report = Serve(found, Console(file=io.StringIO())).run()
    assert (report["steps"], report["changes"]) == (2, 0)  # a change takes three steps at least
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert all(line["loss"] > 0 for line in lines)
