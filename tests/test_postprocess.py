"""Detections from logits and deltas: by hand, and equal to torchvision's."""

import math

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionRetinaNet

from retinanet.postprocess import Detections, Postprocess, to_original

NOTHING = -20.0  # a logit far below every threshold


def detect(scores, anchors, size=(100, 100), level_sizes=None, *, deltas=None, **settings):
    """One image whose boxes are its anchors; a score of 0 means no class."""
    logits = [[math.log(s / (1 - s)) if s else NOTHING for s in row] for row in scores]
    deltas = torch.zeros(1, len(anchors), 4) if deltas is None else torch.tensor([deltas])
    inputs = torch.tensor([logits]), deltas, torch.tensor(anchors), torch.tensor([size])
    return Postprocess(**settings)(*inputs, level_sizes or [len(anchors)])[0]


def apart(count: int) -> list[list[float]]:
    """Anchors that do not meet."""
    return [[20.0 * i, 0.0, 20.0 * i + 10, 10.0] for i in range(count)]


def random_head(batch: int, num_classes: int, height: int, width: int, spread: float):
    """Logits and deltas as a half-trained head gives them, with torchvision's anchors."""
    generator = torch.Generator().manual_seed(num_classes)
    shapes = torch.tensor([[-1.0, -1, 1, 1], [-1.4, -0.7, 1.4, 0.7], [-0.7, -1.4, 0.7, 1.4]])
    levels = []
    for stride in (8, 16, 32, 64, 128):
        y, x = torch.meshgrid(
            torch.arange(0.0, height, stride), torch.arange(0.0, width, stride), indexing="ij"
        )
        center = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        levels.append((center + shapes * 2.0 * stride).reshape(-1, 4))
    sizes = [len(level) for level in levels]
    logits = torch.randn(batch, sum(sizes), num_classes, generator=generator) * spread - 5
    deltas = torch.randn(batch, sum(sizes), 4, generator=generator) * 0.5
    return logits, deltas, levels, sizes


def torchvision_detections(logits, deltas, levels, image_sizes, settings):
    """Without a cap: torchvision counts boxes too that clipping left without extent."""
    backbone = torch.nn.Identity()
    backbone.out_channels = 8
    model = TorchvisionRetinaNet(
        backbone,
        num_classes=2,
        anchor_generator=TorchvisionAnchors(((32,),) * 5, ((1.0,),) * 5),
        score_thresh=0.05,
        nms_thresh=settings.get("nms_iou", 0.5),
        detections_per_img=10**6,
        topk_candidates=settings.get("pre_nms", 1000),
    )
    sizes = [len(level) for level in levels]
    outputs = {
        "cls_logits": list(logits.split(sizes, dim=1)),
        "bbox_regression": list(deltas.split(sizes, dim=1)),
    }
    return model.postprocess_detections(outputs, [levels] * len(logits), image_sizes)


@pytest.mark.parametrize("num_classes", [1, 3, 80])
@pytest.mark.parametrize("spread", [1.0, 2.5])
@pytest.mark.parametrize("settings", [{}, {"pre_nms": 50}, {"detections": 7, "nms_iou": 0.3}])
def test_equals_torchvision(num_classes, spread, settings):
    logits, deltas, levels, sizes = random_head(2, num_classes, 256, 384, spread)
    image_sizes = [(256, 384), (200, 300)]
    inputs = logits, deltas, torch.cat(levels), torch.tensor(image_sizes), sizes
    theirs = torchvision_detections(logits, deltas, levels, image_sizes, settings)
    for ours, reference in zip(Postprocess(**settings)(*inputs), theirs, strict=True):
        extent = (reference["boxes"][:, 2:] > reference["boxes"][:, :2]).all(dim=1)
        extent = extent.nonzero().squeeze(1)[: settings.get("detections", 100)]
        expected = [reference[name][extent] for name in ("boxes", "scores", "labels")]
        torch.testing.assert_close(list(ours), expected)
        assert len(ours.boxes) > 0 or num_classes == 1


def test_one_object_by_hand():
    detected = detect([[0, 0.8]], [[10.0, 20.0, 50.0, 40.0]])
    assert detected.boxes.tolist() == [[10.0, 20.0, 50.0, 40.0]]
    assert detected.scores.tolist() == pytest.approx([0.8])
    assert detected.labels.tolist() == [1]


def test_deltas_move_the_anchor():
    # Anchor 40 x 20 centered at (30, 30): moved by a quarter of its width, twice as high.
    deltas = [[0.25, 0.0, 0.0, math.log(2)]]
    detected = detect([[0.9]], [[10.0, 20.0, 50.0, 40.0]], deltas=deltas)
    torch.testing.assert_close(detected.boxes, torch.tensor([[20.0, 10.0, 60.0, 50.0]]))


def test_without_detections_tensors_are_empty_and_return_as_none():
    detected = detect([[0, 0]], apart(1))
    for empty in (detected, to_original(detected, torch.tensor([8, 8]), torch.tensor([4, 4]))):
        assert [part.shape for part in empty] == [(0, 4), (0,), (0,)]
        assert empty.labels.dtype == torch.int64


def test_the_threshold_itself_is_not_above_the_threshold():
    # The logit 0 is a score of exactly 0.5.
    assert len(detect([[0.5]], apart(1), score_threshold=0.5).boxes) == 0
    assert len(detect([[0.5]], apart(1), score_threshold=0.4999).boxes) == 1


def test_nms_is_per_class():
    anchors = [[0.0, 0.0, 40.0, 40.0], [2.0, 0.0, 42.0, 40.0]]
    assert detect([[0.9, 0], [0.8, 0]], anchors).scores.tolist() == pytest.approx([0.9])
    assert detect([[0.9, 0], [0, 0.8]], anchors).labels.tolist() == [0, 1]
    # One anchor may carry two classes.
    assert detect([[0.6, 0.9]], apart(1)).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("scores", "settings", "kept"),
    [
        ([[0.9], [0.8], [0.3], [0.2]], {"pre_nms": 1}, [0.9]),
        # Each level has its own limit.
        ([[0.9], [0.8], [0.3], [0.2]], {"pre_nms": 1, "level_sizes": [2, 2]}, [0.9, 0.3]),
        # The limit counts pairs, not anchors.
        ([[0.9, 0.8], [0.7, 0.6]], {"pre_nms": 2}, [0.9, 0.8]),
        # The best detections, sorted.
        ([[0.2], [0.9], [0.4], [0.8]], {"detections": 2}, [0.9, 0.8]),
    ],
)
def test_limits_keep_the_best(scores, settings, kept):
    assert detect(scores, apart(len(scores)), **settings).scores.tolist() == pytest.approx(kept)


def test_boxes_end_at_the_valid_size_not_at_the_padding():
    anchors = [[-5.0, 10.0, 90.0, 200.0], [60.0, 10.0, 90.0, 30.0]]
    detected = detect([[0.9], [0.8]], anchors, size=(50, 60))
    assert detected.boxes.tolist() == [[0.0, 10.0, 60.0, 50.0]]


def test_boxes_are_clipped_before_or_after_nms():
    # Whole, the first two overlap with an IoU of 0.4; inside the image they are the same box. The
    # third is nowhere in the image.
    anchors = [[-30.0, 0.0, 10.0, 10.0], [-90.0, 0.0, 10.0, 10.0], [-9.0, 20.0, -1.0, 30.0]]
    for clip, kept in [("before_nms", [0.9]), ("after_nms", [0.9, 0.8])]:
        detected = detect([[0.9], [0.8], [0.7]], anchors, clip=clip)
        assert detected.boxes.tolist() == [[0.0, 0.0, 10.0, 10.0]] * len(kept)
        assert detected.scores.tolist() == pytest.approx(kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_fp32(dtype):
    logits, deltas, levels, sizes = random_head(1, 3, 256, 256, 2.5)
    logits, deltas = logits.to(dtype), deltas.to(dtype)
    others = torch.cat(levels), torch.tensor([[256, 256]]), sizes
    run = Postprocess(pre_nms=10**6)
    (half,), (full,) = run(logits, deltas, *others), run(logits.float(), deltas.float(), *others)
    assert half.boxes.dtype == half.scores.dtype == torch.float32
    torch.testing.assert_close(list(half), list(full))


def test_infinite_and_undefined_deltas_do_no_harm():
    anchors = [[20.0 * i, 20.0 * i, 20.0 * i + 8, 20.0 * i + 8] for i in range(3)]
    deltas = [[0, 0, math.inf, 0], [0, 0, 0, math.nan], [0, 0, 0, 0.0]]
    detected = detect([[0.9]] * 3, anchors, deltas=deltas)
    assert detected.boxes.isfinite().all()
    assert anchors[2] in detected.boxes.tolist()


def test_images_of_a_batch_do_not_see_each_other():
    logits, deltas, levels, sizes = random_head(3, 3, 256, 256, 2.0)
    image_sizes = torch.tensor([[256, 256], [200, 100], [128, 256]])
    run, anchors = Postprocess(), torch.cat(levels)
    for i, batched in enumerate(run(logits, deltas, anchors, image_sizes, sizes)):
        one = slice(i, i + 1)
        (alone,) = run(logits[one], deltas[one], anchors, image_sizes[one], sizes)
        assert all(map(torch.equal, alone, batched))


@pytest.mark.parametrize(
    ("name", "value"),
    [("score_threshold", 1.0), ("pre_nms", 0), ("nms_iou", 1.5), ("detections", 0)]
    + [("clip", "never")],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"postprocess.{name} must .* got {value!r}"):
        Postprocess(**{name: value})


def test_boxes_return_to_the_pixels_of_the_file():
    # A file of 50 x 120 pixels resized to 101 x 240: y grew by 2.02, x by 2.
    box = torch.tensor([[20.0, 10.1, 240.0, 101.0]])
    detected = Detections(box, torch.tensor([0.9]), torch.tensor([0]))
    back = to_original(detected, torch.tensor([101, 240]), torch.tensor([50, 120]))
    torch.testing.assert_close(back.boxes, torch.tensor([[10.0, 5.0, 120.0, 50.0]]))
    assert back.scores is detected.scores


@pytest.mark.parametrize("file", [(107, 49), (49, 107), (1, 1), (4001, 2999)])
def test_boxes_never_leave_the_file(file):
    # 3 * (1 / 3) may round to a little more than 1.
    whole = Detections(torch.tensor([[0.0, 0.0, 333.0, 777.0]]), torch.ones(1), torch.zeros(1))
    back = to_original(whole, torch.tensor([777, 333]), torch.tensor(file))
    assert (back.boxes[0, 2:] <= torch.tensor(file).flip(0)).all()
