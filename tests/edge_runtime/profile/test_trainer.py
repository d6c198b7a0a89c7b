"""The speed of a trainer's head, as a device asks for it without a session."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime.profile.trainer import ask_share, ask_trainer, trainer_channel
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.errors import LinkError, SettingError
from adc_edge.files import json_bytes
from adc_edge.planning.candidates import unknown_profile
from adc_edge.planning.profile import Profile, TrainerProfile
from adc_edge.storage.bundle import MANIFEST, Bundle
from tests.serving import logged
from tests.stub_device import Device, training_beside


def ask(endpoint: str, bundle: Bundle) -> TrainerProfile | None:
    with trainer_channel(ServeSettings(bundle.path, endpoint)) as channel:
        return ask_trainer(channel, bundle.digest)


def test_a_real_trainer_tells_the_speed_of_its_head_and_opens_no_session(server: Server, bundle: Bundle) -> None:
    head = ask(server.endpoint, bundle)
    assert head is not None
    assert (head.split, head.depth) == (bundle.manifest.split, bundle.manifest.depth)
    assert head.step.seconds(16 * 17) >= head.step.seconds(17) > 0
    assert list(server.sessions) == []
    assert server.lines == []  # type: ignore[attr-defined]
    assert ask(server.endpoint, bundle) == head  # measured once


def test_a_device_goes_on_while_another_one_asks(server: Server, bundle: Bundle) -> None:
    device = Device(bundle, server.endpoint)
    device.session.open(10)
    with trainer_channel(ServeSettings(bundle.path, server.endpoint)) as channel:
        device.send(0, 0)
        assert ask_trainer(channel, bundle.digest) is not None
    assert device.take()[0].step == 0
    device.session.close()


@pytest.mark.parametrize("version", ["0.8.0", None])
def test_an_old_trainer_that_does_not_tell_is_named_and_no_error(
    server: Server, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    about: dict[str, Any] = {} if version is None else {"version": 3, "trainer": version, "bundle": bundle.digest[:12]}
    monkeypatch.setattr(server._pongs, "about", about)
    monkeypatch.setattr(server._pongs.head_speed, "tell", lambda alone: {})
    with logged("adc_edge.edge_runtime") as lines:
        assert ask(server.endpoint, bundle) is None
    shown = version or "0.7 or older"
    assert lines == [f"the trainer (adc-edge {shown}) does not tell the speed of its head: the profile has no trainer"]


def test_a_trainer_that_cannot_measure_its_head_says_why(
    server: Server, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server._pongs.head_speed, "tell", lambda alone: {"fault": "a loss of nan"})
    with logged("adc_edge.edge_runtime") as lines:
        assert ask(server.endpoint, bundle) is None
    assert lines == ["the trainer cannot measure its head (a loss of nan): the profile has no trainer"]


def test_a_trainer_at_work_tells_the_share_that_a_profile_keeps(server: Server, bundle: Bundle) -> None:
    with trainer_channel(ServeSettings(bundle.path, server.endpoint)) as channel:
        assert ask_share(channel) is UNSET
        with training_beside(bundle, server.endpoint) as answers:
            while len(answers) < 5:
                time.sleep(0.01)
            share = ask_share(channel)
    assert share
    assert (share.devices, share.waited_s) == (2, UNSET)
    assert 0.5 <= share.share < 1
    kept = Profile(unknown_profile(bundle.manifest).device, None, share)
    assert msgspec.json.decode(json_bytes(kept), type=Profile) == kept
    assert b"share" not in json_bytes(Profile(kept.device))


def test_a_trainer_of_another_bundle_is_refused(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle.path, tmp_path / "other"))
    (other / MANIFEST).write_text((other / MANIFEST).read_text().replace("0.4", "0.5"))
    with pytest.raises(LinkError, match=f"has bundle {bundle.digest[:8]}"):
        ask(server.endpoint, Bundle.load(other, ()))


def test_an_address_that_needs_keys_is_refused_before_anything_is_measured(bundle: Bundle) -> None:
    with (
        pytest.raises(SettingError, match="is not loopback"),
        trainer_channel(ServeSettings(bundle.path, "tcp://192.0.2.1:5700")),
    ):
        pass
