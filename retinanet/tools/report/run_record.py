"""What a run directory says of itself: settings, starts, losses, and what went wrong.

Imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from retinanet.training.run_directory import read_rows, read_run

# In place of what was announced before the first step, for runs that have not recorded it.
NOT_RECORDED = (
    "not recorded",
    "run.json is missing or damaged; the first lines of train.log have it",
)


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a run beside the results of its evaluation; what is empty is not known."""

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
    try:
        starts = list(json.loads(_text(root / "environment.json")))
    except (ValueError, TypeError):  # damaged
        starts = []
    run = read_run(root) or {}
    # Lines of the log begin with a name in a column of eleven.
    expected = [(line[:11].strip(), line[11:].strip()) for line in run.get("expected", [])]
    announced = [(name, text) for name, text in expected if name != "warning"]
    if not run and (root / "train.log").exists():
        announced = [NOT_RECORDED]
    return Record(
        kind="Training run",
        title=root.resolve().name,
        checkpoint=checkpoint,
        step=step,
        typed=_text(root / "overrides.txt").splitlines(),
        settings=read_settings(root / "config.yaml"),
        starts=[start for start in starts if isinstance(start, dict)],
        rows=read_rows(root / "metrics.jsonl"),
        bad_steps=read_rows(root / "bad_steps.jsonl"),
        announced=announced,
        warnings=[text for name, text in expected if name == "warning"] + run.get("replaced", []),
    )


def _text(path: Path) -> str:
    """A text file, empty where there is none."""
    return path.read_text("utf-8", "replace") if path.exists() else ""


def read_settings(path: Path) -> dict[str, Any]:
    """Group -> key -> value of a config.yaml; empty where it is missing or damaged."""
    try:
        found = yaml.safe_load(_text(path))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


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
