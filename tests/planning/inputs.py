"""Files that a plan is made from, as the commands write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from adc_edge.codec.precision import PRECISIONS
from adc_edge.evaluation.fleet.setting import StudyFleet
from adc_edge.evaluation.privacy.attack import Leak
from adc_edge.evaluation.report.output import study_dict
from adc_edge.evaluation.report.views import views
from adc_edge.evaluation.study.records import Point, Run, Study
from adc_edge.files import json_bytes
from adc_edge.machine.description import describe_machine
from adc_edge.planning.candidates import unknown_profile
from adc_edge.planning.profile import BlockSeconds, CodecSeconds, Line, Profile, TrainerProfile
from adc_edge.storage.bundle import Manifest


def measured_profile(manifest: Manifest, digest: str = "", seconds: float = 1e-3) -> Profile:
    """A device whose blocks take ``seconds`` an image, and a trainer that is ten times as fast."""
    block, line = BlockSeconds(seconds, seconds, 2 * seconds), Line(1e-4, 1e-7)
    codec: dict[str, CodecSeconds] = {precision: CodecSeconds(line, line) for precision in PRECISIONS}
    device = msgspec.structs.replace(
        unknown_profile(manifest).device,
        machine=describe_machine(),
        bundle=digest,
        engine="onnxruntime",
        compute="fp32",
        keeps_graph=False,
        images=manifest.batch_size,
        blocks=[block] * manifest.split,
        embedding=block,
        codec=codec,
    )
    rows = manifest.tokens * (manifest.depth - manifest.split)
    return Profile(device, TrainerProfile("cpu", manifest.split, Line(1e-3, seconds / 10 / rows), 1e-3, codec))


def written_study(
    directory: Path,
    manifest: Manifest,
    accuracies: Mapping[str, Sequence[float]],
    fleets: Sequence[StudyFleet | None] = (None,),
) -> Path:
    """results.json as `evaluate` writes it; None: one device."""
    study = Study("folder:photos", model=manifest.model, model_args=manifest.model_args, epochs=2.0)
    runs = [
        Run(setting, seed, 1.0, 1000, 1, (Point(2, 2.0, 900, 700, accuracy, None, 1.0, 1.0),), fleet=fleet)
        for fleet in fleets
        for setting, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_bytes(json_bytes(study_dict(study, runs, views(study, runs, (0.1,)))))
    return directory


def written_attack(directory: Path, manifest: Manifest, ssims: Mapping[str, float]) -> Path:
    """privacy.json as `privacy` writes it."""
    study = msgspec.to_builtins(Study("folder:photos", model=manifest.model, model_args=manifest.model_args))
    for name in ("epochs", "budget", "max_epochs", "evaluate_every", "optimizer"):
        del study[name]
    leaks = [Leak(name, 0, 1.0, 1.0, 20.0, ssim, 12.0, 0.2, 64, 1.0) for name, ssim in ssims.items()]
    content = {"note": "", "study": study, "inverter_epochs": 3.0, "settings": leaks, "machine": {}}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "privacy.json").write_bytes(json_bytes(content))
    return directory
