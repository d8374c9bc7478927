"""Anchors and objects: the best overlap of each, shares, and anchors that fit better."""

import json
from pathlib import Path

import pytest
import torch

from retinanet.boxes import box_iou
from retinanet.cli.main import composer
from retinanet.data.coco import CocoData, read_coco
from retinanet.model.anchors import AnchorGenerator
from retinanet.tools.anchor_coverage import Objects, best_overlaps, cover, objects_at, size_counts
from retinanet.tools.anchor_search import WORTH, propose_anchors, propose_size


def write_set(root: Path, rows: list[tuple], size: tuple[int, int] = (100, 200)) -> CocoData:
    """One image for each (category, x, y, w, h, crowd)."""
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": size[0], "width": size[1]}
            for i in range(len(rows))
        ],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": c, "bbox": box, "iscrowd": crowd, "area": 1}
            for i, (c, *box, crowd) in enumerate(rows)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (root / "a.json").write_text(json.dumps(content))
    return read_coco(root / "a.json", root)


def random_objects(seed: int, count: int, height: int, width: int) -> Objects:
    random = torch.Generator().manual_seed(seed)
    center = torch.rand(count, 2, generator=random) * torch.tensor([width, height])
    sides = torch.exp(torch.rand(count, 2, generator=random) * 6)  # 1 to 400 pixels
    corners = torch.cat([center - sides / 2, center + sides / 2], dim=1)
    limits = torch.tensor([width, height] * 2)
    boxes = torch.minimum(corners.clamp(min=0), limits)
    return Objects(boxes, torch.tensor([[height, width]] * count), torch.zeros(count).long())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sizes": (12, 30, 75, 190, 470), "scales": (1, 1.4), "ratios": (0.3, 1, 2, 3)},
        {"rounding": "torchvision", "sizes": (33.3, 64, 100, 256, 512)},
        {"offset": 0.5},
    ],
    ids=["paper", "other", "torchvision", "offset"],
)
@pytest.mark.parametrize("size", [(96, 160), (320, 224), (416, 608)])
def test_the_best_overlap_is_that_of_all_anchors(settings, size):
    found = random_objects(0, 300, *size)
    generator = AnchorGenerator(**settings)
    dense = box_iou(found.boxes, generator(*size)).amax(dim=1)
    # Two anchors of equal overlap may be rounded differently.
    torch.testing.assert_close(best_overlaps(found, generator), dense, rtol=0, atol=1e-6)


def test_boxes_of_images_of_several_sizes_are_judged_together():
    parts = [random_objects(seed, 50, *size) for seed, size in enumerate([(64, 96), (320, 512)])]
    both = Objects(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    alone = torch.cat([best_overlaps(part, AnchorGenerator()) for part in parts])
    assert torch.equal(best_overlaps(both, AnchorGenerator()), alone)


def test_objects_are_the_boxes_that_training_keeps_at_its_size(tmp_path):
    data = write_set(tmp_path, [(1, 10, 20, 30, 40, 0), (2, 0, 0, 5, 5, 1), (2, 190, 0, 50, 50, 0)])
    found = objects_at(data, min_size=200, max_size=1000)
    assert found.boxes.tolist() == [[20, 40, 80, 120], [380, 0, 400, 100]]
    assert found.padded.tolist() == [[224, 416], [224, 416]]
    assert found.labels.tolist() == [0, 1]
    # A box of 5 px is 1 px, then less: training drops it.
    data = write_set(tmp_path, [(1, 10, 20, 30, 40, 0), (2, 0, 0, 5, 5, 0)])
    assert objects_at(data, min_size=20, max_size=1000).labels.tolist() == [0, 1]
    assert objects_at(data, min_size=19, max_size=1000).labels.tolist() == [0]


def test_sizes_are_counted_at_the_training_size(tmp_path):
    # Areas of 3600, 25 and 1600 pixels in images of 100 x 200; the crowd and the flat box are out.
    rows = [(1, 10, 10, 60, 60, 0), (2, 100, 20, 5, 5, 0), (1, 0, 0, 200, 100, 1)]
    data = write_set(tmp_path, [*rows, (1, 20, 20, 40, 40, 0), (1, 20, 20, 0, 40, 0)])
    for size, counts in (
        ((100, 1000), (1, 2, 0)),
        ((400, 1000), (1, 0, 2)),
        ((400, 100), (3, 0, 0)),
    ):
        assert size_counts(objects_at(data, min_size=size[0], max_size=size[1])) == counts


def test_shares_by_size_and_class_by_hand(tmp_path):
    # At 100 px the 60 px square has an anchor of 64 px; 5 px has none, nor has 120 x 4.
    rows = [(1, 10, 10, 60, 60, 0), (2, 100, 20, 5, 5, 0), (2, 20, 40, 120, 4, 0)]
    data = write_set(tmp_path, rows)
    found = cover(objects_at(data, min_size=100, max_size=1000), AnchorGenerator(), 0.5, 3)
    assert str(found.all) == "66.7 % of 3"
    assert [(s.num_boxes, s.num_uncovered) for s in found.sizes] == [(2, 2), (1, 0), (0, 0)]
    assert [s.share for s in found.classes] == [0, 1, 0]
    none = objects_at(write_set(tmp_path, [(1, 0, 0, 9, 9, 1)]), min_size=100, max_size=1000)
    assert size_counts(none) == (0, 0, 0)
    found = cover(none, AnchorGenerator(), 0.5, 2)
    assert (found.all.num_boxes, found.all.share) == (0, 0)


def squares(side: float, count: int = 200) -> Objects:
    random = torch.Generator().manual_seed(1)
    corner = torch.rand(count, 2, generator=random) * 300
    size = torch.tensor([[416, 416]] * count)
    return Objects(torch.cat([corner, corner + side], dim=1), size, torch.zeros(count).long())


def share_of(found: Objects, generator: AnchorGenerator) -> float:
    return cover(found, generator, 0.5, 1).all.share


def propose(found: Objects, now: AnchorGenerator) -> list:
    return propose_anchors(found, now, 0.5, share_of(found, now))


def test_half_the_size_is_proposed_for_objects_of_half_the_size():
    parts = [squares(side) for side in (14, 20, 28)]
    found = Objects(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    first, *_ = propose(found, AnchorGenerator())
    assert share_of(found, AnchorGenerator()) > 0.6
    assert first.overrides == ("anchors.sizes=[16,32,64,128,256]",)
    assert first.uncovered < 0.06
    assert first.cost == "9 anchors per cell, as now"
    assert propose(squares(64), AnchorGenerator()) == []  # they fit


def test_flat_objects_get_flat_anchors():
    found = squares(50)
    found.boxes[:, 2] = found.boxes[:, 0] + 300
    first, *_ = propose(found, AnchorGenerator())
    assert share_of(found, AnchorGenerator()) == 1
    assert first.uncovered < 0.05
    assert any("anchors.ratios=[0.17" in text for text in first.overrides)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_proposed_holds_when_it_is_set(seed):
    found = random_objects(seed, 400, 416, 608)
    before = share_of(found, AnchorGenerator())
    proposals = propose(found, AnchorGenerator())
    assert proposals
    least = before
    for proposal in proposals:
        with composer("train") as reader:
            anchors = reader.command(["data=shapes", *proposal.overrides]).settings.anchors
        made = AnchorGenerator(sizes=anchors.sizes, scales=anchors.scales, ratios=anchors.ratios)
        assert share_of(found, made) == proposal.uncovered
        assert proposal.uncovered <= least - WORTH
        assert proposal.cost.startswith(f"{made.num_per_cell} anchors per cell")
        least = proposal.uncovered


def test_conventions_of_the_anchors_are_kept():
    now = AnchorGenerator(rounding="torchvision", offset=0.5)
    found = squares(16)
    first, *_ = propose(found, now)
    sizes = json.loads(first.overrides[0].partition("=")[2])
    made = AnchorGenerator(sizes=sizes, rounding="torchvision", offset=0.5)
    assert share_of(found, made) == pytest.approx(first.uncovered)


def test_the_smallest_image_that_is_enough_is_proposed():
    measured = {(1000, 1666): 0.2, (1200, 2000): 0.04, (1600, 2666): 0.0}
    found = propose_size(lambda *size: measured[size], 800, 1333, 0.3)
    assert [proposal.overrides for proposal in found] == [
        ("data.min_size=1200", "data.max_size=2000")
    ]
    assert found[0].cost == "2.2 times the pixels, so the time"
    assert propose_size(lambda *_: 0.3, 800, 1333, 0.3) == []
