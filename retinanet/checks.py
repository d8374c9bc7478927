"""Checks of settings: one range, all of a command, or those that a checkpoint records."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Union, get_args, get_origin, get_type_hints

from retinanet.config import BEFORE, BOTTLENECKS, DetectorConfig, TrainConfig
from retinanet.limits import Limit, When, check_value


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

    def is_read(self, values: Mapping[str, Any]) -> bool:
        """Whether it has an effect beside other settings; those that are not given do not matter.

        Args:
            values: dotted key -> value.
        """
        conditions = [when for when in self.read if when.key in values]
        return not conditions or any(when.holds(values[when.key]) for when in conditions)


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
        keys[name] = Key(name, hint, nullable, **f.metadata)
    return keys


KEYS = keys_of(TrainConfig)


def check(key: str, value: Any) -> None:
    """Refuse a value that the setting ``key`` (such as ``"loss.alpha"``) may not have.

    Raises:
        ValueError: the value, and what is allowed.
    """
    if value is not None and key in KEYS and KEYS[key].limit is not None:
        check_value(key, value, KEYS[key].limit)


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
    if isinstance(settings, TrainConfig):
        _check_together(settings)


def _check_together(settings: TrainConfig) -> None:
    """Refuse settings that contradict each other."""
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
        check_trunk(model.backbone, model.norm, model.weights, model.frozen_stages)
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


def check_trunk(backbone: str, norm: str, weights: str | None, frozen_stages: int) -> None:
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
    hints = get_type_hints(cls)
    recorded = BEFORE.get(cls, {}) | recorded
    if hints.keys() != recorded.keys():
        missing, unknown = hints.keys() - recorded.keys(), recorded.keys() - hints.keys()
        raise _misfit(f"missing {sorted(missing)}, unknown {sorted(map(ascii, unknown))}")
    wrong = [name for name in sorted(hints) if not _fits(hints[name], recorded[name])]
    if wrong:
        raise _misfit(f"{', '.join(wrong)} of another type")
    is_group = dataclasses.is_dataclass
    return cls(
        **{k: restore(hints[k], v) if is_group(hints[k]) else v for k, v in recorded.items()}
    )


def _misfit(what: str) -> ValueError:
    return ValueError(
        f"the recorded settings do not fit this version: {what}. Use the version that wrote them."
    )


def _fits(hint: Any, value: Any) -> bool:
    """Whether a plain value has the type of a setting, or is the map of a group."""
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict)
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(choice, value) for choice in get_args(hint))
    if get_origin(hint) is list:
        (kind,) = get_args(hint)
        return isinstance(value, list) and all(_fits(kind, item) for item in value)
    if isinstance(value, bool):
        return hint in (bool, Any)
    return hint is Any or isinstance(value, int | float if hint is float else hint)
