"""Short names of runs, by which a page or a table tells them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from adc_edge.terminal import readable


def labels_of(paths: Sequence[Path]) -> list[str]:
    """Return the shortest end of each path that no other one has; the same path twice gets a number."""
    parts = [path.resolve().parts for path in paths]
    depths = [1] * len(parts)
    while True:
        names = ["/".join(one[-depth:]) for one, depth in zip(parts, depths, strict=True)]
        counts = Counter(names)
        longer = [i for i, name in enumerate(names) if counts[name] > 1 and depths[i] < len(parts[i])]
        if not longer:
            break
        for index in longer:
            depths[index] += 1
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(readable(name if seen[name] == 1 else f"{name} ({seen[name]})"))
    return found
