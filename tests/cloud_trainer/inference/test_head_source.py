"""The head that is served: the bundle's, or the newest of a trainer's run, which is only read."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from adc_edge.cloud_trainer.inference.head_source import find_head
from adc_edge.cloud_trainer.settings import TrainerSettings
from adc_edge.errors import AdcEdgeError, CheckpointError, SettingError
from adc_edge.storage.bundle import HEAD, MANIFEST, TRUNK, Bundle
from adc_edge.storage.halves import label_weights
from adc_edge.storage.run_dir import CLASSES, LearnedClasses
from adc_edge.storage.run_settings import SETTINGS


@pytest.fixture
def run(bundle: Bundle, tmp_path: Path) -> Path:
    """A trainer's run that has ended after 40 steps of session 7."""
    (tmp_path / MANIFEST).write_bytes((bundle.path / MANIFEST).read_bytes())
    (tmp_path / HEAD).write_bytes(label_weights((bundle.path / HEAD).read_bytes(), {7: 40}, 40))
    (tmp_path / CLASSES).write_bytes(msgspec.json.encode(LearnedClasses(["cat", "dog"])))
    return tmp_path


def test_the_bundles_head_has_learned_no_steps(bundle: Bundle) -> None:
    found = find_head(bundle, None)
    assert (found.state.steps, found.state.learned, found.names) == (0, {}, bundle.manifest.class_names)


def test_the_head_of_a_run_is_found_with_its_names_and_the_run_stays_as_it_is(bundle: Bundle, run: Path) -> None:
    before = sorted((path.name, path.read_bytes()) for path in run.iterdir())
    found = find_head(bundle, run)
    assert (found.state.steps, found.state.learned, found.names) == (40, {7: 40}, ["cat", "dog"])
    assert found.state.weights()
    assert sorted((path.name, path.read_bytes()) for path in run.iterdir()) == before


@pytest.mark.parametrize("mode", ["frozen", "parallel", None])
def test_a_head_has_learned_with_frozen_trunks_where_its_run_says_so(
    mode: str | None, bundle: Bundle, run: Path
) -> None:
    if mode is not None:
        (run / SETTINGS).write_bytes(msgspec.json.encode({"fixed": {"role": "trainer", "mode": mode}}))
    assert find_head(bundle, run).state.frozen == (mode == "frozen")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nothing", "is no run directory"),
        ("no head", "keeps no head yet"),
        ("device", "is a device's run"),
        ("other", "is the run of another bundle"),
        ("names", "classes.json"),
    ],
)
def test_a_directory_without_a_head_of_this_bundle_is_refused(
    fault: str, words: str, bundle: Bundle, run: Path
) -> None:
    if fault == "nothing":
        (run / MANIFEST).unlink()
    elif fault in ("no head", "device"):
        (run / HEAD).unlink()
    elif fault == "other":
        (run / MANIFEST).write_bytes((run / MANIFEST).read_bytes() + b"\n")
    else:
        (run / CLASSES).write_text("{")
    if fault == "device":
        (run / TRUNK).write_bytes(label_weights((bundle.path / TRUNK).read_bytes(), {7: 40}, 40))
    with pytest.raises(CheckpointError, match=words):
        find_head(bundle, run)


@pytest.mark.parametrize("wish", [{"fresh": True}, {"devices": 2}, {"one_session": True}])
def test_options_of_a_training_are_refused(wish: dict[str, int], bundle: Bundle) -> None:
    with pytest.raises(SettingError, match="--serve-only and --"):
        TrainerSettings(bundle.path, bind="tcp://127.0.0.1:*", serve_only=True, **wish).check()  # type: ignore[arg-type]


def test_a_missing_run_is_told_before_torch_is_imported(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(AdcEdgeError, match="is no run directory"):
        TrainerSettings(bundle.path, bind="tcp://127.0.0.1:*", serve_only=True, run=tmp_path / "none").check()
