"""A convolution that leaves reduced precision where CPU kernels are wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """torch's convolution, computed by :func:`convolve`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, h', w'), in the type autocast gives."""
        return convolve(self, x, self.weight, self.bias)


def convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution; under autocast on a CPU, fp32 where its output is one row or column.

    There oneDNN's kernels for bf16 are wrong with a stride above 1 and one column: AVX-512's leave
    outer columns of the weight's gradient unwritten (torch 2.10 to 2.14), AMX's give garbage
    features too: https://github.com/pytorch/pytorch/issues/169688. At stride 1 and with one row no
    fault is known, but such a map is a few cells wide, so that safety costs nothing: P7 has two
    columns from 129 pixels on.

    Args:
        conv: gives the stride, the padding, the dilation and the groups.
        x: (B, in_channels, h, w).
        weight: in place of that of ``conv``.
        bias: likewise.

    Returns:
        (B, out_channels, h', w'), in the type that autocast gives.
    """
    steps = {"stride": conv.stride, "padding": conv.padding}
    steps |= {"dilation": conv.dilation, "groups": conv.groups}
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or _is_wide(conv, x):
        return F.conv2d(x, weight, bias, **steps)
    with torch.autocast("cpu", enabled=False):
        bias = None if bias is None else bias.float()
        output = F.conv2d(x.float(), weight.float(), bias, **steps)
    return output.to(torch.get_autocast_dtype("cpu"))


def _is_wide(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether the output has at least two rows and two columns."""
    sides = zip(
        x.shape[-2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True
    )
    return all((n + 2 * p - d * (k - 1) - 1) // s >= 1 for n, k, s, p, d in sides)


def guard_narrow_maps(network: nn.Module) -> None:
    """Turn every ``nn.Conv2d`` into :class:`Conv2d`, in place: torchvision makes its own."""
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = Conv2d
