"""All runs of a study, several at a time; each is stored when it ends, and a stored run is not repeated.

A run that was cut short goes on from its last evaluation.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from joblib import Parallel, delayed, parallel_config
from rich.console import Console

from adc_edge.data.sources import Dataset, load_dataset
from adc_edge.data.unreadable import check_images
from adc_edge.errors import AdcEdgeError, CheckpointError, SettingError
from adc_edge.evaluation.fleet.partition import divided
from adc_edge.evaluation.fleet.setting import StudyFleet, check_methods
from adc_edge.evaluation.study.progress import Report, StudyDisplay, growths, spelt
from adc_edge.evaluation.study.records import STUDY_FORMAT, Run, Study, StudyPlan, run_name, run_stem
from adc_edge.evaluation.study.resuming import Unfinished
from adc_edge.evaluation.study.samples import sampled
from adc_edge.evaluation.study.setting import Setting, parse_setting
from adc_edge.evaluation.study.task import on_device
from adc_edge.files import json_bytes, write_atomic
from adc_edge.machine.threads import divide_cores

_logger = logging.getLogger(__name__)

_PLAN, _RUNS, _UNFINISHED = "study.json", "runs", "unfinished"


class _Task(NamedTuple):
    setting: Setting
    seed: int
    directory: Path  # of the study
    fleet: StudyFleet | None = None
    allow_broken: bool = False

    @property
    def path(self) -> Path:
        return self.directory / _RUNS / run_name(self.setting, self.seed, self.fleet)

    def unfinished(self, study: Study) -> Unfinished:
        place = self.directory / _UNFINISHED / run_stem(self.setting, self.seed, self.fleet)
        return Unfinished(place, study, self.setting, self.seed, self.fleet)

    def __str__(self) -> str:
        return f"{self.setting} {'' if self.fleet is None else f'({self.fleet}) '}seed {self.seed}"


_Outcome = tuple[_Task, "Run | AdcEdgeError"]
_RunTasks = Callable[[Study, list[_Task], Report], Iterator[_Outcome]]


class Failure(NamedTuple):
    """A run that ended with an AdcEdgeError, for example because training diverged."""

    run: str
    error: AdcEdgeError


def read_runs(directory: Path) -> tuple[Study, list[Run]]:
    """Read the study in ``directory`` and its finished runs.

    Raises:
        SettingError: there is no study.
        CheckpointError: a file is damaged.
    """
    plan = _read_plan(directory)
    if plan is None:
        raise SettingError(f"{directory} holds no {_PLAN}", "the -o directory of an evaluation", "run `evaluate` first")
    cases = itertools.product(plan.settings, plan.all_fleets, plan.seeds)
    tasks = [_Task(parse_setting(text), seed, directory, fleet) for text, fleet, seed in cases]
    return plan.study, [_read(task.path, Run) for task in tasks if task.path.exists()]


def run_study(
    study: Study,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    directory: Path,
    jobs: int,
    console: Console,
    allow_broken: bool = False,
    fleets: Sequence[StudyFleet | None] = (None,),
) -> list[Failure]:
    """Make the missing runs of settings × fleets × seeds, and add both to those that ``directory`` lists.

    Args:
        study: the task; it must equal the one in ``directory`` if there is one, whose ``crop_pct`` it takes over unless
            it has a number.
        settings: the methods.
        seeds: random seeds for each setting.
        directory: each run is written to it when it ends, and kept there at each evaluation until then.
        jobs: runs at a time; if more than one, each has a process and its share of the cores.
        console: shows the progress bar and the time left.
        allow_broken: accept any number of broken images.
        fleets: the devices that a run is made with; None: one with all images.

    Raises:
        SettingError: the directory holds another study, a method has no device, or a device has less than one batch.
        DataError: the data set cannot be read, or too much of it is broken.
        ModelError: the model or its weights cannot be used.
    """
    # A study without a step, as after a wrong option, is no loss.
    begun = any((directory / _RUNS).glob("*.json")) or any((directory / _UNFINISHED).glob("*/checkpoint-*"))
    old = _read_plan(directory) if begun else None
    if old is not None and study.crop_pct == "model":
        study = msgspec.structs.replace(study, crop_pct=old.study.crop_pct)
    study.check()
    check_methods(settings, fleets, study.max_epochs or study.epochs)
    if old is not None:  # before torch is imported to find the device, that of the old study serves
        known = old.study.device if study.device == "auto" else study.device
        _plan(old, msgspec.structs.replace(study, device=known), settings, seeds, fleets, directory)
    # Seeds in the outer loop: every setting runs once before any runs twice.
    cases = itertools.product(seeds, settings, fleets)
    tasks = [_Task(setting, seed, directory, fleet, allow_broken) for seed, setting, fleet in cases]
    missing = [task for task in tasks if not task.path.exists()]
    for task in set(tasks) - set(missing):
        task.unfinished(study).delete()  # of a process that was killed before it could
    dataset = load_dataset(study.data) if missing else None
    if dataset is not None:
        check_images(dataset, allow_broken)
    study = on_device(study)
    plan = _plan(old, study, settings, seeds, fleets, directory)
    if dataset is not None:
        _check_partitions(dataset, study, missing)
        from adc_edge.evaluation.study.split_model import check_model  # torch, whose import takes seconds

        check_model(study, len(dataset.classes))
    write_atomic(directory / _PLAN, json_bytes(plan))
    if done := len(tasks) - len(missing):
        _logger.info("%d of %d runs are there already", done, len(tasks))
    if begun_runs := sum(task.unfinished(study).kept() for task in missing):
        _logger.info("%d of the others %s on from the last evaluation", begun_runs, "goes" if begun_runs == 1 else "go")
    if dataset is None:
        return []
    jobs = min(jobs, len(missing))
    run = partial(_one_by_one, dataset) if jobs <= 1 else partial(_side_by_side, jobs)
    return _run_all(study, missing, run, console)


def _check_partitions(dataset: Dataset, study: Study, tasks: Sequence[_Task]) -> None:
    """Raise SettingError before the first run if a device of any has less than one batch."""
    train = sampled(dataset, study).train
    for fleet, seed in dict.fromkeys((task.fleet, task.seed) for task in tasks):
        if fleet is not None:
            divided(train, fleet.devices, fleet.partition, study.batch_size, seed)


def _run_all(study: Study, tasks: list[_Task], run: _RunTasks, console: Console) -> list[Failure]:
    failures: list[Failure] = []
    with StudyDisplay(console, len(tasks)) as display:
        for task, outcome in run(study, tasks, display.report):
            if isinstance(outcome, AdcEdgeError):
                failures.append(Failure(str(task), outcome))
                _logger.warning("%s: %s", task, outcome)
                continue
            write_atomic(task.path, msgspec.json.encode(outcome))
            task.unfinished(study).delete()
            _logger.info(_line(task, outcome))
        display.complete()
    return failures


def _one_by_one(dataset: Dataset, study: Study, tasks: list[_Task], report: Report) -> Iterator[_Outcome]:
    for task in tasks:
        yield _outcome(study, task, report, dataset)


def _side_by_side(jobs: int, study: Study, tasks: list[_Task], report: Report) -> Iterator[_Outcome]:
    """Make runs in ``jobs`` processes; yield each outcome when its run ends."""
    import torch

    threads = max(1, torch.get_num_threads() // jobs)
    # Spawned: a process that is forked may not use threads or CUDA.
    with multiprocessing.get_context("spawn").Manager() as manager:
        shares = manager.Queue()
        reader = threading.Thread(target=_forward, args=(shares, report), daemon=True)
        reader.start()
        work = (delayed(_work)(study, task, threads, shares) for task in tasks)
        with parallel_config("loky", n_jobs=jobs, inner_max_num_threads=threads):
            with _interrupt_blocked():
                outcomes = Parallel(return_as="generator_unordered", batch_size=1)(work)
            yield from outcomes
        shares.put(None)
        reader.join()


def _line(task: _Task, run: Run) -> str:
    last = run.curve[-1]
    return f"{task}: accuracy {100 * last.best:.1f} %, {100 * run.share:.2f} % of the bytes, {spelt(last.seconds)}"


@contextlib.contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Block SIGINT. Processes started meanwhile inherit the block: Ctrl-C reaches the parent alone, which ends them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _work(study: Study, task: _Task, threads: int, shares: Any) -> _Outcome:
    """Make one run in a worker, which puts what each step adds to the run into ``shares``."""
    import torch

    torch.set_num_threads(threads)
    divide_cores(threads)
    return _outcome(study, task, lambda *growth: shares.put(growth))


def _outcome(study: Study, task: _Task, report: Report, dataset: Dataset | None = None) -> _Outcome:
    from adc_edge.evaluation.study.training import train

    try:
        return task, train(
            study,
            task.setting,
            task.seed,
            progress=growths(report),
            dataset=dataset,
            allow_broken=task.allow_broken,
            unfinished=task.unfinished(study),
            fleet=task.fleet,
        )
    except AdcEdgeError as error:
        return task, error


def _forward(shares: Any, report: Report) -> None:
    """Pass on the growth of shares that workers report, until None."""
    with contextlib.suppress(EOFError, OSError):  # the queue is gone after Ctrl-C
        for growth in iter(shares.get, None):
            report(*growth)


def _plan(
    old: StudyPlan | None,
    study: Study,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    fleets: Sequence[StudyFleet | None],
    directory: Path,
) -> StudyPlan:
    """The plan with the settings, seeds and fleets of ``old`` and of this call."""
    devices = msgspec.UNSET if tuple(fleets) == (None,) else tuple(fleets)
    new = _as_read(StudyPlan(STUDY_FORMAT, study, tuple(map(str, settings)), tuple(seeds), devices))
    if old is None:
        return new
    if old.study != new.study:
        mine, theirs = (msgspec.to_builtins(plan.study) for plan in (new, old))
        pairs = {key: (theirs.get(key), mine.get(key)) for key in theirs | mine}
        differing = [f"{key} {there!r} there, {here!r} here" for key, (there, here) in pairs.items() if there != here]
        raise SettingError(
            f"{directory} holds another study: {'; '.join(differing)}", "the same study", "choose another -o"
        )
    both = tuple(dict.fromkeys(old.all_fleets + new.all_fleets))
    return StudyPlan(
        new.format,
        new.study,
        tuple(dict.fromkeys(old.settings + new.settings)),
        tuple(dict.fromkeys(old.seeds + new.seeds)),
        msgspec.UNSET if both == (None,) else both,
    )


def _as_read(plan: StudyPlan) -> StudyPlan:
    """The plan as it is read from its file, where names of files have other characters if they are not UTF-8."""
    return msgspec.json.decode(json_bytes(plan), type=StudyPlan)


def _read_plan(directory: Path) -> StudyPlan | None:
    path = directory / _PLAN
    if not path.exists():
        return None
    plan: StudyPlan = _read(path, StudyPlan)
    if plan.format != STUDY_FORMAT:
        raise CheckpointError(
            f"{path} of format {plan.format}", f"format {STUDY_FORMAT}", "use the version that wrote it"
        )
    return plan


def _read(path: Path, kind: Callable[..., Any]) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{path}: {error}", "an intact file", "delete it: the run is then made again") from error
