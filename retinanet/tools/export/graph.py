"""The detector as one network of operators that ONNX has: pixels in, detections of a file out."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Registers torchvision::nms, which both exporters know.
from torchvision.ops import nms

from retinanet.boxes import decode_boxes
from retinanet.model.anchors import STRIDES, AnchorGenerator
from retinanet.model.retinanet import RetinaNet
from retinanet.postprocess import Postprocess

# Label of the rows behind an image's last detection.
NO_LABEL = -1


class Heads(nn.Module):
    """The network without its last steps: logits, deltas and anchors."""

    inputs = ("images", "sizes")
    outputs = ("logits", "deltas", "anchors")

    def __init__(self, model: RetinaNet) -> None:
        """Copy a model from :func:`retinanet.fast.fold_batchnorm.for_inference`.

        The copy's weights lie in memory in the order of their axes: torch's archive format warns
        of any other.
        """
        super().__init__()
        self.model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
        replace_group_norms(self.model)
        self.anchors = AnchorGrids(model.anchor_generator)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :class:`RetinaNet`: logits (B, A, K), deltas (B, A, 4), anchors (A, 4).

        Args:
            images: (B, 3, H, W) RGB from 0 to 255, padded at right and bottom.
            sizes: (B, 2) int64 height and width of the valid part, pixels.
        """
        logits, deltas, anchors = zip(*self.levels(images, sizes), strict=True)
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1), torch.cat(anchors)

    def levels(self, images: Tensor, sizes: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The same of P3 to P7, one after the other: their lengths need not be known."""
        model = self.model
        features = model.fpn(*model.backbone(model.normalize(images, sizes)))
        height, width = images.shape[-2:]
        for level, feature in enumerate(features):
            logits = model.head["cls"]([feature], model.num_classes)
            deltas = model.head["box"]([feature], 4)
            yield logits, deltas, self.anchors(level, feature, height, width)


class AnchorGrids(nn.Module):
    """Anchors of a feature map whose size is not known before: what AnchorGenerator makes.

    In fp32, since TensorRT has no fp64; the generator rounds once, this twice, so that they are up
    to 1e-4 px apart.
    """

    def __init__(self, generator: AnchorGenerator) -> None:
        super().__init__()
        self.offset = generator.offset
        self.rounded = generator.rounded
        cells = torch.stack([generator.cell_anchors(size) for size in generator.sizes])
        self.register_buffer("cells", cells.float(), persistent=False)  # (L, a, 4)

    def forward(self, level: int, feature: Tensor, height: int, width: int) -> Tensor:
        """Anchors (rows * columns * a, 4) of a level, 0 for P3, of a padded image.

        ``feature`` is (B, ., rows, columns); ``height`` and ``width`` are in pixels.
        """
        rows, columns = feature.shape[-2:]
        strides = (STRIDES[level], STRIDES[level])
        if self.rounded:
            strides = (height // rows, width // columns)
        place = {"dtype": torch.float32, "device": feature.device}
        y = (torch.arange(rows, **place) + self.offset) * strides[0]
        x = (torch.arange(columns, **place) + self.offset) * strides[1]
        y, x = torch.meshgrid(y, x, indexing="ij")  # (rows, columns)
        centers = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)  # (rows * columns, 1, 4)
        return (centers + self.cells[level]).flatten(0, 1)


class Graph(nn.Module):
    """Images of a batch to detections in pixels of their files: Detector's steps after resizing.

    What :class:`retinanet.postprocess.Postprocess` does image by image is done here for the batch
    at once, and only around NMS lengths depend on what is detected.
    """

    inputs = ("images", "sizes", "file_sizes")
    outputs = ("boxes", "scores", "labels", "count")

    def __init__(self, model: RetinaNet, postprocess: Postprocess) -> None:
        """Take the two parts of a :class:`retinanet.tools.predict.detector.Detector`."""
        super().__init__()
        self.heads = Heads(model)
        self.postprocess = postprocess
        self.num_classes = model.num_classes

    def forward(self, images: Tensor, sizes: Tensor, file_sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            images: as in :class:`Heads`.
            sizes: as in :class:`Heads`.
            file_sizes: (B, 2) int64 height and width of the files, in whose pixels boxes are
                wanted.

        Returns:
            N rows for each image, its detections first and the best first: boxes (B, N, 4), scores
            (B, N), labels (B, N) int64, counts (B,) int64. Behind the last detection boxes and
            scores are 0 and labels NO_LABEL.
        """
        settings = self.postprocess
        levels = [self._candidates(*level) for level in self.heads.levels(images, sizes)]
        boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        limits = _corners(sizes)  # (B, 4)
        if settings.clips_first:
            boxes = _clip(boxes, limits)
            scores = _with_extent(scores, boxes)
        scores = torch.where(scores > settings.score_threshold, scores, 0.0)
        scores = self._suppress(boxes, scores, labels)
        boxes, scores, labels = self._best(boxes, scores, labels)
        if not settings.clips_first:
            boxes = _clip(boxes, limits)
            boxes, scores, labels = self._best(boxes, _with_extent(scores, boxes), labels)
        is_detection = scores > 0
        file_limits = _corners(file_sizes)
        boxes = _clip(boxes * (file_limits / limits)[:, None], file_limits)
        boxes = torch.where(is_detection[..., None], boxes, 0.0)
        labels = torch.where(is_detection, labels, NO_LABEL)
        return boxes, scores, labels, is_detection.sum(dim=1)

    def _candidates(self, logits: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, ...]:
        """Boxes (B, P, 4), scores (B, P), labels (B, P) of one level's best pairs."""
        _, A, K = logits.shape
        most = self.postprocess.pre_nms
        anchor = logits.amax(dim=-1).topk(torch.sym_min(A, most)).indices  # (B, P)
        pairs = _rows(logits, anchor).flatten(1)  # (B, P * K)
        best, pair = pairs.topk(torch.sym_min(pairs.shape[1], most))
        anchor = anchor.gather(1, pair // K)
        boxes = decode_boxes(_rows(deltas, anchor), anchors[anchor])
        return boxes, best.sigmoid(), pair % K

    def _suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """(B, P) scores: those that NMS within each class of each image leaves, and zeros."""
        B, P = scores.shape
        boxes, scores, labels = boxes.flatten(0, 1), scores.flatten(), labels.flatten()
        image = torch.arange(B, device=scores.device)[:, None]  # (B, 1)
        group = image.expand(B, P).flatten() * self.num_classes + labels
        groups = (image[-1] + 1) * self.num_classes  # (1,)
        side = groups.float().sqrt().ceil().long()
        kept = scores.nonzero().squeeze(1)  # (M,)
        apart = _apart(boxes[kept], group[kept], side)
        # With two boxes without extent, which overlap nothing: torchvision promises the tracer
        # that NMS leaves two, and a traced program stops where it does not.
        apart, values = F.pad(apart, (0, 0, 0, 2)), F.pad(scores[kept], (0, 2))
        best = nms(apart, values, self.postprocess.nms_iou)
        # They have place 0 and score 0, so adding them changes nothing.
        place = F.pad(kept, (0, 2))[best]
        return torch.zeros_like(scores).scatter_add(0, place, values[best]).view(B, P)

    def _best(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """The N best, with rows of score 0 where there are fewer."""
        N = self.postprocess.detections
        best, index = F.pad(scores, (0, N)).topk(N)
        index = index.clamp(max=scores.shape[1] - 1)
        return _rows(boxes, index), best, labels.gather(1, index)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """(B, P, n): of (B, A, n) values those that (B, P) indices name."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def _corners(sizes: Tensor) -> Tensor:
    """(B, 4) width, height, width, height of (B, 2) heights and widths."""
    return sizes.flip(1).repeat(1, 2).float()


def _clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """(B, P, 4) boxes cut at (B, 4) limits; as :func:`retinanet.boxes.clip_boxes`, for a batch."""
    return torch.minimum(boxes.clamp(min=0), limits[:, None])


def _with_extent(scores: Tensor, boxes: Tensor) -> Tensor:
    """(B, P) scores, 0 for (B, P, 4) boxes with a side of length 0."""
    return torch.where((boxes[..., 2:] > boxes[..., :2]).all(dim=-1), scores, 0.0)


def _apart(boxes: Tensor, group: Tensor, side: Tensor) -> Tensor:
    """(M, 4) boxes moved so that those of different groups do not overlap.

    Groups (M,), from 0, get the fields of a square board around the origin, ``side`` in a row. In
    one row, as torchvision's batched_nms has them, 8 images of 80 classes are 860,000 px long,
    where fp32 rounds to 1/16 px; on the board no box is further than 17,000 px from the origin,
    where it rounds to 1/1024.
    """
    numbers = F.pad(boxes.flatten(), (0, 1))  # with a 0, for there may be no boxes
    field = numbers.amax(dim=0) - numbers.amin(dim=0) + 1
    place = torch.stack([group % side, group // side], dim=1) - side // 2  # (M, 2)
    return boxes + place.repeat(1, 2) * field


class GroupNorm(nn.Module):
    """What :class:`torch.nn.GroupNorm` computes, with means of means.

    Exporters turn torch's own into InstanceNormalization, whose sums onnxruntime 1.32 adds up one
    number after the other in fp32: over a million numbers, the groups of C2 at 800 px, its outputs
    are off by 3e-3, and scores with them. Means of rows, and then of these, are off by 1e-6.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        """Share the parameters of ``norm``."""
        super().__init__()
        self.num_groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        B, C, _, w = x.shape

        def mean(rows: Tensor) -> Tensor:
            return rows.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)  # (B, groups, 1, 1)

        rows = x.reshape(B, self.num_groups, -1, w)  # (B, groups, C / groups * h, w)
        rows = rows - mean(rows)
        rows = rows * (mean(rows.square()) + self.eps).rsqrt()
        return rows.reshape(x.shape) * self.weight.view(C, 1, 1) + self.bias.view(C, 1, 1)


def replace_group_norms(module: nn.Module) -> None:
    """Put :class:`GroupNorm` in the place of torch's, in all of ``module``."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(parent, name, GroupNorm(child))
