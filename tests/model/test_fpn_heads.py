"""Pyramid and heads: shapes, wiring, first values."""

import math

import pytest
import torch
import torch.nn.functional as F

from retinanet.model.fpn import FeaturePyramid
from retinanet.model.heads import Head, group_norm, prior_bias

CHANNELS = (8, 16, 32)


def stages(height: int, width: int) -> list[torch.Tensor]:
    """C3, C4, C5 of an image, every side halved and rounded up."""
    grids = []
    for _ in range(5):
        height, width = math.ceil(height / 2), math.ceil(width / 2)
        grids.append((height, width))
    return [torch.randn(2, c, *grid) for c, grid in zip(CHANNELS, grids[2:], strict=True)]


@pytest.mark.parametrize(("height", "width"), [(128, 256), (100, 75), (33, 47)])
def test_levels_have_half_the_size_of_the_one_before(height, width):
    levels = FeaturePyramid(CHANNELS, 16)(*stages(height, width))
    assert [level.shape[1] for level in levels] == [16] * 5
    for above, below in zip(levels, levels[1:], strict=False):
        assert list(below.shape[2:]) == [math.ceil(side / 2) for side in above.shape[2:]]


@pytest.mark.parametrize(("source", "channels"), [("c5", 32), ("p5", 16)])
def test_p6_is_a_convolution_on_its_source(source, channels):
    pyramid = FeaturePyramid(CHANNELS, 16, p6_from=source)
    assert pyramid.p6.weight.shape == (16, channels, 3, 3)
    c3, c4, c5 = stages(128, 128)
    p6 = pyramid(c3, c4, c5)[3]
    p5 = pyramid.output["p5"](pyramid.lateral["c5"](c5))
    torch.testing.assert_close(p6, pyramid.p6(c5 if source == "c5" else p5))


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


def test_the_top_down_path_carries_c5_to_p3():
    pyramid = FeaturePyramid(CHANNELS, 16)
    c3, c4, c5 = stages(128, 128)
    before, after = pyramid(c3, c4, c5), pyramid(c3, c4, c5 + 1)
    assert not torch.equal(before[0], after[0])
    after = pyramid(c3 + 1, c4, c5)  # and nothing flows up
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_equal_to_torchvisions_pyramid():
    from collections import OrderedDict

    from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

    theirs = FeaturePyramidNetwork(list(CHANNELS), 16, LastLevelP6P7(32, 16))
    ours = FeaturePyramid(CHANNELS, 16)
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
    head = Head(16, 24, 0, 36)
    assert head.pred.weight.shape == (36, 16, 3, 3)
    assert Head(16, 24, 3, 36).pred.weight.shape == (36, 24, 3, 3)


def test_predictions_are_ordered_by_level_row_column_anchor():
    # One-hot: anchor a's number i is channel a * width + i, and the pixel gives row and column.
    head = Head(1, 1, 0, 9 * 4)
    with torch.no_grad():
        head.pred.weight.zero_()
        head.pred.weight[:, 0, 1, 1] = 1.0
        head.pred.bias.copy_(torch.arange(36) * 1000.0)
    grids = [(3, 5), (2, 3)]
    features = [
        100 * level + torch.arange(h * w).float().view(1, 1, h, w)
        for level, (h, w) in enumerate(grids)
    ]
    output = head(features, 4)[0]  # (A, 4)
    expected = torch.tensor(
        [
            [100.0 * level + cell + 1000 * (4 * anchor + i) for i in range(4)]
            for level, (h, w) in enumerate(grids)
            for cell in range(h * w)
            for anchor in range(9)
        ]
    )
    assert torch.equal(output, expected)


def test_group_norm_has_32_groups_or_groups_of_8_channels():
    assert group_norm(256).num_groups == 32
    assert group_norm(64).num_groups == 8
    with pytest.raises(ValueError, match="divisible by 8, got 4"):
        group_norm(4)
    with pytest.raises(ValueError, match="divisible by 32, got 264"):
        group_norm(264)
