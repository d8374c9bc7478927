"""Deltas, overlaps and clipping: by hand, by inverse, by torchvision."""

import math

import pytest
import torch
import torchvision.ops
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder

from retinanet.boxes import (
    MAX_LOG_SCALE,
    box_area,
    box_intersection,
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    paired_iou,
)

KINDS = ["iou", "giou", "diou", "ciou"]
corner = st.floats(-500, 500, width=32)
side = st.floats(1, 800, width=32)
box = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), corner, corner, side, side)


def random_boxes(count: int, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    low = torch.rand(count, 2, dtype=dtype) * 300
    return torch.cat([low, low + 1 + torch.rand(count, 2, dtype=dtype) * 200], dim=1)


def test_deltas_by_hand():
    anchor = torch.tensor([[0.0, 0.0, 10.0, 20.0]])  # center 5, 10
    target = torch.tensor([[10.0, 0.0, 30.0, 20.0]])  # center 20, 10, twice as wide
    expected = torch.tensor([[1.5, 0.0, math.log(2), 0.0]])
    torch.testing.assert_close(encode_boxes(target, anchor), expected)
    assert encode_boxes(anchor, anchor).tolist() == [[0.0] * 4]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(box, box), min_size=1, max_size=5))
def test_decoding_undoes_encoding(pairs):
    target, anchors = torch.tensor(pairs, dtype=torch.float64).unbind(dim=1)
    # The cap at 62.5 times the anchor is the one thing that cannot be undone.
    ratio = (target[:, 2:] - target[:, :2]) / (anchors[:, 2:] - anchors[:, :2])
    decoded = decode_boxes(encode_boxes(target, anchors), anchors)
    small = (ratio < 1000 / 16).all(dim=1)
    torch.testing.assert_close(decoded[small], target[small], rtol=0, atol=1e-9)


def test_decoding_equals_torchvision():
    anchors, deltas = random_boxes(50), torch.randn(50, 4) * 2
    theirs = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(deltas, anchors)
    torch.testing.assert_close(decode_boxes(deltas, anchors), theirs, rtol=1e-5, atol=1e-3)


def test_the_cap_turns_16_pixels_into_1000_at_most():
    assert math.log(1000 / 16) == MAX_LOG_SCALE
    decoded = decode_boxes(torch.tensor([[0, 0, 1e9, 88.8]]), torch.tensor([[0.0, 0, 16, 16]]))
    torch.testing.assert_close(decoded, torch.tensor([[-492.0, -492.0, 508.0, 508.0]]))


def test_decoding_refuses_another_number_of_anchors():
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(2, 4\)"):
        decode_boxes(torch.zeros(1, 3, 4), torch.zeros(2, 4))


def test_clipping_by_hand():
    boxes = torch.tensor([[-5.0, 2.0, 30.0, 90.0], [50.0, 60.0, 70.0, 80.0]])
    expected = torch.tensor([[0.0, 2.0, 20.0, 40.0], [20.0, 40.0, 20.0, 40.0]])
    assert torch.equal(clip_boxes(boxes, torch.tensor([40, 20])), expected)  # height, width


def test_overlaps_by_hand():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [2.0, 2.0, 6.0, 4.0], [9.0, 9.0, 9.0, 12.0]])
    assert box_area(boxes).tolist() == [16.0, 8.0, 0.0]
    shared = torch.tensor([[16.0, 4.0, 0.0], [4.0, 8.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(box_intersection(boxes, boxes), shared)
    iou = torch.tensor([[1, 0.2, 0], [0.2, 1, 0], [0, 0, 0]])
    torch.testing.assert_close(box_iou(boxes, boxes), iou)


def test_overlaps_equal_torchvision_also_in_batches():
    boxes, others = random_boxes(60).view(3, 20, 4), random_boxes(21).view(3, 7, 4)
    theirs = torch.stack(list(map(torchvision.ops.box_iou, boxes, others)))
    torch.testing.assert_close(box_iou(boxes, others), theirs)
    # Pairs are the diagonal of all.
    diagonal = theirs[:, :7].diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(paired_iou(boxes[:, :7], others), diagonal)


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_pair_order_place_and_scale_do_not_matter(kind):
    boxes, others = random_boxes(30, dtype=torch.float64), random_boxes(30, dtype=torch.float64)
    torch.testing.assert_close(paired_iou(boxes, boxes, kind), torch.ones(30).double())
    expected = paired_iou(boxes, others, kind)
    torch.testing.assert_close(paired_iou(others, boxes, kind), expected)
    shift = torch.tensor([40.0, -30.0, 40.0, -30.0], dtype=torch.float64)
    actual = paired_iou(3 * boxes + shift, 3 * others + shift, kind)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_generalizations_lie_between_minus_one_and_the_iou(kind):
    boxes, others = random_boxes(200), random_boxes(200) * 1.7
    values = paired_iou(boxes, others, kind)
    assert (values <= paired_iou(boxes, others) + 1e-6).all()
    assert (values > (-2 if kind == "ciou" else -1)).all()


def test_generalized_iou_by_hand():
    # Two unit squares with one unit between them: hull 3, union 2; centers 2 apart, diagonal of
    # the hull sqrt(10).
    pair = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[2.0, 0.0, 3.0, 1.0]])
    for kind, expected in [("giou", -1 / 3), ("diou", -4 / 10), ("ciou", -4 / 10)]:
        assert paired_iou(*pair, kind).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="iou, giou, diou or ciou, got 'xiou'"):
        paired_iou(*pair, "xiou")


SPECK = (0.0, 0.0, 1e-4, 1e-4)  # its area, 1e-8, is a tenth of EPSILON


@pytest.mark.parametrize(
    ("box", "other", "kind", "expected"),
    [
        (SPECK, SPECK, "iou", pytest.approx(1 / 11, rel=1e-4)),  # 1 / (1 + 10)
        # No area of its own: the IoU is 0, and so is what the hull has beyond the union.
        ((5.0, 5.0, 5.0, 5.0), (5.0, 5.0, 5.0, 5.0), "giou", 0),
        # The hull is both: no loss beyond 1.
        (SPECK, (1e-4, 0.0, 2e-4, 1e-4), "giou", pytest.approx(0, abs=1e-6)),
        # The hull, 6e-8, has 4e-8 beyond the union; EPSILON is 1e-7.
        (SPECK, (5e-4, 0.0, 6e-4, 1e-4), "giou", pytest.approx(-4e-8 / (6e-8 + 1e-7), rel=1e-2)),
    ],
)
def test_overlaps_of_a_speck_stay_finite_and_in_range(box, other, kind, expected):
    assert paired_iou(torch.tensor([box]), torch.tensor([other]), kind).item() == expected
