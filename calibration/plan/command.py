"""`adc-edge plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adc_edge.errors import SettingError
from adc_edge.options import (
    IMAGES,
    OUTPUT_FILE,
    PATH,
    FloatRange,
    GroupedCommand,
    bundle_option,
    data_option,
    heading,
    log_options,
)
from adc_edge.quantities import BYTE_COUNT

if TYPE_CHECKING:
    from adc_edge.logs import AnyConsole

_ABOVE = FloatRange(min=0, min_open=True, finite=True)


def _check_plot(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() not in (".png", ".svg"):
        raise SettingError(f"--plot {path}", "a name that ends in .png or .svg", f"for example --plot {path.stem}.png")
    return path


@click.command(cls=GroupedCommand)
@heading("Inputs")
@bundle_option
@click.option("--link", "link_file", required=True, type=PATH, metavar="FILE", help="Link as `link --json` wrote it.")
@click.option(
    "--profile",
    "profile_file",
    type=PATH,
    metavar="FILE",
    help="Speed of device and trainer, as `profile --json` wrote it; without it only the link counts.",
)
@click.option(
    "--any-machine", is_flag=True, help="Accept a profile of another machine, as on a laptop that plans for a board."
)
@click.option(
    "--study",
    "studies",
    multiple=True,
    type=PATH,
    metavar="DIR|FILE",
    help="Study of `evaluate` or `privacy` on your data; repeatable. Default: those that come with adc-edge.",
)
@click.option("--trainer", metavar="tcp://HOST:PORT", help="Trainer of the run; default: that of the link's file.")
@click.option("--batch-size", type=IMAGES, help="Images a step; default: the bundle's.")
@data_option(help="Data of the run, whose training images are counted:")
@click.option("--images", type=IMAGES, metavar="N", help="Number of training images, instead of --data.")
@click.option(
    "--epochs",
    default=10,
    type=click.IntRange(min=1),
    metavar="N",
    help="Epochs of the run, for the bytes and the time of a whole training.",
)
@heading("Goals")
@click.option("--target-step-time", type=_ABOVE, metavar="S", help="Most seconds of a step.")
@click.option(
    "--max-bytes-per-step", type=BYTE_COUNT, metavar="BYTE_COUNT", help="Most bytes of a step, both ways: 200k, 2MB."
)
@click.option(
    "--max-mb-per-epoch",
    type=_ABOVE,
    metavar="MB",
    help="Most megabytes of a pass over the data, both ways; needs --images or --data.",
)
@click.option(
    "--max-mbit",
    type=_ABOVE,
    metavar="R",
    help="Plan as if the link carried so many Mbit/s at most, in each direction.",
)
@click.option(
    "--min-accuracy",
    type=FloatRange(max=0, finite=True),
    metavar="POINTS",
    help="Least accuracy, in points relative to uncompressed training: -1 allows a loss of one point.",
)
@click.option(
    "--max-ssim",
    type=FloatRange(0, 1),
    metavar="SSIM",
    help="Most similarity of the images that an attacker reconstructs (see `privacy`); 1: the originals.",
)
@heading("Results")
@click.option("--json", "json_file", type=OUTPUT_FILE, metavar="FILE", help="JSON file for the plan.")
@click.option(
    "--plot",
    "plot_file",
    type=OUTPUT_FILE,
    callback=_check_plot,
    metavar="FILE",
    help="Picture of accuracy against step time, .png or .svg; needs matplotlib.",
)
@heading("Logging")
@log_options
def plan(
    console: AnyConsole,
    link_file: Path,
    profile_file: Path | None,
    studies: tuple[Path, ...],
    epochs: int,
    json_file: Path | None,
    plot_file: Path | None,
    **options: Any,
) -> None:
    """Choose precision, ratio and micro-batches from a measured link, for your goals or for the shortest step.

    Step times are predicted, accuracies come from measured studies. The table shows the settings that no other one
    beats; the chosen one is printed as a command of `serve`. A second table has what a whole training takes, also with
    a trunk that freezes, whose accuracy is not predicted.
    """
    import shlex

    from adc_edge.calibration.plan.inputs import PlanInputs
    from adc_edge.calibration.plan.make import make_plan, serve_words
    from adc_edge.calibration.plan.result import goals_of, plan_bytes, unmet
    from adc_edge.calibration.plan.table import plan_table, say_plan
    from adc_edge.calibration.plan.training import training_lines, training_table
    from adc_edge.calibration.plan.whole import planned_training
    from adc_edge.files import write_atomic

    if plot_file is not None:
        from adc_edge.calibration.plan.plot import plan_picture  # a missing matplotlib is told before the work
    inputs = PlanInputs.read(link_file, profile_file, studies, options)
    made = make_plan(inputs.task, goals_of(options, inputs), inputs.compute_known)
    words = serve_words(made, inputs.bundle.path, inputs.trainer, options["data"])
    console.print(plan_table(made, console.width))
    say_plan(console, made, inputs)
    training = planned_training(made, epochs, inputs.steps_per_epoch, inputs.pictures)
    console.print(training_table(training, made))
    for label, text in training_lines(training, made):
        console.say_wrapped(f"{label:<9}{text}", 9)
    if not made.choice.met:
        raise unmet(made)
    if json_file is not None:
        write_atomic(json_file, plan_bytes(made, inputs, words, training))
    if plot_file is not None:
        write_atomic(plot_file, plan_picture(made, plot_file.suffix[1:].lower()))
    if written := [str(path) for path in (json_file, plot_file) if path is not None]:
        console.say(f"wrote    {', '.join(written)}")
    console.say_next(shlex.join(words))
