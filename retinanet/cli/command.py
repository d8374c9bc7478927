"""What one call of ``train.py`` or ``eval.py`` does: help, a run, or a sweep of runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from retinanet.cli.help import help_text
from retinanet.cli.launch import run_all
from retinanet.cli.naming import sweep_name
from retinanet.interrupts import STATUS, Stopped

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
    except MISTAKES as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
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

    from retinanet import jobs  # imports torch: only now

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


def show(text: str) -> int:
    """Write to the screen; a reader that closes early, as ``head`` does, is no mistake."""
    try:
        sys.stdout.write(text.rstrip("\n") + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def complain(error: BaseException) -> None:
    """One line on stderr: the kind of error and its message."""
    message = str(error)
    if "Original Traceback" in message:  # from a loader process: the last line is the error
        message = message.strip().splitlines()[-1].partition(": ")[2]
    rank = os.environ.get("RANK", "0")
    where = f"[rank {rank}] " if rank != "0" else ""
    sys.stderr.write(f"{where}{type(error).__name__}: {' '.join(message.split())}\n")


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
    from retinanet.reports.sweep import SweepRun, write_sweep

    first = commands[0]
    fixed = {name: value for name, value in first.changed.items() if name not in swept}
    bases = sorted({command.base for command in commands})
    folder = Path("runs") / sweep_name("-".join(bases), fixed, swept)
    runs = [
        SweepRun({n: _swept_value(c, n) for n in swept}, Path(c.settings.output_dir))
        for c in commands
    ]
    options = ["--config-dir", config_dir] if config_dir else []
    chosen = range(len(runs)) if only is None else [only]
    failed = run_all(
        [[*_program(), *options, *commands[n].typed] for n in chosen],
        names=[str(runs[n].folder) for n in chosen],
        say=show,
        after_each=lambda: write_sweep(folder, runs),
    )
    done = len(chosen) - len(failed)
    show(f"sweep: {done} of {len(chosen)} runs finished; table and plot: {folder}")
    for name, status in failed.items():
        sys.stderr.write(f"sweep: {name} failed with exit status {status}\n")
    return 1 if failed else 0


def _program() -> list[str]:
    """The command that runs this program again."""
    script = Path(sys.argv[0])
    if script.is_file():
        return [sys.executable, str(script.resolve())]
    return [sys.executable, "-c", "from retinanet.cli.main import main; main('train')"]


def _swept_value(command: Command, name: str) -> Any:
    """Value of a swept key or group in one run; the base's own name where that is swept."""
    return command.changed.get(name, command.base)
