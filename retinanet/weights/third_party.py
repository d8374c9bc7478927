"""What the checkpoints of other projects have in common, in our terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from retinanet.model.anchors import OCTAVE_SCALES
from retinanet.model.heads import count_classes
from retinanet.weights.names import Pairs, rename, to_ours

# Trunks by their blocks in each stage, whether they are bottlenecks, and the channels out of and
# into (one group of) the second convolution.
TRUNKS = {
    ((2, 2, 2, 2), False, (64, 64)): "resnet18",
    ((3, 4, 6, 3), False, (64, 64)): "resnet34",
    ((3, 4, 6, 3), True, (64, 64)): "resnet50",
    ((3, 4, 23, 3), True, (64, 64)): "resnet101",
    ((3, 8, 36, 3), True, (64, 64)): "resnet152",
    ((3, 4, 6, 3), True, (128, 4)): "resnext50_32x4d",
    ((3, 4, 23, 3), True, (128, 4)): "resnext101_32x4d",
    ((3, 4, 23, 3), True, (256, 8)): "resnext101_32x8d",
    ((3, 4, 23, 3), True, (256, 4)): "resnext101_64x4d",
}

# Parameters from which a model's settings are read, and their dimensions.
NEEDED = {
    "backbone.conv1.weight": 4,
    "fpn.lateral.c5.weight": 4,
    "fpn.p6.weight": 4,
    "fpn.p7.weight": 4,
    "head.cls.pred.weight": 4,
    "head.cls.pred.bias": 1,
    "head.box.pred.weight": 4,
    "head.box.pred.bias": 1,
}
# Batch norms count batches; nothing needs it.
COUNTER = "num_batches_tracked"

# Of the three projects. Sources: torchvision, models/detection/retinanet.py; detectron2,
# configs/Base-RetinaNet.yaml; mmdetection, configs/_base_/models/retinanet_r50_fpn.py.
SIZES = {"min_size": 800, "max_size": 1333}
ANCHORS = {
    "sizes": [32.0, 64.0, 128.0, 256.0, 512.0],
    "scales": list(OCTAVE_SCALES),
    "ratios": [0.5, 1.0, 2.0],
    "offset": 0.0,
}
PER_CELL = len(ANCHORS["scales"]) * len(ANCHORS["ratios"])
PREDICTIONS = ("cls.pred.weight", "cls.pred.bias", "box.pred.weight", "box.pred.bias")
POSTPROCESS = {"score_threshold": 0.05, "pre_nms": 1000, "nms_iou": 0.5}


class Foreign(NamedTuple):
    """A RetinaNet that another project trained."""

    origin: str  # whose
    weights: dict[str, Tensor]  # under our names
    model: dict[str, Any]  # settings of each group
    anchors: dict[str, Any]
    postprocess: dict[str, Any]
    resize: str
    names: Sequence[str] | None  # of the classes; None: not known
    ids: Sequence[int] | None  # category ids


def coco_classes() -> tuple[list[str], list[int]]:
    """Names and ids of COCO's 80 categories, in the order of ids; from torchvision's table."""
    listed = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    classes = [(n, i) for i, n in enumerate(listed) if n not in ("__background__", "N/A")]
    return [name for name, _ in classes], [i for _, i in classes]


def classes_of(num_classes: int) -> tuple[list[str] | None, list[int] | None]:
    """COCO's classes for as many outputs as it has; unknown ones for others."""
    names, ids = coco_classes()
    return (names, ids) if len(ids) == num_classes else (None, None)


def without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict whose norms can only be frozen ones: how many batches they saw is left out."""
    return {name: value for name, value in state.items() if not name.endswith(COUNTER)}


def renamed(
    state: dict[str, Tensor], pairs: Pairs, dropped: tuple[str, ...], origin: str
) -> dict[str, Tensor]:
    """Weights under our names.

    Args:
        state: under their names.
        pairs: (ours, theirs).
        dropped: beginnings and ends of names that are not wanted.
        origin: for the message.

    Raises:
        ValueError: a name that is neither, one that every model has is missing, or it has other
            anchors.
    """
    weights, left_over = rename(state, to_ours(pairs))
    strange = [n for n in left_over if not n.startswith(dropped) and not n.endswith(dropped)]
    if strange:
        raise ValueError(
            f"it looks like a RetinaNet of {origin}, but {len(strange)} parameters are none of "
            f"that model's, such as {', '.join(strange[:3])}; only plain RetinaNets are read."
        )
    missing = [n for n, dim in NEEDED.items() if n not in weights or weights[n].dim() != dim]
    if missing:
        raise ValueError(
            f"it looks like a RetinaNet of {origin}, but what would be {', '.join(missing)} here "
            f"is missing or of another shape; only plain RetinaNets are read."
        )
    rows = {part: len(weights[f"head.{part}"]) for part in PREDICTIONS}
    if rows["box.pred.weight"] != rows["box.pred.bias"] or rows["box.pred.bias"] != 4 * PER_CELL:
        raise ValueError(f"it does not predict 4 numbers of {PER_CELL} anchors in each cell.")
    if rows["cls.pred.weight"] != rows["cls.pred.bias"] or rows["cls.pred.bias"] % PER_CELL:
        raise ValueError(f"it does not predict the classes of {PER_CELL} anchors in each cell.")
    return weights


def model_settings(weights: dict[str, Tensor], origin: str) -> dict[str, Any]:
    """The settings of the group ``model`` that show in the weights.

    Args:
        weights: under our names.
        origin: for the message.

    Raises:
        ValueError: a trunk that this project does not have.
    """
    blocks = tuple(
        len({name.split(".")[2] for name in weights if name.startswith(f"backbone.layer{i}.")})
        for i in (1, 2, 3, 4)
    )
    conv2 = weights.get("backbone.layer1.0.conv2.weight", torch.empty(0, 0))
    key = (blocks, "backbone.layer1.0.conv3.weight" in weights, tuple(conv2.shape[:2]))
    if key not in TRUNKS:
        raise ValueError(
            f"its trunk, of {blocks} blocks, is none of this project's; RetinaNets of {origin} "
            f"with ResNets and ResNeXts are read."
        )
    width = weights["fpn.lateral.c5.weight"].shape[1]
    return {
        "backbone": TRUNKS[key],
        "weights": None,
        "norm": "frozen",
        "head_norm": "group" if "head.cls.norms.0.weight" in weights else "none",
        "frozen_stages": 2,
        "norm_eps": 1e-5,
        "stride_in_1x1": False,
        "fpn_channels": weights["fpn.p7.weight"].shape[0],
        "p6_from": "c5" if weights["fpn.p6.weight"].shape[1] == width else "p5",
        "relu_before_p7": True,
        "head_depth": sum(
            name.startswith("head.cls.convs.") and name.endswith(".weight") for name in weights
        ),
        "head_channels": weights["head.cls.pred.weight"].shape[1],
        "prior": 0.01,
    }


def reordered(weights: dict[str, Tensor], subnet: str, order: Sequence[int]) -> dict[str, Tensor]:
    """Weights whose predictions of the anchors in a cell come in another order.

    Args:
        weights: under our names.
        subnet: ``"cls"`` or ``"box"``.
        order: (a,) where each anchor is taken from.
    """
    changed = {}
    for part in ("weight", "bias"):
        name = f"head.{subnet}.pred.{part}"
        rows = weights[name].unflatten(0, (len(order), -1))  # (a, K or 4, ...)
        changed[name] = rows[list(order)].flatten(0, 1)  # (a * K or 4, ...)
    return weights | changed


def class_rows(weights: dict[str, Tensor], wanted: Sequence[int]) -> dict[str, Tensor]:
    """Weights that predict only some of their classes.

    Args:
        weights: under our names.
        wanted: those to keep, in their new order.
    """
    changed = {}
    for part in ("weight", "bias"):
        name = f"head.cls.pred.{part}"
        rows = weights[name].unflatten(0, (-1, count_classes(weights)))  # (a, K, ...)
        changed[name] = rows[:, list(wanted)].flatten(0, 1)  # (a * len(wanted), ...)
    return weights | changed
