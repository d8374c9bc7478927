"""The run directory: one for each command, the same on every rank and after every restart."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from retinanet.atomic import write_whole
from retinanet.checks import KEYS
from retinanet.platforms import lock

logger = logging.getLogger(__name__)

# What a continued run may change: none of it changes the weights, or which are the best;
# optim.accumulate only by rounding, as does the number of ranks, which may ask for another.
MAY_DIFFER = (
    *("data.root", "data.workers", "device", "compile", "output_dir", "overwrite"),
    *("log_every_steps", "log_images", "save_every_steps", "max_bad_steps", "on_failed_save"),
    *("evaluation.backend", "evaluation.batch_size", "evaluation.every_epochs"),
    *("evaluation.patience", "optim.accumulate"),
)
MAY_RISE = ("schedule.epochs", "schedule.max_steps")
# A run that stopped at a bad image may go on without it: nothing before depended on it.
MAY_BECOME = {"data.on_bad_image": "skip"}

RECORDED_VERSIONS = ("torch", "torchvision", "numpy", "pycocotools", "hydra-core")


class RunDirectory:
    """Paths of a run, and the rules for continuing it."""

    def __init__(self, root: Path) -> None:
        """Name the paths; nothing is made yet."""
        self.root = root
        self.config = root / "config.yaml"
        self.checkpoints = root / "checkpoints"
        self.last = self.checkpoints / "last.pt"
        self.best = self.checkpoints / "best.pt"
        self.plots = root / "plots"
        self.metrics = root / "metrics.jsonl"
        self.bad_steps = root / "bad_steps.jsonl"
        self.tensorboard = root / "tensorboard"

    def recorded(self) -> dict[str, Any] | None:
        """Settings in config.yaml; None where there is none, or somebody else's."""
        try:
            recorded = yaml.safe_load(self.config.read_text())
        except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, yaml.YAMLError):
            return None
        return recorded if isinstance(recorded, dict) and "schedule" in recorded else None

    def check(self, settings: dict[str, Any], *, overwrite: bool) -> bool:
        """Whether another run must be moved aside first; nothing is changed yet.

        Raises:
            ValueError: another run, or files that are no run, with what to do about it.
        """
        recorded = self.recorded()
        if recorded is not None:
            changed = changed_keys(recorded, settings)
            if changed and not overwrite:
                old = ", ".join(f"{key}={value}" for key, (value, _) in changed.items())
                new = ", ".join(f"{key}={value}" for key, (_, value) in changed.items())
                raise ValueError(
                    f"{self.root} holds a run with {old}, this command asks for {new}. Choose "
                    f"another output_dir, drop the override, or set overwrite=true to move the old "
                    f"run aside."
                )
            return bool(changed)

        def left_by_a_kill(path: Path) -> bool:  # at the first write of a run
            return path.name == ".lock" or path.match("config.yaml.*partial")

        is_folder = self.root.is_dir() and all(map(left_by_a_kill, self.root.iterdir()))
        if self.root.exists() and not is_folder:
            raise ValueError(
                f"{self.root} exists and is not a run of this program; choose another output_dir, "
                f"or remove it."
            )
        return False

    def make(
        self,
        settings: dict[str, Any],
        overrides: list[str],
        *,
        aside: bool = False,
        **facts: Any,
    ) -> None:
        """Make the directory, moving another run aside, and record what is about to run.

        Args:
            settings: of this command, as plain containers.
            overrides: of this command, as typed.
            aside: the run on disk is another one although its settings do not say so.
            **facts: further entries of environment.json.

        Raises:
            ValueError: another process trains there.
            OSError: it cannot be made.
        """
        moves = self.check(settings, overwrite=True) or aside
        if self.root.exists():
            self._lock()
        if moves:
            names = (self.root.with_name(f"{self.root.name}.old-{n}") for n in itertools.count(1))
            self.root.rename(next(name for name in names if not name.exists()))
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"cannot make output_dir={self.root} ({error.strerror}); choose another."
            ) from error
        self._lock()
        # First of all: killed at any moment, what is left is empty or known to be a run.
        write_whole(self.config, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        self.checkpoints.mkdir(exist_ok=True)
        write_whole(self.root / "overrides.txt", "".join(f"{o}\n" for o in overrides))
        path, starts = self.root / "environment.json", []
        with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged one begins anew
            starts = json.loads(path.read_text())
        write_whole(path, json.dumps([*starts, {**environment(), **facts}], indent=2) + "\n")

    def _lock(self) -> None:
        """Keep other processes out until this one ends, however it does.

        It belongs to this process alone, not to the loaders that it forks.
        """
        try:
            lock(self.root / ".lock")
        except BlockingIOError:
            raise ValueError(
                f"another process trains in {self.root}; wait for it or end it, or choose another "
                f"output_dir."
            ) from None
        except OSError as error:  # a file system without locks
            logger.warning("%s cannot be locked (%s).", self.root, error.strerror)

    def record_run(
        self, facts: dict[str, Any], why: str | None = None, *, started: bool = False
    ) -> None:
        """Write how the run stands to run.json, which programs read back: sweeps and reports.

        Args:
            facts: ``state`` (running, finished, stopped or failed), ``step``, ``total_steps``,
                ``best``, ``replaced`` (messages about unreadable images) and, for a new run,
                ``expected``: the lines of the log on what to expect of it.
            why: the run stopped or failed.
            started: this process begins or continues the run.

        Raises:
            OSError: it cannot be written.
        """
        record = read_run(self.root) or {"starts": [], "stops": []}
        now = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": facts["step"]}
        if facts["state"] != "running":
            record["stops"].append({**now, "state": facts["state"], "why": why})
        elif started:
            record["starts"].append(now)
        if "expected" not in facts:  # the run continues: its earlier starts met others
            facts["replaced"] = sorted({*record.get("replaced", []), *facts["replaced"]})
        write_whole(self.root / "run.json", json.dumps(record | facts, indent=2) + "\n")

    def forget_after(self, step: int, evaluated_step: int, reported_step: int) -> None:
        """Drop rows of metrics.jsonl and bad_steps.jsonl that a resumed run will write again.

        Those after the ``step`` of its checkpoint, after the last evaluation that this knows, and
        after the last row, up to which bad steps were reported.
        """

        def keep(file: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
            if file.exists():
                rows = filter(wanted, read_rows(file))
                write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))

        keep(self.metrics, lambda row: row["step"] <= (evaluated_step if "AP" in row else step))
        keep(self.bad_steps, lambda row: row["step"] <= reported_step)


def read_run(root: Path) -> dict[str, Any] | None:
    """run.json of a run directory; None where there is none, as in runs of older versions."""
    try:
        record = json.loads((root / "run.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    is_ours = isinstance(record, dict) and {"starts", "stops", "state"} <= record.keys()
    return record if is_ours else None


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The whole rows of a file of JSON lines, each of a step; none where there is no file."""
    rows = []
    text = file.read_text(errors="replace") if file.is_file() else ""
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # was being written when the run was killed
            rows.append(json.loads(line))
    # Beside a checkpoint from elsewhere the file may be another program's.
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def changed_keys(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old value, new value) of settings that differ although they must not."""
    before, after = flatten(old), flatten(new)

    def may_change(key: str, was: Any, now: Any) -> bool:
        return (
            was == now
            or key.startswith(MAY_DIFFER)
            # Versions record it or leave it null.
            or (key in KEYS and not KEYS[key].is_read(after))
            or (key in MAY_RISE and None not in (was, now) and now > was)
            or MAY_BECOME.get(key, was) == now
        )

    values = {key: (before.get(key), after.get(key)) for key in sorted(before | after)}
    return {key: pair for key, pair in values.items() if not may_change(key, *pair)}


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups as dotted keys; lists and the map of loss.alpha are values."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key != "loss.alpha":
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = value
    return flat


def environment() -> dict[str, Any]:
    """Versions, machine, command and state of the source, of this process."""
    versions: dict[str, str | None] = {}
    for name in RECORDED_VERSIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None

    def git(*words: str) -> str:
        line = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()

    try:
        state = {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):  # outside a git checkout
        state = None
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions,
        "git": state,
    }
