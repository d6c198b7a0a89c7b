"""All ranks of a trainer as one process group of torch.distributed."""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from adc_edge import defaults
from adc_edge.cloud_trainer.ranks.launch import Launch
from adc_edge.cloud_trainer.ranks.open_stores import check_stores
from adc_edge.cloud_trainer.ranks.private import choose_interface
from adc_edge.errors import RanksLost, SettingError
from adc_edge.wire.addresses import Address, NameUnknown, loops, resolve

OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
_AGENT_S = 30.0  # its store listens before it starts a rank
_LAST_S = 10.0  # for all to have heard of the end
_DESTROY_S = 1.0
_POLL_S = 0.01
_GLOO_THREAD = "gloo_tcp_loop"


class World:
    """The process group of all ranks: gloo, and NCCL too for a head on GPUs. Enter it once, in the main thread.

    A rank that is started anew never meets addresses of its predecessors, although torchrun's store outlives them:
    the ranks agree on a new name at each start, and keep everything in the store under it.

    Args:
        launch: this rank's place.
        timeout_s: longest silence of another rank.
        device: type of the head's device. On ``cuda`` this rank takes a GPU of its own, as far as there are enough.
        public: ranks may talk through a public address.

    Raises (on entering):
        RanksLost: the other ranks do not come.
        SettingError: ranks would talk through a public address, or torchrun's store can be reached through one; those
            on several hosts lack the variable without which restarts fail; or the heads of some are on GPUs, of others
            not.
    """

    def __init__(
        self,
        launch: Launch,
        timeout_s: float = defaults.RANK_TIMEOUT_S,
        device: str = "cpu",
        public: bool = False,
    ) -> None:
        self.launch, self.timeout = launch, timedelta(seconds=timeout_s)
        self.rank, self.size = launch.rank, launch.world
        self.gpus: dist.ProcessGroup | None = None  # NCCL, if every rank has a GPU of its own
        self._device, self._public = device, public

    def __enter__(self) -> World:
        check_store(self.launch)
        interface = choose_interface(self.launch, self._public)
        check_stores(self.launch, self._public)
        with _ended_by_signals(), losing_ranks("start"):
            store = self._store(interface.address)
            store.set_timeout(self.timeout)
            shared = PrefixStore(meet(store, self.rank, self.size, self.timeout), store)
            dist.init_process_group("gloo", store=shared, rank=self.rank, world_size=self.size, timeout=self.timeout)
            _let_holders_run()
            kinds = self._kinds()
        check_kinds(kinds)
        if self._device == "cuda":
            with _ended_by_signals(), losing_ranks("start"):
                self._take_gpu()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End together with the other ranks; after an error wait for none, as an operation may still hang."""
        if kind is None:
            with suppress(RuntimeError):  # a rank that is gone by now has heard all
                dist.barrier(async_op=True).wait(timedelta(seconds=_LAST_S))
        elif self.gpus is not None and hasattr(self.gpus, "abort"):
            self.gpus.abort()
        ending = threading.Thread(target=_destroy, daemon=True)
        ending.start()
        ending.join(_DESTROY_S)

    def _store(self, address: str) -> TCPStore:
        """Return the store of all ranks. Where no agent serves it rank 0 does, on one address of its host."""
        launch = self.launch
        if launch.agent_store:
            timeout = min(self.timeout, timedelta(seconds=_AGENT_S))
            return TCPStore(launch.master, launch.master_port, timeout=timeout)
        if launch.rank != 0:
            return TCPStore(launch.master, launch.master_port, timeout=self.timeout)
        listening = _listen(Address(launch.master, launch.master_port), address)
        host, port = listening.getsockname()[:2]
        return TCPStore(
            host,
            port,
            is_master=True,
            timeout=self.timeout,
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )

    def _kinds(self) -> list[str]:
        """Return the kind of device that each rank's head is on, by rank."""
        on_gpu = torch.zeros(self.size, dtype=torch.int64)
        on_gpu[self.rank] = self._device == "cuda"
        dist.all_reduce(on_gpu)
        return ["cuda" if each else "cpu" for each in on_gpu.tolist()]

    def _take_gpu(self) -> None:
        """Choose this rank's GPU. Ranks that share one exchange through the host, which NCCL refuses to do."""
        torch.cuda.set_device(self.launch.local_rank % torch.cuda.device_count())
        own = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        used = torch.zeros(self.size, dtype=torch.int64)
        used[self.rank] = int.from_bytes(hashlib.sha256(own.encode()).digest()[:7], "big")
        dist.all_reduce(used)
        if len(set(used.tolist())) == self.size and dist.is_nccl_available():
            gpus = dist.new_group(backend="nccl", timeout=self.timeout)
            assert isinstance(gpus, dist.ProcessGroup)  # this process is one of it
            self.gpus = gpus


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise SettingError unless the heads of all ranks are on one kind of device; ``kinds``: those, by rank."""
    for rank, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise SettingError(
                f"the head of rank {rank} on {kind}, that of rank 0 on {kinds[0]}",
                "one kind of device: on another one the same step gives other last bits, and heads come apart",
                "give --device cpu to all ranks, or give every rank a GPU",
            )


def _let_holders_run() -> None:
    """Have gloo's thread for sockets wait until a core is free; does nothing where the system is no Linux.

    This thread spins while another one holds a connection's lock. Where the two share a core, and it has interrupted
    the holder, both wait for the scheduler's next tick: 4 ms, in each collective operation several times.
    """
    for task in Path("/proc/self/task").glob("*"):
        with suppress(OSError):  # a thread that has ended meanwhile
            if (task / "comm").read_text().startswith(_GLOO_THREAD):
                os.sched_setscheduler(int(task.name), os.SCHED_BATCH, os.sched_param(0))


def check_store(launch: Launch) -> None:
    """Raise SettingError if restarts of ranks on several hosts would go astray.

    torchrun's agents otherwise keep the store of their first start, on a host that may have gone.
    """
    if launch.nodes > 1 and os.environ.get(OWN_STORE) != "1":
        raise SettingError(
            f"ranks on {launch.nodes} hosts without {OWN_STORE}=1 in the environment",
            "a store that torchrun makes anew at each start of the ranks",
            f"export {OWN_STORE}=1 before torchrun, on every host",
        )


def meet(store: Store, rank: int, size: int, timeout: timedelta) -> str:
    """Return a name that exactly the processes that are alive now agree on, once all of them have it.

    Each other rank asks with a random number of its own, and rank 0 answers the number. What dead processes left in the
    store has other numbers, so nobody takes an answer that was for one of them.

    Raises:
        RuntimeError: the store is gone, or a rank does not come in time.
    """
    base = f"adc-edge/{size}"
    mine = secrets.token_hex(8)
    if rank != 0:
        store.set(f"{base}/asks/{rank}", mine)
        store.wait([f"{base}/answer/{mine}"], timeout)
        name: str = store.get(f"{base}/answer/{mine}").decode()
        store.set(f"{name}/here/{rank}", mine)
        return name
    name = f"{base}/world/{mine}"
    until_s = time.monotonic() + timeout.total_seconds()
    missing = set(range(1, size))
    answered: set[str] = set()
    while missing := {other for other in missing if not store.check([f"{name}/here/{other}"])}:
        for other in missing:
            if not store.check([f"{base}/asks/{other}"]):
                continue
            number = store.get(f"{base}/asks/{other}").decode()
            if number not in answered:
                answered.add(number)
                store.set(f"{base}/answer/{number}", name)
        if time.monotonic() > until_s:
            ranks = ", ".join(map(str, sorted(missing)))
            raise RuntimeError(f"no sign of rank {ranks} within {timeout.total_seconds():g} s")
        time.sleep(_POLL_S)
    return name


def _listen(master: Address, otherwise: str) -> socket.socket:
    """Return a socket that listens on the master's address, or on another where the master's name is loopback here."""
    try:
        numeric = resolve(master)[0]
    except NameUnknown as unknown:
        raise RuntimeError(str(unknown)) from None
    host = otherwise if loops(numeric) else numeric.host
    try:
        return socket.create_server((host, master.port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise RuntimeError(f"cannot listen on {host} port {master.port}: {error.strerror}") from None


def _destroy() -> None:
    with suppress(RuntimeError):
        dist.destroy_process_group()


@contextmanager
def losing_ranks(doing: str) -> Iterator[None]:
    """Turn what torch.distributed raises when a rank is gone into RanksLost.

    torch raises RuntimeError and its subclasses: gloo where a connection is closed, reset, refused or silent, the store
    where its server is gone or a key does not come in time, NCCL where an operation fails.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].partition(". This is typically")[0]
        raise RanksLost(
            f"lost the other ranks ({doing}): {reason}",
            "all ranks at work; torchrun starts them anew, from the last checkpoint",
            "see which rank ended first, in the lines above; --rank-timeout sets the longest silence",
        ) from error


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the process at once: it waits inside torch, where no handler runs, and has nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
