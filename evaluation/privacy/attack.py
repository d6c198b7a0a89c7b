"""An attack that reconstructs images from the activations that a device sends.

The attacker is an honest but curious trainer. It knows the trunk at the start of training (both halves come from public
weights) and has images of the same kind: the train split. It runs the device's part on them, and trains an inverter: a
small transformer from activations to images. The test split, which it has not seen, gives the score.

The attack uses ``codec.extract(header, body).features`` of a batch, decoded from the bytes, and no labels. ADC does not
send which tokens a row has: the inverter learns to read their places from their values. It makes one image of a row, so
at best the mean of merged images. This image is compared with each of them.

This measures one attack and is no bound: more images, more time or a better inverter may reveal more.

Letters: as in `adc_edge.evaluation.codecs.base`; C colours here, h and w pixels of a patch, W the inverter's width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from skimage import metrics
from torch import Tensor, nn

from adc_edge.arrays import Float32, Float64, UInt8
from adc_edge.codec.precision import encoded_bytes
from adc_edge.data import augment
from adc_edge.data.loader import Batch, Loader
from adc_edge.data.sources import Dataset, Split, load_dataset
from adc_edge.errors import DataError
from adc_edge.evaluation.codecs.adc import Adc
from adc_edge.evaluation.codecs.base import Codec, CodecBatch
from adc_edge.evaluation.study.records import Study
from adc_edge.evaluation.study.samples import sampled
from adc_edge.evaluation.study.setting import Setting
from adc_edge.evaluation.study.split_model import computing, make_split_model
from adc_edge.method.compressed import drop_empty
from adc_edge.method.spec import TrunkSpec
from adc_edge.method.trunk import Trunk
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.optimizer.torch_optimizer import Optimizer
from adc_edge.wire.messages import TRIPLE_BYTES

EXAMPLES = 8
BEST_DB = 100.0  # PSNR reported for an exact copy, where it is infinite
_WIDTH, _HEADS, _LAYERS = 128, 4, 2
_LEARNING_RATE, _WARM_UP = 3e-3, 0.05  # share of the steps
_WINDOW = 7  # SSIM's window; scikit-image's default
_BEYOND_CHANCE = 2.33  # standard errors
_ROUNDING_DB = 0.01
_TRAIN, _TEST = 8, 9  # random streams, apart from the loader's


class Leak(msgspec.Struct, frozen=True):
    """Scores of one attack: means over all images, each compared with its row's reconstruction. Pixels are 0..1."""

    setting: str
    seed: int
    ratio: float  # share of the values that is sent up
    share_up: float  # bytes sent up, as a share of the uncompressed
    psnr_db: float
    ssim: float
    psnr_db_mean_image: float  # of the mean training image, without any attack
    ssim_mean_image: float
    images: int  # attacked
    images_a_row: float  # merged into one, on average
    gain_sem_db: float = 0.0  # standard error over images of PSNR minus that of the mean image

    @property
    def learned(self) -> bool:
        """Whether the reconstructions are better than the mean image, beyond chance (99 %, one-sided)."""
        return self.psnr_db - self.psnr_db_mean_image > _BEYOND_CHANCE * max(_ROUNDING_DB, self.gain_sem_db)


class Examples(NamedTuple):
    """The first images attacked and their reconstructions: ``[n, H, W, C]``."""

    originals: UInt8
    reconstructions: UInt8


class View(NamedTuple):
    """A batch as the trainer receives it, with the rows and places that only the device knows."""

    features: Tensor  # [R, k, D] float32
    bytes_up: int
    rows: Tensor  # [B] int64: the row that an image is in
    places: Tensor | None  # [R, k] int64 in 0..N-1: the tokens of a row; None: all in order


class Inverter(nn.Module):
    """Maps a row's tokens ``[R, k, D]`` to an image ``[R, C, H, W]``, pixels about 0..1; untrained, to the mean image.

    Each patch has a learned query, plus the token of its place if the row has it. Queries attend to one another and to
    all tokens.

    Args:
        spec: sizes of the trunk.
        view: gives the scale of each channel, and whether the trainer knows the tokens' places.
        mean: the mean training image ``[H, W, C]``.
        deviation: standard deviation of pixels from it.
    """

    def __init__(self, spec: TrunkSpec, view: View, mean: Tensor, deviation: float) -> None:
        super().__init__()
        self.spec, self.deviation = spec, deviation
        self.mean = nn.Buffer(mean.movedim(-1, 0))
        self.centre = nn.Buffer(view.features.mean((0, 1)))
        self.spread = nn.Buffer(view.features.std((0, 1)).clamp_min(1e-6))
        hidden = nn.Linear(spec.embed_dim, _WIDTH), nn.GELU()
        self.place = None if view.places is None else nn.Sequential(*hidden, nn.Linear(_WIDTH, spec.tokens))
        self.enter = nn.Linear(spec.embed_dim, _WIDTH)
        self.own = nn.Linear(spec.embed_dim, _WIDTH)
        self.ranks = nn.Parameter(0.02 * torch.randn(view.features.shape[1], _WIDTH))
        self.queries = nn.Parameter(0.02 * torch.randn(spec.patches, _WIDTH))
        layer = nn.TransformerDecoderLayer(_WIDTH, _HEADS, 4 * _WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, _LAYERS, nn.LayerNorm(_WIDTH))
        self.leave = nn.Linear(_WIDTH, spec.channels * math.prod(spec.patch_size))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """The image of each row, and logits ``[R, k, N]`` of its tokens' places (None if they are known)."""
        x = (features - self.centre) / self.spread  # [R, k, D]
        logits, own = None, self.own(x)  # [R, k, W]
        if self.place is not None:
            logits = self.place(x)
            own = logits.softmax(-1).transpose(1, 2) @ own  # [R, N, W]
        queries = self.queries + own[:, self.spec.prefix :]
        patches = self.leave(self.layers(queries, self.enter(x) + self.ranks))  # [R, patches, C*h*w]
        size, patch = self.spec.image_size, self.spec.patch_size
        change = F.fold(patches.transpose(1, 2), size, patch, stride=patch)  # [R, C, H, W]
        return self.mean + self.deviation * change, logits

    def loss(self, view: View, images: Tensor) -> Tensor:
        """The loss of pixels, relative to the mean image's, plus the loss of places.

        Args:
            view: a batch with its ``rows`` and ``places``.
            images: the originals ``[B, C, H, W]``, 0..1.
        """
        made, logits = self(view.features)
        loss = F.mse_loss(made[view.rows], images) / self.deviation**2
        if logits is None or view.places is None:
            return loss
        return loss + F.cross_entropy(logits.flatten(0, 1), view.places.flatten())


def look(codec: Codec, trunk: Trunk, batch: CodecBatch) -> View:
    """Send a batch as in training, and decode it as the trainer."""
    with torch.no_grad():
        again = batch._replace(rng=copy.deepcopy(batch.rng))
        sent = codec.compress(trunk, batch)
        features = codec.extract(sent.header, memoryview(bytes(sent.body))).features.detach().float()
        if not isinstance(codec, Adc):
            return View(features, len(sent.body), torch.arange(len(batch.labels)), None)
        found = codec.choose(trunk, again)
    _, rows, tokens = drop_empty(*found)
    return View(features, len(sent.body), rows, tokens)


def score(originals: Float32, reconstructions: Float32) -> Float64:
    """PSNR in dB and SSIM, ``[n, 2]``, of images ``[n, H, W, C]`` in 0..1."""
    return np.array([_score(*pair) for pair in zip(originals, reconstructions, strict=True)], np.float64)


def _score(original: Float32, image: Float32) -> tuple[float, float]:
    side = min(original.shape[:2])
    window = min(_WINDOW, side - 1 + side % 2)  # odd
    measure: Any = metrics  # without types
    ssim = measure.structural_similarity(original, image, data_range=1.0, channel_axis=-1, win_size=window)
    with np.errstate(divide="ignore"):
        return min(BEST_DB, measure.peak_signal_noise_ratio(original, image, data_range=1.0)), ssim


def invert(
    study: Study,
    setting: Setting,
    seed: int,
    epochs: float,
    progress: Callable[[float], None] = lambda share: None,
    dataset: Dataset | None = None,
    allow_broken: bool = False,
) -> tuple[Leak, Examples]:
    """Attack one setting: train an inverter on the augmented train split, and score it on the test split.

    Both splits come in full batches of the study's size, because the merging depends on it.

    Args:
        study: model, data and batches; the attack does not use its optimizer and length.
        setting: the method with its ratio and precisions.
        seed: random seed for data order, augmentation, the inverter and the method's random choices.
        epochs: length of the inverter's training.
        progress: called with the share of the training that is done.
        dataset: the study's full data set, if it is loaded already.
        allow_broken: accept any number of broken images.

    Raises:
        DataError: a split is smaller than a batch, or too much of it is broken.
    """
    data, size = sampled(dataset or load_dataset(study.data), study), study.batch_size
    for name, split in (("train", data.train), ("test", data.test)):
        if len(split.labels) < size:
            images = f"{len(split.labels)} images in the {name} split"
            raise DataError(images, f"at least one batch of {size}", "lower --batch-size, or take more images")
    attack = _Attack(study, setting, seed, len(data.classes), allow_broken)
    inverter, mean = attack.learn(data.train, epochs, progress)
    return attack.judge(data.test, inverter, mean)


class _Attack:
    """Device and attacker at one setting."""

    def __init__(self, study: Study, setting: Setting, seed: int, classes: int, allow_broken: bool) -> None:
        self.study, self.setting, self.seed, self.allow_broken = study, setting, seed, allow_broken
        parts, self.preprocessing = make_split_model(study, setting, seed, classes)
        self.trunk, self.codec, self.place = parts.trunk, parts.codec, parts.place
        for module in (self.trunk, self.codec.device, self.codec.trainer):
            if module is not None:
                module.train()  # the mode of training's first step

    def learn(self, split: Split, epochs: float, progress: Callable[[float], None]) -> tuple[Inverter, Float32]:
        """Train an inverter; return it and the mean image ``[H, W, C]``."""
        with closing(self._loader(split, self.study.augment)) as loader:
            mean, deviation = self._pixels(loader)
            steps = max(1, round(epochs * loader.steps_per_epoch))
            inverter = self._inverter(self._view(loader.batch(0), _TRAIN, 0), mean, deviation)
            rate = OptimizerSettings("adam", _LEARNING_RATE, clip_norm=1.0, schedule="cosine")
            optimizer = Optimizer(inverter, msgspec.structs.replace(rate, warmup_steps=round(_WARM_UP * steps)))
            for step in range(steps):
                batch = loader.batch(step)
                images = torch.from_numpy(self._shown(batch.images)).movedim(-1, 1).to(self.place)
                inverter.loss(self._view(batch, _TRAIN, step), images).backward()  # type: ignore[no-untyped-call]
                optimizer.step(step, steps)
                progress((step + 1) / steps)
        return inverter.eval(), mean

    @torch.no_grad()
    def judge(self, split: Split, inverter: Inverter, mean: Float32) -> tuple[Leak, Examples]:
        """Score the inverter on images that it has not seen."""
        scores, guesses, pairs, rows, bytes_up = [], [], list[Examples](), 0, 0
        with closing(self._loader(split, "none")) as loader:
            steps = loader.steps_per_epoch
            for step in range(steps):
                batch = loader.batch(step)
                view, originals = self._view(batch, _TEST, step), self._shown(batch.images)
                made = inverter(view.features)[0][view.rows].clamp(0, 1).movedim(1, -1).cpu().numpy()
                scores.append(score(originals, made))
                guesses.append(score(originals, np.broadcast_to(mean, originals.shape)))
                rows, bytes_up = rows + len(view.features), bytes_up + view.bytes_up
                pairs = pairs or [Examples(_coarse(originals), _coarse(made))]
        spec, size = self.trunk.spec, self.study.batch_size
        whole = encoded_bytes((size, spec.tokens, spec.embed_dim), "fp32") + TRIPLE_BYTES * size
        share, images = bytes_up / (steps * whole), steps * size
        made_scores, mean_scores = np.concatenate(scores), np.concatenate(guesses)
        (psnr_db, ssim), (mean_db, mean_ssim) = made_scores.mean(0).tolist(), mean_scores.mean(0).tolist()
        sem = float((made_scores - mean_scores)[:, 0].std(ddof=1) / math.sqrt(images))
        found = (self.codec.ratio(size), share, psnr_db, ssim, mean_db, mean_ssim, images, images / rows, sem)
        return Leak(str(self.setting), self.seed, *found), pairs[0]

    def _loader(self, split: Split, changes: str) -> Loader:
        size, augmentations = self.study.batch_size, augment.parse_augmentation(changes)
        return Loader(split, self.preprocessing, size, self.seed, augmentations, allow_broken=self.allow_broken)

    def _view(self, batch: Batch, stream: int, step: int) -> View:
        rng = np.random.default_rng([self.seed, stream, step])
        with computing(self.study):
            images = torch.from_numpy(batch.images).to(self.place)
            view = look(self.codec, self.trunk, CodecBatch(images, batch.labels, rng))
        places = None if view.places is None else view.places.to(self.place)
        return View(view.features.to(self.place), view.bytes_up, view.rows.to(self.place), places)

    def _inverter(self, view: View, mean: Float32, deviation: float) -> Inverter:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Inverter(self.trunk.spec, view, torch.from_numpy(mean), deviation).to(self.place)

    def _shown(self, images: Float32) -> Float32:
        """Normalised images ``[B, C, H, W]`` as pixels 0..1, ``[B, H, W, C]``."""
        deviation, mean = (np.array(x, np.float32) for x in (self.preprocessing.std, self.preprocessing.mean))
        return np.ascontiguousarray((images.transpose(0, 2, 3, 1) * deviation + mean).clip(0, 1))

    def _pixels(self, loader: Loader) -> tuple[Float32, float]:
        """The mean image ``[H, W, C]``, and the standard deviation of pixels from it."""
        first, second, images = np.zeros(1), 0.0, 0
        for indices in loader.sample(0):
            shown = self._shown(loader.plain(indices).images).astype(np.float64)
            first, second, images = first + shown.sum(0), second + np.square(shown).sum(), images + len(shown)
        mean = first / images
        return mean.astype(np.float32), math.sqrt(max(1e-6, second / images / mean.size - np.square(mean).mean()))


def _coarse(images: Float32) -> UInt8:
    return np.rint(255 * images[:EXAMPLES]).astype(np.uint8)
