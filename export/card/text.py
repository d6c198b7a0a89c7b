"""The text of a model card: YAML for the Hugging Face hub, then what was trained, on what, and how to use it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

from adc_edge import __version__
from adc_edge.defaults import COMMON_MODES
from adc_edge.export.card.facts import DeviceFacts, MeasuredAccuracy, RunFacts, TrainingFacts, source_name
from adc_edge.export.merge import Merged
from adc_edge.markdown import markdown_table
from adc_edge.terminal import escaped, readable

_TAGS = ("image-classification", "timm", "vision-transformer", "split-learning", "adc-edge")
_NAMED_CLASSES = 50


def card_text(merged: Merged, facts: TrainingFacts, output: Path, license_id: str, data: str) -> str:
    """Return the card.

    Args:
        merged: the merged model.
        facts: of its training.
        output: file of the checkpoint.
        license_id: the hub's name of a licence; empty: none is stated.
        data: the source on whose test images the merged model was judged; empty: it was not.
    """
    body = [
        *_head(merged, output),
        *_training(merged, facts),
        *_bytes(merged, facts),
        *_accuracies(merged, facts, data),
        *_use(merged, output),
        *_settings(facts.runs),
    ]
    return "\n".join([*_front_matter(merged, facts, license_id, data), *body]) + "\n"


def _front_matter(merged: Merged, facts: TrainingFacts, license_id: str, data: str) -> Iterator[str]:
    """Yield the YAML; every text from outside is a JSON string, which YAML reads too."""
    yield "---"
    if license_id:
        yield f"license: {json.dumps(license_id)}"
    yield "library_name: timm"
    yield "pipeline_tag: image-classification"
    yield "tags:"
    yield from (f"- {tag}" for tag in _TAGS)
    yield "metrics:"
    yield "- accuracy"
    measured = _main_accuracy(merged, facts)
    if measured is not None:
        kind, _, where = source_name(data).partition(":")
        name, kind = (json.dumps(text or "the trainer's test images") for text in (where or kind, kind))
        yield "model-index:"
        yield f"- name: {json.dumps(merged.manifest.model)}"
        yield "  results:"
        yield "  - task:\n      type: image-classification"
        yield f"    dataset:\n      name: {name}\n      type: {kind}"
        yield f"    metrics:\n    - type: accuracy\n      value: {measured:.6g}"
    yield "---\n"


def _main_accuracy(merged: Merged, facts: TrainingFacts) -> float | None:
    """Return the accuracy of these very weights: that of the merged file, or one that the trainer measured on them."""
    if merged.score is not None:
        return merged.score.accuracy
    central, number = facts.central, 0 if merged.frozen else merged.round
    if central is None or (central.round, central.step) != (number, merged.head_steps):
        return None
    return central.accuracy


def _head(merged: Merged, output: Path) -> Iterator[str]:
    manifest = merged.manifest
    yield f"# {manifest.model}, {manifest.classes} classes\n"
    yield (
        f"An image classifier for timm, in `{_code(output.name)}`. Its blocks 1 to {manifest.split} were computed on "
        f"devices that kept their images, blocks {manifest.split + 1} to {manifest.depth} on a trainer "
        f"(split learning, adc-edge {__version__})."
    )
    if merged.class_names:
        names = [_cell(name) for name in merged.class_names[:_NAMED_CLASSES]]
        more = len(merged.class_names) - len(names)
        yield f"\nClasses, in the order of the outputs: {', '.join(names)}{f' and {more} more' if more else ''}.\n"
    else:
        yield "\nThe classes have no names.\n"


def _training(merged: Merged, facts: TrainingFacts) -> Iterator[str]:
    yield "## Training\n"
    if merged.frozen:
        trunk = "the bundle's, which no device trained"
    elif merged.round is not None:
        trunk = f"the fleet's, of round {merged.round}"
    else:
        learned = max(merged.trunk.values(), default=merged.step)  # less, if it was frozen on the way
        trunk = f"that of one device, at its step {learned}"
    elsewhere = "through the fleet" if facts.mode in COMMON_MODES else "its own"
    yield f"Mode: {facts.mode}. The trunk (blocks 1 to {merged.manifest.split}) is {trunk}.\n"
    rows = [
        (
            _cell(one.name) or "not known",
            f"`{one.session}`",
            elsewhere if one.trunk_steps is None else f"{one.trunk_steps:,}",
            f"{one.head_steps:,}",
            f"{one.images:,}",
            one.classes or "not told",
        )
        for one in facts.devices
    ]
    header = ("device", "session", "steps in the trunk", "steps in the head", "training images seen", "classes")
    yield markdown_table(header, rows, "llrrrl")
    runs = [
        f"{run.side} `{_code(run.number) or 'not numbered'}`{f' (adc-edge {run.version})' if run.version else ''}"
        for run in facts.runs
    ]
    yield f"\nRuns: {', '.join(runs)}.\n"


def _bytes(merged: Merged, facts: TrainingFacts) -> Iterator[str]:
    yield "## Bytes\n"
    yield "Bodies of messages, as the trainer counted them: of training steps, and apart of the trunk's changes.\n"
    rows = [(_label(one), f"{one.bytes_up:,}", f"{one.bytes_down:,}") for one in facts.devices]
    up, down = sum(one.bytes_up for one in facts.devices), sum(one.bytes_down for one in facts.devices)
    if len(rows) > 1:
        rows.append(("all", f"{up:,}", f"{down:,}"))
    if facts.averages is not None:
        rounds, changes_up, changes_down = facts.averages
        rows.append((f"trunk changes, {rounds:,} round{'s'[: rounds != 1]}", f"{changes_up:,}", f"{changes_down:,}"))
    yield markdown_table(("device", "bytes up", "bytes down"), rows, "lr")
    for run in facts.runs:
        if run.sent is not None:
            counted = " and ".join(f"{size:,} bytes {way}" for size, way in zip(run.sent, ("up", "down"), strict=True))
            yield f"\nThe named device counted {counted} at its socket up to step {merged.step:,}, with"
            yield "evaluations and the trunk's changes, without repeated steps and probes of the link."
    yield ""


def _accuracies(merged: Merged, facts: TrainingFacts, data: str) -> Iterator[str]:
    yield "## Accuracy\n"
    rows = []
    if merged.score is not None:
        today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
        source = _cell(source_name(data))
        rows.append(
            (
                f"this file, test split of {source}",
                f"{merged.score.accuracy:.2%}",
                f"{merged.score.images:,}",
                "",
                today,
            )
        )
    if merged.accuracy is not None:
        rows.append(("best evaluation of the device", f"{merged.accuracy:.2%}", "", f"{merged.step:,}", ""))
    if facts.central is not None:
        rows.append(_accuracy("trainer's test images", facts.central))
    rows += [_accuracy(f"device {_label(one)}", one.last) for one in facts.devices if one.last is not None]
    if not rows:
        yield "None was measured."
    else:
        yield markdown_table(("measured on", "accuracy", "images", "at step", "date"), rows, "lrrrl")
        yield "\nDevices and trainer measured the halves of that step; this file may have learned more steps."
    yield ""


def _accuracy(name: str, found: MeasuredAccuracy) -> tuple[str, str, str, str, str]:
    at = f"{found.step:,}" + (f", round {found.round:,}" if found.round else "")
    return name, f"{found.accuracy:.2%}", f"{found.images:,}", at, found.date


def _use(merged: Merged, output: Path) -> Iterator[str]:
    manifest, preprocessing = merged.manifest, merged.manifest.preprocessing
    arguments = "".join(f", {key}={value!r}" for key, value in manifest.model_args.items())
    yield "## Use\n\n```python"
    yield "import safetensors.torch\nimport timm\n"
    yield f"vit = timm.create_model({manifest.model!r}, num_classes={manifest.classes}{arguments})"
    yield f"vit.load_state_dict(safetensors.torch.load_file({output.name!r}), strict=True)\n```\n"
    crop = (
        "" if preprocessing.crop_pct is None else f", crop_pct {preprocessing.crop_pct:g} ({preprocessing.crop_mode})"
    )
    height, width = preprocessing.size
    yield (
        f"Images: {height} × {width} pixels, {preprocessing.interpolation}{crop}, mean {_numbers(preprocessing.mean)}, "
        f"standard deviation {_numbers(preprocessing.std)}.\n"
    )
    yield "To cut it again and train it further with [adc-edge](https://arxiv.org/abs/2509.15058):\n"
    yield f"```console\n$ {export_command(merged, output)}\n```\n"


def export_command(merged: Merged, output: Path) -> str:
    """Return the command that makes a bundle of the merged file."""
    manifest = merged.manifest
    parts = ["adc-edge", "export", "--model", manifest.model, "--weights", output.name, "--split", str(manifest.split)]
    for key, value in manifest.model_args.items():
        parts += ["--model-arg", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    if manifest.preprocessing.crop_pct is not None:
        parts += ["--crop-pct", f"{manifest.preprocessing.crop_pct:g}"]
    return shlex.join([*parts, "-o", "out/"])


def _settings(runs: Sequence[RunFacts]) -> Iterator[str]:
    yield "## Settings\n"
    for run in runs:
        values = ", ".join(f"{_cell(name)} {_cell(value)}" for name, value in sorted(run.settings.items()))
        yield f"- {run.side}: {values or 'not known'}"


def _label(one: DeviceFacts) -> str:
    return _cell(one.name) or f"`{one.session}`"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _cell(text: str) -> str:
    """Return a text from outside as it may stand in a table or a sentence of Markdown."""
    plain = escaped(readable(text[:200])).replace("\n", " ")
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#!" else letter for letter in plain)


def _code(text: str) -> str:
    return escaped(readable(text)).replace("`", "'")
