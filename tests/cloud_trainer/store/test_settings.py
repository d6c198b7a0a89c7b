"""A trainer that cannot go on with what devices have sent says so at its start, and does not wait for ever."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adc_edge.cloud_trainer.runner import Trainer
from adc_edge.cloud_trainer.settings import TrainerSettings
from adc_edge.cloud_trainer.store.alone import AloneTraining
from adc_edge.errors import SettingError
from adc_edge.method.token_augmentation import TokenAugmentation
from adc_edge.security.keystore import make_keys
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.run_dir import STORE, WHOLE_FILE


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with the store of a session that goes on alone."""
    return plant(tmp_path / "run")


def plant(run: Path) -> Path:
    whole = run / STORE / f"{1:016x}" / WHOLE_FILE
    whole.parent.mkdir(parents=True)
    whole.write_text("{}")
    return run


def check(run: Path, ranks: bool = False, **more: Any) -> None:
    settings = TrainerSettings(Path("b"), "tcp://127.0.0.1:*", run=run, **more)
    settings.store.check(settings, ranks)


def test_a_trainer_that_cannot_use_its_store_is_refused(run: Path) -> None:
    with pytest.raises(SettingError, match=r"torchrun, and .*may be switched off"):
        check(run, ranks=True)
    with pytest.raises(SettingError, match=r"--merge-passes each, and .*may be switched off"):
        check(run, merge_passes="each")


def test_others_are_not_refused(run: Path) -> None:
    check(run)
    check(run, ranks=True, fresh=True)
    check(run, serve_only=True)
    (run / STORE / f"{1:016x}" / WHOLE_FILE).unlink()
    check(run, ranks=True)


def test_stored_activations_are_augmented_by_a_trainer_that_stores_them_alone(tmp_path: Path) -> None:
    check(tmp_path, store_mix=1.0, store_drop=0.3)
    with pytest.raises(SettingError, match=r"--store-drop 0\.3 and --store-mix 1 with --merge-passes each"):
        check(tmp_path, store_mix=1.0, store_drop=0.3, merge_passes="each")
    with pytest.raises(SettingError, match=r"--store-mix 0\.5 with several ranks"):
        check(tmp_path, ranks=True, store_mix=0.5)


def test_a_run_goes_on_with_the_augmentation_that_it_began_with(bundle: Bundle, tmp_path: Path) -> None:
    def fixed(**more: Any) -> dict[str, Any]:
        return TrainerSettings(bundle.path, "tcp://127.0.0.1:*", run=tmp_path, **more).fixed(bundle)

    assert "store_mix" not in fixed()  # as runs of 0.15 have it
    assert fixed(store_mix=1.0) != fixed()
    assert fixed(store_mix=1.0)["store_mix"] == 1.0


def test_a_trainer_without_the_package_that_decrypts_is_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_keys(tmp_path / "keys")
    own: dict[str, Any] = {"run": tmp_path / "run", "device": "cpu", "threads": 1, "keys": tmp_path / "keys"}
    settings = TrainerSettings(bundle.path, "tcp://127.0.0.1:*", **own)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    Trainer(settings, Console(quiet=True), stop=lambda: True).run()
    plant(tmp_path / "run")
    with pytest.raises(SettingError, match=r"no package `cryptography`.*may be switched off"):
        Trainer(settings, Console(quiet=True), stop=lambda: True).run()


def test_an_augmentation_of_what_cannot_be_stored_is_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_keys(tmp_path / "keys")
    own: dict[str, Any] = {"run": tmp_path / "run", "device": "cpu", "threads": 1, "keys": tmp_path / "keys"}
    settings = TrainerSettings(bundle.path, "tcp://127.0.0.1:*", store_mix=1.0, **own)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(SettingError, match="no package `cryptography`"):
        Trainer(settings, Console(quiet=True), stop=lambda: True).run()


def test_the_options_of_the_trainer_reach_the_steps_that_it_does_alone(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[TokenAugmentation] = []

    def alone(*arguments: Any) -> AloneTraining:
        given.append(arguments[-1])
        return AloneTraining(*arguments)

    monkeypatch.setattr("adc_edge.cloud_trainer.runner.AloneTraining", alone)
    own: dict[str, Any] = {"run": tmp_path / "run", "device": "cpu", "threads": 1}
    settings = TrainerSettings(bundle.path, "tcp://127.0.0.1:*", store_drop=0.3, store_mix=0.5, **own)
    Trainer(settings, Console(quiet=True), stop=lambda: True).run()
    assert given == [TokenAugmentation(drop=0.3, mix=0.5)]
