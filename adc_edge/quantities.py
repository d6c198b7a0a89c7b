"""Values of options that click has no type for: numbers with a unit, what may also be ``auto``; options in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click


class OrAuto(click.ParamType):  # type: ignore[type-arg]
    """A value of another type, or the word ``auto``."""

    def __init__(self, kind: click.ParamType) -> None:  # type: ignore[type-arg]
        self.name, self._kind = kind.name, kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value or ``auto``, or fail as click does."""
        return value if value == "auto" else self._kind.convert(value, param, ctx)


class ByEpoch(click.ParamType):  # type: ignore[type-arg]
    """A value of another type for all epochs, or a list as ``A,B,…``: one for each epoch, the last one from then on."""

    def __init__(self, kind: click.ParamType) -> None:  # type: ignore[type-arg]
        self.name, self._kind = kind.name, kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the values with commas between them, or fail as click does."""
        parts = value.split(",") if isinstance(value, str) else value  # a file of options may have a list
        return ",".join(self._kind.convert(part.strip(), param, ctx) for part in parts)


class StepsOrEvery(click.ParamType):  # type: ignore[type-arg]
    """A number of steps from 2 on, or the word ``every``, which is 1."""

    name = "steps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of steps, or fail as click does."""
        if value == "every":
            return 1
        return int(click.IntRange(min=1).convert(value, param, ctx))


class _Quantity(click.ParamType):  # type: ignore[type-arg]
    """A positive number with a unit behind it, which may be left out."""

    def __init__(self, name: str, units: dict[str, float]) -> None:
        self.name, self._units = name, units

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number in the first unit, or fail as click does."""
        text = str(value).strip()
        number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        try:
            result = float(number) * self._units[text[len(number) :].strip()]
        except (ValueError, KeyError):
            result = 0.0
        if not 0 < result < float("inf"):
            units = ", ".join(unit for unit in self._units if unit)
            self.fail(f"{text!r} is no number above 0 with one of the units {units}.", param, ctx)
        return result


BYTE_COUNT = _Quantity("bytes", {"": 1.0, "k": 1e3, "kB": 1e3, "M": 1e6, "MB": 1e6, "G": 1e9, "GB": 1e9})
DURATION = _Quantity("time", {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0})


def as_typed(values: Mapping[str, float]) -> str:
    """Return options with their values as a user types them, without those of 0; empty: all are."""
    return " and ".join(f"{option} {value:g}" for option, value in values.items() if value)
