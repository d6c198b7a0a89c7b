"""One run: trunk and head in one process, with a real message body each way in each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from adc_edge.arrays import Int64
from adc_edge.codec.precision import encoded_bytes
from adc_edge.data import augment
from adc_edge.data.loader import Batch, Loader
from adc_edge.data.preprocessing import Preprocessing
from adc_edge.data.sources import Dataset, check_labels, load_dataset
from adc_edge.errors import ProtocolError
from adc_edge.evaluation.codecs.base import Codec, CodecBatch
from adc_edge.evaluation.codecs.factory import make_codec
from adc_edge.evaluation.study.records import Guess, Point, Run, Study
from adc_edge.evaluation.study.resuming import Unfinished
from adc_edge.evaluation.study.setting import Setting
from adc_edge.evaluation.study.wire import Counted, Wire
from adc_edge.machine.description import describe_machine
from adc_edge.method.spec import TrunkSpec
from adc_edge.method.split import Head, create_vit, load_vit, preprocessing, split_vit
from adc_edge.method.trunk import Trunk
from adc_edge.optimizer.torch_optimizer import Optimizer
from adc_edge.wire.messages import TRIPLE_BYTES

MakeCodec = Callable[[Setting, TrunkSpec, int, int], Codec]  # setting, trunk, C classes, seed

_TEST_BATCH = 250
_CHANCE = 7  # random stream of a step, apart from the loader's


class SplitModel(NamedTuple):
    """Trunk and head with the codec between them, their optimizers, and the torch device of all."""

    trunk: Trunk
    head: Head
    codec: Codec
    optimizers: tuple[Optimizer, Optimizer]
    place: torch.device


def sampled(dataset: Dataset, study: Study) -> Dataset:
    """Take the study's fixed random sample of a data set."""
    return Dataset(
        _sample(dataset.train, study.train_images), _sample(dataset.test, study.test_images), dataset.classes
    )


class _Sampled:
    """Some images of a split."""

    def __init__(self, split: Any, chosen: Int64) -> None:
        self._split, self._chosen = split, chosen
        self.labels = split.labels[chosen]

    def image(self, index: int) -> Any:
        return self._split.image(int(self._chosen[index]))


def _sample(split: Any, images: int) -> Any:
    if not 0 < images < len(split.labels):
        return split
    return _Sampled(split, np.sort(np.random.default_rng(0).permutation(len(split.labels))[:images]))


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
) -> Run:
    """Train one setting from the study's weights. One seed gives every method the same images in the same order.

    Args:
        study: the task.
        setting: the method with its ratio and precisions.
        seed: random seed for data order, augmentation, a new classifier and the method's random choices.
        wire: carries the bodies; default: their bytes are counted only.
        progress: called with the share of the run that is done: at the start and after each step.
        dataset: the study's full data set, if it is loaded already.
        make: makes the codec; default: the setting's own. `benchmarks/ideas.py` has others.
        allow_broken: accept any number of broken images.
        unfinished: where the run goes on from, and where it is kept at each evaluation but the last; without ``wire``.

    Raises:
        ProtocolError: training diverged (code ``nan``).
    """
    data = sampled(dataset or load_dataset(study.data), study)
    check_labels(data, len(data.classes))
    parts, preparation = make_split_model(study, setting, seed, len(data.classes), make)
    curve = [] if unfinished is None else unfinished.restore(parts)
    wire = wire or (Counted(curve[-1].bytes_up, curve[-1].bytes_down) if curve else Counted())
    with ExitStack() as stack:
        changes = augment.parse_augmentation(study.augment)
        loader = Loader(data.train, preparation, study.batch_size, seed, changes, allow_broken=allow_broken)
        stack.callback(loader.close)
        test = Loader(data.test, preparation, min(_TEST_BATCH, len(data.test.labels)), allow_broken=allow_broken)
        stack.callback(test.close)
        tests = [test.plain(indices) for indices in test.sample(0)]
        end = _End(study, loader.steps_per_epoch, uncompressed_step_bytes(parts.trunk.spec, study.batch_size))
        step, earlier = (curve[-1].step, curve[-1].seconds) if curve else (0, 0.0)
        start, losses = time.monotonic() - earlier, list[float]()
        progress(end.done(step, wire))
        while not end.reached(step, wire):
            losses.append(_step(parts, study, loader, step, wire))
            step += 1
            if end.evaluates(step, wire):
                accuracy, through = _judge(parts, study, tests)
                epoch, loss, seconds = step / loader.steps_per_epoch, float(np.mean(losses)), time.monotonic() - start
                curve.append(Point(step, epoch, wire.bytes_up, wire.bytes_down, accuracy, through, loss, seconds))
                losses = []
                if unfinished is not None and not end.reached(step, wire):
                    unfinished.save(parts, curve)
            progress(end.done(step, wire))
    ratio = parts.codec.ratio(study.batch_size)
    about = describe_machine(threads=torch.get_num_threads(), device=study.device, compute=study.compute)
    shown = np.concatenate([batch.labels for batch in tests])
    guess = Guess(len(shown), float(np.bincount(shown).max() / len(shown)))
    return Run(str(setting), seed, ratio, end.uncompressed_step_bytes, end.steps_per_epoch, tuple(curve), about, guess)


class _End(NamedTuple):
    """The rule for when a run ends and when it is evaluated."""

    study: Study
    steps_per_epoch: int
    uncompressed_step_bytes: int

    @property
    def least(self) -> int:
        """Steps of the study's epochs: the minimum of every run."""
        return max(1, round(self.study.epochs * self.steps_per_epoch))

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


def make_split_model(
    study: Study, setting: Setting, seed: int, classes: int, make: MakeCodec = make_codec
) -> tuple[SplitModel, Preprocessing]:
    """Make the split model of a setting from the study's weights, and the preprocessing of its images."""
    torch.manual_seed(seed)  # for a new classifier
    vit = create_vit(study.model, study.model_args, classes, *_origin(study))
    trunk, head = split_vit(vit, study.split)
    place = torch.device(study.device)
    codec = make(setting, trunk.spec, classes, seed)
    codec.place = place
    sides = ((trunk, codec.device), (head, codec.trainer))
    halves = [nn.ModuleList(m for m in side if m is not None).to(place) for side in sides]
    optimizers = Optimizer(halves[0], study.optimizer), Optimizer(halves[1], study.optimizer)
    own = preprocessing(vit)
    preparation = own if study.crop_pct == "model" else msgspec.structs.replace(own, crop_pct=study.crop_pct)
    return SplitModel(trunk, head, codec, optimizers, place), preparation


def check_model(study: Study, classes: int) -> None:
    """Make the study's model and log what it loaded, so that one that does not fit is refused before the first run.

    Raises:
        ModelError: the model or its weights cannot be used.
    """
    vit, loaded = load_vit(study.model, study.model_args, classes, *_origin(study))
    if loaded is not None:
        loaded.log()
    split_vit(vit, study.split)


def _origin(study: Study) -> tuple[Path | None, bool, tuple[str, ...]]:
    """Return where the weights are from, and the tensors that they may lack."""
    weights = None if study.weights is None else Path(study.weights)
    return weights, study.pretrained, () if study.allow_missing is msgspec.UNSET else study.allow_missing


def _step(parts: SplitModel, study: Study, loader: Loader, step: int, wire: Wire) -> float:
    """Make one step on both sides; return the loss."""
    codec = parts.codec
    for module in (parts.trunk, parts.head, codec.device, codec.trainer):
        if module is not None:
            module.train()
    images, labels = loader.batch(step)
    rng = np.random.default_rng([loader.seed, _CHANCE, step])
    with computing(study):
        sent = codec.compress(parts.trunk, CodecBatch(torch.from_numpy(images).to(parts.place), labels, rng))
    body = wire.up(sent.header, sent.body, codec, step)
    with computing(study):
        arrived = codec.extract(sent.header, body)
        logits = parts.head(arrived.features)
    loss = F.cross_entropy(logits.float(), arrived.soft)
    value = loss.item()
    if not np.isfinite(value):
        raise ProtocolError(
            f"a loss of {value} in step {step}", "a finite loss", "lower --lr or set --clip-norm", "nan"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    assert arrived.values.grad is not None
    body = wire.down(codec.compress_gradient(arrived, arrived.values.grad), codec, step, value)
    sent.tensor.backward(codec.extract_gradient(sent, body))  # type: ignore[no-untyped-call]
    for optimizer in parts.optimizers:
        optimizer.step(step, round(study.epochs * loader.steps_per_epoch))
    return value


@torch.no_grad()
def _judge(parts: SplitModel, study: Study, batches: Sequence[Batch]) -> tuple[float, float | None]:
    """Test accuracy without compression, and with the method's compression (None: it does not compress at test)."""
    codec = parts.codec
    for module in (parts.trunk, parts.head, codec.device, codec.trainer):
        if module is not None:
            module.eval()
    right, right_through, images = 0, 0, 0
    compresses = False
    for batch in batches:
        labels = torch.from_numpy(batch.labels).to(parts.place)
        with computing(study):
            features = parts.trunk(torch.from_numpy(batch.images).to(parts.place))
            through = codec.through(features)
            right += _correct(parts.head(features), labels)
            if through is not None:
                compresses = True
                right_through += _correct(parts.head(through), labels)
        images += len(labels)
    return right / images, right_through / images if compresses else None


def _correct(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(dim=1) == labels).sum())


@contextmanager
def computing(study: Study) -> Iterator[None]:
    """Compute in bfloat16 if the study says so, with plain attention on a CPU: fused is several times slower there."""
    with ExitStack() as stack:
        if study.compute == "bf16":
            stack.enter_context(torch.autocast(torch.device(study.device).type, dtype=torch.bfloat16))
            if study.device == "cpu":
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
