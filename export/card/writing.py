"""The model card on disk: `README.md` beside the checkpoint, which never takes the place of another text silently."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from adc_edge.errors import SettingError
from adc_edge.files import write_atomic

CARD = "README.md"
_SIGNED = re.compile(rb"\n<!-- written by adc-edge merge, sha256 ([0-9a-f]{64}) -->\n\Z")
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


def check_license(license_id: str | None, card: bool) -> str:
    """Return the hub's name of a licence, or nothing.

    Raises:
        SettingError: it is no such name, or there is no card to hold it.
    """
    if license_id is None:
        return ""
    if not card:
        raise SettingError(f"--license {license_id} with --no-card", "a card, which names the licence", "leave one out")
    if not _LICENSE.fullmatch(license_id):
        expected = "a licence as the Hugging Face hub names it"
        raise SettingError(f"--license {license_id!r}", expected, "for example --license apache-2.0, mit or other")
    return license_id


def write_card(output: Path, text: str, before: bool) -> str:
    """Write the card of a checkpoint and return what was done, in words for the user.

    A README.md that is there stays, unless `merge` wrote it and nobody has changed it since.

    Args:
        output: file of the checkpoint.
        text: the card.
        before: there was a card of `merge` before the checkpoint was written.
    """
    path, data = output.with_name(CARD), text.encode()
    if path.exists() and not has_card(output):
        return f"no card: {path} stays as it is, for merge did not write it or it was changed since"
    write_atomic(path, data + f"\n<!-- written by adc-edge merge, sha256 {_digest(data)} -->\n".encode())
    return f"wrote {path}, its model card{', in place of an older one' if before else ''}"


def delete_card(output: Path) -> None:
    """Delete the card beside a checkpoint if `merge` wrote it and nobody has changed it since."""
    if has_card(output):
        output.with_name(CARD).unlink(missing_ok=True)


def has_card(output: Path) -> bool:
    """Return whether a card that `merge` wrote and nobody has changed lies beside a checkpoint."""
    try:
        data = output.with_name(CARD).read_bytes()
    except OSError:  # there is none, or it is a directory, for example
        return False
    found = _SIGNED.search(data)
    return found is not None and found[1].decode() == _digest(data[: found.start()])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
