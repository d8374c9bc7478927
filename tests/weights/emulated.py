"""RetinaNets of other projects, put together from torchvision's parts with their conventions.

Written from their sources, not from ours: names of parameters, order and place of anchors, pixels,
strides, and the order of the last steps. The projects themselves are not needed.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, batched_nms
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

MEAN = [123.675, 116.28, 103.53]  # RGB
STD = [58.395, 57.12, 57.375]


def detectron2_resnet(state, prefix=""):
    """Parameters of torchvision's ResNet under detectron2's names."""

    def renamed(name):
        first, *rest = name.split(".")
        if first in ("conv1", "bn1"):
            return "stem.conv1." + ("norm." if first == "bn1" else "") + rest[-1]
        if first == "fc":
            return f"stem.fc.{rest[-1]}"
        block, part, *rest = rest
        stage = f"res{int(first[-1]) + 1}.{block}."
        if part == "downsample":
            return stage + ("shortcut.norm." if rest[0] == "1" else "shortcut.") + rest[-1]
        return stage + (f"conv{part[-1]}.norm." if part[0] == "b" else f"{part}.") + rest[-1]

    return {prefix + renamed(name): value for name, value in state.items()}


class TwoMore(ExtraFPNBlock):
    """P6 from C5 and P7."""

    def __init__(self, width, relu):
        super().__init__()
        self.p6 = nn.Conv2d(width, 256, 3, 2, 1)
        self.p7 = nn.Conv2d(256, 256, 3, 2, 1)
        self.relu = relu

    def forward(self, p, c, names):
        p6 = self.p6(c[-1])
        return [*p, p6, self.p7(F.relu(p6) if self.relu else p6)], [*names, "p6", "p7"]


class Emulated(nn.Module):
    """A network that detects something, with random weights."""

    def __init__(self, backbone="resnet50", *, num_classes=80, caffe=True, relu_before_p7=True):
        super().__init__()
        resnet = torchvision.models.get_model(backbone, norm_layer=FrozenBatchNorm2d)
        if caffe and hasattr(resnet.layer1[0], "conv3"):
            for layer in (resnet.layer2, resnet.layer3, resnet.layer4):
                layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
        width = resnet.fc.in_features
        nodes = {"layer2": "c3", "layer3": "c4", "layer4": "c5"}
        self.body = IntermediateLayerGetter(resnet, nodes)
        self.fpn = FeaturePyramidNetwork(
            [width // 4, width // 2, width], 256, TwoMore(width, relu_before_p7)
        )
        self.cls = nn.ModuleList(nn.Conv2d(256, 256, 3, padding=1) for _ in range(4))
        self.box = nn.ModuleList(nn.Conv2d(256, 256, 3, padding=1) for _ in range(4))
        self.cls_pred = nn.Conv2d(256, 9 * num_classes, 3, padding=1)
        self.box_pred = nn.Conv2d(256, 36, 3, padding=1)
        self.num_classes = num_classes
        self.caffe = caffe
        self._spread()

    @torch.no_grad()
    def _spread(self):
        for norm in (m for m in self.modules() if isinstance(m, FrozenBatchNorm2d)):
            norm.weight.uniform_(0.2, 0.5)
            norm.bias.uniform_(-0.2, 0.2)
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 2)
        for conv in (m for m in self.modules() if isinstance(m, nn.Conv2d)):
            if conv.bias is not None:
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                nn.init.uniform_(conv.bias, -0.1, 0.1)
        if self.caffe:
            self.body.conv1.weight /= 60  # its pixels are that much larger
        logits, deltas = self.outputs(torch.randn(1, 3, 128, 128) * (60 if self.caffe else 1))
        for pred, values, std, mean in (
            (self.cls_pred, torch.cat(logits), 1.0, -6.0),
            (self.box_pred, torch.cat(deltas), 0.2, 0.0),
        ):
            pred.weight *= std / values.std()
            pred.bias.uniform_(-0.1, 0.1).add_(mean)

    def pixels(self, path):
        """An image of the training size as the network takes it."""
        rgb = read(path)
        rgb = rgb - torch.tensor(MEAN).view(3, 1, 1)
        image = rgb.flip(0) if self.caffe else rgb / torch.tensor(STD).view(3, 1, 1)
        bottom, right = -image.shape[1] % 32, -image.shape[2] % 32
        return F.pad(image, (0, right, 0, bottom))[None]

    def outputs(self, pixels):
        """Logits (cells, 9 * K) and deltas (cells, 36) of every level."""
        logits, deltas = [], []
        for feature in self.fpn(self.body(pixels)).values():
            for convs, pred, outputs in (
                (self.cls, self.cls_pred, logits),
                (self.box, self.box_pred, deltas),
            ):
                x = feature
                for conv in convs:
                    x = F.relu(conv(x))
                outputs.append(pred(x)[0].flatten(1).T)
        return logits, deltas

    @torch.inference_mode()
    def detect(self, path, order, *, clip_first):
        """Scores, labels and boxes: thresholds and numbers that all three projects share.

        Args:
            path: of an image of the training size.
            order: "scale" or "ratio", which of the two changes slowly over a cell's anchors.
            clip_first: before NMS.
        """
        pixels = self.pixels(path)
        height, width = read(path).shape[1:]
        candidates = []
        for level, (logits, deltas) in enumerate(zip(*self.outputs(pixels), strict=True)):
            stride = 2 ** (level + 3)
            rows, columns = (math.ceil(side / stride) for side in pixels.shape[2:])
            anchors = level_anchors(stride, rows, columns, order)
            scores = logits.reshape(-1, self.num_classes).sigmoid().flatten()
            deltas = deltas.reshape(-1, 4)
            best = scores.argsort(descending=True, stable=True)[:1000]
            best = best[scores[best] > 0.05]
            anchor, label = best // self.num_classes, best % self.num_classes
            candidates.append((scores[best], label, apply(deltas[anchor], anchors[anchor])))
        scores, labels, boxes = map(torch.cat, zip(*candidates, strict=True))
        limits = torch.tensor([width, height, width, height])
        if clip_first:
            boxes = boxes.clamp(min=0).minimum(limits)
        kept = batched_nms(boxes, scores, labels, 0.5)[:100]
        return scores[kept], labels[kept], boxes[kept].clamp(min=0).minimum(limits)


def read(path):
    with Image.open(path) as file:
        return torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1).float()


def level_anchors(stride, rows, columns, order):
    """Centered on multiples of the stride: 4 strides wide, three per octave, three ratios."""
    cell = []
    for outer in range(3):
        for inner in range(3):
            scale, ratio = (outer, inner) if order == "scale" else (inner, outer)
            side, ratio = 4 * stride * 2 ** (scale / 3), (0.5, 1.0, 2.0)[ratio]
            width = math.sqrt(side**2 / ratio)
            cell.append((width, width * ratio))
    return torch.tensor(
        [
            [x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2]
            for y in range(rows)
            for x in range(columns)
            for w, h in cell
        ]
    )


def assert_same(detections, scores, labels, boxes):
    """Each detection has its partner; equal scores may come in any order."""
    assert len(detections.scores) == len(scores)
    score = (detections.scores[:, None] - scores).abs()  # (D, D)
    box = (detections.boxes[:, None] - boxes).abs().amax(dim=-1)
    same = (detections.labels[:, None] == labels) & (score < 1e-4) & (box < 0.1)
    assert same.any(dim=0).all(), f"not detected: {scores[~same.any(dim=0)]}"
    assert same.any(dim=1).all(), f"detected alone: {detections.scores[~same.any(dim=1)]}"


def assert_same_outputs(detector, net, path, order):
    """Logits and deltas of all anchors, those of coarse levels that detect nothing too."""
    with torch.inference_mode():
        images, sizes, _ = detector.prepare(path)
        outputs = detector.model(images, sizes)[:2]
        expected = net.outputs(net.pixels(path))
    for ours, levels in zip(outputs, expected, strict=True):
        start = 0
        for level in levels:
            level = level.unflatten(1, (3, 3, -1))  # (cells, 3, 3, K or 4)
            level = level.transpose(1, 2) if order == "scale" else level
            level = level.flatten(0, 2)  # (cells * 9, K or 4)
            part = ours[0, start : start + len(level)]
            assert (part - level).abs().max() <= 1e-4 * level.abs().max()
            start += len(level)
        assert start == ours.shape[1]


def apply(deltas, anchors):
    """Deltas without weights; log sizes below log(1000 / 16)."""
    size = anchors[:, 2:] - anchors[:, :2]
    center = (anchors[:, 2:] + anchors[:, :2]) / 2 + deltas[:, :2] * size
    size = size * deltas[:, 2:].clamp(max=math.log(1000 / 16)).exp()
    return torch.cat([center - size / 2, center + size / 2], dim=1)
