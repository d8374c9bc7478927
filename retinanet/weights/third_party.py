"""RetinaNets of torchvision, detectron2 and mmdetection as checkpoints of this project.

Each reader brings the weights under our names and the conventions that its project leaves unsaid:
which pixels go in, where strides lie, how images are resized, anchors rounded and boxes clipped.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from retinanet.model.anchors import OCTAVE_SCALES
from retinanet.model.heads import count_classes
from retinanet.training.checkpoint import FORMAT
from retinanet.weights.names import (
    DETECTRON2,
    MMDETECTION,
    TORCHVISION,
    Pairs,
    counted_alone,
    rename,
    swapped,
)
from retinanet.weights.pretrained import COUNTER, RGB_MEAN, for_rgb, is_resnext, with_statistics

# Backbones by their blocks in each stage, whether they are bottlenecks, and the channels out of and
# into (one group of) the second convolution.
BACKBONES = {
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
POSTPROCESS = {"score_threshold": 0.05, "pre_nms": 1000, "nms_iou": 0.5}
# Settings of the group `data` that say where images are, which another project's file does not.
NOT_RECORDED = (
    *("name", "root", "train_images", "train_annotations", "val_images", "val_annotations"),
    *("workers", "keep_empty", "on_bad_image"),
)

# COCO's category ids are torchvision's labels: 0 and ten gaps are never used.
COCO_CHANNELS = 91
# detectron2's anchors of a cell: scale outside, ratio inside. Ours, ratio * 3 + scale, is theirs,
# scale * 3 + ratio.
DETECTRON2_ORDER = (0, 3, 6, 1, 4, 7, 2, 5, 8)
# Pixels differ by less than this from others of the same mean: a level in 255.
SAME_MEAN = 1.0
# In mmdetection's recorded configuration, which is a text of Python or JSON.
CAFFE = re.compile(r"""\bstyle['"]?\s*[:=]\s*['"]caffe['"]""")
STDS = re.compile(r"""\btarget_stds['"]?\s*[:=]\s*[\[(]([^\])]*)""")

# Names and ids of classes; None where they are not known.
Classes = tuple[list[str] | None, list[int] | None]


def read_third_party(state: dict[str, Tensor], contents: dict[str, Any]) -> dict[str, Any] | None:
    """A third-party checkpoint as a run of ours would have saved it; None if it is nobody's.

    Args:
        state: parameters by name; whose they are shows in the names.
        contents: of the file.

    Raises:
        ValueError: not a plain RetinaNet with a ResNet.
    """
    if "head.classification_head.cls_logits.weight" in state:
        return _read_torchvision(state)
    if "head.cls_score.weight" in state and "backbone.fpn_lateral3.weight" in state:
        return _read_detectron2(state)
    if "bbox_head.retina_cls.weight" in state:
        return _read_mmdetection(state, contents)
    return None


def _read_torchvision(state: dict[str, Tensor]) -> dict[str, Any]:
    """Source: pytorch/vision, models/detection/retinanet.py and anchor_utils.py, 0.29."""
    # Before 0.13, as in the published file, a convolution was no block with a norm.
    current = {}
    for name, value in state.items():
        name = re.sub(r"(_blocks\.\d)\.(weight|bias)$", r"\1.0.\2", name)
        current[re.sub(r"(_head\.conv)\.#(\d+)\.", r"\1.\2.0.", counted_alone(name))] = value
    weights = _renamed(current, TORCHVISION, "torchvision")
    model = _model_settings(weights, "torchvision")
    live = f"backbone.bn1.{COUNTER}" in weights
    model["norm"] = "batch" if live else "frozen"
    K = count_classes(weights)
    classes = _classes_of(K)
    if K == COCO_CHANNELS:
        classes = coco_classes()
        for part in ("weight", "bias"):
            name = f"head.cls.pred.{part}"
            rows = weights[name].unflatten(0, (-1, COCO_CHANNELS))  # (a, 91, ...)
            weights[name] = rows[:, classes[1]].flatten(0, 1)  # (a * 80, ...)
        # The builder sets it for the published weights, and no file says so.
        model["norm_eps"] = 1e-5 if live else 0.0
    return _checkpoint(
        f"torchvision {'v2' if model['head_norm'] == 'group' else 'v1'}",
        weights,
        model,
        classes,
        rounding="torchvision",
        resize="torchvision",
        postprocess={"detections": 300, "clip": "before_nms"},
    )


def _read_detectron2(state: dict[str, Tensor]) -> dict[str, Any]:
    """From its model zoo (``.pkl``) or trained with it (``.pth``).

    Source: facebookresearch/detectron2, modeling/meta_arch/{retinanet,dense_detector}.py,
    modeling/{anchor_generator,backbone/fpn}.py, configs/Base-RetinaNet.yaml.
    """
    # Live norms are read as frozen ones.
    current = {counted_alone(name): value for name, value in state.items()}
    dropped = (COUNTER, "pixel_mean", "pixel_std", "anchor_generator.")
    weights = with_statistics(_renamed(current, DETECTRON2, "detectron2", dropped))
    for name in NEEDED:
        if ".pred." in name:
            rows = weights[name].unflatten(0, (PER_CELL, -1))  # (a, K or 4, ...)
            weights[name] = rows[list(DETECTRON2_ORDER)].flatten(0, 1)  # (a * K or 4, ...)
    if "pixel_mean" not in state:
        # Files of today do not say. The zoo's configurations: BGR; for MSRA's ResNets the variance
        # left alone, for FAIR's ResNeXts not.
        bgr, scaled = True, is_resnext(weights.get("backbone.layer1.0.conv2.weight"))
    else:
        mean = state["pixel_mean"].flatten().tolist()
        if len(mean) != 3 or "pixel_std" not in state:
            raise ValueError(f"it takes {len(mean)} means off its pixels, and three are read.")
        bgr = mean[0] < mean[2]
        wanted = RGB_MEAN[::-1] if bgr else RGB_MEAN
        if max(abs(a - b) for a, b in zip(mean, wanted, strict=True)) > SAME_MEAN:
            raise ValueError(
                f"it takes the mean {mean} off its pixels; only ImageNet's, {list(wanted)}, is "
                f"read."
            )
        scaled = bool((state["pixel_std"].flatten() > 2).all())
    weights = for_rgb(weights, bgr=bgr, scaled=scaled, stem="backbone.conv1.weight")
    model = _model_settings(weights, "detectron2")
    # MSRA's ResNets put the stride there; torchvision's and FAIR's ResNeXts, whose pixels have
    # unit variance, do not.
    model["stride_in_1x1"] = not scaled and _has_bottlenecks(weights)
    return _checkpoint(
        "detectron2",
        weights,
        model,
        _classes_of(count_classes(weights)),
        rounding="none",
        resize="antialias",
        postprocess={"detections": 100, "clip": "after_nms"},
    )


def _read_mmdetection(state: dict[str, Tensor], contents: dict[str, Any]) -> dict[str, Any]:
    """Versions 2 and 3; of ``meta`` in the file, its configuration and classes are used.

    Source: open-mmlab/mmdetection 3.3, configs/_base_/models/retinanet_r50_fpn.py,
    models/dense_heads/retina_head.py, models/necks/fpn.py.
    """
    # Its norms do not count batches: they stay in evaluation mode.
    dropped = (COUNTER, "data_preprocessor.", "ema_")
    weights = _renamed(state, MMDETECTION, "mmdetection", dropped)
    model = _model_settings(weights, "mmdetection")
    model["relu_before_p7"] = False
    meta = contents.get("meta") if isinstance(contents.get("meta"), dict) else {}
    config = meta.get("cfg") or meta.get("config")
    config = config if isinstance(config, str) else ""
    for stds in STDS.findall(config):
        if any(float(number) != 1 for number in stds.split(",") if number.strip()):
            raise ValueError(f"its deltas are in units of target_stds=[{stds}]; only 1 is read.")
    # Caffe's style: BGR, variance left alone, stride in the 1x1. Nothing but the recorded
    # configuration tells it from the other.
    caffe = CAFFE.search(config) is not None
    if caffe:
        weights = for_rgb(weights, bgr=True, scaled=False, stem="backbone.conv1.weight")
        model["stride_in_1x1"] = _has_bottlenecks(weights)
    K = count_classes(weights)
    recorded = meta.get("dataset_meta")
    recorded = recorded if isinstance(recorded, dict) else {}
    names = recorded.get("classes") or recorded.get("CLASSES") or meta.get("CLASSES")
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if is_list and len(names) == K and list(names) != coco_classes()[0]:
        classes: Classes = list(names), list(range(1, K + 1))
    else:
        classes = _classes_of(K)
    return _checkpoint(
        f"mmdetection ({'caffe' if caffe else 'pytorch'} style)",
        weights,
        model,
        classes,
        rounding="none",
        resize="opencv",
        postprocess={"detections": 100, "clip": "before_nms"},
    )


def _checkpoint(
    origin: str,
    weights: dict[str, Tensor],
    model: dict[str, Any],
    classes: Classes,
    *,
    rounding: str,
    resize: str,
    postprocess: dict[str, Any],
) -> dict[str, Any]:
    """What :func:`retinanet.training.checkpoint.save_checkpoint` of a run would have kept."""
    return {
        "format": FORMAT,
        "origin": origin,
        "model": weights,
        "settings": {
            "data": dict.fromkeys(NOT_RECORDED) | SIZES | {"resize": resize},
            "model": model,
            "anchors": {**ANCHORS, "rounding": rounding},
            "postprocess": {**POSTPROCESS, **postprocess},
            "precision": "fp32",
            "seed": 0,
        },
        "classes": {"names": classes[0], "ids": classes[1]},
        "step": None,
        "val_data": None,
    }


def coco_classes() -> tuple[list[str], list[int]]:
    """Names and ids of COCO's 80 categories, in the order of ids; from torchvision's table."""
    listed = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    classes = [(n, i) for i, n in enumerate(listed) if n not in ("__background__", "N/A")]
    return [name for name, _ in classes], [i for _, i in classes]


def _classes_of(num_classes: int) -> Classes:
    """COCO's classes for as many outputs as it has; unknown ones for others."""
    names, ids = coco_classes()
    return (names, ids) if len(ids) == num_classes else (None, None)


def _has_bottlenecks(weights: dict[str, Tensor]) -> bool:
    return "backbone.layer1.0.conv3.weight" in weights


def _renamed(
    state: dict[str, Tensor], project: Pairs, origin: str, dropped: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Weights under our names, after checking that they are those of a plain RetinaNet.

    Args:
        state: under the project's names.
        project: our names and the project's.
        origin: the project, for the message.
        dropped: beginnings and ends of names that are not wanted.

    Raises:
        ValueError: a name that is neither, one that every model has is missing, or it has other
            anchors.
    """
    wanted = {
        name: value
        for name, value in state.items()
        if not name.startswith(dropped) and not name.endswith(dropped)
    }
    weights, strange = rename(wanted, swapped(project))
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
    rows = {name: len(weights[name]) for name in NEEDED if ".pred." in name}
    if {rows["head.box.pred.weight"], rows["head.box.pred.bias"]} != {4 * PER_CELL}:
        raise ValueError(f"it does not predict 4 numbers of {PER_CELL} anchors in each cell.")
    K = rows["head.cls.pred.bias"]
    if rows["head.cls.pred.weight"] != K or K % PER_CELL:
        raise ValueError(f"it does not predict the classes of {PER_CELL} anchors in each cell.")
    return weights


def _model_settings(weights: dict[str, Tensor], origin: str) -> dict[str, Any]:
    """The settings of the group ``model`` that show in the weights.

    Args:
        weights: under our names.
        origin: the project, for the message.

    Raises:
        ValueError: a backbone that this project does not have.
    """
    blocks = tuple(
        len({name.split(".")[2] for name in weights if name.startswith(f"backbone.layer{i}.")})
        for i in (1, 2, 3, 4)
    )
    conv2 = weights.get("backbone.layer1.0.conv2.weight", torch.empty(0, 0))
    key = (blocks, _has_bottlenecks(weights), tuple(conv2.shape[:2]))
    if key not in BACKBONES:
        raise ValueError(
            f"its backbone, of {blocks} blocks, is none of this project's; RetinaNets of {origin} "
            f"with ResNets and ResNeXts are read."
        )
    c5_channels = weights["fpn.lateral.c5.weight"].shape[1]
    convs = re.compile(r"head\.cls\.convs\.\d+\.weight")
    return {
        "backbone": BACKBONES[key],
        "weights": None,
        "norm": "frozen",
        "head_norm": "group" if "head.cls.norms.0.weight" in weights else "none",
        "frozen_stages": 2,
        "norm_eps": 1e-5,
        "stride_in_1x1": False,
        "fpn_channels": weights["fpn.p7.weight"].shape[0],
        "p6_from": "c5" if weights["fpn.p6.weight"].shape[1] == c5_channels else "p5",
        "relu_before_p7": True,
        "head_depth": sum(convs.fullmatch(name) is not None for name in weights),
        "head_channels": weights["head.cls.pred.weight"].shape[1],
        "prior": 0.01,
    }
