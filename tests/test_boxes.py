"""Deltas, overlaps and clipping: by hand, by inverse, by torchvision."""

import math

import pytest
import torch
import torchvision.ops
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_an_anchor_is_no_change_from_itself():
    anchors = random_boxes(10)
    assert encode_boxes(anchors, anchors).abs().max() < 1e-6


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(box, box), min_size=1, max_size=5))
def test_decoding_undoes_encoding(pairs):
    target = torch.tensor([first for first, _ in pairs], dtype=torch.float64)
    anchors = torch.tensor([second for _, second in pairs], dtype=torch.float64)
    # The cap at 62.5 times the anchor is the one thing that cannot be undone.
    ratio = (target[:, 2:] - target[:, :2]) / (anchors[:, 2:] - anchors[:, :2])
    decoded = decode_boxes(encode_boxes(target, anchors), anchors)
    small = (ratio < 1000 / 16).all(dim=1)
    torch.testing.assert_close(decoded[small], target[small], rtol=0, atol=1e-9)


def test_decoding_equals_torchvision():
    from torchvision.models.detection._utils import BoxCoder

    anchors, deltas = random_boxes(50), torch.randn(50, 4) * 2
    theirs = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(deltas, anchors)
    torch.testing.assert_close(decode_boxes(deltas, anchors), theirs, rtol=1e-5, atol=1e-3)
    assert math.log(1000.0 / 16) == MAX_LOG_SCALE


def test_the_cap_turns_16_pixels_into_1000_at_most():
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    decoded = decode_boxes(torch.tensor([[0.0, 0.0, 1e9, 88.8]]), anchor)
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
    torch.testing.assert_close(
        box_iou(boxes, boxes), torch.tensor([[1, 0.2, 0], [0.2, 1, 0], [0, 0, 0]])
    )


def test_overlaps_equal_torchvision_also_in_batches():
    boxes, others = random_boxes(60).view(3, 20, 4), random_boxes(21).view(3, 7, 4)
    theirs = torch.stack(
        [torchvision.ops.box_iou(b, o) for b, o in zip(boxes, others, strict=True)]
    )
    torch.testing.assert_close(box_iou(boxes, others), theirs)


def test_paired_iou_is_the_diagonal_of_all_pairs():
    boxes, others = random_boxes(30), random_boxes(30)
    torch.testing.assert_close(paired_iou(boxes, others), box_iou(boxes, others).diagonal())


@pytest.mark.parametrize("kind", KINDS)
def test_a_box_agrees_with_itself_and_the_order_of_the_pair_does_not_matter(kind):
    boxes, others = random_boxes(30), random_boxes(30)
    torch.testing.assert_close(paired_iou(boxes, boxes, kind), torch.ones(30))
    forth, back = paired_iou(boxes, others, kind), paired_iou(others, boxes, kind)
    torch.testing.assert_close(forth, back)


@pytest.mark.parametrize("kind", KINDS)
def test_moving_and_scaling_a_pair_changes_nothing(kind):
    boxes, others = random_boxes(30, dtype=torch.float64), random_boxes(30, dtype=torch.float64)
    shift = torch.tensor([40.0, -30.0, 40.0, -30.0], dtype=torch.float64)
    expected = paired_iou(boxes, others, kind)
    actual = paired_iou(3 * boxes + shift, 3 * others + shift, kind)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_generalizations_lie_between_minus_one_and_the_iou(kind):
    boxes, others = random_boxes(200), random_boxes(200) * 1.7
    values = paired_iou(boxes, others, kind)
    assert (values <= paired_iou(boxes, others) + 1e-6).all()
    assert (values > (-2 if kind == "ciou" else -1)).all()


def test_generalized_iou_by_hand():
    # Two unit squares with one unit between them: hull 3, union 2.
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    others = torch.tensor([[2.0, 0.0, 3.0, 1.0]])
    assert paired_iou(boxes, others, "giou").item() == pytest.approx(-1 / 3)
    # Centers 2 apart, diagonal of the hull sqrt(10).
    assert paired_iou(boxes, others, "diou").item() == pytest.approx(-4 / 10)
    assert paired_iou(boxes, others, "ciou").item() == pytest.approx(-4 / 10)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="iou, giou, diou or ciou, got 'xiou'"):
        paired_iou(random_boxes(1), random_boxes(1), "xiou")


def test_iou_of_a_speck_stays_within_zero_and_one():
    # Its area, 1e-8, is a tenth of EPSILON: 1 / (1 + 10).
    speck = torch.tensor([[0.0, 0.0, 1e-4, 1e-4]])
    assert paired_iou(speck, speck).item() == pytest.approx(1 / 11, rel=1e-4)


def test_giou_of_a_speck_stays_finite_and_within_its_range():
    # No area of its own: the IoU is 0, and so is what the hull has beyond the union.
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert paired_iou(point, point, "giou").item() == 0
    speck = torch.tensor([[0.0, 0.0, 1e-4, 1e-4]])
    apart = speck + torch.tensor([1e-4, 0.0, 1e-4, 0.0])  # the hull is both: no loss beyond 1
    assert paired_iou(speck, apart, "giou").item() == pytest.approx(0, abs=1e-6)
    # The hull, 6e-8, has 4e-8 beyond the union; EPSILON is 1e-7.
    far = speck + torch.tensor([5e-4, 0.0, 5e-4, 0.0])
    assert paired_iou(speck, far, "giou").item() == pytest.approx(-4e-8 / (6e-8 + 1e-7), rel=1e-2)
