"""The tree of errors: the messages that a user reads, and the exit codes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from adc_edge import errors
from adc_edge.errors import AdcEdgeError, ProtocolError, RefusedError


def real_tree(root: type[AdcEdgeError]) -> Iterator[tuple[str, str]]:
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield root.__name__, child.__name__
            yield from real_tree(child)


def drawn_tree() -> Iterator[tuple[str, str, str]]:
    """(parent, child, text beside the child), from top to bottom."""
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.fullmatch(r"((?:│   |    )*(?:├── |└── )?)(\w+(?:Error|Lost))\b *(.*)", line):
            depth = len(found[1]) // 4
            del above[depth:]
            if above:
                yield above[-1], found[2], found[3]
            above.append(found[2])


def leaves() -> list[type[AdcEdgeError]]:
    parents = {parent for parent, _ in real_tree(AdcEdgeError)}
    return [getattr(errors, child) for _, child in real_tree(AdcEdgeError) if child not in parents]


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    assert [(parent, child) for parent, child, _ in drawn_tree()] == list(real_tree(AdcEdgeError))
    assert len(leaves()) >= 9


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.__name__)
def test_each_error_exits_with_the_documented_code_of_its_branch(leaf: type[AdcEdgeError]) -> None:
    codes = {child: int(found[1]) for _, child, text in drawn_tree() if (found := re.search(r"exit (\d)", text))}
    assert codes == {"InputError": 2, "RunError": 1}
    branch = next(base.__name__ for base in leaf.__mro__ if base.__name__ in codes)
    assert leaf.exit_code == codes[branch]


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.__name__)
def test_each_error_shows_the_received_value_the_expected_value_and_the_remedy(leaf: type[AdcEdgeError]) -> None:
    three = ("an apple", "a pear", "go to market")
    error = RefusedError("busy", *three) if leaf is RefusedError else leaf(*three)
    first, second, third = str(error).splitlines()
    assert first.endswith("an apple")
    assert second.split() == ["expected:", "a", "pear"]
    assert third.split() == ["remedy:", "go", "to", "market"]
    assert (error.expected, error.remedy) == three[1:]


def test_a_refusal_names_the_trainers_code() -> None:
    error = RefusedError("busy", "two devices", "one", "wait")
    assert error.code == "busy"
    assert str(error).startswith("the trainer refused (busy): two devices\n")


def test_the_default_code_of_a_protocol_error_is_malformed() -> None:
    assert ProtocolError("a", "b", "c").code == "malformed"
    assert ProtocolError("a", "b", "c", "size").code == "size"
