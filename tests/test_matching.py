"""Anchors to boxes: by hand, and equal to torchvision's Matcher on real boxes."""

import pytest
import torch
import torchvision.ops
from torch import Tensor
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher

from retinanet import matching
from retinanet.data.coco import read_coco
from retinanet.data.transforms import resized_size
from retinanet.matching import IGNORED, NEGATIVE, Matcher
from retinanet.model.anchors import AnchorGenerator

NO_CROWDS = torch.zeros(1, 0, 4)
SMALL = {"sizes": [8, 16, 32, 64, 128]}
EITHER_WAY = pytest.mark.parametrize("sparse", [False, True], ids=["all anchors", "windows"])


def squares(*corners: tuple[float, float, float]) -> Tensor:
    """Boxes of (left, top, side)."""
    return torch.tensor([[x, y, x + s, y + s] for x, y, s in corners]).float()


def match_one(matcher: Matcher, anchors: Tensor, boxes: Tensor, labels=None) -> matching.Match:
    labels = torch.arange(len(boxes)) if labels is None else labels
    return matcher(anchors, boxes[None], labels[None], NO_CROWDS)


def assert_equal(match: matching.Match, other: matching.Match) -> None:
    assert torch.equal(match.label, other.label)
    assert torch.equal(match.box, other.box)


def random_batch(*counts: int, whole: bool = False, size=(256, 256)) -> tuple[Tensor, Tensor]:
    """Padded boxes (B, G, 4), 1 to 665 px, and labels of images with so many boxes.

    In whole pixels many overlaps are equal.
    """
    (B, G), (height, width) = (len(counts), max(counts)), size
    center = torch.rand(B, G, 2) * torch.tensor([width, height])
    side = torch.exp(6.5 * torch.rand(B, G, 2))
    low = (center - side / 2).clamp(min=0)
    high = torch.maximum((center + side / 2).minimum(torch.tensor([width, height])), low + 1)
    if whole:
        low, high = low.round(), high.round().maximum(low.round() + 1)
    real = torch.arange(G) < torch.tensor(counts)[:, None]
    labels = torch.randint(0, 5, (B, G)).masked_fill(~real, NEGATIVE)
    return torch.cat([low, high], dim=-1), labels


# By hand


def test_thresholds_by_hand():
    # Heights 10 x 8, 4.5, 4 and 3.9 of a 10 x 10 box: IoU .8, .45, .4 and .39.
    anchors = torch.tensor([[0, 0, 10, 8], [0, 0, 10, 4.5], [0, 0, 10, 4], [0, 0, 10, 3.9]])
    box = torch.tensor([[0.0, 0, 10, 10]])
    match = match_one(Matcher(), anchors, box, torch.tensor([6]))
    assert match.label.tolist() == [[6, IGNORED, IGNORED, NEGATIVE]]
    assert torch.equal(match.box, torch.cat([box, anchors[1:]])[None])


@EITHER_WAY
@pytest.mark.parametrize(
    ("iou", "label"), [(0.5, 3), (0.4375, IGNORED), (0.25, IGNORED), (0.1875, NEGATIVE)]
)
def test_an_iou_of_exactly_a_threshold_belongs_to_the_side_above(sparse, iou, label):
    # Squares of 16 px on cells of 8 px, and a box of their width inside the one at (16, 16): its
    # IoU is its height / 16, exact in fp32. No force-match hides what the thresholds decide.
    generator = AnchorGenerator(sizes=[16, 32, 64, 128, 256], scales=[1.0], ratios=[1.0])
    matcher = Matcher(positive_iou=0.5, negative_iou=0.25, low_quality=False)
    anchors = generator(64, 64)
    boxes = torch.tensor([[[8.0, 8.0, 24.0, 8.0 + 16 * iou]]])
    windows = generator.windows(64, 64) if sparse else None
    match = matcher(anchors, boxes, torch.tensor([[3]]), NO_CROWDS, windows)
    (own,) = (anchors == torch.tensor([8.0, 8.0, 24.0, 24.0])).all(dim=1).nonzero()[:, 0]
    assert match.label[0, own] == label
    assert torch.equal(match.box[0, own], boxes[0, 0] if label == 3 else anchors[own])


def test_the_best_anchor_of_a_box_is_positive_whatever_its_overlap():
    anchors = squares((0, 0, 32), (16, 0, 32))
    box = squares((2, 2, 4))  # IoU 16 / 1024 with the first, nothing with the second
    assert match_one(Matcher(), anchors, box).label.tolist() == [[0, NEGATIVE]]
    strict = Matcher(low_quality=False)
    assert match_one(strict, anchors, box).label.tolist() == [[NEGATIVE, NEGATIVE]]


def test_a_forced_anchor_keeps_the_box_it_overlaps_most():
    # The only anchor that the small box meets belongs to the big one: as in torchvision.
    boxes = squares((0, 0, 30), (2, 2, 4))
    assert match_one(Matcher(), squares((0, 0, 32)), boxes).label.tolist() == [[0]]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param([50.0, 10.0, 50.0, 90.0], id="no width"),
        pytest.param([10.0, 10.0, 10.0, 10.0], id="a point"),
        pytest.param([9000.0, 9000.0, 9100.0, 9100.0], id="outside"),
    ],
)
def test_a_box_without_overlap_adds_no_positives(bad):
    anchors, bad = AnchorGenerator()(256, 256), torch.tensor([bad])
    good = torch.tensor([[20.0, 30.0, 90.0, 110.0]])
    both = match_one(Matcher(), anchors, torch.cat([bad, good]), torch.tensor([1, 0]))
    assert_equal(both, match_one(Matcher(), anchors, good))
    # Torchvision's turns every anchor positive: the trap that this guards against.
    theirs = TorchvisionMatcher(0.5, 0.4, allow_low_quality_matches=True)
    assert (theirs(torchvision.ops.box_iou(bad, anchors)) >= 0).all()


@pytest.mark.parametrize(
    ("boxes", "labels", "expected"),
    [
        # A padded row lies at the origin, where a real anchor lies too.
        (squares((0, 0, 0), (101, 101, 32)), [NEGATIVE, 2], [NEGATIVE, NEGATIVE, 2]),
        (squares((0, 0, 32)), [NEGATIVE], [NEGATIVE] * 3),
        # IoU 1 of the padded row, .78 of the real one.
        (squares((0, 0, 32), (4, 0, 32)), [NEGATIVE, 3], [3, NEGATIVE, NEGATIVE]),
        (torch.zeros(0, 4), [], [NEGATIVE] * 3),
    ],
    ids=["empty", "with an area", "before a real box", "no box at all"],
)
def test_padding_is_never_matched(boxes, labels, expected):
    anchors = squares((0, 0, 32), (-16, -16, 32), (100, 100, 32))
    labels = torch.tensor(labels, dtype=torch.int64)
    match = match_one(Matcher(), anchors, boxes, labels)
    assert match.label.tolist() == [expected]
    positive = match.label[0] >= 0
    assert torch.equal(match.box[0, ~positive], anchors[~positive])
    assert torch.equal(match.box[0, positive], boxes[labels >= 0])


def test_background_inside_a_crowd_is_ignored_and_positives_are_not():
    # Of the four anchors: an object, all inside, half inside, less than half inside.
    anchors = squares((0, 0, 10), (200, 0, 10), (215, 0, 10), (216, 0, 10))
    crowds = torch.tensor([[[0.0, 0.0, 220.0, 50.0], [0.0, 0.0, 0.0, 0.0]]])
    for settings, expected in [
        ({}, [3, IGNORED, IGNORED, NEGATIVE]),
        ({"ignore_crowd": False}, [3, NEGATIVE, NEGATIVE, NEGATIVE]),
        ({"crowd_iof": 0.6}, [3, IGNORED, NEGATIVE, NEGATIVE]),
    ]:
        match = Matcher(**settings)(anchors, anchors[None, :1], torch.tensor([[3]]), crowds)
        assert match.label.tolist() == [expected]


def test_the_crowd_of_one_image_does_not_touch_another():
    crowds = torch.stack([squares((0, 0, 50)), torch.zeros(1, 4)])
    match = Matcher()(
        squares((0, 0, 10)), torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64), crowds
    )
    assert match.label.tolist() == [[IGNORED], [NEGATIVE]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positive_iou": 1.5}, "matching.positive_iou must lie in"),
        ({"negative_iou": 0.0}, "matching.negative_iou must lie in"),
        ({"crowd_iof": float("nan")}, "matching.crowd_iof"),
        ({"positive_iou": 0.3}, "matching.negative_iou=0.4 is above matching.positive_iou=0.3"),
    ],
)
def test_wrong_thresholds_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Matcher(**settings)


# Batches


def test_every_image_of_a_batch_is_matched_as_if_alone():
    anchors, counts = AnchorGenerator()(256, 256), (3, 0, 11, 1)
    boxes, labels = random_batch(*counts)
    together = Matcher()(anchors, boxes, labels, torch.zeros(4, 0, 4))
    for i, count in enumerate(counts):
        alone = match_one(Matcher(), anchors, boxes[i, :count], labels[i, :count])
        assert_equal(matching.Match(*(part[i : i + 1] for part in together)), alone)


@pytest.mark.parametrize("limit", [1, 20_000, 100_000])
def test_memory_is_bounded_without_changing_the_result(monkeypatch, limit):
    anchors = AnchorGenerator()(128, 256)
    boxes, labels = random_batch(17, 5)
    boxes[0, 3] = boxes[0, 7] = anchors[1000]  # a tie: the first box wins
    labels[0, 3], labels[0, 7] = 8, 9
    crowds = random_batch(3, 4)[0]
    dense = Matcher()(anchors, boxes, labels, crowds)
    seen = []
    original = matching.box_intersection

    def record(a: Tensor, b: Tensor) -> Tensor:
        seen.append(len(a) * a.shape[1] * len(b))
        return original(a, b)

    monkeypatch.setattr(matching, "box_intersection", record)
    monkeypatch.setattr(matching, "MAX_OVERLAPS", limit)
    chunked = Matcher()(anchors, boxes, labels, crowds)
    assert len(seen) > 2
    assert max(seen) <= max(limit, 2 * len(anchors))  # at least one box at a time
    assert (dense.label == 8).any()
    assert_equal(dense, chunked)


# Windows: the same match as from all overlaps


def match_both(matcher, height, width, boxes, labels, **anchors) -> matching.Match:
    """By all overlaps; compared with that by windows; with a crowd in the middle."""
    generator = AnchorGenerator(**anchors)
    crowd = torch.tensor([width * 0.4, height * 0.4, width * 0.6, height * 0.6])
    arguments = (generator(height, width), boxes, labels, crowd.expand(len(boxes), 1, 4))
    match = matcher(*arguments)
    assert_equal(match, matcher(*arguments, generator.windows(height, width)))
    return match


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"low_quality": False},
        {"positive_iou": 0.7, "negative_iou": 0.3},
        {"positive_iou": 0.5, "negative_iou": 0.5},
        {"negative_iou": 0.01},
    ],
)
@pytest.mark.parametrize(
    "anchors",
    [
        {},
        {"rounding": "torchvision"},
        {"offset": 0.5, "scales": [1.0], "ratios": [0.3, 1.0, 4.0]},
        SMALL,
    ],
)
def test_windows_give_the_same_match(settings, anchors):
    for i, size in enumerate([(224, 320), (97, 411), (608, 32), (320, 320)]):
        batch = random_batch(1 + 4 * i, 1 + 9 * i, whole=i % 2 == 1, size=size)
        match_both(Matcher(**settings), *size, *batch, **anchors)


def test_windows_give_the_same_match_without_a_box_and_with_one_out_of_reach():
    match_both(Matcher(), 128, 160, torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64))
    far = torch.tensor([[[5000.0, 5000, 5010, 5010], [10, 10, 60, 60]]])
    match_both(Matcher(), 128, 160, far, torch.tensor([[1, 2]]))


@pytest.mark.parametrize(
    ("box", "size", "sizes", "positives"),
    [
        # There fp32 makes the best anchor smaller than it should be.
        ((1503, 303, 1505, 305), (640, 1600), SMALL["sizes"], 1),
        ((1599, 0, 1600, 640), (640, 1600), SMALL["sizes"], 15),
        ((200, 200, 200, 260), (640, 1600), SMALL["sizes"], 0),  # no width
        ((200, 200, 200, 200), (640, 1600), SMALL["sizes"], 0),
        # There the corners of anchors are multiples of 1/128 px.
        ((2.6283202, 65179.6640625, 10.6430798, 65206.671875), (65536, 9), [1, 1, 2, 4, 8], 3),
    ],
)
def test_windows_far_from_the_corner_and_of_boxes_without_area(box, size, sizes, positives):
    boxes = torch.tensor([[box]]).float()
    match = match_both(Matcher(ignore_crowd=False), *size, boxes, torch.tensor([[2]]), sizes=sizes)
    assert (match.label >= 0).sum() == positives


def test_more_pairs_than_memory_are_not_made(monkeypatch):
    monkeypatch.setattr("retinanet.fast.sparse_matching.MAX_PAIRS", 50)
    match_both(Matcher(), 256, 320, *random_batch(6, 12))


@EITHER_WAY
def test_a_box_that_no_anchor_overlaps_makes_no_anchor_positive(sparse):
    generator = AnchorGenerator()
    anchors = generator(128, 160)
    edge = anchors[anchors[:, 2].argmax()]  # touched by the box, which overlaps no anchor
    box = torch.stack([edge[2], edge[1], edge[2] + 64, edge[3]])[None, None]
    windows = generator.windows(128, 160) if sparse else None
    match = Matcher()(anchors, box, torch.tensor([[1]]), NO_CROWDS, windows)
    assert not (match.label >= 0).any()


# Real boxes


def torchvision_match(anchors: Tensor, boxes: Tensor, labels: Tensor) -> matching.Match:
    matcher = TorchvisionMatcher(0.5, 0.4, allow_low_quality_matches=True)
    index = matcher(torchvision.ops.box_iou(boxes, anchors))  # (A,)
    label = torch.where(index == matcher.BELOW_LOW_THRESHOLD, NEGATIVE, IGNORED)
    label = torch.where(index >= 0, labels[index.clamp(min=0)], label)
    box = torch.where((index >= 0)[:, None], boxes[index.clamp(min=0)], anchors)
    return matching.Match(label[None], box[None])


@pytest.mark.parametrize(
    ("name", "annotations"),
    [("coco_slice", "annotations/instances_train2017.json"), ("bccd", "annotations/val.json")],
)
def test_real_boxes_are_matched_as_by_torchvision_and_by_windows(real_data, name, annotations):
    data = read_coco(real_data(name) / annotations, real_data(name))
    generator, positives = AnchorGenerator(), 0
    for i in range(min(len(data), 40)):
        boxes, labels = data.boxes(i)
        if not len(boxes):
            continue
        height, width = map(int, data.sizes[i])
        resized = resized_size(height, width, 320, 533)
        boxes = boxes * torch.tensor([resized[1] / width, resized[0] / height] * 2).float()
        size = [-(-side // 128) * 128 for side in resized]
        match = match_both(Matcher(ignore_crowd=False), *size, boxes[None], labels[None])
        assert_equal(match, torchvision_match(generator(*size), boxes, labels))
        positives += int((match.label >= 0).sum())
    assert positives > 500
