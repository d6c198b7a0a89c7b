"""What a run leaves in its ``--run DIR``: settings, metrics line by line, checkpoints, and the weights at the end.

settings.json      what was asked for, and which bundle; a resumed run must match it
metrics.jsonl      one JSON object a step or evaluation
checkpoint-*.safetensors
trunk.safetensors or head.safetensors, once the run has ended
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from adc_edge.checkpoint import Arrays, Checkpoint, latest_checkpoint, save_checkpoint
from adc_edge.errors import CheckpointError, SettingError
from adc_edge.files import write_atomic

SETTINGS = "settings.json"
METRICS = "metrics.jsonl"


class _Settings(msgspec.Struct):
    fixed: dict[str, Any]


class RunDir:
    """A run's directory; with ``path`` None it keeps nothing.

    Args:
        path: of the directory, made if absent.
        fixed: settings that a resumed run must share (bundle, seed, …).
        free: settings that may differ from one start to the next, for the record.

    Raises:
        CheckpointError: the directory holds a run with other ``fixed`` settings.
        SettingError: it cannot be written to.
    """

    def __init__(self, path: Path | None, fixed: Mapping[str, Any], free: Mapping[str, Any]) -> None:
        self.path = path
        if path is None:
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._match(path / SETTINGS, json.loads(msgspec.json.encode(fixed)))
            write_atomic(path / SETTINGS, msgspec.json.format(msgspec.json.encode({"fixed": fixed, "free": free})))
            self._metrics = (path / METRICS).open("a", buffering=1)
        except OSError as error:
            raise SettingError(f"--run {path}: {error.strerror}", "a directory to write to", "choose another") from None

    @staticmethod
    def _match(path: Path, fixed: Mapping[str, Any]) -> None:
        if not path.exists():
            return
        try:
            old = msgspec.json.decode(path.read_bytes(), type=_Settings).fixed
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{path}: {error}", "settings as adc-edge wrote them", "use another --run directory"
            ) from None
        changed = [
            f"{k} was {old.get(k)!r}, is {fixed.get(k)!r}" for k in {**old, **fixed} if old.get(k) != fixed.get(k)
        ]
        if changed:
            raise CheckpointError(
                f"{path.parent} holds another run: {'; '.join(changed)}",
                "the settings it was started with",
                "use those, or another --run directory",
            )

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None."""
        return latest_checkpoint(self.path) if self.path else None

    def checkpoint(self, step: int, arrays: Arrays, meta: Mapping[str, Any]) -> None:
        """Keep the state at the beginning of ``step``."""
        if self.path:
            save_checkpoint(self.path, step, arrays, meta)

    def metric(self, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        if self.path:
            self._metrics.write(json.dumps(values) + "\n")

    def keep(self, name: str, data: bytes) -> None:
        """Write a file of the run, whole or not at all."""
        if self.path:
            write_atomic(self.path / name, data)

    def close(self) -> None:
        """Close metrics.jsonl."""
        if self.path:
            self._metrics.close()
