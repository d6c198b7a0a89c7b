"""Run directories as the two sides write them, without the training: settings, manifest, metrics, events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from adc_edge.storage.checkpoint import save_checkpoint
from adc_edge.storage.run_dir import RunDir

BEGIN = 1_790_000_000.0  # Unix time
SESSION = 0x0123456789ABCDEF
MANIFEST = {"model": "vit_tiny_patch16_224", "split": 2, "tokens": 17, "dim": 32, "classes": 10, "batch_size": 16}
SHAPE = {"images": 16, "tokens": 17, "clusters": 8, "kept": 17}
STEP_S = 0.5


def append(path: Path, name: str, *lines: dict[str, Any]) -> None:
    with (path / name).open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def step_line(step: int, time: float | None, **more: Any) -> dict[str, Any]:
    """A device's step as 0.9 writes it; without ``time`` as 0.6 wrote it."""
    line = {
        "kind": "step",
        "step": step,
        "loss": 2.3 * 0.995**step + 0.1 * np.sin(step * 7.0),
        "accuracy": min(0.9, 0.1 + step / 500),
        "bytes_up": 4000,
        "bytes_down": 3000,
        "seconds": STEP_S,
        "seconds_data": 0.01,
        "seconds_forward": 0.12,
        "seconds_send": 0.01,
        "seconds_recompute": 0.02,
        "seconds_link": 0.15 + 0.05 * np.sin(step / 9),
        "seconds_cloud": 0.1,
        "seconds_wait": 0.2,
        "seconds_backward": 0.08,
    }
    if time is not None:
        line |= {"time": time, "seconds_encode": 0.02, "seconds_decode": 0.01, "seconds_cloud_codec": 0.01}
        line |= {"up_mbit_s": 8 + np.sin(step / 20), "down_mbit_s": 20.0, "rtt_min_ms": 40 + 5 * np.cos(step / 15)}
        line |= {"xi": 0.5, "precision": "pca1", "gradient_precision": "pca0.25", "micro_batches": 1, "images": 16}
    return line | more


def settings_of(role: str, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """``fixed`` and ``free`` settings of a side."""
    fixed = {"role": role, "bundle": "b" * 64, "seed": 0, "optimizer": {"name": "adamw", "lr": 1e-3}}
    fixed |= {"mode": "parallel"} if role == "trainer" else {}
    if role == "device":
        fixed |= {"data": "digits", "trunk": "train", "precision": "pca1", "gradient_precision": "pca0.25"}
        fixed |= {"shape": SHAPE, "micro_batches": 1}
    free = {"steps": 200, "epochs": None, "name": "", "batch_size": None} if role == "device" else {"devices": 1}
    known = {name: value for name, value in more.items() if name in fixed}
    return fixed | known, free | {name: value for name, value in more.items() if name not in fixed}


@contextmanager
def open_run(path: Path, role: str, **settings: Any) -> Iterator[RunDir]:
    """A run's directory while its process is at work: it holds the lock."""
    fixed, free = settings_of(role, **settings)
    run_dir = RunDir(path, fixed, free, {"adc-edge": "0.9.0", "cores": 4})
    run_dir.keep("manifest.json", json.dumps(MANIFEST).encode())
    try:
        yield run_dir
    finally:
        run_dir.close()


def make_device_run(
    path: Path, steps: int = 200, *, planned: int = 0, complete: bool = True, timed: bool = True, **settings: Any
) -> Path:
    """A device's run that went on without any trouble."""
    with open_run(path, "device", **({"steps": planned or steps} | settings)):
        pass
    end = BEGIN + steps * STEP_S
    append(path, "metrics.jsonl", *(step_line(s, BEGIN + (s + 1) * STEP_S if timed else None) for s in range(steps)))
    test = {"kind": "evaluation", "step": steps, "images": 100, "accuracy": 0.87, "loss": 0.4, "bytes_up": 50_000}
    if complete:
        append(path, "metrics.jsonl", test | {"bytes_down": 900} | ({"time": end} if timed else {}))
    if timed:
        append(path, "events.jsonl", started(BEGIN, 0, planned or steps))
        if complete:
            append(path, "events.jsonl", {"kind": "ended", "time": end, "step": steps, "complete": True})
    keep_tally(path, steps)
    return path


def started(time: float, step: int, steps: int, role: str = "device") -> dict[str, Any]:
    about = {"role": role, "version": "0.9.0", "pid": 1, "step": step, "steps": steps}
    return {"kind": "started", "time": time, **about}


def keep_tally(path: Path, step: int, *, session: int = SESSION, **tally: Any) -> None:
    """A device's checkpoint before a step."""
    evaluations = [{"step": step}] if (path / "metrics.jsonl").read_text().count('"evaluation"') else []
    sums = {"steps": step, "bytes_up": 4000 * step, "bytes_down": 3000 * step, "evaluations": evaluations}
    sums |= {"bytes_evaluation_up": 50_000 * len(evaluations), "bytes_evaluation_down": 900 * len(evaluations)}
    save_checkpoint(path, step, {}, {"session": session, "tally": sums | tally})


def make_troubled_run(path: Path, **settings: Any) -> Path:
    """A device's run of 200 steps: an outage of 30 s in step 60, new settings from step 100, a kill in step 150.

    The process came back 60 s later at the checkpoint of step 140, and repeated 10 steps.
    """
    make_device_run(path, 60, planned=200, complete=False, **settings)
    time = BEGIN + 60 * STEP_S
    append(
        path,
        "events.jsonl",
        *({"kind": "waiting", "time": time + 0.2 + t, "since": time + 0.2, "tries": t // 5 + 1} for t in (0, 5, 25)),
    )
    time += 30.2
    append(path, "events.jsonl", {"kind": "resumed", "time": time, "seconds": 30.0})
    lines = []
    for step in range(60, 100):
        time += STEP_S
        lines.append(step_line(step, time))
    plan = {"step": 100, "micro_batches": 2, "window": 2, "clusters": 2, "kept": 17, "precision": "pca0.5"}
    lines.append(
        {"kind": "plan", **plan, "gradient_precision": "pca0.25", "why": "the link is slower", "time": time + 0.01}
    )
    new = {"xi": 0.25, "precision": "pca0.5", "micro_batches": 2}
    for step in range(100, 140):
        time += STEP_S
        lines.append(step_line(step, time, **new))
    append(path, "metrics.jsonl", *lines)
    time += 10 * STEP_S + 60.0  # ten steps that were lost, and the time without a process
    append(path, "events.jsonl", started(time, 140, 200))
    append(path, "metrics.jsonl", *(step_line(step, time + (step - 139) * STEP_S, **new) for step in range(140, 200)))
    time += 60 * STEP_S
    test = {"kind": "evaluation", "step": 200, "images": 100, "accuracy": 0.85, "loss": 0.5, "time": time}
    append(path, "metrics.jsonl", test | {"bytes_up": 50_000, "bytes_down": 900})
    append(path, "events.jsonl", {"kind": "ended", "time": time, "step": 200, "complete": True})
    lost = {
        "bytes_up": 4000 * 210,
        "bytes_down": 3000 * 210,
        "bytes_repeated_up": 40_000,
        "bytes_repeated_down": 30_000,
    }
    keep_tally(path, 200, steps_repeated=10, outages=1, bytes_probe_up=2000, bytes_probe_down=1000, **lost)
    return path


def make_trainer_run(path: Path, devices: dict[int, str], steps: int = 200, *, timed: bool = True) -> Path:
    """A trainer's run with a session for each device."""
    with open_run(path, "trainer"):
        pass
    metrics, events = [], [started(BEGIN, 0, 0, "trainer")]
    for session, device in devices.items():
        events.append(
            {"kind": "joined", "time": BEGIN, "session": f"{session:016x}", "device": device, "step": 0, "steps": steps}
        )
    for step in range(steps):
        for place, (session, device) in enumerate(devices.items()):
            line = {"kind": "step", "device": device, "step": step, "head_step": step * len(devices) + place + 1}
            line |= {"images": 16, "clusters": 8, "loss": 2.3 * 0.995**step, "accuracy": min(0.9, 0.1 + step / 500)}
            line |= {"seconds_cloud": 0.1, "body_bytes_up": 3800, "body_bytes_down": 2900}
            if timed:
                line |= {"time": BEGIN + (step + 1) * STEP_S, "session": f"{session:016x}", "kept": 17}
                line |= {"precision": "pca1", "gradient_precision": "pca0.25", "micro_batches": 1, "rtt_ms": None}
            metrics.append(line)
    append(path, "metrics.jsonl", *metrics)
    if timed:
        end = BEGIN + steps * STEP_S
        events += [{"kind": "done", "time": end, "session": f"{session:016x}", "step": steps} for session in devices]
        append(path, "events.jsonl", *events, {"kind": "ended", "time": end, "step": steps, "complete": True})
    records = {str(session): {"applied": steps, "device": name, "finished": True} for session, name in devices.items()}
    save_checkpoint(path, steps * len(devices), {}, {"sessions": records})
    return path
