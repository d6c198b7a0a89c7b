"""A profile as a file, and profiles that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from adc_edge.errors import SettingError
from adc_edge.files import json_bytes
from adc_edge.planning.profile import Profile, check_profile, read_profile
from adc_edge.storage.bundle import Bundle
from tests.planning.test_step_model import TRAINER, device

HERE = {"processor": "Cortex-A78AE", "cores": 6, "threads": 6, "numpy": "1.26.4"}


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    profile = Profile(device(machine=HERE), TRAINER)
    (tmp_path / "p.json").write_bytes(json_bytes(profile))
    assert read_profile(tmp_path / "p.json") == profile


def test_what_is_no_profile_is_named_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"up_mbit_s": 3}')
    for name, words in (("p.json", "missing required field `device`"), ("none.json", "No such file")):
        with pytest.raises(SettingError, match=words) as refusal:
            read_profile(tmp_path / name)
        assert "adc-edge profile --bundle BUNDLE --json" in refusal.value.remedy


def test_a_profile_of_another_model_bundle_or_machine_is_refused(bundle: Bundle) -> None:
    manifest = bundle.manifest
    mine = device(bundle=bundle.digest, model=manifest.model, split=manifest.split, machine=HERE)
    check_profile(Profile(mine), bundle)
    check_profile(Profile(mine), bundle, HERE | {"numpy": "2.0.0", "threads": 2})
    cases: tuple[tuple[dict[str, Any], dict[str, Any] | None, str], ...] = (
        ({"model": "deit_small_patch16_224"}, None, "a profile of deit_small_patch16_224, split 2"),
        ({"split": 6}, None, f"a profile of {manifest.model}, split 6"),
        ({"bundle": "ab" * 32}, None, "another export of .*bundle abababababab"),
        ({}, HERE | {"processor": "AMD EPYC", "cores": 2}, "a machine with Cortex-A78AE, 6 cores"),
    )
    for change, machine, words in cases:
        with pytest.raises(SettingError, match=words) as refusal:
            check_profile(Profile(msgspec.structs.replace(mine, **change)), bundle, machine)
        assert "measure on the device: adc-edge profile" in refusal.value.remedy
