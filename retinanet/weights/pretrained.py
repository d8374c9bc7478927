"""Pretrained backbones: weights of several projects, by name or from a file, under our names."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from retinanet.checks import is_path
from retinanet.weights.loading import read_tensors
from retinanet.weights.names import (
    DETECTRON2_RESNET,
    DETECTRON_RESNET,
    rename,
    swapped,
    timm_mobilenet,
)

# Mean and standard deviation of ImageNet's RGB values, as torchvision's weights expect them.
RGB_MEAN = (123.675, 116.28, 103.53)
RGB_STD = (58.395, 57.12, 57.375)
# What frozen and batch norms add to the variance: torch's default.
NORM_EPS = 1e-5

# Classifiers, which a backbone does not have; and the counters of batch norms, which nothing needs.
CLASSIFIERS = ("fc.", "classifier.", "head.", "linear.")
COUNTER = "num_batches_tracked"
# Beginnings of names that only detectors have: ours, torchvision's, detectron2's, mmdetection's.
DETECTORS = ("head.cls.", "head.classification_head.", "head.cls_score.", "bbox_head.")
# Under these keys files keep the state dict, beside settings and optimizers.
WRAPPERS = ("state_dict", "model", "blobs")
# What the names of all parameters begin with when something was wrapped around the model: DDP,
# torch.compile; and those of a backbone that was a part of something.
WRAPPED = ("module.", "_orig_mod.")
PART = "backbone."


def load_backbone(backbone: nn.Module, name: str, weights: str) -> None:
    """Load weights into a backbone; every parameter must be there.

    Args:
        backbone: with ``stride_in_1x1`` as built.
        name: of the backbone.
        weights: torchvision's name of them, or a path to a file of torchvision, timm, detectron2
            or Detectron (MSRA).

    Raises:
        ValueError: an unknown name, a failed download, parameters missing or left over, or
            weights that want the strides elsewhere.
        FileNotFoundError: no such file.
    """
    if is_path(weights):
        given, stride_in_1x1 = _read_weights(Path(weights))
    else:
        given, stride_in_1x1 = _fetch_weights(name, weights), False
    if stride_in_1x1 is not None and stride_in_1x1 != backbone.stride_in_1x1:
        raise ValueError(
            f"model.weights={weights} were trained with the stride of each stage in its "
            f"{'first 1x1' if stride_in_1x1 else '3x3'} convolution; set model.stride_in_1x1="
            f"{str(stride_in_1x1).lower()}."
        )
    wanted = backbone.state_dict()
    given = {
        key: value
        for key, value in given.items()
        if not key.startswith(CLASSIFIERS) and not key.endswith(COUNTER)
    }
    missing = [key for key in wanted if key not in given and not key.endswith(COUNTER)]
    extra = [key for key in given if key not in wanted]
    shapes = [key for key in given if key in wanted and given[key].shape != wanted[key].shape]
    if missing or extra or shapes:
        of_statistics = any(key.endswith("running_mean") for key in extra)
        hint = " Batch-norm weights do not fit model.norm=group." if of_statistics else ""
        raise ValueError(
            f"model.weights={weights} do not fit {name}: {len(missing)} parameters missing "
            f"(such as {missing[:2]}), {len(extra)} left over (such as {extra[:2]}), "
            f"{len(shapes)} of another shape (such as {shapes[:2]}).{hint} Give the weights of "
            f"this backbone."
        )
    backbone.load_state_dict({**wanted, **given})


def _read_weights(path: Path) -> tuple[dict[str, Tensor], bool | None]:
    """Weights in a file under our names, and where they want the stride; None: not known."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}; check model.weights.")
    try:
        contents = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"model.weights={path} is not a readable state dict: {error}") from error
    author = contents.get("__author__") if isinstance(contents, dict) else None
    state = unwrapped(contents)
    if state is None:
        raise ValueError(f"model.weights={path} holds no state dict of tensors.")
    if any(key.startswith(DETECTORS) for key in state):
        raise ValueError(
            f"model.weights={path} is a whole detector's checkpoint, which belongs into init_from."
        )
    state = _without(state, PART)
    if "conv_stem.weight" in state:  # timm's MobileNetV2
        weights, left_over = rename(state, swapped(timm_mobilenet()))
        return weights | {name: state[name] for name in left_over}, False
    if "conv1_w" in state:  # Detectron's: norms without statistics
        weights, _ = rename(state, swapped(DETECTRON_RESNET))
    elif "stem.conv1.weight" in state:
        weights, _ = rename(state, swapped(DETECTRON2_RESNET))
        if author == "torchvision":  # detectron2 has a copy of them under its own names
            return weights, False
    else:
        return state, None
    # MSRA's ResNets and FAIR's ResNeXts, as detectron2's configurations describe them. Both take
    # BGR. ResNets want only the mean taken off, and shrink in their 1x1; ResNeXts want unit
    # variance, and shrink in their 3x3.
    scaled = is_resnext(weights.get("layer1.0.conv2.weight"))
    try:
        weights = for_rgb(weights, bgr=True, scaled=scaled, stem="conv1.weight")
    except ValueError as error:
        raise ValueError(f"model.weights={path}: {error}") from error
    return with_statistics(weights), not scaled


def unwrapped(contents: object) -> dict[str, Tensor] | None:
    """The state dict in a file's contents; None where there is none."""
    for key in WRAPPERS:
        if isinstance(contents, dict) and isinstance(contents.get(key), dict):
            contents = contents[key]
    if not isinstance(contents, dict):
        return None
    state = {k: v for k, v in contents.items() if isinstance(k, str) and isinstance(v, Tensor)}
    for prefix in WRAPPED:
        state = _without(state, prefix)
    return state or None


def _without(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The state dict without what all names begin with, those of a classifier left out."""
    kept = [key for key in state if not key.startswith(CLASSIFIERS)]
    if not kept or not all(key.startswith(prefix) for key in kept):
        return state
    return {key.removeprefix(prefix): state[key] for key in kept}


def _fetch_weights(name: str, weights: str) -> dict[str, Tensor]:
    """State dict of torchvision's weights, from its cache or its server."""
    choices = torchvision.models.get_model_weights(name)
    if weights not in choices.__members__:
        raise ValueError(
            f"model.weights={weights}: {name} has {', '.join(choices.__members__)}; or give a "
            f"path (containing /), or null for random weights."
        )
    try:
        return choices[weights].get_state_dict(progress=True, check_hash=True)
    except (urllib.error.URLError, ConnectionError, TimeoutError, RuntimeError) as error:
        # RuntimeError: what came has another hash, as when a proxy answers with its own page.
        raise ValueError(
            f"model.weights={weights} could not be downloaded from {choices[weights].url} "
            f"({error}). Offline: fetch that file elsewhere and set model.weights=PATH, or train "
            f"from random weights with model.weights=null model.norm=group model.frozen_stages=0."
        ) from error


def for_rgb(weights: dict[str, Tensor], *, bgr: bool, scaled: bool, stem: str) -> dict[str, Tensor]:
    """Weights whose stem takes our pixels: RGB, zero mean, unit variance.

    Exact, also at the padding, which is zero before and after.

    Args:
        weights: of a network whose pixels have the same mean.
        bgr: it was trained on BGR.
        scaled: its pixels have unit variance; otherwise only the mean is taken off.
        stem: name of the first convolution's weight.

    Raises:
        ValueError: the stem does not take three channels.
    """
    weight = weights[stem]  # (channels, 3, 7, 7)
    if weight.dim() != 4 or weight.shape[1] != 3:
        raise ValueError(f"its {stem} has the shape {tuple(weight.shape)}, not (..., 3, ..., ...).")
    if bgr:
        weight = weight.flip(1)
    if not scaled:
        weight = weight * weight.new_tensor(RGB_STD).view(1, 3, 1, 1)
    return {**weights, stem: weight}


def is_resnext(conv2: Tensor | None) -> bool:
    """Whether a block's second convolution is in groups."""
    return conv2 is not None and conv2.dim() == 4 and conv2.shape[0] != conv2.shape[1]


def with_statistics(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Norms that are a scale and a shift get statistics that change nothing.

    Such are detectron2's FrozenBatchNorm2d (layers/batch_norm.py) before any training.

    Args:
        weights: under torchvision's names.
    """
    added = {}
    for name, scale in weights.items():
        norm = name.removesuffix(".weight")
        if name.endswith(".weight") and scale.dim() == 1 and f"{norm}.running_var" not in weights:
            added[f"{norm}.running_mean"] = torch.zeros_like(scale)
            added[f"{norm}.running_var"] = torch.full_like(scale, 1 - NORM_EPS)
    return weights | added
