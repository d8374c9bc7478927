"""Anchors to boxes: by hand, and equal to torchvision's Matcher on real boxes."""

from pathlib import Path

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
SPLITS = [
    ("coco_slice", "annotations/instances_train2017.json", "train2017"),
    ("bccd", "annotations/val.json", "val"),
]


def squares(*corners: tuple[float, float, float]) -> Tensor:
    """Boxes of (left, top, side)."""
    return torch.tensor([[x, y, x + s, y + s] for x, y, s in corners]).float()


def match_one(matcher: Matcher, anchors: Tensor, boxes: Tensor, labels=None) -> matching.Match:
    labels = torch.arange(len(boxes)) if labels is None else labels
    return matcher(anchors, boxes[None], labels[None], NO_CROWDS)


def positives_of(match: matching.Match) -> int:
    return int((match.label >= 0).sum())


def test_thresholds_by_hand():
    # Heights 10 x 8, 4.5, 4 and 3.9 of a 10 x 10 box: IoU .8, .45, .4 and .39.
    anchors = torch.tensor([[0, 0, 10, 8], [0, 0, 10, 4.5], [0, 0, 10, 4], [0, 0, 10, 3.9]])
    box = torch.tensor([[0.0, 0, 10, 10]])
    match = match_one(Matcher(), anchors, box, torch.tensor([6]))
    assert match.label.tolist() == [[6, IGNORED, IGNORED, NEGATIVE]]
    assert torch.equal(match.box, torch.stack([box[0], anchors[1], anchors[2], anchors[3]])[None])


@pytest.mark.parametrize("sparse", [False, True], ids=["all anchors", "windows"])
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
    anchors = squares((0, 0, 32))
    boxes = squares((0, 0, 30), (2, 2, 4))
    assert match_one(Matcher(), anchors, boxes).label.tolist() == [[0]]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param([50.0, 10.0, 50.0, 90.0], id="no width"),
        pytest.param([10.0, 10.0, 10.0, 10.0], id="a point"),
        pytest.param([9000.0, 9000.0, 9100.0, 9100.0], id="outside"),
    ],
)
def test_a_box_without_overlap_adds_no_positives(bad):
    anchors = AnchorGenerator()(256, 256)
    good = torch.tensor([[20.0, 30.0, 90.0, 110.0]])
    alone = match_one(Matcher(), anchors, good)
    both = match_one(
        Matcher(), anchors, torch.cat([torch.tensor([bad]), good]), torch.tensor([1, 0])
    )
    assert torch.equal(alone.label, both.label)
    assert torch.equal(alone.box, both.box)
    # Torchvision's turns every anchor positive: the trap that this guards against.
    theirs = TorchvisionMatcher(0.5, 0.4, allow_low_quality_matches=True)(
        torchvision.ops.box_iou(torch.tensor([bad]), anchors)
    )
    assert (theirs >= 0).all()


def test_small_boxes_need_low_quality_matches():
    anchors = AnchorGenerator()(128, 128)
    for side in (4, 8, 16, 20):
        box = squares((61.3, 58.9, side))
        assert positives_of(match_one(Matcher(low_quality=False), anchors, box)) == 0
        assert positives_of(match_one(Matcher(), anchors, box)) >= 1


def torchvision_label(anchors: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Label and index of the box of every anchor, by torchvision."""
    matcher = TorchvisionMatcher(0.5, 0.4, allow_low_quality_matches=True)
    index = matcher(torchvision.ops.box_iou(boxes, anchors))  # (A,)
    label = labels[index.clamp(min=0)]
    label[index == TorchvisionMatcher.BELOW_LOW_THRESHOLD] = NEGATIVE
    label[index == TorchvisionMatcher.BETWEEN_THRESHOLDS] = IGNORED
    return label, index


@pytest.mark.parametrize(("name", "annotations", "images"), SPLITS)
def test_real_boxes_are_matched_as_by_torchvision(real_data, name, annotations, images):
    root: Path = real_data(name)
    data = read_coco(root / annotations, root / images)
    generator, matcher = AnchorGenerator(), Matcher()
    compared = 0
    for i in range(min(len(data), 40)):
        boxes, labels = data.boxes(i)
        if not len(boxes):
            continue
        height, width = map(int, data.sizes[i])
        resized = resized_size(height, width, 320, 533)
        boxes = boxes * torch.tensor([resized[1] / width, resized[0] / height] * 2).float()
        anchors = generator(*(-(-side // 128) * 128 for side in resized))
        match = match_one(matcher, anchors, boxes, labels)
        label, index = torchvision_label(anchors, boxes, labels)
        assert torch.equal(match.label[0], label)
        positive = label >= 0
        assert torch.equal(match.box[0, positive], boxes[index[positive]])
        assert torch.equal(match.box[0, ~positive], anchors[~positive])
        compared += int(positive.sum())
    assert compared > 500


def random_batch(*counts: int) -> tuple[Tensor, Tensor]:
    """Padded boxes (B, G, 4) and labels of images with so many boxes."""
    G = max(counts)
    low = torch.rand(len(counts), G, 2) * 200
    boxes = torch.cat([low, low + 4 + torch.rand(len(counts), G, 2) * 120], dim=2)
    labels = torch.randint(0, 5, (len(counts), G))
    real = torch.arange(G) < torch.tensor(counts)[:, None]
    return boxes * real[..., None], labels.masked_fill(~real, NEGATIVE)


def test_every_image_of_a_batch_is_matched_as_if_alone():
    anchors = AnchorGenerator()(256, 256)
    counts = (3, 0, 11, 1)
    boxes, labels = random_batch(*counts)
    together = Matcher()(anchors, boxes, labels, torch.zeros(4, 0, 4))
    for i, count in enumerate(counts):
        alone = match_one(Matcher(), anchors, boxes[i, :count], labels[i, :count])
        assert torch.equal(together.label[i], alone.label[0])
        assert torch.equal(together.box[i], alone.box[0])


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
    assert torch.equal(dense.label, chunked.label)
    assert torch.equal(dense.box, chunked.box)


def test_padding_is_never_matched():
    # A padded row lies at the origin, where a real anchor lies too.
    anchors = squares((0, 0, 32), (-16, -16, 32), (100, 100, 32))
    boxes = torch.zeros(1, 4, 4)
    boxes[0, 0] = squares((101, 101, 32))[0]
    labels = torch.tensor([[2, NEGATIVE, NEGATIVE, NEGATIVE]])
    match = Matcher()(anchors, boxes, labels, NO_CROWDS)
    assert match.label.tolist() == [[NEGATIVE, NEGATIVE, 2]]


def test_a_padded_row_with_an_area_is_not_matched_either():
    anchors = squares((0, 0, 32))
    match = Matcher()(anchors, anchors[None], torch.tensor([[NEGATIVE]]), NO_CROWDS)
    assert match.label.tolist() == [[NEGATIVE]]


def test_a_padded_row_does_not_stand_before_a_real_box():
    anchors = squares((0, 0, 32))
    boxes = torch.stack([anchors[0], squares((4, 0, 32))[0]])[None]  # IoU 1 and .78
    match = Matcher()(anchors, boxes, torch.tensor([[NEGATIVE, 3]]), NO_CROWDS)
    assert match.label.tolist() == [[3]]
    assert torch.equal(match.box[0, 0], boxes[0, 1])


def test_without_boxes_all_is_background():
    anchors = squares((0, 0, 32), (50, 0, 32))
    match = Matcher()(anchors, torch.zeros(2, 0, 4), torch.zeros(2, 0).long(), torch.zeros(2, 0, 4))
    assert (match.label == NEGATIVE).all()
    assert torch.equal(match.box, anchors.expand(2, -1, -1))


def test_background_inside_a_crowd_is_ignored_and_positives_are_not():
    # Of the four anchors: an object, all inside, half inside, less than half inside.
    anchors = squares((0, 0, 10), (200, 0, 10), (215, 0, 10), (216, 0, 10))
    crowds = torch.tensor([[[0.0, 0.0, 220.0, 50.0], [0.0, 0.0, 0.0, 0.0]]])
    boxes, labels = squares((0, 0, 10))[None], torch.tensor([[3]])
    match = Matcher()(anchors, boxes, labels, crowds)
    assert match.label.tolist() == [[3, IGNORED, IGNORED, NEGATIVE]]
    match = Matcher(ignore_crowd=False)(anchors, boxes, labels, crowds)
    assert match.label.tolist() == [[3, NEGATIVE, NEGATIVE, NEGATIVE]]
    match = Matcher(crowd_iof=0.6)(anchors, boxes, labels, crowds)
    assert match.label.tolist() == [[3, IGNORED, NEGATIVE, NEGATIVE]]


def test_the_crowd_of_one_image_does_not_touch_another():
    anchors = squares((0, 0, 10))
    crowds = torch.stack([squares((0, 0, 50)), torch.zeros(1, 4)])
    match = Matcher()(anchors, torch.zeros(2, 0, 4), torch.zeros(2, 0).long(), crowds)
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


def match_both(matcher, height, width, boxes, labels, **anchors):
    """By all overlaps, and by those that windows find; with a crowd in the middle."""
    generator = AnchorGenerator(**anchors)
    made = generator(height, width)
    crowd = torch.tensor([width * 0.4, height * 0.4, width * 0.6, height * 0.6])
    arguments = (made, boxes, labels, crowd.expand(len(boxes), 1, 4))
    return matcher(*arguments), matcher(*arguments, generator.windows(height, width))


def random_boxes(seed, batch, count, height, width):
    random = torch.Generator().manual_seed(seed)
    center = torch.rand(batch, count, 2, generator=random) * torch.tensor([width, height])
    side = torch.exp(6.5 * torch.rand(batch, count, 2, generator=random))  # 1 to 665 px
    low = (center - side / 2).clamp(min=0)
    high = torch.maximum((center + side / 2).minimum(torch.tensor([width, height])), low + 1)
    boxes = torch.cat([low, high], dim=-1)
    if seed % 2:  # whole pixels: many equal overlaps
        boxes = boxes.round()
        boxes[..., 2:] = torch.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    labels = torch.randint(5, (batch, count), generator=random)
    labels[0, count // 2 :] = -1  # padding
    return boxes, labels


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
        {"sizes": [8, 16, 32, 64, 128]},
    ],
)
def test_windows_find_the_same_match(settings, anchors):
    for seed, (height, width) in enumerate([(224, 320), (97, 411), (608, 32), (320, 320)]):
        boxes, labels = random_boxes(seed, 2, 1 + 9 * seed, height, width)
        plain, near = match_both(Matcher(**settings), height, width, boxes, labels, **anchors)
        assert torch.equal(plain.label, near.label)
        assert torch.equal(plain.box, near.box)


def test_windows_without_a_box_and_with_one_out_of_reach():
    none = torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64)
    far = torch.tensor([[[5000.0, 5000, 5010, 5010], [10, 10, 60, 60]]])
    for boxes, labels in (none, (far, torch.tensor([[1, 2]]))):
        plain, near = match_both(Matcher(), 128, 160, boxes, labels)
        assert torch.equal(plain.label, near.label)
        assert torch.equal(plain.box, near.box)


@pytest.mark.parametrize(
    "box",
    [
        (1503, 303, 1505, 305),  # there fp32 makes the best anchor smaller than it should be
        (1599, 0, 1600, 640),
        (200, 200, 200, 260),  # no width
        (200, 200, 200, 200),
    ],
)
def test_windows_far_from_the_corner_and_of_boxes_without_area(box):
    boxes, labels = torch.tensor([[box]]).float(), torch.tensor([[2]])
    plain, near = match_both(
        Matcher(ignore_crowd=False), 640, 1600, boxes, labels, sizes=[8, 16, 32, 64, 128]
    )
    assert torch.equal(plain.label, near.label)
    assert (near.label >= 0).any() == (box[2] > box[0])


def test_windows_of_anchors_of_a_pixel_far_from_the_corner():
    # There the corners of anchors are multiples of 1/128 px.
    box = [2.6283202171325684, 65179.6640625, 10.64307975769043, 65206.671875]
    boxes, labels = torch.tensor([[box]]), torch.tensor([[0]])
    plain, near = match_both(
        Matcher(ignore_crowd=False), 65536, 9, boxes, labels, sizes=[1, 1, 2, 4, 8]
    )
    assert (plain.label >= 0).sum() == 3
    assert torch.equal(plain.label, near.label)


def test_more_pairs_than_memory_are_not_made(monkeypatch):
    monkeypatch.setattr("retinanet.fast.sparse_matching.MAX_PAIRS", 50)
    boxes, labels = random_boxes(2, 2, 12, 256, 320)
    plain, near = match_both(Matcher(), 256, 320, boxes, labels)
    assert torch.equal(plain.label, near.label)
    assert torch.equal(plain.box, near.box)


def test_windows_on_real_boxes(real_data):
    data = read_coco(real_data("coco_slice") / SPLITS[0][1], real_data("coco_slice"))
    for i in range(0, len(data), 5):
        rows = slice(data.first[i], data.first[i + 1])
        height, width = data.sizes[i].tolist()
        boxes = torch.from_numpy(data.bbox[rows]).float()
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.from_numpy(data.labels[rows])
        plain, near = match_both(Matcher(), height, width, boxes[None], labels[None])
        assert torch.equal(plain.label, near.label)
        assert torch.equal(plain.box, near.box)


@pytest.mark.parametrize("sparse", [False, True], ids=["all anchors", "windows"])
def test_a_box_that_no_anchor_overlaps_makes_no_anchor_positive(sparse):
    generator = AnchorGenerator()
    anchors = generator(128, 160)
    edge = anchors[anchors[:, 2].argmax()]  # touched by the box, which overlaps no anchor
    box = torch.stack([edge[2], edge[1], edge[2] + 64, edge[3]])[None, None]
    windows = generator.windows(128, 160) if sparse else None
    match = Matcher()(anchors, box, torch.tensor([[1]]), NO_CROWDS, windows)
    assert not (match.label >= 0).any()
