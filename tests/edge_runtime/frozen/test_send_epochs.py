"""`serve --send-epochs`: what it goes with, how long the run is, and trainers that cannot keep anything."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import UNSET

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.codec.precision import Precision, encode, encoded_bytes
from adc_edge.edge_runtime.choosing.cut import RunCut
from adc_edge.edge_runtime.frozen.send_epochs import (
    RunLength,
    check_keeps,
    check_send_epochs,
    run_length,
    sent_steps,
)
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.errors import RefusedError, SettingError
from adc_edge.planning.message_sizes import evaluation_messages
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.journal import JournalKey
from adc_edge.wire.fleet_messages import SentSteps
from adc_edge.wire.headers import pack_header
from adc_edge.wire.messages import VERSION, Hello, Welcome
from tests.cloud_trainer.store.messages import OnceDevice
from tests.cloud_trainer.store.test_alone import send_all
from tests.edge_runtime.frozen.trainers import waiting_trainer

SENT, PLANNED = 3, 10


def settings(**more: Any) -> ServeSettings:
    given: dict[str, Any] = {"trunk": "frozen", "send_epochs": 1} | more
    return ServeSettings(Path("bundle"), "tcp://127.0.0.1:1", **given)


@pytest.mark.parametrize(
    ("more", "remedy"),
    [
        ({"trunk": "train"}, "add --trunk frozen"),
        ({"augment": "flip"}, "--send-epochs 2 or more"),
        ({"plan": "auto"}, "leave --plan out"),
        ({"keep_best": True}, "leave --keep-best out"),
        ({"stop_after": 3}, "leave --stop-after out"),
    ],
)
def test_what_it_does_not_go_with_is_refused(more: dict[str, Any], remedy: str) -> None:
    with pytest.raises(SettingError, match=remedy):
        check_send_epochs(settings(**more))
    check_send_epochs(settings(**more | {"send_epochs": 0}))


def test_several_views_of_each_image_may_be_sent() -> None:
    check_send_epochs(settings(augment="flip", send_epochs=2))


def test_the_length_of_the_run() -> None:
    assert run_length(settings(epochs=10), 7) == RunLength(70, 7)
    assert run_length(settings(steps=20, send_epochs=2), 7).alone == 6
    assert run_length(settings(epochs=10, send_epochs=0), 7) == RunLength(70, 70)
    with pytest.raises(SettingError, match="choose --epochs above 1"):
        run_length(settings(epochs=1), 7)


def test_the_settings_of_other_runs_stay_as_they_were(bundle: Bundle) -> None:
    shape = settings().cut(bundle.manifest.ratio, bundle.manifest, 1)
    assert "send_epochs" not in settings(send_epochs=0).fixed("d", ("fp32", "fp32"), shape, 1)
    assert settings().fixed("d", ("fp32", "fp32"), shape, 1)["send_epochs"] == 1


def test_the_wish_tells_the_bytes_to_be_kept(bundle: Bundle) -> None:
    ours = settings(precision="fp32", micro_batches=2, epochs=3, evaluate_every=4)
    cut, manifest = RunCut(ours, bundle.manifest), bundle.manifest
    wish = sent_steps(ours, cut, manifest, RunLength(30, 10), 100)
    assert wish is not UNSET
    step = 4 * 2 * cut.shape.clusters * cut.shape.kept * manifest.dim
    test = 100 * manifest.tokens * manifest.dim // 2  # pca4
    assert 10 * step + test < wish.bytes < 1.2 * (10 * step + test) + 10_000
    assert (wish.steps, wish.evaluate_every) == (10, 4)
    assert sent_steps(settings(send_epochs=0), cut, manifest, RunLength(30, 30), 100) is UNSET


@pytest.mark.parametrize(("images", "sizes", "precision"), [(10, [10], "int8"), (2000, [667, 667, 666], "pca4")])
def test_the_wish_tells_the_evaluation_in_the_precision_in_which_it_comes(
    bundle: Bundle, images: int, sizes: list[int], precision: Precision
) -> None:
    """A message with few tokens comes in int8, which has far more bytes than pca4."""
    each, dim, labels = bundle.manifest.tokens, bundle.manifest.dim, 4 * images
    expected = sum(len(encode(np.ones((size, each, dim), np.float32), precision)) for size in sizes)
    assert sum(evaluation_messages(each, dim, images, 8, None).body_bytes) == expected + labels
    smaller = encoded_bytes((images, each, dim), "pca1") + labels
    assert smaller <= sum(evaluation_messages(each, dim, images, 8, "pca1").body_bytes) < 2 * smaller


def test_a_trainer_that_does_not_know_the_wish_is_refused_before_the_first_step() -> None:
    old = Welcome(1, 0, 0, 0, 0, 5, 0, 0, "0.12.0")
    with pytest.raises(RefusedError, match=r"0\.12\.0, which keeps no activations"):
        check_keeps(told(10), old)
    check_keeps(msgspec.structs.replace(told(10), sends=UNSET), old)


def test_a_run_that_is_to_be_shorter_than_it_is_already_is_refused() -> None:
    """The trainer has gone on alone to step 7 of a run whose first three steps it was sent."""
    stands = Welcome(1, 7, 0, 0, 0, 5, 0, 0, "0.13.0", stored=3)
    for steps in (7, 8, 20):
        check_keeps(told(steps), stands)
    with pytest.raises(RefusedError, match=r"a run of 6 steps, which has come to step 7(.|\n)*7 steps or more"):
        check_keeps(told(6), stands)
    check_keeps(told(6), msgspec.structs.replace(stands, stored=0))  # the device is still at work


def told(steps: int) -> Hello:
    """The Hello of a device that sends three steps of so many."""
    return Hello(VERSION, "bundle", 1, 1, "device", 3, 0, 3, steps, sends=SentSteps(3))


@pytest.mark.parametrize("pruned", [False, True], ids=["whole journal", "pruned journal"])
def test_a_device_sends_nothing_again_to_an_older_trainer_that_has_everything(
    bundle: Bundle,
    training: HeadTraining,
    tmp_path: Path,
    eventually: Callable[[Callable[[], bool]], None],
    pruned: bool,
) -> None:
    run, before = tmp_path / "run", {name: value.copy() for name, value in training.arrays().items()}
    with waiting_trainer(bundle, training, run) as (server, _):
        send_all(OnceDevice(bundle, server.endpoint, SENT, PLANNED))
    for checkpoint in run.glob("checkpoint-*"):
        checkpoint.unlink()
    training.restore(before, 0)
    with waiting_trainer(bundle, training, run) as (server, work):
        again = OnceDevice(bundle, server.endpoint, SENT, PLANNED)
        again.next_step = SENT
        for step in [] if pruned else range(SENT):
            message, body = again.message(step)
            again.journal.append(JournalKey(step), pack_header(message), body)
        with closing(again.session):
            again.session.open(30)
            assert again.session.welcome is not None
            assert (again.session.welcome.applied, again.session.welcome.stored) == (0, SENT)
            assert training.steps == 0
            assert again.session.close_session()
        server.between = work
        eventually(lambda: server.sessions.finished() == 1)
    assert training.steps == PLANNED
