import math

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionRetinaNet

from retinanet.postprocess import Detections, Postprocess, to_original

SETTINGS = {"score_threshold": 0.05, "pre_nms": 1000, "nms_iou": 0.5, "detections": 100}
NOTHING = -20.0  # a logit far below every threshold


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def call(
    postprocess: Postprocess,
    scores: list[list[float]],
    anchors: list[list[float]],
    size: tuple[int, int] = (100, 100),
    level_sizes: list[int] | None = None,
) -> Detections:
    """One image whose boxes are its anchors; a score of 0 means no class."""
    logits = torch.tensor([[logit(s) if s else NOTHING for s in row] for row in scores])[None]
    boxes = torch.tensor(anchors)
    deltas = torch.zeros(1, len(anchors), 4)
    sizes = torch.tensor([size])
    return postprocess(logits, deltas, boxes, sizes, level_sizes or [len(anchors)])[0]


def random_head(batch: int, num_classes: int, height: int, width: int, spread: float):
    """Logits and deltas as a half-trained head gives them, with torchvision's anchors."""
    generator = torch.Generator().manual_seed(num_classes)
    levels = []
    for stride in (8, 16, 32, 64, 128):
        side = 4.0 * stride
        y, x = torch.meshgrid(
            torch.arange(0, height, stride).float(),
            torch.arange(0, width, stride).float(),
            indexing="ij",
        )
        center = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        shapes = torch.tensor([[-1.0, -1, 1, 1], [-1.4, -0.7, 1.4, 0.7], [-0.7, -1.4, 0.7, 1.4]])
        levels.append((center + shapes * side / 2).reshape(-1, 4))
    sizes = [len(level) for level in levels]
    logits = torch.randn(batch, sum(sizes), num_classes, generator=generator) * spread - 5
    deltas = torch.randn(batch, sum(sizes), 4, generator=generator) * 0.5
    return logits, deltas, levels, sizes


def torchvision_detections(logits, deltas, levels, image_sizes, settings):
    backbone = torch.nn.Identity()
    backbone.out_channels = 8
    model = TorchvisionRetinaNet(
        backbone,
        num_classes=2,
        anchor_generator=TorchvisionAnchors(((32,),) * 5, ((1.0,),) * 5),
        score_thresh=settings["score_threshold"],
        nms_thresh=settings["nms_iou"],
        detections_per_img=settings["detections"],
        topk_candidates=settings["pre_nms"],
    )
    sizes = [len(level) for level in levels]
    outputs = {
        "cls_logits": list(logits.split(sizes, dim=1)),
        "bbox_regression": list(deltas.split(sizes, dim=1)),
    }
    return model.postprocess_detections(outputs, [levels] * len(logits), image_sizes)


@pytest.mark.parametrize("num_classes", [1, 3, 80])
@pytest.mark.parametrize("spread", [1.0, 2.5])
@pytest.mark.parametrize("limits", [{}, {"pre_nms": 50}, {"detections": 7, "nms_iou": 0.3}])
def test_equals_torchvision(num_classes, spread, limits):
    settings = SETTINGS | limits
    logits, deltas, levels, sizes = random_head(2, num_classes, 256, 384, spread)
    image_sizes = [(256, 384), (200, 300)]

    ours = Postprocess(**settings)(
        logits, deltas, torch.cat(levels), torch.tensor(image_sizes), sizes
    )

    # torchvision also counts boxes that clipping left without extent, so it gets no cap here
    # and they are taken out by hand.
    uncapped = settings | {"detections": 10**6}
    theirs = torchvision_detections(logits, deltas, levels, image_sizes, uncapped)
    for mine, reference in zip(ours, theirs, strict=True):
        boxes = reference["boxes"]
        extent = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).nonzero().squeeze(1)
        extent = extent[: settings["detections"]]
        torch.testing.assert_close(mine.boxes, boxes[extent])
        torch.testing.assert_close(mine.scores, reference["scores"][extent])
        assert torch.equal(mine.labels, reference["labels"][extent])
        assert len(mine.boxes) > 0 or num_classes == 1


def test_one_object_by_hand():
    found = call(Postprocess(**SETTINGS), [[0, 0.8]], [[10.0, 20.0, 50.0, 40.0]])
    assert found.boxes.tolist() == [[10.0, 20.0, 50.0, 40.0]]
    assert found.scores.tolist() == pytest.approx([0.8])
    assert found.labels.tolist() == [1]


def test_deltas_move_the_anchor():
    # Anchor 40 x 20 centered at (30, 30): moved by a quarter of its width, twice as high.
    logits = torch.full((1, 1, 1), logit(0.9))
    deltas = torch.tensor([[[0.25, 0.0, 0.0, math.log(2)]]])
    anchors = torch.tensor([[10.0, 20.0, 50.0, 40.0]])
    found = Postprocess(**SETTINGS)(logits, deltas, anchors, torch.tensor([[100, 100]]), [1])[0]
    torch.testing.assert_close(found.boxes, torch.tensor([[20.0, 10.0, 60.0, 50.0]]))


def test_nothing_found_gives_empty_tensors():
    found = call(Postprocess(**SETTINGS), [[0, 0]], [[0.0, 0.0, 8.0, 8.0]])
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == (0,)
    assert found.labels.dtype == torch.int64


def test_the_threshold_itself_is_not_above_the_threshold():
    # sigmoid(0) is exactly 0.5.
    logits, deltas = torch.zeros(1, 1, 1), torch.zeros(1, 1, 4)
    anchors, sizes = torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([[9, 9]])
    at = Postprocess(**SETTINGS | {"score_threshold": 0.5})
    below = Postprocess(**SETTINGS | {"score_threshold": 0.4999})
    assert len(at(logits, deltas, anchors, sizes, [1])[0].boxes) == 0
    assert len(below(logits, deltas, anchors, sizes, [1])[0].boxes) == 1


def test_nms_is_per_class():
    box, shifted = [0.0, 0.0, 40.0, 40.0], [2.0, 0.0, 42.0, 40.0]
    same = call(Postprocess(**SETTINGS), [[0.9, 0], [0.8, 0]], [box, shifted])
    other = call(Postprocess(**SETTINGS), [[0.9, 0], [0, 0.8]], [box, shifted])
    assert same.scores.tolist() == pytest.approx([0.9])
    assert other.labels.tolist() == [0, 1]


def test_one_anchor_may_carry_two_classes():
    found = call(Postprocess(**SETTINGS), [[0.6, 0.9]], [[0.0, 0.0, 8.0, 8.0]])
    assert found.labels.tolist() == [1, 0]


def test_each_level_has_its_own_limit():
    anchors = [[20.0 * i, 0.0, 20.0 * i + 10, 10.0] for i in range(4)]
    scores = [[0.9], [0.8], [0.3], [0.2]]
    limited = Postprocess(**SETTINGS | {"pre_nms": 1})
    assert call(limited, scores, anchors).scores.tolist() == pytest.approx([0.9])
    found = call(limited, scores, anchors, level_sizes=[2, 2])
    assert found.scores.tolist() == pytest.approx([0.9, 0.3])


def test_the_limit_counts_pairs_not_anchors():
    anchors = [[0.0, 0.0, 8.0, 8.0], [20.0, 0.0, 28.0, 8.0]]
    found = call(Postprocess(**SETTINGS | {"pre_nms": 2}), [[0.9, 0.8], [0.7, 0.6]], anchors)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])


def test_only_the_best_detections_are_kept_and_sorted():
    anchors = [[20.0 * i, 0.0, 20.0 * i + 10, 10.0] for i in range(4)]
    found = call(Postprocess(**SETTINGS | {"detections": 2}), [[0.2], [0.9], [0.4], [0.8]], anchors)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])


def test_boxes_end_at_the_valid_size_not_at_the_padding():
    anchors = [[-5.0, 10.0, 90.0, 200.0], [60.0, 10.0, 90.0, 30.0]]
    found = call(Postprocess(**SETTINGS), [[0.9], [0.8]], anchors, size=(50, 60))
    assert found.boxes.tolist() == [[0.0, 10.0, 60.0, 50.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_fp32(dtype):
    logits, deltas, levels, sizes = random_head(1, 3, 256, 256, 2.5)
    logits, deltas = logits.to(dtype), deltas.to(dtype)
    run = Postprocess(**SETTINGS | {"pre_nms": 10**6})
    half = run(logits, deltas, torch.cat(levels), torch.tensor([[256, 256]]), sizes)[0]
    full = run(logits.float(), deltas.float(), torch.cat(levels), torch.tensor([[256, 256]]), sizes)
    assert half.boxes.dtype == half.scores.dtype == torch.float32
    torch.testing.assert_close(half.scores, full[0].scores)


def test_infinite_and_undefined_deltas_do_no_harm():
    logits = torch.full((1, 3, 1), logit(0.9))
    deltas = torch.tensor([[[0, 0, math.inf, 0], [0, 0, 0, math.nan], [0, 0, 0, 0.0]]])
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(3, 1) + 20 * torch.arange(3)[:, None]
    found = Postprocess(**SETTINGS)(logits, deltas, anchors, torch.tensor([[100, 100]]), [3])[0]
    assert found.boxes.isfinite().all()
    assert [40.0, 40.0, 48.0, 48.0] in found.boxes.tolist()


def test_images_of_a_batch_do_not_see_each_other():
    logits, deltas, levels, sizes = random_head(3, 3, 256, 256, 2.0)
    image_sizes = torch.tensor([[256, 256], [200, 100], [128, 256]])
    run = Postprocess(**SETTINGS)
    together = run(logits, deltas, torch.cat(levels), image_sizes, sizes)
    for i, batched in enumerate(together):
        one = slice(i, i + 1)
        alone = run(logits[one], deltas[one], torch.cat(levels), image_sizes[one], sizes)[0]
        assert all(torch.equal(a, b) for a, b in zip(alone, batched, strict=True))


@pytest.mark.parametrize(
    ("name", "value"),
    [("score_threshold", 1.0), ("pre_nms", 0), ("nms_iou", 1.5), ("detections", 0)],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"postprocess.{name} must .* got {value}"):
        Postprocess(**SETTINGS | {name: value})


def test_boxes_return_to_the_pixels_of_the_file():
    # A file of 50 x 120 pixels resized to 101 x 240: y grew by 2.02, x by 2.
    found = Detections(
        torch.tensor([[20.0, 10.1, 240.0, 101.0]]), torch.tensor([0.9]), torch.tensor([0])
    )
    back = to_original(found, torch.tensor([101, 240]), torch.tensor([50, 120]))
    torch.testing.assert_close(back.boxes, torch.tensor([[10.0, 5.0, 120.0, 50.0]]))
    assert back.scores is found.scores


def test_boxes_never_leave_the_file():
    # 3 * (1 / 3) may round to a little more than 1.
    boxes = torch.tensor([[0.0, 0.0, 333.0, 777.0]])
    found = Detections(boxes, torch.ones(1), torch.zeros(1, dtype=torch.int64))
    for height, width in [(107, 49), (49, 107), (1, 1), (4001, 2999)]:
        back = to_original(found, torch.tensor([777, 333]), torch.tensor([height, width]))
        assert back.boxes[0, 2] <= width
        assert back.boxes[0, 3] <= height


def test_no_detections_return_as_none():
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert to_original(empty, torch.tensor([8, 8]), torch.tensor([4, 4])).boxes.shape == (0, 4)


def test_boxes_are_clipped_before_or_after_nms():
    # Whole, the first two overlap with an IoU of 0.4; inside the image they are the same box.
    anchors = [[-30.0, 0.0, 10.0, 10.0], [-90.0, 0.0, 10.0, 10.0], [-9.0, 20.0, -1.0, 30.0]]
    scores = [[0.9], [0.8], [0.7]]
    settings = SETTINGS | {"nms_iou": 0.5}
    first = call(Postprocess(**settings, clip="before_nms"), scores, anchors)
    assert first.boxes.tolist() == [[0.0, 0.0, 10.0, 10.0]]
    last = call(Postprocess(**settings, clip="after_nms"), scores, anchors)
    assert last.boxes.tolist() == [[0.0, 0.0, 10.0, 10.0]] * 2  # the third is nowhere in the image
    assert last.scores.tolist() == pytest.approx([0.9, 0.8])
