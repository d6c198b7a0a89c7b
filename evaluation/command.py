"""`adc-edge evaluate`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from adc_edge.defaults import FleetMode, FleetPrecision, Precision, RobustRule
from adc_edge.options import (
    COUNT,
    FINITE,
    IMAGES,
    OUTPUT_DIRECTORY,
    F,
    FloatRange,
    GroupedCommand,
    broken_option,
    choices,
    data_option,
    heading,
    log_options,
    model_options,
    optimizer_options,
)

if TYPE_CHECKING:
    from adc_edge.logs import AnyConsole


def _listed(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _list_option(name: str, default: str, item: str, text: str) -> Callable[[F], F]:
    """An option that takes a list, separated by commas."""
    return click.option(
        name, default=default, show_default=bool(default), callback=_listed, metavar=f"{item},…", help=text
    )


def _take_preset(context: click.Context, parameter: click.Parameter, name: str | None) -> None:
    """Use a preset's values as defaults of the other options."""
    from adc_edge.evaluation.study.presets import preset

    if name is not None:
        mine = preset(name, context.params.get("data", ""))
        context.default_map = {**mine, **(context.default_map or {})}


@click.command(cls=GroupedCommand)
@heading("Data and methods")
@data_option(default="digits", is_eager=True)
@_list_option(
    "--methods",
    "",
    "M",
    "Methods: none, adc, adc-batch, adc-tokens, topk, randtopk, c3sl, bottlenetpp, aqsgd, tah, lowrank, fedlite, "
    "tsflora, or a precision (int4).",
)
@_list_option("--ratios", "0.1", "R", "Ratios for each method: 0.1, or T/B x k/N as 0.5x0.2.")
@_list_option("--precisions", "fp32", "P", "Precisions for each method: pca1 or dct1, or up:down as pca0.5:pca1.")
@click.option(
    "--setting",
    "extra",
    multiple=True,
    metavar="METHOD[@RATIO][/UP[:DOWN]]",
    help="One more setting, for example adc@0.5x0.2/pca1; repeatable. UP and DOWN may be lists by epoch, the last one "
    "from then on: none/pca4,pca1,pca0.5:pca1,pca0.25.",
)
@click.option(
    "--preset",
    type=click.Choice(["small", "paper"]),
    is_eager=True,
    callback=_take_preset,
    expose_value=False,
    help="Other defaults. small: 10 runs of 3 epochs; paper: its grid, for cifar100:ROOT or food101:ROOT.",
)
@_list_option("--seeds", "0,1,2", "N", "Random seeds for each setting.")
@click.option(
    "-o",
    "--output",
    required=True,
    type=OUTPUT_DIRECTORY,
    metavar="DIR",
    help="Directory for runs and results; finished runs in it are not repeated.",
)
@heading("Fleet")
@_list_option("--devices", "1", "N", "Numbers of devices that train one head; 1: all images on one device.")
@_list_option("--partition", "iid", "P", "Division of the images among the devices: iid, dirichlet:0.3, by-class.")
@_list_option(
    "--mode",
    "parallel",
    "MODE",
    "Ways in which the devices' trunks become one: parallel, averaged, sequential, frozen.",
)
@click.option(
    "--average-every",
    default=10,
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Steps of a device between two averages, or of its turn with --mode sequential.",
)
@click.option(
    "--average-precision",
    type=click.Choice(get_args(FleetPrecision)),
    default="int8",
    help="Precision of a trunk's change, both ways.",
)
@click.option(
    "--robust",
    type=click.Choice(get_args(RobustRule)),
    default="none",
    help="Rule by which changes become one; none: mean weighted by images.",
)
@click.option(
    "--guard",
    type=click.Choice(["on", "off"]),
    default="on",
    help="Whether a change that does not fit the others is left out of an average.",
)
@heading("Model")
@model_options
@heading("Training")
@click.option("--batch-size", default=128, type=IMAGES, help="Images in a step.")
@click.option("--epochs", default=8.0, type=float, help="Epochs of every run, for the comparison at equal steps.")
@click.option(
    "--budget",
    type=float,
    metavar="SHARE",
    help="Share of an uncompressed run's bytes that each run goes on to spend, for the comparison at equal bytes.",
)
@_list_option(
    "--budgets",
    "0.01,0.02,0.05,0.1",
    "SHARE",
    "Shares of an uncompressed run's bytes at which the tables compare settings.",
)
@click.option("--max-epochs", type=float, help="Maximum length of a run with --budget.")
@click.option(
    "--eval-every", "evaluate_every", default=1.0, type=float, metavar="EPOCHS", help="Epochs between evaluations."
)
@click.option(
    "--eval-precision",
    "evaluation",
    type=choices(Precision, "auto", "central"),
    default="auto",
    metavar="P",
    help="Precision in which evaluations are counted as sent, for the bytes of a whole training. auto: as serve "
    "chooses by that of training, its last one if it changes by epoch; central: the trainer has the test images, and "
    "nothing is sent.",
)
@click.option(
    "--train-images", default=0, type=COUNT, metavar="N", help="Train on a fixed random sample of N images; 0: all."
)
@click.option(
    "--test-images", default=0, type=COUNT, metavar="N", help="Test on a fixed random sample of N images; 0: all."
)
@broken_option
@click.option("--augment", default="flip", help="Augmentation: none, or any of flip, jitter, randaugment.")
@click.option(
    "--store-drop",
    default=0.0,
    type=FloatRange(0, 0.95),
    metavar="SHARE",
    help="Leave out this share of the patch tokens, as trainer does, in the steps that it does alone (+freezeExK).",
)
@click.option(
    "--store-mix",
    default=0.0,
    type=FloatRange(0, 100),
    metavar="ALPHA",
    help="Exchange patch tokens and labels between rows in these steps, as trainer does; the share is drawn from "
    "Beta(ALPHA, ALPHA).",
)
@heading("Optimisation")
@optimizer_options
@click.option(
    "--trunk-lr",
    type=FINITE,
    metavar="RATE",
    help="Learning rate of the trunk, as serve --lr has one of its own; without it the trunk has --lr as well.",
)
@heading("Machine")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Torch device.")
@click.option(
    "--compute",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    help="Number format in which trunk and head compute.",
)
@click.option("--jobs", default=1, type=click.IntRange(min=1), help="Runs at a time.")
@heading("Logging")
@log_options
def evaluate(console: AnyConsole, output: Path, **options: Any) -> None:
    """Train with ADC and with its rivals, and compare accuracy at equal bytes and at equal steps.

    Bytes are those of the real messages, both ways, beside those of the images sent once as JPEG. With --devices,
    fleets of devices that train one head are compared with one device that has all images. Each run is stored when it
    ends, and is not repeated; one that was cut short goes on from its last evaluation. The time left is told after the
    first steps.
    """
    from rich.markup import escape

    from adc_edge.evaluation.report.output import write_all
    from adc_edge.evaluation.report.tables import study_tables
    from adc_edge.evaluation.report.views import views
    from adc_edge.evaluation.study.runner import read_runs
    from adc_edge.evaluation.study.runner import run_study as run_all
    from adc_edge.evaluation.study.task import check_augmentation, study_of
    from adc_edge.evaluation.totals.beside import beside_of
    from adc_edge.optimizer.settings import take_settings

    settings, seeds, budgets, jobs = _take_lists(options)
    fleets, evaluation = _take_fleets(options), options.pop("evaluation")
    optimizer, allow_broken = take_settings(options), options.pop("allow_broken")
    study = study_of(options | {"optimizer": optimizer})
    check_augmentation(study, settings)
    try:
        failures = run_all(study, settings, seeds, output, jobs, console, allow_broken, fleets)
    except KeyboardInterrupt:
        click.echo(
            "finished runs are kept; the same command goes on with the others from their last evaluation", err=True
        )
        raise
    study, runs = read_runs(output)
    if runs:
        beside = beside_of(study, output, evaluation)
        seen = views(study, runs, budgets, beside)
        for table in study_tables(seen, console.width):
            console.print(table)
        written = write_all(study, runs, budgets, output, beside)
        for note in filter(None, (seen.note, beside.note)):
            console.print(f"[yellow]note[/]     {escape(note)}", highlight=False)
        console.say(f"wrote    {output}\n         {', '.join(path.name for path in written)}")
    if failures:
        raise failures[0].error


def _take_fleets(options: dict[str, Any]) -> list[Any]:
    """Take the fleets out of ``options``."""
    from adc_edge.errors import SettingError
    from adc_edge.evaluation.fleet.setting import StudyFleet, fleets_of

    numbers, partitions, modes = options.pop("devices"), options.pop("partition"), options.pop("mode")
    how = StudyFleet(
        1,
        every=options.pop("average_every"),
        precision=options.pop("average_precision"),
        robust=options.pop("robust"),
        guard=options.pop("guard") == "on",
    )
    if not numbers or not all(text.isdecimal() and int(text) > 0 for text in numbers):
        raise SettingError(
            f"--devices {','.join(numbers)}", "numbers from 1 on, separated by commas", "for example --devices 1,4"
        )
    known = get_args(FleetMode)
    if not modes or not set(modes) <= set(known):
        raise SettingError(f"--mode {','.join(modes)}", f"any of {', '.join(known)}", "for example --mode averaged")
    return fleets_of([int(text) for text in numbers], partitions or ["iid"], modes, how)


def _take_lists(options: dict[str, Any]) -> tuple[list[Any], list[int], list[float], int]:
    """Take settings, seeds, budgets and jobs out of ``options``."""
    from adc_edge.errors import SettingError
    from adc_edge.evaluation.study.setting import parse_setting, product, unique

    methods, extra = options.pop("methods"), options.pop("extra")
    wanted = product(methods or ([] if extra else ["none", "adc"]), options.pop("ratios"), options.pop("precisions"))
    lists: dict[str, list[Any]] = {}
    for name, kind, least, example in (("seeds", int, 0.0, "0,1,2"), ("budgets", float, 1e-9, "0.02,0.1")):
        texts = options.pop(name)
        try:
            lists[name] = [kind(text) for text in texts]
        except ValueError:
            lists[name] = []
        if not lists[name] or not all(least <= value < math.inf for value in lists[name]):  # NaN is not
            received = f"--{name} {','.join(texts)}"
            expected = "numbers from 0 on" if least == 0.0 else "shares above 0"
            raise SettingError(received, f"{expected}, separated by commas", f"for example --{name} {example}")
    return unique([*wanted, *map(parse_setting, extra)]), lists["seeds"], lists["budgets"], options.pop("jobs")
