"""Trained weights of trunks: from a name or a file, of several projects, under our names."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from retinanet.checks import is_path
from retinanet.weights.loading import read_tensors
from retinanet.weights.names import Pairs, rename, to_ours

# Mean and standard deviation of ImageNet's RGB values, as torchvision's weights expect them.
RGB_MEAN = (123.675, 116.28, 103.53)
RGB_STD = (58.395, 57.12, 57.375)

# Classifiers and counters, which a trunk does not have or need.
NOT_NEEDED = ("fc.", "classifier.", "head.", "linear.")

# Beginnings of names that only detectors have: ours, torchvision's, detectron2's, mmdetection's.
DETECTORS = ("head.cls.", "head.classification_head.", "head.cls_score.", "bbox_head.")

# Under these keys files keep the state dict, beside settings and optimizers.
WRAPPERS = ("state_dict", "model", "blobs")
# What the names of all parameters begin with when something was wrapped around the model: DDP,
# torch.compile.
WRAPPED = ("module.", "_orig_mod.")
# What those of a trunk begin with when it was a part of something.
PART = "backbone."

# Of a norm without statistics (AffineChannel): scale and shift alone. Source: detectron2,
# layers/batch_norm.py, whose FrozenBatchNorm2d starts so.
NEUTRAL_MEAN = 0.0


class TrunkWeights(NamedTuple):
    """Weights of a trunk for RGB images of zero mean and unit variance."""

    weights: dict[str, Tensor]  # under torchvision's names
    stride_in_1x1: bool | None  # where they want the stride of a bottleneck; None: not known


def detectron2_trunk() -> Pairs:
    """torchvision's names and detectron2's. Source: modeling/backbone/resnet.py there."""
    pairs = [("bn1.", "stem.conv1.norm."), ("conv1.", "stem.conv1.")]
    for stage in (1, 2, 3, 4):
        ours, theirs = f"layer{stage}.{{}}.", f"res{stage + 1}.{{}}."
        pairs += [
            (f"{ours}bn{{}}.", f"{theirs}conv{{}}.norm."),
            (f"{ours}conv{{}}.", f"{theirs}conv{{}}."),
            (f"{ours}downsample.1.", f"{theirs}shortcut.norm."),
            (f"{ours}downsample.0.", f"{theirs}shortcut."),
        ]
    return pairs


def detectron_trunk() -> Pairs:
    """torchvision's names and Detectron's, of MSRA's weights.

    Source: detectron2, checkpoint/c2_model_loading.py.
    """
    pairs = [
        ("conv1.weight", "conv1_w"),
        ("bn1.weight", "res_conv1_bn_s"),
        ("bn1.bias", "res_conv1_bn_b"),
    ]
    branches = (("conv1", "bn1", "2a"), ("conv2", "bn2", "2b"), ("conv3", "bn3", "2c"))
    for stage in (1, 2, 3, 4):
        for conv, norm, branch in (*branches, ("downsample.0", "downsample.1", "1")):
            ours, theirs = f"layer{stage}.{{}}.", f"res{stage + 1}_{{}}_branch{branch}_"
            pairs += [
                (f"{ours}{conv}.weight", f"{theirs}w"),
                (f"{ours}{norm}.weight", f"{theirs}bn_s"),
                (f"{ours}{norm}.bias", f"{theirs}bn_b"),
            ]
    return pairs


def timm_mobilenet() -> Pairs:
    """torchvision's names of MobileNetV2 and timm's. Source: timm, models/efficientnet.py."""
    pairs = [
        ("features.0.0.", "conv_stem."),
        ("features.0.1.", "bn1."),
        ("features.1.conv.0.0.", "blocks.0.0.conv_dw."),
        ("features.1.conv.0.1.", "blocks.0.0.bn1."),
        ("features.1.conv.1.", "blocks.0.0.conv_pw."),
        ("features.1.conv.2.", "blocks.0.0.bn2."),
    ]
    number = 2
    for stage, blocks in enumerate((2, 3, 4, 3, 3, 1), start=1):
        for block in range(blocks):
            ours, theirs = f"features.{number}.conv.", f"blocks.{stage}.{block}."
            parts = ("0.0", "0.1", "1.0", "1.1", "2", "3")
            names = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
            pairs += [(f"{ours}{p}.", f"{theirs}{n}.") for p, n in zip(parts, names, strict=True)]
            number += 1
    return [*pairs, (f"features.{number}.0.", "conv_head."), (f"features.{number}.1.", "bn2.")]


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


def load_trunk(trunk: nn.Module, name: str, weights: str) -> None:
    """Load weights into a trunk; every parameter must be there.

    Args:
        trunk: with ``stride_in_1x1`` as built.
        name: of the trunk.
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
    if stride_in_1x1 is not None and stride_in_1x1 != trunk.stride_in_1x1:
        raise ValueError(
            f"model.weights={weights} were trained with the stride of each stage in its "
            f"{'first 1x1' if stride_in_1x1 else '3x3'} convolution; set model.stride_in_1x1="
            f"{str(stride_in_1x1).lower()}."
        )
    wanted = trunk.state_dict()
    given = {
        key: value
        for key, value in given.items()
        if not key.startswith(NOT_NEEDED) and not key.endswith("num_batches_tracked")
    }
    missing = [
        key for key in wanted if key not in given and not key.endswith("num_batches_tracked")
    ]
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
    trunk.load_state_dict({**wanted, **given})


def _read_weights(path: Path) -> TrunkWeights:
    """Weights in a file; nothing in it executes."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}; check model.weights.")
    try:
        state = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"model.weights={path} is not a readable state dict: {error}") from error
    author = state.get("__author__") if isinstance(state, dict) else None
    state = unwrapped(state)
    if state is None:
        raise ValueError(f"model.weights={path} holds no state dict of tensors.")
    if any(key.startswith(DETECTORS) for key in state):
        raise ValueError(
            f"model.weights={path} is a whole detector's checkpoint, which belongs into init_from."
        )
    try:
        return _in_our_names(_without(state, PART), author)
    except ValueError as error:
        raise ValueError(f"model.weights={path}: {error}") from error


def unwrapped(state: object) -> dict[str, Tensor] | None:
    """The state dict in a file's contents; None where there is none."""
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        return None
    state = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    for prefix in WRAPPED:
        state = _without(state, prefix)
    return state or None


def _without(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The state dict without what all names begin with, those of a classifier left out."""
    kept = [key for key in state if not key.startswith(NOT_NEEDED)]
    if not kept or not all(key.startswith(prefix) for key in kept):
        return state
    return {key.removeprefix(prefix): state[key] for key in kept}


def _in_our_names(state: dict[str, Tensor], author: str | None) -> TrunkWeights:
    if "conv1_w" in state:  # Detectron's: norms without statistics
        weights, _ = rename(state, to_ours(detectron_trunk()))
        return _from_bgr(weights)
    if "stem.conv1.weight" in state:
        weights, _ = rename(state, to_ours(detectron2_trunk()))
        # Of torchvision's weights it has a copy in its own names.
        return TrunkWeights(weights, False) if author == "torchvision" else _from_bgr(weights)
    if "conv_stem.weight" in state:
        weights, left_over = rename(state, to_ours(timm_mobilenet()))
        weights |= {name: state[name] for name in left_over}
        return TrunkWeights(weights, stride_in_1x1=False)
    return TrunkWeights(state, stride_in_1x1=None)


def _from_bgr(weights: dict[str, Tensor]) -> TrunkWeights:
    """MSRA's ResNets and FAIR's ResNeXts, as detectron2's configurations describe them.

    Both take BGR. ResNets want only the mean taken off, and shrink in their 1x1; ResNeXts want unit
    variance, and shrink in their 3x3.
    """
    scaled = is_resnext(weights.get("layer1.0.conv2.weight"))
    weights = for_rgb(weights, bgr=True, scaled=scaled, stem="conv1.weight")
    return TrunkWeights(with_statistics(weights), stride_in_1x1=not scaled)


def is_resnext(conv2: Tensor | None) -> bool:
    """Whether a block's second convolution is in groups."""
    return conv2 is not None and conv2.dim() == 4 and conv2.shape[0] != conv2.shape[1]


def with_statistics(weights: dict[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """Norms that are a scale and a shift get statistics that change nothing.

    Args:
        weights: under torchvision's names.
        eps: what the norm will add to the variance.
    """
    added = {}
    for name, scale in weights.items():
        norm = name.removesuffix(".weight")
        if name.endswith(".weight") and scale.dim() == 1 and f"{norm}.running_var" not in weights:
            added[f"{norm}.running_mean"] = torch.full_like(scale, NEUTRAL_MEAN)
            added[f"{norm}.running_var"] = torch.full_like(scale, 1 - eps)
    return weights | added


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
