"""Accuracy of evaluations whose activations are sent in principal components, beside that of unrounded activations.

    python benchmarks/evaluation_precision.py --data npz:cifar10_subset.npz --img-size 64 \\
        --weights deit_tiny_patch16_224.safetensors --train-images 2000 --test-images 1000 --write

Trains as `adc-edge evaluate` does, in each ``--setting``. At each of its evaluations the same trunk's test activations
are also encoded in each of ``--precisions``, in messages of as many images as `serve` sends, decoded, and judged by the
same head. ``--write`` puts the rows into docs/results/evaluation-precision.json, in place of rows of the same images
and setting; results_page.py makes the table of them. Differences are in points, precision less unrounded.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from results_records import FORMAT, RESULTS, Judged, JudgedRow, JudgedTable, Records, Source, read_records
from results_tables import as_kilobytes, judged_text
from results_taking import as_text

from adc_edge import __version__
from adc_edge.arrays import Float32, Int64
from adc_edge.codec.precision import Precision, decode, encode
from adc_edge.data.loader import Batch
from adc_edge.data.sources import load_dataset
from adc_edge.errors import SettingError
from adc_edge.evaluation.study.records import Point, Study
from adc_edge.evaluation.study.setting import parse_setting
from adc_edge.evaluation.study.split_model import SplitModel, computing
from adc_edge.evaluation.study.training import train
from adc_edge.files import write_atomic
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.planning.message_sizes import evaluation_messages

FILE, TABLE = "evaluation-precision", "judged"
_BATCH = 250  # images that the head judges at a time


class Found(NamedTuple):
    """One evaluation: accuracies in 0..1 with unrounded activations and in each precision, and bytes of an image."""

    unrounded: float
    accuracies: dict[Precision, float]
    bytes_an_image: dict[Precision, float]


class Judge:
    """Judges one trunk's test activations in several precisions, at each evaluation of a run.

    Args:
        study: the number format, and images of a step.
        precisions: in which test activations are sent.
    """

    def __init__(self, study: Study, precisions: Sequence[Precision]) -> None:
        self._study, self._precisions = study, precisions
        self.found: list[Found] = []

    @torch.no_grad()
    def __call__(self, point: Point, trunks: Sequence[SplitModel], tests: Sequence[Batch]) -> None:
        """Take an evaluation of a run of one device; its modules are in their mode of evaluation."""
        (parts,) = trunks
        with computing(self._study):
            outputs = np.concatenate([_outputs(parts, batch) for batch in tests])
        labels = np.concatenate([batch.labels for batch in tests])
        accuracies, sizes = {}, {}
        for precision in self._precisions:
            received, size = sent(outputs, self._study.batch_size, precision)
            accuracies[precision] = self._accuracy(parts, received, labels)
            sizes[precision] = size / len(labels)
        self.found.append(Found(self._accuracy(parts, outputs, labels), accuracies, sizes))

    def _accuracy(self, parts: SplitModel, outputs: Float32, labels: Int64) -> float:
        right = 0
        for first in range(0, len(outputs), _BATCH):
            with computing(self._study):
                logits = parts.head(torch.from_numpy(outputs[first : first + _BATCH]).to(parts.place))
            right += int((logits.argmax(1).cpu().numpy() == labels[first : first + _BATCH]).sum())
        return right / len(labels)


def _outputs(parts: SplitModel, batch: Batch) -> Float32:
    outputs: Float32 = parts.trunk(torch.from_numpy(batch.images).to(parts.place)).float().cpu().numpy()
    return outputs


def sent(outputs: Float32, batch_size: int, precision: Precision) -> tuple[Float32, int]:
    """Activations ``[B, N, D]`` as a trainer decodes them, and the bytes of their messages' bodies with labels."""
    images, tokens, dim = outputs.shape
    messages = evaluation_messages(tokens, dim, images, batch_size, precision)
    parts = np.split(outputs, np.cumsum(messages.images)[:-1])
    return np.concatenate([decode(encode(x, precision), x.shape, precision) for x in parts]), sum(messages.body_bytes)


def row_of(runs: Sequence[Sequence[Found]], precisions: Sequence[Precision], about: dict[str, str]) -> JudgedRow:
    """The row of a setting.

    A difference's standard error is over the means of the runs, since evaluations of one run are not independent.

    Args:
        runs: the evaluations of each seed's run.
        precisions: the table's columns.
        about: the row's source, data and setting.
    """
    cells = []
    for precision in precisions:
        apart = [[100 * (one.accuracies[precision] - one.unrounded) for one in run] for run in runs]
        means = [float(np.mean(run)) for run in apart]
        sem = float(np.std(means, ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else None
        largest = max(abs(value) for run in apart for value in run)
        size = runs[0][-1].bytes_an_image[precision]
        cells.append(
            Judged(
                round(float(np.mean(means)), 2), None if sem is None else round(sem, 2), round(largest, 2), round(size)
            )
        )
    accuracy = round(100 * float(np.mean([run[-1].unrounded for run in runs])), 1)
    return JudgedRow(seeds=len(runs), evaluations=len(runs[0]), accuracy=accuracy, judged=cells, **about)


def with_rows(rows: Sequence[JudgedRow], precisions: Sequence[Precision], source: Source, directory: Path) -> Records:
    """The records of the file with these rows, in place of rows of the same data and setting.

    Raises:
        SettingError: the file's table has other precisions.
    """
    old = read_records(FILE, directory) if (directory / f"{FILE}.json").exists() else Records(FORMAT, {}, {})
    table = old.tables.get(TABLE, JudgedTable(list(precisions), []))
    assert isinstance(table, JudgedTable), "the file has one table"
    if table.precisions != list(precisions):
        raise SettingError(
            f"--precisions {','.join(precisions)}",
            f"those of {FILE}.json: {','.join(table.precisions)}",
            "choose them, or delete the file",
        )
    new = {(row.data, row.setting) for row in rows}
    kept = [row for row in table.rows if (row.data, row.setting) not in new]
    sources = {name: one for name, one in old.sources.items() if name in {row.source for row in kept}}
    mine = {row.source: source for row in rows}
    return Records(FORMAT, {**sources, **mine}, {TABLE: JudgedTable(table.precisions, [*kept, *rows])})


def command_of(words: Sequence[str]) -> str:
    """The command as others type it: files by their names, without the folders of this machine."""
    return shlex.join(["python", "benchmarks/evaluation_precision.py", *map(_without_folders, words)])


def _without_folders(word: str) -> str:
    """``npz:/data/x.npz`` and ``/data/x.npz`` without ``/data/``; a setting as none/pca1:pca0.25 stays."""
    return re.sub(r"^(\w+:)?\.{0,2}/(?:.*/)?(?=[^/]+/?$)", r"\1", word)


def main() -> None:
    args = _arguments().parse_args()
    torch.set_num_threads(args.threads)
    study = _study(args)
    dataset, precisions = load_dataset(study.data), tuple(args.precisions)
    images = min(study.test_images or len(dataset.test.labels), len(dataset.test.labels))
    weights = "" if args.weights else ", random weights"
    name = (
        f"{args.name or Path(study.data.rpartition(':')[2]).stem}{weights}, {args.img_size} px, {images:,} test images"
    )
    rows = []
    for setting in args.setting:
        runs = []
        for seed in args.seeds:
            judge = Judge(study, precisions)
            train(study, parse_setting(setting), seed, dataset=dataset, judged=judge)
            runs.append(judge.found)
            for number, one in enumerate(judge.found, 1):
                told = (f"{p} {100 * (one.accuracies[p] - one.unrounded):+.1f}" for p in precisions)
                print(
                    f"{setting} seed {seed} evaluation {number}: {100 * one.unrounded:.1f} %; {', '.join(told)}",
                    flush=True,
                )
        rows.append(row_of(runs, precisions, {"source": f"{name}: {setting}", "data": name, "setting": setting}))
        for precision, cell in zip(precisions, rows[-1].judged, strict=True):
            print(f"{setting} in {precision}: {judged_text(cell)} points, {as_kilobytes(cell)} an image", flush=True)
    if args.write:
        source = Source(__version__, args.machine, command_of(sys.argv[1:]))
        write_atomic(RESULTS / f"{FILE}.json", as_text(with_rows(rows, precisions, source, RESULTS)))


def _study(args: argparse.Namespace) -> Study:
    return Study(
        args.data,
        model=args.model,
        weights=args.weights,
        model_args={"img_size": args.img_size},
        crop_pct=1.0,
        split=args.split,
        batch_size=args.batch_size,
        epochs=args.epochs,
        evaluate_every=args.eval_every,
        train_images=args.train_images,
        test_images=args.test_images,
        augment=args.augment,
        optimizer=OptimizerSettings(name="adam", lr=args.lr, schedule=args.schedule),
        device=args.device,
        compute=args.compute,
    ).check()


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _precisions(text: str) -> list[str]:
    found = _listed(text)
    if not found or not set(found) <= set(get_args(Precision)):
        raise argparse.ArgumentTypeError(f"{text}: give any of {', '.join(get_args(Precision))}")
    return found


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="A data source, as of `adc-edge evaluate`.")
    parser.add_argument("--name", help="The data in words; default: the name of the file.")
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--weights", help="A weights file (safetensors); default: random weights.")
    parser.add_argument("--img-size", type=int, default=64, help="Side in pixels.")
    parser.add_argument("--split", type=int, default=3, help="The last block of the trunk.")
    parser.add_argument(
        "--setting", nargs="+", default=["none/pca1:pca0.25", "none/pca0.5:pca0.125"], help="Settings that train."
    )
    parser.add_argument("--precisions", type=_precisions, default="pca4,pca2,pca1,pca0.5", help="Of test activations.")
    parser.add_argument("--seeds", type=lambda text: [int(one) for one in _listed(text)], default="0,1,2")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=float, default=8.0)
    parser.add_argument("--eval-every", type=float, default=1.0, help="Epochs between evaluations.")
    parser.add_argument("--train-images", type=int, default=0, help="0: all.")
    parser.add_argument("--test-images", type=int, default=0, help="0: all.")
    parser.add_argument("--augment", default="flip")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--schedule", choices=["constant", "cosine"], default="constant")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compute", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--threads", type=int, default=1, help="Of torch: on busy cores several wait for each other.")
    parser.add_argument("--machine", default="2 cores of x86", help="This machine in words, for --write.")
    parser.add_argument("--write", action="store_true", help=f"Write docs/results/{FILE}.json.")
    return parser


if __name__ == "__main__":
    main()
