"""Command-line options that several parts share. Imports click alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from adc_edge.errors import SettingError

F = TypeVar("F", bound=Callable[..., Any])

_CASTS_AND_INTEGERS = "fp32 fp16 bf16 int8 int4 int3 int2"
_COMPONENTS = "pca4 pca3 pca2 pca1.5 pca1 pca0.75 pca0.5 pca0.375 pca0.25 pca0.125 pca0.0625"
PRECISION = click.Choice(f"{_CASTS_AND_INTEGERS} {_COMPONENTS}".split())
_RATIO = click.FloatRange(0.0, 1.0, min_open=True)


def _with(command: F, *options: Callable[[F], F]) -> F:
    """``command`` with ``options``, which its help shows in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def ratio_options(command: F) -> F:
    """``--ratio`` or ``--batch-ratio`` with ``--token-ratio``."""
    command = click.option("--token-ratio", type=_RATIO, help="k/N: share of the tokens kept.")(command)
    command = click.option("--batch-ratio", type=_RATIO, help="T/B: clusters for each image.")(command)
    share = "ξ = (T/B)(k/N): share of the activations sent; default: all, or as the bundle says."
    return click.option("--ratio", type=_RATIO, help=share)(command)


def bundle_option(command: F) -> F:
    """``--bundle DIR``."""
    return click.option("--bundle", required=True, type=click.Path(path_type=Path), help="Made by `export`.")(command)


def engine_options(command: F) -> F:
    """How an engine computes."""
    return _with(
        command,
        click.option(
            "--provider",
            type=click.Choice(["cpu", "cuda", "tensorrt", "xnnpack", "auto"]),
            default="auto",
            show_default=True,
            help="Of ONNX Runtime; one that does not work here is an error, auto takes CUDA or else the CPU.",
        ),
        click.option(
            "--compute",
            type=click.Choice(["fp32", "fp16", "int8"]),
            help="Which of the bundle's graphs; default: fp32, with TensorRT fp16. int8 is for a frozen trunk.",
        ),
    )


def engine_cache_option(command: F) -> F:
    """``--engine-cache DIR``."""
    return click.option(
        "--engine-cache",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where TensorRT engines are kept; default: engines/ in the bundle.",
    )(command)


def data_option(**how: Any) -> Callable[[F], F]:
    """``--data SRC``, required or with a default as ``how`` says."""
    sources = "digits, folder:PATH, npz:PATH, cifar10:ROOT, cifar100:ROOT or food101:ROOT."
    return click.option("--data", metavar="SRC", help=sources, **how)


def key_options(command: F) -> F:
    """``--keys DIR`` or ``--insecure``: anything but loopback."""
    return _with(
        command,
        click.option(
            "--keys",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Key directory (`adc-edge keys`): traffic is encrypted and both sides prove who they are.",
        ),
        click.option(
            "--insecure", is_flag=True, help="Allow an address that is not loopback without keys, in the clear."
        ),
    )


def noise_options(command: F) -> F:
    """A noisy channel, for studying training under noise."""
    return _with(
        command,
        click.option("--snr-up", type=float, metavar="DB", help="White noise on activations, at this SNR."),
        click.option("--snr-down", type=float, metavar="DB", help="White noise on gradients, at this SNR."),
        click.option(
            "--bit-errors",
            type=click.FloatRange(0, 0.5),
            default=0.0,
            metavar="RATE",
            help="Flip each bit of an encoded tensor with this probability, both ways.",
        ),
    )


def run_options(command: F) -> F:
    """What a run keeps, and the threads it takes."""
    return _with(
        command,
        click.option(
            "--run", type=click.Path(path_type=Path), help="Directory to keep the run in, and to resume from."
        ),
        click.option("--fresh", is_flag=True, help="Forget the run that --run holds, and start over."),
        click.option(
            "--checkpoint-every",
            default=100,
            show_default=True,
            type=click.IntRange(min=0),
            metavar="N",
            help="Steps; 0: only at the end.",
        ),
        click.option(
            "--threads",
            default=0,
            show_default=True,
            type=click.IntRange(min=0),
            help="Of torch, the engine and NumPy; 0: their choice.",
        ),
    )


def optimizer_options(command: F) -> F:
    """How this half learns."""
    return _with(
        command,
        click.option("--optimizer", type=click.Choice(["adamw", "adam", "sgd"]), default="adamw", show_default=True),
        click.option("--lr", type=click.FloatRange(min=0), default=1e-4, show_default=True, help="Learning rate."),
        click.option("--weight-decay", type=click.FloatRange(min=0), default=0.0, show_default=True),
        click.option("--momentum", type=click.FloatRange(0, 1), default=0.9, show_default=True, help="For sgd."),
        click.option(
            "--clip-norm", type=click.FloatRange(min=0), default=0.0, help="Clip this half's gradient; 0: no."
        ),
        click.option("--schedule", type=click.Choice(["constant", "cosine"]), default="constant", show_default=True),
        click.option("--warmup-steps", type=click.IntRange(min=0), default=0, show_default=True),
        click.option("--schedule-steps", type=click.IntRange(min=0), default=0, help="Length of the cosine."),
    )


def log_options(command: F) -> F:
    """``-v``, ``-q`` and ``--log-json``: what `logs.configure` is told."""
    return _with(
        command,
        click.option("--verbose", "-v", is_flag=True, help="Log details too."),
        click.option("--quiet", "-q", is_flag=True, help="Log warnings and errors only."),
        click.option("--log-json", is_flag=True, help="Log one JSON object a line."),
    )


def parse_model_args(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``("depth=4", "qkv_bias=false")`` -> a dict; values are read as JSON where they are JSON."""
    result: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise SettingError(f"--model-arg {pair!r}", "NAME=VALUE", "for example --model-arg depth=4")
        try:
            result[key] = json.loads(text)
        except json.JSONDecodeError:
            result[key] = text
    return result
