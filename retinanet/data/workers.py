"""Processes that read images ahead: what they share, and how each of their failures is reported.

torch hands a batch over in shared memory, in a thread of the worker. What fails in that thread is
printed and forgotten, and the main process would wait for ever. Here a worker moves its batch
itself, so that a full /dev/shm arrives as an error like any other.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pickle import PickleError
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

SHARED_MEMORY = "/dev/shm"
# Batches that a worker is asked for before the first is used: torch's default.
PREFETCH = 2
MEBIBYTE = 2**20
# A connection to a worker may break some time before its end is seen, in seconds.
DEATH_SEEN_WITHIN_SECONDS = 2.0
LARGER = "Enlarge it with `docker run --shm-size=8g` or share the host's with `--ipc=host`"
# Loaders at work, whose deaths all come by one signal: training's while those of an evaluation run.
_AT_WORK: list[Any] = []


@atexit.register
def _kill_all() -> None:
    """At exit multiprocessing waits for workers, which ignore the SIGTERM that it sends them."""
    for items in _AT_WORK:
        for worker in items._workers:
            worker.kill()


class LoaderError(OSError):
    """A data loader worker failed; what was computed before is intact and can be saved."""


def check_shared_memory(needed: int) -> None:
    """Refuse to start workers whose batches, ``needed`` bytes, /dev/shm cannot hold.

    Raises:
        LoaderError: less is free.
    """
    free = free_shared_memory()
    if free is not None and needed > free:
        raise LoaderError(
            f"{SHARED_MEMORY} is too small: it has {_mebibytes(free)} free, the data loader "
            f"workers need {_mebibytes(needed)}. {LARGER}, lower the number of workers, or set "
            "data.workers=0."
        )


def free_shared_memory() -> int | None:
    """Bytes free in /dev/shm; None where there is none, or none of a known size."""
    if sys.platform != "linux" or not Path(SHARED_MEMORY).is_dir():
        return None
    space = os.statvfs(SHARED_MEMORY)
    return space.f_bavail * space.f_frsize if space.f_blocks else None


def shared_bytes(
    plans: Sequence[Any],
    rule: str,
    workers: int,
    *,
    steps_held: int = 1,
    limit: int | None = None,
) -> int:
    """Shared memory that workers fill at most, in bytes: with batches of the largest size.

    Args:
        plans: of batches, among them the largest.
        rule: ``data.resize``.
        workers: processes, as far as there are CPU cores.
        steps_held: batches of a step; those of one may be in use while the next ones come.
        limit: batches at most.
    """
    workers = min(workers, num_cores())
    if not workers or not plans:
        return 0
    pixels = max(len(plan.indices) * plan.padded[0] * plan.padded[1] for plan in plans)
    batches = PREFETCH * workers + 2 * steps_held
    batches = batches if limit is None else min(batches, limit)
    # torchvision's rule does not round: float32.
    return batches * 3 * pixels * (4 if rule == "torchvision" else 1)


def num_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class SharesArrays:
    """A data set whose ``data``, a dataclass of arrays, is pickled as handles of shared memory.

    A worker that is forked shares the memory of its parent by itself; one that is started afresh,
    as on Windows and macOS, would get a copy.
    """

    data: Any
    _tensors: dict[str, Any] | None = None  # the arrays, moved once for all workers

    def __getstate__(self) -> dict[str, Any]:
        if self._tensors is None:
            fields = ((f.name, getattr(self.data, f.name)) for f in dataclasses.fields(self.data))
            self._tensors = {
                name: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
                for name, value in fields
            }
        return self.__dict__ | {"data": type(self.data)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        fields = self._tensors.items()
        self.data = self.data(**{n: v.numpy() if isinstance(v, Tensor) else v for n, v in fields})


def start_worker(_: int) -> None:
    """Leave signals to the main process: it tells its workers when to end."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def share(item: Any) -> Any:
    """The collate function of all loaders: tensors of a named tuple go into shared memory.

    A worker that finds no room returns a :class:`LoaderError`; :func:`receive` ends its sentence.
    """
    if get_worker_info() is None or not isinstance(item, tuple):
        return item
    tensors = [part for part in item if isinstance(part, Tensor) and part.numel()]
    try:
        for tensor in tensors:
            tensor.share_memory_()
    except RuntimeError as error:
        said = str(error)
        size = _mebibytes(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
        what = f"a data loader worker cannot hand over {size}"
        if os.strerror(errno.EMFILE) in said:
            return LoaderError(
                "too many open files: a data loader worker cannot hand over its batch. Raise the "
                "limit with `ulimit -n 65536`"
            )
        if os.strerror(errno.ENOSPC) in said or os.strerror(errno.ENOMEM) in said:
            return LoaderError(_describe_full(what))
        return LoaderError(f"{what} in shared memory: {said}. Use fewer workers")
    return item


def receive(loader: DataLoader, fix: str = "set data.workers=0") -> Iterator[Any]:
    """What a loader makes, in order; failures of its workers are one line, within seconds.

    They are raised only where the next item is awaited, so never in the middle of a step. The
    loader has :func:`share` and :func:`start_worker`.

    Raises:
        LoaderError: a worker could not start, ended by itself, was killed, or had no room for a
            batch; the message ends with ``fix``.
    """
    if not loader.num_workers:
        yield from loader
        return
    items = _start(loader, fix)
    _AT_WORK.append(items)
    hearing = _hear_deaths()
    try:
        while True:
            try:
                with hearing():
                    item = next(items)
            except StopIteration:
                return
            except BaseException as error:
                codes = _exit_codes(error)
                # They ignore SIGTERM, and one may wait for what a dead one holds.
                for worker in items._workers:
                    worker.kill()
                if not codes:
                    raise
                raise LoaderError(f"{_describe_death(codes[0])}, or {fix}.") from error
            if isinstance(item, LoaderError):
                raise LoaderError(f"{item}, or {fix}.")
            yield item
    finally:
        _AT_WORK.remove(items)


def _start(loader: DataLoader, fix: str) -> Iterator[Any]:
    """The iterator of a loader, with all of its workers, or none of them."""
    before = multiprocessing.active_children()
    try:
        return iter(loader)
    # What a spawned worker needs may not pickle, which has many names.
    except (OSError, RuntimeError, TypeError, AttributeError, ValueError, PickleError) as error:
        for process in multiprocessing.active_children():
            if process not in before:
                process.kill()
        # Torch cannot clean up what it built in part, and would print an error of its own.
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if hasattr(frame.f_locals.get("self"), "_shutdown_workers"):
                frame.f_locals["self"]._shutdown = True
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # its locks are files there
            what = _describe_full(f"{loader.num_workers} data loader workers cannot start")
        else:
            said = " ".join(str(error).split())
            what = f"cannot start {loader.num_workers} data loader workers: {said}. Use fewer"
        raise LoaderError(f"{what}, or {fix}.") from error


class _Deaths:
    """torch's handler of SIGCHLD, which raises wherever the program is, kept to the waiting."""

    def __init__(self, handler: Callable[[int, Any], None]) -> None:
        self._handler = handler
        self._waiting = self._missed = False

    def __call__(self, number: int, frame: Any) -> None:
        """A child process has ended."""
        if self._waiting:
            self._handler(number, frame)
        else:
            self._missed = True

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Within, the death of a worker raises, also one that came before."""
        self._waiting = True
        try:
            if self._missed:
                self._missed = False
                self._handler(signal.SIGCHLD, None)
            yield
        finally:
            self._waiting = False


def _hear_deaths() -> Callable[[], contextlib.AbstractContextManager]:
    """What to wait in. In a thread, or without a handler, torch looks every five seconds."""
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    if threading.current_thread() is not threading.main_thread():
        return contextlib.nullcontext
    if getattr(handler, "__module__", None) == "torch.utils.data._utils.signal_handling":
        handler = _Deaths(handler)
        signal.signal(signal.SIGCHLD, handler)
    return handler.awaited if isinstance(handler, _Deaths) else contextlib.nullcontext


def _exit_codes(error: BaseException) -> list[int]:
    """How workers of any loader ended, if an error comes from that."""
    broken = isinstance(error, RuntimeError | OSError | EOFError)
    if not broken or "in DataLoader worker process" in str(error):
        return []
    deadline = time.monotonic() + DEATH_SEEN_WITHIN_SECONDS
    while True:
        workers = [worker for items in _AT_WORK for worker in items._workers]
        codes = [worker.exitcode for worker in workers if worker.exitcode is not None]
        if codes or time.monotonic() > deadline:
            # One that was killed is the cause of the others' ends.
            return sorted(codes)
        time.sleep(0.05)


def _describe_full(what: str) -> str:
    free = free_shared_memory()
    left = "" if free is None else f", {_mebibytes(free)} are free"
    return f"{SHARED_MEMORY} is full: {what}{left}. {LARGER}"


def _describe_death(code: int) -> str:
    if code >= 0:
        what = f"ended with exit status {code}; its own message, if it had one, is above"
    else:
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        if name == "SIGBUS":
            return _describe_full("a data loader worker was ended by SIGBUS")
        why = ", probably because memory ran out" if name == "SIGKILL" else ""
        what = f"was killed by {name}{why}"
    return f"a data loader worker {what}. Use fewer workers"


def _mebibytes(size: int) -> str:
    return f"{size / MEBIBYTE:,.0f} MiB" if size >= MEBIBYTE else f"{size / 1024:,.0f} KiB"
