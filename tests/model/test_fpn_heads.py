"""Pyramid and heads: shapes, wiring, first values."""

import math
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from retinanet.model.fpn import FeaturePyramid
from retinanet.model.heads import Head, group_norm, prior_bias

CHANNELS = (8, 16, 32)


def stages(height: int, width: int) -> list[torch.Tensor]:
    """C3, C4, C5 of an image, every side halved and rounded up."""
    return [
        torch.randn(2, c, math.ceil(height / stride), math.ceil(width / stride))
        for c, stride in zip(CHANNELS, (8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize(("height", "width"), [(128, 256), (100, 75), (33, 47)])
def test_levels_have_half_the_size_of_the_one_before(height, width):
    levels = FeaturePyramid(CHANNELS, 16)(*stages(height, width))
    strides = (8, 16, 32, 64, 128)
    expected = [(2, 16, math.ceil(height / s), math.ceil(width / s)) for s in strides]
    assert [tuple(level.shape) for level in levels] == expected


@pytest.mark.parametrize("source", ["c5", "p5"])
def test_equal_to_torchvisions_pyramid(source):
    theirs = FeaturePyramidNetwork(
        list(CHANNELS), 16, LastLevelP6P7(32 if source == "c5" else 16, 16)
    )
    ours = FeaturePyramid(CHANNELS, 16, p6_from=source)
    names = {"p6": "extra_blocks.p6", "p7": "extra_blocks.p7"}
    for i, (c, p) in enumerate((("c3", "p3"), ("c4", "p4"), ("c5", "p5"))):
        names |= {f"lateral.{c}": f"inner_blocks.{i}.0", f"output.{p}": f"layer_blocks.{i}.0"}
    for our_name, their_name in names.items():
        their_part = theirs.get_submodule(their_name)
        ours.get_submodule(our_name).load_state_dict(their_part.state_dict())
    inputs = stages(128, 96)
    expected = theirs(OrderedDict(zip("abc", inputs, strict=True)))
    for level, other in zip(ours(*inputs), expected.values(), strict=True):
        torch.testing.assert_close(level, other)


def test_relu_before_p7_matters_and_p6_is_never_cut():
    c3, c4, c5 = stages(128, 128)
    with_relu = FeaturePyramid(CHANNELS, 16)
    without = FeaturePyramid(CHANNELS, 16, relu_before_p7=False)
    without.load_state_dict(with_relu.state_dict())
    p6, p7 = with_relu(c3, c4, c5)[3:]
    other_p6, other_p7 = without(c3, c4, c5)[3:]
    assert (p6 < 0).any()
    assert torch.equal(p6, other_p6)
    torch.testing.assert_close(p7, with_relu.p7(F.relu(p6)))
    torch.testing.assert_close(other_p7, with_relu.p7(p6))
    assert not torch.equal(p7, other_p7)


# Heads


@pytest.mark.parametrize("prior", [0.01, 0.5, 1e-8, 1 - 1e-6])
def test_the_bias_is_minus_the_log_odds(prior):
    assert prior_bias(prior) == pytest.approx(-math.log((1 - prior) / prior), rel=1e-9)


def test_the_bias_of_the_paper():
    assert prior_bias(0.01) == pytest.approx(-4.59511985013459, abs=1e-14)


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1, math.nan])
def test_priors_outside_are_refused(prior):
    with pytest.raises(ValueError, match=r"model.prior must lie in \(0, 1\)"):
        prior_bias(prior)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_weights_start_as_a_gaussian_of_one_hundredth(norm):
    head = Head(64, 64, 4, 36, norm=norm)
    for conv in (*head.convs, head.pred):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert conv.weight.mean().abs() < 1e-3
        assert conv.bias is None or (conv.bias == 0).all()


def test_depth_and_width_are_free():
    assert Head(16, 24, 0, 36).pred.weight.shape == (36, 16, 3, 3)
    assert Head(16, 24, 3, 36).pred.weight.shape == (36, 24, 3, 3)


def test_predictions_are_ordered_by_level_row_column_anchor():
    # One-hot: anchor a's number i is channel a * width + i, and the pixel gives row and column.
    head = Head(1, 1, 0, 9 * 4)
    with torch.no_grad():
        head.pred.weight.zero_()
        head.pred.weight[:, 0, 1, 1] = 1.0
        head.pred.bias.copy_(torch.arange(36) * 1000.0)
    cells = [torch.arange(15.0).view(1, 1, 3, 5), 100 + torch.arange(6.0).view(1, 1, 2, 3)]
    numbers = torch.cat([level.flatten() for level in cells]).view(-1, 1, 1)  # one of each cell
    expected = numbers + 1000 * torch.arange(36).view(9, 4)
    assert torch.equal(head(cells, 4)[0], expected.view(-1, 4))


def test_group_norm_has_32_groups_or_groups_of_8_channels():
    assert group_norm(256).num_groups == 32
    assert group_norm(64).num_groups == 8
    for channels, divisor in [(4, 8), (264, 32)]:
        with pytest.raises(ValueError, match=f"divisible by {divisor}, got {channels}"):
            group_norm(channels)
