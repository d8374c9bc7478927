"""Geometry of boxes: deltas, overlaps, clipping. Pure functions, fp32, no ``+ 1``."""

import math

import torch
from torch import Tensor

# exp() of the largest log-scale delta turns a 16 px anchor side into 1000 px. Without the cap
# one wild prediction early in training overflows to inf. Source: Detectron, core/config.py.
MAX_LOG_SCALE = math.log(1000 / 16)

# Keeps quotients of areas and distances finite for boxes without extent.
EPSILON = 1e-7


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Deltas that turn anchors into boxes.

    Source: Girshick et al. 2014, appendix C. Offsets are not divided by a variance, as in
    detectron2's RetinaNet.

    Args:
        boxes: (..., A, 4) in pixels, with positive sides.
        anchors: (A, 4) in pixels, with positive sides.

    Returns:
        (..., A, 4) as (dx, dy, dw, dh). dx and dy are in units of the anchor's width and
        height; dw and dh are log ratios.
    """
    center, size = _center_and_size(boxes)
    anchor_center, anchor_size = _center_and_size(anchors)
    return torch.cat([(center - anchor_center) / anchor_size, (size / anchor_size).log()], dim=-1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Apply predicted deltas to anchors; the inverse of :func:`encode_boxes`.

    Args:
        deltas: (..., A, 4) as (dx, dy, dw, dh); dw and dh are capped at ``MAX_LOG_SCALE``.
        anchors: (A, 4) or (..., A, 4) in pixels.

    Returns:
        (..., A, 4) boxes in pixels, not clipped to the image.

    Raises:
        ValueError: the two tensors disagree on the number of anchors.
    """
    if deltas.shape[-2:] != anchors.shape[-2:]:
        raise ValueError(
            f"decode_boxes: deltas end in {tuple(deltas.shape[-2:])} but anchors in "
            f"{tuple(anchors.shape[-2:])}; both must end in (A, 4) with the same A."
        )
    center, size = _center_and_size(anchors)
    center = center + deltas[..., :2] * size
    size = size * deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp()
    return torch.cat([center - 0.5 * size, center + 0.5 * size], dim=-1)


def _center_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def clip_boxes(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes cut at the edges of their image.

    Args:
        boxes: (..., 4) in pixels.
        size: (2,) height and width in pixels, on the boxes' device.

    Returns:
        (..., 4) within ``[0, width] x [0, height]``; boxes outside lose their extent.
    """
    width_height = size.flip(0).repeat(2).to(boxes.dtype)  # (4,)
    return torch.minimum(boxes.clamp(min=0), width_height)


def box_area(boxes: Tensor) -> Tensor:
    """Area of (..., 4) boxes in square pixels, (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """Area that every box shares with every other one.

    Args:
        boxes: (..., N, 4) in pixels.
        others: (M, 4) or (..., M, 4) in pixels.

    Returns:
        (..., N, M) in square pixels, at least 0.
    """
    x1, y1, x2, y2 = boxes[..., :, None, :].unbind(dim=-1)  # (..., N, 1) each
    u1, v1, u2, v2 = others[..., None, :, :].unbind(dim=-1)  # (..., 1, M) each
    # Side by side, not as pairs of corners: two (..., N, M) temporaries instead of four.
    width = torch.minimum(x2, u2) - torch.maximum(x1, u1)
    height = torch.minimum(y2, v2) - torch.maximum(y1, v1)
    return width.clamp_(min=0).mul_(height.clamp_(min=0))


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of every box with every other one.

    Args:
        boxes: (..., N, 4) in pixels.
        others: (M, 4) or (..., M, 4) in pixels.

    Returns:
        (..., N, M) in [0, 1]; 0 where neither has an area.
    """
    shared = box_intersection(boxes, others)
    union = box_area(boxes)[..., :, None] + box_area(others)[..., None, :] - shared
    return shared / union.clamp_(min=EPSILON)


def paired_iou(boxes: Tensor, others: Tensor, kind: str = "iou") -> Tensor:
    """IoU, or one of its generalizations, of box i with other i; differentiable.

    Args:
        boxes: (..., 4) in pixels; sides may be zero.
        others: (..., 4) in pixels.
        kind: ``"iou"``; ``"giou"`` (Rezatofighi et al. 2019, arXiv:1902.09630); ``"diou"`` or
            ``"ciou"`` (Zheng et al. 2020, arXiv:1911.08287; its alpha takes no gradient).

    Returns:
        (...) at most 1; iou at least 0, giou and diou above -1.
    """
    inner_low = torch.maximum(boxes[..., :2], others[..., :2])
    inner_high = torch.minimum(boxes[..., 2:], others[..., 2:])
    inner = (inner_high - inner_low).clamp(min=0)
    # Written out: the backward pass of prod() looks for zeros, for which a GPU would wait.
    shared = inner[..., 0] * inner[..., 1]
    union = box_area(boxes) + box_area(others) - shared
    iou = shared / (union + EPSILON)
    if kind == "iou":
        return iou

    outer_low = torch.minimum(boxes[..., :2], others[..., :2])
    outer = torch.maximum(boxes[..., 2:], others[..., 2:]) - outer_low
    if kind == "giou":
        hull = outer[..., 0] * outer[..., 1]
        return iou - (hull - union) / (hull + EPSILON)

    apart = 0.5 * (boxes[..., :2] + boxes[..., 2:] - others[..., :2] - others[..., 2:])
    diou = iou - apart.square().sum(dim=-1) / (outer.square().sum(dim=-1) + EPSILON)
    if kind == "diou":
        return diou
    if kind != "ciou":
        raise ValueError(f"paired_iou: kind must be iou, giou, diou or ciou, got {kind!r}.")
    angle = _aspect_angle(boxes) - _aspect_angle(others)
    shape_gap = (4 / math.pi**2) * angle.square()
    weight = (shape_gap / (1 - iou + shape_gap + EPSILON)).detach()
    return diou - weight * shape_gap


def _aspect_angle(boxes: Tensor) -> Tensor:
    """Angle of the diagonal against the vertical, in radians; finite gradient for zero sides."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=EPSILON)
    return torch.atan(size[..., 0] / size[..., 1])
