"""`serve --plan`: the settings that a plan begins with, and what the run may send while it follows its link."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from adc_edge.codec.by_epoch import parse_precisions, text_of
from adc_edge.defaults import Precision
from adc_edge.edge_runtime.settings import ServeSettings, StepSettings
from adc_edge.errors import SettingError
from adc_edge.method.ratio import Shape
from adc_edge.planning.accuracy.frontier import nearest_studies
from adc_edge.planning.accuracy.studies import shipped_studies
from adc_edge.planning.choice import DEFAULT_LOSS
from adc_edge.planning.following.allowed import allowed_forms, planned_forms
from adc_edge.planning.following.follow import MessageForm
from adc_edge.planning.message_sizes import sizes_of_messages
from adc_edge.planning.plan_file import PlanFile, read_plan
from adc_edge.storage.bundle import Bundle, Manifest
from adc_edge.wire.fleet_messages import DeviceNeeds

_OPTIONS = {
    "batch_size": "--batch-size",
    "ratio": "--ratio",
    "precision": "--precision",
    "gradient_precision": "--gradient-precision",
    "micro_batches": "--micro-batches",
    "window": "--window",
    "trunk": "--trunk",
    "freeze_first": "--freeze-first",
}


def needs_of(
    shape: Shape, dim: int, precisions: tuple[Precision, Precision | None], plan: PlanFile | None
) -> DeviceNeeds:
    """Return the needs of a device by which a trainer admits it.

    Args:
        shape: of its micro-batches.
        dim: channels of an activation.
        precisions: of activations and of gradients.
        plan: tells the seconds of a step; None: they are not planned.
    """
    seconds = 0.0 if plan is None or not plan.compute_known else plan.chosen.seconds
    return DeviceNeeds(sizes_of_messages(shape, dim, precisions)[0], seconds)


def with_plan(settings: ServeSettings, bundle: Bundle) -> tuple[ServeSettings, PlanFile | None]:
    """Return the settings with those of the plan's file, and the plan; None if there is no file.

    Raises:
        SettingError: the file is no plan, or one for another bundle; or an option contradicts it, or every plan.
    """
    if settings.min_accuracy is not None and settings.plan != "auto":
        raise SettingError(
            f"--min-accuracy {settings.min_accuracy:g} without --plan auto",
            "--plan auto, or a plan that was made with --min-accuracy",
            "add --plan auto, or leave --min-accuracy out",
        )
    by_epoch = settings.by_epoch(bundle.manifest)
    if settings.plan is not None and by_epoch.changes:
        raise SettingError(
            f"--plan with precisions that change by epoch: {' up, '.join(by_epoch.texts)} down",
            "one of them: a plan chooses the precisions by the link",
            "leave --plan out, or name one precision each way",
        )
    if settings.plan is not None and settings.noise.any:
        raise SettingError("--plan with noise on the link", "one of them", "leave one out")
    if not isinstance(settings.plan, Path):
        return settings, None
    plan = read_plan(settings.plan)
    if bundle.digest not in plan.inputs.values():
        raise SettingError(
            f"{settings.plan} is a plan for another bundle",
            f"a plan for {bundle.path}",
            f"adc-edge plan --bundle {bundle.path} --link FILE --json {settings.plan}",
        )
    planned, default = _planned(plan), ServeSettings(settings.bundle, settings.trainer)
    for name, value in planned.items():
        typed = getattr(settings, name)
        if typed is not None and name in ("precision", "gradient_precision"):
            typed = text_of(parse_precisions(typed))  # the plan's spelling of the same precision
        if typed not in (getattr(default, name), value):
            raise SettingError(
                f"{_OPTIONS[name]} {typed} with --plan {settings.plan}, which says {value}",
                "one of them",
                f"leave {_OPTIONS[name]} out, or make another plan",
            )
    return msgspec.structs.replace(settings, **planned), plan


def forms_to_follow(
    settings: ServeSettings, plan: PlanFile | None, manifest: Manifest, step: StepSettings, largest: int = 0
) -> list[MessageForm]:
    """Return what the run may send besides what it sends now; nothing without ``--plan``.

    A number of micro-batches that was named stays, and so does the largest batch that TensorRT was built for.

    Args:
        settings: of the run.
        plan: that it began with; None: none.
        manifest: the bundle's.
        step: what it sends now.
        largest: most images of a message so far; 0: those of ``step``.
    """
    if settings.plan is None:
        return []
    now = MessageForm(step.micro_batches, step.shape, step.precision, step.gradient_precision)
    if plan is not None:
        forms = planned_forms(plan, manifest)
    else:
        studies = [study for study in shipped_studies() if study.quantity == "accuracy"]
        near = nearest_studies(studies, manifest.model, manifest.tokens)
        least = DEFAULT_LOSS if settings.min_accuracy is None else settings.min_accuracy
        forms = allowed_forms(manifest, step.micro_batches * step.shape.images, now, near, least)
    named = plan is None and settings.micro_batches != "auto"
    most = step.micro_batches * step.shape.images
    if settings.engine == "tensorrt":
        most = largest or step.shape.images
    return [
        form for form in forms if form.shape.images <= most and (not named or form.micro_batches == step.micro_batches)
    ]


def _planned(plan: PlanFile) -> dict[str, Any]:
    chosen = plan.chosen
    gradient = {} if chosen.gradient_precision is None else {"gradient_precision": chosen.gradient_precision}
    return {
        "batch_size": chosen.batch_size,
        "ratio": chosen.ratio,
        "precision": chosen.precision,
        "micro_batches": chosen.micro_batches,
        "window": chosen.window,
        "trunk": chosen.trunk,
        "freeze_first": chosen.freeze_first,
        **gradient,
    }
