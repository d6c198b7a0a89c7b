"""`adc-edge keys`: make the keys of a machine, and allow, pin, list and revoke those of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adc_edge.options import F

if TYPE_CHECKING:
    from rich.table import Table


_ANY_WIDTH = 10_000  # columns of a terminal on which no table is too wide


def _keys_option(command: F) -> F:
    return click.option(
        "--keys",
        "directory",
        required=True,
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Directory with the keys of this machine.",
    )(command)


_file_argument = click.argument("file", type=click.Path(path_type=Path))


@click.group()
def keys() -> None:
    """Make and exchange the keys that authenticate device and trainer and encrypt their traffic.

    Each machine makes its own keys. Its public.key is copied to the other side: a trainer allows devices by name, a
    device pins its trainer. The secret.key never leaves its machine.
    """


@keys.command("new")
@_keys_option
def make(directory: Path) -> None:
    """Make the keys of this machine."""
    from shlex import quote

    from adc_edge.security.keystore import fingerprint, make_keys

    pair = make_keys(directory)
    public = quote(str(directory / "public.key"))
    click.echo(f"made keys in {directory}, fingerprint {fingerprint(pair.public)}")
    click.echo(f"if this machine is a device: copy {public} to the trainer and type there")
    click.echo("  adc-edge keys allow NAME public.key --keys DIR")
    click.echo(f"if this machine is the trainer: copy {public} to each device and type there")
    click.echo("  adc-edge keys pin public.key --keys DIR")


@keys.command("allow")
@click.argument("name")
@_file_argument
@_keys_option
def allow_device(name: str, file: Path, directory: Path) -> None:
    """Allow the device with public key FILE as NAME (on a trainer)."""
    from adc_edge.errors import SettingError
    from adc_edge.security.keystore import allow, fingerprint, load_public

    if Path(name).is_file() and not file.exists():
        typed = f"keys allow {name} {file}"
        raise SettingError(
            typed, "the name first, then the file", f"adc-edge keys allow {file} {name} --keys {directory}"
        )
    public = load_public(file)
    allow(directory, name, public)
    click.echo(f"{name} may connect, fingerprint {fingerprint(public)}; a running trainer needs no restart")


@keys.command("pin")
@_file_argument
@_keys_option
def pin_trainer(file: Path, directory: Path) -> None:
    """Trust only the trainer with public key FILE (on a device)."""
    from adc_edge.security.keystore import fingerprint, load_public, pin

    public = load_public(file)
    pin(directory, public)
    click.echo(f"this device trusts only the trainer with fingerprint {fingerprint(public)}")


@keys.command("revoke")
@click.argument("name")
@_keys_option
def revoke_device(name: str, directory: Path) -> None:
    """Forbid the device NAME to connect any more (on a trainer)."""
    from adc_edge.security.keystore import revoke

    revoke(directory, name)
    click.echo(f"{name} may not connect any more; a running trainer notices within a second")


@keys.command("list")
@_keys_option
def show(directory: Path) -> None:
    """Show the keys of this machine and its peers."""
    from rich.console import Console

    from adc_edge.errors import SettingError
    from adc_edge.logs import AnyConsole
    from adc_edge.security.keystore import Devices, load_pair, read_keys, trainer_key

    rows: list[tuple[str, ...]] = []
    secret, pinned = directory / "secret.key", directory / "trainer.key"
    troubles = []
    if not secret.exists():
        load_pair(directory)  # raises the error that names the command to type
    try:
        _add_row(rows, "this machine", secret, load_pair(directory).public, "own")
    except SettingError as error:
        _add_row(rows, "this machine", secret, None, "unreadable")
        troubles.append(str(error))
    if pinned.exists():
        try:
            _add_row(rows, "trainer", pinned, trainer_key(directory), "pinned")
        except SettingError as error:
            _add_row(rows, "trainer", pinned, None, "unreadable")
            troubles.append(str(error))
    devices = Devices(directory)
    for place in ("devices", "revoked"):
        for file, key in read_keys(directory / place).items():
            if isinstance(key, str):
                _add_row(rows, "device", file, None, "unreadable", file.stem)
            else:
                _add_row(rows, "device", file, key, "revoked" if devices.name(key) is None else "allowed", file.stem)
    troubles += devices.faults.values()
    console = AnyConsole(markup=False, highlight=False)
    table = _keys_table(rows)
    if Console(width=_ANY_WIDTH).measure(table).maximum > console.width:
        table = _keys_table(
            [(f"{what} {name}".strip() + f"\n{code}", f"{state}\n{since}") for what, name, code, state, since in rows]
        )
    console.print(table)
    for trouble in troubles:
        console.say(trouble)


def _keys_table(rows: Sequence[Sequence[str]]) -> Table:
    """A table of five columns, or of two for a narrow terminal."""
    from rich.table import Table

    wide = ("what", "name", "fingerprint", "state", "since")
    table = Table(padding=(0, 0, 0, 1))
    for name in wide if len(rows[0]) == len(wide) else ("key", "state"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _add_row(rows: list[tuple[str, ...]], what: str, file: Path, key: bytes | None, state: str, name: str = "") -> None:
    import datetime

    from adc_edge.security.keystore import fingerprint

    try:
        # A rename changes this date, so a revoked key shows when it was revoked.
        since = f"{datetime.datetime.fromtimestamp(file.stat().st_ctime):%Y-%m-%d %H:%M}"
    except OSError:
        since = ""
    rows.append((what, name, "" if key is None else fingerprint(key), state, since))
