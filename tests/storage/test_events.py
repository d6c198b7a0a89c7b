"""events.jsonl: only appended to, bounded, and never the reason why a run stops."""

from __future__ import annotations

import json
import resource
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from adc_edge.errors import CheckpointError
from adc_edge.storage import run_dir as module
from adc_edge.storage.events import Away, Joined, Started, Waiting
from adc_edge.storage.run_dir import RunDir, has_begun_in

FIXED: dict[str, Any] = {"seed": 7}
AWAY = Away(session="00000000000000ab", time=17.5)


def events(path: Path, name: str = "events.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / name).read_text().splitlines() if line]


def test_an_event_is_one_line_with_kind_fields_and_time(tmp_path: Path) -> None:
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        run.event(Joined(session="00000000000000ab", device="orin <b>", step=3, time=17.5))
        run.event(Waiting(since=1.5, tries=0))
    joined, waiting = events(tmp_path)
    assert joined == {"kind": "joined", "time": 17.5, "session": "00000000000000ab", "device": "orin <b>", "step": 3}
    assert {"kind", "time", "since", "tries"} == waiting.keys()
    assert waiting["time"] > 1.7e9


def test_a_run_without_events_has_no_such_file(tmp_path: Path) -> None:
    RunDir(tmp_path, FIXED, {}).close()
    assert not (tmp_path / "events.jsonl").exists()


def test_a_resumed_run_keeps_its_events_though_its_metrics_go_back(tmp_path: Path) -> None:
    for _ in range(2):
        with closing(RunDir(tmp_path, FIXED, {})) as run:
            run.rewind(0, lambda line: False)
            run.event(AWAY)
            run.metric(step=0)
    assert len(events(tmp_path)) == 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_run_with_nothing_but_events_has_not_begun_and_fresh_deletes_them(tmp_path: Path) -> None:
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        run.event(AWAY)
        assert not run.has_begun
    RunDir(tmp_path, {"seed": 8}, {}).close()  # is no obstacle
    assert not (tmp_path / "events.jsonl").exists()
    with closing(RunDir(tmp_path, {"seed": 8}, {})) as run:
        run.event(AWAY)
        run.metric(step=0)
    assert has_begun_in(tmp_path)
    with pytest.raises(CheckpointError):
        RunDir(tmp_path, FIXED, {})
    assert len(events(tmp_path)) == 1
    RunDir(tmp_path, FIXED, {}, fresh=True).close()
    assert not (tmp_path / "events.jsonl").exists()


def test_a_line_torn_by_a_kill_costs_that_line_alone(tmp_path: Path) -> None:
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        run.event(AWAY)
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "aw')
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        run.event(AWAY)
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert [json.loads(lines[0])["kind"], lines[1], json.loads(lines[2])["kind"]] == ["away", b'{"kind": "aw', "away"]


def test_a_full_disk_loses_the_line_and_nothing_else(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        run.event(AWAY)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "events.jsonl").stat().st_size + 9, limits[1]))
        try:
            run.event(AWAY)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert run.trouble is None  # that is about metrics
        run.event(Away(session="00000000000000cd"))
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert json.loads(lines[0])["session"] == "00000000000000ab"
    assert json.loads(lines[-1])["session"] == "00000000000000cd"
    assert len(lines) == 3


def test_the_file_is_bounded_and_the_newest_events_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS_BYTES", 2000)
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        for number in range(500):
            run.event(Away(session=f"{number:016x}"))
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("events*")}
    assert set(sizes) == {"events.jsonl", "events.1.jsonl"}
    assert max(sizes.values()) < 2200
    told = [int(line["session"], 16) for line in events(tmp_path, "events.1.jsonl") + events(tmp_path)]
    assert told == list(range(500 - len(told), 500))
    assert len(told) > 20
    RunDir(tmp_path, FIXED, {}, fresh=True).close()
    assert not list(tmp_path.glob("events*"))


def test_events_come_from_many_threads(tmp_path: Path) -> None:
    with closing(RunDir(tmp_path, FIXED, {})) as run:

        def tell(device: str) -> None:
            for step in range(200):
                run.event(Joined(session="0", device=device, step=step))

        threads = [threading.Thread(target=tell, args=(name * 50,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(events(tmp_path)) == 800


def test_a_run_that_is_not_kept_is_shown_in_a_directory_of_its_own(tmp_path: Path) -> None:
    with closing(RunDir(None, FIXED, {"lr": 1}, shown=tmp_path)) as run:
        run.metric(kind="step", step=0)
        run.event(Started(role="device", version="1", pid=1, step=0))
        run.show("manifest.json", b"{}")
        run.keep("trunk.safetensors", b"weights")
        run.checkpoint(1, {}, {})
        assert (run.path, run.latest(), run.oldest(7), run.has_begun) == (None, None, 7, False)
    assert {path.name for path in tmp_path.iterdir()} == {
        "settings.json",
        "manifest.json",
        "metrics.jsonl",
        "events.jsonl",
        "lock",
    }
    assert json.loads((tmp_path / "settings.json").read_text())["free"] == {"lr": 1}


def test_a_run_that_is_closed_writes_nothing_more_whoever_still_tells_something(tmp_path: Path) -> None:
    run = RunDir(tmp_path, FIXED, {})
    over = threading.Event()

    def tell() -> None:
        while not over.is_set():
            run.event(AWAY)
            run.metric(kind="step", step=0)

    threads = [threading.Thread(target=tell) for _ in range(3)]
    for thread in threads:
        thread.start()
    run.close()
    sizes = [
        (tmp_path / name).stat().st_size for name in ("events.jsonl", "metrics.jsonl") if (tmp_path / name).exists()
    ]
    time.sleep(0.05)
    over.set()
    for thread in threads:
        thread.join()
    run.event(AWAY)
    names = [name for name in ("events.jsonl", "metrics.jsonl") if (tmp_path / name).exists()]
    assert [(tmp_path / name).stat().st_size for name in names] == sizes


def test_the_metrics_of_a_run_that_is_not_kept_are_bounded_and_those_of_a_kept_one_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHOWN_BYTES", 2000)
    shown, kept = tmp_path / "shown", tmp_path / "kept"
    with closing(RunDir(None, FIXED, {}, shown=shown)) as run, closing(RunDir(kept, FIXED, {})) as other:
        for step in range(300):
            run.metric(kind="step", step=step)
            other.metric(kind="step", step=step)
    sizes = [path.stat().st_size for path in shown.glob("metrics*")]
    assert len(sizes) == 2
    assert max(sizes) < 2200
    assert events(shown, "metrics.jsonl")[-1]["step"] == 299
    assert len(events(kept, "metrics.jsonl")) == 300
