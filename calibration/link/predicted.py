"""Predicted seconds of a step on a measured link, for three settings of a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adc_edge.calibration.link.report import LinkReport
from adc_edge.defaults import Precision
from adc_edge.errors import SettingError
from adc_edge.machine.description import describe_machine
from adc_edge.method.ratio import Ratio
from adc_edge.planning.candidates import COUNTS, unknown_profile
from adc_edge.planning.profile import Profile, check_profile, read_profile
from adc_edge.planning.step_model import LinkRates, Prediction, StepPlan, predict
from adc_edge.storage.bundle import Bundle, Manifest

_SAME_TIME = 1.01


class StepForecast:
    """Predicts the steps of a bundle on links that are measured later.

    Args:
        bundle: directory of the bundle.
        profile: of `adc-edge profile`; None: what computing takes is not known.

    Raises:
        BundleError: no bundle.
        SettingError: no profile, or one of another bundle or machine.
    """

    def __init__(self, bundle: Path, profile: Path | None) -> None:
        loaded = Bundle.load(bundle, ())
        self._manifest, self._measured = loaded.manifest, profile is not None
        self._profile: Profile = unknown_profile(loaded.manifest) if profile is None else read_profile(profile)
        if profile is not None:
            check_profile(self._profile, loaded, describe_machine())

    def lines(self, report: LinkReport) -> Iterator[str]:
        """Yield a line for each of three settings: uncompressed, the bundle's own, and that in several messages."""
        if report.up_mbit_s is None or report.down_mbit_s is None or report.rtt_p50_ms is None:
            return
        link = LinkRates(report.rtt_p50_ms, report.up_mbit_s, report.down_mbit_s)
        manifest = self._manifest
        own = manifest.ratio, manifest.precision, manifest.gradient_precision or manifest.precision
        whole = self._step(Ratio(xi=1.0), "fp16", "fp16", 1, link)
        alone = self._step(*own, 1, link)
        yield _line("everything in fp16, one message a step", whole)
        yield _line(f"{own[1]}:{own[2]}, the bundle's own, one message", alone)
        several = {count: self._step(*own, count, link) for count in COUNTS if manifest.batch_size >= 2 * count}
        fastest = min(one.seconds for one in several.values())
        count = next(count for count, one in several.items() if one.seconds <= _SAME_TIME * fastest)
        yield _line(f"the same in {count} message{'s' * (count > 1)}", several[count])
        if not self._measured:
            yield "note     without --profile computing takes no time here; `adc-edge plan` compares many settings"

    def _step(self, ratio: Ratio, up: Precision, down: Precision, count: int, link: LinkRates) -> Prediction:
        manifest: Manifest = self._manifest
        shape = ratio.shape(manifest.batch_size // count, manifest.tokens, manifest.prefix)
        return predict(StepPlan(manifest.split, shape, up, down, count), link, self._profile)


def check_forecast(bundle: Path | None, profile: Path | None) -> StepForecast | None:
    """Return the forecast that was asked for, None if none was; raises SettingError for a profile without a bundle."""
    if bundle is not None:
        return StepForecast(bundle, profile)
    if profile is not None:
        raise SettingError("--profile without --bundle", "the bundle that it was measured with", "add --bundle DIR")
    return None


def _line(what: str, step: Prediction) -> str:
    return f"step     {what}: {step.seconds:.3g} s, {(step.bytes_up + step.bytes_down) / 1e6:.3g} MB"
