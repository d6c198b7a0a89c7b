"""Encryption of what lies in the store, by a key that is derived from the trainer's own (``--keys``).

AES-256-GCM with a random nonce of 96 bits for each record (NIST SP 800-38D). The record's header is authenticated, not
encrypted: it tells shapes and position, no values. A trainer without keys writes records in the clear. A store knows
the fingerprint of the key that it began with, so another key is found at the start, and so is a record in the clear.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from adc_edge.arrays import Body
from adc_edge.errors import CheckpointError, SettingError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_CLEAR, _SEALED = b"c", b"s"  # first byte of a record's header
_NONCE_BYTES = 12
_PURPOSE, _FINGERPRINT = b"adc-edge activation store", b"adc-edge activation store, fingerprint of its key"


class StoreSeal:
    """Seals and opens the records of a store.

    Args:
        secret: the trainer's secret key; None: records are written in the clear.

    Raises:
        SettingError: there is a key, and the package `cryptography` is not installed.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._cipher = None if secret is None else _cipher(secret)
        self.fingerprint = "" if secret is None else _derived(secret, _FINGERPRINT)[:16].hex()  # "": it has no key

    def seal(self, header: bytes, body: Body) -> tuple[bytes, Body]:
        """Return header and body as they are to be written."""
        if self._cipher is None:
            return _CLEAR + header, body
        nonce = os.urandom(_NONCE_BYTES)
        return _SEALED + header, nonce + self._cipher.encrypt(nonce, body, header)

    def check(self, directory: Path, fingerprint: str) -> None:
        """Raise CheckpointError if a store began with a key, ``fingerprint``, that is not this trainer's."""
        if fingerprint and fingerprint != self.fingerprint:
            key = "this trainer has no key" if self._cipher is None else "this trainer has another key"
            raise _unreadable(directory, f"the activation store is encrypted, and {key}")

    def open(self, path: Path, header: bytes, body: memoryview, in_clear: bool = True) -> tuple[bytes, memoryview]:
        """Return header and body as they were given to ``seal``.

        Args:
            path: of the record, to name it.
            header: as it was written.
            body: as it was written.
            in_clear: whether it may have been written by a trainer without keys.

        Raises:
            CheckpointError: the record was sealed with another key, or not at all, or changed since.
        """
        kind, header = header[:1], header[1:]
        if kind == _CLEAR:
            if not in_clear:
                raise _unreadable(path, "a record in the clear, and this activation store is encrypted")
            return header, body
        if self._cipher is None:
            raise _unreadable(path, "a record that is encrypted, and this trainer has no key")
        from cryptography.exceptions import InvalidTag

        try:
            plain = self._cipher.decrypt(bytes(body[:_NONCE_BYTES]), body[_NONCE_BYTES:], header)
        except InvalidTag:
            raise _unreadable(path, "a record that was sealed with another key, or changed since") from None
        return header, memoryview(plain)


def _unreadable(path: Path, what: str) -> CheckpointError:
    remedy = "start the trainer with the --keys that it had; or restore the file"
    return CheckpointError(f"{path}: {what}", "what this trainer has written", remedy)


def _cipher(secret: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise SettingError(
            "a trainer with --keys, and no package `cryptography` to encrypt what it keeps of devices",
            "the package",
            "pip install 'adc-edge[cloud]' on the trainer",
        ) from None
    return AESGCM(_derived(secret, _PURPOSE))


def _derived(secret: bytes, purpose: bytes) -> bytes:
    """32 bytes that depend on a secret and a purpose (HKDF-SHA256, RFC 5869)."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), 32, None, purpose).derive(secret)
