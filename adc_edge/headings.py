"""Options of a command under headings in its help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])


class GroupedCommand(click.Command):
    """A command whose help shows its options under headings (see ``heading``)."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each heading, in the order of the options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            if record := option.get_help_record(ctx):
                sections.setdefault(vars(option).get("heading", "Help"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def heading(title: str) -> Callable[[_F], _F]:
    """A heading for the options below this decorator, up to the next heading."""

    def mark(command: _F) -> _F:
        for option in getattr(command, "__click_params__", []):
            vars(option).setdefault("heading", title)
        return command

    return mark
