"""The classes of a device's data in words, each line short enough for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adc_edge.data.classes import short_list, show_name

_WIDTH = 62  # what time and level leave of a terminal of 80 columns

Images = tuple[int, int]  # number of training and of test images


def overview(head: Sequence[str], images: Mapping[str, Images]) -> str:
    """Return the head's classes with the device's images of each, those that it has first: ``cat 120+13, …``."""
    have = [name for name in head if sum(images.get(name, (0, 0)))]
    lacks = [name for name in head if name not in set(have)]
    parts = [_counted(name, images) for name in have + lacks]
    whole = f"classes  {', '.join(parts)} (train+test)"
    if len(whole) <= _WIDTH:
        return whole
    end = f", … {len(have)} of {len(head)} here (train+test)"
    shown = f"classes  {parts[0]}"
    for part in parts[1:]:
        if len(f"{shown}, {part}{end}") > _WIDTH:
            break
        shown += f", {part}"
    return shown + end


def faults(images: Mapping[str, Images]) -> list[str]:
    """Return a warning for data of a single class, and one for classes without images to train with."""
    empty = [name for name, (train, _) in images.items() if not train]
    found = []
    if len(images) - len(empty) == 1:
        only = next(name for name in images if name not in empty)
        found.append(f"all training images are of one class, {show_name(only)}")
    if empty:
        found.append(f"no training image of {short_list(empty, 3)}")
    return found


def changes(before: Mapping[str, Images], now: Mapping[str, Images]) -> list[str]:
    """Return the differences of a run's data since it was last at work: classes added, gone, with other images."""
    added, gone = ([n for n in a if n not in b] for a, b in ((now, before), (before, now)))
    other = [name for name in now if name in before and now[name] != before[name]]
    lines = [(added, "new classes in the data: "), (gone, "classes gone from the data: ")]
    found = [text + short_list(names, 3) for names, text in lines if names]
    if other:
        first = f"{_counted(other[0], now)}, was {_plus(before[other[0]])}"
        found.append(f"data changed: {first}" + (f"; {len(other) - 1} more classes" if len(other) > 1 else ""))
    return found


def _counted(name: str, images: Mapping[str, Images]) -> str:
    return f"{show_name(name)} {_plus(images.get(name, (0, 0)))}"


def _plus(counts: Images) -> str:
    return f"{counts[0]}+{counts[1]}"
