"""Checks of settings: one range, all of a command, or those that a checkpoint records."""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from retinanet.config import BEFORE, BOTTLENECKS, DetectorConfig, Limit, TrainConfig, When

TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
TYPE_IN_WORDS = {
    bool: "true or false",
    int: "a whole number such as 8",
    float: "a number such as 0.5 or 1e-4",
    str: "text",
    list[int]: "a list of whole numbers such as [1,2]",
    list[float]: "a list of numbers such as [0.5,2]",
    Any: "a number, a list [0.25,0.5], or a map {name:0.5,default:0.25}",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: ``loss.gamma``."""

    name: str
    type: Any  # bool, int, float, str, list[int], list[float], or Any (loss.alpha)
    nullable: bool
    meaning: str
    limit: Limit | None
    read: When | None = None  # has an effect only when this holds; None: always
    train_only: bool = False

    @property
    def group(self) -> str:
        """``loss`` of ``loss.gamma``; empty for a key of the root."""
        return self.name.rpartition(".")[0]

    @property
    def allowed(self) -> str:
        """The limit in words, empty without one: ``at least 0``."""
        return str(self.limit).removeprefix("be ").removeprefix("lie ") if self.limit else ""

    def is_read(self, values: Mapping[str, Any]) -> bool:
        """Whether it has an effect beside other settings; those that are not given do not matter.

        Args:
            values: dotted key -> value.
        """
        when = self.read
        return when is None or when.key not in values or when.holds(values[when.key])

    def converted(self, value: Any, where: str = "") -> Any:
        """A plain value as one of this type: ``yes`` is true, and 1 is 1.0 for a float.

        Args:
            value: as a file or a command gives it.
            where: `` in FILE``, for the error.

        Raises:
            ValueError: key, value, what it must be.
        """
        is_word = self.limit is not None and self.limit.word is not None
        if (value is None and self.nullable) or (is_word and value == self.limit.word):
            return value
        if self.type is str and self.nullable and value in ("None", "none", "Null", "NULL"):
            raise ValueError(f"{self.name}={value} would be the text {value!r}{where}; write null.")
        try:
            if get_origin(self.type) is list and isinstance(value, list):
                return [_scalar(get_args(self.type)[0], item) for item in value]
            if self.type is not Any:
                return _scalar(self.type, value)
            # loss.alpha: its numbers stay as they are; names of classes may look like numbers.
            is_map = isinstance(value, Mapping)
            numbers = value.values() if is_map else value if isinstance(value, list) else [value]
            if not [_scalar(float, number) for number in numbers]:
                raise ValueError
            return {_name_text(name): x for name, x in value.items()} if is_map else value
        except ValueError:
            kind = TYPE_IN_WORDS[self.type] + (" or null" if self.nullable else "")
            limit = f" ({self.allowed})" if self.allowed else ""
            shown = value_text(value) if value is None or isinstance(value, bool) else repr(value)
            message = f"{self.name} must be {kind}{limit}, got {shown}{where}."
            raise ValueError(message) from None


def expand_home(text: str) -> str:
    """A path in the home folder whole, where a shell left its ``~``; other texts as they are."""
    return str(Path(text).expanduser()) if re.match(r"~([/\\]|$)", text) else text


def _name_text(name: Any) -> str:
    """The name of a class as YAML reads it; ``true`` and ``null`` are names too."""
    return value_text(name) if name is None or isinstance(name, bool) else str(name)


def _scalar(kind: type, value: Any) -> Any:
    """A value as a bool, int, float or str; a ValueError for what is none."""
    if kind is bool and isinstance(value, bool | str) and str(value).lower() in TRUE + FALSE:
        return str(value).lower() in TRUE
    if isinstance(value, bool):  # to Python it is a number
        raise ValueError
    if kind is str and isinstance(value, str | int | float) and str(value).strip():
        return expand_home(str(value))
    if kind is float and isinstance(value, int | float):
        # inf and nan stay, which ranges refuse, as they refuse what no float holds.
        try:
            return float(value)
        except OverflowError:
            raise ValueError from None
    if kind is int and isinstance(value, int):
        return value
    raise ValueError


def keys_of(cls: type, prefix: str = "") -> dict[str, Key]:
    """Dotted name -> key, for every setting of a settings class, in the order of its fields."""
    keys: dict[str, Key] = {}
    hints = get_type_hints(cls)
    for f in dataclasses.fields(cls):
        name, hint = prefix + f.name, hints[f.name]
        if dataclasses.is_dataclass(hint):
            keys |= keys_of(hint, f"{name}.")
            continue
        kinds = list(get_args(hint) if isinstance(hint, types.UnionType) else (hint,))
        nullable = types.NoneType in kinds
        if nullable:
            kinds.remove(types.NoneType)
        limit = f.metadata["limit"]
        has_word = limit is not None and limit.word is not None  # a number or the word
        kind = kinds[0] if len(kinds) == 1 or has_word else Any
        keys[name] = Key(name, kind, nullable, **f.metadata)
    return keys


KEYS = keys_of(TrainConfig)


def value_text(value: Any) -> str:
    """One text for equal values, however they were typed: 1, 1.0 and 1e0 are ``1``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{value_text(value[k])}" for k in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(value_text, value)) + "]"
    return str(value)


# One range.


def check(key: str, value: Any) -> None:
    """Refuse a value that the setting ``key`` (such as ``"loss.alpha"``) may not have.

    Raises:
        ValueError: the value, and what is allowed.
    """
    limit = KEYS[key].limit if key in KEYS else None
    if value is None or limit is None or (limit.word is not None and value == limit.word):
        return
    if limit.choices:
        if value not in limit.choices:
            raise ValueError(f"{key} must {limit}, got {value!r}.")
        return
    numbers = {key: value}
    if isinstance(value, Mapping):
        numbers = {f"{key}[{name}]": number for name, number in value.items()}
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if limit.length is None and not value:
            raise ValueError(f"{key} must not be empty; give at least one number.")
        if limit.length is not None and len(value) != limit.length:
            raise ValueError(f"{key} must have {limit.length} numbers, got {len(value)}: {value}.")
        numbers = {f"{key}[{index}]": number for index, number in enumerate(value)}
    for name, number in numbers.items():
        if not limit.admits(number):
            raise ValueError(f"{name} must {limit}, got {number}.")
    if limit.increasing and any(a > b for a, b in pairwise(numbers.values())):
        raise ValueError(f"{key} must not decrease, got {value}.")


# Several settings together. What constructors check too has a function of its own.


def check_all(group: str, values: Mapping[str, Any]) -> None:
    """Refuse what settings of a group may not have; for the arguments of a constructor.

    Args:
        group: such as ``"loss"``.
        values: name -> value, such as ``locals()``; what is no setting of the group is left alone.
    """
    for name, value in values.items():
        check(f"{group}.{name}", value)


def check_settings(settings: Any) -> None:
    """Refuse values out of range, and values that do not go together.

    Args:
        settings: a :class:`TrainConfig`, :class:`DetectorConfig` or
            :class:`retinanet.config.EvalConfig`.

    Raises:
        ValueError: the first offending key, its value, what is allowed, what to do.
    """
    for key in keys_of(type(settings)):
        check(key, attrgetter(key)(settings))
    if isinstance(settings, TrainConfig | DetectorConfig):
        check_sizes(settings.data.min_size, settings.data.max_size)
    if not isinstance(settings, TrainConfig):
        return
    data, model, matching, optim = settings.data, settings.model, settings.matching, settings.optim
    check_thresholds(matching.positive_iou, matching.negative_iou)
    check_gamma(settings.loss.name, settings.loss.gamma)
    check_strides(model.backbone, model.stride_in_1x1)
    if settings.augment.color and data.resize == "torchvision":
        raise ValueError(
            f"augment.color={settings.augment.color:g} changes pixels of 8 bits, which "
            f"data.resize=torchvision does not keep; use data.resize=antialias."
        )
    if settings.init_from is None:
        check_backbone(model.backbone, model.norm, model.weights, model.frozen_stages)
    if any(size > data.max_size for size in settings.augment.min_sizes or ()):
        raise ValueError(
            f"augment.min_sizes={settings.augment.min_sizes} goes above data.max_size="
            f"{data.max_size}, so images would never get that large; raise data.max_size."
        )
    if optim.accumulate != "auto" and optim.batch_size % optim.accumulate:
        raise ValueError(
            f"optim.batch_size={optim.batch_size} cannot be split into "
            f"optim.accumulate={optim.accumulate} equal micro-batches; change one of them."
        )


def check_sizes(min_size: int, max_size: int) -> None:
    """Refuse a shorter side that the longer one does not allow."""
    if min_size > max_size:
        raise ValueError(
            f"data.min_size={min_size} is above data.max_size={max_size}; "
            f"raise data.max_size or lower data.min_size."
        )


def check_thresholds(positive_iou: float, negative_iou: float) -> None:
    """Refuse a background threshold above the positive one."""
    if negative_iou > positive_iou:
        raise ValueError(
            f"matching.negative_iou={negative_iou:g} is above matching.positive_iou="
            f"{positive_iou:g}; an anchor between the two would be both background and positive."
        )


def check_backbone(backbone: str, norm: str, weights: str | None, frozen_stages: int) -> None:
    """Refuse random weights that could never become better, and weights that do not exist."""
    fix = "Give model.weights a name or a path, or set model.norm=group model.frozen_stages=0."
    if norm == "frozen" and weights is None:
        raise ValueError(
            f"model.norm=frozen with model.weights=null: the frozen batch norms of a random "
            f"{backbone} would normalize nothing. {fix}"
        )
    if frozen_stages and weights is None:
        raise ValueError(
            f"model.frozen_stages={frozen_stages} with model.weights=null: random stages would "
            f"stay random. {fix}"
        )
    if backbone == "tiny" and weights is not None and not is_path(weights):
        raise ValueError(
            f"model.backbone=tiny has no weights {weights}; choose model=tiny (group norm, no "
            f"weights), a path, or another backbone."
        )


def is_path(weights: str) -> bool:
    """Whether ``model.weights`` names a file rather than weights of torchvision."""
    return "/" in weights or "\\" in weights or weights.endswith((".pth", ".pt", ".pkl"))


def check_gamma(name: str, gamma: float | None) -> None:
    """Refuse the exponent that FL* divides by."""
    if name == "focal_star" and gamma == 0:
        raise ValueError(
            "loss.gamma=0 with loss.name=focal_star, which divides by it; give gamma above 0, or "
            "use loss=focal, whose gamma 0 is cross entropy."
        )


def check_strides(backbone: str, stride_in_1x1: bool) -> None:
    """Refuse to move strides where there are no bottlenecks."""
    if stride_in_1x1 and backbone not in BOTTLENECKS:
        raise ValueError(
            f"model.stride_in_1x1=true with model.backbone={backbone}: it has no bottlenecks with "
            f"a first 1x1 convolution; set it to false, or use resnet50 or a larger one."
        )


def restore(cls: type, recorded: Mapping[str, Any]) -> Any:
    """Settings from the plain containers of a checkpoint; the inverse of ``dataclasses.asdict``.

    Args:
        cls: such as :class:`TrainConfig`.
        recorded: group -> key -> value.

    Raises:
        ValueError: a key is missing or unknown, or a value has another type: another version of
            this project wrote it, or another program.
    """
    hints, keys, recorded = get_type_hints(cls), keys_of(cls), BEFORE.get(cls, {}) | recorded
    missing, unknown = sorted(hints.keys() - recorded.keys()), recorded.keys() - hints.keys()
    faults, values = [], {}
    if missing or unknown:
        faults.append(f"missing {missing}, unknown {sorted(map(ascii, unknown))}")
    for name in hints.keys() & recorded.keys():
        if name not in keys and isinstance(recorded[name], dict):
            values[name] = restore(hints[name], recorded[name])
            continue
        try:
            values[name] = keys[name].converted(recorded[name])
        except (KeyError, ValueError):
            faults.append(f"{name} of another type")
    if faults:
        raise ValueError(
            f"the recorded settings do not fit this version: {', '.join(sorted(faults))}. Use the "
            f"version that wrote them."
        )
    return cls(**values)
