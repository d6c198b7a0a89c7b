"""`adc-edge plan`: a measured link in, a command of `serve` out."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from adc_edge.cli import main
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.files import json_bytes, sha256
from adc_edge.method.ratio import Ratio
from adc_edge.planning.plan_file import PlanFile
from adc_edge.storage.bundle import MANIFEST, Bundle
from tests.planning.inputs import measured_profile, written_attack, written_study

TRAINER = "tcp://cloud.example:5700"
ACCURACIES = {
    "none": (0.80, 0.84, 0.82),
    "none/pca1:pca0.25": (0.80, 0.83, 0.82),
    "adc@1x0.5/pca1:pca0.25": (0.78, 0.80, 0.79),
    "adc@0.25/pca1:pca0.25": (0.50, 0.52, 0.57),
}


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """A link of 5 Mbit/s up and 20 down, as `link --json` writes it."""
    report = {"trainer": TRAINER, "up_mbit_s": 5.0, "down_mbit_s": 20.0, "rtt_p50_ms": 40.0, "rtt_min_ms": 39.0}
    file = tmp_path / "link.json"
    file.write_bytes(json_bytes(report))
    return file


@pytest.fixture
def profile(tmp_path: Path, bundle: Bundle) -> Path:
    """A slow device with a fast trainer."""
    file = tmp_path / "profile.json"
    file.write_bytes(json_bytes(measured_profile(bundle.manifest, bundle.digest)))
    return file


@pytest.fixture
def study(tmp_path: Path, bundle: Bundle) -> Path:
    """A study of `evaluate` and one of `privacy`."""
    directory = written_study(tmp_path / "study", bundle.manifest, ACCURACIES)
    return written_attack(directory, bundle.manifest, {"pca1": 0.6, "adc@1x0.5/pca1": 0.4, "adc@0.25/pca1": 0.2})


def plan(bundle: Path, link: Path, *arguments: object, columns: int = 120) -> Result:
    line = ["plan", "--bundle", str(bundle), "--link", str(link), *map(str, arguments)]
    result = CliRunner().invoke(main, line, env={"COLUMNS": str(columns)})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def planned(tmp_path: Path, bundle: Path, link: Path, *arguments: object) -> PlanFile:
    result = plan(bundle, link, *arguments, "--json", tmp_path / "plan.json")
    assert result.exit_code == 0, result.output
    return msgspec.json.decode((tmp_path / "plan.json").read_bytes(), type=PlanFile)


def refused(bundle: Path, link: Path, *arguments: object, code: int = 2) -> str:
    result = plan(bundle, link, *arguments)
    assert result.exit_code == code, result.output
    assert "expected:" in result.output
    assert "remedy:" in result.output
    return result.output


def test_a_link_alone_gives_a_marked_row_with_its_reason_and_a_command_of_serve(bundle_dir: Path, link: Path) -> None:
    result = plan(bundle_dir, link)
    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.output.splitlines() if line.strip().startswith(">")]
    assert "the fastest of" in result.output
    words = shlex.split(result.output.splitlines()[-1])
    assert words[:2] == ["adc-edge", "serve"]
    up = words[words.index("--precision") + 1]
    assert f"{up}:" in row
    assert f"adc-edge profile --bundle {bundle_dir}" in " ".join(result.output.split())
    assert "docs/results/" in result.output


def test_the_printed_options_are_those_of_serve_and_give_the_planned_shape(
    tmp_path: Path, bundle: Bundle, link: Path, profile: Path
) -> None:
    found = planned(tmp_path, bundle.path, link, "--profile", profile, "--batch-size", 32, "--data", "digits")
    serve = main.get_command(click.Context(main), "serve")
    assert serve is not None
    options = serve.make_context("serve", found.serve[2:]).params
    settings = ServeSettings(
        options["bundle"],
        options["trainer"],
        batch_size=options["batch_size"],
        micro_batches=options["micro_batches"],
        precision=options["precision"],
        gradient_precision=options["gradient_precision"],
    )
    ratio = Ratio(options["ratio"], options["batch_ratio"], options["token_ratio"])
    shape = settings.cut(ratio.check(), bundle.manifest, options["micro_batches"])
    chosen = found.chosen
    assert (shape.clusters, shape.kept) == (chosen.clusters, chosen.kept)
    assert settings.precisions(bundle.manifest) == (chosen.precision, chosen.gradient_precision)
    assert (options["trainer"], options["data"], str(options["keys"])) == (TRAINER, "digits", "keys")
    assert (options["window"], options["freeze_first"], options["trunk"]) == (chosen.window, 0, "train")


def test_the_plan_file_names_its_inputs_by_digest_and_holds_the_front(
    tmp_path: Path, bundle: Bundle, link: Path, profile: Path, study: Path
) -> None:
    found = planned(tmp_path, bundle.path, link, "--profile", profile, "--study", study, "--min-accuracy", -1)
    assert found.format == 1
    assert found.inputs[str(bundle.path)] == bundle.digest
    for file in (link, profile, study / "results.json", study / "privacy.json"):
        assert found.inputs[str(file)] == sha256(file)
    assert found.goals[0].option == "--min-accuracy"
    assert found.chosen in found.front
    assert [one.seconds for one in found.front] == sorted(one.seconds for one in found.front)
    assert found.compute_known


GOALS: list[tuple[list[Any], Any]] = [
    (["--target-step-time", 0.12], lambda one: one.seconds <= 0.12),
    (["--max-bytes-per-step", "1k"], lambda one: one.bytes_up + one.bytes_down <= 1000),
    (
        ["--max-mb-per-epoch", 0.1, "--data", "digits"],
        lambda one: one.bytes_up + one.bytes_down <= 0.1e6 / (1437 // 16),
    ),
    (["--max-mb-per-epoch", 0.1, "--images", 1600], lambda one: one.bytes_up + one.bytes_down <= 1000),
    (["--min-accuracy", -5], lambda one: one.accuracy.value >= -5),
    (["--max-ssim", 0.45], lambda one: one.ssim.value <= 0.45),
    (["--max-ssim", 0.45, "--min-accuracy", -10], lambda one: one.ssim.value <= 0.45 and one.accuracy.value >= -10),
]


@pytest.mark.parametrize(("goal", "keeps"), GOALS)
def test_the_chosen_setting_keeps_the_goal(
    tmp_path: Path, bundle_dir: Path, link: Path, study: Path, goal: list[Any], keeps: Any
) -> None:
    found = planned(tmp_path, bundle_dir, link, "--study", study, *goal)
    assert keeps(found.chosen)
    assert found.chosen.accuracy is not None


def test_a_part_of_the_link_takes_longer(tmp_path: Path, bundle_dir: Path, link: Path) -> None:
    whole, part = planned(tmp_path, bundle_dir, link), planned(tmp_path, bundle_dir, link, "--max-mbit", 0.5)
    assert part.chosen.seconds > whole.chosen.seconds


def test_a_goal_that_nothing_keeps_shows_the_nearest_and_writes_nothing(
    tmp_path: Path, bundle_dir: Path, link: Path, study: Path
) -> None:
    out = tmp_path / "out.json"
    goals = ("--target-step-time", 0.001, "--json", out, "--plot", tmp_path / "out.png")
    result = plan(bundle_dir, link, "--study", study, *goals)
    assert result.exit_code == 1
    assert "nearest" in result.output
    assert "no setting of known accuracy keeps --target-step-time; the nearest, " in result.output
    assert "at most 0.001 s a step" in result.output
    assert [line for line in result.output.splitlines() if line.strip().startswith(">")]
    assert not out.exists()
    assert not (tmp_path / "out.png").exists()


def test_a_setting_that_would_keep_the_goal_but_was_not_measured_is_named_with_what_measures_it(
    tmp_path: Path, bundle_dir: Path, link: Path, study: Path
) -> None:
    known = [one for one in planned(tmp_path, bundle_dir, link, "--study", study).front if one.accuracy is not None]
    least = min(one.bytes_up + one.bytes_down for one in known)
    output = refused(bundle_dir, link, "--study", study, "--max-bytes-per-step", least - 1, code=1)
    assert "would keep the goals, but its accuracy was not measured by `evaluate`: measure it" in output


def test_other_splits_are_shown_with_what_they_would_gain(bundle_dir: Path, link: Path, profile: Path) -> None:
    output = " ".join(plan(bundle_dir, link, "--profile", profile).output.split())
    assert "export again with --split 1: a step takes" in output
    assert "the accuracy was not measured there" in output
    assert "--split 3" not in output  # slower


def test_the_trainer_is_told_with_what_it_bears_and_with_its_share_for_other_devices(
    bundle_dir: Path, link: Path, profile: Path
) -> None:
    output = " ".join(plan(bundle_dir, link, "--profile", profile).output.split())
    assert re.search(r"trainer bears \d+ such devices: at most [\d.]+ steps/s of this one \([\d.]+ Mbit/s up, ", output)
    share = {"share": 0.01, "wait_s": 0.05, "devices": 3}
    link.write_text(json.dumps(json.loads(link.read_text()) | {"share": share}))
    output = " ".join(plan(bundle_dir, link, "--profile", profile).output.split())
    assert (
        "the trainer works for 2 other devices too: 1 % of its time is this one's, and a message waits 50 ms" in output
    )
    assert "trainer is the limit: at most" in output
    assert "the trainer is busy for" in output
    assert plan(bundle_dir, link).exit_code == 0  # without a profile the wait alone counts


def test_splits_are_not_compared_where_the_trainers_time_is_not_known(
    bundle_dir: Path, link: Path, profile: Path
) -> None:
    profile.write_text(json.dumps(json.loads(profile.read_text()) | {"trainer": None}))
    result = plan(bundle_dir, link, "--profile", profile)
    assert result.exit_code == 0
    assert "--split" not in result.output


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_screen_fits(
    bundle_dir: Path, link: Path, profile: Path, study: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study.parent)
    bundle = Path("bundle")
    bundle.symlink_to(bundle_dir)
    for more in ([], ["--profile", profile.name], ["--profile", profile.name, "--study", study.name]):
        output = plan(bundle, Path(link.name), *more, columns=columns).output
        shown = output.partition("\nnext:")[0].splitlines()
        assert max(map(len, shown)) <= columns
        assert "…" not in output
        assert ("trunk" in output.partition("─")[0]) == (columns > 60)
        assert ("trainer s" in output) == (columns == 120 and bool(more))


@pytest.mark.parametrize(("name", "head"), [("front.png", b"\x89PNG"), ("front.svg", b"<?xml")])
def test_the_front_is_drawn(
    tmp_path: Path, bundle_dir: Path, link: Path, profile: Path, name: str, head: bytes
) -> None:
    goals = ("--min-accuracy", -20, "--target-step-time", 5)
    result = plan(bundle_dir, link, "--profile", profile, *goals, "--plot", tmp_path / name)
    assert result.exit_code == 0, result.output
    assert (tmp_path / name).read_bytes().startswith(head)
    assert f"wrote    {tmp_path / name}" in result.output


def test_a_plot_without_matplotlib_is_told_before_the_work(
    tmp_path: Path, bundle_dir: Path, link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "adc_edge.calibration.plan.plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = plan(bundle_dir, link, "--plot", tmp_path / "front.png", "--json", tmp_path / "plan.json")
    assert result.exit_code == 1
    assert "needs matplotlib" in result.output
    assert "pip install 'adc-edge[eval]'" in result.output
    assert not (tmp_path / "plan.json").exists()


def test_a_plot_of_another_kind_is_refused(tmp_path: Path, bundle_dir: Path, link: Path) -> None:
    assert ".png or .svg" in refused(bundle_dir, link, "--plot", tmp_path / "front.pdf")


def test_a_link_to_another_trainer_is_refused(bundle_dir: Path, link: Path) -> None:
    output = refused(bundle_dir, link, "--trainer", "tcp://other.example:5700")
    assert f"is the link to {TRAINER}" in output
    assert "adc-edge link --trainer tcp://other.example:5700 --json" in output


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "missing required field `trainer`"),
        ("not JSON", "malformed"),
        ('{"trainer": "t", "up_mbit_s": 0, "down_mbit_s": 1, "rtt_p50_ms": 1}', "the rate up was not measured"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_link_is_refused(bundle_dir: Path, tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "other.json"
    if content is not None:
        file.write_text(content)
    output = refused(bundle_dir, file)
    assert words in output
    assert "a link that `adc-edge link --json` measured" in output


def test_a_profile_of_another_bundle_is_refused(tmp_path: Path, bundle: Bundle, link: Path) -> None:
    manifest = msgspec.structs.replace(bundle.manifest, model="deit_tiny_patch16_224", split=3)
    cases = {
        "a profile of deit_tiny_patch16_224, split 3": manifest,
        "a profile of another export of vit_tiny_patch16_224": bundle.manifest,
    }
    for words, other in cases.items():
        file = tmp_path / "other.json"
        file.write_bytes(json_bytes(measured_profile(other, "another")))
        output = refused(bundle.path, link, "--profile", file)
        assert words in output
        assert "adc-edge profile --bundle" in output


def test_a_profile_of_another_machine_is_refused_unless_that_is_meant(
    tmp_path: Path, bundle: Bundle, link: Path
) -> None:
    found = json.loads(json_bytes(measured_profile(bundle.manifest, bundle.digest)))
    found["device"]["machine"] |= {"processor": "Cortex-A78AE", "cores": 6}
    file = tmp_path / "orin.json"
    file.write_text(json.dumps(found))
    assert "a profile of a machine with Cortex-A78AE, 6 cores" in refused(bundle.path, link, "--profile", file)
    assert plan(bundle.path, link, "--profile", file, "--any-machine").exit_code == 0


def test_a_file_that_is_no_profile_is_refused(bundle_dir: Path, link: Path) -> None:
    assert "a profile that `adc-edge profile` wrote" in refused(bundle_dir, link, "--profile", link)


def test_a_study_of_another_model_is_refused(tmp_path: Path, bundle: Bundle, link: Path) -> None:
    manifest = msgspec.structs.replace(bundle.manifest, model_args={"img_size": 32})
    written_study(tmp_path / "other", manifest, ACCURACIES)
    output = refused(bundle.path, link, "--study", tmp_path / "other")
    assert "is a study of vit_tiny_patch16_224(img_size=32)" in output


def test_a_directory_that_is_no_bundle_is_refused(tmp_path: Path, link: Path) -> None:
    assert "no bundle at" in refused(tmp_path, link)
    (tmp_path / MANIFEST).write_text("{}")
    assert "a manifest as `adc-edge export` writes it" in refused(tmp_path, link)


def test_megabytes_of_an_epoch_need_a_number_of_images(bundle_dir: Path, link: Path) -> None:
    assert "--images N" in refused(bundle_dir, link, "--max-mb-per-epoch", 3)
    assert "at least one batch of 16" in refused(bundle_dir, link, "--images", 3)


@pytest.mark.parametrize("size", ["200000", "200k", "200kB", "0.2MB", "0.2M"])
def test_a_number_of_bytes_may_have_a_unit(tmp_path: Path, bundle_dir: Path, link: Path, size: str) -> None:
    assert planned(tmp_path, bundle_dir, link, "--max-bytes-per-step", size).goals[0].limit == 200_000


@pytest.mark.parametrize(
    "wrong",
    [["--max-bytes-per-step", "many"], ["--max-bytes-per-step", "-3"], ["--min-accuracy", 1], ["--max-ssim", 2]],
)
def test_a_goal_out_of_range_is_refused(bundle_dir: Path, link: Path, wrong: list[object]) -> None:
    result = plan(bundle_dir, link, *wrong)
    assert result.exit_code == 2
    assert f"'{wrong[0]}'" in result.output


def test_the_command_has_headings() -> None:
    command = main.get_command(click.Context(main), "plan")
    assert command is not None
    output = CliRunner().invoke(main, ["plan", "--help"]).output
    for title in ("Inputs:", "Goals:", "Results:"):
        assert title in output
