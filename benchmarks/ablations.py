"""Accuracy at the same bytes with and without each choice: the paper's ablations, and ideas of ours (`ideas.py`).

    python benchmarks/ablations.py --data npz:cifar10_subset.npz --weights deit_tiny.safetensors -o out/ablations

Cases are trained as `adc-edge evaluate` trains, with the seeds of the case that they are compared with. Each run is
stored when it ends and is not repeated. The tables are written to ablations.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ideas
import msgspec
import numpy as np
import torch
from joblib import Parallel, delayed, parallel_config
from rich.progress import track

from adc_edge.data.sources import load_dataset
from adc_edge.errors import ProtocolError
from adc_edge.evaluation.codecs.factory import make_codec
from adc_edge.evaluation.study.records import Run, Study
from adc_edge.evaluation.study.samples import sampled
from adc_edge.evaluation.study.setting import parse_setting
from adc_edge.evaluation.study.split_model import MakeCodec
from adc_edge.evaluation.study.training import train
from adc_edge.files import write_atomic
from adc_edge.markdown import markdown_table
from adc_edge.optimizer.settings import OptimizerSettings


class Case(NamedTuple):
    """A setting with changes to the study or to its codec."""

    table: str
    name: str
    setting: str
    make: MakeCodec = make_codec
    changes: dict[str, Any] | None = None

    @property
    def file(self) -> str:
        """The start of its runs' file names."""
        return "".join(c if c.isalnum() or c in ".-" else "_" for c in f"{self.table}.{self.name}.{self.setting}")


def cases(steps: int) -> list[Case]:
    """All cases; the first of each table is the reference of the others."""
    return [*_merging(steps), *_low_bits(), *_both_ways(), *_paper()]


def _merging(steps: int) -> Iterator[Case]:
    adc, feature = "adc@0.25", ideas.scores
    made: dict[str, MakeCodec] = {
        "as it is": make_codec,
        "T images, nothing merged": ideas.changed(ideas.Subset),
        "loss weighted by cluster size": ideas.changed(ideas.Weighted),
        "commonest label of a cluster": ideas.changed(ideas.HardLabels),
        "k-means++": ideas.clustered(feature, ideas.kmeans_plus_plus),
        "farthest first": ideas.clustered(feature, ideas.farthest_first),
        "1 iteration": ideas.clustered(feature, iterations=1),
        "3 iterations": ideas.clustered(feature, iterations=3),
        "30 iterations": ideas.clustered(feature, iterations=30),
        "clustered without the CLS entry": ideas.clustered(ideas.without_cls),
        "clustered by attention and mean token": ideas.clustered(ideas.with_mean_token),
        "a token of leftovers": ideas.changed(ideas.Leftovers),
        "ξ from 0.4 down to 0.1": ideas.changed(ideas.Scheduled, 0.4, 0.1, steps),
        "ξ from 0.1 up to 0.4": ideas.changed(ideas.Scheduled, 0.1, 0.4, steps),
    }
    for name, make in made.items():
        yield Case("ADC", name, adc, make)
    for name, setting in (("by CLS token", "adc-cls@0.25"), ("by mean token", "adc-mean@0.25")):
        yield Case("ADC", f"clustered {name}", setting)
    for name in ("as it is", "T images, nothing merged"):
        yield Case("merging at a tenth", name, "adc@0.1", made[name])


def _low_bits() -> Iterator[Case]:
    for precision in ("int2", "int4"):
        table = f"{precision}"
        yield Case(table, "a scale for each token", precision)
        yield Case(table, "a scale for each channel", precision, ideas.turned(ideas.by_channel, ideas.by_channel))
        yield Case(table, "rotated (Hadamard)", precision, ideas.turned(ideas.rotated, ideas.rotated))
        yield Case(table, "gradients rounded by chance", precision, ideas.dense(ideas.StochasticGradients))
        yield Case(table, "gradients with error feedback", precision, ideas.dense(ideas.FedBackGradients))


def _both_ways() -> Iterator[Case]:
    for table, settings in {
        "about 1 %": "none/pca0.5:pca0.125 none/pca0.375:pca0.25 none/pca0.25:pca0.375 "
        "adc@0.5x1/pca1:pca0.25 adc@1x0.5/pca1:pca0.25 adc@0.7x0.7/pca1:pca0.25",
        "about 2 %": "none/pca1:pca0.25 none/pca0.75:pca0.5 adc@1x0.5/pca2:pca0.5 adc@0.25/int4",
        "about 5 %": "none/pca2:pca1 none/pca3:pca0.25 adc@1x0.5/pca4:pca2 adc@0.5/int3",
    }.items():
        for setting in settings.split():
            yield Case(table, setting, setting)


def _paper() -> Iterator[Case]:
    for size in (128, 16, 32, 64, 256):
        for setting in ("adc@0.25", "none", "none/pca1:pca0.25"):
            yield Case(f"batch size, {setting}", f"B={size}", setting, changes={"batch_size": size})
    for split in (3, 2, 5, 6, 10):
        for setting in ("adc@0.25", "none", "none/pca1:pca0.25"):
            yield Case(f"split, {setting}", f"after block {split}", setting, changes={"split": split})
    shares = ("1", "0.5", "0.25", "0.1")
    for batch in shares:
        for token in shares:
            yield Case("T/B x k/N", f"{batch} x {token}", f"adc@{batch}x{token}")


def _run(case: Case, study: Study, seed: int, path: Path) -> str:
    """Train a case and store the run; return an error message, or nothing."""
    try:
        run = train(
            msgspec.structs.replace(study, **(case.changes or {})), parse_setting(case.setting), seed, make=case.make
        )
    except ProtocolError as error:  # diverged: that is a finding, too
        return f"{case.table}, {case.name}, seed {seed}: {error}"
    write_atomic(path, msgspec.json.encode(run))
    return ""


def _table(title: str, rows: list[tuple[str, list[Run]]]) -> str:
    """A Markdown table of accuracies and their differences from the first row's, over the seeds that both have."""
    table = []
    first = {run.seed: 100 * run.curve[-1].best for run in rows[0][1]}
    for name, runs in rows:
        found = {run.seed: 100 * run.curve[-1].best for run in runs}
        share = np.mean([100 * run.share for run in runs])
        apart = [found[seed] - first[seed] for seed in found if seed in first]
        error = np.std(apart, ddof=1) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
        values = list(found.values())
        spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        difference = (f"{np.mean(apart):+.1f}", f"{np.mean(apart) / error:+.1f}") if apart and error > 0 else ("", "")
        table.append((name, f"{share:.3g}", f"{np.mean(values):.1f}{spread}", str(len(values)), *difference))
    header = ("", "share %", "accuracy %", "seeds", "difference", "σ")
    return f"### {title}\n\n{markdown_table(header, table, 'lr')}\n"


def _path(output: Path, case: Case, seed: int) -> Path:
    return output / f"{case.file}.seed{seed}.json"


def _keep_apart(study: Study, output: Path) -> None:
    """Refuse a directory of another study, as its runs would count for this one."""
    path, text = output / "study.json", msgspec.json.encode(study)
    if path.exists() and path.read_bytes() != text:
        raise SystemExit(f"{output} holds another study: {path.read_text()}; choose another -o")
    write_atomic(path, text)


def _train_missing(chosen: list[Case], study: Study, seeds: list[int], output: Path, jobs: int) -> None:
    tasks = [(case, study, seed, _path(output, case, seed)) for seed in seeds for case in chosen]
    missing = [delayed(_run)(*task) for task in tasks if not task[-1].exists()]
    with parallel_config("loky", n_jobs=jobs, inner_max_num_threads=1):
        for trouble in track(Parallel(return_as="generator_unordered")(missing), "runs", len(missing)):
            if trouble:
                print(trouble)


def _tables(chosen: list[Case], seeds: list[int], output: Path) -> str:
    """All tables of the stored runs."""
    tables: dict[str, list[tuple[str, list[Run]]]] = {}
    for case in chosen:
        there = [path for seed in seeds if (path := _path(output, case, seed)).exists()]
        if there:
            runs = [msgspec.json.decode(path.read_bytes(), type=Run) for path in there]
            tables.setdefault(case.table, []).append((case.name, runs))
    return "\n".join(_table(title, rows) for title, rows in tables.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Ablations: the paper's, and ideas.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", default="digits")
    parser.add_argument("--weights", help="weights file (safetensors)")
    parser.add_argument("--img-size", type=int, default=112)
    parser.add_argument("--epochs", type=float, default=8.0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--train-images", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tables", nargs="+", default=[""], help="tables whose titles begin so; default: all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compute", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("-o", "--output", type=Path, required=True, help="directory for the runs")
    args = parser.parse_args()
    study = Study(
        args.data,
        weights=args.weights,
        model_args={"img_size": args.img_size},
        epochs=args.epochs,
        batch_size=args.batch_size,
        train_images=args.train_images,
        evaluate_every=args.epochs,
        optimizer=OptimizerSettings(name="adam"),
        device=args.device,
        compute=args.compute,
    )
    steps = int(args.epochs * (len(sampled(load_dataset(args.data), study).train.labels) // args.batch_size))
    chosen = [case for case in cases(steps) if case.table.startswith(tuple(args.tables))]
    if not chosen:
        raise SystemExit(f"--tables {args.tables}: choose of {'; '.join(dict.fromkeys(c.table for c in cases(steps)))}")
    _keep_apart(study, args.output)
    _train_missing(chosen, study, args.seeds, args.output, args.jobs)
    text = _tables(chosen, args.seeds, args.output)
    write_atomic(args.output / "ablations.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
