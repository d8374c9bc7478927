"""The model of a checkpoint, as the checkpoint itself describes it."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from retinanet import build
from retinanet.checks import check_settings
from retinanet.model.heads import count_classes
from retinanet.model.retinanet import RetinaNet
from retinanet.recorded import DetectorConfig, restore
from retinanet.training.checkpoint import shipped_weights

# How images come into a model, which every checkpoint must say.
IMAGE_SETTINGS = ("min_size", "max_size", "resize")


def recorded_settings(state: dict[str, Any]) -> DetectorConfig:
    """The settings of a checkpoint that its model detects with.

    Raises:
        ValueError: they are not those of this version, or out of range.
    """
    fields = [f.name for f in dataclasses.fields(DetectorConfig)]
    found = restore(DetectorConfig, {k: v for k, v in state["settings"].items() if k in fields})
    lacking = [name for name in IMAGE_SETTINGS if getattr(found.data, name) is None]
    if lacking:
        raise ValueError(f"the recorded settings lack data.{', data.'.join(lacking)}.")
    check_settings(found)
    return found


def known_classes(state: dict[str, Any], num_classes: int) -> tuple[list[str], list[int]]:
    """Names and category ids of a checkpoint's classes; numbers where nobody wrote them down.

    Raises:
        ValueError: it names more or fewer classes than its model detects.
    """
    names, ids = state["classes"]["names"], state["classes"]["ids"]
    if names is None:
        return [f"class_{label}" for label in range(num_classes)], list(range(num_classes))
    if len(names) != num_classes:
        raise ValueError(
            f"the checkpoint names {len(names)} classes, and its model detects {num_classes}."
        )
    return names, ids


def load_model(state: dict[str, Any], settings: DetectorConfig) -> RetinaNet:
    """The model of a checkpoint with the weights to ship: the average's where there is one.

    Args:
        state: from :func:`retinanet.weights.read.read_trained`.
        settings: :func:`recorded_settings` of it.

    Raises:
        ValueError: parameters are missing or left over.
    """
    weights = shipped_weights(state)
    # First what makes a model large: what is described may fit into no memory.
    _refuse(_misfits(weights, _described_shapes(settings)))
    K = count_classes(weights)
    model = build.build_model(settings, K, load_later=True)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    _refuse(sorted(weights.keys() - wanted.keys()) + _misfits(weights, wanted))
    model.load_state_dict(weights)
    return model.eval()


def _described_shapes(settings: DetectorConfig) -> dict[str, tuple[int, ...]]:
    """Parameter -> shape, of those that show the numbers of ``settings``."""
    model, anchors = settings.model, settings.anchors
    a = len(anchors.scales) * len(anchors.ratios)
    C = model.fpn_channels
    widths = [C] + [model.head_channels] * min(model.head_depth, 2)
    shapes = {"fpn.p7.weight": (C, C, 3, 3), "head.box.pred.weight": (4 * a, widths[-1], 3, 3)}
    if model.head_depth:
        last = f"head.cls.convs.{model.head_depth - 1}.weight"
        shapes[last] = (widths[-1], widths[-2], 3, 3)
    return shapes


def _misfits(weights: dict[str, Tensor], wanted: dict[str, tuple[int, ...]]) -> list[str]:
    """Names in ``wanted`` that the weights lack, or have in another shape."""
    return [n for n, shape in wanted.items() if n not in weights or weights[n].shape != shape]


def _refuse(wrong: list[str]) -> None:
    if wrong:
        raise ValueError(
            f"the checkpoint does not hold the model it describes: {len(wrong)} parameters are "
            f"missing, left over or of another shape, such as {', '.join(map(str, wrong[:3]))}."
        )
