"""Trackers of people's choice: wandb, trackio, or a factory of their own, found by name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from adc_edge.errors import SettingError
from adc_edge.watch.trackers.rows import TrackedRow

PROJECT = "adc-edge"
_KNOWN = ("wandb", "trackio")
_FORMS = "wandb, trackio, or MODULE:FACTORY"


class TrackedRun(NamedTuple):
    """A run as a tracker is told of it."""

    name: str  # the same after a resume, another one for another run
    config: Mapping[str, Any]


class HookedTracker:
    """A run of a tracker of wandb's shape, as an ``OpenTracker``.

    Args:
        run: has ``log(values, step=…)`` and ``finish()``.
        next_step: rows of earlier steps are in it already.
    """

    def __init__(self, run: Any, next_step: int) -> None:
        missing = [name for name in ("log", "finish") if not callable(getattr(run, name, None))]
        if missing:
            raise TypeError(f"the tracker's {type(run).__name__} has no {' and no '.join(missing)}")
        self._run, self.next_step = run, next_step

    def log(self, row: TrackedRow) -> None:
        """Log one row; the bytes so far are among its values."""
        self._run.log({**row.values, "bytes_so_far": float(row.bytes_so_far)}, step=row.step)

    def finish(self) -> None:
        """End the run."""
        self._run.finish()


def find_tracker(name: str) -> Callable[[TrackedRun], HookedTracker]:
    """Import what ``name`` names, and return a function that begins a run with it.

    Raises:
        SettingError: the name has another form, or its module or factory cannot be had.
    """
    module_name, colon, factory_name = name.partition(":")
    if name not in _KNOWN and not (module_name and colon and factory_name.isidentifier()):
        raise SettingError(
            f"--tracker {name}", _FORMS, "choose one of these; a file my.py with def start(…) is my:start"
        )
    module = _imported(name, module_name)
    if name == "wandb":
        return lambda run: _begin_wandb(module, run)
    if name == "trackio":
        return lambda run: _begin_trackio(module, run)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise SettingError(
            f"--tracker {name}: {module_name} has no function {factory_name}",
            "a function that takes project, name and config, and returns an object with log and finish",
            f"define {factory_name} in {module_name}, or correct the name",
        )
    return lambda run: _begin_factory(factory, run)


def _imported(name: str, module_name: str) -> Any:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # a file beside the run; last, so that it hides no installed module
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise SettingError(
            f"--tracker {name}: {module_name} cannot be imported: {reason}",
            "an installed package, or a file in this directory",
            f"pip install {module_name}, or correct the name"
            if name in _KNOWN
            else "correct the name, or mend the module",
        ) from None


def _begin_wandb(wandb: Any, run: TrackedRun) -> HookedTracker:
    """Begin or go on; the server tells the next step. WANDB_PROJECT and the like hold."""
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    options = {"name": run.name, "id": run.name, "resume": "allow", "reinit": "create_new"}
    begun = wandb.init(project=project, config=dict(run.config), **options)
    return HookedTracker(begun, int(begun.step))


def _begin_trackio(trackio: Any, run: TrackedRun) -> HookedTracker:
    """Begin or go on with the run of this name. Trackio's own next step has no public name."""
    begun = trackio.init(project=PROJECT, name=run.name, config=dict(run.config), resume="allow", embed=False)
    return HookedTracker(begun, int(getattr(begun, "_next_step", 0)))


def _begin_factory(factory: Callable[..., Any], run: TrackedRun) -> HookedTracker:
    """Begin with a person's own factory, whose object may tell its next step as ``step``."""
    begun = factory(project=PROJECT, name=run.name, config=dict(run.config))
    step = getattr(begun, "step", 0)
    return HookedTracker(begun, step if isinstance(step, int) else 0)
