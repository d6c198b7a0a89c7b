"""Class names on several ranks: all have the same list in the same order, and it grows in rounds alone."""

from __future__ import annotations

import contextlib
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from adc_edge.cloud_trainer.ranks.state.classes import RankClasses
from adc_edge.cloud_trainer.ranks.state.shared_run import SharedRun
from adc_edge.errors import ProtocolError
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.run_dir import CLASSES, RunDir
from adc_edge.wire.class_names import pack_names
from adc_edge.wire.messages import ClassNames
from tests.cloud_trainer.ranks.replicas import MemoryExchange, on_all_ranks


def of_ranks(bundle: Bundle, run: Path, told: list[list[str]], full: bool = False) -> list[list[str] | str]:
    """The answers of ranks, each of which has a device with class names."""
    with closing(RunDir(run, {}, {})) as first:

        def work(exchange: MemoryExchange) -> list[str] | str:
            run_dir = SharedRun(run, exchange.rank) if exchange.rank else first
            if full and exchange.rank == 0:
                run_dir.keep = _full  # type: ignore[method-assign]
            classes = RankClasses(bundle.manifest, run_dir, exchange.least)
            body = pack_names(told[exchange.rank])
            message = ClassNames(1, 1, len(body))
            waits = classes.must_wait(message, body, f"device-{exchange.rank}")
            classes.hear(exchange.blobs(classes.tell()))
            try:
                names, _ = classes.take(message, body, "device")
            except (ProtocolError, OSError) as error:
                return f"{type(error).__name__}, {len(classes.names)} names"
            assert waits or set(told[exchange.rank]) <= set(names)
            return names

        return on_all_ranks(len(told), work)


def _full(name: str, data: bytes) -> None:
    raise OSError(28, "No space left on device", name)


def test_all_ranks_append_the_names_in_rank_order_and_rank_0_keeps_them(bundle: Bundle, tmp_path: Path) -> None:
    names = ["cat", "dog", "bird"]
    assert of_ranks(bundle, tmp_path / "run", [["cat", "dog"], ["bird", "dog"]]) == [names, names]
    assert msgspec.json.decode((tmp_path / "run" / CLASSES).read_bytes())["head"] == names


def test_names_without_room_are_refused_to_their_device_alone(bundle: Bundle, tmp_path: Path) -> None:
    many = [f"class {n}" for n in range(bundle.manifest.classes)]
    assert of_ranks(bundle, tmp_path / "run", [["cat"], many]) == [["cat"], "ProtocolError, 1 names"]


def test_on_a_full_disk_no_rank_has_learned_a_name(bundle: Bundle, tmp_path: Path) -> None:
    assert of_ranks(bundle, tmp_path / "run", [["cat"], ["dog"]], full=True) == ["OSError, 0 names"] * 2


def test_a_known_list_needs_no_round(bundle: Bundle, tmp_path: Path) -> None:
    of_ranks(bundle, tmp_path / "run", [["cat", "dog"], ["cat"]])
    with closing(RunDir(tmp_path / "run", {}, {})) as run_dir:
        classes = RankClasses(bundle.manifest, run_dir, lambda value: value)
        body = pack_names(["dog"])
        assert not classes.must_wait(ClassNames(1, 1, len(body)), body, "device")
        assert classes.take(ClassNames(1, 1, len(body)), body, "device")[0] == ["cat", "dog"]
        with pytest.raises(AssertionError, match="only a round"), contextlib.suppress(ProtocolError):
            classes.learn(["bird"], False, "device")


def test_names_that_fit_only_after_those_of_another_rank_are_added_in_the_same_round(
    bundle: Bundle, tmp_path: Path
) -> None:
    """The order of a trained head's classes is unknown until a device names all of them."""
    manifest = msgspec.structs.replace(bundle.manifest, classifier_kept=True, classes=3)
    changed = msgspec.structs.replace(bundle, manifest=manifest)
    names = ["cat", "dog", "bird"]
    assert of_ranks(changed, tmp_path / "run", [["dog"], names]) == [names, names]
    assert of_ranks(changed, tmp_path / "other", [["dog"], ["cat", "bear"]]) == ["ProtocolError, 0 names"] * 2
