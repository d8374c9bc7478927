"""What counts as the same detections: every rule by a case by hand."""

import pytest
import torch

from retinanet.postprocess import Detections, Postprocess
from retinanet.tools.export.compare import Difference, match

BOX = [10.0, 10.0, 50.0, 50.0]
# IoU with BOX: 30 * 40 / (2 * 1600 - 1200) = 0.6.
OVERLAPPING = [20.0, 10.0, 60.0, 50.0]
FAR = [100.0, 10.0, 150.0, 70.0]


# IoU with OVERLAPPING 0.67, with BOX 0.38.
THIRD = [28.0, 10.0, 68.0, 50.0]


def detections(*rows):
    boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4)
    scores = torch.tensor([row[1] for row in rows])
    return Detections(boxes, scores, torch.tensor([*[row[2] for row in rows]], dtype=torch.long))


def compare(ours, theirs, candidates=None, **changed):
    """The difference of two lists of (box, score, label); candidates: ours, unless given."""
    settings = Postprocess(**{"score_threshold": 0.05, "nms_iou": 0.5, "detections": 4} | changed)
    candidates = ours if candidates is None else candidates
    numbers = match(*(detections(*rows) for rows in (ours, theirs, candidates)), settings)
    return Difference("image", (1, 1), 1, *numbers)


def test_the_same_in_any_order_is_the_same():
    ours = [(BOX, 0.9, 1), (FAR, 0.8, 0)]
    assert compare(ours, ours[::-1]) == Difference("image", (1, 1), 1, 2, 0.0, 0.0, 0, 0)
    assert compare([], []).is_same


def test_small_differences_are_measured_and_allowed():
    difference = compare([(BOX, 0.9, 1)], [([10.25, 10.0, 50.0, 49.875], 0.9004, 1)])
    assert difference.is_same
    assert difference.box == 0.25
    assert difference.score == pytest.approx(4e-4, rel=1e-3)


@pytest.mark.parametrize("shift", [0.75, 3.0, 10.0])
def test_a_box_that_moved_fails_by_how_far(shift):
    moved = [BOX[0] + shift, BOX[1], BOX[2] + shift, BOX[3]]
    difference = compare([(BOX, 0.9, 1)], [(moved, 0.9, 1)])
    assert not difference.is_same
    assert difference.box == pytest.approx(shift)


def test_a_score_that_moved_fails_by_how_much():
    difference = compare([(BOX, 0.9, 1)], [(BOX, 0.88, 1)])
    assert not difference.is_same
    assert difference.score == pytest.approx(0.02, rel=1e-3)


def test_another_label_one_too_many_one_too_few_and_nan_are_unmatched():
    one, two = [(BOX, 0.9, 1)], [(BOX, 0.9, 1), (FAR, 0.5, 1)]
    assert compare(one, [(BOX, 0.9, 0)]).unmatched == 2
    assert compare(one, two).unmatched == compare(two, one).unmatched == 1
    assert compare(one, one * 2).unmatched == 1  # one detection does not stand for two
    assert not compare(one, [([float("nan")] * 4, 0.9, 1)]).is_same
    # As from a file without NMS: the second has a score that ties and was a candidate.
    double = [*one, (OVERLAPPING, 0.9, 1)]
    assert compare(one, double, candidates=double).unmatched == 1


def test_at_the_threshold_one_side_may_have_one_more():
    one, two = [(BOX, 0.9, 1)], [(BOX, 0.9, 1), (FAR, 0.0505, 1)]
    assert (compare(two, one).ties, compare(two, one).is_same) == (1, True)
    assert compare(one, two, candidates=two).is_same
    # A box that the checkpoint does not know is no tie.
    assert not compare(one, two, candidates=one).is_same


def test_the_last_place_may_go_to_another_of_the_same_score():
    rows = [([x, 0.0, x + 10, 10.0], 0.9 - x / 1000, 0) for x in (0.0, 100.0, 200.0)]
    a, b = (([300.0, 0.0, 310.0, 10.0], 0.3, 0), ([400.0, 0.0, 410.0, 10.0], 0.3001, 0))
    difference = compare([*rows, a], [*rows, b], candidates=[*rows, a, b])
    assert (difference.ties, difference.unmatched) == (2, 0)
    assert not compare([*rows, a], [*rows, b]).is_same
    better = (b[0], 0.31, 0)
    assert not compare([*rows, a], [*rows, better], candidates=[*rows, a, better]).is_same
    # With places left there is no last one.
    assert not compare([a], [b], candidates=[a, b]).is_same


def test_of_two_equal_scores_nms_may_keep_either():
    first, second, worse = (BOX, 0.7, 2), (OVERLAPPING, 0.7001, 2), (BOX, 0.6, 2)
    difference = compare([second], [first], candidates=[second, first])
    assert (difference.ties, difference.is_same) == (2, True)
    assert not compare([second], [first]).is_same
    assert not compare([second], [worse], candidates=[second, worse]).is_same


def test_what_only_one_of_the_two_suppresses_follows_them():
    first, second, third = (BOX, 0.7, 2), (OVERLAPPING, 0.7, 2), (THIRD, 0.4, 2)
    every = [first, second, third]
    for ours, theirs in (([first, third], [second]), ([second], [first, third])):
        difference = compare(ours, theirs, candidates=every)
        assert (difference.ties, difference.is_same) == (3, True)
    assert not compare([first, third], [first], candidates=every).is_same


def test_at_the_limit_of_nms_one_side_may_keep_both():
    one, two = [(BOX, 0.9, 2)], [(BOX, 0.9, 2), (OVERLAPPING, 0.7, 2)]
    assert compare(two, one, nms_iou=0.6).is_same
    assert compare(one, two, candidates=two, nms_iou=0.6).is_same
    # Limit 0.5, IoU 0.6: it should have gone.
    assert not compare(two, one).is_same
    assert not compare(one, two, candidates=two).is_same


def test_where_clipping_comes_after_nms_the_last_place_counts_in_a_shorter_list_too():
    # Clipping takes boxes outside of the image out of a full list.
    one, two = [(BOX, 0.9, 1)], [(BOX, 0.9, 1), (FAR, 0.3, 1)]
    assert compare(two, one, clip="after_nms").is_same
    assert not compare(two, one).is_same
    more = [(BOX, 0.9, 1), ([200.0, 10.0, 250.0, 70.0], 0.4, 1), (FAR, 0.3, 1)]
    assert compare(more, one, clip="after_nms").unmatched == 1
