"""The lazy command group. It imports a command's module when the command is called, so `--help` imports no torch."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import signal
from typing import Any

import click

from adc_edge import __version__, terminal
from adc_edge.config import add_config_options
from adc_edge.errors import AdcEdgeError, InputError, TakenError
from adc_edge.machine.supervisor import note_wrong_use
from adc_edge.machine.threads import usable_cores
from adc_edge.signals import INTERRUPTED

# By default OpenMP's threads spin while they wait. That slows down everything that shares the cores: the engine, the
# decoding, a trainer on the same machine. And their number heeds no container's quota. torch reads both variables when
# it loads, so they are set before.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))

# Each module imports click at its head and everything heavy inside the command.
COMMANDS = {
    "bench": "adc_edge.edge_runtime.bench.command",
    "calibrate": "adc_edge.calibration.command",
    "demo": "adc_edge.demo",
    "doctor": "adc_edge.edge_runtime.doctor.command",
    "evaluate": "adc_edge.evaluation.command",
    "export": "adc_edge.export.command",
    "fleet": "adc_edge.cloud_trainer.scheduling.command",
    "infer": "adc_edge.edge_runtime.infer.command",
    "keys": "adc_edge.security.command",
    "link": "adc_edge.calibration.link.command",
    "merge": "adc_edge.export.command",
    "plan": "adc_edge.calibration.plan.command",
    "privacy": "adc_edge.evaluation.privacy.command",
    "profile": "adc_edge.edge_runtime.profile.command",
    "report": "adc_edge.watch.report.command",
    "runs": "adc_edge.watch.runs.command",
    "serve": "adc_edge.edge_runtime.command",
    "trainer": "adc_edge.cloud_trainer.command",
    "watch": "adc_edge.watch.command",
}


class _Failure(click.ClickException):
    """Shows an AdcEdgeError through click: no traceback, the error's exit code."""

    def __init__(self, error: AdcEdgeError) -> None:
        super().__init__(terminal.escaped(str(error), terminal.LAYOUT))  # a trainer's words are in some of them
        self.error = error

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return self.error.exit_code


class _LazyGroup(click.Group):
    def main(self, *arguments: Any, **options: Any) -> Any:
        terminal.prepare()  # also for click's own messages
        return super().main(*arguments, **options)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name]), cmd_name)
        assert isinstance(command, click.Command)
        command.context_settings.setdefault("help_option_names", _HELP)  # click keeps those of its first context
        return terminal.add_no_color(add_config_options(command))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        typed = args[0]
        if typed not in COMMANDS and (near := difflib.get_close_matches(typed, COMMANDS, n=1)):
            ctx.fail(f"No such command {typed!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see __main__
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("stopped by Ctrl-C", err=True)
            ctx.exit(INTERRUPTED)
        except click.UsageError as error:
            note_wrong_use(error.format_message())
            raise
        except AdcEdgeError as error:
            if isinstance(error, InputError) and not isinstance(error, TakenError):
                note_wrong_use(str(error))
            raise _Failure(error) from error
        except OSError as error:
            if (text := _file_trouble(error, ctx.invoked_subcommand in _RUNS)) is None:
                raise
            raise click.ClickException(text) from error
        except ImportError as error:
            extra = _EXTRAS.get(ctx.invoked_subcommand or "")
            if extra is None or (error.name or "").partition(".")[0] not in _OPTIONAL:
                raise
            raise click.ClickException(
                f"this command needs {error.name}, which is not installed\n  remedy:   pip install 'adc-edge[{extra}]'"
            ) from error


_RUNS = ("serve", "trainer")  # commands that keep a run


def _file_trouble(error: OSError, keeps_run: bool) -> str | None:
    """Return the text for a file that cannot be read or written; None if the error is of another kind."""
    from adc_edge.files import no_temporary_directory

    if "usable temporary directory" in str(error):  # of a library
        return str(no_temporary_directory(error))
    if error.errno not in _FILE_TROUBLE:
        return None
    expected, remedy = _NAMES if error.errno in _NAME_TROUBLE else _SPACE
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename
    resumes = "; a run resumes from its last checkpoint" if keeps_run and remedy is _SPACE[1] else ""
    return f"{name or 'writing a file'}: {error.strerror}\n  expected: {expected}\n  remedy:   {remedy}{resumes}"


_NAME_TROUBLE = {getattr(errno, name) for name in "ENAMETOOLONG ELOOP ENOENT ENOTDIR EISDIR EEXIST EINVAL".split()}
_SPACE_TROUBLE = "ENOSPC EDQUOT EFBIG EROFS EACCES EPERM EIO EBUSY ENXIO ETXTBSY ESTALE"
_FILE_TROUBLE = {getattr(errno, name) for name in _SPACE_TROUBLE.split()} | _NAME_TROUBLE
_SPACE = (
    "free space, and permission to write there",
    "free space or choose another directory",
)
_NAMES = ("a name that can be opened or made there", "check the path: each part but the last must be a directory")
_OPTIONAL = {
    "torch",
    "timm",
    "onnx",
    "onnxscript",
    "torchvision",
    "pandas",
    "matplotlib",
    "jinja2",
    "joblib",
    "skimage",
    "cryptography",
    "zstandard",
}
_EXTRAS = {  # what each command needs in addition
    "bench": "train",
    "calibrate": "export",
    "evaluate": "eval",
    "export": "export",
    "infer": "train",
    "merge": "host",
    "plan": "eval",
    "privacy": "eval",
    "profile": "train",
    "report": "watch",
    "serve": "train",
    "trainer": "cloud",
}


_HELP = ["-h", "--help"]


@click.group(cls=_LazyGroup, context_settings={"help_option_names": _HELP, "show_default": True})
@click.version_option(__version__, prog_name="adc-edge")
def main() -> None:
    """Train a Vision Transformer across a slow link, with attention-based double compression."""


terminal.add_no_color(main)
