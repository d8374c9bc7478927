"""Processes of a sweep, one after the other."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from retinanet.interrupts import SIGNALS, STATUS, Stopped

# How a process ends that was told to: it has saved, or it was still starting.
TOLD_TO_END = (STATUS, 128 + signal.SIGINT, *(-number for number in SIGNALS))


def run_all(
    commands: Sequence[Sequence[str]],
    *,
    names: Sequence[str],
    say: Callable[[str], Any],
    after_each: Callable[[], Any],
) -> dict[str, int]:
    """Run commands one after the other, each in a process of its own.

    A process gives all its memory back, and its failure stays its own: the others still run.

    Args:
        commands: program and arguments of each.
        names: what each is called in messages.
        say: prints a line.
        after_each: called when a command has ended, however it did.

    Returns:
        Name -> exit status of those that failed.

    Raises:
        Stopped: a signal ended a command, or this process; the rest is not started.
    """
    failed: dict[str, int] = {}
    for number, (command, name) in enumerate(zip(commands, names, strict=True), start=1):
        say(f"sweep: run {number} of {len(commands)}: {name}")
        status = _run(command)
        after_each()
        if status in TOLD_TO_END:
            raise Stopped
        if status:
            failed[name] = status
    return failed


def _run(command: Sequence[str]) -> int:
    """Exit status of one process; a signal that ends us ends it first."""
    told: list[int] = []
    with subprocess.Popen(command) as process:

        def forward(number: int, _frame: Any) -> None:
            told.append(number)
            process.send_signal(number)

        before = {number: signal.signal(number, forward) for number in SIGNALS}
        try:
            status = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if told:
        raise Stopped
    return status
