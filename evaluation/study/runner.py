"""All runs of a study, some at a time, each kept when it is done: what is there already is not run again."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from joblib import Parallel, delayed, parallel_config
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adc_edge import machine
from adc_edge.data.sources import Dataset, load_dataset
from adc_edge.errors import AdcEdgeError, CheckpointError, SettingError
from adc_edge.evaluation.study.records import STUDY_FORMAT, Run, Study, StudyPlan, run_name
from adc_edge.evaluation.study.setting import Setting, parse_setting
from adc_edge.evaluation.study.training import train
from adc_edge.files import write_atomic

_PLAN, _RUNS = "study.json", "runs"


class _Task(NamedTuple):
    setting: Setting
    seed: int

    def __str__(self) -> str:
        return f"{self.setting} seed {self.seed}"


_Outcome = tuple[_Task, "Run | AdcEdgeError"]


class Failure(NamedTuple):
    """A run that ended with an error of ours: a training that diverged, say."""

    what: str
    error: AdcEdgeError


def read_runs(directory: Path) -> tuple[Study, list[Run]]:
    """The study that ``directory`` holds and its finished runs.

    Raises:
        SettingError: it holds none.
        CheckpointError: a file there is not as it was written.
    """
    plan = _read_plan(directory)
    if plan is None:
        raise SettingError(f"{directory} holds no {_PLAN}", "the -o directory of an evaluation", "run `evaluate` first")
    tasks = [_Task(parse_setting(text), seed) for text in plan.settings for seed in plan.seeds]
    paths = [directory / _RUNS / run_name(*task) for task in tasks]
    return plan.study, [_read(path, Run) for path in paths if path.exists()]


def run_study(
    study: Study, settings: Sequence[Setting], seeds: Sequence[int], directory: Path, jobs: int, console: Console
) -> list[Failure]:
    """Run what is missing of settings × seeds; settings and seeds that ``directory`` knows already stay known.

    Args:
        study: the task; it must be the one that ``directory`` holds, if it holds one.
        settings: the methods.
        seeds: of each.
        directory: where each run is written when it is done.
        jobs: runs at a time; more than one, each in a process with its share of the processor's cores.
        console: shows progress and the time left.

    Raises:
        SettingError: the directory holds another study.
    """
    plan = _merge(
        _read_plan(directory),
        StudyPlan(STUDY_FORMAT, study.check(), tuple(map(str, settings)), tuple(seeds)),
        directory,
    )
    write_atomic(directory / _PLAN, msgspec.json.format(msgspec.json.encode(plan)) + b"\n")
    # Seeds outside: whatever is finished when somebody looks, every setting has been tried.
    tasks = [_Task(setting, seed) for seed in seeds for setting in settings]
    missing = [task for task in tasks if not (directory / _RUNS / run_name(*task)).exists()]
    if done := len(tasks) - len(missing):
        console.print(f"{done} of {len(tasks)} runs are there already")
    return _run_all(study, missing, directory, max(1, min(jobs, len(missing))), console) if missing else []


def _run_all(study: Study, tasks: list[_Task], directory: Path, jobs: int, console: Console) -> list[Failure]:
    failures: list[Failure] = []
    with _display(console) as display:
        whole = display.add_task("all runs", total=float(len(tasks)))

        def advance(share: float) -> None:
            display.advance(whole, share)

        for task, outcome in (_one_by_one if jobs == 1 else partial(_side_by_side, jobs))(study, tasks, advance):
            if isinstance(outcome, AdcEdgeError):
                failures.append(Failure(str(task), outcome))
                display.console.print(f"{task}: {outcome}", markup=False)
                continue
            write_atomic(directory / _RUNS / run_name(*task), msgspec.json.encode(outcome))
            display.console.print(_line(task, outcome), markup=False, highlight=False)
        display.update(whole, completed=float(len(tasks)))
    return failures


def _one_by_one(study: Study, tasks: list[_Task], progress: Callable[[float], None]) -> Iterator[_Outcome]:
    dataset = load_dataset(study.data)
    for task in tasks:
        yield _outcome(study, task, progress, dataset)


def _side_by_side(jobs: int, study: Study, tasks: list[_Task], progress: Callable[[float], None]) -> Iterator[_Outcome]:
    """Runs in ``jobs`` processes, each outcome when it is there."""
    threads = max(1, torch.get_num_threads() // jobs)
    # Spawned: a process that is forked may not use threads or CUDA.
    with multiprocessing.get_context("spawn").Manager() as manager:
        shares = manager.Queue()
        reader = threading.Thread(target=_forward, args=(shares, progress), daemon=True)
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
    return f"{task!s:40} {100 * run.share:6.2f} % of the bytes  {100 * last.best:5.1f} %  {last.seconds:5.0f} s"


@contextlib.contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Delay Ctrl-C; a process that is started meanwhile never gets it, so that its parent alone ends it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _work(study: Study, task: _Task, threads: int, shares: Any) -> _Outcome:
    """One run, in a worker; ``shares`` gets the share of it that each step is."""
    torch.set_num_threads(threads)
    machine.limit_threads(threads)
    return _outcome(study, task, shares.put)


def _outcome(study: Study, task: _Task, progress: Callable[[float], None], dataset: Dataset | None = None) -> _Outcome:
    try:
        return task, train(study, task.setting, task.seed, progress=_increments(progress), dataset=dataset)
    except AdcEdgeError as error:
        return task, error


def _increments(advance: Callable[[float], None]) -> Callable[[float], None]:
    """Told how much of a run is done, tells by how much that has grown."""
    before = 0.0

    def tell(share: float) -> None:
        nonlocal before
        share = min(share, 1.0)
        advance(share - before)
        before = share

    return tell


def _forward(shares: Any, progress: Callable[[float], None]) -> None:
    """Pass on what workers report, until None ends it."""
    with contextlib.suppress(EOFError, OSError):  # the queue is gone after Ctrl-C
        for share in iter(shares.get, None):
            progress(share)


def _display(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.1f} of {task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
        speed_estimate_period=600,
    )


def _merge(old: StudyPlan | None, new: StudyPlan, directory: Path) -> StudyPlan:
    """What the directory is to hold: the settings and seeds of both."""
    if old is None:
        return new
    if old.study != new.study:
        mine, theirs = (msgspec.to_builtins(plan.study) for plan in (new, old))
        differing = [f"{key} {theirs[key]!r} there, {mine[key]!r} here" for key in mine if mine[key] != theirs[key]]
        raise SettingError(
            f"{directory} holds another study: {'; '.join(differing)}", "the same study", "choose another -o"
        )
    return StudyPlan(
        new.format,
        new.study,
        tuple(dict.fromkeys(old.settings + new.settings)),
        tuple(dict.fromkeys(old.seeds + new.seeds)),
    )


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
        raise CheckpointError(
            f"{path}: {error}", "the file as it was written", "delete it: that run is then made again"
        ) from error
