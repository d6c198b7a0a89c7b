"""The page of `adc-edge report`: its size, its places of marks, its tables, escaping, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from PIL import Image

from adc_edge.cli import main
from adc_edge.data.pictures import measured_split
from adc_edge.data.preprocessing import Preprocessing
from adc_edge.data.sources import load_dataset
from adc_edge.watch.reading.series import PHASE_NAMES
from adc_edge.watch.reading.state import WatchedRun
from adc_edge.watch.report.curves import run_values
from adc_edge.watch.report.labels import labels_of
from adc_edge.watch.report.pictures import phases_figure
from tests.watch.made_runs import (
    BEGIN,
    SESSION,
    STEP_S,
    append,
    make_device_run,
    make_trainer_run,
    make_troubled_run,
    step_line,
)

ASSETS = Path(__file__).parents[3] / "watch" / "assets"
V0_6 = Path(__file__).parents[2] / "compatibility" / "v0_6"
EVIL = "</script><script>alert(1)</script><img onerror=b()>\u2028\x1b[31m"


def report(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["report", *map(str, arguments)])
    return result.exit_code, result.output


def page_of(where: Path, *runs: Path) -> str:
    code, output = report(*runs, "-o", where / "report.html")
    assert code == 0, output
    return (where / "report.html").read_text()


def data_of(page: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="runs">(.*?)</script>', page, re.S)
    assert found is not None
    data: list[dict[str, Any]] = json.loads(found[1])
    return data


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._within = "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._within = tag

    def handle_data(self, data: str) -> None:
        if self._within not in ("script", "style"):
            self.text += data + " "


@pytest.mark.slow
def test_ten_runs_of_2000_steps_make_at_most_400_kb(tmp_path: Path) -> None:
    runs = [make_device_run(tmp_path / f"run-{i}", 2000, seed=i, name=f"device-{i}") for i in range(10)]
    assert len(page_of(tmp_path, *runs).encode()) <= 400_000
    for run in runs:
        add_trouble(run, range(0, 2000, 5))
    trainer = make_trainer_run(tmp_path / "trainer", {number: f"device-{number}" for number in range(500)}, 2)
    page = page_of(tmp_path, *runs, trainer)
    assert len(page.encode()) <= 400_000
    assert ">391 earlier ones<" in page
    assert ">and 400 more<" in page


def add_trouble(run: Path, steps: Iterable[int]) -> None:
    """At each of the steps an outage and a change of settings with a long reason."""
    plan = {"kind": "plan", "micro_batches": 2, "clusters": 2, "kept": 17, "precision": "pca0.5"}
    plans, events = list[dict[str, Any]](), list[dict[str, Any]]()
    for step in steps:
        time = BEGIN + step * STEP_S
        plans.append(plan | {"step": step, "time": time, "why": 10 * "the link is slower "})
        events.append({"kind": "waiting", "time": time, "since": time, "tries": 1})
        events.append({"kind": "resumed", "time": time + 0.3, "seconds": 0.3})
    append(run, "metrics.jsonl", *plans)
    append(run, "events.jsonl", *events)


def test_the_newest_of_many_events_are_drawn_without_their_texts(tmp_path: Path) -> None:
    path = make_device_run(tmp_path / "run", 200)
    add_trouble(path, range(200))
    page = page_of(tmp_path, path)
    (values,) = data_of(page)
    assert {mark["step"] for mark in values["marks"]} == set(range(175, 200))  # 25 outages, 25 changes
    assert "the link is slower" not in json.dumps(values)
    assert ">300 earlier ones<" in page


def test_two_sessions_of_one_device_have_different_names(tmp_path: Path) -> None:
    trainer = make_trainer_run(tmp_path / "trainer", {1: "pi", 2: "pi", 3: "jetson"}, 5)
    labels = [run["label"] for run in data_of(page_of(tmp_path, trainer))]
    assert labels == ["trainer", "trainer: pi (0001)", "trainer: pi (0002)", "trainer: jetson"]


def test_outage_plan_change_and_resume_stand_where_the_files_of_the_run_have_them(tmp_path: Path) -> None:
    path = make_troubled_run(tmp_path / "run")
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if line["kind"] == "step"}
    origin = steps[0]["time"] - steps[0]["seconds"]
    spent = {step: sum(steps[s]["bytes_up"] + steps[s]["bytes_down"] for s in range(step)) for step in (60, 100, 140)}
    (values,) = data_of(page_of(tmp_path, path))
    outage, plan, resume = values["marks"]
    waiting = next(event for event in events if event["kind"] == "waiting")
    again = next(event for event in events if event["kind"] == "resumed")
    assert (outage["kind"], outage["step"]) == ("outage", 60)
    assert outage["elapsed"] == pytest.approx(waiting["since"] - origin, abs=0.01)
    assert outage["seconds"] == pytest.approx(again["time"] - waiting["since"], abs=0.1)
    assert outage["bytes"] == pytest.approx(spent[60], rel=0.02)
    change = next(line for line in lines if line["kind"] == "plan")
    assert (plan["kind"], plan["step"]) == ("plan", change["step"])
    assert plan["elapsed"] == pytest.approx(change["time"] - origin, abs=0.01)
    assert plan["bytes"] == pytest.approx(spent[100], rel=0.01)
    come_back = [event for event in events if event["kind"] == "started"][1]
    assert (resume["kind"], resume["step"]) == ("resume", come_back["step"])
    assert resume["elapsed"] == pytest.approx(come_back["time"] - origin, abs=0.1)
    assert resume["bytes"] == pytest.approx(spent[140], rel=0.01)


def test_every_phase_of_a_step_has_a_name_and_a_colour_of_its_own_in_page_and_picture(tmp_path: Path) -> None:
    script, style = ((ASSETS / name).read_text() for name in ("charts.js", "page.css"))
    (named,) = re.findall(r"const PHASES = \{(.*?)\n\};", script, re.S)
    assert tuple(re.findall(r'(\w+): "', named)) == PHASE_NAMES
    colours = re.findall(r"--phase-(\d+): (#\w+);", style)
    assert [int(number) for number, _ in colours] == list(range(len(PHASE_NAMES)))
    assert len({colour for _, colour in colours}) == len(PHASE_NAMES)
    path = make_device_run(tmp_path / "run", 20, complete=False)
    append(path, "metrics.jsonl", step_line(20, BEGIN + 21 * STEP_S, seconds_cloud_wait=0.3))
    figure = phases_figure(run_values(WatchedRun(path).read_all(), "run"))
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[-3:] == ["trainer", "trainer's codec", "waiting at the trainer"]
    filled = [str(area.get_facecolor()) for area in figure.axes[0].collections]
    assert len(set(filled)) == len(texts)


def test_a_thinned_curve_keeps_the_mean_and_the_range_of_the_steps(tmp_path: Path) -> None:
    path = make_device_run(tmp_path / "run", 2000, complete=False)
    append(path, "metrics.jsonl", step_line(2000, BEGIN + 2001 * STEP_S, loss=99.0))
    curves = run_values(WatchedRun(path).read_all(), "run", points=200)["curves"]
    assert len(curves["step"]) <= 200
    assert max(curves["loss_high"]) == 99.0
    assert all(
        low <= mean <= high
        for low, mean, high in zip(curves["loss_low"], curves["loss"], curves["loss_high"], strict=True)
    )
    assert curves["step"] == sorted(curves["step"])


def test_texts_from_outside_are_escaped_in_the_tables_and_in_the_data(tmp_path: Path) -> None:
    path = make_device_run(tmp_path / "<b>run", 5, name=EVIL)
    append(path, "events.jsonl", {"kind": "warned", "time": BEGIN, "level": "WARNING", "text": EVIL})
    trainer = make_trainer_run(tmp_path / "trainer", {3: EVIL, 4: "other"}, 5)
    page = page_of(tmp_path, path, trainer)
    found = Elements(page)
    scripts = [attributes for tag, attributes in found.elements if tag == "script"]
    assert len(scripts) == 3  # the data, uPlot and ours
    assert not [tag for tag, _ in found.elements if tag in ("img", "b", "iframe", "object", "base", "form")]
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert "alert(1)" in found.text
    assert "<b>run" in found.text
    assert [run["label"] for run in data_of(page)][2].endswith("<img onerror=b()>\u2028\x1b[31m")


def test_the_page_refers_to_nothing_outside_itself_and_its_policy_allows_our_scripts_alone(tmp_path: Path) -> None:
    found = Elements(page_of(tmp_path, make_device_run(tmp_path / "run", 5)))
    assert {attributes["href"] for tag, attributes in found.elements if "href" in attributes} == {"data:,"}
    assert not [tag for tag, attributes in found.elements if "src" in attributes]
    (policy,) = [str(a["content"]) for tag, a in found.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy


def test_settings_of_all_runs_stand_side_by_side_and_differences_are_marked(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_device_run(tmp_path / "a", 5, seed=1), make_device_run(tmp_path / "b", 5, seed=2))
    found = re.findall(r'<tr( class="differs")?><th scope="row" class="word">([\w.]+)</th>', page)
    rows = {name: marked for marked, name in found}
    assert rows["seed"]
    assert not rows["optimizer.lr"]
    assert not rows["bundle"]


def test_device_and_trainer_of_one_session_are_joined(tmp_path: Path) -> None:
    device = make_device_run(tmp_path / "device", 200, name="pi")
    trainer = make_trainer_run(tmp_path / "trainer", {SESSION: "pi", 7: "stranger"})
    page = page_of(tmp_path, device, trainer)
    rows = re.findall(
        r"<tr><th scope=\"row\" class=\"word\">trainer</th>(.*?)</tr>", page.split("<h2>Sessions</h2>")[1]
    )
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    assert cells[0][:5] == ["pi", "device", "finished", "200 of 200", "200"]
    assert cells[1][:2] == ["stranger", "none given"]
    assert [run["label"] for run in data_of(page)] == ["device", "trainer", "trainer: stranger"]


def test_runs_of_0_6_and_of_now_stand_in_one_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, V0_6 / "device", V0_6 / "trainer", make_device_run(tmp_path / "new", 20))
    old, trainer, _ = data_of(page)
    assert len(old["curves"]["loss"]) == 19
    assert "elapsed" not in trainer["curves"]
    assert ">0.6.0<" in page


def test_a_run_that_goes_on_was_killed_or_has_no_step_yet_is_shown(tmp_path: Path) -> None:
    killed = make_device_run(tmp_path / "killed", 7, planned=50, complete=False)
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 7, "lo')
    empty = make_device_run(tmp_path / "empty", 0, planned=9, complete=False)
    page = page_of(tmp_path, killed, empty)
    assert "7 of 50" in page
    assert "0 of 9" in page


def test_bytes_of_the_training_images_are_told_where_their_files_are_here(tmp_path: Path) -> None:
    size = 0
    for number in range(40):
        for split in ("train", "test"):
            path = tmp_path / "images" / split / f"class-{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8 + number, 8)).save(path)
            size += path.stat().st_size * (split == "train")
    run = make_device_run(tmp_path / "here", 5, data=f"folder:{tmp_path / 'images'}")
    gone = make_device_run(tmp_path / "gone", 5, data="folder:/not/there")
    here, not_here = data_of(page_of(tmp_path, run, gone))
    assert f"as the JPEGs they are ({size / 1e3:.3g} kB)" in here["files"]
    assert "so far 2 epochs" in here["files"]
    assert not_here["files"] == "the images as JPEG: not known"


def test_the_images_are_told_as_jpeg_at_the_training_size_too(tmp_path: Path) -> None:
    """Digits at 16 x 16: the sample of 200 is scaled up to all 1,437."""
    run = make_device_run(tmp_path / "run", 5)
    own = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, "bicubic", crop_pct=0.9)
    text = json.dumps(json.loads((run / "manifest.json").read_text()) | {"preprocessing": msgspec.to_builtins(own)})
    (run / "manifest.json").write_text(text)
    every = measured_split(load_dataset("digits").train, own, 10_000)
    page = page_of(tmp_path, run)
    (found,) = data_of(page)
    sizes = [float(size) for size in re.findall(r"as JPEG q\d\d of 16 x 16 \(([\d.]+) MB\)", found["files"])]
    assert sizes == pytest.approx([every.bytes_q90 / 1e6, every.bytes_q75 / 1e6], rel=0.02)
    assert "the 1437 training images, sent once" in found["files"]
    assert "as q75 of 16 x 16" in page


def test_files_that_cannot_be_read_are_told_with_their_own_bytes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(4):
            path = tmp_path / "images" / split / f"class-{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no picture" * 100)
    run = make_device_run(tmp_path / "run", 5, data=f"folder:{tmp_path / 'images'}")
    own = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, "bicubic", crop_pct=0.9)
    text = json.dumps(json.loads((run / "manifest.json").read_text()) | {"preprocessing": msgspec.to_builtins(own)})
    (run / "manifest.json").write_text(text)
    (found,) = data_of(page_of(tmp_path, run))
    assert "as the JPEGs they are (4 kB)" in found["files"]
    assert "q90" not in found["files"]


def test_a_report_can_stand_in_the_directory_of_its_run(tmp_path: Path) -> None:
    run = make_device_run(tmp_path / "run", 5)
    assert report(run, "-o", run / "report.html")[0] == 0
    assert WatchedRun(run).read_all().state == "finished"


def wrong(tmp_path: Path, name: str) -> list[str | Path]:
    run, out = make_device_run(tmp_path / "run", 3), tmp_path / "out.html"
    (tmp_path / "nothing").mkdir()
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "client.onnx").touch()
    every: dict[str, list[str | Path]] = {
        "absent": [tmp_path / "absent", "-o", out],
        "file": [run / "metrics.jsonl", "-o", out],
        "bundle": [tmp_path / "bundle", "-o", out],
        "empty": [tmp_path / "nothing", "-o", out],
        "parent": [tmp_path, "-o", out],
        "output is a directory": [run, "-o", tmp_path],
        "output of the run": [run, "-o", run / "metrics.jsonl"],
    }
    return every[name]


REFUSALS = {
    "absent": "absent does not exist",
    "file": "metrics.jsonl is a file",
    "bundle": "bundle is a bundle",
    "empty": "holds no run",
    "parent": "name the runs in it",
    "output is a directory": "it is a directory, not a file",
    "output of the run": "in the directory of a run",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_wrong_path_is_refused_by_name_before_anything_is_written(tmp_path: Path, name: str) -> None:
    arguments = wrong(tmp_path, name)
    before = sorted(tmp_path.rglob("*"))
    code, output = report(*arguments)
    assert code in (1, 2)
    assert REFUSALS[name] in " ".join(output.split())
    assert "Traceback" not in output
    assert sorted(tmp_path.rglob("*")) == before


def test_labels_are_the_shortest_that_tell_runs_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "device", tmp_path / "b" / "device", tmp_path / "b" / "trainer"]
    assert labels_of(paths) == ["a/device", "b/device", "trainer"]
    assert labels_of([tmp_path / "a" / ".." / "b" / "device"]) == ["device"]


@pytest.mark.slow
def test_png_writes_the_main_charts_at_300_dpi(tmp_path: Path) -> None:
    run = make_troubled_run(tmp_path / "run", name="$x_1$ & <b>")
    code, output = report(run, "-o", tmp_path / "r.html", "--png", tmp_path / "png")
    assert code == 0, output
    names = {path.name for path in (tmp_path / "png").iterdir()}
    kinds = {f"{name}-by-{axis}.png" for name in ("loss", "accuracy") for axis in ("step", "bytes", "time")}
    assert names == kinds | {"bytes.png", "phases.png", "link.png"}
    with Image.open(tmp_path / "png" / "loss-by-time.png") as picture:
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=1)
        assert len(picture.convert("L").getcolors() or ()) > 20


def luminance(colour: str) -> float:
    whole = colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])
    parts = [int(whole[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_texts_and_curves_stand_out_from_the_page_in_light_and_dark() -> None:
    css = (Path(__file__).parents[3] / "watch" / "assets" / "page.css").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{3,6});", block)) for block in css.split("@media")[:2])
    for palette in (light, light | dark):
        for ground in (palette["page"], palette["card"]):
            assert min(contrast(palette[name], ground) for name in ("text", "quiet", "accent", "bad", "good")) >= 4.5
            drawn = [colour for name, colour in palette.items() if name.startswith(("run-", "mark-"))]
            assert min(contrast(colour, ground) for colour in drawn) >= 3.0
        assert contrast(palette["text"], palette["differs"]) >= 4.5
