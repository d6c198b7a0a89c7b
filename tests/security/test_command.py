"""`adc-edge keys`, typed as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from adc_edge.cli import main
from adc_edge.security.keystore import Devices, fingerprint, load_pair, trainer_key


def keys(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and output."""
    result = CliRunner().invoke(main, ["keys", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """Key directories of a device and of a trainer that know nothing of each other."""
    for name in ("device", "trainer"):
        assert keys("new", "--keys", tmp_path / name)[0] == 0
    return tmp_path / "device", tmp_path / "trainer"


def test_new_prints_the_fingerprint_the_file_to_copy_and_the_command_to_type(tmp_path: Path) -> None:
    code, output = keys("new", "--keys", tmp_path / "my keys")
    pair = load_pair(tmp_path / "my keys")
    assert code == 0
    assert fingerprint(pair.public) in output
    assert f"'{tmp_path}/my keys/public.key'" in output
    assert "adc-edge keys allow NAME public.key --keys DIR" in output
    assert "adc-edge keys pin public.key --keys DIR" in output
    assert pair.secret.decode() not in output


def test_the_commands_that_new_prints_make_the_two_sides_trust_each_other(sides: tuple[Path, Path]) -> None:
    device, trainer = sides
    assert keys("allow", "cam", device / "public.key", "--keys", trainer)[0] == 0
    assert keys("pin", trainer / "public.key", "--keys", device)[0] == 0
    assert Devices(trainer).name(load_pair(device).public) == "cam"
    assert trainer_key(device) == load_pair(trainer).public


def test_list_shows_the_allowed_and_the_revoked_devices_of_a_trainer(sides: tuple[Path, Path], tmp_path: Path) -> None:
    device, trainer = sides
    keys("new", "--keys", tmp_path / "other")
    keys("allow", "front", device / "public.key", "--keys", trainer)
    keys("allow", "back", tmp_path / "other" / "public.key", "--keys", trainer)
    code, output = keys("revoke", "back", "--keys", trainer)
    assert code == 0
    assert "a running trainer notices within a second" in output
    code, output = keys("list", "--keys", trainer)
    assert code == 0
    rows = [line for line in output.splitlines() if line.startswith("│")]
    shown = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]
    assert [row[:4] for row in shown] == [
        ["this machine", "", fingerprint(load_pair(trainer).public), "own"],
        ["device", "front", fingerprint(load_pair(device).public), "allowed"],
        ["device", "back", fingerprint(load_pair(tmp_path / "other").public), "revoked"],
    ]
    assert all(len(row[4]) == len("2026-01-01 12:00") for row in shown)


def test_list_shows_the_trainer_that_a_device_pins(sides: tuple[Path, Path]) -> None:
    device, trainer = sides
    keys("pin", trainer / "public.key", "--keys", device)
    code, output = keys("list", "--keys", device)
    assert code == 0
    row = next(line for line in output.splitlines() if "pinned" in line)
    assert fingerprint(load_pair(trainer).public) in row
    assert row.startswith("│ trainer")


def test_list_names_torn_files_and_continues(sides: tuple[Path, Path]) -> None:
    device, trainer = sides
    keys("allow", "front", device / "public.key", "--keys", trainer)
    (trainer / "devices" / "torn [bold].key").write_text("public = ")
    (trainer / "trainer.key").write_text("")
    (trainer / "secret.key").chmod(0o644)
    code, output = keys("list", "--keys", trainer)
    assert code == 0
    assert output.count("unreadable") == 3
    assert "torn [bold]" in output
    assert f"{trainer}/devices/torn [bold].key holds no public key" in output
    assert f"chmod 600 {trainer}/secret.key" in output
    assert next(line for line in output.splitlines() if "allowed" in line).startswith("│ device")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("new --keys {trainer}", ["secret.key exists", "remove it first"]),
        ("list --keys {tmp}/typo", ["adc-edge keys new --keys {tmp}/typo"]),
        ("allow cam {device}/absent.key --keys {trainer}", ["no key at {device}/absent.key"]),
        ("allow cam {device}/secret.key --keys {trainer}", ["is a secret key: never copy it"]),
        ("allow cam {device}/public.key --keys {tmp}/typo", ["adc-edge keys new --keys {tmp}/typo"]),
        ("allow cam {trainer}/public.key --keys {trainer}", ["this machine's own"]),
        ("allow ../cam {device}/public.key --keys {trainer}", ["name '../cam'", "for example cam-01"]),
        ("pin {device}/public.key --keys {device}", ["this machine's own"]),
        ("revoke cam --keys {trainer}", ["no device 'cam'", "here none is"]),
    ],
)
def test_a_mistake_gives_one_clear_error_and_the_remedy(
    arguments: str, words: list[str], sides: tuple[Path, Path], tmp_path: Path
) -> None:
    places = {"device": sides[0], "trainer": sides[1], "tmp": tmp_path}
    before = sorted(tmp_path.rglob("*"))
    code, output = keys(*(word.format(**places) for word in arguments.split()))
    assert code == 2, output
    for word in [*words, "expected:", "remedy:"]:
        assert word.format(**places) in output
    assert "Traceback" not in output
    assert sorted(tmp_path.rglob("*")) == before


def test_a_revoked_device_is_allowed_again_as_the_error_says(sides: tuple[Path, Path]) -> None:
    device, trainer = sides
    allow = ("allow", "cam", device / "public.key", "--keys", trainer)
    keys(*allow)
    keys("revoke", "cam", "--keys", trainer)
    code, output = keys(*allow)
    assert code == 2
    remedy = next(line for line in output.splitlines() if "remedy:" in line)
    Path(remedy.partition("delete ")[2].removesuffix(" to allow it again")).unlink()
    assert keys(*allow)[0] == 0


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, output = keys("new", "--keys", tmp_path / "file")
    assert code == 1
    assert str(tmp_path / "file") in output
    assert "remedy:" in output


@pytest.mark.parametrize("command", ["new", "allow", "pin", "list", "revoke"])
def test_every_command_asks_for_the_directory(command: str) -> None:
    code, output = keys(command, *{"allow": ["cam", "x"], "pin": ["x"], "revoke": ["cam"]}.get(command, []))
    assert code == 2
    assert "--keys" in output
