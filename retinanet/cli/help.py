"""The text of ``--help``: every key with its value, type, meaning and range."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from retinanet.checks import Key
from retinanet.cli.overrides import MISSING, allowed, group_of, groups_of
from retinanet.limits import value_text

WIDTH = 98
LEFT = 34  # columns of key=value
NOT_READ = "(not read)"
PAPER = ("loss.alpha", "loss.gamma", "model.prior")
TYPES = {bool: "bool", int: "int", float: "float", str: "text", list[int]: "list of int"}

ABOUT = {
    "train": """\
Train RetinaNet on a COCO-format data set and evaluate it.

Usage
  python train.py                                  the built-in data set, no download
  python train.py loss.gamma=0 optim.lr=0.02       change any key below
  python train.py experiment=coco_r50_1x data.root=/datasets/coco     the paper's job
  python train.py -m loss.gamma=0,0.5,1,2,5        a sweep: one run each, a table and a plot
  torchrun --nproc-per-node 8 train.py ...         one process per GPU
  The same command again continues an unfinished run.

Options
  -h, --help            this text, with the values that the rest of the command gives
  -m, --multirun        sweep: a,b,c or range(1,4) or choice(a,b) as values
      --only N          of a sweep only run number N, from 0: for arrays of jobs
  -c, --cfg job         print the settings as YAML and stop
  -cd, --config-dir DIR your own files, laid out as configs/: DIR/experiment/NAME.yaml, ...
""",
    "eval": """\
Evaluate a checkpoint: the 12 COCO numbers, a table per class, files and pictures.

Usage
  python eval.py checkpoint=runs/shapes/checkpoints/best.pt        on the data it knows
  python eval.py checkpoint=PATH data=coco data.root=/datasets/coco    on other data
  Values of null are taken from the checkpoint.

Options
  -h, --help            this text, with the values that the rest of the command gives
  -c, --cfg job         print the settings as YAML and stop
  -cd, --config-dir DIR your own files, laid out as configs/: DIR/data/NAME.yaml, ...
""",
}


def help_text(
    job: str,
    keys: Mapping[str, Key],
    choices: Mapping[str, list[str]],
    values: Mapping[str, Any],
) -> str:
    """The whole text.

    Args:
        job: ``train`` or ``eval``, whose text leaves out the keys that it refuses.
        keys: every key, in the order to print.
        choices: group -> names of its files.
        values: dotted key -> value; files leave out what nothing reads with their names.

    Returns:
        Lines of at most ``WIDTH`` columns.
    """

    def lines_of(names: Iterable[str]) -> list[str]:
        return [_line(keys[name], values.get(name, NOT_READ)) for name in names]

    paper = ["The three settings of the paper", *lines_of(PAPER)] if job == "train" else []
    files = ["Choices (GROUP=NAME); each name is a file configs/GROUP/NAME.yaml"]
    files += [_wrap(f"  {group}=".ljust(16), ", ".join(names)) for group, names in choices.items()]
    blocks = [paper, files, ["Every key, with the value that this command gives it"]]
    shown = [name for name, key in keys.items() if not (job == "eval" and key.train_only)]
    for group in ["", *groups_of(keys)]:
        blocks.append(lines_of(name for name in shown if group_of(name) == group))
    return "\n".join([ABOUT[job], *("\n".join(block) + "\n" for block in blocks if block)])


def _line(key: Key, value: Any) -> str:
    """``key=value``, then meaning (type, range), wrapped beside it."""
    kind = "number, list or map" if key.type is Any else TYPES.get(key.type, "list of float")
    if key.limit and key.limit.length:
        kind = f"{key.limit.length} x {kind.removeprefix('list of ')}"
    if key.limit and key.limit.choices:
        kind = "one of"
    limit = allowed(key).removeprefix("one of ").replace("at least", ">=").replace("above", ">")
    about = " ".join(filter(None, [kind, limit]))
    about += " or null" if key.nullable and key.type is not Any else ""
    shown = MISSING + " (to be given)" if value == MISSING else value_text(value)
    left, text = f"  {key.name}={shown}", f"{key.meaning} ({about})"
    if len(left) >= LEFT:
        return f"{left}\n" + _wrap(" " * LEFT, text)
    return _wrap(left.ljust(LEFT), text)


def _wrap(left: str, text: str) -> str:
    """``text`` in a column of its own, to the right of ``left``."""
    return textwrap.fill(
        text,
        width=WIDTH,
        initial_indent=left,
        subsequent_indent=" " * len(left),
        break_long_words=False,
        break_on_hyphens=False,
    )
