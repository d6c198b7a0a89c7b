"""One run: trunks and head in one process, with a real message body each way in each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import NamedTuple

import torch

from adc_edge.codec.precision import encoded_bytes
from adc_edge.data import augment
from adc_edge.data.loader import Batch, Loader
from adc_edge.data.preprocessing import Preprocessing
from adc_edge.data.sources import Dataset, Split, check_labels, load_dataset
from adc_edge.evaluation.codecs.factory import make_codec
from adc_edge.evaluation.fleet.devices import StudyDevices
from adc_edge.evaluation.fleet.partition import divided
from adc_edge.evaluation.fleet.setting import StudyFleet
from adc_edge.evaluation.study.accuracy import guess_of, point_of
from adc_edge.evaluation.study.records import Point, Run, Study
from adc_edge.evaluation.study.resuming import Unfinished
from adc_edge.evaluation.study.samples import sampled
from adc_edge.evaluation.study.sent_once import FrozenPhase
from adc_edge.evaluation.study.setting import Setting
from adc_edge.evaluation.study.split_model import MakeCodec, SplitModel, make_split_model
from adc_edge.evaluation.study.steps import StudySteps
from adc_edge.evaluation.study.wire import Counted, Wire
from adc_edge.machine.description import describe_machine
from adc_edge.method.spec import TrunkSpec
from adc_edge.method.token_augmentation import TokenAugmentation
from adc_edge.wire.messages import TRIPLE_BYTES

OnEvaluation = Callable[[Point, Sequence[SplitModel], Sequence[Batch]], None]
_TEST_BATCH = 250
_ANOTHER_SEED = 2**32  # between the seeds of two devices


def train(
    study: Study,
    setting: Setting,
    seed: int,
    wire: Wire | None = None,
    progress: Callable[[float], None] = lambda share: None,
    dataset: Dataset | None = None,
    make: MakeCodec = make_codec,
    allow_broken: bool = False,
    unfinished: Unfinished | None = None,
    fleet: StudyFleet | None = None,
    judged: OnEvaluation = lambda point, trunks, tests: None,
) -> Run:
    """Train one setting from the study's weights. One seed gives every method the same images in the same order.

    Args:
        study: the task.
        setting: the method with its ratio and precisions.
        seed: random seed for data order, augmentation, a new classifier, the method's random choices and a partition.
        wire: carries the bodies; default: their bytes are counted only.
        progress: called with the share of the run that is done: at the start and after each step.
        dataset: the study's full data set, if it is loaded already.
        make: makes the codec; default: the setting's own. `benchmarks/ideas.py` has others.
        allow_broken: accept any number of broken images.
        unfinished: where the run goes on from, and where it is kept at each evaluation but the last; without ``wire``.
        fleet: the devices, which make as many steps in all as one; None: one with all images.
        judged: called after each evaluation with it, the trunks that were judged and the test images.

    Raises:
        ProtocolError: training diverged (code ``nan``).
        SettingError: a device of the fleet has less than one batch.
    """
    data = sampled(dataset or load_dataset(study.data), study)
    check_labels(data, len(data.classes))
    first, preparation = make_split_model(study, setting, seed, len(data.classes), make)
    with ExitStack() as stack:
        splits = _splits(data.train, study, fleet, seed)
        loaders = [
            _loader(split, study, preparation, seed + device * _ANOTHER_SEED, allow_broken, stack)
            for device, split in enumerate(splits)
        ]
        devices = StudyDevices(fleet or StudyFleet(1), first, loaders, study.trunk_optimizer)
        curve = [] if unfinished is None else unfinished.restore(devices)
        wire = wire or (Counted(curve[-1].bytes_up, curve[-1].bytes_down) if curve else Counted())
        tests = _tests(data.test, preparation, allow_broken)
        uncompressed = uncompressed_step_bytes(first.trunk.spec, study.batch_size)
        end = _End(study, len(data.train.labels) // study.batch_size, uncompressed)
        frozen = _frozen(study, setting, seed, end, data.train, preparation, allow_broken, stack)
        step, earlier = (curve[-1].step, curve[-1].seconds) if curve else (0, 0.0)
        steps = StudySteps(devices, study, frozen, setting.by_epoch)
        start, losses = time.monotonic() - earlier, list[float]()
        progress(end.done(step, wire))
        steps.begin(step, wire)
        while not end.reached(step, wire):
            losses.append(steps.make(step, wire, end.planned))
            step += 1
            devices.bring_together(step, end.reached(step, wire), wire)
            if end.evaluates(step, wire):
                seconds = time.monotonic() - start
                curve.append(point_of(devices, study, tests, end.epoch(step), step, wire, losses, seconds))
                judged(curve[-1], devices.trunks(step), tests)
                losses = []
                if unfinished is not None and not end.reached(step, wire):
                    unfinished.save(devices, curve)
            progress(end.done(step, wire))
    return Run(
        str(setting),
        seed,
        first.codec.ratio(study.batch_size),
        uncompressed,
        end.steps_per_epoch,
        tuple(curve),
        describe_machine(threads=torch.get_num_threads(), device=study.device, compute=study.compute),
        guess_of(tests),
        fleet,
        () if fleet is None else tuple(len(split.labels) for split in splits),
    )


def _splits(train: Split, study: Study, fleet: StudyFleet | None, seed: int) -> list[Split]:
    """The training images of each device."""
    return [train] if fleet is None else divided(train, fleet.devices, fleet.partition, study.batch_size, seed)


def _tests(split: Split, preparation: Preprocessing, allow_broken: bool) -> list[Batch]:
    """All test images, in batches."""
    loader = Loader(split, preparation, min(_TEST_BATCH, len(split.labels)), allow_broken=allow_broken)
    with closing(loader):
        return [loader.plain(indices) for indices in loader.sample(0)]


def _loader(
    split: Split,
    study: Study,
    preparation: Preprocessing,
    seed: int,
    allow_broken: bool,
    stack: ExitStack,
    augmented: bool = True,
) -> Loader:
    changes = augment.parse_augmentation(study.augment) if augmented else ()
    loader = Loader(split, preparation, study.batch_size, seed, changes, allow_broken=allow_broken)
    stack.callback(loader.close)
    return loader


def _frozen(
    study: Study,
    setting: Setting,
    seed: int,
    end: _End,
    train: Split,
    preparation: Preprocessing,
    allow_broken: bool,
    stack: ExitStack,
) -> FrozenPhase | None:
    """The phase of a run after its trunk is frozen, if there is one."""
    if setting.freeze is None:
        return None
    loader = _loader(train, study, preparation, seed, allow_broken, stack, augmented=setting.passes > 1)
    first_step, alone_from = setting.frozen_from(end.steps_per_epoch), setting.alone_from(end.steps_per_epoch)
    augmentation = TokenAugmentation(drop=study.store_drop or 0.0, mix=study.store_mix or 0.0)
    return FrozenPhase(int(first_step), int(alone_from), loader, augmentation)


class _End(NamedTuple):
    """The rule for when a run ends and when it is evaluated."""

    study: Study
    steps_per_epoch: int
    uncompressed_step_bytes: int

    @property
    def planned(self) -> int:
        """Steps of the study's epochs."""
        return round(self.study.epochs * self.steps_per_epoch)

    @property
    def least(self) -> int:
        """Steps of the study's epochs, at least one: the minimum of every run."""
        return max(1, self.planned)

    def epoch(self, step: int) -> float:
        """Epochs of all images after ``step`` steps."""
        return step / self.steps_per_epoch

    def reached(self, step: int, wire: Wire) -> bool:
        """Whether the run ends after ``step`` steps."""
        return self.done(step, wire) >= 1.0

    def done(self, step: int, wire: Wire) -> float:
        """Share of the run that is done after ``step`` steps."""
        study, least = self.study, self.least
        if study.budget is None:
            return step / least
        most = round((study.max_epochs or study.epochs) * self.steps_per_epoch)
        spent = (wire.bytes_up + wire.bytes_down) / (study.budget * least * self.uncompressed_step_bytes)
        return min(step / least, max(spent, step / most))

    def evaluates(self, step: int, wire: Wire) -> bool:
        """Whether the model is evaluated after ``step`` steps: at regular intervals, after the epochs, at the end."""
        every = max(1, round(self.study.evaluate_every * self.steps_per_epoch))
        return step % every == 0 or step == self.least or self.reached(step, wire)


def uncompressed_step_bytes(spec: TrunkSpec, images: int) -> int:
    """Bytes of both bodies of a step of plain split learning at fp32, without framing."""
    tensor = encoded_bytes((images, spec.tokens, spec.embed_dim), "fp32")
    return 2 * tensor + TRIPLE_BYTES * images
