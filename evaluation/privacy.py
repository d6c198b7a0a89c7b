"""How much of its images a device gives away: what one attack makes of what travels up.

The attacker is the trainer: honest, but curious. It knows the trunk as training starts (the bundle; both halves come
from public weights) and has images of the same kind, the train split. On these it plays the device, and so learns an
inverter: a small transformer from what arrived to images. It is judged on the test split, which it has not seen.

Of a batch it takes ``codec.extract(header, body).features`` alone, whose bytes have been through the encoders; labels
it leaves aside. ADC does not tell which tokens a row has: the attacker knows their rank and has to read their places
from the position embedding in them. It makes one image of a row, so of images that were merged it knows at best the
mean; that one is held against each of them.

A measurement of one attack, no bound: more images, more time or a better inverter may find more.

Letters: as in `adc_edge.evaluation.codec`; C colours here, H and W pixels, w the inverter's width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from adc_edge import augment
from adc_edge.data import Dataset, Split, load
from adc_edge.errors import DataError
from adc_edge.evaluation.adc_codec import Adc
from adc_edge.evaluation.codec import Batch, Codec
from adc_edge.evaluation.setting import Setting
from adc_edge.evaluation.study import Study
from adc_edge.evaluation.training import _computing, _make, sampled
from adc_edge.learning import OptimizerSettings
from adc_edge.loader import Batch as LoadedBatch
from adc_edge.loader import Loader
from adc_edge.optim import Optimizer
from adc_edge.precision import Float32, encoded_bytes
from adc_edge.protocol import TRIPLE_BYTES
from adc_edge.spec import TrunkSpec
from adc_edge.trunk import Trunk

UInt8 = npt.NDArray[np.uint8]

EXAMPLES = 8
BEST_DB = 100.0  # of an exact copy, which has no finite PSNR
_WIDTH, _HEADS, _LAYERS = 128, 4, 3
_LEARNING_RATE, _WARM_UP = 1e-3, 0.05  # share of the steps
_WINDOW = 7  # of SSIM, scikit-image's own
_TRAIN, _TEST = 8, 9  # streams of random numbers, beside the loader's


class Leak(msgspec.Struct, frozen=True):
    """What one attack found: means over all images, each against the image made of its row. Pixels are 0..1."""

    setting: str
    seed: int
    ratio: float  # values sent up, as a share
    share_up: float  # bytes of a body up, as a share of an uncompressed one
    psnr_db: float
    ssim: float
    psnr_db_mean_image: float  # of who knows nothing but the mean of the training images
    ssim_mean_image: float
    images: int  # attacked
    images_a_row: float  # merged into one, on average


class Examples(NamedTuple):
    """The first images attacked, and what came back: uint8 ``[n, H, W, C]``."""

    originals: UInt8
    reconstructions: UInt8


class View(NamedTuple):
    """A batch as the trainer gets it, and what only who plays the device knows: whose is what."""

    features: Tensor  # [R, k, D] float32
    rows: Tensor  # [B] int64: the row that an image went into
    bytes_up: int


class Inverter(nn.Module):
    """A row's tokens ``[R, k, D]`` to its image ``[R, C, H, W]``, pixels about 0..1.

    Each patch asks: a learned query attends to the row's tokens and to the other patches. Untrained, it gives the mean
    image.

    Args:
        spec: of the trunk.
        features: rows to learn the scale of each channel from.
        mean: the mean training image ``[H, W, C]``.
        deviation: of pixels from it.
    """

    def __init__(self, spec: TrunkSpec, features: Tensor, mean: Tensor, deviation: float) -> None:
        super().__init__()
        self.spec, self.deviation = spec, deviation
        self.mean = nn.Buffer(mean.movedim(-1, 0))
        self.centre = nn.Buffer(features.mean((0, 1)))
        self.spread = nn.Buffer(features.std((0, 1)).clamp_min(1e-6))
        down, across = spec.patch_size
        self.enter = nn.Linear(spec.embed_dim, _WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(features.shape[1], _WIDTH))
        self.queries = nn.Parameter(0.02 * torch.randn(spec.patches, _WIDTH))
        layer = nn.TransformerDecoderLayer(_WIDTH, _HEADS, 4 * _WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, _LAYERS, nn.LayerNorm(_WIDTH))
        self.leave = nn.Linear(_WIDTH, spec.channels * down * across)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, features: Tensor) -> Tensor:
        """The image of each row."""
        tokens = self.enter((features - self.centre) / self.spread) + self.places  # [R, k, w]
        patches = self.leave(self.layers(self.queries.expand(len(features), -1, -1), tokens))  # [R, patches, C*h*w]
        size, patch = self.spec.image_size, self.spec.patch_size
        return self.mean + self.deviation * F.fold(patches.transpose(1, 2), size, patch, stride=patch)


def look(codec: Codec, trunk: Trunk, batch: Batch) -> View:
    """Send a batch as in training and take it as the trainer."""
    with torch.no_grad():
        rows = _rows(codec, trunk, batch._replace(rng=copy.deepcopy(batch.rng)))
        sent = codec.compress(trunk, batch)
        arrived = codec.extract(sent.header, memoryview(bytes(sent.body)))
    return View(arrived.features.detach().float(), rows, len(sent.body))


def _rows(codec: Codec, trunk: Trunk, batch: Batch) -> Tensor:
    """The row of each image: int64 ``[B]``."""
    if not isinstance(codec, Adc):
        return torch.arange(len(batch.labels))
    found = codec.choose(trunk, batch)
    return (torch.cumsum(found.counts > 0, 0) - 1)[found.assignment].cpu()  # numbered without the empty ones


def invert(
    study: Study,
    setting: Setting,
    seed: int,
    epochs: float,
    tell: Callable[[float], None] = lambda share: None,
    dataset: Dataset | None = None,
) -> tuple[Leak, Examples]:
    """Attack one setting: learn on the train split, augmented as in the study, and judge on the test split.

    Both splits are taken in whole batches of the study's size, as what merges depends on it.

    Args:
        study: model, data and batches; how its halves learn has no part in this.
        setting: the method.
        seed: of order, augmentation, the inverter and whatever the method draws.
        epochs: of the inverter.
        tell: told which share of the attack is done.
        dataset: the study's, if it has been loaded; not sampled yet.

    Raises:
        DataError: a split is smaller than a batch.
    """
    data = sampled(dataset or load(study.data), study)
    for name, split in (("training", data.train), ("test", data.test)):
        if len(split.labels) < study.batch_size:
            raise DataError(f"{len(split.labels)} {name} images", f"a batch of {study.batch_size}", "lower --batch-size")
    attack = _Attack(study, setting, seed, len(data.classes))
    inverter, mean = attack.learn(data.train, epochs, tell)
    return attack.judge(data.test, inverter, mean)


class Scores(NamedTuple):
    """One for each image."""

    psnr_db: npt.NDArray[np.float64]
    ssim: npt.NDArray[np.float64]


def score(originals: Float32, reconstructions: Float32) -> Scores:
    """PSNR and SSIM of images ``[n, H, W, C]`` in 0..1."""
    found = [_score(*pair) for pair in zip(originals, reconstructions, strict=True)]
    return Scores(*np.array(found, np.float64).reshape(-1, 2).T)


def _score(original: Float32, image: Float32) -> tuple[float, float]:
    side = min(original.shape[:2])
    window = min(_WINDOW, side - 1 + side % 2)  # odd
    ssim = structural_similarity(original, image, data_range=1.0, channel_axis=-1, win_size=window)
    with np.errstate(divide="ignore"):
        return min(BEST_DB, peak_signal_noise_ratio(original, image, data_range=1.0)), ssim


class _Attack:
    """Device and attacker at one setting."""

    def __init__(self, study: Study, setting: Setting, seed: int, classes: int) -> None:
        self.study, self.setting, self.seed = study, setting, seed
        parts, self.how = _make(study, setting, seed, classes)
        self.trunk, self.codec, self.place = parts.trunk, parts.codec, parts.place
        for module in (self.trunk, self.codec.device, self.codec.trainer):
            if module is not None:
                module.train()  # as in training's first step

    def learn(self, split: Split, epochs: float, tell: Callable[[float], None]) -> tuple[Inverter, Float32]:
        """An inverter, and the mean image ``[H, W, C]``."""
        with closing(self._loader(split, self.study.augment)) as loader:
            mean, deviation = self._pixels(loader)
            steps = max(1, round(epochs * loader.steps_per_epoch))
            inverter = self._inverter(self._view(loader.batch(0), _TRAIN, 0).features, mean, deviation)
            optimizer = Optimizer(inverter, _learning(steps))
            for step in range(steps):
                batch = loader.batch(step)
                view = self._view(batch, _TRAIN, step)
                target = torch.from_numpy(self._shown(batch.images)).to(self.place)  # [B, H, W, C]
                images = inverter(view.features).permute(0, 2, 3, 1)[view.rows]
                F.mse_loss(images, target).backward()  # type: ignore[no-untyped-call]
                optimizer.step(step, steps)
                tell((step + 1) / steps)
        return inverter.eval(), mean

    def judge(self, split: Split, inverter: Inverter, mean: Float32) -> tuple[Leak, Examples]:
        """The leak from images that the inverter has not seen."""
        found, guessed, rows, sizes = [], [], 0, []
        examples: Examples | None = None
        with closing(self._loader(split, "none")) as loader:
            for step in range(loader.steps_per_epoch):
                batch = loader.batch(step)
                view = self._view(batch, _TEST, step)
                with torch.no_grad():
                    images = inverter(view.features).clamp(0, 1).permute(0, 2, 3, 1).cpu()[view.rows].numpy()
                originals = self._shown(batch.images)
                examples = examples or Examples(_bytes(originals), _bytes(images))
                found.append(score(originals, images))
                guessed.append(score(originals, np.broadcast_to(mean, originals.shape)))
                rows += len(view.features)
                sizes.append(view.bytes_up)
        assert examples is not None
        spec, size = self.trunk.spec, self.study.batch_size
        whole = encoded_bytes((size, spec.tokens, spec.embed_dim), "fp32") + TRIPLE_BYTES * size
        leak = Leak(
            str(self.setting),
            self.seed,
            self.codec.ratio(size),
            float(np.mean(sizes)) / whole,
            *_means(found),
            *_means(guessed),
            images=size * len(sizes),
            images_a_row=size * len(sizes) / rows,
        )
        return leak, examples

    def _loader(self, split: Split, changes: str) -> Loader:
        return Loader(split, self.how, self.study.batch_size, self.seed, augment.parse(changes))

    def _view(self, batch: LoadedBatch, stream: int, step: int) -> View:
        rng = np.random.default_rng([self.seed, stream, step])
        with _computing(self.study):
            images = torch.from_numpy(batch.images).to(self.place)
            view = look(self.codec, self.trunk, Batch(images, batch.labels, rng))
        return view._replace(features=view.features.to(self.place))

    def _inverter(self, features: Tensor, mean: Float32, deviation: float) -> Inverter:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Inverter(self.trunk.spec, features, torch.from_numpy(mean), deviation).to(self.place)

    def _shown(self, images: Float32) -> Float32:
        """Normalised images ``[B, C, H, W]`` as pixels 0..1, ``[B, H, W, C]``."""
        shown = images.transpose(0, 2, 3, 1) * np.float32(self.how.std) + np.float32(self.how.mean)
        return np.ascontiguousarray(shown.clip(0, 1))

    def _pixels(self, loader: Loader) -> tuple[Float32, float]:
        """The mean image ``[H, W, C]``, and how far pixels are from it."""
        first, second, images = np.zeros(1), 0.0, 0
        for indices in loader.sample(0):
            shown = self._shown(loader.plain(indices).images).astype(np.float64)
            first, second, images = first + shown.sum(0), second + np.square(shown).sum(), images + len(shown)
        mean = first / images
        return mean.astype(np.float32), math.sqrt(max(1e-6, second / images / mean.size - np.square(mean).mean()))


def _learning(steps: int) -> OptimizerSettings:
    warm_up = round(_WARM_UP * steps)
    return OptimizerSettings("adam", _LEARNING_RATE, clip_norm=1.0, schedule="cosine", warmup_steps=warm_up)


def _means(scores: Sequence[Scores]) -> tuple[float, float]:
    psnr_db, ssim = (float(np.concatenate(part).mean()) for part in zip(*scores, strict=True))
    return psnr_db, ssim


def _bytes(images: Float32) -> UInt8:
    """The first ones as pixels 0..255."""
    return np.rint(255 * images[:EXAMPLES]).astype(np.uint8)
