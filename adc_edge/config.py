"""Options from a file: ``--config FILE`` and ``--dump-config``, which every command has, and a run's own options.

The file is TOML. Its keys are long option names without the dashes, at the top or in a table with the command's name:

    [serve]
    bundle = "out"
    trainer = "tcp://192.168.1.10:5700"
    eval-every = 50

An option on the command line takes precedence over the file. Imports click alone.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import click

from adc_edge.errors import SettingError

_DUMP = "adc_edge.dump_config"
_RESUMED = "adc_edge.resumed"
_NOT_KEPT = {"fresh", "resume", "log_json", "quiet", "verbose"}  # of one start, not of the run


def add_config_options(command: click.Command) -> click.Command:
    """Give a command ``--config`` and ``--dump-config``; a group and a command that has them stay as they are."""
    if isinstance(command, click.Group) or any(param.name == "config" for param in command.params):
        return command
    command.params += [
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            is_eager=True,
            expose_value=False,
            callback=_read_config,
            help="TOML file with options, which those typed here override.",
        ),
        click.Option(
            ["--dump-config"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_note_dump,
            help="Print all options as such a file, and end.",
        ),
    ]
    for option in command.params[-2:]:
        vars(option)["heading"] = "Configuration"
    command.callback = _dumping(command.callback)
    return command


def set_defaults(ctx: click.Context, values: Mapping[str, Any], source: str) -> None:
    """Make ``values``, by option name, the defaults of a command's options.

    Raises:
        SettingError: the command has no such option, or a value is a table.
    """
    params = _params(ctx.command)
    found: dict[str, Any] = {}
    for key, value in values.items():
        param = params.get(key.replace("_", "-"))
        if param is None:
            near = difflib.get_close_matches(key, params, n=1)
            hint = f"do you mean {near[0]}?" if near else f"adc-edge {ctx.command.name} --help lists them"
            raise SettingError(f"{source}: {key!r}", f"an option of {ctx.command.name}", hint)
        many, listed = param.multiple or param.nargs != 1, isinstance(value, list)
        if isinstance(value, dict):
            remedy = f"adc-edge {ctx.command.name} --dump-config shows how"
            raise SettingError(f"{source}: {key} is a table", "a value or a list", remedy)
        # As on the command line: texts, which the option's type reads, and a list is separated by commas.
        texts = [str(item) for item in (value if listed else [value])]
        found[str(param.name)] = texts if many else ",".join(texts)
    ctx.default_map = {**(ctx.default_map or {}), **found}


def chosen_options(ctx: click.Context) -> dict[str, Any]:
    """Return the options of a run by name, as JSON values with absolute paths: what ``--resume`` starts again."""
    kept = _options_in_effect(ctx, without=_NOT_KEPT)
    return {name: "inf" if value == math.inf else value for name, value in kept.items()}  # JSON has no such number


def resume_run(ctx: click.Context, param: click.Parameter, run: Path | None) -> None:
    """Take the options of the run directory that ``--resume`` names as defaults.

    Raises:
        SettingError: the directory holds no run of this command, or one that has not kept its options.
    """
    if run is None:
        return
    try:
        settings = json.loads((run / "settings.json").read_bytes())
        role = {"device": "serve"}.get(settings["fixed"]["role"], settings["fixed"]["role"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise SettingError(
            f"--resume {run}: settings.json: {why}", "the --run directory of a run", "check the path"
        ) from None
    if role != ctx.command.name:
        raise SettingError(
            f"--resume {run}: a run of {role}", f"a run of {ctx.command.name}", f"type adc-edge {role} --resume {run}"
        )
    if "options" not in settings:
        remedy = "type all options once more, with --run instead of --resume; then they are kept"
        raise SettingError(f"--resume {run}: its options were not kept (version 0.6)", "a run of 0.7 or newer", remedy)
    set_defaults(ctx, {**settings["options"], "run": str(run)}, f"--resume {run}")
    ctx.meta[_RESUMED] = dict(ctx.default_map or {})


def resumed_options(ctx: click.Context) -> set[str]:
    """Return the names of the parameters whose values come from ``--resume``: neither typed nor in a later file."""
    resumed, now = ctx.meta.get(_RESUMED, {}), ctx.default_map or {}
    source = click.core.ParameterSource.DEFAULT_MAP
    return {name for name in resumed if ctx.get_parameter_source(name) is source and now[name] is resumed[name]}


def _params(command: click.Command) -> dict[str, click.Option]:
    """Options of a command that take part in a file, by long name without dashes."""
    options = [p for p in command.params if isinstance(p, click.Option) and p.expose_value]
    return {max(option.opts, key=len).lstrip("-"): option for option in options}


def _options_in_effect(ctx: click.Context, without: Collection[str] = ()) -> dict[str, Any]:
    """Return the options that have a value, as plain values by long name, in the order of the names."""
    params = sorted(_params(ctx.command).items())
    values = {name: _plain(ctx.params[str(p.name)]) for name, p in params if p.name in ctx.params.keys() - set(without)}
    return {name: value for name, value in values.items() if value not in (None, [])}


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        content = _parse(path.read_text("utf-8"))
    except (OSError, ValueError) as error:  # also of TOML and of UTF-8
        why = getattr(error, "strerror", None) or str(error)
        raise SettingError(f"--config {path}: {why}", "a TOML file with options", "--dump-config prints one") from None
    tables = [key for key, value in content.items() if isinstance(value, dict)]
    name = str(ctx.command.name)
    if tables and name not in tables:
        raise SettingError(
            f"--config {path}: tables {', '.join(tables)}",
            f"a table [{name}]",
            f"adc-edge {name} --dump-config prints one",
        )
    common = {key: value for key, value in content.items() if key not in tables}
    set_defaults(ctx, {**common, **content.get(name, {})}, f"--config {path}")


def _parse(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def _note_dump(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[_DUMP] = value


def _dumping(callback: Any) -> Any:
    @functools.wraps(callback)
    def dump_or_run(*arguments: Any, **options: Any) -> Any:
        ctx = click.get_current_context()
        return click.echo(_toml(ctx)) if ctx.meta.get(_DUMP) else callback(*arguments, **options)

    return dump_or_run


def _toml(ctx: click.Context) -> str:
    """Return the options in effect as TOML. Strings, numbers and lists are written in it as in JSON."""
    lines = [f"{name} = {_value(value)}" for name, value in _options_in_effect(ctx).items()]
    return "\n".join([f"[{ctx.command.name}]", *lines])


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("Infinity", "inf") if isinstance(value, float) else text


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
