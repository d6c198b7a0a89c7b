"""Follow a link that changes: from a few settings the one whose step is predicted to be the shortest.

All settings are ones that the user has allowed, so only time decides. What a step costs is measured while it runs;
other settings are predicted from it: their bytes are known, and so is the time of their codec. A change must gain
clearly and for several steps, so that a rate that wobbles changes nothing.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from adc_edge.defaults import Precision
from adc_edge.method.ratio import Shape
from adc_edge.planning.profile import TrainerShare
from adc_edge.planning.schedule import Costs, step_seconds
from adc_edge.planning.step_model import LinkRates

GAIN = 0.15  # of a step's predicted time; less than that is within the error of the prediction
NEAR = 1.1  # of the shortest step: among these the fewest bytes, which may be paid for
STEADY_STEPS = 3  # in which another setting is ahead
DWELL_S = 60.0  # after a change, the next one waits so long, or for another link
ANOTHER_LINK = 1.6  # times the rate, up or down, at the last change: more than a wobble by a fifth, up and down
_REMEMBERED = 5  # steps whose median is what a step costs
_EXPLAINED = 0.1  # relative difference of realised and predicted time that tells nothing of the link
_SHOWS, _LEAST = 0.02, 1e-6  # share of a step below which a time on the link tells nothing; keeps quotients defined
_FACTORS = [2.0 ** (power / 4) for power in range(-32, 17)]  # of the estimated rates
_LEARNING = 0.3  # weight of the newest step in the correction


class MessageForm(NamedTuple):
    """Count, size and precision of the messages of a step."""

    micro_batches: int
    shape: Shape  # of one micro-batch
    precision: Precision
    gradient_precision: Precision


class Alternative(NamedTuple):
    """A setting that a run may take, and what is known of its messages."""

    form: MessageForm
    window: int  # most micro-batches in flight; 0: all
    bytes_up: int  # of one micro-batch
    bytes_down: int
    codec_seconds: float  # to encode activations and decode gradients, measured alone
    trainer_codec_seconds: float  # the same on the trainer, as far as it is known

    @property
    def bytes(self) -> int:
        """Bytes of a step, both ways."""
        return self.form.micro_batches * (self.bytes_up + self.bytes_down)

    def __str__(self) -> str:
        """Return the setting as options name it."""
        count, shape, up, down = self.form
        return f"{up}:{down}, T={count * shape.clusters}, k={shape.kept}, M={count}"


class Change(NamedTuple):
    """Another setting from the next step on."""

    alternative: Alternative
    seconds: float  # predicted of a step with it
    seconds_before: float  # predicted without the change
    link: LinkRates

    @property
    def why(self) -> str:
        """The reason, for the log."""
        link = self.link
        return (
            f"the link carries {link.up_mbit_s:.3g} Mbit/s up, {link.down_mbit_s:.3g} down at {link.rtt_ms:.0f} ms: "
            f"{self.seconds:.3g} s a step is predicted, {self.seconds_before:.3g} s without the change"
        )


class Follower:
    """Proposes a change when another alternative has been clearly ahead for several steps.

    Args:
        alternatives: settings of one run; the current one is among them.
        current: place of the current one.
    """

    def __init__(self, alternatives: Sequence[Alternative], current: int) -> None:
        self.alternatives, self.current = list(alternatives), current
        self._steps: deque[Mapping[str, float]] = deque(maxlen=_REMEMBERED)
        self._steady = 0
        self._last: tuple[float, LinkRates] | None = None  # time and link of the last change
        self.correction = 1.0  # realised over predicted time of a step

    def observe(
        self,
        seconds: Mapping[str, float],
        realised: float,
        link: LinkRates,
        now_s: float,
        micro_batches: int | None = None,
        share: TrainerShare | None = None,
    ) -> Change | None:
        """Take a step's measurements; return a change if one is due. The caller records it and calls ``take``.

        Args:
            seconds: of the phases that `StepRecord` has, but for wait.
            realised: seconds of the whole step.
            link: the present estimate.
            now_s: a monotonic clock.
            micro_batches: the only M that is allowed now; None: any.
            share: of a trainer that works for other devices too; None: it does not.
        """
        self._steps.append(seconds)
        link = self._calibrated(seconds, realised, link)
        spent = {name: statistics.median(step[name] for step in self._steps) for name in seconds}
        predicted = [self._predict(alternative, link, spent, share) for alternative in self.alternatives]
        here = predicted[self.current]
        self.correction += _LEARNING * (realised / here - self.correction)
        best = self._best(predicted, micro_batches)
        gain = 1 - predicted[best] / here
        self._steady = self._steady + 1 if gain > GAIN else 0  # whichever is ahead: two may be about equal
        if self._steady < STEADY_STEPS or not self._may_change(link, now_s):
            return None
        return Change(self.alternatives[best], predicted[best] * self.correction, here * self.correction, link)

    def take(self, change: Change, now_s: float) -> None:
        """Go on with the setting of a change."""
        self._last = now_s, change.link
        self.stand_at(self.alternatives.index(change.alternative))

    def stand_at(self, place: int) -> None:
        """Go on with the setting at ``place``. What was measured of the codec belongs to the one before."""
        if place != self.current:
            self.current, self._steady = place, 0
            self._steps.clear()

    def _may_change(self, link: LinkRates, now_s: float) -> bool:
        """Whether the last change is long ago, or the link another one since."""
        if self._last is None or now_s - self._last[0] >= DWELL_S:
            return True
        rates = zip(link[1:], self._last[1][1:], strict=True)
        return any(max(now / then, then / now) > ANOTHER_LINK for now, then in rates)

    def _best(self, predicted: Sequence[float], micro_batches: int | None) -> int:
        """The place of the shortest step, or of one hardly longer in fewer bytes."""
        counts = [one.form.micro_batches for one in self.alternatives]
        places = [place for place, count in enumerate(counts) if micro_batches in (None, count)]
        shortest = min(predicted[place] for place in places)
        near = [place for place in places if predicted[place] <= NEAR * shortest]
        return min(near, key=lambda place: (self.alternatives[place].bytes, predicted[place]))

    def _calibrated(self, seconds: Mapping[str, float], realised: float, link: LinkRates) -> LinkRates:
        """The link whose rates explain how long a step took, if the estimate does not.

        The kernel's rate of small messages is that of a start, and stays where it was when the link becomes slower.
        """
        current = self.alternatives[self.current]
        alone = current.form.micro_batches == 1  # then the time on the link is known apart
        measured = seconds["link"] if alone else realised
        seconds = {**seconds, "cloud": seconds["cloud"] + seconds["cloud_wait"]}  # the wait as it was

        def off(factor: float) -> float:
            now = _times(link, factor)
            predicted = _link_seconds(current, now) if alone else self._predict(current, now, seconds)
            return abs(math.log(predicted / max(measured, _LEAST)))

        if off(1.0) <= _EXPLAINED or (alone and abs(_link_seconds(current, link) - measured) < _SHOWS * realised):
            return link
        return _times(link, min(_FACTORS, key=lambda factor: (round(off(factor), 2), abs(math.log(factor)))))

    def _predict(
        self, alternative: Alternative, link: LinkRates, spent: Mapping[str, float], share: TrainerShare | None = None
    ) -> float:
        """Seconds of a step, from the costs of the current one with codec, bytes and rows of ``alternative``.

        With a share, a step is no shorter than its work on the trainer takes in that share of the time.
        """
        current, pieces = self.alternatives[self.current], alternative.form.micro_batches
        # The cores may be busy: the codec alone takes what it took before, times what it has taken since.
        slower = _ratio(spent["encode"] + spent["decode"], current.form.micro_batches * current.codec_seconds)
        slower_there = _ratio(spent["cloud_codec"], current.form.micro_batches * current.trainer_codec_seconds)
        rows = _rows(alternative) / _rows(current)
        costs = Costs(
            forward=(spent["forward"] + spent["send"]) / pieces + slower * alternative.codec_seconds,
            recompute=spent["recompute"] / pieces,
            backward=spent["backward"] / pieces,
            up=alternative.bytes_up * 8e-6 / link.up_mbit_s,
            cloud=rows * spent["cloud"] / pieces + slower_there * alternative.trainer_codec_seconds,
            down=alternative.bytes_down * 8e-6 / link.down_mbit_s,
        )
        if share is None:
            return spent["data"] + step_seconds(costs, link.rtt_ms / 1e3, pieces, alternative.window)
        costs = costs._replace(wait=share.wait_s, share=share.share)
        served = (pieces * costs.cloud + current.form.micro_batches * share.rest_s) / share.share
        return max(spent["data"] + step_seconds(costs, link.rtt_ms / 1e3, pieces, alternative.window), served)


def _times(link: LinkRates, factor: float) -> LinkRates:
    return link._replace(up_mbit_s=factor * link.up_mbit_s, down_mbit_s=factor * link.down_mbit_s)


def _link_seconds(one: Alternative, link: LinkRates) -> float:
    """Seconds that one message and its answer are on the way."""
    return link.rtt_ms / 1e3 + 8e-6 * (one.bytes_up / link.up_mbit_s + one.bytes_down / link.down_mbit_s) + _LEAST


def _rows(one: Alternative) -> int:
    return one.form.micro_batches * one.form.shape.clusters * one.form.shape.kept


def _ratio(measured: float, expected: float) -> float:
    return measured / expected if expected > 0 else 1.0
