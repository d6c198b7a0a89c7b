"""Every error a user can meet.

AdcEdgeError
├── InputError           wrong use, exit 2
│   ├── SettingError     an option's value
│   ├── ModelError       a model or split that cannot be cut
│   ├── BundleError      a bundle that is missing, changed or of another version
│   └── DataError        a data source that cannot be read or does not fit
└── RunError             a run that failed, exit 1
    ├── ParityError      an export that does not equal PyTorch
    ├── EngineError      an engine that cannot be built, loaded or trusted on this machine
    ├── CheckpointError  a state on disk that cannot be read back
    ├── ProtocolError    a message that breaks the protocol
    ├── RefusedError     the trainer refused, by name
    └── LinkError        the trainer cannot be reached
"""

from __future__ import annotations


class AdcEdgeError(Exception):
    """Root of the tree: what was received, what was expected, how to mend it."""

    exit_code = 1

    def __init__(self, received: str, expected: str, remedy: str) -> None:
        super().__init__(received, expected, remedy)
        self.received, self.expected, self.remedy = received, expected, remedy

    def __str__(self) -> str:
        return f"{self.received}\n  expected: {self.expected}\n  remedy:   {self.remedy}"


class InputError(AdcEdgeError):
    """Wrong use."""

    exit_code = 2


class SettingError(InputError):
    """An option's value makes no sense, alone or beside the others."""


class ModelError(InputError):
    """The model, or the place to cut it, is not one that ADC can work on."""


class BundleError(InputError):
    """The bundle is missing, incomplete, changed since its export, or of an unknown version."""


class DataError(InputError):
    """The data source cannot be read or does not fit the bundle."""


class RunError(AdcEdgeError):
    """A run that was asked for rightly and failed."""


class ParityError(RunError):
    """The exported graph does not compute what PyTorch computes."""


class EngineError(RunError):
    """An engine cannot be built or loaded on this machine, or computes something else than it should."""


class CheckpointError(RunError):
    """A checkpoint is missing, torn, changed, or belongs to another run."""


class ProtocolError(RunError):
    """A message breaks the protocol: malformed, oversize, out of order."""

    def __init__(self, received: str, expected: str, remedy: str, code: str = "malformed") -> None:
        super().__init__(received, expected, remedy)
        self.code = code


class RefusedError(RunError):
    """The trainer refused; ``code`` is one of ``protocol.RefusalCode``."""

    def __init__(self, code: str, received: str, expected: str, remedy: str) -> None:
        super().__init__(f"the trainer refused ({code}): {received}", expected, remedy)
        self.code = code


class LinkError(RunError):
    """The trainer cannot be reached, or went away for longer than was allowed."""
