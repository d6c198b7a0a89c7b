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
from adc_edge.data.augment import parse_augmentation
from adc_edge.data.loader import Loader
from adc_edge.data.preprocessing import Preprocessing
from adc_edge.data.sources import ArraySplit
from adc_edge.edge_runtime.choosing.cut import RunCut
from adc_edge.edge_runtime.frozen.length import RunLength, begin_epochs_anew, run_length, with_steps
from adc_edge.edge_runtime.frozen.send_epochs import (
    check_keeps,
    check_send_epochs,
    sent_steps,
)
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.errors import CheckpointError, RefusedError, SettingError
from adc_edge.planning.message_sizes import evaluation_messages
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.journal import JournalKey
from adc_edge.storage.run_dir import RunDir
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


@pytest.mark.parametrize(
    ("more", "remedy"),
    [
        ({"trunk": "frozen"}, "frozen after 0 epochs"),
        ({"plan": "auto"}, "leave --plan out"),
        ({"keep_best": True}, "leave --keep-best out"),
        ({"stop_after": 3}, "leave --stop-after out"),
    ],
)
@pytest.mark.parametrize("epochs", [0, 1])
def test_what_a_trunk_that_freezes_late_does_not_go_with_is_refused(
    more: dict[str, Any], remedy: str, epochs: int
) -> None:
    late = {"trunk": "train", "freeze_after": 1.5, "send_epochs": epochs}
    with pytest.raises(SettingError, match=rf"--freeze-after 1\.5 with (.|\n)*{remedy}"):
        check_send_epochs(settings(**late | more))
    check_send_epochs(settings(**late))


def test_while_a_trunk_learns_images_may_be_augmented_though_each_is_sent_once() -> None:
    check_send_epochs(settings(trunk="train", freeze_after=3.0, augment="flip"))


def test_the_length_of_a_run_whose_trunk_freezes_late() -> None:
    late = {"trunk": "train", "freeze_after": 3.0, "epochs": 10}
    found = run_length(settings(**late, send_epochs=2), 7)
    assert found == RunLength(70, 35, 21)
    assert (found.alone, found.first_kept) == (35, 21)
    assert [found.is_final(step) for step in (20, 21)] == [False, True]
    assert [found.trunk_steps(step) for step in (20, 21, 35)] == [20, 21, 21]
    assert run_length(settings(**late, send_epochs=0), 7) == RunLength(70, 70, 21)
    assert run_length(settings(**late | {"freeze_after": 0.5}), 7).frozen_from == 4, "as `evaluate` rounds"
    for wrong, remedy in (
        ({"epochs": 4}, "choose --epochs above 4"),
        ({"epochs": 3, "send_epochs": 0}, "choose --epochs above 3"),
        ({"freeze_after": 0.0}, "--trunk frozen"),
        ({"freeze_after": 0.05}, "learns in no step"),
    ):
        with pytest.raises(SettingError, match=remedy):
            run_length(settings(**late | wrong), 7)


@pytest.mark.parametrize(("epochs", "plain"), [(0, False), (1, True), (2, False)])
def test_an_image_that_is_sent_once_is_not_augmented_and_several_views_are(epochs: int, plain: bool) -> None:
    """Two images a batch and twelve in all; two and a half epochs."""
    how = Preprocessing((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    split = ArraySplit(np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8), np.arange(12))
    ours = settings(trunk="train", freeze_after=2.5, send_epochs=epochs, epochs=9)
    with closing(Loader(split, how, 2, augment=parse_augmentation("flip"))) as loader:
        begin_epochs_anew(loader, ours, run_length(ours, loader.steps_per_epoch))
        own = loader.plain(np.arange(12)).images
        for steps, expected in ((range(15), False), (range(15, 21), plain)):
            batches = [loader.batch(step) for step in steps]
            as_they_are = [np.array_equal(own[batch.labels], batch.images) for batch in batches]
            assert all(as_they_are) is expected
        assert sorted(label for batch in batches for label in batch.labels) == list(range(12))


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
    assert "freeze_after" not in settings().fixed("d", ("fp32", "fp32"), shape, 1)
    assert settings(freeze_after=2.0).fixed("d", ("fp32", "fp32"), shape, 1)["freeze_after"] == 2.0


def test_the_steps_are_kept_with_the_run_from_its_first_start_on(tmp_path: Path) -> None:
    """A run that has done no step takes others; one of a version that did not keep them goes on."""
    late = settings(run=tmp_path, trunk="train", freeze_after=1.5, send_epochs=2)
    steps, moved, fixed = RunLength(40, 35, 15), RunLength(40, 37, 17), {"seed": 0}
    kept = {"seed": 0, "frozen_from": 15, "sent_steps": 35}
    assert with_steps(settings(run=tmp_path, send_epochs=0), fixed, RunLength(40, 40)) == fixed
    assert with_steps(settings(run=tmp_path), fixed, RunLength(40, 10)) == {"seed": 0, "sent_steps": 10}
    with closing(RunDir(tmp_path, with_steps(late, fixed, steps), {})):
        assert with_steps(late, fixed, steps) == kept
        assert with_steps(late, fixed, moved) == {"seed": 0, "frozen_from": 17, "sent_steps": 37}
    with closing(RunDir(tmp_path, with_steps(late, fixed, steps), {})) as run_dir:
        run_dir.metric(kind="step", step=0)
    with closing(RunDir(tmp_path, with_steps(late, fixed, steps), {})):
        words = r"at step 15 \(--freeze-after 1\.5\) and sends 35 steps \(.*would be step 17 and 37 steps"
        with pytest.raises(CheckpointError, match=words):
            with_steps(late, fixed, moved)
    assert with_steps(settings(run=tmp_path, freeze_after=1.5, fresh=True), fixed, moved)["frozen_from"] == 17
    with pytest.raises(CheckpointError, match="seed was 0, is 1; frozen_from was 15, is 17"):
        RunDir(tmp_path, with_steps(late, {"seed": 1}, moved), {})
    with closing(RunDir(tmp_path / "old", fixed, {})) as run_dir:
        run_dir.metric(kind="step", step=0)
    old = settings(run=tmp_path / "old", send_epochs=2)
    assert with_steps(old, fixed, RunLength(40, 22)) == fixed


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
    late = sent_steps(ours, cut, manifest, RunLength(30, 10, 6), 100)
    assert late is not UNSET
    assert (late.first, late.steps) == (6, 10)
    assert wish.bytes - late.bytes == pytest.approx(6 / 10 * (wish.bytes - test), rel=0.1)


def test_the_wish_tells_the_bytes_of_the_epochs_that_are_sent_each_in_its_precision(bundle: Bundle) -> None:
    wishes: dict[str, int] = {}
    for precision in ("fp32", "int8", "fp32,int8", "fp32,int8,pca1"):
        ours = settings(precision=precision, send_epochs=2, epochs=4)
        wish = sent_steps(ours, RunCut(ours, bundle.manifest), bundle.manifest, RunLength(40, 20), 100)
        assert wish is not UNSET
        wishes[precision] = wish.bytes
    assert wishes["fp32,int8"] == wishes["fp32,int8,pca1"]
    assert wishes["fp32,int8"] == pytest.approx((wishes["fp32"] + wishes["int8"]) / 2, abs=20)


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


def test_a_trainer_that_would_learn_from_what_a_trunk_sent_while_it_learned_is_refused() -> None:
    hello = msgspec.structs.replace(told(10), sends=SentSteps(3, first=2))
    with pytest.raises(RefusedError, match=r"0\.13\.0, which would learn again(.|\n)*--freeze-after"):
        check_keeps(hello, Welcome(1, 0, 0, 0, 0, 5, 0, 0, "0.13.0", stored=0))
    check_keeps(hello, Welcome(1, 0, 0, 0, 0, 5, 0, 0, "0.14.0", stored=0, keeps_from=2))
    with pytest.raises(RefusedError, match=r"0\.12\.0, which keeps no activations"):
        check_keeps(hello, Welcome(1, 0, 0, 0, 0, 5, 0, 0, "0.12.0"))


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
