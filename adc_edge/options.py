"""Command-line options that several parts share, and help with headings. Imports click alone."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import click

from adc_edge import defaults
from adc_edge.config import resume_run
from adc_edge.errors import SettingError
from adc_edge.quantities import OrAuto

F = TypeVar("F", bound=Callable[..., Any])


class FloatRange(click.FloatRange):
    """Numbers in a range, of which NaN is none; nor is infinity, if ``finite``."""

    def __init__(
        self, min: float | None = None, max: float | None = None, *, min_open: bool = False, finite: bool = False
    ) -> None:
        super().__init__(min, max, min_open)
        self._finite = finite

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or fail as click does."""
        number: float = super().convert(value, param, ctx)
        if number != number:
            self.fail(f"{value!r} is not a number.", param, ctx)
        if self._finite and math.isinf(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class _OutputPath(click.Path):
    """A path to write to. It is checked while the command line is read, before the work and before heavy imports."""

    def __init__(self, *, directory: bool = False) -> None:
        super().__init__(path_type=Path)
        self._directory = directory

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        import os

        from adc_edge.files import check_output

        return check_output(Path(os.fsdecode(super().convert(value, param, ctx))), directory=self._directory)


def choices(literal: Any, *more: str) -> click.Choice[str]:
    """The values of a Literal, and ``more``."""
    return click.Choice([*get_args(literal), *more])


PRECISION = choices(defaults.Precision)
COUNT = click.IntRange(min=0)
NUMBER = FloatRange(min=0)
FINITE = FloatRange(min=0, finite=True)
IMAGES = click.IntRange(min=2)  # of a batch
PATH = click.Path(path_type=Path)
OUTPUT_FILE, OUTPUT_DIRECTORY = _OutputPath(), _OutputPath(directory=True)
_RATIO = FloatRange(0.0, 1.0, min_open=True)


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


def heading(title: str) -> Callable[[F], F]:
    """A heading for the options below this decorator, up to the next heading."""

    def mark(command: F) -> F:
        for option in getattr(command, "__click_params__", []):
            vars(option).setdefault("heading", title)
        return command

    return mark


def _with(command: F, *options: Callable[[F], F]) -> F:
    """``command`` with ``options``, which its help shows in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def ratio_options(command: F, *, auto: bool = False) -> F:
    """``--ratio`` or ``--batch-ratio`` with ``--token-ratio``; the command gets a ``Ratio`` if one is given.

    With ``auto`` it also takes ``--ratio auto``, which means ``--plan auto``.
    """

    @functools.wraps(command)
    def with_ratio(
        *arguments: Any, ratio: Any, batch_ratio: float | None, token_ratio: float | None, **options: Any
    ) -> Any:
        from adc_edge.method.ratio import Ratio

        if ratio == "auto":
            ratio, options["plan"] = None, options["plan"] or "auto"
        chosen = Ratio(ratio, batch_ratio, token_ratio)
        return command(*arguments, **options, **({} if chosen == Ratio() else {"ratio": chosen}))

    share = "ξ = (T/B)(k/N), the share of the activations that is sent; default: all, or as the bundle says."
    return _with(
        cast(F, with_ratio),
        click.option("--ratio", type=OrAuto(_RATIO) if auto else _RATIO, help=share),
        click.option("--batch-ratio", type=_RATIO, help="T/B, clusters for each image; needs --token-ratio."),
        click.option("--token-ratio", type=_RATIO, help="k/N, share of the tokens kept; needs --batch-ratio."),
    )


def bundle_option(command: F) -> F:
    """``--bundle DIR``."""
    return click.option("--bundle", required=True, type=PATH, metavar="DIR", help="Bundle made by `export`.")(command)


def engine_options(command: F) -> F:
    """Provider and precision that an engine computes with."""
    providers, computes = choices(defaults.Provider, "auto"), choices(defaults.Compute)
    provider = "ONNX Runtime's execution provider; auto takes CUDA, or else the CPU. One that fails is an error."
    compute = "Precision that the engine computes in; default: fp32, with TensorRT fp16. int8: frozen trunk only."
    return _with(
        command,
        click.option("--provider", type=providers, default="auto", help=provider),
        click.option("--compute", type=computes, help=compute),
    )


def engine_cache_option(command: F) -> F:
    """``--engine-cache DIR``."""
    text = "Directory of TensorRT engines; default: engines/ in the bundle."
    return click.option("--engine-cache", type=OUTPUT_DIRECTORY, metavar="DIR", help=text)(command)


def data_option(**more: Any) -> Callable[[F], F]:
    """``--data SRC``; ``more`` goes to click, as a default; ``help`` stands before the list."""
    sources = (
        "digits, folder:PATH, npz:PATH, csv:FILE, cifar10:ROOT, cifar100:ROOT, food101:ROOT, or MODULE:FACTORY, "
        "a Python function of yours."
    )
    text = more.pop("help", "Data set:")
    return click.option("--data", metavar="SRC", help=f"{text} {sources}", **more)


def broken_option(command: F) -> F:
    """``--allow-broken``."""
    text = "Go on without the images that cannot be read, also if they are more than a tenth."
    return click.option("--allow-broken", is_flag=True, help=text)(command)


def model_options(command: F) -> F:
    """The model of a study: the arguments of timm's ``create_model``, and the cut."""
    return _with(
        command,
        click.option("--model", default="deit_tiny_patch16_224", help="A timm VisionTransformer."),
        weights_options,
        click.option("--img-size", type=click.IntRange(min=1), help="Input size in pixels."),
        crop_option,
        model_arg_option,
        click.option("--split", default=3, type=int, help="Last block on the device."),
    )


def weights_options(command: F) -> F:
    """``--weights FILE``, ``--pretrained`` and ``--allow-missing PATTERN``."""
    text = "Accept tensors of this name (*, ? and [] as in file names) that weights or model lack; repeatable."
    return _with(
        command,
        click.option("--weights", type=PATH, help="Weights file (safetensors, or PyTorch's without code in it)."),
        click.option("--pretrained", is_flag=True, help="Download timm's pretrained weights."),
        click.option("--allow-missing", multiple=True, metavar="PATTERN", help=text),
    )


def crop_option(command: F) -> F:
    """``--crop-pct SHARE``."""
    text = "Side of the centre crop, as a share of the short side; 1 crops nothing off it. Default: the model's own."
    return click.option("--crop-pct", type=_RATIO, metavar="SHARE", help=text)(command)


def model_arg_option(command: F) -> F:
    """``--model-arg K=V``, which ``parse_model_args`` reads."""
    return click.option(
        "--model-arg", multiple=True, metavar="K=V", help="Argument for timm.create_model; repeatable."
    )(command)


def key_options(command: F) -> F:
    """``--keys DIR`` or ``--insecure``, one of which any address but loopback needs."""
    keys = "Key directory (`adc-edge keys`): traffic is encrypted and both sides prove who they are."
    insecure = "Allow an address that is not loopback without keys, in the clear."
    return _with(
        command,
        click.option("--keys", type=PATH, metavar="DIR", help=keys),
        click.option("--insecure", is_flag=True, help=insecure),
    )


def noise_options(command: F) -> F:
    """A noisy channel, for studies of training under noise."""
    flips, rate = "Flip each bit of an encoded tensor with this probability, both ways.", FloatRange(0, 0.5)
    return _with(
        command,
        click.option("--snr-up", type=float, metavar="DB", help="Add white noise to activations, at this SNR."),
        click.option("--snr-down", type=float, metavar="DB", help="Add white noise to gradients, at this SNR."),
        click.option("--bit-errors", type=rate, default=0.0, metavar="RATE", help=flips),
    )


def run_options(command: F) -> F:
    """The run directory, its checkpoints, and the number of threads."""
    every = defaults.CHECKPOINT_EVERY
    pause = "Steps between checkpoints; 0: only at the end."
    return _with(
        command,
        click.option(
            "--run", type=OUTPUT_DIRECTORY, metavar="DIR", help="Directory to keep the run in, and to resume from."
        ),
        click.option(
            "--resume",
            type=PATH,
            metavar="DIR",
            is_eager=True,
            expose_value=False,
            callback=resume_run,
            help="Go on with the run in DIR, with the options it was begun with; others may be typed.",
        ),
        click.option("--fresh", is_flag=True, help="Forget the run that --run holds, and start over."),
        click.option("--checkpoint-every", default=every, type=COUNT, metavar="N", help=pause),
        click.option("--threads", default=0, type=COUNT, help="Threads of torch and the engine; 0: all cores."),
    )


def optimizer_options(command: F) -> F:
    """The optimizer of this half."""
    names, schedules = choices(defaults.OptimizerName), choices(defaults.LearningRateSchedule)
    rate, momentum = defaults.LEARNING_RATE, defaults.MOMENTUM
    return _with(
        command,
        click.option("--optimizer", type=names, default="adamw", help="Optimizer of this half."),
        click.option("--lr", type=FINITE, default=rate, help="Learning rate."),
        click.option("--weight-decay", type=FINITE, default=0.0, help="Weight decay."),
        click.option("--momentum", type=FloatRange(0, 1), default=momentum, help="Momentum of sgd."),
        click.option("--clip-norm", type=NUMBER, default=0.0, help="Clip the norm of this half's gradient; 0: no."),
        click.option("--schedule", type=schedules, default="constant", help="Learning rate after the warm-up."),
        click.option("--warmup-steps", type=COUNT, default=0, help="Steps of a linear warm-up."),
        click.option("--schedule-steps", type=COUNT, default=0, help="Length of the cosine; 0: to the last step."),
    )


def log_options(command: F) -> F:
    """``-v``, ``-q`` and ``--log-json``; the command gets the console that its log messages go to."""

    @functools.wraps(command)
    def with_console(*arguments: Any, verbose: bool, quiet: bool, log_json: bool, **options: Any) -> Any:
        from adc_edge import logs

        console = logs.AnyConsole()
        logs.configure(console, verbose - quiet, log_json)
        return command(console, *arguments, **options)

    return _with(
        cast(F, with_console),
        click.option("--verbose", "-v", is_flag=True, help="Log details too."),
        click.option("--quiet", "-q", is_flag=True, help="Log warnings and errors only."),
        click.option("--log-json", is_flag=True, help="Log one JSON object a line."),
    )


def parse_model_args(pairs: tuple[str, ...], img_size: int | None) -> dict[str, Any]:
    """``("depth=4", "qkv_bias=false")`` and the size -> a dict; values are read as JSON where they are JSON."""
    result: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise SettingError(f"--model-arg {pair!r}", "NAME=VALUE", "for example --model-arg depth=4")
        try:
            result[key] = json.loads(text)
        except json.JSONDecodeError:
            result[key] = text
    return result if img_size is None else result | {"img_size": img_size}
