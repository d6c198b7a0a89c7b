"""The files of a run in its directory: removed, or refused where a part of them is left."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from adc_edge.errors import CheckpointError
from adc_edge.storage.checkpoint import checkpoint_name, checkpoint_steps


def remove_run(path: Path, patterns: Iterable[str], directories: Iterable[str]) -> None:
    """Remove a run: the files that fit the patterns, in this order, then the directories."""
    remove_files(path, patterns)
    for directory in filter(Path.is_dir, (path / name for name in directories)):
        shutil.rmtree(directory)


def remove_files(path: Path, patterns: Iterable[str]) -> None:
    """Remove the files in ``path`` that fit a pattern."""
    for pattern in patterns:
        for file in path.glob(pattern):
            file.unlink()


def check_whole(path: Path, directories: Iterable[str]) -> None:
    """Raise CheckpointError if a directory without settings has other files of a run: nobody knows of which run."""
    left = [path / name for name in directories if any(path.glob(f"{name}/*"))]
    left += [path / checkpoint_name(step) for step in checkpoint_steps(path)]
    if left:
        raise CheckpointError(
            f"{left[0]}, and no settings.json: a run was being deleted here, or has lost its settings",
            "a whole run, or none",
            "add --fresh to delete the rest, or restore settings.json",
        )
