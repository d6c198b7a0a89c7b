"""`adc-edge privacy`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adc_edge.errors import SettingError
from adc_edge.options import (
    COUNT,
    IMAGES,
    OUTPUT_DIRECTORY,
    FloatRange,
    broken_option,
    data_option,
    log_options,
    model_options,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from adc_edge.data.sources import Dataset
    from adc_edge.evaluation.privacy.attack import Examples, Leak
    from adc_edge.evaluation.study.records import Study
    from adc_edge.logs import AnyConsole

_SETTINGS = ("none", "topk@0.5", "topk@0.1", "topk@0.02", "adc@0.5", "adc@0.25", "adc@0.1", "adc@0.02")
_CAVEAT = "This measures one attack and is not a guarantee: another attack, or more data and time, may reveal more."
_CAPTION = (
    "share: bytes sent up, relative to uncompressed. merged: images in a row, each compared with the one image "
    "reconstructed from their row. PSNR in dB and SSIM: means over test images; higher values mean more leakage. "
    "mean image: scores of the mean training image, without any attack."
)
_SHARE = "bytes up (% of uncompressed)"


@click.command()
@data_option(default="digits")
@click.option(
    "--setting",
    "texts",
    multiple=True,
    default=_SETTINGS,
    metavar="METHOD[@RATIO][/UP]",
    help="Setting to attack, for example none, int4, topk@0.1 or adc@0.1; repeatable.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=OUTPUT_DIRECTORY,
    metavar="DIR",
    help="Directory for privacy.json, .csv and .png.",
)
@model_options
@click.option("--batch-size", default=128, type=IMAGES, help="Images in a step.")
@click.option(
    "--train-images",
    default=0,
    type=COUNT,
    show_default=False,
    metavar="N",
    help="The attacker learns from a fixed random sample of N train images; 0: all.",
)
@click.option(
    "--test-images",
    default=0,
    type=COUNT,
    show_default=False,
    metavar="N",
    help="Attack a fixed random sample of N test images; 0: all.",
)
@click.option(
    "--epochs",
    default=20.0,
    type=FloatRange(min=0, min_open=True),
    help="Epochs for which the attacker learns, for each setting.",
)
@broken_option
@click.option("--augment", default="flip", help="Augmentation of the attacker's images, as in `evaluate`.")
@click.option("--seed", default=0, type=COUNT, help="Random seed for data order, augmentation and the attack.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Torch device.")
@log_options
def privacy(
    console: AnyConsole,
    texts: tuple[str, ...],
    output: Path,
    epochs: float,
    seed: int,
    allow_broken: bool,
    **options: Any,
) -> None:
    """Measure how well a curious trainer can reconstruct images from what a device sends before training.

    For each setting an inverter is trained on the train split, and PSNR and SSIM of its reconstructions are measured on
    the test split. This is one attack: a low score does not prove that nothing can be reconstructed.
    """
    from adc_edge.data.sources import load_dataset
    from adc_edge.data.unreadable import check_images
    from adc_edge.evaluation.report.plots import png
    from adc_edge.evaluation.study.setting import parse_setting, unique
    from adc_edge.evaluation.study.task import on_device, study_of
    from adc_edge.files import write_atomic

    settings, study = unique(parse_setting(text) for text in texts), study_of(options)
    _check_one_precision(settings)
    dataset = load_dataset(study.data)
    check_images(dataset, allow_broken)
    study = on_device(study)
    leaks, examples = _attack(study, dataset, settings, seed, epochs, console, allow_broken)
    console.print(_table(leaks))
    files = {
        "privacy.json": _json(study, epochs, leaks),
        "privacy.csv": _csv(leaks),
        "privacy.png": png(_figure(leaks, examples)),
    }
    for name, data in files.items():
        write_atomic(output / name, data)
    if note := _nothing_learned(leaks):
        console.print(f"[yellow]note[/]     {note}", highlight=False)
    console.print(_CAVEAT, highlight=False)
    console.say(f"wrote    {output}\n         {', '.join(files)}")


def _check_one_precision(settings: Sequence[Any]) -> None:
    """Raise SettingError for activations whose precision changes by epoch: an attacker would learn from one alone."""
    import msgspec

    listed = next((setting for setting in settings if len(setting.by_epoch.up) > 1), None)
    if listed is not None:
        ups = dict.fromkeys(listed.by_epoch.up)  # no gradients are attacked, so those of UP:DOWN are left out
        each = [
            msgspec.structs.replace(listed, precision=up, gradient_precision=up, later=(), gradient_later=())
            for up in ups
        ]
        raise SettingError(
            f"setting {listed}",
            "one precision for each setting: an inverter is trained on what one precision sends",
            f"attack each of them: {' '.join(f'--setting {one}' for one in each)}",
        )


def _attack(
    study: Study,
    dataset: Dataset,
    settings: Sequence[Any],
    seed: int,
    epochs: float,
    console: AnyConsole,
    allow_broken: bool,
) -> tuple[list[Leak], list[Examples]]:
    """Attack one setting after another, with a progress bar."""
    from rich.progress import Progress

    from adc_edge.evaluation.privacy.attack import invert
    from adc_edge.evaluation.study.split_model import check_model

    check_model(study, len(dataset.classes))
    found = []
    with Progress(console=console) as progress:
        whole = progress.add_task("", total=float(len(settings)))
        for done, setting in enumerate(settings):
            progress.update(whole, description=str(setting), completed=float(done))

            def advance(share: float, done: int = done) -> None:
                progress.update(whole, completed=done + share)

            found.append(invert(study, setting, seed, epochs, advance, dataset, allow_broken))
    leaks, examples = zip(*found, strict=True)
    return list(leaks), list(examples)


def _nothing_learned(leaks: Sequence[Leak]) -> str:
    """Return what to say if no attack is better than the mean image; else nothing."""
    if any(leak.learned for leak in leaks):
        return ""
    best = max(leaks, key=lambda leak: leak.psnr_db)
    return (
        f"The attack has learned nothing yet: {best.psnr_db:.2f} dB at best, and the mean training image has "
        f"{best.psnr_db_mean_image:.2f} dB without any attack. So these scores do not tell what leaks: "
        "raise --epochs or --train-images."
    )


def _table(leaks: Sequence[Leak]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    result = Table(
        "setting",
        title=f"Reconstruction of {leaks[0].images} test images from the data sent",
        caption=" ".join(filter(None, (_nothing_learned(leaks), _CAPTION))),
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    for name in ("share %", "merged", "PSNR", "SSIM"):
        result.add_column(name, justify="right")
    for leak in leaks:
        merged = f"{leak.images_a_row:.1f}"
        result.add_row(leak.setting, f"{100 * leak.share_up:.3g}", merged, f"{leak.psnr_db:.2f}", f"{leak.ssim:.3f}")
    result.add_section()
    known = leaks[0]
    result.add_row("mean image", "", "", f"{known.psnr_db_mean_image:.2f}", f"{known.ssim_mean_image:.3f}")
    return result


def _json(study: Study, epochs: float, leaks: Sequence[Leak]) -> bytes:
    import msgspec
    import torch

    from adc_edge.files import json_bytes
    from adc_edge.machine.description import describe_machine

    task = msgspec.to_builtins(study)
    for name in ("epochs", "budget", "max_epochs", "evaluate_every", "optimizer"):  # not used by the attack
        del task[name]
    about = describe_machine(threads=torch.get_num_threads(), device=study.device)
    note = " ".join(filter(None, (_nothing_learned(leaks), _CAVEAT)))
    content = {"note": note, "study": task, "inverter_epochs": epochs, "settings": leaks, "machine": about}
    return json_bytes(content)


def _csv(leaks: Sequence[Leak]) -> bytes:
    import msgspec
    import pandas as pd

    return pd.DataFrame([msgspec.structs.asdict(leak) for leak in leaks]).to_csv(index=False).encode()


def _figure(leaks: Sequence[Leak], examples: Sequence[Examples]) -> Figure:
    """PSNR and SSIM against bytes; below, some originals and their reconstructions at each setting."""
    from matplotlib.figure import Figure

    shown = len(examples[0].originals)
    height = (1 + len(leaks)) * 8.0 / shown
    result = Figure(figsize=(10.0, 4.2 + height), dpi=110, layout="constrained")
    parts: Any = result.subfigures(2, 1, height_ratios=(4.2, height))  # typed as one
    above, below = parts
    left, right = above.subplots(1, 2)
    _scatter(left, leaks, "psnr_db", "PSNR (dB)")
    _scatter(right, leaks, "ssim", "SSIM")
    left.legend(fontsize=8, frameon=False)
    above.suptitle("Images reconstructed from the data sent: one attack, not a guarantee", fontsize=11)
    rows = [("original", examples[0].originals)]
    rows += [(leak.setting, pair.reconstructions) for leak, pair in zip(leaks, examples, strict=True)]
    for line, (name, images) in zip(below.subplots(len(rows), shown, squeeze=False), rows, strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    return result


def _scatter(axes: Axes, leaks: Sequence[Leak], field: str, label: str) -> None:
    """Draw a line for each group of settings, and a level line for the mean image."""
    from adc_edge.evaluation.report.groups import group_of
    from adc_edge.evaluation.report.plots import STYLES, logarithmic

    for group, style in STYLES.items():
        points = sorted((leak.share_up, getattr(leak, field)) for leak in leaks if group_of(leak.setting) == group)
        if points:
            line = "--" if style.dashed else "-"
            axes.plot(*zip(*points, strict=True), color=style.colour, marker=style.marker, linestyle=line, label=group)
    known = getattr(leaks[0], f"{field}_mean_image")
    axes.axhline(known, color="#8a8a8a", linewidth=1, linestyle=":", zorder=1, label="mean training image")
    axes.set(xlabel=_SHARE, ylabel=label)
    logarithmic(axes)
    axes.spines[["top", "right"]].set_visible(False)
