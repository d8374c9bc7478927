"""The comparison with torchvision's RetinaNet class is fair: same input, network, step, scores."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet import build
from scripts import compare_peers
from scripts.compare_peers import (
    COLUMNS,
    OurTraining,
    TorchvisionTraining,
    as_lists,
    read_settings,
    table,
    torchvision_model,
)

SMALL = (
    "data=custom",
    "model=tiny",
    "anchors=paper",
    "optim=sgd",
    "schedule=demo",
    "schedule.warmup_steps=0",
    "augment=flip",
    "data.workers=0",
    "data.min_size=96",
    "data.max_size=128",
    "model.fpn_channels=16",
    "model.head_channels=16",
    "matching.ignore_crowd=false",
    "optim.batch_size=2",
    "optim.max_grad_norm=null",
    "evaluation.batch_size=2",
    "postprocess.score_threshold=0.0",
    "ema=none",
    "precision=fp32",
)


@pytest.fixture(scope="module")
def data_settings(tmp_path_factory):
    """Six images of a square on noise, two of them portrait; one without a box."""
    root = tmp_path_factory.mktemp("squares")
    random = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(6):
        width, height = (72, 96) if i < 2 else (112, 84)
        pixels = random.integers(0, 120, (height, width, 3), dtype=np.uint8)
        images.append({"id": 10 + i, "file_name": f"{i}.png", "width": width, "height": height})
        if i != 3:
            x, y, side = 4 + 3 * i, 6 + 2 * i, 30 + 4 * i
            pixels[y : y + side, x : x + side] = 255
            box = {"bbox": [x, y, side, side], "area": side**2, "iscrowd": 0}
            annotations.append({"id": i + 1, "image_id": 10 + i, "category_id": 5 + i % 2, **box})
        Image.fromarray(pixels).save(root / f"{i}.png")
    categories = [{"id": 5, "name": "even"}, {"id": 6, "name": "odd"}]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (root / "boxes.json").write_text(json.dumps(coco))
    parts = {"images": ".", "annotations": "boxes.json"}
    paths = [f"data.{split}_{k}={v}" for split in ("train", "val") for k, v in parts.items()]
    return [f"data.root={root}", *paths]


def changed(data_settings, *typed):
    """The small settings, with these in place of those of the same keys."""
    keys = {text.partition("=")[0] for text in typed}
    small = [text for text in [*SMALL, *data_settings] if text.partition("=")[0] not in keys]
    return [*small, *typed]


@pytest.fixture
def start(data_settings):
    """A training of ours with settings of the command line."""

    def make(*typed):
        settings = read_settings(changed(data_settings, *typed), steps=4)
        return OurTraining(settings, build.build_splits(settings.data), total_steps=4)

    return make


def first_batch(training):
    ((batch,), *_) = training.loader.steps(0, 1)
    return batch


def test_the_same_pixels_enter_both_backbones(start):
    ours = start("optim.batch_size=6")  # landscape and portrait, so both sides are padded
    theirs, batch = TorchvisionTraining(ours), first_batch(ours)
    assert (batch.sizes.amin(0) < torch.tensor(batch.images.shape[-2:])).all()
    entered = []
    for backbone in (theirs.model.backbone, ours.trainer.model.backbone):
        backbone.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    theirs.model.train()(*as_lists(batch))
    ours.trainer.model(batch.images, batch.sizes)
    assert torch.equal(*entered)


@pytest.mark.parametrize(
    "typed",
    [
        ["model.head_norm=group", "model.head_depth=2"],
        ["model.head_norm=none", "model.head_depth=4", "model.p6_from=p5"],
        ["model.backbone=mobilenet_v2"],
        ["model.backbone=resnet18", "model.head_depth=1"],
    ],
)
def test_torchvisions_class_becomes_the_same_network(data_settings, typed):
    settings = read_settings(changed(data_settings, *typed), steps=4)
    ours = build.build_model(settings, 2).eval()
    theirs = torchvision_model(settings, ours).eval()
    pixels = torch.randn(2, 3, 128, 160)
    logits, deltas = ours.predict(pixels)
    outputs = theirs.head(list(theirs.backbone(pixels).values()))
    torch.testing.assert_close(outputs["cls_logits"], logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs["bbox_regression"], deltas, rtol=1e-4, atol=1e-5)
    count = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, theirs)]
    assert count[0] == count[1]
    # Its anchors are ours, neither rounded nor in another precision.
    images, _ = theirs.transform([torch.zeros(3, 128, 160)])
    (anchors,) = theirs.anchor_generator(images, [torch.zeros(1, dtype=torch.bfloat16)])
    assert anchors.dtype == torch.float32
    assert torch.equal(anchors, ours.anchors(128, 160))


def test_with_the_same_divisor_one_step_makes_the_same_weights(start):
    # torchvision divides by the positives of each image; so can we, and then nothing differs.
    ours = start("loss.normalizer=image", "optim.lr=1.0")
    theirs, batch = TorchvisionTraining(ours), first_batch(ours)
    before = [p.clone() for p in theirs.model.parameters()]
    ours.one_step(batch)
    theirs.one_step(batch)
    expected = torchvision_model(ours.settings, ours.trainer.model)
    moved = 0.0
    for a, b, start in zip(theirs.model.parameters(), expected.parameters(), before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)
        moved = max(moved, (a - start).abs().max().item())
    assert moved > 1e-2


def test_with_the_same_weights_both_detect_the_same(start):
    ours = start()
    (_, mine), (_, other) = ours.validate(), TorchvisionTraining(ours).validate()
    assert mine.evaluated.tolist() == other.evaluated.tolist() == [10, 11, 12, 13, 14, 15]
    assert len(mine) > 0
    # Untrained, so many scores are equal: compare as sets of the strongest.
    np.testing.assert_allclose(np.sort(mine.scores)[-50:], np.sort(other.scores)[-50:], atol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_peer(start):
    ours = start()
    peer = TorchvisionTraining(ours)
    with torch.no_grad():
        peer.model.head.classification_head.cls_logits.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="torchvision's loss is nan at step 0"):
        peer.one_step(first_batch(ours))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("model.head_depth=5", "model.head_depth must be at most 4"),
        ("model.head_channels=32", "model.head_channels must be model.fpn_channels=16"),
        ("model.relu_before_p7=false", "model.relu_before_p7 must be true"),
        ("matching.low_quality=false", "matching.low_quality must be true"),
        ("optim.accumulate=2", "optim.accumulate must be 1"),
        ("loss.gama=1", "loss.gamma"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(
    data_settings, tmp_path, capsys, typed, message
):
    assert run(tmp_path / "x", 1, settings=changed(data_settings, typed)) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "x").exists()


def row(peer, seed, ap):
    return {"peer": peer, "seed": seed, "step": 4, "seconds_per_step": 0.5} | dict.fromkeys(
        COLUMNS, ap
    )


def test_the_table_shows_last_evaluations_and_means_over_common_seeds():
    a, b = "retinanet", "torchvision"
    rows = [row(a, 0, 0.1), row(a, 0, 0.3) | {"APs": None}, row(b, 0, 0.2)]
    lines = table(rows)
    assert lines[1].split() == [a, "0", "4", "0.50", *["0.300"] * 3, "n/a", *["0.300"] * 2]
    assert lines[-2] == "mean AP over 1 seed(s): retinanet 0.3000, torchvision 0.2000: +0.1000"
    assert lines[-1] == "One seed each: a small difference may be chance."
    # What has no AP is no AP of 0: that seed has no pair.
    rows += [row(a, 1, 0.4), row(b, 1, 0.25), row(a, 2, 0.9), row(a, 3, 0.9), row(b, 3, None)]
    lines = table(rows)
    assert lines[-2] == "mean AP over 2 seed(s): retinanet 0.3500, torchvision 0.2250: +0.1250"
    assert "up to 0.1000 apart" in lines[-1]
    assert "mean" not in "".join(table(rows[:2]))


def run(folder, steps, *options, settings):
    options = ["--steps", str(steps), *options, "--output", str(folder)]
    return compare_peers.main(["steps", *options, "--", *settings])


def test_finished_trainings_are_kept_seeds_are_added_and_other_settings_refused(
    tmp_path, data_settings, monkeypatch, capsys
):
    settings = changed(data_settings)
    two = ("--evaluations", "2", "--seeds")
    assert run(tmp_path, 3, *two, "0", settings=settings) == 0
    assert "mean AP over 1 seed(s)" in capsys.readouterr().out
    made = []
    start = OurTraining.__init__

    def spy(self, settings, *rest):
        made.append(settings.seed)
        start(self, settings, *rest)

    monkeypatch.setattr(OurTraining, "__init__", spy)
    assert run(tmp_path, 3, *two, "0", "1", settings=settings) == 0
    assert made == [1, 1]
    assert "mean AP over 2 seed(s)" in capsys.readouterr().out
    with (tmp_path / "results.csv").open() as file:
        rows = [(row["peer"], row["seed"], row["step"]) for row in csv.DictReader(file)]
    peers = ("retinanet", "torchvision")
    assert rows == [(peer, seed, step) for seed in "01" for peer in peers for step in "23"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(row["peer"], str(row["seed"]), str(row["step"])) for row in results["rows"]] == rows

    again = changed(data_settings, "loss.gamma=1", "data.workers=1")
    assert run(tmp_path, 3, *two, "0", settings=again) == 1
    assert "holds a comparison with other settings (settings.loss.gamma)" in capsys.readouterr().err
