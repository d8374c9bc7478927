"""The same weights in torchvision's RetinaNet and, read from its file, in ours: the same outputs.

No trained weights are needed: random ones, with norms that fit the activations and with class
scores spread out so that many boxes are detected.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection import (
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms.functional import pil_to_tensor

from retinanet.detector import Detector, load
from retinanet.exchange.foreign import coco_classes

VERSIONS = ("v1", "v2")

# Spread of the class logits and their mean: one pair in some thousands above the threshold.
LOGIT_STD = 1.0
LOGIT_MEAN = -6.0
# torchvision's labels of COCO, and a logit that is no detection.
NUM_LABELS = 91
LARGE = 20.0
# Side of the random image to which the norms are fitted, pixels.
FITTED_SIDE = 256


class Difference(NamedTuple):
    """How far two models are apart on one photo."""

    photo: str
    size: tuple[int, int]  # height and width after resizing
    logits: float  # largest difference / largest value
    deltas: float  # likewise
    detections: int
    unmatched: int  # detections of one that the other does not have
    score: float  # largest difference
    box: float  # largest difference, pixels of the file


def spread_model(version: str, seed: int) -> TorchvisionRetinaNet:
    """A model of torchvision that detects, without training.

    Args:
        version: ``"v1"``, with frozen norms as its builder makes it for trained weights, or
            ``"v2"``.
        seed: of its weights.
    """
    torch.manual_seed(seed)
    build = retinanet_resnet50_fpn if version == "v1" else retinanet_resnet50_fpn_v2
    model = build(weights=None, weights_backbone=None)
    fit_norms(model)
    for subnet in (model.head.classification_head, model.head.regression_head):
        for conv in subnet.conv.modules():
            if isinstance(conv, nn.Conv2d):  # so that something is left after four ReLUs
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    with torch.no_grad():
        _spread(model)
    if version == "v1":
        freeze_norms(model.backbone, eps=0.0)
    return model.eval()


@torch.no_grad()
def fit_norms(model: nn.Module) -> None:
    """Give every batch norm the statistics of a random image, and random scales and shifts."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.0)
        nn.init.uniform_(norm.bias, -0.2, 0.2)
        norm.momentum = 1.0
    model.backbone.train()
    model.backbone(torch.randn(2, 3, FITTED_SIDE, FITTED_SIDE))
    model.eval()


def _spread(model: TorchvisionRetinaNet) -> None:
    """Make the class logits spread around a mean that few reach, and the deltas moderate."""
    head = model.head
    features = list(model.backbone(torch.randn(1, 3, FITTED_SIDE, FITTED_SIDE)).values())
    outputs = head(features)
    for name, last, std, mean in (
        ("cls_logits", head.classification_head.cls_logits, LOGIT_STD, LOGIT_MEAN),
        ("bbox_regression", head.regression_head.bbox_reg, 0.2, 0.0),
    ):
        last.bias.zero_()
        last.weight *= std / (outputs[name] - outputs[name].mean()).std()
        last.bias += mean
    # Labels without a category: nothing teaches them, so a trained model never gives them.
    unused = sorted(set(range(NUM_LABELS)) - set(coco_classes()[1]))
    head.classification_head.cls_logits.bias.view(-1, NUM_LABELS)[:, unused] = -LARGE
    head.classification_head.cls_logits.weight.unflatten(0, (-1, NUM_LABELS))[:, unused] = 0


def freeze_norms(module: nn.Module, eps: float) -> None:
    """Replace batch norms by frozen ones, as torchvision's builder does for trained weights."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze_norms(child, eps)


def run(
    version: str, photos: Sequence[Path], *, min_size: int, max_size: int, seed: int
) -> list[Difference]:
    """Make a model of torchvision, write it, load the file as ours, compare.

    Args:
        version: see :func:`spread_model`.
        photos: image files.
        min_size: shorter side after resizing, pixels.
        max_size: bound of the longer side, pixels.
        seed: of the weights.
    """
    theirs = spread_model(version, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "theirs.pth"
        torch.save(theirs.state_dict(), path)
        ours = load(path, device="cpu")
    theirs.transform.min_size, theirs.transform.max_size = (min_size,), max_size
    ours.settings.data.min_size, ours.settings.data.max_size = min_size, max_size
    return compare(theirs, ours, photos)


def table(differences: Sequence[Difference]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [
        "| photo | height x width | logits, rel. | deltas, rel. | detections | unmatched | score | "
        "box, px |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in differences:
        lines.append(
            f"| {one.photo} | {one.size[0]} x {one.size[1]} | {one.logits:.1e} | {one.deltas:.1e} "
            f"| {one.detections} | {one.unmatched} | {one.score:.1e} | {one.box:.1e} |"
        )
    return lines


@torch.inference_mode()
def compare(
    theirs: TorchvisionRetinaNet, ours: Detector, photos: Sequence[Path]
) -> list[Difference]:
    """Both models on photos, from file to boxes in its pixels.

    Args:
        theirs: the source of ``ours``.
        ours: from :func:`retinanet.detector.load`; both resize to the same limits.
        photos: image files.
    """
    return [_compare_photo(theirs, ours, photo) for photo in photos]


def _compare_photo(theirs: TorchvisionRetinaNet, ours: Detector, photo: Path) -> Difference:
    with Image.open(photo) as file:
        image = pil_to_tensor(file.convert("RGB")) / 255
    listed, _ = theirs.transform([image])
    outputs = theirs.head(list(theirs.backbone(listed.tensors).values()))
    logits, deltas, _ = ours.model(*ours.prepare(photo)[:2])
    K = outputs["cls_logits"].shape[-1]
    kept = ours.category_ids if len(ours.category_ids) < K else range(K)
    (found,) = theirs([image])
    mine = ours([photo])[0]
    extent = (found["boxes"][:, 2:] > found["boxes"][:, :2]).all(dim=1)
    found = {key: value[extent] for key, value in found.items()}  # ours has no others
    pairs = _pairs(found, mine.boxes, mine.scores, torch.tensor(mine.category_ids))
    return Difference(
        photo=photo.name,
        size=listed.image_sizes[0],
        logits=_relative(logits, outputs["cls_logits"][..., list(kept)]),
        deltas=_relative(deltas, outputs["bbox_regression"]),
        detections=len(mine.boxes),
        unmatched=len(mine.boxes) + len(found["boxes"]) - 2 * len(pairs),
        score=max((score for score, _ in pairs), default=0.0),
        box=max((box for _, box in pairs), default=0.0),
    )


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def _pairs(
    found: dict[str, Tensor], boxes: Tensor, scores: Tensor, labels: Tensor
) -> list[tuple[float, float]]:
    """Differences of score and box between each detection and the nearest of the same class."""
    pairs, free = [], torch.ones(len(found["boxes"]), dtype=torch.bool)
    for box, score, label in zip(boxes, scores, labels, strict=True):
        same = free & (found["labels"] == label)
        if not same.any():
            continue
        apart = (found["boxes"] - box).abs().amax(dim=1).masked_fill(~same, float("inf"))
        nearest = int(apart.argmin())
        if apart[nearest] < 1.0:
            free[nearest] = False
            pairs.append((abs(found["scores"][nearest] - score).item(), apart[nearest].item()))
    return pairs
