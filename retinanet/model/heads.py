"""Classification and box-regression heads."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retinanet.checks import check, check_all

# Section 4.1: new layers are drawn from a Gaussian of this standard deviation, bias 0.
HEAD_STD = 0.01
# Wu and He 2018, arXiv:1803.08494; torchvision's retinanet_resnet50_fpn_v2.
NUM_GROUPS = 32


def prior_bias(prior: float) -> float:
    """Bias that makes the sigmoid of a zero input equal ``prior``: -log((1 - pi) / pi).

    Section 3.3 of the paper: with pi = 0.01 the bias is -4.595. In float64, and without the
    quotient, so that priors next to 0 and 1 stay exact.

    Args:
        prior: pi, in (0, 1).

    Raises:
        ValueError: a prior outside.
    """
    check("model.prior", prior)
    return math.log(prior) - math.log1p(-prior)


class Head(nn.Module):
    """3x3 convolutions with ReLU, shared by all levels, then one that predicts."""

    def __init__(
        self, in_channels: int, channels: int, depth: int, out_channels: int, *, norm: str = "none"
    ) -> None:
        """Build and initialize.

        Args:
            in_channels: of the pyramid.
            channels: of the hidden layers; a multiple of 8 with ``norm="group"``.
            depth: number of hidden layers.
            out_channels: of the prediction.
            norm: ``"none"`` (the paper) or ``"group"``, after every hidden convolution.
        """
        check_all("model", {"head_norm": norm, "head_depth": depth})
        super().__init__()
        widths = [in_channels] + [channels] * depth
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1, bias=norm == "none")
            for i, o in zip(widths, widths[1:], strict=False)
        )
        self.norms = nn.ModuleList(
            group_norm(channels) if norm == "group" else nn.Identity() for _ in range(depth)
        )
        self.pred = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        for conv in (*self.convs, self.pred):
            nn.init.normal_(conv.weight, std=HEAD_STD)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, features: list[Tensor], width: int) -> Tensor:
        """Predictions of all anchors.

        Args:
            features: P3 to P7, each (B, in_channels, h, w).
            width: numbers per anchor: K or 4.

        Returns:
            (B, A, width), ordered by level, row, column, anchor of the cell.
        """
        outputs = []
        for x in features:
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = F.relu(norm(conv(x)), inplace=True)
            x = self.pred(x)  # (B, a * width, h, w)
            x = x.permute(0, 2, 3, 1)  # (B, h, w, a * width)
            outputs.append(x.reshape(x.shape[0], -1, width))  # (B, h * w * a, width)
        return torch.cat(outputs, dim=1)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalization with 32 groups, or with groups of 8 channels where narrower.

    Raises:
        ValueError: a number of channels that does not divide.
    """
    groups = min(NUM_GROUPS, channels // 8)
    if groups < 1 or channels % groups:
        raise ValueError(
            f"group norm needs a number of channels divisible by {max(groups, 8)}, got {channels}; "
            f"choose a multiple of 8 up to 256, or of 32."
        )
    return nn.GroupNorm(groups, channels)


def count_classes(weights: dict[str, Tensor]) -> int:
    """K of a model's state dict; the box head shows how many anchors there are in a cell.

    Raises:
        ValueError: there are no predictions in it.
    """
    names = ("head.box.pred.bias", "head.cls.pred.bias")
    boxes, classes = (weights[n].numel() if n in weights else 0 for n in names)
    if boxes < 4 or classes < boxes // 4:
        raise ValueError(f"{' and '.join(names)} are missing, or too short for one class.")
    return classes // (boxes // 4)
