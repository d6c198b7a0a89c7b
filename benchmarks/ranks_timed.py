"""`adc-edge` as one rank of ranks.py that times its rounds: the same program, with clocks around some of its calls.

    TIMED_ROUNDS=DIRECTORY torchrun … benchmarks/ranks_timed.py trainer …

At its end a rank writes DIRECTORY/rank-N.json. All ranks of a host have the same clock.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIRECTORY = "TIMED_ROUNDS"
_rounds: list[
    tuple[float, float, bool]
] = []  # begin and end of each, and whether it had work: messages, steps, a checkpoint
_calls: dict[str, list[float]] = {}  # seconds of each call


def timing(owner: Any, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """A method that does the same and notes how long that took."""
    spent = _calls.setdefault(f"{owner.__name__}.{name}", [])

    @functools.wraps(call)
    def timed(*args: Any, **named: Any) -> Any:
        start = time.monotonic()
        try:
            return call(*args, **named)
        finally:
            spent.append(time.monotonic() - start)

    return timed


def put_clocks() -> None:
    """Time rounds, exchanges, and what the head does."""
    from adc_edge.cloud_trainer.head import HeadTraining
    from adc_edge.cloud_trainer.ranks.exchange import Exchange
    from adc_edge.cloud_trainer.ranks.rounds import RankRounds

    for owner, names in ((Exchange, ("rows", "sum", "blobs")), (HeadTraining, ("learn", "update"))):
        for name in names:
            setattr(owner, name, timing(owner, name, getattr(owner, name)))
    turn = RankRounds.turn

    @functools.wraps(turn)
    def timed(self: RankRounds, **named: Any) -> Any:
        start = time.monotonic()
        outcome = turn(self, **named)
        work = outcome.busy or outcome.committed is not None or outcome.over
        _rounds.append((start, time.monotonic(), work))
        return outcome

    setattr(RankRounds, "turn", timed)  # noqa: B010


def main() -> None:
    from adc_edge.__main__ import run

    put_clocks()
    try:
        run()
    finally:
        file = Path(os.environ[DIRECTORY], f"rank-{os.environ['RANK']}.json")
        file.write_text(json.dumps({"rounds": _rounds, "calls": _calls}))


if __name__ == "__main__":
    main()
