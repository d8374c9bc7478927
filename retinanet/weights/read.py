"""A trained model from a file: a checkpoint of ours, or a RetinaNet of another project as one.

Each project leaves conventions unsaid: which pixels go in, where strides lie, how images are
resized, anchors rounded and boxes clipped. They are read here into the settings of the checkpoint.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from retinanet.model.anchors import OCTAVE_SCALES
from retinanet.model.heads import count_classes
from retinanet.training.checkpoint import FORMAT, check_trained, read_checked
from retinanet.weights import names
from retinanet.weights.pretrained import (
    COUNTER,
    RGB_MEAN,
    for_rgb,
    is_resnext,
    unwrapped,
    with_statistics,
)

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
PREDICTIONS = [name for name in NEEDED if ".pred." in name]
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
# Names of unknown parameters are cut in messages.
NAMES_CHARACTERS = 200

Weights = dict[str, Tensor]  # by the names of their parameters


class Project(NamedTuple):
    """How RetinaNets of a project are known, and what they all have in common."""

    markers: set[str]  # parameters that no other project has
    pairs: names.Pairs  # our names and theirs
    dropped: tuple[str, ...]  # beginnings and ends of names that are not wanted
    rounding: str  # of anchors
    resize: str
    postprocess: dict[str, Any]


PROJECTS = {
    # Source: pytorch/vision, models/detection/retinanet.py and anchor_utils.py, 0.29.
    "torchvision": Project(
        {"head.classification_head.cls_logits.weight"},
        names.TORCHVISION,
        (),
        rounding="torchvision",
        resize="torchvision",
        postprocess={"detections": 300, "clip": "before_nms"},
    ),
    # Source: facebookresearch/detectron2, modeling/meta_arch/{retinanet,dense_detector}.py,
    # modeling/{anchor_generator,backbone/fpn}.py, configs/Base-RetinaNet.yaml. Live norms are read
    # as frozen ones.
    "detectron2": Project(
        {"head.cls_score.weight", "backbone.fpn_lateral3.weight"},
        names.DETECTRON2,
        (COUNTER, "pixel_mean", "pixel_std", "anchor_generator."),
        rounding="none",
        resize="antialias",
        postprocess={"detections": 100, "clip": "after_nms"},
    ),
    # Source: open-mmlab/mmdetection 3.3, configs/_base_/models/retinanet_r50_fpn.py,
    # models/dense_heads/retina_head.py, models/necks/fpn.py. Its norms do not count batches: they
    # stay in evaluation mode.
    "mmdetection": Project(
        {"bbox_head.retina_cls.weight"},
        names.MMDETECTION,
        (COUNTER, "data_preprocessor.", "ema_"),
        rounding="none",
        resize="opencv",
        postprocess={"detections": 100, "clip": "before_nms"},
    ),
}


def read_trained(path: Path) -> dict[str, Any]:
    """A checkpoint of this project, or the same made from one of another.

    Nothing in a file is executed. Whose it is shows in the names of its parameters.

    Args:
        path: a ``.pt`` or ``.pth`` of this project, torchvision, detectron2 or mmdetection, or a
            ``.pkl`` of detectron2.

    Returns:
        Weights, classes and the settings that detection needs, as in a checkpoint of ours;
        ``origin`` is whose it was. ``classes["names"]`` is None where they are not known.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or nobody's RetinaNet.
    """
    contents = read_checked(path)
    if isinstance(contents, dict) and "format" in contents:
        return check_trained(contents, path)
    state = unwrapped(contents) or {}
    contents = contents if isinstance(contents, dict) else {}
    for origin, project in PROJECTS.items():
        if project.markers <= state.keys():
            try:
                return _read_project(origin, state, contents)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
    listed = ", ".join(sorted(map(str, state or contents))[:3])[:NAMES_CHARACTERS] or "nothing"
    raise ValueError(
        f"{path} is no checkpoint of a RetinaNet of this project, torchvision, detectron2 or "
        f"mmdetection (it holds {listed}, ...); weights of a backbone belong into model.weights."
    )


def _read_project(origin: str, state: Weights, contents: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of a project as a run of ours would have saved it."""
    project = PROJECTS[origin]
    weights = _renamed(state, project, origin)
    model = _model_settings(weights, origin)
    meta = contents.get("meta") if isinstance(contents.get("meta"), dict) else {}
    adapt = {"torchvision": _torchvision, "detectron2": _detectron2, "mmdetection": _mmdetection}
    described, class_names = adapt[origin](weights, model, state, meta)
    ids = None if class_names is None else list(range(1, len(class_names) + 1))
    K = count_classes(weights)
    if class_names in (None, coco_classes()[0]) and len(coco_classes()[1]) == K:
        class_names, ids = coco_classes()
    return {
        "format": FORMAT,
        "origin": described,
        "model": weights,
        "settings": {
            "data": dict.fromkeys(NOT_RECORDED) | SIZES | {"resize": project.resize},
            "model": model,
            "anchors": {**ANCHORS, "rounding": project.rounding},
            "postprocess": POSTPROCESS | project.postprocess,
            "precision": "fp32",
            "seed": 0,
        },
        "classes": {"names": class_names, "ids": ids},
        "step": None,
        "val_data": None,
    }


# What is left to read of each project: weights and settings change in place; a description and
# the names of classes, as far as the file has them, are returned.


def _torchvision(weights: Weights, model: dict, _: Weights, __: dict) -> tuple[str, None]:
    live = f"backbone.bn1.{COUNTER}" in weights
    model["norm"] = "batch" if live else "frozen"
    if count_classes(weights) == COCO_CHANNELS:
        for part in ("weight", "bias"):
            rows = weights[f"head.cls.pred.{part}"].unflatten(
                0, (-1, COCO_CHANNELS)
            )  # (a, 91, ...)
            rows = rows[:, coco_classes()[1]].flatten(0, 1)  # (a * 80, ...)
            weights[f"head.cls.pred.{part}"] = rows
        # The builder sets it for the published weights, and no file says so.
        model["norm_eps"] = 1e-5 if live else 0.0
    return f"torchvision {'v2' if model['head_norm'] == 'group' else 'v1'}", None


def _detectron2(weights: Weights, model: dict, state: Weights, _: dict) -> tuple[str, None]:
    weights.update(with_statistics(weights))
    for name in PREDICTIONS:
        rows = weights[name].unflatten(0, (PER_CELL, -1))  # (a, K or 4, ...)
        weights[name] = rows[list(DETECTRON2_ORDER)].flatten(0, 1)  # (a * K or 4, ...)
    # Files of today do not say. The zoo's configurations: BGR; for MSRA's ResNets the variance left
    # alone, for FAIR's ResNeXts not.
    bgr, scaled = True, is_resnext(weights.get("backbone.layer1.0.conv2.weight"))
    if "pixel_mean" in state:
        mean = state["pixel_mean"].flatten().tolist()
        if len(mean) != 3 or "pixel_std" not in state:
            raise ValueError(f"it takes {len(mean)} means off its pixels, and three are read.")
        bgr = mean[0] < mean[2]
        wanted = RGB_MEAN[::-1] if bgr else RGB_MEAN
        if max(abs(a - b) for a, b in zip(mean, wanted, strict=True)) > SAME_MEAN:
            allowed = f"only ImageNet's, {list(wanted)}, is read"
            raise ValueError(f"it takes the mean {mean} off its pixels; {allowed}.")
        scaled = bool((state["pixel_std"].flatten() > 2).all())
    weights.update(for_rgb(weights, bgr=bgr, scaled=scaled, stem="backbone.conv1.weight"))
    # MSRA's ResNets put the stride there; torchvision's and FAIR's ResNeXts, whose pixels have
    # unit variance, do not.
    model["stride_in_1x1"] = not scaled and _has_bottlenecks(weights)
    return "detectron2", None


def _mmdetection(
    weights: Weights, model: dict, _: Weights, meta: dict
) -> tuple[str, list[str] | None]:
    """Versions 2 and 3; of ``meta`` in the file, its configuration and classes are used."""
    model["relu_before_p7"] = False
    config = meta.get("cfg") or meta.get("config")
    config = config if isinstance(config, str) else ""
    for stds in STDS.findall(config):
        if any(float(number) != 1 for number in stds.split(",") if number.strip()):
            raise ValueError(f"its deltas are in units of target_stds=[{stds}]; only 1 is read.")
    # Caffe's style: BGR, variance left alone, stride in the 1x1. Nothing but the recorded
    # configuration tells it from the other.
    caffe = CAFFE.search(config) is not None
    if caffe:
        weights.update(for_rgb(weights, bgr=True, scaled=False, stem="backbone.conv1.weight"))
        model["stride_in_1x1"] = _has_bottlenecks(weights)
    recorded = meta.get("dataset_meta") if isinstance(meta.get("dataset_meta"), dict) else {}
    listed = recorded.get("classes") or recorded.get("CLASSES") or meta.get("CLASSES")
    known = isinstance(listed, list | tuple) and all(isinstance(name, str) for name in listed)
    known = known and len(listed) == count_classes(weights)
    return f"mmdetection ({'caffe' if caffe else 'pytorch'} style)", list(listed) if known else None


def coco_classes() -> tuple[list[str], list[int]]:
    """Names and ids of COCO's 80 categories, in the order of ids; from torchvision's table."""
    listed = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    classes = [(n, i) for i, n in enumerate(listed) if n not in ("__background__", "N/A")]
    return [name for name, _ in classes], [i for _, i in classes]


def _has_bottlenecks(weights: Weights) -> bool:
    return "backbone.layer1.0.conv3.weight" in weights


def _renamed(state: Weights, project: Project, origin: str) -> Weights:
    """Weights under our names, after checking that they are those of a plain RetinaNet."""
    wanted = {
        names.counted_alone(name): value
        for name, value in state.items()
        if not name.startswith(project.dropped) and not name.endswith(project.dropped)
    }
    weights, strange = names.rename(wanted, names.swapped(project.pairs))
    missing = [n for n, dim in NEEDED.items() if n not in weights or weights[n].dim() != dim]
    problem = ""
    if strange:
        such = ", ".join(strange[:3])
        problem = f"{len(strange)} parameters are none of that model's, such as {such}"
    elif missing:
        problem = f"what would be {', '.join(missing)} here is missing or of another shape"
    if problem:
        raise ValueError(
            f"it looks like a RetinaNet of {origin}, but {problem}; only plain RetinaNets are read."
        )
    class_weight, class_bias, *boxes = (len(weights[name]) for name in PREDICTIONS)
    if boxes != [4 * PER_CELL] * 2:
        raise ValueError(f"it does not predict 4 numbers of {PER_CELL} anchors in each cell.")
    if class_weight != class_bias or class_weight % PER_CELL:
        raise ValueError(f"it does not predict the classes of {PER_CELL} anchors in each cell.")
    return weights


def _model_settings(weights: Weights, origin: str) -> dict[str, Any]:
    """The settings of the group ``model`` that show in the weights."""
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
