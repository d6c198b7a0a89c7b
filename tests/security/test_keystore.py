"""Keys in files: making, reading, allowing and revoking them, also while the files change."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zmq.utils.z85 import Z85CHARS

from adc_edge.errors import SettingError
from adc_edge.security.keystore import (
    Devices,
    KeyPair,
    allow,
    fingerprint,
    load_pair,
    load_public,
    make_keys,
    pin,
    revoke,
    trainer_key,
)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def new_pair() -> KeyPair:
    return KeyPair(*zmq.curve_keypair())


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_the_modes_of_key_files_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make_keys(tmp_path / "keys")
        allow(tmp_path / "keys", "cam", new_pair().public)
        revoke(tmp_path / "keys", "cam")
    finally:
        os.umask(before)
    assert mode(tmp_path / "keys") == 0o700
    assert mode(tmp_path / "keys" / "secret.key") == 0o600
    assert mode(tmp_path / "keys" / "public.key") == 0o644
    assert mode(tmp_path / "keys" / "devices") == mode(tmp_path / "keys" / "revoked") == 0o700


def test_the_secret_is_never_on_the_disk_with_a_looser_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            look()
            result = function(*arguments, **named)
            look()
            return result

        return call

    def look() -> None:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        seen.extend(mode(path) for path in files if b"secret = " in path.read_bytes())

    for name in ("fsync", "chmod", "replace"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    before = os.umask(0)
    try:
        make_keys(tmp_path / "keys")
    finally:
        os.umask(before)
    assert len(seen) >= 4  # while temporary, and in its place
    assert set(seen) == {0o600}


def test_a_pair_is_read_back_as_it_was_made(tmp_path: Path) -> None:
    pair = make_keys(tmp_path / "deep" / "keys")
    assert load_pair(tmp_path / "deep" / "keys") == pair
    assert load_public(tmp_path / "deep" / "keys" / "public.key") == pair.public
    assert zmq.curve_public(pair.secret) == pair.public
    assert pair.secret not in (tmp_path / "deep" / "keys" / "public.key").read_bytes()
    assert b"never copy it" in (tmp_path / "deep" / "keys" / "secret.key").read_bytes().splitlines()[0]


def test_keys_are_not_made_over_others(home: Path) -> None:
    before = (home / "secret.key").read_bytes()
    with pytest.raises(SettingError, match="remove it first; every peer must then get the new public key"):
        make_keys(home)
    assert (home / "secret.key").read_bytes() == before


def test_missing_keys_are_named_with_the_line_to_type(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=f"adc-edge keys new --keys {tmp_path}/here"):
        load_pair(tmp_path / "here")
    with pytest.raises(SettingError, match=f"adc-edge keys pin FILE --keys '{tmp_path}/my keys'"):
        trainer_key(tmp_path / "my keys")
    with pytest.raises(SettingError, match="No such file"):
        load_public(tmp_path / "absent.key")


@pytest.mark.parametrize("loose", [0o644, 0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_secret_open_to_others_is_refused_with_the_chmod_line(home: Path, loose: int) -> None:
    (home / "secret.key").chmod(loose)
    with pytest.raises(SettingError, match=f"{loose:04o}") as caught:
        load_pair(home)
    assert f"chmod 600 {home}/secret.key\n" in str(caught.value)
    (home / "secret.key").chmod(0o600)
    load_pair(home)


def test_a_secret_may_be_stricter_than_asked(home: Path) -> None:
    (home / "secret.key").chmod(0o400)
    load_pair(home)


def test_a_public_key_that_belongs_to_another_secret_is_noticed(home: Path) -> None:
    pair = load_pair(home)
    text = (home / "secret.key").read_bytes()
    (home / "secret.key").write_bytes(text.replace(pair.public, new_pair().public))
    with pytest.raises(SettingError, match="damaged"):
        load_pair(home)


@pytest.mark.parametrize("cut", [0, 20, 90, 130, 165, -2])
def test_a_torn_secret_is_damaged_never_half_used_and_never_shown(home: Path, cut: int) -> None:
    path, secret = home / "secret.key", load_pair(home).secret.decode()
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(SettingError, match="damaged") as caught:
        load_pair(home)
    assert not any(secret[start : start + 8] in str(caught.value) for start in range(33))


def test_a_copied_secret_is_refused_wherever_a_public_key_is_asked_for(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cam.key"
    shutil.copy(home / "secret.key", copy)
    with pytest.raises(SettingError, match="is a secret key: never copy it"):
        load_public(copy)
    (home / "devices").mkdir()
    shutil.copy(copy, home / "devices" / "cam.key")
    devices = Devices(home)
    assert devices.name(load_pair(home).public) is None
    assert "secret key" in devices.faults["devices/cam.key"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"public\n",
        b"public = short\n",
        b"public = " + b"~" * 40,  # no Z85
        b"public = " + b"#" * 40,  # more than 32 bits a group
        b"public = " + b"a" * 45,
        b"public = %b\npublic = %b\n" % (b"a" * 40, b"b" * 40),
        b"public = %b\nname = cam\n" % (b"a" * 40),
        b"\x00\xff" * 500,
    ],
)
def test_a_malformed_key_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.key").write_bytes(content)
    with pytest.raises(SettingError, match="holds no public key"):
        load_public(tmp_path / "x.key")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.sampled_from([b"", b"# a comment = nothing", b"x", b"public = "]) | st.binary(max_size=30),
    name=st.sampled_from([b"public", b"secret", b"Public"]),
    key=st.text(Z85CHARS.decode(), min_size=39, max_size=41).map(str.encode) | st.binary(max_size=60),
)
def test_any_content_of_a_file_is_either_a_key_or_refused(
    tmp_path: Path, before: bytes, name: bytes, key: bytes
) -> None:
    (tmp_path / "x.key").write_bytes(before + b"\n" + name + b" = " + key)
    try:
        found = load_public(tmp_path / "x.key")
    except SettingError:
        return
    assert (name, found, len(found)) == (b"public", key, 40)
    assert before.strip() == b"" or before.startswith(b"#")


def test_line_ends_of_other_systems_do_not_matter(home: Path, tmp_path: Path) -> None:
    (tmp_path / "x.key").write_bytes((home / "public.key").read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert load_public(tmp_path / "x.key") == load_pair(home).public


def test_a_pipe_or_a_directory_in_place_of_a_key_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.key")
    (tmp_path / "directory.key").mkdir()
    for name in ("pipe.key", "directory.key"):
        with pytest.raises(SettingError, match="not a file"):
            load_public(tmp_path / name)


def test_a_fingerprint_is_the_beginning_of_the_hash_of_its_key() -> None:
    import hashlib

    public = new_pair().public
    assert fingerprint(public).replace("-", "") == hashlib.sha256(public).hexdigest()[:16]
    assert [len(part) for part in fingerprint(public).split("-")] == [4, 4, 4, 4]
    assert fingerprint(public) != fingerprint(new_pair().public)


# --- allowed, pinned and revoked keys ---


def test_a_pinned_trainer_is_read_back_and_may_be_replaced(home: Path) -> None:
    for public in (new_pair().public, new_pair().public):
        pin(home, public)
        assert trainer_key(home) == public


def test_a_machine_neither_allows_nor_pins_itself(home: Path) -> None:
    own = load_pair(home).public
    with pytest.raises(SettingError, match="this machine's own"):
        allow(home, "cam", own)
    with pytest.raises(SettingError, match="this machine's own"):
        pin(home, own)
    assert not (home / "devices").exists()
    assert not (home / "trainer.key").exists()


def test_a_directory_without_keys_is_refused_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="adc-edge keys new"):
        allow(tmp_path / "typo", "cam", new_pair().public)
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("name", ["", ".hidden", "..", "a/b", "a b", "x" * 65, "ü", "cam\n", "cam\x1b[2J"])
def test_an_invalid_name_is_refused(home: Path, name: str) -> None:
    with pytest.raises(SettingError, match="at most 64"):
        allow(home, name, new_pair().public)
    assert not (home / "devices").exists()


@pytest.mark.parametrize("name", ["a", "cam-01", "Cam_1.front", "-", "x" * 64])
def test_a_name_may_have_letters_digits_and_a_few_signs(home: Path, name: str) -> None:
    public = new_pair().public
    allow(home, name, public)
    assert Devices(home).name(public) == name


def test_a_key_has_one_name_and_a_name_one_key(home: Path) -> None:
    first, second = new_pair().public, new_pair().public
    allow(home, "one", first)
    allow(home, "one", first)  # said twice
    with pytest.raises(SettingError, match="already, as one"):
        allow(home, "two", first)
    with pytest.raises(SettingError, match="name one is taken"):
        allow(home, "one", second)
    devices = Devices(home)
    assert (devices.name(first), devices.name(second)) == ("one", None)


def test_a_revoked_key_stays_out_until_its_file_is_deleted(home: Path) -> None:
    public = new_pair().public
    allow(home, "cam", public)
    revoke(home, "cam")
    assert Devices(home).name(public) is None
    for name in ("cam", "other"):
        with pytest.raises(SettingError, match=f"delete {home}/revoked/cam.key to allow it again"):
            allow(home, name, public)
    (home / "revoked" / "cam.key").unlink()
    allow(home, "cam", public)
    assert Devices(home).name(public) == "cam"


def test_a_revoked_key_copied_back_by_hand_stays_out(home: Path) -> None:
    public = new_pair().public
    allow(home, "cam", public)
    revoke(home, "cam")
    shutil.copy(home / "revoked" / "cam.key", home / "devices" / "again.key")
    assert Devices(home).name(public) is None


def test_every_key_that_was_revoked_under_one_name_is_kept(home: Path) -> None:
    publics = [new_pair().public for _ in range(3)]
    for public in publics:
        allow(home, "cam", public)
        revoke(home, "cam")
    kept = {path.name: load_public(path) for path in (home / "revoked").iterdir()}
    assert kept == dict(zip(["cam.key", "cam-2.key", "cam-3.key"], publics, strict=True))
    assert list((home / "devices").iterdir()) == []


def test_revoking_an_unknown_name_lists_those_known(home: Path) -> None:
    with pytest.raises(SettingError, match="here none is"):
        revoke(home, "cam")
    for name in ("front", "back"):
        allow(home, name, new_pair().public)
    for name in ("cam", "../trainer", ""):
        with pytest.raises(SettingError, match="one of: back, front"):
            revoke(home, name)


def test_refresh_notices_added_removed_and_revoked_devices(home: Path) -> None:
    first, second, third = (new_pair().public for _ in range(3))
    devices = Devices(home)
    assert devices.name(first) is None
    for name, public in (("one", first), ("two", second), ("three", third)):
        allow(home, name, public)
    assert devices.name(first) is None  # not before it looks
    assert devices.refresh() == set()
    assert [devices.name(key) for key in (first, second, third)] == ["one", "two", "three"]
    revoke(home, "one")
    (home / "devices" / "two.key").unlink()
    assert devices.refresh() == {first, second}
    assert devices.refresh() == set()
    assert [devices.name(key) for key in (first, second, third)] == [None, None, "three"]
    shutil.rmtree(home / "devices")
    assert devices.refresh() == {third}
    assert devices.name(third) is None


def test_a_key_replaced_under_its_name_is_noticed(home: Path) -> None:
    old, new = new_pair().public, new_pair().public
    allow(home, "cam", old)
    devices = Devices(home)
    path = home / "devices" / "cam.key"
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(old, new))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same name, size and date
    assert devices.refresh() == {old}
    assert (devices.name(old), devices.name(new)) == (None, "cam")


def test_a_torn_file_allows_no_device_and_does_not_affect_the_others(home: Path) -> None:
    torn, whole = new_pair().public, new_pair().public
    allow(home, "torn", torn)
    allow(home, "whole", whole)
    devices = Devices(home)
    path = home / "devices" / "torn.key"
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    assert devices.refresh() == {torn}
    assert devices.faults.keys() == {"devices/torn.key"}
    assert (devices.name(torn), devices.name(whole)) == (None, "whole")
    path.write_bytes(content)
    assert devices.refresh() == set()
    assert (devices.name(torn), devices.faults) == ("torn", {})


def test_a_device_with_a_torn_revocation_file_is_not_allowed(home: Path) -> None:
    public, other = new_pair().public, new_pair().public
    allow(home, "cam", public)
    (home / "revoked").mkdir()
    (home / "revoked" / "cam.key").write_bytes(b"public = ")
    devices = Devices(home)
    assert devices.name(public) is None
    assert devices.faults.keys() == {"revoked/cam.key"}
    with pytest.raises(SettingError, match=r"delete .*/revoked/cam\.key"):
        allow(home, "other", other)


def test_no_device_is_allowed_while_the_revoked_keys_cannot_be_read(home: Path) -> None:
    public = new_pair().public
    allow(home, "cam", public)
    devices = Devices(home)
    (home / "revoked").write_text("a file, not a directory")
    assert devices.refresh() == {public}
    assert devices.name(public) is None
    assert str(home / "revoked") in devices.faults
    (home / "revoked").unlink()
    devices.refresh()
    assert devices.name(public) == "cam"


def test_a_broken_link_does_not_hide_the_other_keys(home: Path) -> None:
    (home / "devices").mkdir()
    (home / "devices" / "dead.key").symlink_to("nowhere")
    devices = Devices(home)
    public = new_pair().public
    allow(home, "cam", public)
    devices.refresh()
    assert devices.name(public) == "cam"
    revoke(home, "cam")
    assert devices.refresh() == {public}


def test_a_revocation_that_a_handshake_noticed_first_is_still_reported_by_refresh(home: Path) -> None:
    first, second = new_pair().public, new_pair().public
    allow(home, "one", first)
    allow(home, "two", second)
    devices = Devices(home)
    assert devices.refusal(first) is None
    revoke(home, "one")
    assert devices.refusal(first) == "revoked (one)"
    revoke(home, "two")
    assert devices.refusal(second) == "revoked (two)"
    assert devices.refusal(new_pair().public) == "unknown"
    assert devices.refresh() == {first, second}


def test_hidden_files_and_files_with_another_suffix_allow_no_device(home: Path) -> None:
    public = new_pair().public
    allow(home, "cam", public)
    for name in (".cam.key", "cam.key~", "cam.txt"):
        shutil.copy(home / "devices" / "cam.key", home / "devices" / name)
    (home / "devices" / "cam.key").unlink()
    devices = Devices(home)
    assert devices.name(public) is None
    assert devices.faults == {}


def test_a_key_that_is_removed_and_restored_between_two_refreshes_is_not_reported(home: Path) -> None:
    public = new_pair().public
    allow(home, "cam", public)
    devices = Devices(home)
    content = (home / "devices" / "cam.key").read_bytes()
    (home / "devices" / "cam.key").unlink()
    assert devices.refusal(public) == "unknown"
    (home / "devices" / "cam.key").write_bytes(content)
    assert devices.refresh() == set()


def test_a_device_stays_allowed_while_others_are_allowed_and_revoked(home: Path) -> None:
    steady, other = new_pair().public, new_pair().public
    allow(home, "steady", steady)
    devices, done, answers = Devices(home), threading.Event(), set()

    def ask() -> None:
        while not done.is_set():
            answers.add((devices.name(steady), devices.refusal(steady)))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        allow(home, "other", other)
        assert devices.refusal(other) is None
        revoke(home, "other")
        assert devices.refusal(other) == "revoked (other)"
        (home / "revoked" / "other.key").unlink()
    done.set()
    for thread in threads:
        thread.join()
    assert answers == {("steady", None)}
