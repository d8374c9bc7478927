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
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms.functional import pil_to_tensor

from retinanet.tools.predict.detector import Detector, ImageDetections, load
from retinanet.weights.read import coco_classes

VERSIONS = ("v1", "v2")
# Spread of the class logits and their mean: one pair in some thousands above the threshold.
LOGIT_STD = 0.7
LOGIT_MEAN = -6.0
# torchvision's labels of COCO, and a logit that is no detection.
NUM_LABELS = 91
LARGE = 20.0
# Boxes of one detection are nearer than this, pixels; scores nearer than this are equal.
MAX_APART = 1.0
TIE = 1e-4
# Shorter side of the images to which the norms are fitted, pixels.
FITTED_SIDE = 256


class Difference(NamedTuple):
    """How far two models are apart on one image."""

    image: str
    size: tuple[int, int]  # height and width after resizing
    logits: float  # largest difference / largest value
    deltas: float  # likewise
    detections: int
    unmatched: int  # detections that only one of them has, the last rows left out
    score: float  # largest difference
    box: float  # largest difference, pixels of the file


def read(path: Path) -> Tensor:
    """(3, H, W) from 0 to 1, as torchvision's references read an image."""
    with Image.open(path) as file:
        return pil_to_tensor(file.convert("RGB")) / 255


def spread_model(version: str, seed: int, images: Sequence[Path] = ()) -> TorchvisionRetinaNet:
    """A model of torchvision that detects, without training.

    Args:
        version: ``"v1"``, with frozen norms as its builder makes it for trained weights, or
            ``"v2"``.
        seed: of its weights.
        images: files to which norms and scores are fitted, so that scores lie well between 0 and
            1; none: noise.
    """
    torch.manual_seed(seed)
    make = retinanet_resnet50_fpn if version == "v1" else retinanet_resnet50_fpn_v2
    model = make(weights=None, weights_backbone=None)
    pixels = torch.randn(2, 3, FITTED_SIDE, FITTED_SIDE)
    if images:
        model.transform.min_size = (FITTED_SIDE,)
        pixels = model.transform([read(path) for path in images])[0].tensors
    fit_norms(model, pixels)
    cls, box = model.head.classification_head, model.head.regression_head
    for conv in [*cls.conv.modules(), *box.conv.modules()]:
        if isinstance(conv, nn.Conv2d):  # so that something is left after four ReLUs
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    with torch.no_grad():
        # Class logits spread around a mean that few reach, deltas are moderate.
        outputs = model.head(list(model.backbone(pixels).values()))
        for name, last, std, mean in (
            ("cls_logits", cls.cls_logits, LOGIT_STD, LOGIT_MEAN),
            ("bbox_regression", box.bbox_reg, 0.2, 0.0),
        ):
            last.bias.fill_(mean)
            last.weight *= std / (outputs[name] - outputs[name].mean()).std()
        # Labels without a category: nothing teaches them, so a trained model never gives them.
        unused = sorted(set(range(NUM_LABELS)) - set(coco_classes()[1]))
        cls.cls_logits.bias.view(-1, NUM_LABELS)[:, unused] = -LARGE
        cls.cls_logits.weight.unflatten(0, (-1, NUM_LABELS))[:, unused] = 0
    if version == "v1":
        freeze_norms(model.backbone, eps=0.0)
    return model.eval()


@torch.no_grad()
def fit_norms(model: nn.Module, pixels: Tensor) -> None:
    """Give every batch norm of a backbone the statistics of images, random scales and shifts."""
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.0)
        nn.init.uniform_(norm.bias, -0.2, 0.2)
        norm.momentum = 1.0
    model.backbone.train()
    model.backbone(pixels)
    model.eval()


def freeze_norms(module: nn.Module, eps: float) -> None:
    """Replace batch norms by frozen ones, as torchvision's builder does for trained weights."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze_norms(child, eps)


def parity(
    version: str, images: Sequence[Path], *, min_size: int, max_size: int, seed: int
) -> list[str]:
    """Make a model of torchvision, write it, load the file as ours, compare: a Markdown table."""
    theirs = spread_model(version, seed, images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "theirs.pth"
        torch.save(theirs.state_dict(), path)
        ours = load(path, device="cpu")
    theirs.transform.min_size, theirs.transform.max_size = (min_size,), max_size
    ours.settings.data.min_size, ours.settings.data.max_size = min_size, max_size
    rows = [
        f"| {d.image} | {d.size[0]} x {d.size[1]} | {d.logits:.1e} | {d.deltas:.1e} "
        f"| {d.detections} | {d.unmatched} | {d.score:.1e} | {d.box:.1e} |"
        for d in differences(theirs, ours, images)
    ]
    return [
        "| image | height x width | logits, rel. | deltas, rel. | detections | unmatched | score | "
        "box, px |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
    ]


@torch.inference_mode()
def differences(
    theirs: TorchvisionRetinaNet, ours: Detector, images: Sequence[Path]
) -> list[Difference]:
    """Both models on images, from file to boxes in its pixels.

    Args:
        theirs: the source of ``ours``.
        ours: from :func:`retinanet.tools.predict.detector.load`; both resize to the same limits.
        images: files.
    """

    def relative(mine: Tensor, other: Tensor) -> float:
        return ((mine - other).abs().max() / other.abs().max()).item()

    rows = []
    for path in images:
        image = read(path)
        resized, _ = theirs.transform([image])
        outputs = theirs.head(list(theirs.backbone(resized.tensors).values()))
        logits, deltas, _ = ours.model(*ours.prepare(path)[:2])
        K = outputs["cls_logits"].shape[-1]
        kept = ours.category_ids if len(ours.category_ids) < K else range(K)
        (expected,), (detected,) = theirs([image]), ours([path])
        extent = (expected["boxes"][:, 2:] > expected["boxes"][:, :2]).all(dim=1)
        expected = {key: value[extent] for key, value in expected.items()}  # ours gives no others
        unmatched, score, box = _match(expected, detected, ours.postprocess.detections)
        rows.append(
            Difference(
                image=path.name,
                size=resized.image_sizes[0],
                logits=relative(logits, outputs["cls_logits"][..., list(kept)]),
                deltas=relative(deltas, outputs["bbox_regression"]),
                detections=len(detected.boxes),
                unmatched=unmatched,
                score=score,
                box=box,
            )
        )
    return rows


def _match(theirs: dict[str, Tensor], ours: ImageDetections, most: int) -> tuple[int, float, float]:
    """How many detections have no partner; largest differences of score and box of those that do.

    Args:
        theirs: boxes, scores and labels, which are category ids.
        ours: of the same image.
        most: detections of an image at most.
    """
    if not len(theirs["scores"]):
        return len(ours.scores), 0.0, 0.0
    apart = (ours.boxes[:, None] - theirs["boxes"]).abs().amax(dim=-1)  # (D, D')
    apart[torch.tensor(ours.category_ids)[:, None] != theirs["labels"]] = torch.inf
    score = box = 0.0
    mine, other = (torch.ones(len(s), dtype=torch.bool) for s in (ours.scores, theirs["scores"]))
    for i, distances in enumerate(apart):
        j = int(distances.argmin())
        if distances[j] < MAX_APART:
            score = max(score, abs(theirs["scores"][j] - ours.scores[i]).item())
            box = max(box, distances[j].item())
            mine[i] = other[j] = False
            apart[:, j] = torch.inf  # each partner is taken once
    left = torch.cat([ours.scores[mine], theirs["scores"][other]])
    # Where there is no room for all, the last ones go to others: by ties, and because torchvision
    # gives some to boxes without extent.
    full = len(ours.scores) == most
    last = max(ours.scores.min(), theirs["scores"].min()) + TIE if full else 0.0
    return int((left > last).sum()), score, box
