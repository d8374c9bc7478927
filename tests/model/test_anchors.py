"""Anchors: by hand, by torchvision, one stride apart at any size."""

import math

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.image_list import ImageList

from retinanet.model.anchors import KEPT_SIZES, STRIDES, AnchorGenerator, grid_sizes


def centers(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def test_the_first_cell_by_hand():
    # Ratio-outer (height / width .5, 1, 2), scale-inner (1, 2^(1/3), 2^(2/3)), centered on 0.
    r = math.sqrt(2)
    expected = [
        [-w * s / 2, -h * s / 2, w * s / 2, h * s / 2]
        for w, h in [(32 * r, 32 / r), (32, 32), (32 / r, 32 * r)]
        for s in (1, 2 ** (1 / 3), 2 ** (2 / 3))
    ]
    torch.testing.assert_close(AnchorGenerator()(128, 128)[:9], torch.tensor(expected))


def test_areas_are_the_squares_of_size_times_scale():
    boxes = AnchorGenerator()(128, 128)[-9:].double()  # P7
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    sides = 512 * torch.tensor([1, 2 ** (1 / 3), 2 ** (2 / 3)], dtype=torch.float64)
    torch.testing.assert_close(areas, sides.square().repeat(3), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("height", "width", "anchors"),
    [(800, 1088, 163_206), (800, 1344, 201_600), (640, 640, 76_725), (1024, 1024, 196_416)],
)
def test_the_number_of_anchors_of_usual_sizes(height, width, anchors):
    assert sum(rows * columns * 9 for rows, columns in grid_sizes(height, width)) == anchors


def test_neighbors_are_one_stride_apart():
    # 800 is not a multiple of 128, so grid size and stride do not multiply to 800.
    boxes = AnchorGenerator()(800, 1088)
    grids = [(100, 136), (50, 68), (25, 34), (13, 17), (7, 9)]
    assert grid_sizes(800, 1088) == grids
    levels = boxes.split([rows * columns * 9 for rows, columns in grids])
    for level, (rows, columns), stride in zip(levels, grids, STRIDES, strict=True):
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        expected = torch.stack([x, y], dim=-1).view(-1, 1, 2).expand(-1, 9, -1).float() * stride
        # Centers of anchors of hundreds of pixels in fp32.
        center = centers(level).view(-1, 9, 2)
        torch.testing.assert_close(center, expected, rtol=0, atol=1e-3)


def torchvision_anchors(height: int, width: int) -> torch.Tensor:
    sizes = [(s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in (32, 64, 128, 256, 512)]
    generator = TorchvisionAnchors(tuple(sizes), ((0.5, 1.0, 2.0),) * 5)
    features = [torch.zeros(1, 1, *grid) for grid in grid_sizes(height, width)]
    (boxes,) = generator(ImageList(torch.zeros(1, 3, height, width), [(height, width)]), features)
    return boxes


def test_equal_to_torchvisions_up_to_its_rounding():
    # It cuts sizes to whole pixels and rounds corners: up to 1 px of size and .5 px of a corner.
    ours, theirs = AnchorGenerator()(256, 384), torchvision_anchors(256, 384)
    assert ours.shape == theirs.shape
    # Corners are half of a side, which may be off by sqrt(2) and rounding.
    assert (ours - theirs).abs().max() <= math.sqrt(2) / 2 + 0.5
    torch.testing.assert_close(centers(ours), centers(theirs), rtol=0, atol=0.5)


@pytest.mark.parametrize("size", [(256, 384), (800, 1088), (100, 75)])
def test_with_its_rounding_equal_to_torchvisions(size):
    assert torch.equal(AnchorGenerator(rounding="torchvision")(*size), torchvision_anchors(*size))


def test_an_offset_moves_centers_by_its_share_of_the_stride():
    plain, moved = AnchorGenerator()(128, 128), AnchorGenerator(offset=0.5)(128, 128)
    counts = [rows * columns * 9 for rows, columns in grid_sizes(128, 128)]
    for level, stride in zip((moved - plain).split(counts), STRIDES, strict=True):
        torch.testing.assert_close(level, torch.full_like(level, stride / 2), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_anchors_stay_fp32_under_autocast(dtype):
    with torch.autocast("cpu", dtype=dtype):
        boxes = AnchorGenerator()(1024, 1024)
    assert boxes.dtype == torch.float32
    assert torch.equal(boxes, AnchorGenerator()(1024, 1024))


def test_anchors_of_a_size_are_made_once_and_the_oldest_are_forgotten():
    generator = AnchorGenerator()
    first = generator(128, 256)
    assert generator(128, 256) is first
    assert generator(256, 128) is not first
    for i in range(KEPT_SIZES - 1):
        generator(128, 384 + i)
    assert generator(128, 256) is not first


def test_other_shapes_for_other_objects():
    generator = AnchorGenerator(sizes=(16, 32, 64, 128, 256), scales=[1.0], ratios=[1.0, 3.0])
    assert generator.num_per_cell == 2
    side = 16 * math.sqrt(3)
    expected = [[-8, -8, 8, 8], [-side / 6, -side / 2, side / 6, side / 2]]
    torch.testing.assert_close(generator(128, 128)[:2], torch.tensor(expected))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": (32, 64, 128)}, "anchors.sizes must have 5 numbers, got 3"),
        ({"sizes": (0, 64, 128, 256, 512)}, r"anchors.sizes\[0\] must be above 0"),
        ({"scales": ()}, "anchors.scales must not be empty"),
        ({"ratios": (-1.0,)}, r"anchors.ratios\[0\]"),
        ({"offset": 2.0}, "anchors.offset"),
        ({"rounding": "up"}, "anchors.rounding must be one of"),
    ],
)
def test_impossible_shapes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AnchorGenerator(**settings)
