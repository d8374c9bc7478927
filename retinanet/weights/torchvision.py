"""Models of this project in torchvision's layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retinanet.checks import value_text
from retinanet.model.heads import prior_bias
from retinanet.weights.names import TORCHVISION as NAMES
from retinanet.weights.names import rename
from retinanet.weights.read import COCO_CHANNELS, coco_classes

# Score of a class that does not exist, in a written model.
NEVER = 1e-8


def write(
    weights: dict[str, Tensor], settings: dict[str, dict[str, Any]], ids: list[int]
) -> dict[str, Tensor]:
    """A state dict for torchvision's ``RetinaNet``.

    COCO's classes become its 91 channels, in which label and category id are the same; the
    channels without a category never fire. Other classes stay as they are: label i is class i.

    Args:
        weights: of one of our models.
        settings: groups ``model`` and ``anchors`` of its settings.
        ids: category ids in the order of labels.

    Raises:
        ValueError: torchvision's class has no such model.
    """
    model, anchors = settings["model"], settings["anchors"]
    cannot = {
        "model.backbone": model["backbone"] == "tiny",
        "model.norm": model["norm"] not in ("frozen", "batch", "sync"),
        "model.relu_before_p7": not model["relu_before_p7"],
        "model.stride_in_1x1": model["stride_in_1x1"],
        "model.head_depth": model["head_depth"] != 4,
        "anchors.offset": anchors["offset"] != 0,
        "model.head_channels": model["head_channels"] != model["fpn_channels"],
    }
    for key in (key for key, refused in cannot.items() if refused):
        group, name = key.split(".")
        value = value_text(settings[group][name])
        if name == "head_channels":
            value += f" with model.fpn_channels={model['fpn_channels']}"
        raise ValueError(
            f"torchvision's RetinaNet cannot have {key}={value}, so this checkpoint cannot be "
            f"written for it."
        )
    if ids == coco_classes()[1]:
        weights = dict(weights)
        for part, filling in (("weight", 0.0), ("bias", prior_bias(NEVER))):
            name = f"head.cls.pred.{part}"
            rows = weights[name].unflatten(0, (-1, len(ids)))  # (a, K, ...)
            shape = len(rows), COCO_CHANNELS, *rows.shape[2:]
            wide = torch.full(shape, filling, dtype=rows.dtype)
            wide[:, ids] = rows
            weights[name] = wide.flatten(0, 1)  # (a * 91, ...)
    theirs, left_over = rename(weights, NAMES)
    assert not left_over, f"no name in torchvision for {left_over}"
    return theirs
