"""The settings of a run (settings.json), and whether a directory may be used for a run with others."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from adc_edge.errors import CheckpointError, SettingError
from adc_edge.storage.bundle import CLIENT

SETTINGS = "settings.json"


class RunSettings(msgspec.Struct):
    """The part of settings.json that tells whether a run may be resumed."""

    fixed: dict[str, Any]
    machine: dict[str, Any] = {}
    run: str = ""  # 12 random hexadecimal digits that tell the run from others; none before 0.10


def read_settings(path: Path) -> RunSettings:
    """Return the settings in a file; raises CheckpointError if it holds none."""
    try:
        settings = msgspec.json.decode(path.read_bytes(), type=RunSettings)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: {error}",
            "settings as adc-edge wrote them",
            "use another --run directory, or start over with --fresh",
        ) from None
    if settings.fixed.get("role") == "trainer":
        settings.fixed.setdefault("mode", "parallel")  # version 0.10 had no other
    return settings


def run_number(path: Path) -> dict[str, str]:
    """Return the entry ``run`` for the settings in a file: the one that is there, or a new one for a new run."""
    run = read_settings(path).run if path.exists() else secrets.token_hex(6)
    return {"run": run} if run else {}


def another_run(path: Path, changed: list[str]) -> CheckpointError:
    """Return the refusal of a directory whose run differs in ``changed``."""
    return CheckpointError(
        f"{path} holds another run: {'; '.join(changed)}",
        "the settings it was started with",
        "use those, or another --run directory, or start over with --fresh",
    )


def check_no_bundle(path: Path) -> None:
    """Raise SettingError if ``path`` is a bundle, whose weights a run would replace."""
    if (path / CLIENT).exists():
        raise SettingError(f"--run {path} is a bundle", "a directory of its own for the run", "choose another --run")


def check_role(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise CheckpointError if ``path`` holds a run of another command, which `--fresh` would delete."""
    roles = {"device": "serve"}
    was, now = (roles.get(fixed.get("role", ""), fixed.get("role")) for fixed in (old, new))
    if was != now:
        raise CheckpointError(f"{path} holds a run of `{was}`", f"a run of `{now}`", "choose another --run directory")


def check_fresh(path: Path, fixed: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the run to forget is one of another command; a damaged one may be forgotten."""
    with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
        check_role(path, msgspec.json.decode((path / SETTINGS).read_bytes(), type=RunSettings).fixed, fixed)


def changes_between(old: Mapping[str, Any], new: Mapping[str, Any], within: str = "") -> list[str]:
    """Return what differs, one entry for each value: of a mapping only the values that do."""
    changes = []
    for key in {**old, **new}:
        before, now, name = old.get(key), new.get(key), f"{within}{key}"
        if isinstance(before, dict) and isinstance(now, dict):
            changes += changes_between(before, now, f"{name} ")
        elif before != now:
            changes.append(f"{name} was {before!r}, is {now!r}")
    return changes
