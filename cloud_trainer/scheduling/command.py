"""`adc-edge fleet`: the sessions of a trainer's run, their priorities and pauses."""

from __future__ import annotations

from pathlib import Path

import click

from adc_edge.options import PATH


@click.command()
@click.option(
    "--run", required=True, metavar="DIR", type=PATH, help="Run directory of the trainer.", is_eager=True
)  # looked at before the words, or `fleet DIR` is told that DIR is no action
@click.argument("action", default="list", type=click.Choice(["list", "pause", "resume", "priority"]))
@click.argument("name", default="")
@click.argument("x", default="")
def fleet(run: Path, action: str, name: str, x: str) -> None:
    """List the devices of a trainer's run, pause one, have it go on, or set its part of the head's time.

    NAME is a device's name or the number of its session. Devices with priorities 2 and 1 get two thirds and one third
    of the head's time while both want more of it; X is a number from 0.001 to 1000, and 1 unless it is set. A trainer
    at work follows within a second, and one that is started later finds the orders in DIR/fleet.json.
    """
    from adc_edge.cloud_trainer.scheduling.listing import find_session, list_sessions, read_sessions, take_priority
    from adc_edge.errors import SettingError

    sessions = read_sessions(run)
    if action == "list":
        if name:
            raise SettingError(f"fleet list {name}", "no name: all devices are listed", "leave it out")
        click.echo(list_sessions(sessions))
        return
    if bool(x) != (action == "priority") or not name:
        usage = f"{action} NAME{' X' * (action == 'priority')}"
        typed = " ".join(word for word in ("fleet", action, name, x) if word)
        raise SettingError(typed, f"fleet {usage}", f"adc-edge fleet --run {run} {usage}")
    from msgspec.structs import replace

    from adc_edge.cloud_trainer.scheduling.control import change_control

    found = find_session(sessions, name, run)
    changes = {"priority": take_priority(x)} if x else {"paused": action == "pause"}
    change_control(run, found.session, lambda old: replace(old, device=found.device, **changes))
    told = {"pause": "is paused: its messages wait", "resume": "goes on", "priority": f"has priority {x}"}[action]
    click.echo(f"{found.device} (session {found.session}) {told}")
