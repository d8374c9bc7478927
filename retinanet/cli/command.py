"""What one call of ``train.py`` or ``eval.py`` does: help, a run, or a sweep of runs."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import yaml

from retinanet.atomic import write_whole
from retinanet.cli.help import help_text
from retinanet.cli.launch import NOTE_VARIABLE, Task, run_all
from retinanet.cli.naming import sweep_name
from retinanet.limits import value_text
from retinanet.signals import STATUS, Stopped
from retinanet.terminal import lay_out, paint
from retinanet.tools.report import sweep

if TYPE_CHECKING:
    from retinanet.cli.main import Composer

Job = Literal["train", "eval"]

# What a user can cause: one line, no traceback. Everything else is a mistake of ours.
# OSError: missing, unreadable, a full disk. MemoryError: of the GPU.
MISTAKES = (ValueError, OSError, FloatingPointError, MemoryError)
INTERRUPTED = 130


@dataclass(slots=True)
class Command:
    """One run: what was typed, and what it means."""

    typed: list[str]
    settings: Any  # TrainConfig or EvalConfig
    base: str  # the experiment, or the data set without one
    changed: dict[str, Any]  # key or group -> value, of what was typed


def run_job(job: Job, composer: Callable[..., Any]) -> None:
    """Read the arguments of this process, check them, and do what they ask for.

    Args:
        job: ``train`` or ``eval``.
        composer: context manager ``composer(job, config_dir)`` that gives a
            :class:`retinanet.cli.main.Composer`.
    """
    try:
        sys.exit(_run(job, composer, sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Stopped:
        sys.exit(STATUS)
    except Exception as error:
        _leave_note(error)
        if not isinstance(error, MISTAKES) or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        complain(error)
        sys.exit(1)


def _run(job: Job, composer: Callable[..., Any], arguments: list[str]) -> int:
    """The exit status of a run, a sweep, or a text for the screen."""
    args = read_arguments(job, arguments)
    # Reading must be over before the job begins: the job's own errors are not Hydra's.
    with composer(job, args.config_dir) as reader:
        if args.help:
            return show(help_text(job, reader.keys, reader.choices, reader.tree(args.overrides)))
        if args.multirun:
            swept, commands = _read_sweep(job, reader, args.overrides)
        else:
            command = reader.command(args.overrides)
    if args.multirun:
        return _run_sweep(swept, commands, args.only, args.config_dir)
    if args.cfg:
        return show(yaml.safe_dump(asdict(command.settings), sort_keys=False, width=100))

    from retinanet.cli import jobs  # imports torch: only now

    {"train": jobs.train, "eval": jobs.evaluate}[job](command.settings, command.typed)
    return 0


def read_arguments(job: Job, arguments: Sequence[str]) -> argparse.Namespace:
    """Options before the settings; both may stand in any order.

    Raises:
        ValueError: an option that does not exist.
    """
    parser = argparse.ArgumentParser(
        prog=f"{job}.py", add_help=False, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--only", type=int)
    parser.add_argument("--cfg", "-c", choices=["job"])
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("overrides", nargs="*")
    try:
        args, unread = parser.parse_known_intermixed_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}; see `python {job}.py --help`.") from error
    if args.multirun and args.cfg:
        raise ValueError("--cfg shows the settings of one run; leave out -m.")
    if args.only is not None and not args.multirun:
        raise ValueError("--only chooses one run of a sweep; it needs -m.")
    for text in unread:
        remedy = f"settings have no dashes: {text.lstrip('-')}" if "=" in text else "see --help"
        raise ValueError(f"{job}.py has no option {text}; {remedy}.")
    return args


def show(text: str, stream: TextIO | None = None) -> int:
    """Write to the screen; a reader that closes early, as ``head`` does, is no mistake.

    Args:
        text: letters that the stream's encoding lacks, as a name may have, become their codes.
        stream: None: stdout.
    """
    stream = sys.stdout if stream is None else stream
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        stream.write(text.rstrip("\n") + "\n")
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 0


def complain(error: BaseException) -> None:
    """One line on stderr: the kind of error and its message."""
    rank = os.environ.get("RANK", "0")
    where = f"[rank {rank}] " if rank != "0" else ""
    line = lay_out(where + one_line(error), sys.stderr)
    sys.stderr.write(_with_color(line, f"{where}{type(error).__name__}:", sys.stderr) + "\n")


def one_line(error: BaseException) -> str:
    """The kind of an error and its message."""
    message = str(error)
    if "Original Traceback" in message:  # from a loader process: the last line is the error
        message = message.strip().splitlines()[-1].partition(": ")[2]
    return f"{type(error).__name__}: {' '.join(message.split())}"


def _leave_note(error: Exception) -> None:
    """Why this process fails, in the log of its run and for the sweep that started it."""
    trace = "" if isinstance(error, MISTAKES) else "".join(traceback.format_exception(error))
    failed = logging.makeLogRecord({"name": "retinanet", "levelno": logging.ERROR})
    failed.msg = f"failed     {one_line(error)}" + (f"\n{trace}" if trace else "")
    for handler in logging.getLogger("retinanet").handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(failed)
    note = os.environ.get(NOTE_VARIABLE)
    if note is not None and os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):
            write_whole(Path(note), f"{one_line(error)}\n{trace}")


def _read_sweep(job: Job, reader: Composer, typed: list[str]) -> tuple[list[str], list[Command]]:
    """All runs of a sweep, refused here rather than after hours.

    Raises:
        ValueError: no sweep is possible here, or two runs would share a directory.
    """
    if job != "train":
        raise ValueError("-m sweeps train.py; run eval.py once for each checkpoint.")
    if "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "-m under torchrun would start every run on every rank; start one torchrun for each "
            "value, or sweep without torchrun."
        )
    swept, commands = reader.sweep(typed)
    if not swept:
        raise ValueError("-m without values to sweep over; write for example loss.gamma=0,1,2.")
    owner: dict[str, Command] = {}
    for command in commands:
        folder = command.settings.output_dir
        if folder in owner:
            raise ValueError(
                f"two runs of the sweep would write to {folder}: {' '.join(owner[folder].typed)} "
                f"and {' '.join(command.typed)}. Sweep over settings that change the weights, each "
                f"value once, without output_dir."
            )
        owner[folder] = command
    return swept, commands


def _run_sweep(
    swept: list[str], commands: list[Command], only: int | None, config_dir: str | None
) -> int:
    """Run one process after the other; rebuild the table and the plot after each.

    Raises:
        ValueError: there is no run number ``only``.
    """
    if only is not None and not 0 <= only < len(commands):
        raise ValueError(
            f"--only={only}: the sweep has {len(commands)} runs, numbered from 0 to "
            f"{len(commands) - 1}."
        )
    first = commands[0]
    fixed = {name: value for name, value in first.changed.items() if name not in swept}
    bases = sorted({command.base for command in commands})
    folder = Path("runs") / sweep_name("-".join(bases), fixed, swept)
    runs = [
        sweep.SweepRun({n: _swept_value(c, n) for n in swept}, Path(c.settings.output_dir))
        for c in commands
    ]
    options = ["--config-dir", config_dir] if config_dir else []
    tasks = [
        Task(
            ", ".join(f"{name}={value_text(run.swept[name])}" for name in swept),
            [*_program(), *options, *command.typed],
            sweep.note_of(folder, run.folder),
            sweep.is_done(run.folder, asdict(command.settings)),
        )
        for run, command in zip(runs, commands, strict=True)
    ]
    try:
        failed = run_all(
            tasks if only is None else tasks[only : only + 1],
            say=_say,
            after_each=lambda: sweep.write_sweep(folder, runs),
        )
    except Stopped:
        rows = sweep.write_sweep(folder, runs)
        _say(f"\nstopped    {_count(rows)}; the same command goes on; table: {folder}")
        raise
    rows = sweep.write_sweep(folder, runs)
    _report_sweep(folder, rows, swept, [str(run.folder) for run in runs])
    return 1 if failed else 0


def _report_sweep(
    folder: Path, rows: list[dict[str, str]], swept: list[str], names: list[str]
) -> None:
    """The end of a sweep: its summary, the failures among the runs of these names, its files."""
    _say("\n" + "\n".join(sweep.show_summary(rows, swept)) + "\n")
    for row in rows:
        if row["error"] and row["run"] in names:
            name = ", ".join(f"{key}={row[key]}" for key in swept)
            said = f"failed     {name}: {row['error']}\n           log: {row['log']}"
            sys.stderr.write(_with_color(lay_out(said, sys.stderr), "failed", sys.stderr) + "\n")
    _say(f"sweep      {_count(rows)}")
    _say(f"files      table.csv, summary.csv, plot.png in {folder}")
    _say("watch      tensorboard --logdir runs")


def _count(rows: list[dict[str, str]]) -> str:
    """How many runs of a sweep have come how far."""
    counts = Counter(row["status"] for row in rows)
    kinds = [status for status in sweep.STATUSES if counts[status]]
    return ", ".join(f"{counts[status]} {status}" for status in kinds)


def _say(text: str) -> None:
    show(lay_out(text, sys.stdout))


def _with_color(line: str, start: str, stream: TextIO) -> str:
    return paint(start, "red", stream) + line.removeprefix(start)


def _program() -> list[str]:
    """The command that runs this program again."""
    script = Path(sys.argv[0])
    if script.is_file():
        return [sys.executable, str(script.resolve())]
    return [sys.executable, "-c", "from retinanet.cli.main import main; main('train')"]


def _swept_value(command: Command, name: str) -> Any:
    """Value of a swept key or group in one run; the base's own name where that is swept."""
    return command.changed.get(name, command.base)
