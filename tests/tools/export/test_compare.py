"""What counts as the same detections: every rule by a case by hand."""

import pytest
import torch

from retinanet.postprocess import Detections, Postprocess
from retinanet.tools.export.compare import Difference, match

BOX = [10.0, 10.0, 50.0, 50.0]
OVERLAPPING = [20.0, 10.0, 60.0, 50.0]  # IoU with BOX: 30 * 40 / (2 * 1600 - 1200) = 0.6
THIRD = [28.0, 10.0, 68.0, 50.0]  # IoU with OVERLAPPING 0.67, with BOX 0.38
FAR = [100.0, 10.0, 150.0, 70.0]
NAN = [float("nan")] * 4


ONE = [(BOX, 0.9, 1)]
TWO = [*ONE, (FAR, 0.5, 1)]
OTHER_LABEL = [(BOX, 0.9, 0)]
DOUBLE = [*ONE, (OVERLAPPING, 0.9, 1)]
AT_THRESHOLD = [*ONE, (FAR, 0.0505, 1)]
# Full lists, but for the last row.
THREE = [([x, 0.0, x + 10, 10.0], 0.9 - x / 1000, 0) for x in (0.0, 100.0, 200.0)]
A, B, BETTER = (([x, 0.0, x + 10, 10.0], s, 0) for x, s in ((300, 0.3), (400, 0.3001), (400, 0.31)))
# Of BOX and OVERLAPPING with equal scores NMS keeps one; THIRD follows.
FIRST, SECOND, WORSE = (BOX, 0.7, 2), (OVERLAPPING, 0.7001, 2), (BOX, 0.6, 2)
FOLLOWS = (THIRD, 0.4, 2)
BOTH = [*ONE, (OVERLAPPING, 0.7, 1)]
CLIPPED = [*ONE, ([200.0, 10.0, 250.0, 70.0], 0.4, 1), (FAR, 0.3, 1)]


def compare(ours, theirs, candidates=None, **changed):
    """The difference of two lists of (box, score, label); candidates: ours, unless given."""

    def detections(rows):
        boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4)
        labels = torch.tensor([row[2] for row in rows], dtype=torch.long)
        return Detections(boxes, torch.tensor([row[1] for row in rows]), labels)

    settings = Postprocess(**{"score_threshold": 0.05, "nms_iou": 0.5, "detections": 4} | changed)
    candidates = ours if candidates is None else candidates
    numbers = match(*map(detections, (ours, theirs, candidates)), settings)
    return Difference("image", (1, 1), 1, *numbers)


@pytest.mark.parametrize(
    ("ours", "theirs", "candidates", "changed", "ties", "unmatched"),
    [
        ([], [], None, {}, 0, 0),
        (TWO, TWO[::-1], None, {}, 0, 0),  # in any order
        (ONE, [([10.25, 10.0, 50.0, 49.875], 0.9004, 1)], None, {}, 0, 0),
        (ONE, OTHER_LABEL, None, {}, 0, 2),
        (ONE, TWO, None, {}, 0, 1),
        (TWO, ONE, None, {}, 0, 1),
        (ONE, ONE * 2, None, {}, 0, 1),  # one detection does not stand for two
        (ONE, [(NAN, 0.9, 1)], None, {}, 0, 2),
        (ONE, DOUBLE, DOUBLE, {}, 0, 1),  # as from a file without NMS
        # At the threshold one side may have one more, if the checkpoint knows that box.
        (AT_THRESHOLD, ONE, None, {}, 1, 0),
        (ONE, AT_THRESHOLD, AT_THRESHOLD, {}, 1, 0),
        (ONE, AT_THRESHOLD, ONE, {}, 0, 1),
        # The last row may go to another of the same score; with rows left there is no last one.
        ([*THREE, A], [*THREE, B], [*THREE, A, B], {}, 2, 0),
        ([*THREE, A], [*THREE, B], None, {}, 1, 1),
        ([*THREE, A], [*THREE, BETTER], [*THREE, A, BETTER], {}, 1, 1),
        ([A], [B], [A, B], {}, 0, 2),
        # Of two equal scores NMS may keep either.
        ([SECOND], [FIRST], [SECOND, FIRST], {}, 2, 0),
        ([SECOND], [WORSE], [SECOND, WORSE], {}, 1, 1),
        # What only one of the two suppresses follows them.
        ([FIRST, FOLLOWS], [SECOND], [FIRST, SECOND, FOLLOWS], {}, 3, 0),
        ([SECOND], [FIRST, FOLLOWS], [FIRST, SECOND, FOLLOWS], {}, 3, 0),
        ([FIRST, FOLLOWS], [FIRST], [FIRST, SECOND, FOLLOWS], {}, 0, 1),
        # At NMS's limit, here the IoU of 0.6, one side may keep both; at 0.5 one should have gone.
        (BOTH, ONE, None, {"nms_iou": 0.6}, 1, 0),
        (ONE, BOTH, BOTH, {"nms_iou": 0.6}, 1, 0),
        (BOTH, ONE, None, {}, 0, 1),
        (ONE, BOTH, BOTH, {}, 0, 1),
        # Where clipping comes after NMS, the last row counts in a shorter list too.
        (TWO, ONE, None, {"clip": "after_nms"}, 1, 0),
        (CLIPPED, ONE, None, {"clip": "after_nms"}, 1, 1),
    ],
)
def test_ties_are_what_rounding_explains(ours, theirs, candidates, changed, ties, unmatched):
    difference = compare(ours, theirs, candidates, **changed)
    assert difference.detections == len(ours)
    assert (difference.ties, difference.unmatched) == (ties, unmatched)
    assert difference.is_same == (unmatched == 0)


@pytest.mark.parametrize("shift", [0.25, 0.75, 3.0, 10.0])
def test_a_box_that_moved_fails_by_how_far(shift):
    moved = [BOX[0] + shift, BOX[1], BOX[2] + shift, BOX[3]]
    difference = compare(ONE, [(moved, 0.9, 1)])
    assert (difference.box, difference.score) == (pytest.approx(shift), 0)
    assert difference.is_same == (shift < 0.5)


@pytest.mark.parametrize("moved", [4e-4, 0.02])
def test_a_score_that_moved_fails_by_how_much(moved):
    difference = compare(ONE, [(BOX, 0.9 - moved, 1)])
    assert (difference.box, difference.score) == (0, pytest.approx(moved, rel=1e-3))
    assert difference.is_same == (moved < 1e-3)
