"""Every key a user can type: what exists, what is nearest, and which values have its type.

Works on plain containers and on the dataclasses of :mod:`retinanet.config`; needs neither Hydra
nor torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Union, get_args, get_origin, get_type_hints

from retinanet.limits import Limit, When, is_finite, value_text

# What people type from habit that no edit distance finds; the answer is not a key.
NOT_SETTINGS = {
    "num_classes": "the number of classes comes from the annotation file and is never typed"
}
MISSING = "???"
TRUE_OR_FALSE = ("true", "false", "yes", "no", "on", "off")


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: ``loss.gamma``."""

    name: str
    type: Any  # bool, int, float, str, list[int], list[float], or Any (loss.alpha)
    nullable: bool
    meaning: str
    limit: Limit | None
    read: tuple[When, ...] = ()  # has an effect only when one of these holds; empty: always
    train_only: bool = False

    @property
    def kind(self) -> str:
        """The type in words, as ``must be ...`` goes on."""
        return {
            bool: "true or false",
            int: "a whole number such as 8",
            float: "a number such as 0.5 or 1e-4",
            str: "text",
            list[int]: "a list of whole numbers such as [1,2]",
            list[float]: "a list of numbers such as [0.5,2]",
        }.get(self.type, "a number, a list [0.25,0.5], or a map {name:0.5,default:0.25}")

    @property
    def is_list(self) -> bool:
        """Whether a list is among its values."""
        return self.type is Any or get_origin(self.type) is list

    @property
    def allowed(self) -> str:
        """The limit in words, empty without one: ``at least 0``."""
        return str(self.limit).removeprefix("be ").removeprefix("lie ") if self.limit else ""


def keys_of(cls: type, prefix: str = "") -> dict[str, Key]:
    """Dotted name -> key, for every setting of a settings class, in the order of its fields."""
    keys: dict[str, Key] = {}
    hints = get_type_hints(cls)
    for f in dataclasses.fields(cls):
        name, hint = prefix + f.name, hints[f.name]
        if dataclasses.is_dataclass(hint):
            keys |= keys_of(hint, f"{name}.")
            continue
        nullable = hint is Any or type(None) in get_args(hint)
        if get_origin(hint) in (Union, types.UnionType):
            (hint,) = (item for item in get_args(hint) if item is not type(None))
        limit = f.metadata["limit"]
        if hint is Any and limit.word is not None:  # a whole number, or that word
            hint, nullable = int, False
        about = f.metadata
        keys[name] = Key(
            name, hint, nullable, about["meaning"], limit, about["read"], about["train_only"]
        )
    return keys


def group_of(name: str) -> str:
    """``loss`` of ``loss.gamma``; empty for a key of the root."""
    return name.partition(".")[0] if "." in name else ""


def groups_of(keys: Iterable[str]) -> list[str]:
    """Groups of settings, in order."""
    return list(dict.fromkeys(filter(None, map(group_of, keys))))


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
    if near:
        return near
    words = last.replace("_", " ")
    return [
        k.name for k in keys.values() if k.meaning.lower().startswith((words + " ", words + ":"))
    ]


def unknown(name: str, keys: Mapping[str, Key], program: str, where: str = "") -> ValueError:
    """The error for a key that does not exist.

    Args:
        name: as typed, without ``+`` or ``~``.
        keys: those that exist.
        program: ``train.py`` or ``eval.py``.
        where: `` in FILE`` when it does not stand on the command line.
    """
    last = name.rpartition(".")[2]
    if name in groups_of(keys) or name in keys:
        return ValueError(f"{name} cannot be set like this{where}.")
    if last in NOT_SETTINGS:
        return ValueError(f"unknown key {name}{where}: {NOT_SETTINGS[last]}.")
    owner = next((key for key in keys if name.startswith((f"{key}.", f"{key}["))), None)
    if owner is not None:
        return ValueError(f"unknown key {name}{where}: {owner} has no parts; give it whole.")
    near = nearest(name, keys)
    remedy = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"`python {program} --help` lists every key."
    )
    return ValueError(f"unknown key {name}{where}; {remedy}")


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
            f"{group}={shown(value).strip(chr(39))} does not exist{meant} "
            f"(choices: {', '.join(choices) or 'none'})."
        )


def check_variant(
    name: str, typed: Any, file: Any, chosen: Mapping[str, Any], choices: Mapping[str, list[str]]
) -> None:
    """Refuse ``loss.name=focal`` where the file chosen for the group says another name.

    The other values of the group would stay those that the file has for its own name.

    Args:
        name: of the key.
        typed: its value.
        file: its value in the files that the command chooses; None where they say nothing.
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


def check_read(key: Key, value: Any, settings: Any, job: str, choices: Iterable[str]) -> None:
    """Refuse a typed setting that nothing reads in this combination.

    Args:
        key: the setting.
        value: as typed.
        settings: of the whole command.
        job: ``train`` or ``eval``.
        choices: every ``group=name`` there is.

    Raises:
        ValueError: the setting that keeps it from being read, and which choice would read it.
    """
    typed = f"{key.name}={value_text(value)}"
    if job == "eval":
        if key.train_only:
            raise ValueError(f"{typed} has no effect in eval.py: only train.py reads it; drop it.")
        return
    others = {when.key: attrgetter(when.key)(settings) for when in key.read}
    if not key.read or any(when.holds(others[when.key]) for when in key.read):
        return
    remedies = []
    for when in key.read:
        group, _, part = when.key.partition(".")
        for other in map(value_text, when.values):
            choice = f"{group}={other}" if part == "name" else ""
            remedies.append(choice if choice in choices else f"{when.key}={other}")
        if when.other:
            remedies[-len(when.values) :] = [f"another {when.key}"]
    found = " and ".join(f"{name}={value_text(other)}" for name, other in others.items())
    raise ValueError(
        f"{typed} has no effect with {found}: drop it, or choose {' or '.join(remedies)}, which "
        f"reads it."
    )


def check_type(key: Key, value: Any, where: str = "") -> None:
    """Refuse a value whose type is not the key's; interpolations pass, they are read later.

    Raises:
        ValueError: key, value, what it must be.
    """
    if isinstance(value, str) and (value == MISSING or "${" in value):
        _check_interpolation(key, value, where)
        return
    if value is None and key.nullable:
        return
    if key.limit is not None and key.limit.word is not None and value == key.limit.word:
        return
    if not _has_type(key.type, value):
        kind = key.kind + (" or null" if key.nullable else "")
        allowed = f" ({key.allowed})" if key.allowed else ""
        raise ValueError(f"{key.name} must be {kind}{allowed}, got {shown(value)}{where}.")
    if key.type is str and key.nullable and value in ("None", "none", "Null", "NULL"):
        raise ValueError(f"{key.name}={value} would be the text {value!r}{where}; write null.")


def _check_interpolation(key: Key, value: str, where: str) -> None:
    """Refuse the clock: every rank and every restart would read another value."""
    if "${now:" in value:
        raise ValueError(
            f"{key.name}={value} changes with the clock{where}, so ranks and restarts of one run "
            f"would differ; write a fixed value."
        )


def _has_type(kind: Any, value: Any) -> bool:
    """Whether a plain value has the type of a key."""
    if kind is Any:
        items = value.values() if isinstance(value, Mapping) else value
        items = items if isinstance(value, list | Mapping) else [value]
        return len(items) > 0 and all(_has_type(float, item) for item in items)
    if get_origin(kind) is list:
        (item_kind,) = get_args(kind)
        return isinstance(value, list) and all(_has_type(item_kind, item) for item in value)
    if isinstance(value, bool) or kind is bool:
        return kind is bool and (isinstance(value, bool) or str(value).lower() in TRUE_OR_FALSE)
    if kind is str:
        return isinstance(value, str | int | float) and str(value).strip() != ""
    if kind is float:  # inf and nan are floats, which limits refuse
        return isinstance(value, float) or (isinstance(value, int) and is_finite(value))
    return isinstance(value, int)


def shown(value: Any) -> str:
    """A value as the user would write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def leaves(tree: Mapping[Any, Any], keys: Mapping[str, Key], prefix: str = "") -> Iterator:
    """(dotted name, value) of everything in nested maps that is not a group of ``keys``."""
    groups = groups_of(keys)
    for part, value in tree.items():
        name = f"{prefix}{part}"
        if isinstance(value, Mapping) and name not in keys and (value or name in groups):
            yield from leaves(value, keys, f"{name}.")
        else:
            yield name, value


def check_tree(
    tree: Mapping[Any, Any], keys: Mapping[str, Key], program: str, where: str = ""
) -> None:
    """Refuse unknown keys and values of a wrong type anywhere in nested maps.

    Args:
        tree: what a YAML file or a whole command line says, as plain containers.
        keys: those that exist.
        program: ``train.py`` or ``eval.py``.
        where: `` in FILE`` for a file.

    Raises:
        ValueError: the first offending key.
    """
    groups = groups_of(keys)
    for name, value in leaves(tree, keys):
        if name in groups:
            raise ValueError(
                f"{name} is a group of settings, got {shown(value)}{where}; give its keys, such as "
                f"{next(key for key in keys if group_of(key) == name)}."
            )
        if name not in keys:
            raise unknown(name, keys, program, where)
        check_type(keys[name], value, where)


def check_complete(tree: Mapping[Any, Any], keys: Mapping[str, Key], program: str) -> None:
    """Refuse settings that only the user can give and did not.

    Raises:
        ValueError: all of them, with what to type.
    """
    lacking = [name for name, value in leaves(tree, keys) if value == MISSING]
    if lacking:
        typed = " ".join(f"{name}=..." for name in lacking)
        meanings = "; ".join(f"{name}: {keys[name].meaning}" for name in lacking)
        raise ValueError(f"{program} needs {typed} ({meanings}).")
