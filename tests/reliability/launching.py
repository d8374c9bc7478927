"""train.py as a user starts it, alone and under torchrun, and ways to end it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from small_runs import ROOT, command, write_split

# 24 steps in four epochs, a checkpoint after every second one, rows after every third.
LONG = [
    "schedule.epochs=4",
    "evaluation.every_epochs=1",
    "save_every_steps=2",
    "log_every_steps=3",
    "log_images=1",
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
# Seconds after which a process that should have ended is stuck.
PATIENCE = 180


def write_data(root: Path) -> Path:
    """12 images to train on, 7 to evaluate; every third without a box."""
    write_split(root, "train", range(10, 22))
    write_split(root, "val", range(30, 37))
    return root


def train_line(data: Path, output: Path, ranks: int, *overrides: str, options=()) -> list[str]:
    """The command of a run on one rank, or on several under torchrun with more ``options``."""
    typed = [str(ROOT / "train.py"), *command(data, output, *LONG, *overrides)]
    if ranks == 1:
        return [sys.executable, *typed]
    together = [*TORCHRUN, f"--nproc-per-node={ranks}", "--rdzv-backend=c10d"]
    return [*together, "--rdzv-endpoint=localhost:0", *options, *typed]


def environment() -> dict[str, str]:
    """One thread, so that sums have one order whatever else runs."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@contextmanager
def started(line: list[str], log: Path) -> Iterator[subprocess.Popen]:
    """The process of a command in a group of its own; nothing of it is left afterwards."""
    with (
        log.open("ab") as file,
        subprocess.Popen(
            line, env=environment(), stdout=file, stderr=file, start_new_session=True
        ) as process,
    ):
        try:
            yield process
        finally:
            kill_all(process.pid)


def finish(line: list[str], log: Path) -> int:
    """Run a command to its end and give its exit status."""
    with started(line, log) as process:
        return process.wait(timeout=PATIENCE)


def fields_of(pid: int) -> list[str]:
    """State and parent of a process, and more: proc(5), from the third field of stat on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["", "0"]


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``, children first."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    parents = {each: int(fields_of(each)[1]) for each in pids}
    below = [pid]
    for parent in below:  # grows as it goes
        below += [each for each in pids if parents[each] == parent]
    return below[1:]


def ranks_of(agent: int) -> list[int]:
    """The processes of the ranks below torchrun, which run train.py; not their loaders."""
    children = [pid for pid in descendants(agent) if int(fields_of(pid)[1]) == agent]
    return sorted(pid for pid in children if "train.py" in command_of(pid))


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def kill_all(pid: int) -> None:
    """Without warning, a process and all below it, as when the power fails."""
    for victim in [pid, *descendants(pid)]:
        kill(victim)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_for_start(output: Path, process: subprocess.Popen, starts: int) -> bool:
    """Until the run in ``output`` has begun that many times; false if the process ends before."""
    deadline = time.monotonic() + PATIENCE
    while count_starts(output) < starts:
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "the run does not begin"
        time.sleep(0.01)
    return True


def count_starts(output: Path) -> int:
    """How often the run in ``output`` has begun."""
    log = output / "train.log"
    return log.read_text().count(" run        ") if log.exists() else 0


def random_moment(generator: random.Random, seconds: float) -> None:
    """Wait for some of the seconds."""
    time.sleep(generator.uniform(0, seconds))
