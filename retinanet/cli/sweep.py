"""Sweeps: the names of runs and their tables, and one process for each run after the other."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retinanet.atomic import write_whole
from retinanet.checks import value_text
from retinanet.signals import SIGNALS, STATUS, Stopped
from retinanet.terminal import lay_out, paint_start, show
from retinanet.training.run_directory import MAY_BECOME, MAY_DIFFER

MAX_LENGTH = 100
UNSAFE = re.compile(r"[^A-Za-z0-9._,=+-]")
# Exit statuses of a process that a signal ended: it has saved, or it was still starting.
STOPPED = (STATUS, 128 + signal.SIGINT, *(-number for number in SIGNALS))
# Names a file in which a process leaves why it failed.
NOTE_VARIABLE = "RETINANET_FAILURE_NOTE"


@dataclass(slots=True)
class Command:
    """One run: what was typed, and what it means."""

    typed: list[str]
    settings: Any  # TrainConfig or EvalConfig
    base: str  # the experiment, or the data set without one
    changed: dict[str, Any]  # key or group -> value, of what was typed


def changes_weights(key: str) -> bool:
    """Whether another value of this key (or choice of this group) makes it another run."""
    return key not in MAY_BECOME and not f"{key}.".startswith(MAY_DIFFER)


def run_name(base: str, changed: Mapping[str, Any], swept: Sequence[str] = ()) -> str:
    """Folder name of a run or a sweep: ``shapes,loss.gamma=0``, ``sweep_shapes,loss.gamma``.

    A function of the command alone, without clock or counter: every rank of a job, a requeued
    job and each job of a sweep find the same directory by themselves. Values that are swept over
    are left out, so that a sweep that goes on with other values adds to the same table.

    Args:
        base: the experiment, or the data set without one; of a sweep with ``sweep_`` before it.
        changed: key (or group) -> value (or choice) of what the command changes.
        swept: keys and groups that are swept over.

    Returns:
        At most ``MAX_LENGTH`` characters, safe in a path; a hash tells shortened names apart.
    """
    parts = [f"{k}={value_text(changed[k])}" for k in sorted(changed) if changes_weights(k)]
    name = ",".join([base, *parts, *sorted(swept)])
    safe = UNSAFE.sub("_", name)
    if safe == name and len(name) <= MAX_LENGTH:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{safe[: MAX_LENGTH - len(digest) - 1]},{digest}"


def check_sweep(job: str) -> None:
    """Refuse a sweep of eval.py or under torchrun, by a ValueError."""
    if job != "train":
        raise ValueError("-m sweeps train.py; run eval.py once for each checkpoint.")
    if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "-m under torchrun would start every run on every rank; start one torchrun for each "
            "value, or sweep without torchrun."
        )


def run_sweep(
    swept: list[str], commands: list[Command], program: list[str], *, only: int | None = None
) -> int:
    """Run one process after the other; write the table and the plot anew after each.

    Args:
        swept: the names that are swept over.
        commands: one for each combination.
        program: what starts a run when its overrides follow.
        only: number of the one run to make; None: all.

    Returns:
        The exit status: 1 where a run failed.

    Raises:
        ValueError: nothing is swept over, two runs would share a directory, or there is no run
            number ``only``.
        Stopped: a signal ended a run.
    """
    from retinanet.tools.report import sweep  # tables and plots, which only a sweep needs

    if not swept:
        raise ValueError("-m without values to sweep over; write for example loss.gamma=0,1,2.")
    owner: dict[str, Command] = {}
    for command in commands:
        other = owner.setdefault(command.settings.output_dir, command)
        if other is not command:
            raise ValueError(
                f"two runs of the sweep would write to {command.settings.output_dir}: "
                f"{' '.join(other.typed)} and {' '.join(command.typed)}. Sweep over settings that "
                f"change the weights, each value once, without output_dir."
            )
    if only is not None and not 0 <= only < len(commands):
        raise ValueError(
            f"--only={only}: the sweep has {len(commands)} runs, numbered from 0 to "
            f"{len(commands) - 1}."
        )
    fixed = {name: value for name, value in commands[0].changed.items() if name not in swept}
    bases = sorted({command.base for command in commands})
    folder = Path("runs") / run_name("sweep_" + "-".join(bases), fixed, swept)
    runs, tasks = [], []
    for command in commands:
        # Where data or experiment is swept over, its choice is the base of the run.
        values = {name: command.changed.get(name, command.base) for name in swept}
        run = sweep.SweepRun(values, Path(command.settings.output_dir))
        name = ", ".join(f"{key}={value_text(value)}" for key, value in values.items())
        note = sweep.note_of(folder, run.folder)
        done = sweep.is_done(run.folder, asdict(command.settings))
        runs.append(run)
        tasks.append(Task(name, [*program, *command.typed], note, done))

    def say(text: str) -> None:
        show(lay_out(text, sys.stdout))

    def counts(rows: list[dict[str, str]]) -> str:
        count = Counter(row["status"] for row in rows)
        return ", ".join(f"{count[status]} {status}" for status in sweep.STATUSES if count[status])

    chosen = tasks if only is None else tasks[only : only + 1]
    try:
        failed = run_all(chosen, say=say, after_each=lambda: sweep.write_sweep(folder, runs))
    except Stopped:
        rows = sweep.write_sweep(folder, runs)
        say(f"\nstopped    {counts(rows)}; the same command goes on; table: {folder}")
        raise
    rows = sweep.write_sweep(folder, runs)
    say("\n" + "\n".join(sweep.show_summary(rows, swept)) + "\n")
    own = {str(run.folder) for run in runs}
    for row in rows:
        if row["error"] and row["run"] in own:
            name = ", ".join(f"{key}={row[key]}" for key in swept)
            line = f"failed     {name}: {row['error']}\n           log: {row['log']}"
            line = paint_start(lay_out(line, sys.stderr), "failed", "red", sys.stderr)
            sys.stderr.write(f"{line}\n")
    say(f"sweep      {counts(rows)}")
    say(f"files      table.csv, summary.csv, plot.png in {folder}")
    say("watch      tensorboard --logdir runs")
    return 1 if failed else 0


@dataclass(frozen=True, slots=True)
class Task:
    """One process of a sweep."""

    name: str  # in messages
    command: Sequence[str]
    note: Path | None = None  # where it leaves why it failed; None: nowhere
    done: bool = False  # by an earlier call: not started again


def run_all(
    tasks: Sequence[Task], *, say: Callable[[str], Any], after_each: Callable[[], Any]
) -> dict[str, int]:
    """Run commands one after the other, each in a process of its own.

    A process gives all its memory back, and its failure stays its own: the others still run.

    Returns:
        Name -> exit status of those that failed.

    Raises:
        Stopped: a signal ended a command, or this process; the rest is not started.
    """
    received: list[int] = []
    process: subprocess.Popen | None = None

    def pass_on(number: int, _frame: Any) -> None:
        received.append(number)
        if process is not None:
            process.send_signal(number)

    failed: dict[str, int] = {}
    seconds: list[float] = []
    handlers = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        for number, task in enumerate(tasks, start=1):
            which = f"sweep      run {number} of {len(tasks)}: {task.name}"
            if task.done:
                say(f"{which} has finished already")
                continue
            left = sum(not other.done for other in tasks[number - 1 :])
            minutes = round(sum(seconds) / len(seconds) * left / 60) if seconds else 0
            forecast = f" (about {minutes // 60}:{minutes % 60:02d} h left)" if minutes else ""
            say(which + forecast)
            environment = dict(os.environ)
            if task.note is not None:
                task.note.unlink(missing_ok=True)
                environment[NOTE_VARIABLE] = str(task.note.absolute())
            start = time.monotonic()
            with subprocess.Popen(task.command, env=environment) as process:
                for early in received:  # before there was a process
                    process.send_signal(early)
                status = process.wait()
            process = None
            stopped = bool(received) or status in STOPPED
            if status and not stopped and task.note is not None and not task.note.exists():
                write_whole(task.note, describe_status(status) + "\n")
            after_each()
            if stopped:
                raise Stopped
            if status:
                failed[task.name] = status
            else:
                seconds.append(time.monotonic() - start)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return failed


def describe_status(status: int) -> str:
    """Why a process ended that could not say so itself."""
    if status >= 0:
        return f"ended with exit status {status}"
    name = signal.Signals(-status).name
    hint = ", as happens when the machine's memory is full" if name == "SIGKILL" else ""
    return f"ended by {name}{hint}"
