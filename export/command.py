"""`adc-edge export` and `adc-edge merge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adc_edge import defaults
from adc_edge.options import (
    COUNT,
    IMAGES,
    OUTPUT_DIRECTORY,
    OUTPUT_FILE,
    PATH,
    PRECISION,
    broken_option,
    choices,
    crop_option,
    data_option,
    log_options,
    model_arg_option,
    parse_model_args,
    ratio_options,
    weights_options,
)

if TYPE_CHECKING:
    from adc_edge.logs import AnyConsole


@click.command()
@click.option("--model", required=True, help="Name of a timm VisionTransformer, e.g. deit_tiny_patch16_224.")
@click.option("--split", required=True, type=int, help="Last block of the trunk (1 to L-1).")
@click.option("-o", "--output", required=True, type=OUTPUT_DIRECTORY, help="Bundle directory to write.")
@weights_options
@click.option(
    "--num-classes",
    type=click.IntRange(min=1),
    help="Number of classes; default: the weights' own. If they have another, the classifier starts anew.",
)
@click.option(
    "--classes",
    "class_names",
    metavar="FILE|SRC",
    help="Class names in the order of the head's outputs: a file of one name a line, or a data source; "
    "default: each class is learned by its name when a device first has it.",
)
@click.option("--img-size", type=click.IntRange(min=1), help="Input size in pixels; position embeddings are resampled.")
@crop_option
@model_arg_option
@click.option(
    "--preset",
    type=choices(defaults.ExportPreset),
    help="Measured ratio and precisions, unless given. private: images merged to half of their number, of which an "
    "attacker reconstructed less (docs/results/privacy.md).",
)
@ratio_options
@click.option("--batch-size", default=32, type=IMAGES, help="Images per step.")
@click.option(
    "--precision",
    type=PRECISION,
    metavar="P",
    help="Default precision of activations and gradients; without it pca1 up and pca0.25 down. dct is closer than pca "
    "for activations of whole images, pca for gradients: --precision dct1 --gradient-precision pca0.25. "
    f"One of {', '.join(PRECISION.choices)}.",
)
@click.option("--gradient-precision", type=PRECISION, metavar="P", help="Default precision of gradients alone.")
@click.option("--fp16", is_flag=True, help="Add a graph that computes in fp16, for GPUs (ADC stays in fp32).")
@click.option(
    "--tensorrt",
    is_flag=True,
    help="Add the graphs from which `serve --engine tensorrt` builds an engine on the device.",
)
@click.option(
    "--whole",
    is_flag=True,
    help="Add the whole model as one graph, which `infer` runs on the device where there is no trainer.",
)
@click.option("--seed", default=0, type=int, help="Random seed for weights that start anew.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@log_options
def export(
    console: AnyConsole,
    output: Path,
    img_size: int | None,
    num_classes: int | None,
    model_arg: tuple[str, ...],
    preset: defaults.ExportPreset | None,
    **rest: Any,
) -> None:
    """Split a ViT, export trunk + ADC to ONNX and write the bundle that `serve` and `trainer` load."""
    import shlex

    from adc_edge.export.build import ExportSettings, export_bundle

    if preset is not None:
        from adc_edge.export.presets import preset_options

        rest = preset_options(preset, rest)
    arguments = parse_model_args(model_arg, img_size)
    rows = export_bundle(ExportSettings(output=output, classes=num_classes, model_args=arguments, **rest))
    from adc_edge.export.report import parity_table  # torch, whose import takes seconds

    console.print(parity_table(rows, console.width))
    console.say(f"wrote    {output}")
    bundle = shlex.quote(str(output))
    console.say_next(
        f"adc-edge trainer --bundle {bundle}",
        f"adc-edge serve --bundle {bundle} --trainer tcp://127.0.0.1:5700 --data digits --epochs 1",
    )


@click.command()
@click.option(
    "--run-device",
    type=PATH,
    help="The device's --run directory; without it the trunk is the fleet's newest (trainer --mode averaged, "
    "sequential or frozen).",
)
@click.option("--run-trainer", required=True, type=PATH, help="The trainer's --run directory.")
@click.option("-o", "--output", required=True, type=OUTPUT_FILE, help="File to write (safetensors).")
@click.option("--step", type=COUNT, help="Merge the halves of this step of the device; default: the newest of both.")
@click.option("--best", is_flag=True, help="Merge the halves of the best evaluation, which `serve --keep-best` kept.")
@data_option(help="Measure the accuracy of the merged model on the test split of this data set:")
@broken_option
@click.option("--license", "license_id", metavar="ID", help="Licence for the model card, such as apache-2.0.")
@click.option("--no-card", is_flag=True, help="Write no model card (README.md beside the file).")
def merge(
    run_device: Path | None,
    run_trainer: Path,
    output: Path,
    step: int | None,
    best: bool,
    data: str | None,
    allow_broken: bool,
    license_id: str | None,
    no_card: bool,
) -> None:
    """Join the trained trunk and head into one ordinary timm checkpoint, with a model card beside it."""
    from adc_edge.data.sources import load_dataset
    from adc_edge.export.card.writing import CARD, check_license, has_card, write_card

    licence = check_license(license_id, not no_card)
    dataset = None if data is None else load_dataset(data)  # a wrong source is told before torch is imported
    from adc_edge.export.merge import merge_runs

    before = has_card(output)
    merged = merge_runs(run_device, run_trainer, output, step, dataset, allow_broken, best=best)
    from adc_edge.export.fleet import device_names
    from adc_edge.export.report import merge_lines

    manifest = merged.manifest
    arguments = "".join(f", {key}={value!r}" for key, value in manifest.model_args.items())
    for line in merge_lines(merged, output, device_names(run_trainer)):
        click.echo(line)
    if not no_card:
        from adc_edge.export.card.facts import training_facts
        from adc_edge.export.card.text import card_text

        facts = training_facts(run_device, run_trainer, merged)
        click.echo(write_card(output, card_text(merged, facts, output, licence, data or ""), before))
    elif before:
        click.echo(f"deleted {output.with_name(CARD)}, the model card of an earlier merge")
    click.echo("\nnext:")
    click.echo(f"  vit = timm.create_model({manifest.model!r}, num_classes={manifest.classes}{arguments})")
    click.echo(f"  vit.load_state_dict(safetensors.torch.load_file({str(output)!r}), strict=True)")
