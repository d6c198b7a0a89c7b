"""The collective operations of a round: small tables, sums of gradients, and bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from adc_edge.cloud_trainer.ranks.world import World, losing_ranks
from adc_edge.errors import RanksLost as RanksLost

_WAITS = (timedelta(milliseconds=1), timedelta(milliseconds=2))  # between two calls of idle, at first and later
_FIRST = 50
_LOOKS, _LOOK_S = 10, 0.0002  # before; work.wait knows whole milliseconds alone


class Exchange:
    """Collective operations: each one has to be called by all ranks, in the same order.

    Each raises RanksLost if a rank is gone, or silent for longer than the world's timeout; then the process has to end
    with an exit code other than 0, so that torchrun starts all ranks anew. What ``idle`` raises passes unchanged, and
    the process has to end as well, since the operation goes on.

    Args:
        world: all ranks, entered.
        idle: called again and again while other ranks are waited for, about every millisecond; must be quick.
    """

    def __init__(self, world: World, idle: Callable[[], None] = lambda: None) -> None:
        self._world, self.idle = world, idle

    def rows(self, row: Sequence[int]) -> list[list[int]]:
        """Return the row of every rank, by rank. All rows have the same length."""
        table = torch.zeros(self._world.size, len(row), dtype=torch.int64)  # [world, fields]
        table[self._world.rank] = torch.tensor(row, dtype=torch.int64)
        self._reduce(table, dist.ReduceOp.SUM)
        return [list(map(int, each)) for each in table.tolist()]

    def sum(self, flat: torch.Tensor) -> None:
        """Replace ``flat`` (float32 ``[N]``, contiguous, N the same on all ranks) by the sum over ranks, in place.

        All ranks get the same bits. A tensor on a GPU goes through NCCL if each rank has a GPU of its own.
        """
        assert flat.dtype == torch.float32
        assert flat.is_contiguous()
        if not flat.is_cuda:
            self._reduce(flat, dist.ReduceOp.SUM)
        elif self._world.gpus is None:
            host = flat.cpu()
            self._reduce(host, dist.ReduceOp.SUM)
            flat.copy_(host)
        else:
            self._sum_on_gpus(flat, self._world.gpus)

    def blobs(self, mine: bytes, sizes: Sequence[int] | None = None) -> list[bytes]:
        """Return the bytes of every rank, by rank.

        Args:
            mine: of this rank.
            sizes: lengths of all ranks' bytes, by rank, where all ranks know them; None: they are exchanged first.
        """
        if sizes is None:
            sizes = [size for (size,) in self.rows([len(mine)])]
        if not (longest := max(sizes)):
            return [b""] * self._world.size
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(mine)] = torch.frombuffer(bytearray(mine or b"\0"), dtype=torch.uint8)[: len(mine)]
        told = [torch.empty_like(padded) for _ in sizes]
        self._wait(dist.all_gather(told, padded, async_op=True))
        return [each[:size].numpy().tobytes() for each, size in zip(told, sizes, strict=True)]

    def least(self, value: int) -> int:
        """Return the smallest value of all ranks."""
        all_values = torch.tensor([value], dtype=torch.int64)
        self._reduce(all_values, dist.ReduceOp.MIN)
        return int(all_values.item())

    def _reduce(self, tensor: torch.Tensor, how: dist.ReduceOp.RedOpType) -> None:
        self._wait(dist.all_reduce(tensor, how, async_op=True))

    def _wait(self, work: dist.Work | None) -> None:
        """Wait for an operation of gloo, which only here tells of lost ranks; call ``idle`` in between."""
        assert work is not None  # this process is one of the group
        for _ in range(_LOOKS):  # where all have come it takes less than a millisecond
            if work.is_completed():
                break
            time.sleep(_LOOK_S)
        waits = 0
        while not self._ends_within(work, _WAITS[waits > _FIRST]):
            waits += 1
            self.idle()

    @staticmethod
    def _ends_within(work: dist.Work, longest: timedelta) -> bool:
        """Return whether an operation of gloo has ended, after ``longest`` at most; raises RanksLost if it failed."""
        try:
            work.wait(longest)
        except RuntimeError:  # also if it has not ended yet
            if not work.is_completed():
                return False
            with losing_ranks("waiting for other ranks"):
                work.wait()
        return True

    def _sum_on_gpus(self, flat: torch.Tensor, gpus: dist.ProcessGroup) -> None:
        """Sum by NCCL. Whether all have it is told through gloo, which learns of a dead rank at once; NCCL does not."""
        with losing_ranks("sum on GPUs"):
            work = dist.all_reduce(flat, group=gpus, async_op=True)
            assert work is not None
            work.wait()  # in the stream's order: it does not block
            ended: torch.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ended.record()
        while not self.least(int(ended.query())):
            self.idle()
