"""Distributed training: every function also works, at no cost, on a single process."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Ranks wait for the main one while it scores an evaluation; torch's ten minutes can be too few.
TIMEOUT = timedelta(hours=1)
# prctl(2): the signal that a process gets when its parent is gone.
PR_SET_PDEATHSIG = 1
# DistributedDataParallel's argument was renamed in torch 2.15.
_PARAMETERS = inspect.signature(nn.parallel.DistributedDataParallel).parameters
BUFFERS = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in _PARAMETERS)
# Keys of the store.
STOP, FAILED = "stop", "failed"
# Seconds between two looks at the store.
POLL_SECONDS = 1.0
# Seconds that a rank has to end by itself when another has failed. With gloo it does, with an
# error of the collective that it waits in; with NCCL it would wait for the timeout of the group.
GRACE_SECONDS = 5.0


class RankMonitor(threading.Thread):
    """Learns from the group's store that another rank was stopped or has failed.

    Beside the collectives, in which a rank may hang.
    """

    def __init__(self, store: dist.Store, rank: int) -> None:
        """Of ``rank``, with a connection to the store of its own: the group's may be busy."""
        super().__init__(daemon=True)
        self.stop_requested = False
        self.before_exit: Callable[[str], None] = lambda reason: None
        self._store = store
        self._rank = rank
        self._over = threading.Event()

    def run(self) -> None:
        """Poll the store until :meth:`end`; end the process when another rank has failed."""
        while not self._over.wait(POLL_SECONDS):
            try:
                self.stop_requested = self.stop_requested or self._store.check([STOP])
                failed = self._store.check([FAILED]) and not self._over.wait(GRACE_SECONDS)
                reason = self._store.get(FAILED).decode() if failed else ""
            except RuntimeError:  # the store is gone, and with it the group
                return
            if failed:
                try:
                    sys.stderr.write(
                        f"[rank {self._rank}] ends because {reason}; see its message\n"
                    )
                    sys.stderr.flush()
                    self.before_exit(reason)
                finally:
                    os._exit(1)  # the main thread may never come back

    def end(self) -> None:
        """Stop polling."""
        self._over.set()
        self.join(POLL_SECONDS)

    def send_stop(self) -> None:
        """Let the other ranks know that this one received a signal to stop."""
        if not self.stop_requested:
            self.stop_requested = True
            with contextlib.suppress(RuntimeError):  # torchrun may be gone; the others notice
                self._store.set(STOP, "")

    def send_failure(self, error: BaseException) -> None:
        """Let the other ranks know that this one is about to end with an error."""
        with contextlib.suppress(RuntimeError):  # the store may be what failed
            self._store.set(FAILED, f"rank {self._rank} failed with {type(error).__name__}")


# Of this process; None on a single one.
_monitor: RankMonitor | None = None
# A group that does not use the GPUs; None: as the default group.
_hosts: dist.ProcessGroup | None = None


@contextlib.contextmanager
def group(device_type: str) -> Iterator[None]:
    """Join the process group, and leave it; what fails on one rank ends all of them.

    Args:
        device_type: ``"cuda"`` or ``"cpu"``.
    """
    start(device_type)
    try:
        yield
    except Exception as error:
        if _monitor is not None:
            _monitor.send_failure(error)
        raise
    finally:
        stop()


def start(device_type: str) -> None:
    """Join the process group that torchrun describes in the environment, if there is one.

    Args:
        device_type: ``"cuda"`` (NCCL) or ``"cpu"`` (gloo).

    Raises:
        ValueError: torchrun could not start the ranks again if one died.
    """
    global _monitor, _hosts
    if "RANK" not in os.environ or dist.is_initialized():
        return
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        # SIGTERM when torchrun is gone, however it ended.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    backend = "nccl" if device_type == "cuda" else "gloo"
    prefix = store_prefix(os.environ)
    store, rank, size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(prefix, store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    _hosts = dist.new_group(backend="gloo", timeout=TIMEOUT) if backend == "nccl" else None
    _monitor = RankMonitor(store.clone(), rank)
    _monitor.start()


def stop() -> None:
    """Leave the process group."""
    global _monitor, _hosts
    if dist.is_initialized():
        _monitor.end()
        dist.destroy_process_group()
    _monitor = _hosts = None


def store_prefix(environment: Mapping[str, str]) -> str:
    """Name space in the store of this attempt: keys of a dead one may still be there.

    The store of one torchrun lives as long as it does. On several nodes their counts of restarts
    differ, so there each attempt needs a store of its own.

    Raises:
        ValueError: ranks on several nodes would be started again without one.
    """
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # a store of its own
        return "attempt"
    nodes = int(environment.get("GROUP_WORLD_SIZE", "1"))
    if nodes > 1 and int(environment.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise ValueError(
            f"torchrun with --max-restarts on {nodes} nodes needs "
            f"TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment of each torchrun; ranks that "
            f"were started again would wait for each other in what dead ones have left."
        )
    return f"attempt{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def monitor() -> RankMonitor | None:
    """What this rank learns of others between collectives; None on a single process."""
    return _monitor


@contextlib.contextmanager
def before_exit(action: Callable[[str], None]) -> Iterator[None]:
    """Within, ``action`` gets the reason when another rank's failure is about to end this one."""
    if _monitor is None:
        yield
        return
    before, _monitor.before_exit = _monitor.before_exit, action
    try:
        yield
    finally:
        _monitor.before_exit = before


def any_rank(flag: bool) -> bool:
    """Whether ``flag`` is true on a rank; every rank must call it, and none waits for its GPU."""
    if not dist.is_initialized():
        return flag
    value = torch.tensor(int(flag))
    dist.all_reduce(value, op=dist.ReduceOp.MAX, group=_hosts)
    return bool(value)


def rank() -> int:
    """Number of this process, 0 on a single one."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Number of this process on its machine; also the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum over all ranks, in place; every rank must call it."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def gather_objects(value: Any) -> list[Any]:
    """The value of every rank, in the order of ranks, on every rank; anything that pickles."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_main(action: Callable[[], Any]) -> Any:
    """Run ``action`` on rank 0 only and give its result to every rank.

    What it raises is raised on every rank, so that nobody waits for a rank that is gone.
    """
    if not dist.is_initialized():
        return action()
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = action()
        except Exception as error:  # noqa: BLE001 - the other ranks wait for any outcome
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """DistributedDataParallel around ``model``, or ``model`` on a single process."""
    if not dist.is_initialized():
        return model
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        # Frozen norms have nothing to send; running statistics are sent before each evaluation.
        **{BUFFERS: False},
    )


def share_buffers(model: nn.Module) -> None:
    """Give every rank the main rank's buffers: the running statistics of batch norms differ."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
