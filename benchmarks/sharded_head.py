"""A head that two ranks share by FSDP2 v one that each rank holds whole: agreement, memory, time, bytes a step.

    python benchmarks/sharded_head.py --json docs/results/sharded_head.json
    python benchmarks/sharded_head.py --table   # the arithmetic alone: from what size on a head is to be shared

The head is the second half of a ViT-B with random weights. torchrun starts two ranks of one thread with gloo on
loopback, in a network namespace of their own, so that nobody else's bytes are counted. Where the machine allows none,
the bytes are left out.
The trainer keeps replicas: here is what a head beyond one GPU's memory would need (docs/scale.md).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sharded_memory
from harness import Result, arguments, compare, show, table

RANKS = 2
MOST_DIFFERENCE = 1e-5
_RANK = Path(__file__).with_name("sharded_head_rank.py")
_NAMESPACE = ("unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}  # glibc gives buffers back at once, so that no holes are counted
_TIMEOUT_S = 900.0

Answer = dict[str, float]


def namespace() -> tuple[str, ...]:
    """The command before a command that runs it in a network namespace of its own; empty if that is not allowed."""
    if shutil.which("unshare") is None:
        return ()
    tried = subprocess.run([*_NAMESPACE, "true"], capture_output=True, check=False)
    return _NAMESPACE if tried.returncode == 0 else ()


def run_ranks(job: dict[str, Any], ranks: int = RANKS, more: Mapping[str, str] | None = None) -> list[Answer]:
    """The ranks' answers to a job.

    Args:
        job: its fields, see `sharded_head_rank.py`.
        ranks: their number.
        more: of their environment.
    """
    with tempfile.TemporaryDirectory() as directory:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [*namespace(), *torchrun, str(_RANK), json.dumps(job), directory]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(more or {})}
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, env=environment, check=False)
        if done.returncode:
            raise RuntimeError(f"the ranks ended with {done.returncode}: {done.stdout}{done.stderr}")
        return [json.loads(Path(directory, f"rank-{rank}.json").read_text()) for rank in range(ranks)]


def job_of(args: argparse.Namespace, task: str, steps: int, **more: str) -> dict[str, Any]:
    head = {"model": args.model, "model_args": {}, "split": args.split, "classes": args.classes}
    return head | {"task": task, "steps": steps, "rows": args.rows, "tokens": args.tokens} | more


def agreement(args: argparse.Namespace) -> list[Result]:
    """Results whose value is a difference from one process, over the bound."""
    answers = run_ranks(job_of(args, "agree", args.agree_steps))
    worst = {name: max(answer[name] for answer in answers) for name in answers[0]}
    return [compare(f"sharded v one process: {name}", value, MOST_DIFFERENCE, "") for name, value in worst.items()]


def memory(args: argparse.Namespace) -> list[Result]:
    mine, other = (
        run_ranks(job_of(args, "memory", args.memory_steps, how=how), more=_AT_ONCE)[0]
        for how in ("sharded", "replicated")
    )
    return [compare(f"memory of a rank: {name}, sharded v replicated", mine[name], other[name], "MB") for name in mine]


def speed(args: argparse.Namespace) -> list[Result]:
    answers = run_ranks(job_of(args, "time", args.turns))
    found = {name: statistics.mean(answer[name] for answer in answers) for name in answers[0]}
    return steps(found, counted=bool(namespace()))


def steps(found: Answer, counted: bool) -> list[Result]:
    """Results of the timed steps.

    Args:
        found: means over the ranks.
        counted: whether the bytes are those of the ranks alone; if not, they are left out, and this is said.
    """
    yours, sent = found["replicated, ms"], (found["sharded, sent MB"], found["replicated, sent MB"])
    results = [
        compare("step: sharded v replicated", found["sharded, ms"], yours, "ms"),
        compare("step: replicated v without exchange", yours, found["without exchange, ms"], "ms"),
    ]
    if counted:
        return [*results, compare("sent by a rank a step: sharded v replicated", *sent, "MB")]
    print(
        "bytes sent: left out, because this machine allows no network namespace, and loopback has those of others too"
    )
    return results


def show_table(images: int) -> None:
    """Print the arithmetic of memory."""
    title = f"fp32 and Adam, messages of {images} images; GPUs needed by their memory (1: a GPU holds the head alone)"
    table(title, sharded_memory.COLUMNS, sharded_memory.rows(images))
    cards = [(f"{card} GB", f"{sharded_memory.most_parameters(card, 0) / 1e9:.2f}") for card in sharded_memory.CARDS_GB]
    table("largest head of replicas, before activations", ("GPU", "parameters, 1e9"), cards)


def options() -> argparse.ArgumentParser:
    parser = arguments("A head shared by FSDP2 v replicas: agreement, memory, time, bytes.")
    parser.add_argument("--table", action="store_true", help="print the arithmetic of memory alone")
    parser.add_argument("--images", type=int, default=8, help="images of a message in the arithmetic")
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--split", type=int, default=6)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rows", type=int, default=2, help="T of a message: images, or clusters of them")
    parser.add_argument("--tokens", type=int, default=197, help="k of each row")
    parser.add_argument("--agree-steps", type=int, default=4)
    parser.add_argument("--memory-steps", type=int, default=3)
    parser.add_argument("--turns", type=int, default=8, help="steps of each kind that are timed")
    return parser


def main() -> None:
    args = options().parse_args()
    show_table(args.images)
    if not args.table:
        results = [*agreement(args), *memory(args), *speed(args)]
        show(f"{args.model}, split {args.split}, T={args.rows}, k={args.tokens}, {RANKS} ranks", results, args.json)


if __name__ == "__main__":
    main()
