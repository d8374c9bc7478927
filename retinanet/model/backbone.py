"""Backbones: images in, C3 to C5 out, under torchvision's parameter names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from retinanet.checks import check, check_all, check_backbone, check_strides
from retinanet.model.convolution import convolve
from retinanet.model.heads import group_norm
from retinanet.weights.pretrained import load_backbone

NormLayer = Callable[[int], nn.Module]


class Backbone(nn.Module):
    """A network of five stages; the last three make C3, C4 and C5.

    Attributes:
        channels: of C3, C4 and C5.
        stages: names of the submodules of the stem, C2, C3, C4 and C5.
        stride_in_1x1: bottlenecks shrink in their first 1x1 convolution, not in their 3x3.
    """

    channels: tuple[int, int, int]
    stages: tuple[tuple[str, ...], ...]
    frozen_stages: int = 0
    stride_in_1x1: bool = False

    def freeze(self, frozen_stages: int) -> None:
        """Stop the first stages from training; their batch statistics stop too."""
        check("model.frozen_stages", frozen_stages)
        self.frozen_stages = frozen_stages
        for module in self._frozen():
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """As usual, but frozen stages never leave evaluation mode."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        names = [name for stage in self.stages[: self.frozen_stages] for name in stage]
        return [self.get_submodule(name) for name in names]


class ResNetBackbone(Backbone):
    """torchvision's ResNet or ResNeXt without its classifier."""

    stages = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))

    def __init__(self, resnet: ResNet, *, stride_in_1x1: bool = False) -> None:
        """Take the layers of ``resnet``; move its strides as Caffe's ResNets have them."""
        super().__init__()
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(name, getattr(resnet, name))
        self.stride_in_1x1 = stride_in_1x1
        if stride_in_1x1:
            for first in (self.layer2[0], self.layer3[0], self.layer4[0]):
                first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
        expansion = resnet.layer1[0].expansion  # 4 of bottlenecks, 1 of basic blocks
        self.channels = (128 * expansion, 256 * expansion, 512 * expansion)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C3, C4, C5 of (B, 3, H, W) normalized images."""
        x = self.maxpool(conv_norm(self.conv1, self.bn1, x).relu_())
        outputs = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = residual(block, x)
            outputs.append(x)
        return outputs[1], outputs[2], outputs[3]


def residual(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    """What torchvision's block computes, with frozen norms folded and fewer copies."""
    y = conv_norm(block.conv1, block.bn1, x).relu_()
    y = conv_norm(block.conv2, block.bn2, y)
    if isinstance(block, Bottleneck):
        y = conv_norm(block.conv3, block.bn3, y.relu_())
    return y.add_(x if block.downsample is None else conv_norm(*block.downsample, x)).relu_()


def conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """A convolution and its norm; a frozen norm becomes a factor of the weights and a bias.

    It is the same function of the convolution's weights, so they train as they would; what is
    saved are passes over the activations, and in bf16 a copy of them in fp32.

    Args:
        conv: without bias if the norm is frozen.
        norm: of its outputs, of any kind.
        x: (B, inputs, h, w).
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm(conv(x))
    assert conv.bias is None, "a frozen norm brings the bias"
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # (channels,)
    weight = conv.weight * scale[:, None, None, None]
    return convolve(conv, x, weight, norm.bias - norm.running_mean * scale)


class MobileNetBackbone(Backbone):
    """torchvision's MobileNetV2 without its classifier."""

    # Positions in torchvision's `features` of the first layer of each stage, and of the end.
    BOUNDS = (0, 2, 4, 7, 14, 19)
    stages = tuple(
        tuple(f"features.{i}" for i in range(first, end)) for first, end in pairwise(BOUNDS)
    )

    def __init__(self, features: nn.Sequential) -> None:
        """Take the layers of ``features``."""
        super().__init__()
        self.features = features
        self.channels = (32, 96, 1280)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C3, C4, C5 of (B, 3, H, W) normalized images."""
        outputs = []
        for first, end in pairwise(self.BOUNDS):
            x = self.features[first:end](x)
            outputs.append(x)
        return outputs[2], outputs[3], outputs[4]


class TinyBackbone(Backbone):
    """Five stages of one residual block each, for CPUs and tests; about 2 M parameters."""

    WIDTHS = (16, 32, 64, 128, 256)
    stages = (("stem",), ("block2",), ("block3",), ("block4",), ("block5",))

    def __init__(self, norm_layer: NormLayer) -> None:
        """Build with random weights."""
        super().__init__()
        self.channels = self.WIDTHS[2:]
        self.stem = _layer(3, self.WIDTHS[0], 2, norm_layer)
        for i, (inputs, outputs) in enumerate(pairwise(self.WIDTHS), start=2):
            self.add_module(f"block{i}", TinyBlock(inputs, outputs, norm_layer))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C3, C4, C5 of (B, 3, H, W) normalized images."""
        c3 = self.block3(self.block2(self.stem(x).relu()))
        c4 = self.block4(c3)
        return c3, c4, self.block5(c4)


class TinyBlock(nn.Module):
    """Halve the resolution, then one residual block of two 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int, norm_layer: NormLayer) -> None:
        """Build with random weights."""
        super().__init__()
        self.down = _layer(inputs, outputs, 2, norm_layer)
        self.first = _layer(outputs, outputs, 1, norm_layer)
        self.second = _layer(outputs, outputs, 1, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h / 2, w / 2)."""
        x = self.down(x).relu()
        return (x + self.second(self.first(x).relu())).relu()


def _layer(inputs: int, outputs: int, stride: int, norm_layer: NormLayer) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, norm_layer(outputs))


def norm_layer(norm: str, eps: float) -> NormLayer:
    """What makes a normalization of some channels.

    Args:
        norm: ``"frozen"``, ``"batch"``, ``"sync"`` (CUDA only) or ``"group"``.
        eps: added to the variance, but by group norm, which has its own.
    """
    check_all("model", locals() | {"norm_eps": eps})
    layers = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d, "sync": nn.SyncBatchNorm}
    return group_norm if norm == "group" else partial(layers[norm], eps=eps)


def build_backbone(
    name: str,
    *,
    weights: str | None,
    norm: str,
    frozen_stages: int,
    norm_eps: float = 1e-5,
    stride_in_1x1: bool = False,
    load_later: bool = False,
) -> Backbone:
    """A backbone with its weights; the arguments are those of RetinaNet.

    Raises:
        ValueError: frozen norms with random weights, weights that do not fit.
        FileNotFoundError: no such file.
    """
    check("model.backbone", name)
    check_strides(name, stride_in_1x1)
    if not load_later:
        check_backbone(name, norm, weights, frozen_stages)
    make_norm = norm_layer(norm, norm_eps)
    if name == "tiny":
        backbone: Backbone = TinyBackbone(make_norm)
    elif name == "mobilenet_v2":
        backbone = MobileNetBackbone(torchvision.models.mobilenet_v2(norm_layer=make_norm).features)
    else:
        backbone = ResNetBackbone(build_resnet(name, make_norm), stride_in_1x1=stride_in_1x1)
    if weights is not None and not load_later:
        load_backbone(backbone, name, weights)
    backbone.freeze(frozen_stages)
    return backbone


def build_resnet(name: str, norm_layer: NormLayer) -> ResNet:
    """torchvision's ResNet or ResNeXt with random weights, and one that it does not name."""
    if name == "resnext101_32x4d":  # of detectron2's and mmdetection's model zoos
        layout = {"groups": 32, "width_per_group": 4}
        return ResNet(Bottleneck, [3, 4, 23, 3], **layout, norm_layer=norm_layer)
    return torchvision.models.get_model(name, norm_layer=norm_layer)
