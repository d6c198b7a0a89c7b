"""Atomic writes: a file is written under a temporary name, flushed to the disk, then renamed to its final name.

Temporary directories, and JSON of values that may hold names of files in any bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from adc_edge.errors import SettingError
from adc_edge.terminal import readable

_T = TypeVar("_T")


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write ``data`` to ``path``. After a crash the old or the new file is there, never a part of it."""
    make_directory(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk is reported without a name, and the temporary name is no help
        raise
    sync_directory(path.parent)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory. It replaces ``path`` if the block succeeds, and is removed if the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(path.parent)


def temporary_directory(prefix: str = "adc-edge-") -> tempfile.TemporaryDirectory[str]:
    """Return a new temporary directory; raises SettingError where the system has no place for one."""
    try:
        return tempfile.TemporaryDirectory(prefix=prefix)
    except OSError as error:
        raise no_temporary_directory(error) from None


def no_temporary_directory(error: OSError) -> SettingError:
    """Return the error for a system without a directory for temporary files."""
    return SettingError(
        f"no temporary directory: {error.strerror}",
        "a directory that can be written, for temporary files",
        "type TMPDIR=DIR before the command, DIR being such a directory; "
        "`serve` and `trainer` do without it if --run DIR is given",
    )


def read_json(path: Path, kind: type[_T], expected: str, remedy: str) -> _T:
    """Return the value in a JSON file.

    Raises:
        SettingError: the file cannot be read, or holds something else than a ``kind``.
    """
    import msgspec

    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise SettingError(f"{path}: {why}", expected, remedy) from None


def json_bytes(value: Any, indent: int = 2) -> bytes:
    """Return ``value`` as readable JSON. Bytes of file names that are not UTF-8 become ``\\xff``."""
    import msgspec  # `doctor` runs where it is missing

    plain = msgspec.to_builtins(value, enc_hook=str, str_keys=True)
    return msgspec.json.format(msgspec.json.encode(readable_values(plain)), indent=indent) + b"\n"


def readable_values(value: Any) -> Any:
    """Return plain values of JSON with every text as ``readable`` makes it."""
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, dict):
        return {readable_values(key): readable_values(item) for key, item in value.items()}
    return [readable_values(item) for item in value] if isinstance(value, list | tuple) else value


def make_directory(path: Path) -> None:
    """Make a directory that survives a power cut, with those above it, unless it is there."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Flush a directory to the disk, so that renames in it survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def check_output(path: Path, *, directory: bool = False) -> Path:
    """Return ``path`` if a file, or a ``directory``, can be written there. Nothing is created.

    Raises:
        SettingError: it cannot, in words that name the obstacle.
    """
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(path)
        obstacle = _obstacle(path, directory)
    except (OSError, ValueError) as error:  # a name that is too long, or holds a null byte
        obstacle = getattr(error, "strerror", None) or str(error)
    if obstacle is not None:
        wanted = "a directory that is there or can be made" if directory else "a file that can be written"
        raise SettingError(f"{path}: {obstacle}", wanted, "choose another path, or change its permissions")
    return path


def _obstacle(path: Path, directory: bool) -> str | None:
    if directory and path.exists() and not path.is_dir():
        return "it is a file, not a directory"
    if not directory and path.is_dir():
        return "it is a directory, not a file"
    if not directory and path.exists() and not path.is_file():
        return "it is a device or a pipe, which cannot be replaced by a file"
    place = path.absolute() if directory else path.absolute().parent
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"{place} is a file, not a directory"
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return f"{place} is on a read-only file system"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{place} may not be written"
