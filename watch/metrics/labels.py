"""Values of labels: any text, made safe to show, and never more different ones than stated."""

from __future__ import annotations

from adc_edge.terminal import escaped, readable

MOST_DEVICES = 64  # different names of devices that a run's metrics tell apart
OTHER = "other"  # stands for every further one
_LONGEST = 64  # characters


def label_text(text: str) -> str:
    """Return ``text`` as a label shows it: control characters as ``\\x1b``, cut after 64 characters."""
    cut = text[:_LONGEST]
    shown = escaped(readable(cut))
    return shown if len(shown) <= _LONGEST and cut == text else f"{shown[: _LONGEST - 1]}…"


class BoundedNames:
    """Labels of names: the first ``most`` different ones as they are, all others as ``other``."""

    def __init__(self, most: int) -> None:
        self._most, self._known = most, set[str]()

    def known(self, name: str) -> str:
        """Return the label of a name that was asked for by ``label``; of any other one ``other``."""
        shown = label_text(name)
        return shown if shown in self._known else OTHER

    def label(self, name: str) -> str:
        """Return the label of a name, a new one while there are labels left."""
        shown = label_text(name)
        if shown not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known.add(shown)
        return shown
