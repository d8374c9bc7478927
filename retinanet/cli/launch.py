"""Processes of a sweep, one after the other."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retinanet.atomic import write_whole
from retinanet.signals import SIGNALS, STATUS, Stopped

# How a process ends that was told to: it has saved, or it was still starting.
TOLD_TO_END = (STATUS, 128 + signal.SIGINT, *(-number for number in SIGNALS))
# Names a file for the process's last words, should it fail.
NOTE_VARIABLE = "RETINANET_FAILURE_NOTE"


@dataclass(frozen=True, slots=True)
class Task:
    """One process of a sweep."""

    name: str  # in messages
    command: Sequence[str]
    note: Path | None = None  # where it leaves why it failed; None: nowhere
    done: bool = False  # by an earlier call: not started again


@dataclass(slots=True)
class _Signals:
    """Passes on what this process is told to the one that runs."""

    told: list[int] = field(default_factory=list)
    process: subprocess.Popen | None = None

    def receive(self, number: int, _frame: Any) -> None:
        self.told.append(number)
        if self.process is not None:
            self.process.send_signal(number)


def run_all(
    tasks: Sequence[Task], *, say: Callable[[str], Any], after_each: Callable[[], Any]
) -> dict[str, int]:
    """Run commands one after the other, each in a process of its own.

    A process gives all its memory back, and its failure stays its own: the others still run.

    Args:
        tasks: in their order.
        say: prints a line.
        after_each: called when a command has ended, however it did.

    Returns:
        Name -> exit status of those that failed.

    Raises:
        Stopped: a signal ended a command, or this process; the rest is not started.
    """
    failed: dict[str, int] = {}
    seconds: list[float] = []
    with _signals_passed_on() as signals:
        for number, task in enumerate(tasks, start=1):
            which = f"sweep      run {number} of {len(tasks)}: {task.name}"
            if task.done:
                say(f"{which} has finished already")
                continue
            left = [other for other in tasks[number - 1 :] if not other.done]
            say(which + _forecast(seconds, len(left)))
            start = time.monotonic()
            status = _run(task, signals)
            after_each()
            if signals.told or status in TOLD_TO_END:
                raise Stopped
            if status:
                failed[task.name] = status
            else:
                seconds.append(time.monotonic() - start)
    return failed


@contextmanager
def _signals_passed_on() -> Iterator[_Signals]:
    """Signals end the process that runs, and then the sweep."""
    signals = _Signals()
    before = {number: signal.signal(number, signals.receive) for number in SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(task: Task, signals: _Signals) -> int:
    """Exit status of one process; why it failed is in its note."""
    environment = dict(os.environ)
    if task.note is not None:
        task.note.unlink(missing_ok=True)
        environment[NOTE_VARIABLE] = str(task.note.absolute())
    with subprocess.Popen(task.command, env=environment) as signals.process:
        for number in signals.told:  # of the moment before
            signals.process.send_signal(number)
        status = signals.process.wait()
    signals.process = None
    told = signals.told or status in TOLD_TO_END
    if status and not told and task.note is not None and not task.note.exists():
        write_whole(task.note, _last_words(status) + "\n")
    return status


def _last_words(status: int) -> str:
    """Why a process ended that could not say so itself."""
    if status >= 0:
        return f"ended with exit status {status}"
    name = signal.Signals(-status).name
    hint = ", as happens when the machine's memory is full" if name == "SIGKILL" else ""
    return f"ended by {name}{hint}"


def _forecast(seconds: Sequence[float], runs: int) -> str:
    """How long the runs that are left may take, once one has told."""
    if not seconds:
        return ""
    minutes = round(sum(seconds) / len(seconds) * runs / 60)
    return f" (about {minutes // 60}:{minutes % 60:02d} h left)" if minutes else ""
