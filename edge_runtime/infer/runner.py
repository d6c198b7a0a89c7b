"""`infer`: assembles bundle, trunk, link, whole model, images and output, and judges one batch after another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from typing import Any

import numpy as np

from adc_edge.arrays import Float32
from adc_edge.edge_runtime.bench.power import Tegrastats, Window
from adc_edge.edge_runtime.choosing.link import LinkTimes
from adc_edge.edge_runtime.infer.answers import InferAnswer, answers_of, broken, shown_name
from adc_edge.edge_runtime.infer.images import FileVersion, ListedImages, Picture, WatchedImages, listed_files
from adc_edge.edge_runtime.infer.link import TrainerLink
from adc_edge.edge_runtime.infer.models import LocalModel, TrunkSender, batch_shape
from adc_edge.edge_runtime.infer.output import AnswerWriter, make_writer
from adc_edge.edge_runtime.infer.places import JudgingPlaces
from adc_edge.edge_runtime.infer.settings import InferSettings
from adc_edge.edge_runtime.infer.summary import InferSummary
from adc_edge.edge_runtime.infer.trunk import find_trunk, learned_of, open_trunk
from adc_edge.errors import LinkError
from adc_edge.machine.threads import divide_cores
from adc_edge.method.ratio import Ratio
from adc_edge.planning.place import SplitCosts
from adc_edge.planning.timing import finished, timed
from adc_edge.storage.bundle import WHOLE, Bundle
from adc_edge.wire.connection import ClientKeys, Stopped
from adc_edge.wire.framing import message_bytes
from adc_edge.wire.inference_messages import Logits
from adc_edge.wire.sockets import check_endpoint

_ROUNDS, _WARM_UP_S = 5, 2.0  # of measured batches
_REQUESTS = 3  # of the same, to the trainer
_IDLE_S = 2.0  # before the work, for its energy
_SHORT_WAIT_S = 3.0  # for a trainer that is away at the start, where the whole model is here

logger = logging.getLogger(__name__)


class InferRun:
    """One run of `infer`.

    Args:
        settings: as given.
        say: prints a line of the output, where that is standard output.
        stop: asked between batches and while waiting.
    """

    def __init__(
        self, settings: InferSettings, say: Callable[[str], object], stop: Callable[[], bool] = lambda: False
    ) -> None:
        settings.check()
        self.settings, self._say, self._stop = settings, say, stop
        self.bundle = Bundle.load(settings.bundle, ())
        self._splits, self._has_local = settings.places(self.bundle, settings.weights is not None)
        self._ratio = self._adc_ratio()
        self._size = settings.images_at_once(self.bundle)
        self._state = find_trunk(self.bundle, settings.weights) if self._splits else None
        self._keys = None if settings.keys is None else ClientKeys.load(settings.keys)
        if self._splits:
            check_endpoint(settings.trainer or "", settings.insecure, settings.keys is not None, connecting=True)
        self.summary = InferSummary()
        self.complete = False  # every image of a list has its answer

    def run(self) -> dict[str, Any]:
        """Judge all images, or those that come until ``stop`` returns True; returns the figures of the summary.

        Raises:
            LinkError: the trainer does not answer, and there is no whole model here.
            RefusedError: the trainer refuses at the start, or later where there is no whole model here.
            SettingError, CheckpointError, BundleError: see InferSettings, ``open_trunk`` and TrainerLink.
            OSError: the output cannot be written.
        """
        settings = self.settings
        threads = divide_cores(settings.threads)
        with ExitStack() as stack:
            writer = stack.enter_context(closing(make_writer(settings.output, settings.fresh, self._say)))
            source = self._source(writer)
            link = self._link(stack) if self._splits else None
            if source is None:
                writer.begin()
            else:
                power = stack.enter_context(Tegrastats()) if settings.watch is None else None
                idle = power.watch(_IDLE_S) if power is not None else Window(0.0, 0.0)
                with suppress(Stopped):
                    places = self._places(stack, link, threads)
                    writer.begin()  # not before all is there that the answers need
                    busy = power.watch(0.0) if power is not None else idle
                    self._judge_all(source, places, link, writer)
                    self.summary.outages = places.outages
                    if power is not None:
                        self.summary.measure_energy(power, idle, Window(busy.start_s, power.watch(0.0).end_s))
        total = (0, 0) if link is None else link.channel.totals()
        return self.summary.values(total)

    def _source(self, writer: AnswerWriter) -> ListedImages | WatchedImages | None:
        """Return the images; None: all of them are answered."""
        settings, preprocessing = self.settings, self.bundle.manifest.preprocessing

        def answered(file: FileVersion) -> bool:
            return writer.answered((shown_name(file), file.modified_ns))

        if settings.watch is not None:
            logger.info("images   from %s as they come, until Ctrl-C", settings.watch)
            return WatchedImages(settings.watch, preprocessing, answered)
        files = listed_files(settings.images)
        left = [file for file in files if not answered(file)]
        self.summary.skipped = len(files) - len(left)
        before = f", {self.summary.skipped:,} answered before" if self.summary.skipped else ""
        logger.info("images   %d%s", len(files), before)
        self.complete = not left
        return ListedImages(left, preprocessing, settings.workers) if left else None

    def _link(self, stack: ExitStack) -> TrainerLink:
        settings, manifest = self.settings, self.bundle.manifest
        link = TrainerLink(
            settings.trainer or "",
            self.bundle.digest,
            manifest.classes,
            keys=self._keys,
            stop=self._stop,
            loopback_alone=self._keys is None and not settings.insecure,
            wants_names=len(manifest.class_names) < manifest.classes,
        )
        stack.callback(link.close)
        return link

    def _places(self, stack: ExitStack, link: TrainerLink | None, threads: int) -> JudgingPlaces:
        settings, manifest = self.settings, self.bundle.manifest
        spec = manifest.trunk
        sample = np.random.default_rng(0).standard_normal((self._size, spec.channels, *spec.image_size), np.float32)
        local = split = None
        if self._has_local:
            local = LocalModel(self.bundle.file(WHOLE), settings.provider, threads)
            logger.info("local    %s, fp32 under onnxruntime (%s)", WHOLE, local.description)
        if self._splits:
            shape = batch_shape(self._ratio, self._size, manifest.tokens, manifest.prefix)
            engine = stack.enter_context(open_trunk(settings, self.bundle, shape, self._state))
            precision = settings.wire_precision(self.bundle)
            split = TrunkSender(self.bundle, engine, precision, self._ratio, learned_of(self._state))
            adc = "ADC off" if self._ratio is None else f"ADC {shape.clusters} clusters of {shape.kept} tokens"
            compute = settings.engine_settings().computes
            logger.info(
                "split    trunk in %s under %s (%s), %s, sent in %s",
                compute,
                engine.name,
                engine.description,
                adc,
                precision,
            )
        seconds = self._measured(sample, split, local)
        costs = None if split is None or link is None else self._costs(split, link, sample, seconds["split"])
        if costs is not None and link is not None and local is not None and link.head_steps:  # of a frozen trunk
            logger.warning("local    %s is not used: it has not learned the trainer's %d steps", WHOLE, link.head_steps)
            local = None
        if link is not None:
            link.beside_whole = local is not None
        places = JudgingPlaces(split, link, local, settings.mode == "auto", settings.deadline_s, self._stop)
        places.begin(sample, costs, None if local is None else seconds["local"])
        return places

    def _measured(self, sample: Float32, split: TrunkSender | None, local: LocalModel | None) -> dict[str, float]:
        """Return the seconds of a batch at each place, as far as this device works for it."""
        cases: dict[str, Callable[[], object]] = {}
        if split is not None:
            cases["split"] = lambda: split.request(sample)
        if local is not None:
            cases["local"] = lambda: local.logits(sample)
        return finished(timed(cases, _ROUNDS, _WARM_UP_S))

    def _costs(self, split: TrunkSender, link: TrainerLink, sample: Float32, trunk_s: float) -> SplitCosts | None:
        """Return what a split batch costs; None: the trainer is away, and the whole model is here."""
        request = split.request(sample)
        up = message_bytes(request.message, request.message.body_bytes)
        rows, classes = request.message.clusters, self.bundle.manifest.classes
        answer = Logits(request.message.transfer, 4 * rows * classes, rows, classes, 0.0)
        down = message_bytes(answer, answer.body_bytes)
        wait_s = self.settings.wait_s
        if self._has_local:
            wait_s = _SHORT_WAIT_S if wait_s is None else min(wait_s, _SHORT_WAIT_S)
        try:
            times: LinkTimes = link.open(wait_s, up, down)
            head_s = link.head_seconds(request, _REQUESTS)
        except LinkError as error:
            if not self._has_local:
                raise
            logger.warning("trainer  %s", error.received)
            return None
        return SplitCosts(trunk_s, head_s, times.rtt, times.up_byte * up, times.down_byte * down)

    def _judge_all(
        self,
        source: ListedImages | WatchedImages,
        places: JudgingPlaces,
        link: TrainerLink | None,
        writer: AnswerWriter,
    ) -> None:
        try:
            for batch in source.batches(self._size, self._stop):
                for answer in self._answers(batch, places, link):
                    writer.write(answer)
                    self.summary.add(answer)
        except Stopped:
            return
        self.complete = not self._stop()

    def _answers(self, batch: list[Picture], places: JudgingPlaces, link: TrainerLink | None) -> list[InferAnswer]:
        """Return one answer for each image of a batch, in its order."""
        images = [picture.pixels for picture in batch if picture.pixels is not None]
        files = [picture.file for picture in batch if picture.pixels is not None]
        found: list[InferAnswer] = []
        if images:
            judged = places.judge(np.stack(images))
            names = (link.names if link is not None else []) or self.bundle.manifest.class_names
            found = answers_of(files, judged, names)
        left = iter(found)
        return [broken(p.file, p.error) if p.pixels is None else next(left) for p in batch]

    def _adc_ratio(self) -> Ratio | None:
        settings = self.settings
        if not settings.compresses:
            return None
        return self.bundle.manifest.ratio if settings.ratio == Ratio() else settings.ratio.check()
