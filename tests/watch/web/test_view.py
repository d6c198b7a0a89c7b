"""A page that takes a snapshot and every update after it has what the model has."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adc_edge.storage.events import Resumed, Waiting
from adc_edge.watch.reading.state import Series, WatchedRun
from adc_edge.watch.web.picture import SentCurves, columns_from, picture_of_run, shown
from adc_edge.watch.web.stream import EventHub
from adc_edge.watch.web.view import MOST_CURVES, LiveView
from tests.watch.synthetic import SyntheticRun


class _Page:
    """A page that takes updates as its script does."""

    def __init__(self, snapshot: dict[str, Any]) -> None:
        self.model = snapshot

    def take(self, update: dict[str, Any]) -> None:
        assert update["number"] == self.model["number"] + 1
        self.model["number"] = update["number"]
        for number, news in update["runs"].items():
            run = self.model["runs"][int(number)]
            run["about"].update(news.get("about", {}))
            run["sessions"].update(news.get("sessions", {}))
            for key in news.get("gone", ()):
                del run["sessions"][key]
            for name, part in news.get("curves", {}).items():
                self._take_curve(run["curves"], name, part)

    @staticmethod
    def _take_curve(curves: dict[str, Any], name: str, part: dict[str, Any] | None) -> None:
        if part is None:
            del curves[name]
            return
        old = curves.get(name, {"columns": {}})["columns"] if part["start"] else {}
        columns = {
            title: (old.get(title) or [None] * part["start"])[: part["start"]] + values
            for title, values in part["columns"].items()
        }
        curves[name] = {"start": 0, "columns": columns}


def plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ("now", "server")}


@pytest.mark.parametrize("role", ["device", "trainer"])
def test_snapshot_and_updates_give_what_a_new_snapshot_gives(tmp_path: Path, role: Any) -> None:
    async def follow() -> None:
        with SyntheticRun(tmp_path / "run", role, ["a", "b"], start=1e9) as run, ThreadPoolExecutor(1) as thread:
            watched = WatchedRun(run.path)
            view, told = LiveView([watched], thread), list[dict[str, Any]]()
            hub = EventHub()
            hub.publish = lambda event: told.append(json.loads(event.partition(b"data: ")[2]))  # type: ignore[method-assign]
            view.connect(hub, asyncio.get_running_loop())
            page: _Page | None = None
            for turn in range(12):
                for _ in range(199):
                    run.step(turn // 2 % 2 if role == "trainer" else 0)
                if turn == 8:
                    run.join(0)
                    run.evaluation()
                view.take(watched.refresh())
                await asyncio.sleep(0)
                for update in told[-1:] if page else ():
                    page.take(update)  # type: ignore[union-attr]
                if turn == 3:
                    page = _Page(json.loads(await view.state()))
            assert page
            assert len(told) == 12
            assert plain(page.model) == plain(json.loads(await view.state()))

    asyncio.run(follow())


def test_a_series_is_sent_once_and_then_only_what_is_new() -> None:
    series, sent = Series(("step", "loss"), 10), SentCurves()
    have: list[Any] = []
    for number in range(95):
        series.add({"step": float(number), "loss": 1.0 if number > 3 else None})
        if number % 3 == 0:
            continue
        news = sent.news(series)
        assert news is not None, number
        have = have[: news["start"]] + news["columns"]["step"]
        assert have == columns_from(series)["columns"]["step"]
        assert sent.news(series) is None


def test_nothing_is_told_while_nothing_changes(tmp_path: Path) -> None:
    with SyntheticRun(tmp_path / "run") as run, ThreadPoolExecutor(1) as thread:
        run.join(0)
        for _ in range(2100):  # more than a series has points
            run.step()
        watched = WatchedRun(run.path)
        view = LiveView([watched], thread)
        view.take(watched.refresh())
        first = view.first()
        for _ in range(3):
            view.take(watched.refresh())
        assert first.partition(b'"now"')[0] == view.first().partition(b'"now"')[0]


def test_the_curves_of_few_devices_are_shown_and_one_that_has_ended_makes_room(tmp_path: Path) -> None:
    names = [f"device-{number}" for number in range(MOST_CURVES + 3)]
    with SyntheticRun(tmp_path / "run", devices=names) as run, ThreadPoolExecutor(1) as thread:
        for device in range(MOST_CURVES):
            run.join(device)
            run.step(device)
        watched = WatchedRun(run.path)
        view = LiveView([watched], thread)
        view.take(watched.refresh())
        run.done(0)
        for device in range(MOST_CURVES, len(names)):
            run.join(device)
            run.step(device)
        view.take(watched.refresh())
        curves = json.loads(asyncio.run(view.state()))["runs"][0]["curves"]
        assert len(curves) == MOST_CURVES
        assert f"session {run.session(0)}" not in curves
        assert f"session {run.session(MOST_CURVES)}" in curves


def test_the_newest_of_many_events_are_told_whatever_their_kind(tmp_path: Path) -> None:
    with SyntheticRun(tmp_path / "run", "device", start=1e9) as run:
        for _ in range(60):
            run.step()
            run.tell(Waiting(time=run.now, since=run.now, tries=1))
            run.tell(Resumed(time=run.now, seconds=0.1))
        run.step(kind="plan", micro_batches=2)
        marks = picture_of_run(WatchedRun(run.path).read_all())["marks"]
        assert [mark["kind"] for mark in marks] == ["outage"] * 49 + ["plan"]


def test_texts_from_outside_are_cut_and_control_characters_are_spelled() -> None:
    assert shown("a\x1b[31mb\u202ec\nd\0") == "a\\x1b[31mb\\u202ec\\x0ad\\x00"
    assert shown("<b>ξ ä") == "<b>ξ ä"
    assert len(shown("x" * 9000)) == 500
