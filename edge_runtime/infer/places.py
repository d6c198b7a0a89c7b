"""Each batch judged at one place: split while the link answers in time, or else here; every batch exactly once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from adc_edge.arrays import Float32
from adc_edge.edge_runtime.infer.answers import JudgedBatch
from adc_edge.edge_runtime.infer.link import TrainerLink
from adc_edge.edge_runtime.infer.models import LocalModel, SplitRequest, TrunkSender
from adc_edge.edge_runtime.infer.recent import RecentSeconds
from adc_edge.errors import AdcEdgeError, ProtocolError, RefusedError
from adc_edge.planning.place import SplitCosts, choose_place, pays
from adc_edge.wire.connection import LinkLost, Stopped

LEAST_DEADLINE_S, MOST_DEADLINE_S = 0.25, 1.8  # of a request, if it is not given
_UNKNOWN_DEADLINE_S = 1.0  # before the link was measured
_TRY_EVERY_S = 0.2  # how often a link is tried that was lost
_LOOK_EVERY_S = 5.0  # how often a link is tried that is slower than the device

logger = logging.getLogger(__name__)


class _Encoded(NamedTuple):
    """A batch as it is sent, and the seconds of trunk and codec."""

    request: SplitRequest
    trunk_s: float

    @property
    def images(self) -> int:
        return len(self.request.rows)


class JudgingPlaces:
    """Judges batches, and falls back.

    Args:
        split: trunk and codec; None: there is no trainer.
        link: to the trainer; None as ``split``.
        local: the whole model here; None: there is none, and a batch waits for the trainer.
        may_choose: whether the faster place is chosen (--mode auto).
        deadline_s: of a request; None: from what was measured.
        stop: asked while waiting for the trainer.
    """

    def __init__(
        self,
        split: TrunkSender | None,
        link: TrainerLink | None,
        local: LocalModel | None,
        may_choose: bool = True,
        deadline_s: float | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._split, self._link, self._local = split, link, local
        self._may_choose, self._given_deadline_s, self._stop = may_choose, deadline_s, stop
        self._sample: _Encoded | None = None  # encoded once: a link that is lost leaves no time for it
        self._split_s, self._local_s = RecentSeconds(), RecentSeconds()
        self._usual_s: dict[int, float] = {}  # of a split batch of so many images, as last known
        self._spent = (0, 0)  # bytes up and down for the present batch
        self._left = False  # the link is left to its thread
        self._why_local = ""  # why it is, unless the device is faster
        self.outages = 0  # times that the link was lost while it was used

    def deadline_s(self, images: int) -> float | None:
        """Return the seconds that a request may take: None where nothing else can judge the batch."""
        if self._local is None:
            return None
        if self._given_deadline_s is not None:
            return self._given_deadline_s
        largest = self._sample.images if self._sample is not None else images
        usual_s = self._usual_s.get(images, self._usual_s.get(largest))
        return _UNKNOWN_DEADLINE_S if usual_s is None else default_deadline(usual_s)

    def begin(self, sample: Float32, costs: SplitCosts | None, local_s: float | None) -> None:
        """Choose the place to begin with, and log it with its reason.

        Args:
            sample: a batch ``[B, C, H, W]`` of any images, none is larger; a link that was lost is tried by it.
            costs: of a split batch; None: the trainer is away, or there is none.
            local_s: seconds of a batch here; None: there is no whole model.
        """
        images = len(sample)
        if local_s is not None:
            self._local_s.add(images, local_s)
        if costs is not None:
            self._split_s.add(images, costs.seconds)
            self._usual_s = {images: costs.seconds}
        if self._split is not None:
            self._sample = self._encoded(self._split, sample)
        place, reason = choose_place(costs, local_s)
        if not self._may_choose and costs is not None:
            place, reason = "split", f"asked for; {reason}"
        limit_s = self.deadline_s(images) if self._link is not None else None
        logger.info("place    %s: %s%s", place, reason, "" if limit_s is None else f"; deadline {limit_s:.2f} s")
        if self._sample is not None and place == "local":
            why = "the trainer is away" if costs is None else "local is faster"
            self._leave(why, self._sample, slow=costs is not None)

    def judge(self, images: Float32) -> JudgedBatch:
        """Return the logits of images ``[B, C, H, W]``, from one place.

        Raises:
            Stopped: ``stop`` returned True before the trainer was back, and there is no whole model here.
            RefusedError: the trainer refused, and there is no whole model here.
        """
        start, self._spent = time.monotonic(), (0, 0)
        while True:
            if self._link is None or self._split is None:
                return self._locally(images, start)
            if self._returned():
                try:
                    return self._remotely(self._split, self._link, images, start)
                except (LinkLost, RefusedError, ProtocolError) as error:
                    if self._local is None and isinstance(error, RefusedError):
                        raise
                    assert self._sample is not None
                    self.outages += 1
                    why = error.received if isinstance(error, AdcEdgeError) else str(error)
                    self._leave(why, self._sample, slow=False)
            if self._local is not None:
                return self._locally(images, start)
            if self._stop():
                raise Stopped
            self._link.wait(0.1)

    def _remotely(self, split: TrunkSender, link: TrainerLink, images: Float32, start: float) -> JudgedBatch:
        began, before = time.monotonic(), link.channel.framed()
        sent = self._encoded(split, images)
        try:
            reply = link.ask(sent.request, self.deadline_s(sent.images))
        finally:
            after = link.channel.framed()
            self._spent = self._spent[0] + after[0] - before[0], self._spent[1] + after[1] - before[1]
        now = time.monotonic()
        self._split_s.add(sent.images, now - began)
        self._compare(sent, images)
        return JudgedBatch(reply.logits[sent.request.rows], "split", "", now - start, *self._spent)

    def _encoded(self, split: TrunkSender, images: Float32) -> _Encoded:
        began = time.monotonic()
        request = split.request(images)
        return _Encoded(request, time.monotonic() - began)

    def _locally(self, images: Float32, start: float) -> JudgedBatch:
        assert self._local is not None
        began = time.monotonic()
        logits = self._local.logits(images)
        now = time.monotonic()
        self._local_s.add(len(images), now - began)
        trouble = self._link.trouble if self._link is not None and self._why_local else ""
        return JudgedBatch(logits, "local", trouble or self._why_local, now - start, *self._spent)

    def _compare(self, sent: _Encoded, images: Float32) -> None:
        """Leave the link if the last batches of this size took longer than the device takes for one."""
        usual = self._split_s.usual(sent.images)
        assert usual is not None
        self._usual_s[sent.images] = usual
        if not self._may_choose or self._local is None or not self._split_s.is_sure(sent.images):
            return
        here = self._seconds_here(self._local, images)
        if pays(here, usual):
            self._leave(f"split takes {1e3 * usual:.0f} ms, local {1e3 * here:.0f} ms", sent, slow=True)

    def _seconds_here(self, local: LocalModel, images: Float32) -> float:
        """Return the seconds of such a batch here, measured if no batch of its size was judged here yet."""
        if (known := self._local_s.usual(len(images))) is not None:
            return known
        local.logits(images)  # the first one of a size is slower
        began = time.monotonic()
        local.logits(images)
        seconds = time.monotonic() - began
        self._local_s.add(len(images), seconds)
        return seconds

    def _leave(self, why: str, sample: _Encoded, slow: bool) -> None:
        """Leave the link to its thread, which tries it by a sample; ``slow``: it works, but the device is faster."""
        assert self._link is not None
        self._left, self._why_local = True, "" if slow else why
        instead = "answering locally" if self._local is not None else "waiting for it"
        logger.log(logging.INFO if slow else logging.WARNING, "trainer  %s: %s", why, instead)
        limit_s = self._given_deadline_s or MOST_DEADLINE_S
        here = self._local_s.usual(sample.images) if self._may_choose else None

        def good_enough(seconds: float) -> bool:
            split_s = sample.trunk_s + seconds
            self._usual_s = {sample.images: split_s}
            if seconds > limit_s or here is None:
                return seconds <= limit_s
            better = pays(split_s, here) if slow else not pays(here, split_s)
            if not better and self._why_local:
                self._why_local = ""  # from now on since the device is faster
                logger.info("trainer  back, but split takes %.0f ms, local %.0f ms", 1e3 * split_s, 1e3 * here)
            return better

        self._split_s.clear()  # what the link took before says nothing of what it takes after
        self._link.leave(sample.request, good_enough, limit_s, _LOOK_EVERY_S if slow else _TRY_EVERY_S)

    def _returned(self) -> bool:
        """Whether the link can be used, and say so if it has come back."""
        assert self._link is not None
        if not self._link.here:
            return False
        if self._left:
            self._left, self._why_local = False, ""
            logger.info("trainer  back: split again")
        return True


def default_deadline(usual_s: float) -> float:
    """Return the deadline of requests that usually take ``usual_s`` seconds."""
    return min(MOST_DEADLINE_S, max(LEAST_DEADLINE_S, 0.1 + 3 * usual_s))
