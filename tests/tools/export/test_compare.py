"""What counts as the same: every rule by a case by hand."""

import pytest
import torch

from retinanet.postprocess import Detections, Postprocess
from retinanet.tools.export.compare import Difference, match

SETTINGS = Postprocess(score_threshold=0.05, nms_iou=0.5, detections=4)
BOX = [10.0, 10.0, 50.0, 50.0]
# IoU with BOX: 30 * 40 / (2 * 1600 - 1200) = 0.6.
OVERLAPPING = [20.0, 10.0, 60.0, 50.0]
FAR = [100.0, 10.0, 150.0, 70.0]


def found(*rows):
    boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4)
    scores = torch.tensor([row[1] for row in rows])
    return Detections(boxes, scores, torch.tensor([*[row[2] for row in rows]], dtype=torch.long))


def compare(ours, theirs, candidates=None, settings=SETTINGS):
    numbers = match(ours, theirs, ours if candidates is None else candidates, settings)
    return Difference("photo", (1, 1), 1, *numbers)


def test_the_same_in_any_order_is_the_same():
    ours = found((BOX, 0.9, 1), (FAR, 0.8, 0))
    theirs = found((FAR, 0.8, 0), (BOX, 0.9, 1))
    assert compare(ours, theirs) == Difference("photo", (1, 1), 1, 2, 0.0, 0.0, 0, 0)


def test_nothing_found_by_both_is_the_same():
    assert compare(found(), found()).is_same


def test_small_differences_are_told_and_allowed():
    ours = found((BOX, 0.9, 1))
    theirs = found(([10.25, 10.0, 50.0, 49.875], 0.9004, 1))
    difference = compare(ours, theirs)
    assert difference.is_same
    assert difference.box == 0.25
    assert difference.score == pytest.approx(4e-4, rel=1e-3)


@pytest.mark.parametrize("shift", [0.75, 3.0, 10.0])
def test_a_box_that_moved_fails_and_tells_how_far(shift):
    moved = [BOX[0] + shift, BOX[1], BOX[2] + shift, BOX[3]]
    difference = compare(found((BOX, 0.9, 1)), found((moved, 0.9, 1)))
    assert not difference.is_same
    assert difference.box == pytest.approx(shift)


def test_a_score_that_moved_fails():
    difference = compare(found((BOX, 0.9, 1)), found((BOX, 0.88, 1)))
    assert not difference.is_same
    assert difference.score == pytest.approx(0.02, rel=1e-3)


def test_another_label_is_no_partner():
    difference = compare(found((BOX, 0.9, 1)), found((BOX, 0.9, 0)))
    assert difference.unmatched == 2
    assert not difference.is_same


def test_one_too_many_and_one_too_few_are_unmatched():
    one, two = found((BOX, 0.9, 1)), found((BOX, 0.9, 1), (FAR, 0.5, 1))
    assert compare(one, two).unmatched == 1
    assert compare(two, one).unmatched == 1


def test_the_same_box_twice_is_one_too_many():
    # As from a file without NMS: the second has a score that ties and was a candidate.
    one, two = found((BOX, 0.9, 1)), found((BOX, 0.9, 1), (OVERLAPPING, 0.9, 1))
    assert compare(one, two, candidates=two).unmatched == 1


def test_at_the_threshold_one_side_may_have_one_more():
    low = (FAR, 0.0505, 1)
    one, two = found((BOX, 0.9, 1)), found((BOX, 0.9, 1), low)
    assert compare(two, one).ties == 1
    assert compare(two, one).is_same
    assert compare(one, two, candidates=two).is_same
    # A box that the checkpoint does not know is no tie.
    assert not compare(one, two, candidates=one).is_same


def test_the_last_place_may_go_to_another_of_the_same_score():
    rows = [([x, 0.0, x + 10, 10.0], 0.9 - x / 1000, 0) for x in (0.0, 100.0, 200.0)]
    a, b = (([300.0, 0.0, 310.0, 10.0], 0.3, 0), ([400.0, 0.0, 410.0, 10.0], 0.3001, 0))
    difference = compare(found(*rows, a), found(*rows, b), candidates=found(*rows, a, b))
    assert (difference.ties, difference.unmatched) == (2, 0)
    assert not compare(found(*rows, a), found(*rows, b)).is_same
    better = (b[0], 0.31, 0)
    assert not compare(found(*rows, a), found(*rows, better), found(*rows, a, better)).is_same
    # With places left there is no last one.
    assert not compare(found(a), found(b), candidates=found(a, b)).is_same


def test_of_two_equal_scores_nms_may_keep_either():
    first, second = (BOX, 0.7, 2), (OVERLAPPING, 0.7001, 2)
    both = found(second, first)
    difference = compare(found(second), found(first), candidates=both)
    assert (difference.ties, difference.is_same) == (2, True)
    assert not compare(found(second), found(first), candidates=found(second)).is_same
    worse = (BOX, 0.6, 2)
    assert not compare(found(second), found(worse), candidates=found(second, worse)).is_same


def test_what_only_one_of_the_two_suppresses_follows_them():
    # IoU with OVERLAPPING 0.67, with BOX 0.38.
    third = ([28.0, 10.0, 68.0, 50.0], 0.4, 2)
    first, second = (BOX, 0.7, 2), (OVERLAPPING, 0.7, 2)
    candidates = found(first, second, third)
    for ours, theirs in (
        (found(first, third), found(second)),
        (found(second), found(first, third)),
    ):
        difference = compare(ours, theirs, candidates=candidates)
        assert (difference.ties, difference.is_same) == (3, True)
    assert not compare(found(first, third), found(first), candidates=candidates).is_same


def test_at_the_limit_of_nms_one_side_may_keep_both():
    settings = Postprocess(score_threshold=0.05, nms_iou=0.6, detections=4)
    first, second = (BOX, 0.9, 2), (OVERLAPPING, 0.7, 2)
    one, two = found(first), found(first, second)
    assert compare(two, one, settings=settings).is_same
    assert compare(one, two, candidates=two, settings=settings).is_same
    assert not compare(two, one).is_same  # limit 0.5, IoU 0.6: it should have gone


def test_what_is_not_a_number_is_no_partner():
    nothing = found(([float("nan")] * 4, 0.9, 1))
    assert not compare(found((BOX, 0.9, 1)), nothing).is_same
