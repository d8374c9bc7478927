"""What a user types or writes into a settings file: its keys, types and choices, checked.

Works on plain containers; needs neither Hydra nor torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retinanet.checks import Key
from retinanet.limits import value_text

# What people type from habit that no edit distance finds; the answer is not a key.
NOT_SETTINGS = {
    "num_classes": "the number of classes comes from the annotation file and is never typed"
}
MISSING = "???"
TYPE_IN_WORDS = {
    bool: "true or false",
    int: "a whole number such as 8",
    float: "a number such as 0.5 or 1e-4",
    str: "text",
    list[int]: "a list of whole numbers such as [1,2]",
    list[float]: "a list of numbers such as [0.5,2]",
    Any: "a number, a list [0.25,0.5], or a map {name:0.5,default:0.25}",
}


@dataclass(slots=True)
class Command:
    """One run: what was typed, and what it means."""

    typed: list[str]
    settings: Any  # TrainConfig or EvalConfig
    base: str  # the experiment, or the data set without one
    changed: dict[str, Any]  # key or group -> value, of what was typed


def group_of(name: str) -> str:
    """``loss`` of ``loss.gamma``; empty for a key of the root."""
    return name.partition(".")[0] if "." in name else ""


def groups_of(keys: Iterable[str]) -> list[str]:
    """Groups of settings, in order."""
    return list(dict.fromkeys(filter(None, map(group_of, keys))))


def allowed(key: Key) -> str:
    """The limit of a key in words, empty without one: ``at least 0``."""
    return str(key.limit).removeprefix("be ").removeprefix("lie ") if key.limit else ""


# Names.


def nearest(name: str, keys: Mapping[str, Key]) -> list[str]:
    """Keys that ``name`` may have meant, best first; empty when nothing is near.

    The last part decides before the whole name: a right key in a wrong place is more common
    than two misspelt parts. Words of the meaning come last: ``learning_rate`` is ``optim.lr``.
    """
    name = name.partition("@")[0].replace("/", ".").strip(".").lower()
    if name in keys or name in groups_of(keys):
        return [name]
    group, last = group_of(name), name.rpartition(".")[2]
    lasts = {key: key.rpartition(".")[2] for key in keys}
    same = [key for key in keys if lasts[key] == last]
    if same:
        return same[:3]
    in_group = [key for key in keys if group and group_of(key) == group]
    for candidates in (in_group, list(keys)):
        near = difflib.get_close_matches(last, [lasts[key] for key in candidates], 2, 0.6)
        if near:
            return [key for key in candidates if lasts[key] == near[0]][:3]
    near = difflib.get_close_matches(name, [*keys, *groups_of(keys)], 1, 0.7)
    words = last.replace("_", " ")
    starts = (words + " ", words + ":")
    return near or [k.name for k in keys.values() if k.meaning.lower().startswith(starts)]


def unknown(name: str, keys: Mapping[str, Key], program: str, where: str = "") -> ValueError:
    """The error for a key that does not exist; ``where`` is `` in FILE`` if it is a file's."""
    last = name.rpartition(".")[2]
    if name in groups_of(keys) or name in keys:
        return ValueError(f"{name} cannot be set like this{where}.")
    if last in NOT_SETTINGS:
        return ValueError(f"unknown key {name}{where}: {NOT_SETTINGS[last]}.")
    owner = next((key for key in keys if name.startswith((f"{key}.", f"{key}["))), None)
    if owner is not None:
        return ValueError(f"unknown key {name}{where}: {owner} has no parts; give it whole.")
    near = nearest(name, keys)
    fix = f"`python {program} --help` lists every key."
    if near:
        fix = f"did you mean {' or '.join(near)}?"
    return ValueError(f"unknown key {name}{where}; {fix}")


def check_choice(group: str, value: Any, choices: list[str]) -> None:
    """Refuse a file of ``configs/<group>/`` that does not exist.

    Raises:
        ValueError: the nearest choice, and all of them.
    """
    if value is None and group == "experiment":
        return
    if isinstance(value, Mapping | list):
        raise ValueError(
            f"{group} names a file of configs/{group} ({', '.join(choices)}), got {value}; single "
            f"settings are typed as {group}.KEY=VALUE."
        )
    if str(value) not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"{group}={_shown(value).strip(chr(39))} does not exist{meant} "
            f"(choices: {', '.join(choices) or 'none'})."
        )


# Values.


def convert(key: Key, value: Any, where: str = "") -> Any:
    """A value as its key holds it; ``???`` and interpolations, which get theirs later, as it is.

    Raises:
        ValueError: key, value, what it must be.
    """
    if isinstance(value, str) and "${now:" in value:
        raise ValueError(
            f"{key.name}={value} changes with the clock{where}, so ranks and restarts of one run "
            f"would differ; write a fixed value."
        )
    if isinstance(value, str) and (value == MISSING or "${" in value):
        return value
    try:
        value = key.converted(value)
    except ValueError:
        kind = TYPE_IN_WORDS[key.type] + (" or null" if key.nullable else "")
        limit = f" ({allowed(key)})" if allowed(key) else ""
        raise ValueError(f"{key.name} must be {kind}{limit}, got {_shown(value)}{where}.") from None
    if key.type is str and key.nullable and value in ("None", "none", "Null", "NULL"):
        raise ValueError(f"{key.name}={value} would be the text {value!r}{where}; write null.")
    return value


def _shown(value: Any) -> str:
    """A value as the user would write it."""
    return value_text(value) if value is None or isinstance(value, bool) else repr(value)


# Files and whole commands.


def read_tree(
    tree: Mapping[Any, Any], keys: Mapping[str, Key], program: str, where: str
) -> dict[str, Any]:
    """Dotted key -> value of everything in the nested maps of a settings file.

    Raises:
        ValueError: the first key that is unknown, or whose value has a wrong type.
    """
    groups, values = groups_of(keys), {}

    def walk(tree: Mapping[Any, Any], prefix: str) -> None:
        for part, value in tree.items():
            name = f"{prefix}{part}"
            if isinstance(value, Mapping) and name not in keys and (value or name in groups):
                walk(value, f"{name}.")
            elif name in groups:
                first = next(key for key in keys if group_of(key) == name)
                raise ValueError(
                    f"{name} is a group of settings, got {_shown(value)}{where}; give its keys, "
                    f"such as {first}."
                )
            elif name not in keys:
                raise unknown(name, keys, program, where)
            else:
                values[name] = convert(keys[name], value, where)

    walk(tree, "")
    return values


def check_given(names: Sequence[str], keys: Mapping[str, Key], program: str) -> None:
    """Refuse settings without the values of ``names``, which only the user can give.

    Raises:
        ValueError: all of them, with what to type.
    """
    if names:
        typed = " ".join(f"{name}=..." for name in names)
        meanings = "; ".join(f"{name}: {keys[name].meaning}" for name in names)
        raise ValueError(f"{program} needs {typed} ({meanings}).")


def check_variant(
    name: str, typed: Any, file: Any, chosen: Mapping[str, Any], choices: Mapping[str, list[str]]
) -> None:
    """Refuse ``loss.name=focal`` where the file chosen for the group has another name.

    The other values of the group would stay those that the file has for its own name.

    Args:
        name: of the key.
        typed: its value.
        file: its value in the files that the command chooses; None where they have none.
        chosen: group -> its file.
        choices: group -> all files there are.

    Raises:
        ValueError: what to choose instead.
    """
    group, _, part = name.partition(".")
    if part == "name" and file not in (None, typed) and str(typed) in choices[group]:
        raise ValueError(
            f"{name}={typed} would keep the other values of {group}={chosen[group]}, which are for "
            f"{name}={file}; choose {group}={typed} instead, whose file has its own."
        )


def check_read(
    key: Key, values: Mapping[str, Any], job: str, choices: Mapping[str, list[str]]
) -> None:
    """Refuse a typed setting that nothing reads beside the other ``values`` of the command.

    Raises:
        ValueError: the setting that keeps it from being read, and which choice would read it.
    """
    typed = f"{key.name}={value_text(values[key.name])}"
    if job == "eval":
        if key.train_only:
            raise ValueError(f"{typed} has no effect in eval.py: only train.py reads it; drop it.")
        return
    if key.is_read(values):
        return
    fixes = []
    for when in key.read:
        group, _, part = when.key.partition(".")
        if when.other:
            fixes.append(f"another {when.key}")
            continue
        for other in map(value_text, when.values):
            is_file = part == "name" and other in choices[group]
            fixes.append(f"{group if is_file else when.key}={other}")
    others = " and ".join(f"{when.key}={value_text(values[when.key])}" for when in key.read)
    raise ValueError(
        f"{typed} has no effect with {others}: drop it, or choose {' or '.join(fixes)}, which "
        f"reads it."
    )
