"""Predicted seconds of a step on a measured link, for three settings of a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from adc_edge.calibration.link.report import LinkReport
from adc_edge.errors import SettingError
from adc_edge.machine.description import describe_machine
from adc_edge.method.ratio import Shape
from adc_edge.planning.candidates import Task, bundle_candidate, bundle_in_messages, unknown_profile
from adc_edge.planning.profile import Profile, check_profile, check_trains, read_profile
from adc_edge.planning.step_model import LinkRates, Prediction, StepPlan, predict
from adc_edge.storage.bundle import Bundle


class StepForecast:
    """Predicts the steps of a bundle on links that are measured later.

    Args:
        bundle: directory of the bundle.
        profile: of `adc-edge profile`; None: what computing takes is not known.

    Raises:
        BundleError: no bundle.
        SettingError: no profile, or one of another bundle or machine, or of a frozen trunk.
    """

    def __init__(self, bundle: Path, profile: Path | None) -> None:
        loaded = Bundle.load(bundle, ())
        self._manifest, self._measured = loaded.manifest, profile is not None
        self._profile: Profile = unknown_profile(loaded.manifest) if profile is None else read_profile(profile)
        if profile is not None:
            check_profile(self._profile, loaded, describe_machine())
            check_trains(self._profile)

    def lines(self, report: LinkReport) -> Iterator[str]:
        """Yield a line for each of three settings: uncompressed, the bundle's own, and that in several messages."""
        if not report.up_mbit_s or not report.down_mbit_s:
            return
        manifest, link = self._manifest, LinkRates(report.rtt_p50_ms, report.up_mbit_s, report.down_mbit_s)
        profile = msgspec.structs.replace(self._profile, share=report.share or self._profile.share)
        task = Task(manifest, manifest.batch_size, link, profile, (), ())
        images = manifest.batch_size
        whole = StepPlan(
            manifest.split, Shape(images, manifest.tokens, images, manifest.tokens), "fp16", "fp16", micro_batches=1
        )
        own, several = bundle_candidate(task), bundle_in_messages(task)
        count = several.plan.micro_batches
        yield _line("everything in fp16, one message a step", predict(whole, link, profile))
        yield _line(
            f"{own.plan.precision}:{own.plan.gradient_precision}, the bundle's own, one message", own.prediction
        )
        yield _line(f"the same in {count} message{'s' * (count > 1)}", several.prediction)
        if not self._measured:
            yield "note     without --profile computing takes no time here; `adc-edge plan` compares many settings"


def check_forecast(bundle: Path | None, profile: Path | None) -> StepForecast | None:
    """Return the forecast that was asked for, None if none was; raises SettingError for a profile without a bundle."""
    if bundle is not None:
        return StepForecast(bundle, profile)
    if profile is not None:
        raise SettingError("--profile without --bundle", "the bundle that it was measured with", "add --bundle DIR")
    return None


def _line(what: str, step: Prediction) -> str:
    return f"step     {what}: {step.seconds:.3g} s, {(step.bytes_up + step.bytes_down) / 1e6:.3g} MB"
