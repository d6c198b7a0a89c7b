"""All runs of a study, some at a time, each kept when it is done: what is there already is not run again."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adc_edge import machine
from adc_edge.data.sources import load_dataset
from adc_edge.errors import AdcEdgeError, CheckpointError, SettingError
from adc_edge.evaluation.study.records import STUDY_FORMAT, Run, Study, StudyPlan, run_name
from adc_edge.evaluation.study.setting import Setting, parse_setting
from adc_edge.evaluation.study.training import train
from adc_edge.files import write_atomic

_PLAN, _RUNS = "study.json", "runs"
_POLL_S = 0.5

_told: Any = None  # in a worker: the queue to its parent


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

        for task, outcome in (_one_by_one if jobs == 1 else partial(_at_a_time, jobs))(study, tasks, advance):
            if isinstance(outcome, AdcEdgeError):
                failures.append(Failure(str(task), outcome))
                display.console.print(f"{task}: {outcome}", markup=False)
                continue
            write_atomic(directory / _RUNS / run_name(*task), msgspec.json.encode(outcome))
            display.console.print(_line(task, outcome), markup=False, highlight=False)
        display.update(whole, completed=float(len(tasks)))
    return failures


def _one_by_one(study: Study, tasks: list[_Task], advance: Callable[[float], None]) -> Iterator[_Outcome]:
    dataset = load_dataset(study.data)
    for task in tasks:
        try:
            yield task, train(study, task.setting, task.seed, tell=_increments(advance), dataset=dataset)
        except AdcEdgeError as error:
            yield task, error


def _at_a_time(jobs: int, study: Study, tasks: list[_Task], advance: Callable[[float], None]) -> Iterator[_Outcome]:
    """So many runs in processes of their own."""
    spawn = multiprocessing.get_context("spawn")  # a process that is forked may not use CUDA
    told = spawn.Queue()
    waiting = list(reversed(tasks))
    with _pool(jobs, (told, max(1, torch.get_num_threads() // jobs)), spawn) as pool:
        running: dict[Future[Run], _Task] = {}
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop()
                running[pool.submit(_work, study, task)] = task
            finished, _ = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for share in _drain(told):
                advance(share)
            for future in finished:
                task = running.pop(future)
                try:
                    yield task, future.result()
                except AdcEdgeError as error:
                    yield task, error


def _line(task: _Task, run: Run) -> str:
    last = run.curve[-1]
    return f"{task!s:40} {100 * run.share:6.2f} % of the bytes  {100 * last.best:5.1f} %  {last.seconds:5.0f} s"


@contextlib.contextmanager
def _pool(jobs: int, arguments: tuple[Any, int], context: Any) -> Iterator[ProcessPoolExecutor]:
    """Workers that end at once when this block is left by an error or Ctrl-C."""
    pool = ProcessPoolExecutor(jobs, context, _begin, arguments)
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown(wait=True)


def _begin(told: Any, threads: int) -> None:
    global _told
    _told = told
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    torch.set_num_threads(threads)
    machine.limit_threads(threads)


def _work(study: Study, task: _Task) -> Run:
    """One run, in a worker; tells the share of it that each step is."""
    return train(study, task.setting, task.seed, tell=_increments(_told.put))


def _increments(advance: Callable[[float], None]) -> Callable[[float], None]:
    """Told how much of a run is done, tells by how much that has grown."""
    before = 0.0

    def tell(share: float) -> None:
        nonlocal before
        share = min(share, 1.0)
        advance(share - before)
        before = share

    return tell


def _drain(told: Any) -> Iterator[float]:
    with contextlib.suppress(queue.Empty):
        while True:
            yield told.get_nowait()


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
