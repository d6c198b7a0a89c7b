"""A profile as tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE
from rich.table import Table

from adc_edge.planning.profile import (
    BlockSeconds,
    CodecSeconds,
    DeviceProfile,
    Profile,
    TrainerProfile,
    share_text,
)

_NEARBY = "device and trainer on one machine share its cores: each is slower than measured here while both compute"


def profile_tables(profile: Profile) -> Iterator[Table]:
    """Yield the tables of the device's trunk and of the codec on both sides."""
    yield _trunk(profile.device)
    yield _codec(profile)


def profile_lines(profile: Profile) -> Iterator[str]:
    """Yield what the tables do not hold, as lines with a label."""
    device, trainer = profile.device, profile.trainer
    machine = device.machine
    yield f"machine  {machine['processor']}, {machine['cores']} cores, {machine['threads']} of them used"
    yield f"model    {device.model}, split {device.split}, measured with up to {device.images} images"
    training = f"; optimizer and refresh {1e3 * device.update_seconds:.1f} ms a step" if device.trains else ""
    yield f"engine   {device.engine} in {device.compute} ({machine['provider']}){training}"
    yield f"images   {1e3 * device.data_seconds:.2f} ms to read one, beside the computation"
    if trainer is not None:
        yield _head(trainer, device)
    if profile.share:
        yield f"share    {share_text(profile.share)}"
    yield f"note     {_NEARBY}"


def _head(trainer: TrainerProfile, device: DeviceProfile) -> str:
    image = 1e3 * trainer.step.each * device.tokens
    fixed = 1e3 * trainer.step.fixed
    optimizer = 1e3 * trainer.update_seconds
    return (
        f"trainer  {trainer.device}, blocks {trainer.split + 1} to {trainer.depth}: {fixed:.1f} ms a message and "
        f"{image:.2f} ms for {device.tokens} tokens; optimizer {optimizer:.1f} ms a step"
    )


def _trunk(device: DeviceProfile) -> Table:
    table = Table(title="trunk, ms for an image", box=SIMPLE, pad_edge=False)
    table.add_column("part")
    phases = ("forward", "recompute", "backward", "graph kB")
    for name in phases if device.trains else phases[:1]:
        table.add_column(name, justify="right")
    calls = BlockSeconds(device.call_seconds, device.recompute_call_seconds, device.backward_call_seconds)
    parts = [("a call (ms, all images)", calls), ("embedding", device.embedding)]
    parts += [(f"block {number}", block) for number, block in enumerate(device.blocks[:-1], 1)]
    parts += [(f"block {device.split} with ADC", device.blocks[-1])]
    for name, part in parts:
        times = [f"{1e3 * s:.3f}" for s in (part.forward, part.recompute, part.backward)]
        cells = [*times, f"{part.graph_bytes / 1e3:.0f}" if part.graph_bytes else "–"]
        table.add_row(name, *cells[: len(table.columns) - 1])
    return table


def _codec(profile: Profile) -> Table:
    table = Table(title="codec, ms for 1000 tokens", box=SIMPLE, pad_edge=False)
    table.add_column("precision")
    sides = {"device": profile.device.codec} | ({} if profile.trainer is None else {"trainer": profile.trainer.codec})
    for side in sides:
        for way in ("encode", "decode"):
            table.add_column(f"{side}\n{way}", justify="right")
    for precision in profile.device.codec:
        cells = [cell for codec in sides.values() for cell in _cells(codec.get(precision))]
        table.add_row(precision, *cells)
    return table


def _cells(codec: CodecSeconds | None) -> tuple[str, str]:
    if codec is None:  # of a trainer that does not know it
        return "–", "–"
    return f"{1e3 * codec.encode.seconds(1000):.2f}", f"{1e3 * codec.decode.seconds(1000):.2f}"
