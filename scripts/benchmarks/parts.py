"""What follows the network: loss, matching, post-processing."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.ops import box_iou, sigmoid_focal_loss

from retinanet.fast.focal import focal_loss_sum
from retinanet.matching import IGNORED, NEGATIVE, Matcher
from retinanet.model.anchors import AnchorGenerator, grid_sizes
from retinanet.postprocess import Postprocess
from scripts.benchmarks.clock import Stage
from scripts.benchmarks.made_up import (
    COCO_SIZE,
    NUM_ANCHORS,
    NUM_CLASSES,
    some_boxes,
    torchvision_model,
)

# Anchors of each image that are matched, a usual number on COCO.
POSITIVES = 60


def focal_loss_stage(dtype: torch.dtype, device: torch.device) -> Stage:
    """Forward and backward of two images' logits, as torchvision's RetinaNet does it and as we."""
    A = NUM_ANCHORS
    torch.manual_seed(0)
    logits = (torch.randn(2, A, NUM_CLASSES) - 4.6).to(device, dtype).requires_grad_()
    label = torch.full((2, A), NEGATIVE)
    label[:, torch.randperm(A)[: 2 * POSITIVES]] = IGNORED
    positives = torch.randperm(A)[:POSITIVES]
    label[:, positives] = torch.randint(NUM_CLASSES, (POSITIVES,))
    label = label.to(device)
    alpha = torch.tensor(0.25, device=device)

    def take() -> Tensor:
        gradient, logits.grad = logits.grad, None
        return gradient

    def theirs() -> Tensor:
        losses = []
        for x, classes in zip(logits, label, strict=True):
            positive = classes >= 0
            target = torch.zeros_like(x)
            target[positive, classes[positive]] = 1.0
            valid = classes != IGNORED
            loss = sigmoid_focal_loss(x[valid], target[valid], reduction="sum")
            losses.append(loss / max(1, positive.sum()))
        (sum(losses) / len(losses)).backward()
        return take()

    def ours() -> Tensor:
        num_positives = (label >= 0).sum(dim=1, keepdim=True).clamp(min=1)  # (2, 1)
        weight = (label >= NEGATIVE) / (len(label) * num_positives)
        focal_loss_sum(logits, label, weight, alpha, 2.0).backward()
        return take()

    name = f"focal loss, forward and backward, {2 * A} x {NUM_CLASSES}, {str(dtype)[6:]}"
    return Stage(name, {"torchvision": theirs, "retinanet": ours}, device)


def matching_stage(num_boxes: int, device: torch.device) -> Stage:
    """One image of COCO's size: overlaps, thresholds, best anchors of each box."""
    generator = AnchorGenerator()
    anchors = generator(*COCO_SIZE, device)
    boxes = some_boxes(*COCO_SIZE, num_boxes).to(device)
    labels = torch.zeros(1, num_boxes, dtype=torch.int64, device=device)
    crowds = torch.zeros(1, 0, 4, device=device)
    peer, matcher = TorchvisionMatcher(0.5, 0.4, allow_low_quality_matches=True), Matcher()
    windows = generator.windows(*COCO_SIZE)
    contestants = {
        "torchvision": lambda: peer(box_iou(boxes, anchors)),
        "retinanet": lambda: matcher(anchors, boxes[None], labels, crowds, windows),
    }
    return Stage(f"matching, {len(anchors)} anchors, {num_boxes} boxes", contestants, device)


def postprocess_stage(crowded: bool, device: torch.device) -> Stage:
    """One image of COCO's size, from outputs to detections."""
    torch.manual_seed(0)
    model = torchvision_model("resnet18", *COCO_SIZE).eval()
    generator = AnchorGenerator()
    anchors = generator(*COCO_SIZE, device)
    logits = torch.randn(1, len(anchors), NUM_CLASSES) * (0.9 if crowded else 0.6) - 5.5
    hot = torch.randperm(len(anchors))[: 4000 if crowded else 200]
    logits[0, hot, torch.randint(NUM_CLASSES, hot.shape)] += 5
    logits, deltas = logits.to(device), 0.1 * torch.randn(1, len(anchors), 4).to(device)
    sizes = [h * w * generator.num_per_cell for h, w in grid_sizes(*COCO_SIZE)]
    outputs = {"cls_logits": logits.split(sizes, 1), "bbox_regression": deltas.split(sizes, 1)}
    ours = Postprocess(detections=model.detections_per_img)
    valid = torch.tensor([COCO_SIZE], device=device)
    contestants = {
        "torchvision": lambda: model.postprocess_detections(
            outputs, [list(anchors.split(sizes))], [COCO_SIZE]
        ),
        "retinanet": lambda: ours(logits, deltas, anchors, valid, sizes),
    }
    run = torch.inference_mode()
    return Stage(
        f"postprocess, {'crowded' if crowded else 'typical'}",
        {name: run(work) for name, work in contestants.items()},
        device,
    )
