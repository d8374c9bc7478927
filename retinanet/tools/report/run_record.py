"""What a run directory says of itself: settings, starts, losses, and what went wrong."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from retinanet.training.run_directory import read_rows

# A line of train.log as `retinanet.training.announce` and its neighbors write them: date, time,
# and a name in a column of eleven.
ANNOUNCED = re.compile(r"^\S+ \S+ ([a-z][a-z ]{9}) (\S.*)$")
# The first of these lines ends what a run says before its first step.
STEPPING = re.compile(r"^\S+ \S+ (epoch|evaluation|first step|continue) ")
# What the loader says of an image that it cannot read.
REPLACED = re.compile(r"^\S+ \S+ (.*(?:Another image takes its place|Its objects are missed)\.)$")
# Said elsewhere in a report.
NOT_REPEATED = ("run", "device", "warning")


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a run beside what its evaluation found; what is empty is not known."""

    kind: str  # "Training run" or "Evaluation"
    title: str
    checkpoint: str  # path of what was evaluated
    step: int | None  # of the checkpoint
    typed: list[str] = field(default_factory=list)  # settings of the command
    settings: dict[str, Any] = field(default_factory=dict)  # group -> key -> value
    starts: list[dict[str, Any]] = field(default_factory=list)  # environment of every start
    rows: list[dict[str, Any]] = field(default_factory=list)  # metrics.jsonl
    bad_steps: list[dict[str, Any]] = field(default_factory=list)
    announced: list[tuple[str, str]] = field(default_factory=list)  # before the first step
    warnings: list[str] = field(default_factory=list)

    def setting(self, group: str, key: str) -> Any:
        """One setting; None where it is not recorded."""
        found = self.settings.get(group)
        return found.get(key) if isinstance(found, dict) else None


def read_record(root: Path, checkpoint: str, step: int | None) -> Record:
    """The record of a run directory, of whatever files it has.

    Args:
        root: of the run.
        checkpoint: path of what was evaluated.
        step: of the checkpoint.

    Raises:
        OSError: a file that is there cannot be read.
    """
    log = _lines(root / "train.log")
    announced = announcements(log)
    replaced = [found[1] for line in log if (found := REPLACED.match(line))]
    return Record(
        kind="Training run",
        title=root.resolve().name,
        checkpoint=checkpoint,
        step=step,
        typed=_lines(root / "overrides.txt"),
        settings=read_settings(root / "config.yaml"),
        starts=_starts(root / "environment.json"),
        rows=read_rows(root / "metrics.jsonl"),
        bad_steps=read_rows(root / "bad_steps.jsonl"),
        announced=[(name, text) for name, text in announced if name not in NOT_REPEATED],
        warnings=[text for name, text in announced if name == "warning"]
        + list(dict.fromkeys(replaced)),
    )


def announcements(log: list[str]) -> list[tuple[str, str]]:
    """Names and texts of what a run said before its first step.

    Args:
        log: lines of train.log; a run that began anew is read from its last beginning on.
    """
    begun = [number for number, line in enumerate(log) if " images     " in line]
    found = []
    for line in log[begun[-1] if begun else 0 :]:
        if STEPPING.match(line):
            break
        if match := ANNOUNCED.match(line):
            found.append((match[1].strip(), match[2]))
    return found


def _lines(path: Path) -> list[str]:
    """Lines of a text file, none where there is no file."""
    return path.read_text("utf-8", "replace").splitlines() if path.exists() else []


def read_settings(path: Path) -> dict[str, Any]:
    """Group -> key -> value of a config.yaml; empty where it is missing or damaged."""
    try:
        found = yaml.safe_load("\n".join(_lines(path)))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _starts(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads("\n".join(_lines(path)))
    except ValueError:
        return []
    return found if isinstance(found, list) else []


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file of an evaluation; None where there is no file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; eval.py writes it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object; eval.py writes it again.")
    return found
