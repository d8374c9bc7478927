"""Signals: the first stops a run after its step, a later one at once."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

# What ends a run: a terminal's ctrl-c, a cluster's end, and its warning some time before.
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
# Exit status of a run that has saved and can go on. Source: sysexits.h, EX_TEMPFAIL.
STATUS = 75
# A signal within these seconds is the same request again: a terminal signals all processes, and
# torchrun then passes on what it got.
SAME_REQUEST_SECONDS = 3.0


class Stopped(BaseException):
    """A run was told to end, and what it had is saved; no error, as KeyboardInterrupt is none."""


class Signals:
    """Turns the first signal into an orderly end; a context manager."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None  # the first
        # While there is nothing to save yet, a signal raises Stopped. From then on it is only
        # remembered; the loop, run.TrainingRun._train, saves and ends after its step.
        self.has_begun = False
        # Where nothing is half done, as between two steps, a signal raises Stopped, however long
        # what is awaited takes.
        self.at_once = False
        self._when = 0.0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Signals:
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Within, a signal raises :class:`Stopped` at once, also one that came before."""
        self.at_once = True
        try:
            if self.received is not None:
                raise Stopped
            yield
        finally:
            self.at_once = False

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.received is None:
            self.received, self._when = signal.Signals(number), time.monotonic()
            if not self.has_begun:
                _say(f"{name}: ended before the first step")
                raise Stopped
            if self.at_once:
                _say(f"{name}: this run saves and ends")
                raise Stopped
            _say(
                f"{name}: this run saves and ends after its step; again after "
                f"{SAME_REQUEST_SECONDS:.0f} s: without saving"
            )
        elif time.monotonic() - self._when > SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


@contextlib.contextmanager
def postponed() -> Iterator[Callable[[], None]]:
    """Defer the first SIGINT or SIGTERM to the next safe point; a second one interrupts at once.

    In the middle of a step it may be a transfer from a reading process that is cut off, which
    then has something to say about it. Signals that are ignored stay so.

    Yields:
        A function that raises KeyboardInterrupt if one has come.
    """
    received_at: float | None = None

    def receive(number: int, _frame: FrameType | None) -> None:
        nonlocal received_at
        if received_at is None:
            received_at = time.monotonic()
            _say(
                f"{signal.Signals(number).name}: this ends after its step; again after "
                f"{SAME_REQUEST_SECONDS:.0f} s: at once"
            )
        elif time.monotonic() - received_at > SAME_REQUEST_SECONDS:
            raise KeyboardInterrupt

    def check() -> None:
        if received_at is not None:
            raise KeyboardInterrupt

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    # Neither print nor logging: the signal may have come while they hold their locks. Nobody may
    # be reading any more, if it ended whoever did.
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
