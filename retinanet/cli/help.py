"""The text of ``--help``: every key with its value, type, meaning and range."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from retinanet.cli.keys import MISSING, Key, group_of, groups_of, leaves
from retinanet.limits import value_text

WIDTH = 98
LEFT = 34  # columns of key=value
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
    tree: Mapping[str, Any],
) -> str:
    """The whole text.

    Args:
        job: ``train`` or ``eval``.
        keys: every key, in the order to print.
        choices: group -> names of its files.
        tree: the values, as nested maps.

    Returns:
        Lines of at most ``WIDTH`` columns.
    """
    values = dict(leaves(tree, keys))
    blocks = [ABOUT[job]]
    if job == "train":
        lines = [_line(keys[name], values.get(name), "  " + name) for name in PAPER]
        blocks.append("\n".join(["The three settings of the paper", *lines]) + "\n")
    blocks.append(_choices(choices))
    blocks.append("Every key, with the value that this command gives it\n")
    blocks += [_group(job, group, keys, values) for group in ["", *groups_of(keys)]]
    return "\n".join(blocks)


def _choices(choices: Mapping[str, list[str]]) -> str:
    """Which files each group has."""
    lines = ["Choices (GROUP=NAME); each name is a file configs/GROUP/NAME.yaml"]
    for group, names in choices.items():
        head = f"  {group}="
        lines.append(_wrap(head.ljust(16), ", ".join(names)))
    return "\n".join(lines) + "\n"


def _group(job: str, group: str, keys: Mapping[str, Key], values: Mapping[str, Any]) -> str:
    """The keys of one group, but those that the program refuses."""
    lines = [
        _line(key, values.get(name), "  " + name)
        for name, key in keys.items()
        if group_of(name) == group and not (job == "eval" and key.train_only)
    ]
    return "\n".join(lines) + "\n"


def _line(key: Key, value: Any, name: str) -> str:
    """``key=value``, then meaning (type, range), wrapped beside it."""
    kind = "number, list or map" if key.type is Any else TYPES.get(key.type, "list of float")
    length = getattr(key.limit, "length", None)
    kind = f"{length} x {kind.removeprefix('list of ')}" if length else kind
    kind = "one of" if key.limit and key.limit.choices else kind
    allowed = key.allowed.removeprefix("one of ")
    allowed = allowed.replace("at least", ">=").replace("above", ">")
    about = " ".join(filter(None, [kind, allowed]))
    about += " or null" if key.nullable and key.type is not Any else ""
    shown = MISSING + " (to be given)" if value == MISSING else value_text(value)
    left = f"{name}={shown}"
    text = f"{key.meaning} ({about})"
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
