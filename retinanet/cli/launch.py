"""Processes of a sweep, one after the other."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

INTERRUPTED = (130, -signal.SIGINT)


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
        KeyboardInterrupt: a command was interrupted by the user; the rest is not started.
    """
    failed: dict[str, int] = {}
    for number, (command, name) in enumerate(zip(commands, names, strict=True), start=1):
        say(f"sweep: run {number} of {len(commands)}: {name}")
        status = _run(command)
        after_each()
        if status in INTERRUPTED:
            raise KeyboardInterrupt
        if status:
            failed[name] = status
    return failed


def _run(command: Sequence[str]) -> int:
    """Exit status of one process; a signal that ends us ends it first."""
    ended_by: list[int] = []
    with subprocess.Popen(command) as process:

        def forward(number: int, _frame: Any) -> None:
            ended_by.append(number)
            process.send_signal(number)

        previous = signal.signal(signal.SIGTERM, forward)
        try:
            status = process.wait()
        except KeyboardInterrupt:
            # The terminal sent it to the child too; let it save and end.
            process.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)
    if ended_by:
        raise SystemExit(128 + ended_by[0])
    return status
