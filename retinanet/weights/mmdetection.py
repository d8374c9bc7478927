"""mmdetection's RetinaNet, versions 2 and 3.

Source: open-mmlab/mmdetection 3.3, configs/_base_/models/retinanet_r50_fpn.py,
models/dense_heads/retina_head.py, models/necks/fpn.py.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from retinanet.model.heads import count_classes
from retinanet.weights.pretrained import for_rgb
from retinanet.weights.third_party import (
    ANCHORS,
    POSTPROCESS,
    Foreign,
    classes_of,
    coco_classes,
    model_settings,
    renamed,
    without_counters,
)

ORIGIN = "mmdetection"

NAMES = [
    ("backbone.", "backbone."),  # torchvision's names
    *((f"fpn.lateral.c{i}.", f"neck.lateral_convs.{i - 3}.conv.") for i in (3, 4, 5)),
    *((f"fpn.output.p{i}.", f"neck.fpn_convs.{i - 3}.conv.") for i in (3, 4, 5)),
    ("fpn.p6.", "neck.fpn_convs.3.conv."),
    ("fpn.p7.", "neck.fpn_convs.4.conv."),
    ("head.cls.convs.{}.", "bbox_head.cls_convs.{}.conv."),
    ("head.box.convs.{}.", "bbox_head.reg_convs.{}.conv."),
    ("head.cls.pred.", "bbox_head.retina_cls."),
    ("head.box.pred.", "bbox_head.retina_reg."),
]
DROPPED = ("data_preprocessor.", "ema_")

# In a recorded configuration, which is a text of Python or JSON.
CAFFE = re.compile(r"""\bstyle['"]?\s*[:=]\s*['"]caffe['"]""")
STDS = re.compile(r"""\btarget_stds['"]?\s*[:=]\s*[\[(]([^\])]*)""")


def recognizes(state: dict[str, Tensor]) -> bool:
    """Whether these are the names of a RetinaNet of mmdetection."""
    return "bbox_head.retina_cls.weight" in state


def read(state: dict[str, Tensor], about: dict[str, Any]) -> Foreign:
    """A RetinaNet of mmdetection in our terms.

    Args:
        state: its state dict.
        about: what else was in the file; of ``meta`` the configuration and the classes are used.

    Raises:
        ValueError: not a plain RetinaNet with a ResNet, or deltas in other units.
    """
    # Its norms do not count batches: they stay in evaluation mode.
    weights = renamed(without_counters(state), NAMES, DROPPED, ORIGIN)
    model = model_settings(weights, ORIGIN)
    model["relu_before_p7"] = False
    meta = about.get("meta") if isinstance(about.get("meta"), dict) else {}
    recorded = meta.get("cfg") or meta.get("config")
    recorded = recorded if isinstance(recorded, str) else ""
    for stds in STDS.findall(recorded):
        if any(float(number) != 1 for number in stds.split(",") if number.strip()):
            raise ValueError(f"its deltas are in units of target_stds=[{stds}]; only 1 is read.")
    # Caffe's style: BGR, variance left alone, stride in the 1x1. Nothing but the recorded
    # configuration tells it from the other.
    caffe = CAFFE.search(recorded) is not None
    if caffe:
        weights = for_rgb(weights, bgr=True, scaled=False, stem="backbone.conv1.weight")
        model["stride_in_1x1"] = model["backbone"] not in ("resnet18", "resnet34")
    names, ids = _classes(meta, count_classes(weights))
    return Foreign(
        origin=f"{ORIGIN} ({'caffe' if caffe else 'pytorch'} style)",
        weights=weights,
        model=model,
        anchors={**ANCHORS, "rounding": "none"},
        postprocess={**POSTPROCESS, "detections": 100, "clip": "before_nms"},
        resize="opencv",
        names=names,
        ids=ids,
    )


def _classes(meta: dict[str, Any], num_classes: int) -> tuple[list[str] | None, list[int] | None]:
    """Names and ids that the file records; COCO's for 80 outputs."""
    recorded = meta.get("dataset_meta")
    recorded = recorded if isinstance(recorded, dict) else {}
    names = recorded.get("classes") or recorded.get("CLASSES") or meta.get("CLASSES")
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not is_list or len(names) != num_classes or list(names) == coco_classes()[0]:
        return classes_of(num_classes)
    return list(names), list(range(1, num_classes + 1))
