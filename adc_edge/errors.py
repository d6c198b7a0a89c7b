"""The tree of all errors that a user can see.

AdcEdgeError
├── InputError           wrong use, exit 2
│   ├── SettingError     an option whose value cannot be used
│   │   └── TakenError   one that may be used once another process has ended
│   ├── ModelError       a model or a split that ADC does not support
│   ├── BundleError      a bundle that is missing, changed or of another version
│   └── DataError        a data source that cannot be read or does not fit
└── RunError             a run that failed, exit 1
    ├── ParityError      an exported graph whose results differ from PyTorch's
    ├── EngineError      an engine that cannot be built or loaded, or computes wrong results
    ├── CheckpointError  a state on disk that cannot be read back
    ├── ProtocolError    a message that breaks the protocol
    ├── RefusedError     a message that the trainer refused
    ├── LinkError        a trainer that cannot be reached
    └── RanksLost        a trainer's other ranks that are gone or silent
"""

from __future__ import annotations


class AdcEdgeError(Exception):
    """Base class of all errors. Each one has the received value, the expected value and the remedy."""

    exit_code = 1

    def __init__(self, received: str, expected: str, remedy: str) -> None:
        super().__init__(received, expected, remedy)
        self.received, self.expected, self.remedy = received, expected, remedy

    def __str__(self) -> str:
        return f"{self.received}\n  expected: {self.expected}\n  remedy:   {self.remedy}"


class InputError(AdcEdgeError):
    """Wrong use: an option, a model, a bundle or a data source."""

    exit_code = 2


class SettingError(InputError):
    """The value of an option cannot be used, alone or together with other options."""


class TakenError(SettingError):
    """The port or the run directory is in use by another process. It may be free later, so a supervisor tries again."""


class ModelError(InputError):
    """The model, or the block after which it is split, does not suit ADC."""


class BundleError(InputError):
    """The bundle is missing or incomplete, was changed after its export, or has an unknown version."""


class DataError(InputError):
    """The data source cannot be read or does not fit the bundle."""


class RunError(AdcEdgeError):
    """A correctly requested run that failed."""


class ParityError(RunError):
    """The results of the exported graph differ from PyTorch's."""


class EngineError(RunError):
    """An engine cannot be built or loaded on this machine, or computes wrong results."""


class CheckpointError(RunError):
    """A checkpoint is missing, torn, changed, or belongs to another run."""


class ProtocolError(RunError):
    """A message breaks the protocol: it is malformed, too large or out of order."""

    def __init__(self, received: str, expected: str, remedy: str, code: str = "malformed") -> None:
        super().__init__(received, expected, remedy)
        self.code = code


class RefusedError(RunError):
    """The trainer refused a message. ``code`` is one of ``messages.RefusalCode``."""

    def __init__(self, code: str, received: str, expected: str, remedy: str) -> None:
        super().__init__(f"the trainer refused ({code}): {received}", expected, remedy)
        self.code = code


class LinkError(RunError):
    """The trainer cannot be reached, or was unreachable for longer than allowed."""


class RanksLost(RunError):
    """Another rank of this trainer is gone, or was silent for longer than allowed. All ranks have to start anew."""
