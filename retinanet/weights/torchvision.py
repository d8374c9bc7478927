"""torchvision's RetinaNet, both its versions: read and written.

Source: pytorch/vision, models/detection/retinanet.py and anchor_utils.py, 0.29.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retinanet.limits import value_text
from retinanet.model.heads import count_classes, prior_bias
from retinanet.weights.names import rename, to_theirs
from retinanet.weights.third_party import (
    ANCHORS,
    POSTPROCESS,
    Foreign,
    class_rows,
    classes_of,
    coco_classes,
    model_settings,
    renamed,
)

ORIGIN = "torchvision"

# COCO's category ids are its labels: 0 and ten gaps are never used.
COCO_CHANNELS = 91
# Score of a class that does not exist, in a written model.
NEVER = 1e-8

NAMES = [
    # MobileNetV2's layers have no names but numbers.
    ("backbone.features.{}.", "backbone.body.{}."),
    ("backbone.", "backbone.body."),
    *((f"fpn.lateral.c{i}.", f"backbone.fpn.inner_blocks.{i - 3}.0.") for i in (3, 4, 5)),
    *((f"fpn.output.p{i}.", f"backbone.fpn.layer_blocks.{i - 3}.0.") for i in (3, 4, 5)),
    ("fpn.p6.", "backbone.fpn.extra_blocks.p6."),
    ("fpn.p7.", "backbone.fpn.extra_blocks.p7."),
    ("head.cls.convs.{}.", "head.classification_head.conv.{}.0."),
    ("head.cls.norms.{}.", "head.classification_head.conv.{}.1."),
    ("head.cls.pred.", "head.classification_head.cls_logits."),
    ("head.box.convs.{}.", "head.regression_head.conv.{}.0."),
    ("head.box.norms.{}.", "head.regression_head.conv.{}.1."),
    ("head.box.pred.", "head.regression_head.bbox_reg."),
]
# Files written before torchvision 0.13, the published one among them: a subnet was a flat list
# of convolutions and ReLUs.
OLD_NAMES = [
    (f"{ours}.{part}", f"{theirs}.{part}")
    for ours, theirs in (
        *((f"fpn.lateral.c{i}", f"backbone.fpn.inner_blocks.{i - 3}") for i in (3, 4, 5)),
        *((f"fpn.output.p{i}", f"backbone.fpn.layer_blocks.{i - 3}") for i in (3, 4, 5)),
        *((f"head.cls.convs.{i}", f"head.classification_head.conv.{2 * i}") for i in range(4)),
        *((f"head.box.convs.{i}", f"head.regression_head.conv.{2 * i}") for i in range(4)),
    )
    for part in ("weight", "bias")
]


def recognizes(state: dict[str, Tensor]) -> bool:
    """Whether these are the names of a RetinaNet of torchvision."""
    return "head.classification_head.cls_logits.weight" in state


def read(state: dict[str, Tensor], about: dict[str, Any]) -> Foreign:
    """A RetinaNet of torchvision in our terms.

    Args:
        state: its state dict.
        about: what else was in the file; not used.

    Raises:
        ValueError: not a plain RetinaNet with a ResNet.
    """
    weights = renamed(state, [*NAMES, *OLD_NAMES], (), ORIGIN)
    model = model_settings(weights, ORIGIN)
    live = "backbone.bn1.num_batches_tracked" in weights
    model["norm"] = "batch" if live else "frozen"
    K = count_classes(weights)
    names, ids = classes_of(K)
    if K == COCO_CHANNELS:
        names, ids = coco_classes()
        weights = class_rows(weights, ids)
        # The builder sets it for the published weights, and no file says so.
        model["norm_eps"] = 1e-5 if live else 0.0
    return Foreign(
        origin=f"{ORIGIN} {'v2' if model['head_norm'] == 'group' else 'v1'}",
        weights=weights,
        model=model,
        anchors={**ANCHORS, "rounding": "torchvision"},
        postprocess={**POSTPROCESS, "detections": 300, "clip": "before_nms"},
        resize="torchvision",
        names=names,
        ids=ids,
    )


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
    wanted = {
        "model.backbone": lambda value: value != "tiny",
        "model.norm": lambda value: value in ("frozen", "batch", "sync"),
        "model.relu_before_p7": lambda value: value,
        "model.stride_in_1x1": lambda value: not value,
        "model.head_depth": lambda value: value == 4,
        "anchors.offset": lambda value: value == 0,
    }
    for key, fits in wanted.items():
        group, name = key.split(".")
        if not fits(settings[group][name]):
            raise ValueError(
                f"torchvision's RetinaNet cannot have {key}={value_text(settings[group][name])}, "
                f"so this checkpoint cannot be written for it."
            )
    channels = settings["model"]["head_channels"], settings["model"]["fpn_channels"]
    if channels[0] != channels[1]:
        raise ValueError(
            f"torchvision's RetinaNet cannot have model.head_channels={channels[0]} with "
            f"model.fpn_channels={channels[1]}, so this checkpoint cannot be written for it."
        )
    if ids == coco_classes()[1]:
        weights = weights | _with_gaps(weights, ids)
    theirs, left_over = rename(weights, to_theirs(NAMES))
    assert not left_over, f"no name in torchvision for {left_over}"
    return theirs


def _with_gaps(weights: dict[str, Tensor], ids: list[int]) -> dict[str, Tensor]:
    """The class outputs with a row for every label up to the last id."""
    changed = {}
    for part, filling in (("weight", 0.0), ("bias", prior_bias(NEVER))):
        name = f"head.cls.pred.{part}"
        rows = weights[name].unflatten(0, (-1, len(ids)))  # (a, K, ...)
        wide = torch.full((len(rows), COCO_CHANNELS, *rows.shape[2:]), filling, dtype=rows.dtype)
        wide[:, ids] = rows
        changed[name] = wide.flatten(0, 1)  # (a * 91, ...)
    return changed
