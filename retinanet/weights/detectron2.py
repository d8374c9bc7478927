"""detectron2's RetinaNet, from its model zoo (``.pkl``) or trained with it (``.pth``).

Source: facebookresearch/detectron2, modeling/meta_arch/{retinanet,dense_detector}.py,
modeling/{anchor_generator,backbone/fpn}.py, configs/Base-RetinaNet.yaml.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from retinanet.model.heads import count_classes
from retinanet.weights.pretrained import (
    RGB_MEAN,
    detectron2_trunk,
    for_rgb,
    is_resnext,
    with_statistics,
)
from retinanet.weights.third_party import (
    ANCHORS,
    POSTPROCESS,
    Foreign,
    classes_of,
    model_settings,
    renamed,
    reordered,
    without_counters,
)

ORIGIN = "detectron2"

NAMES = [
    *((f"backbone.{ours}", f"backbone.bottom_up.{theirs}") for ours, theirs in detectron2_trunk()),
    *((f"fpn.lateral.c{i}.", f"backbone.fpn_lateral{i}.") for i in (3, 4, 5)),
    *((f"fpn.output.p{i}.", f"backbone.fpn_output{i}.") for i in (3, 4, 5)),
    ("fpn.p6.", "backbone.top_block.p6."),
    ("fpn.p7.", "backbone.top_block.p7."),
    # Convolutions alternate with ReLUs.
    *((f"head.cls.convs.{i}.", f"head.cls_subnet.{2 * i}.") for i in range(4)),
    *((f"head.box.convs.{i}.", f"head.bbox_subnet.{2 * i}.") for i in range(4)),
    ("head.cls.pred.", "head.cls_score."),
    ("head.box.pred.", "head.bbox_pred."),
]
DROPPED = ("pixel_mean", "pixel_std", "anchor_generator.")

# Its anchors of a cell: scale outside, ratio inside. Ours, ratio * 3 + scale, is theirs,
# scale * 3 + ratio.
ORDER = (0, 3, 6, 1, 4, 7, 2, 5, 8)

# Pixels differ by less than this from others of the same mean: a level in 255.
SAME_MEAN = 1.0


def recognizes(state: dict[str, Tensor]) -> bool:
    """Whether these are the names of a RetinaNet of detectron2."""
    return "head.cls_score.weight" in state and "backbone.fpn_lateral3.weight" in state


def read(state: dict[str, Tensor], about: dict[str, Any]) -> Foreign:
    """A RetinaNet of detectron2 in our terms.

    Args:
        state: its state dict.
        about: what else was in the file; not used.

    Raises:
        ValueError: not a plain RetinaNet with a ResNet, or pixels of another mean.
    """
    # Live norms are read as frozen ones.
    weights = with_statistics(renamed(without_counters(state), NAMES, DROPPED, ORIGIN))
    for subnet in ("cls", "box"):
        weights = reordered(weights, subnet, ORDER)
    conv2 = weights.get("backbone.layer1.0.conv2.weight")
    bgr, scaled = _pixels(state, is_resnext(conv2))
    weights = for_rgb(weights, bgr=bgr, scaled=scaled, stem="backbone.conv1.weight")
    model = model_settings(weights, ORIGIN)
    # MSRA's ResNets put the stride there; torchvision's and FAIR's ResNeXts, whose pixels have
    # unit variance, do not.
    model["stride_in_1x1"] = not scaled and _has_bottlenecks(weights)
    names, ids = classes_of(count_classes(weights))
    return Foreign(
        origin=ORIGIN,
        weights=weights,
        model=model,
        anchors={**ANCHORS, "rounding": "none"},
        postprocess={**POSTPROCESS, "detections": 100, "clip": "after_nms"},
        resize="antialias",
        names=names,
        ids=ids,
    )


def _has_bottlenecks(weights: dict[str, Tensor]) -> bool:
    return "backbone.layer1.0.conv3.weight" in weights


def _pixels(state: dict[str, Tensor], resnext: bool) -> tuple[bool, bool]:
    """Whether the model takes BGR, and whether its pixels have unit variance."""
    if "pixel_mean" not in state:
        # Files of today do not say. The zoo's configurations: BGR; for MSRA's ResNets the variance
        # left alone, for FAIR's ResNeXts not.
        return True, resnext
    mean = state["pixel_mean"].flatten().tolist()
    if len(mean) != 3 or "pixel_std" not in state:
        raise ValueError(f"it takes {len(mean)} means off its pixels, and three are read.")
    bgr = mean[0] < mean[2]
    wanted = RGB_MEAN[::-1] if bgr else RGB_MEAN
    if max(abs(a - b) for a, b in zip(mean, wanted, strict=True)) > SAME_MEAN:
        raise ValueError(
            f"it takes the mean {mean} off its pixels; only ImageNet's, {list(wanted)}, is read."
        )
    return bgr, bool((state["pixel_std"].flatten() > 2).all())
