"""The exportable graph beside the detector's own steps, both in torch."""

import pytest
import torch
from random_models import TINY, make_checkpoint
from torch import nn

from retinanet import AnchorGenerator, load
from retinanet.postprocess import Postprocess, to_original
from retinanet.tools.export.graph import (
    NO_LABEL,
    AnchorGrids,
    Graph,
    GroupNorm,
    Heads,
    _apart,
    replace_group_norms,
)

SIZES = torch.tensor([[96, 128], [90, 101], [33, 128]])
FILES = torch.tensor([[480, 640], [90, 101], [99, 384]])


def pixels():
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (3, 3, 96, 128), generator=generator, dtype=torch.uint8)


@torch.inference_mode()
def assert_same(detector, postprocess):
    """The graph's outputs are the detector's with these steps; how many there are."""
    outputs = detector.model(pixels(), SIZES)
    detections = postprocess(*outputs, SIZES, detector.model.level_sizes(96, 128))
    boxes, scores, labels, counts = Graph(detector.model, postprocess)(pixels(), SIZES, FILES)
    N = postprocess.detections
    assert (boxes.shape, scores.shape, labels.shape) == ((3, N, 4), (3, N), (3, N))
    assert counts.tolist() == [len(image.scores) for image in detections]
    for i, (n, *image) in enumerate(zip(counts.tolist(), detections, SIZES, FILES, strict=True)):
        wanted = to_original(*image)
        torch.testing.assert_close(scores[i, :n], wanted.scores, atol=1e-6, rtol=0)
        assert torch.equal(labels[i, :n], wanted.labels)
        torch.testing.assert_close(boxes[i, :n], wanted.boxes, atol=1e-3, rtol=0)
        assert not boxes[i, n:].any()
        assert not scores[i, n:].any()
        assert (labels[i, n:] == NO_LABEL).all()
    return sum(counts.tolist())


@pytest.mark.parametrize("clip", ["before_nms", "after_nms"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pre_nms": 20},
        {"detections": 5},
        {"detections": 3000, "score_threshold": 0.03},
        {"score_threshold": 0.0, "pre_nms": 3},
        {"nms_iou": 0.2},
        {"score_threshold": 0.999},
    ],
)
def test_each_image_of_a_batch_gets_its_own_detections(detector, clip, settings):
    postprocess = Postprocess(clip=clip, **settings)
    assert postprocess.clips_first == (clip == "before_nms")
    assert (assert_same(detector, postprocess) > 0) == (settings != {"score_threshold": 0.999})


@pytest.mark.parametrize("typed", [["anchors.rounding=torchvision"], ["anchors.offset=0.5"]])
def test_other_anchors_are_those_of_the_checkpoint(tmp_path, typed):
    detector = load(make_checkpoint(tmp_path / "m.pt", *TINY, *typed), device="cpu")
    assert assert_same(detector, detector.postprocess) > 0


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("rounding", ["none", "torchvision"])
@pytest.mark.parametrize("size", [(96, 128), (800, 1344), (416, 1056), (32, 32)])
def test_anchors_are_made_from_feature_maps_alone(offset, rounding, size):
    generator = AnchorGenerator(offset=offset, rounding=rounding)
    grids = AnchorGrids(generator)
    levels = []
    height, width = (side // 8 for side in size)
    for level in range(5):
        levels.append(grids(level, torch.zeros(1, 1, height, width), *size))
        height, width = (height + 1) // 2, (width + 1) // 2
    torch.testing.assert_close(torch.cat(levels), generator(*size), atol=2e-4, rtol=0)


def test_raw_heads_are_the_model_itself(detector):
    with torch.inference_mode():
        outputs, wanted = Heads(detector.model)(pixels(), SIZES), detector.model(pixels(), SIZES)
    torch.testing.assert_close(outputs[:2], wanted[:2])
    torch.testing.assert_close(outputs[2], wanted[2], atol=2e-4, rtol=0)


def test_groups_come_apart_and_boxes_keep_their_size():
    # Eight images of 80 classes, each with the same box over all of its image.
    box = torch.tensor([[0.0, 0.25, 1344.0, 800.0]]).expand(640, 4)
    moved = _apart(box, torch.arange(640), torch.tensor([26]))
    assert len(moved.unique(dim=0)) == 640
    assert moved.abs().max() < 20_000
    size = moved[:, 2:] - moved[:, :2]
    torch.testing.assert_close(size, (box[:, 2:] - box[:, :2]), atol=2**-9, rtol=0)
    low, high = torch.max(moved[:, None], moved)[..., :2], torch.min(moved[:, None], moved)[..., 2:]
    touches = (high > low).all(dim=-1)
    assert torch.equal(touches, torch.eye(640, dtype=torch.bool))


def norm_of(channels, groups):
    norm = nn.GroupNorm(groups, channels)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    return norm.eval()


@pytest.mark.parametrize("shape", [(2, 16, 5, 7), (1, 64, 1, 1), (3, 8, 1, 9), (1, 256, 40, 30)])
def test_group_norms_are_replaced_by_what_computes_the_same(shape):
    C = shape[1]
    inner = nn.Sequential(norm_of(C, 4), nn.ReLU())
    module = nn.Sequential(nn.Conv2d(C, C, 1), inner, norm_of(C, 8), nn.BatchNorm2d(C)).eval()
    x = torch.randn(shape).relu() * 3 + 1
    before = module(x)
    replace_group_norms(module)
    kinds = [type(part) for part in module.modules()]
    counts = [kinds.count(kind) for kind in (nn.GroupNorm, GroupNorm, nn.BatchNorm2d)]
    assert counts == [0, 2, 1]
    torch.testing.assert_close(module(x), before, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_large_groups_stay_exact_in_onnxruntime(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    norm, x = norm_of(16, 2), torch.randn(1, 16, 400, 320).relu() * 3 + 1
    exact = norm.double()(x.double()).float()
    path = tmp_path / "norm.onnx"
    with torch.no_grad():
        module = GroupNorm(norm.float()).eval()
        torch.onnx.export(module, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path))
    (output,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), exact, atol=1e-5, rtol=0)
