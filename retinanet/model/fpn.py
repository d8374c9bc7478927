"""Feature pyramid: C3 to C5 in, P3 to P7 out."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from retinanet.checks import check_all


class FeaturePyramid(nn.Module):
    """Feature pyramid network with the two extra levels of RetinaNet.

    Source: Lin et al. 2017, arXiv:1612.03144; P6 and P7: footnote 2 of arXiv:1708.02002.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        *,
        p6_from: str = "c5",
        relu_before_p7: bool = True,
    ) -> None:
        """Build the lateral, output and extra convolutions.

        Args:
            in_channels: of C3, C4 and C5.
            channels: of every output level.
            p6_from: P6 is a stride-2 convolution on ``"c5"`` (the paper) or ``"p5"``.
            relu_before_p7: ReLU between P6 and P7's convolution (the paper).
        """
        check_all("model", {"fpn_channels": channels, "p6_from": p6_from})
        super().__init__()
        levels = list(zip((3, 4, 5), in_channels, strict=True))
        self.lateral = nn.ModuleDict({f"c{i}": nn.Conv2d(c, channels, 1) for i, c in levels})
        self.output = nn.ModuleDict(
            {f"p{i}": nn.Conv2d(channels, channels, 3, padding=1) for i, _ in levels}
        )
        p6_channels = in_channels[-1] if p6_from == "c5" else channels
        self.p6 = nn.Conv2d(p6_channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.p6_from = p6_from
        self.relu_before_p7 = relu_before_p7
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # With a = 1 this is Caffe2's XavierFill, as in detectron2's c2_xavier_fill.
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor) -> list[Tensor]:
        """Levels P3 to P7 of C3, C4 and C5.

        Args:
            c3: (B, ., H/8, W/8), sides rounded up.
            c4: (B, ., H/16, W/16).
            c5: (B, ., H/32, W/32).

        Returns:
            P3 to P7, each (B, channels, H/8 ... H/128, W/8 ... W/128).
        """
        m5 = self.lateral["c5"](c5)
        m4 = self.lateral["c4"](c4) + F.interpolate(m5, size=c4.shape[-2:], mode="nearest")
        m3 = self.lateral["c3"](c3) + F.interpolate(m4, size=c3.shape[-2:], mode="nearest")
        p3, p4, p5 = self.output["p3"](m3), self.output["p4"](m4), self.output["p5"](m5)
        p6 = self.p6(c5 if self.p6_from == "c5" else p5)
        p7 = self.p7(F.relu(p6) if self.relu_before_p7 else p6)
        return [p3, p4, p5, p6, p7]
