"""A convolution that leaves reduced precision where CPU kernels are wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """torch's convolution; under autocast on a CPU, fp32 where its output is one row or column.

    There oneDNN's kernels for bf16 are wrong with a stride above 1 and one column: AVX-512's leave
    outer columns of the weight's gradient unwritten (torch 2.10 to 2.14), AMX's give garbage
    features too: https://github.com/pytorch/pytorch/issues/169688. At stride 1 and with one row no
    fault is known, but such a map is a few cells wide, so that safety costs nothing: P7 has two
    columns from 129 pixels on.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, h', w'), in the type autocast gives."""
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or self._is_wide(x):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.float()
            output = self._conv_forward(x.float(), self.weight.float(), bias)
        return output.to(torch.get_autocast_dtype("cpu"))

    def _is_wide(self, x: Tensor) -> bool:
        """Whether the output has at least two rows and two columns."""
        sides = zip(
            x.shape[-2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True
        )
        return all((n + 2 * p - d * (k - 1) - 1) // s >= 1 for n, k, s, p, d in sides)


def guard_narrow_maps(network: nn.Module) -> None:
    """Turn every ``nn.Conv2d`` into :class:`Conv2d`, in place: torchvision makes its own."""
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = Conv2d
