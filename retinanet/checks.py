"""What settings may be, alone and together: for the command line and for every constructor."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

from retinanet.config import TrainConfig
from retinanet.limits import Limit, check_value
from retinanet.recorded import DetectorConfig


def _limits(cls: type, prefix: str = "") -> dict[str, Limit]:
    """Dotted key -> limit of every setting of ``cls`` that has one."""
    limits: dict[str, Limit] = {}
    hints = get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            limits |= _limits(hints[f.name], f"{prefix}{f.name}.")
        elif f.metadata["limit"] is not None:
            limits[prefix + f.name] = f.metadata["limit"]
    return limits


LIMITS = _limits(TrainConfig)


def check(key: str, value: Any) -> None:
    """Refuse a value that the setting ``key`` (such as ``"loss.alpha"``) may not have.

    Raises:
        ValueError: the value, what is allowed, what the setting means where that helps.
    """
    if value is not None and key in LIMITS:
        check_value(key, value, LIMITS[key])


def check_settings(settings: Any, prefix: str = "") -> None:
    """Refuse values out of range, and values that do not go together.

    Args:
        settings: a :class:`TrainConfig` or :class:`EvalConfig`, or a group of one.
        prefix: of the keys in messages, such as ``"loss."``.

    Raises:
        ValueError: the first offending key, its value, what is allowed, what to do.
    """
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if dataclasses.is_dataclass(value):
            check_settings(value, f"{prefix}{f.name}.")
        else:
            check(prefix + f.name, value)
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
    larger = [size for size in settings.augment.min_sizes or () if size > data.max_size]
    if larger:
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
    remedy = "Give model.weights a name or a path, or set model.norm=group model.frozen_stages=0."
    if norm == "frozen" and weights is None:
        raise ValueError(
            f"model.norm=frozen with model.weights=null: the frozen batch norms of a random "
            f"{backbone} would normalize nothing. {remedy}"
        )
    if frozen_stages and weights is None:
        raise ValueError(
            f"model.frozen_stages={frozen_stages} with model.weights=null: random stages would "
            f"stay random. {remedy}"
        )
    if backbone == "tiny" and weights is not None and not is_path(weights):
        raise ValueError(
            f"model.backbone=tiny has no weights {weights}; choose model=tiny (group norm, no "
            f"weights), a path, or another backbone."
        )


def is_path(weights: str) -> bool:
    """Whether ``model.weights`` names a file rather than weights of torchvision."""
    return "/" in weights or "\\" in weights or weights.endswith((".pth", ".pt", ".pkl"))


def check_gamma(name: str, gamma: float) -> None:
    """Refuse the exponent that FL* divides by."""
    if name == "focal_star" and gamma == 0:
        raise ValueError(
            "loss.gamma=0 with loss.name=focal_star, which divides by it; give gamma above 0, or "
            "use loss=focal, whose gamma 0 is cross entropy."
        )


def check_strides(backbone: str, stride_in_1x1: bool) -> None:
    """Refuse to move strides where there are no bottlenecks."""
    if stride_in_1x1 and not backbone.startswith(("resnet50", "resnet101", "resnet152", "resnext")):
        raise ValueError(
            f"model.stride_in_1x1=true with model.backbone={backbone}: it has no bottlenecks with "
            f"a first 1x1 convolution; set it to false, or use resnet50 or a larger one."
        )
