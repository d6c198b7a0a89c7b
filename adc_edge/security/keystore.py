"""CURVE keys of one machine, kept in files. Devices are allowed and revoked by name; `authenticator.py` enforces it.

A key directory holds ``secret.key``, the key pair of this machine, and ``public.key``, to be copied to the other side.
On a device, ``trainer.key`` is the only trainer that it trusts. On a trainer, the devices in ``devices/NAME.key`` may
connect, and those in ``revoked/NAME.key`` may not any more.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import struct
import threading
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import zmq
from zmq.utils import z85

from adc_edge.errors import SettingError
from adc_edge.files import sync_directory, write_atomic

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_STARVED = "no descriptor left"
_COPY_AGAIN = "copy public.key of the other machine again"


class KeyPair(NamedTuple):
    """A public and a secret key, each 40 bytes of Z85."""

    public: bytes
    secret: bytes


def make_keys(directory: Path) -> KeyPair:
    """Make the key pair of this machine. Raises SettingError if there is one."""
    path = directory / "secret.key"
    if os.path.lexists(path):
        raise SettingError(f"{path} exists", "no keys", "remove it first; every peer must then get the new public key")
    pair = KeyPair(*zmq.curve_keypair())
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write_public(directory / "public.key", "this machine, to be copied to the other side", pair.public)
    text = b"# adc-edge: SECRET key; never copy it, its owner can impersonate this machine\n"
    write_atomic(path, text + b"public = %b\nsecret = %b\n" % pair, mode=0o600)
    return pair


def load_pair(directory: Path) -> KeyPair:
    """Return the key pair of this machine. Raises SettingError if it is missing, malformed or open to other users."""
    path, new = directory / "secret.key", f"adc-edge keys new --keys {quote(str(directory))}"
    fields = _read(path, new)
    if (mode := path.stat().st_mode) & 0o077:
        remedy = f"chmod 600 {quote(str(path))}\n  and if others may have read it, remove it and make new keys"
        raise SettingError(f"{path} has mode {stat.S_IMODE(mode):04o}, open to others", "mode 0600", remedy)
    if fields.keys() != {b"public", b"secret"} or zmq.curve_public(fields[b"secret"]) != fields[b"public"]:
        raise SettingError(f"{path} is damaged", "a secret key and its public key", f"remove it, then {new}")
    return KeyPair(fields[b"public"], fields[b"secret"])


def load_public(path: Path, remedy: str = _COPY_AGAIN) -> bytes:
    """Return the key in a copy of a ``public.key``. Raises SettingError if it is missing, malformed or a secret key."""
    fields = _read(path, remedy)
    if b"secret" in fields:
        raise SettingError(f"{path} is a secret key: never copy it", "the public.key beside it", remedy)
    if b"public" not in fields:
        raise SettingError(f"{path} holds no public key", "a line `public = ` and 40 characters", remedy)
    return fields[b"public"]


def trainer_key(directory: Path) -> bytes:
    """Return the key of the trainer that this device trusts. Raises SettingError if there is none."""
    return load_public(directory / "trainer.key", f"adc-edge keys pin FILE --keys {quote(str(directory))}")


def fingerprint(public: bytes) -> str:
    """Return sixteen hexadecimal digits of a key's hash to compare by eye, like ``3f2a-91c0-77de-0b12``."""
    return "-".join(re.findall("....", hashlib.sha256(public).hexdigest()[:16]))


def pin(directory: Path, public: bytes) -> None:
    """Trust only this trainer. Raises SettingError for this machine's own key, or if this machine has none."""
    _refuse_own(directory, public)
    _write_public(directory / "trainer.key", "the trainer that this device trusts", public)


def allow(directory: Path, name: str, public: bytes) -> None:
    """Allow a device to connect. Raises SettingError for a name or key in use, a revoked key, or this machine's own."""
    if not _NAME.fullmatch(name):
        raise SettingError(f"name {name!r}", "letters, digits and . _ -, at most 64", "for example cam-01")
    _refuse_own(directory, public)
    for file, key in read_keys(directory / "revoked").items():
        if key == public or isinstance(key, str):  # an unreadable file may hold this key
            raise SettingError("a revoked key", "a key that was not revoked", f"delete {file} to allow it again")
    for file, key in read_keys(directory / "devices").items():
        if file.stem != name and key == public:
            raise SettingError(f"the key may connect already, as {file.stem}", "a new key", f"use {file.stem}")
        if file.stem == name and key != public:
            remedy = f"choose another, or first adc-edge keys revoke {name} --keys {quote(str(directory))}"
            raise SettingError(f"the name {name} is taken by another key", "a new name", remedy)
    (directory / "devices").mkdir(mode=0o700, exist_ok=True)
    _write_public(directory / "devices" / f"{name}.key", f"the device {name}, which may connect", public)


def revoke(directory: Path, name: str) -> None:
    """Forbid a device to connect, and keep its key in ``revoked/``. Raises SettingError for an unknown name."""
    devices, revoked = directory / "devices", directory / "revoked"
    known = [file.stem for file in _key_files(devices)]
    if name not in known:
        expected = f"one of: {', '.join(known)}" if known else "a device that is allowed: here none is"
        raise SettingError(f"no device {name!r}", expected, "check the name: adc-edge keys list shows all")
    revoked.mkdir(mode=0o700, exist_ok=True)
    file = devices / f"{name}.key"
    targets = (revoked / f"{name}{suffix}.key" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    os.replace(file, next(t for t in targets if not t.exists() or t.read_bytes() == file.read_bytes()))
    for changed in (revoked, devices, directory):
        sync_directory(changed)


class Devices:
    """The devices that a trainer allows, for use by several threads.

    ``faults`` has the reason for each key file that cannot be read. Such a file allows no device.
    """

    def __init__(self, directory: Path) -> None:
        self.faults: dict[str, str] = {}
        self._home, self._places = directory, (directory / "devices", directory / "revoked")
        self._lock = threading.Lock()
        self._stamp: object = None
        self._allowed: dict[bytes, str] = {}  # replaced as a whole, never changed in place
        self._revoked: dict[bytes, str] = {}
        self._gone: set[bytes] = set()
        self.refresh()

    def name(self, public: bytes) -> str | None:
        """Return the name of a device if its key was allowed when the directory was last read. Otherwise None."""
        return self._allowed.get(public)

    def names(self) -> list[str]:
        """Return the names of all devices whose keys were allowed when the directory was last read."""
        return sorted(self._allowed.values())

    def refresh(self) -> set[bytes]:
        """Read the directory again. Return the keys that were allowed at the last call and are not any more."""
        with self._lock:
            self._look()
            gone, self._gone = self._gone - self._allowed.keys(), set()
            return gone

    def refusal(self, public: bytes) -> str | None:
        """Read the directory again. Return None if the key is allowed, otherwise the reason why it is not."""
        with self._lock:
            self._look()
            if public in self._allowed:
                return None
            return f"revoked ({self._revoked[public]})" if public in self._revoked else "unknown"

    def _look(self) -> None:
        stamp = [_stamp(place) for place in self._places]  # before reading, so that a change meanwhile is noticed next
        if stamp == self._stamp or _STARVED in stamp:
            return
        try:
            devices, revoked = (read_keys(place) for place in self._places)
            faults = {str(f.relative_to(self._home)): k for f, k in (devices | revoked).items() if isinstance(k, str)}
        except OSError as error:  # revoked keys cannot be known, so no key is allowed
            devices, revoked, faults = {}, {}, {str(error.filename): str(error.strerror)}
        out = {key: file.stem for file, key in revoked.items() if isinstance(key, bytes)}
        torn = {file.stem for file, key in revoked.items() if isinstance(key, str)}
        inside = {key: file.stem for file, key in devices.items() if isinstance(key, bytes) and file.stem not in torn}
        allowed = {key: name for key, name in inside.items() if key not in out}
        self._gone |= self._allowed.keys() - allowed.keys()  # for `refresh`; another thread may have read first
        self._stamp, self._allowed, self._revoked, self.faults = stamp, allowed, out, faults


def _refuse_own(directory: Path, public: bytes) -> None:
    if load_pair(directory).public == public:
        raise SettingError("this machine's own key", "the key of the other machine", _COPY_AGAIN)


def _write_public(path: Path, whose: str, public: bytes) -> None:
    write_atomic(path, b"# adc-edge: public key of %b\npublic = %b\n" % (whose.encode(), public))


def _read(path: Path, remedy: str) -> dict[bytes, bytes]:
    """Return the fields of a key file, an empty dictionary if it is malformed. Raises SettingError if unreadable."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait
            raise OSError(0, "not a file")
        content = path.read_bytes()
    except OSError as error:
        raise SettingError(f"no key at {path}: {error.strerror}", "a file made by `keys new`", remedy) from None
    lines = [line for line in content.splitlines() if line.strip() and not line.startswith(b"#")]
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(b"=") for line in lines)}
    try:
        whole = len(fields) == len(lines) and all(len(z85.decode(value)) == 32 for value in fields.values())
    except (KeyError, ValueError, struct.error):
        whole = False
    return fields if whole and fields.keys() <= {b"public", b"secret"} else {}


def _key_files(place: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):  # only this error: an unreadable directory is not an empty one
        return [place / name for name in sorted(os.listdir(place)) if name.endswith(".key") and name[0] != "."]
    return []


def read_keys(place: Path) -> dict[Path, bytes | str]:
    """Return the key in each file of ``devices/`` or ``revoked/``, or the reason as text if it cannot be read."""
    found: dict[Path, bytes | str] = {}
    for file in _key_files(place):
        try:
            found[file] = load_public(file)
        except SettingError as error:
            found[file] = error.received
    return found


def _stamp(place: Path) -> object:
    """Return a value that differs after any change of the directory, without reading its files."""
    try:
        files = [(file.name, file.stat()) for file in _key_files(place)]
    except OSError as error:
        # Unauthenticated peers that use up the descriptors must not cause the removal of allowed devices.
        return _STARVED if error.errno in (errno.EMFILE, errno.ENFILE) else object()  # unequal to any other: read again
    return [(name, s.st_mtime_ns, s.st_ctime_ns, s.st_size, s.st_ino) for name, s in files]
