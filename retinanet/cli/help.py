"""Texts about settings: ``--help``, and what a name that does not exist may have meant."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from retinanet.checks import Key, value_text

MISSING = "???"  # the value of what only the user can give
# What people type from habit that no edit distance finds; the answer is not a key.
NOT_SETTINGS = {
    "num_classes": "the number of classes comes from the annotation file and is never typed"
}
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


def groups_of(keys: Mapping[str, Key]) -> list[str]:
    """Groups of settings, in order."""
    return list(dict.fromkeys(key.group for key in keys.values() if key.group))


def nearest(name: str, keys: Mapping[str, Key]) -> list[str]:
    """Keys that ``name`` may have meant, best first; empty when nothing is near.

    The last part decides before the whole name: a right key in a wrong place is more common
    than two misspelt parts. Words of the meaning come last: ``learning_rate`` is ``optim.lr``.
    """
    name = name.partition("@")[0].replace("/", ".").strip(".").lower()
    groups = groups_of(keys)
    if name in keys or name in groups:
        return [name]
    group, last = name.partition(".")[0], name.rpartition(".")[2]
    lasts = {key: key.rpartition(".")[2] for key in keys}
    same = [key for key in keys if lasts[key] == last]
    if same:
        return same[:3]
    for candidates in ([key for key in keys if key.startswith(f"{group}.")], list(keys)):
        near = difflib.get_close_matches(last, [lasts[key] for key in candidates], 2, 0.6)
        if near:
            return [key for key in candidates if lasts[key] == near[0]][:3]
    words = last.replace("_", " ")
    starts = (f"{words} ", f"{words}:")
    meant = [k.name for k in keys.values() if k.meaning.lower().startswith(starts)]
    return difflib.get_close_matches(name, [*keys, *groups], 1, 0.7) or meant


def unknown(name: str, keys: Mapping[str, Key], program: str, where: str = "") -> ValueError:
    """The error for a key that does not exist; ``where`` is `` in FILE`` if it is a file's."""
    if name in keys or name in groups_of(keys):
        return ValueError(f"{name} cannot be set like this{where}.")
    owner = next((key for key in keys if name.startswith((f"{key}.", f"{key}["))), None)
    last, near = name.rpartition(".")[2], nearest(name, keys)
    if last in NOT_SETTINGS:
        fix = f"{where}: {NOT_SETTINGS[last]}."
    elif owner is not None:
        fix = f"{where}: {owner} has no parts; give it whole."
    elif near:
        fix = f"{where}; did you mean {' or '.join(near)}?"
    else:
        fix = f"{where}; `python {program} --help` lists every key."
    return ValueError(f"unknown key {name}{fix}")


def unknown_choice(group: str, value: Any, choices: list[str]) -> ValueError:
    """The error for a file of ``configs/<group>/`` that does not exist."""
    if isinstance(value, Mapping | list):
        return ValueError(
            f"{group} names a file of configs/{group} ({', '.join(choices)}), got {value}; single "
            f"settings are typed as {group}.KEY=VALUE."
        )
    near = difflib.get_close_matches(str(value), choices, 1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return ValueError(
        f"{group}={value_text(value)} does not exist{meant} "
        f"(choices: {', '.join(choices) or 'none'})."
    )


def help_text(
    job: str,
    keys: Mapping[str, Key],
    choices: Mapping[str, list[str]],
    values: Mapping[str, Any],
) -> str:
    """The text of ``--help``: every key with its value, type, meaning and range.

    Args:
        job: ``train`` or ``eval``, whose text leaves out the keys that it refuses.
        keys: every key, in the order to print.
        choices: group -> names of its files.
        values: dotted key -> value; files leave out what nothing reads with their names.

    Returns:
        Lines of at most ``WIDTH`` columns.
    """

    def lines_of(names: Iterable[str]) -> list[str]:
        return [_line(keys[name], values.get(name, "(not read)")) for name in names]

    paper = ["The three settings of the paper", *lines_of(PAPER)] if job == "train" else []
    files = ["Choices (GROUP=NAME); each name is a file configs/GROUP/NAME.yaml"]
    files += [_wrap(f"  {group}=".ljust(16), ", ".join(names)) for group, names in choices.items()]
    blocks = [paper, files, ["Every key, with the value that this command gives it"]]
    shown = [key for key in keys.values() if not (job == "eval" and key.train_only)]
    for group in ["", *groups_of(keys)]:
        blocks.append(lines_of(key.name for key in shown if key.group == group))
    return "\n".join([ABOUT[job], *("\n".join(block) + "\n" for block in blocks if block)])


def _line(key: Key, value: Any) -> str:
    """``key=value``, then meaning (type, range), wrapped beside it."""
    kind = "number, list or map" if key.type is Any else TYPES.get(key.type, "list of float")
    if key.limit and key.limit.length:
        kind = f"{key.limit.length} x {kind.removeprefix('list of ')}"
    if key.limit and key.limit.choices:
        kind = "one of"
    limit = key.allowed.removeprefix("one of ").replace("at least", ">=").replace("above", ">")
    about = " ".join(filter(None, [kind, limit]))
    about += " or null" if key.nullable and key.type is not Any else ""
    shown = f"{MISSING} (to be given)" if value == MISSING else value_text(value)
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
