"""The loop over a data set: pixels of the file, every image once, nothing left behind."""

import dataclasses
import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from retinanet.data.coco import read_coco
from retinanet.data.loader import Batch, BatchLoader, eval_plan
from retinanet.data.transforms import Augment
from retinanet.evaluation.detect import DetectionArrays, count_capped, detect, merge
from retinanet.model.retinanet import RetinaNet
from retinanet.postprocess import Postprocess

SETTINGS = {"score_threshold": 0.05, "pre_nms": 1000, "nms_iou": 0.5, "detections": 100}
CPU = torch.device("cpu")


class Seen(list):
    """What a model and its copies saw."""

    def __deepcopy__(self, memo):
        return self


class OneBox(nn.Module):
    """Finds the left half of every image, with a score that its first pixel gives."""

    def __init__(self, score_logit: float = 2.0) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(score_logit))
        self.modes, self.autocast = Seen(), Seen()

    def level_sizes(self, height: int, width: int) -> list[int]:
        return [1, 0]

    def forward(self, images, sizes):
        self.modes.append(self.training)
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        anchors = torch.tensor([[0.0, 0.0, 64.0, 128.0]])
        logits = torch.full((len(images), 1, 2), -20.0)
        logits[:, 0, 1] = self.logit - images[:, 0, 0, 0].float() / 100
        return logits, torch.zeros(len(images), 1, 4), anchors


def make_batch(image_ids, brightness=0, original=(50, 60), valid=(100, 120)) -> Batch:
    count = len(image_ids)
    return Batch(
        images=torch.full((count, 3, 128, 128), brightness, dtype=torch.uint8),
        sizes=torch.tensor([valid] * count),
        boxes=torch.zeros(count, 0, 4),
        labels=torch.zeros(count, 0, dtype=torch.int64),
        crowds=torch.zeros(count, 0, 4),
        image_ids=torch.tensor(image_ids),
        original_sizes=torch.tensor([original] * count),
    )


def run(model, batches, precision="fp32", **settings) -> DetectionArrays:
    return detect(model, Postprocess(**SETTINGS | settings), batches, CPU, precision)


def test_boxes_are_in_pixels_of_the_file():
    # Half the size in both directions, and the box ends at the image, not at the padding.
    found = run(OneBox(), [make_batch([7])])
    np.testing.assert_allclose(found.boxes, [[0, 0, 32, 50]])
    assert found.image_ids.tolist() == [7]
    assert found.labels.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([1 / (1 + np.exp(-2))])
    assert (found.boxes.dtype, found.scores.dtype) == (np.float64, np.float64)


def test_images_without_detections_count_as_evaluated():
    batches = [make_batch([9, 4]), make_batch([5], brightness=255)]
    found = run(OneBox(), batches, score_threshold=0.5)
    assert found.evaluated.tolist() == [4, 5, 9]
    assert found.image_ids.tolist() == [4, 9]
    nothing = run(OneBox(-20.0), batches)
    assert (len(nothing), nothing.boxes.shape) == (0, (0, 4))
    assert nothing.evaluated.tolist() == [4, 5, 9]
    assert run(OneBox(), []).evaluated.tolist() == []


@pytest.mark.parametrize("training", [True, False])
def test_the_model_runs_in_eval_mode_and_keeps_its_own(training):
    model = OneBox().train(training)
    run(model, [make_batch([1])])
    assert model.modes == [False]
    assert model.training is training
    model.logit.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"nan as logits of images \[3, 8\]"):
        run(model, [make_batch([3, 8])])
    assert model.training is training


def test_precision_is_that_of_the_forward_pass():
    model = OneBox()
    run(model, [make_batch([1])], "fp32")
    run(model, [make_batch([2])], "bf16")
    assert model.autocast == [False, True]


def test_images_that_hit_the_cap_are_counted():
    batches = [make_batch([1, 2]), make_batch([3], brightness=255)]
    assert run(OneBox(), batches, score_threshold=0.5, detections=1).num_capped == 2
    assert run(OneBox(), batches, score_threshold=0.5, detections=2).num_capped == 0
    # A weak last detection is the normal case, and no reason to raise the cap.
    ids, cap = np.repeat([1, 2, 3], 2), 2
    assert count_capped(ids, np.array([0.9, 0.3, 0.9, 0.29, 0.05, 0.05]), cap) == 1


def test_ranks_together_find_what_one_finds():
    batches = [make_batch([6, 1]), make_batch([3], brightness=50), make_batch([2, 5])]
    whole = run(OneBox(), batches)
    shares = [run(OneBox(), batches[rank::2]) for rank in range(2)]
    for merged in (merge(shares), merge(shares[::-1])):
        for field in dataclasses.fields(DetectionArrays):
            np.testing.assert_array_equal(getattr(merged, field.name), getattr(whole, field.name))
    with pytest.raises(ValueError, match=r"images \[2\] were evaluated twice"):
        run(OneBox(), [make_batch([1, 2]), make_batch([2])])


def test_rows_are_sorted_by_image_and_within_it_stay_best_first():
    scores, labels = np.array([0.9, 0.9, 0.2, 0.8, 0.1]), np.array([2, 3, 1, 5, 4])
    ids = np.array([9, 9, 9, 4, 4])
    several = DetectionArrays(ids, np.zeros((5, 4)), scores, labels, np.array([4, 9]), 0)
    assert merge([several]).labels.tolist() == [5, 4, 2, 3, 1]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_progress_bar_goes_to_terminals_only(monkeypatch, capsys, terminal):
    screen = io.StringIO()
    monkeypatch.setattr("retinanet.evaluation.detect.has_bar", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    detect(OneBox(), Postprocess(**SETTINGS), [make_batch([1])], CPU, "fp32", progress=True)
    assert ("detect" in screen.getvalue()) is terminal
    assert capsys.readouterr().out == ""


def test_without_a_bar_a_line_is_logged_now_and_then(monkeypatch, caplog):
    monkeypatch.setattr("retinanet.evaluation.detect.LOG_EVERY_SECONDS", 0.0)
    batches = [make_batch([1, 2]), make_batch([3])]
    with caplog.at_level("INFO"):
        detect(OneBox(), Postprocess(**SETTINGS), batches, CPU, "fp32", progress=True)
    logged = {message.partition(",")[0] for message in caplog.messages}
    assert logged == {"detect     batch 1 of 2", "detect     batch 2 of 2"}


def test_the_real_model_sees_every_image_the_same_in_any_batch(tmp_path):
    rng = np.random.default_rng(0)
    images = []
    for number, (height, width) in enumerate(
        [(60, 90), (90, 60), (75, 75), (60, 91), (40, 120)], 1
    ):
        name = f"{number}.png"
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    content = {"images": images, "categories": categories, "annotations": []}
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = read_coco(tmp_path / "a.json", tmp_path)
    small = {"fpn_channels": 16, "head_depth": 1, "head_channels": 16, "frozen_stages": 0}
    model = RetinaNet("tiny", num_classes=2, prior=0.3, weights=None, norm="group", **small)
    augment = Augment(min_size=64, max_size=128)

    def run_with(batch_size: int) -> DetectionArrays:
        plans = eval_plan(data, augment, batch_size=batch_size)
        how = {"seed": 0, "workers": 0, "on_bad_image": "stop", "pin_memory": False}
        return run(model, BatchLoader(data, augment, plans, **how))

    found, alone = run_with(3), run_with(1)
    assert found.evaluated.tolist() == [1, 2, 3, 4, 5]
    assert len(found) > 20
    sizes = data.sizes[found.image_ids - 1]
    assert (found.boxes[:, :2] >= 0).all()
    assert (found.boxes[:, :2] + found.boxes[:, 2:] <= sizes[:, ::-1] + 1e-4).all()
    np.testing.assert_array_equal(found.image_ids, alone.image_ids)
    np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-4)
