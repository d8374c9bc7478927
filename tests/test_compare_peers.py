"""The comparison with torchvision's RetinaNet class is fair: same input, network, step, scores."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet import build
from scripts import compare_peers
from scripts.compare_peers import (
    RECOMMENDED,
    REFERENCES,
    OurTraining,
    Training,
    compose,
    table,
)
from scripts.torchvision_peer import (
    PlainImages,
    TorchvisionTraining,
    as_lists,
    check_comparable,
    torchvision_model,
    train_loader,
)

CPU = torch.device("cpu")
SMALL = (
    "data=custom",
    "model=tiny",
    "anchors=paper",
    "optim=sgd",
    "schedule=demo",
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


class Setup:
    """Settings and what is made of them."""

    def __init__(self, settings):
        self.settings = settings
        self.splits = build.build_splits(settings.data)
        self.model = build.build_model(settings, 2)

    def ours(self):
        return OurTraining(self.settings, self.splits, CPU)

    def theirs(self, same_input=True):
        return TorchvisionTraining(self.settings, self.splits, CPU, same_input=same_input)

    def batch(self):
        (batch,) = next(iter(self.ours().batches(9)))
        return batch

    def schedule(self, tmp_path):
        contest = {"unit": "steps", "amount": 4, "turns": 1}
        return Training("retinanet", self.settings, self.splits, contest, tmp_path).schedule(0)


@pytest.fixture
def setup(data_settings):
    return lambda *typed: Setup(compose(SMALL, data_settings, typed))


def test_the_same_pixels_enter_both_backbones(setup):
    made = setup("optim.batch_size=6")  # landscape and portrait, so both sides are padded
    theirs, batch = made.theirs().model, made.batch()
    assert (batch.sizes.amin(0) < torch.tensor(batch.images.shape[-2:])).all()
    entered = []
    for backbone in (theirs.backbone, made.model.backbone):
        backbone.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    theirs.train()(*as_lists(batch))
    made.model(batch.images, batch.sizes)
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
def test_torchvisions_class_becomes_the_same_network(setup, typed):
    made = setup(*typed)
    ours = made.model.eval()
    theirs = torchvision_model(made.settings, ours, same_input=True).eval()
    pixels = torch.randn(2, 3, 128, 128)
    logits, deltas = ours.predict(pixels)
    outputs = theirs.head(list(theirs.backbone(pixels).values()))
    torch.testing.assert_close(outputs["cls_logits"], logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs["bbox_regression"], deltas, rtol=1e-4, atol=1e-5)
    count = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, theirs)]
    assert count[0] == count[1]


def test_anchors_are_ours_with_the_same_input_and_torchvisions_rounded_ones_without(setup):
    made = setup()
    same, plain = (
        torchvision_model(made.settings, made.model, same_input=s) for s in (True, False)
    )
    images, _ = same.transform([torch.zeros(3, 128, 160)])
    (anchors,) = same.anchor_generator(images, [torch.zeros(1, dtype=torch.bfloat16)])
    assert anchors.dtype == torch.float32
    assert torch.equal(anchors, made.model.anchors(128, 160))
    assert plain.anchor_generator.sizes[0] == (32, 40, 50)
    assert (plain.transform.min_size, plain.transform.size_divisible) == ((96,), 32)


def test_with_the_same_divisor_one_step_makes_the_same_weights(setup, tmp_path):
    # torchvision divides by the positives of each image; so can we, and then nothing differs.
    made = setup("loss.normalizer=image", "schedule.warmup_steps=0", "optim.lr=1.0")
    ours, theirs, batch = made.ours(), made.theirs(), made.batch()
    before = [p.clone() for p in theirs.model.parameters()]
    ours.one_step([batch], made.schedule(tmp_path))
    theirs.one_step(as_lists(batch), made.schedule(tmp_path))
    expected = torchvision_model(made.settings, ours.trainer.model, same_input=True)
    moved = 0.0
    for a, b, start in zip(theirs.model.parameters(), expected.parameters(), before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)
        moved = max(moved, (a - start).abs().max().item())
    assert moved > 1e-2


def test_with_the_same_weights_both_detect_the_same(setup):
    (_, mine), (_, other) = setup().ours().validate(), setup().theirs().validate()
    assert mine.evaluated.tolist() == other.evaluated.tolist() == [10, 11, 12, 13, 14, 15]
    assert len(mine) > 0
    # Untrained, so many scores are equal: compare as sets of the strongest.
    np.testing.assert_allclose(np.sort(mine.scores)[-50:], np.sort(other.scores)[-50:], atol=1e-5)


def test_both_get_the_same_batches_wherever_they_start(setup):
    ours, theirs = setup().ours(), setup().theirs()
    theirs.step = 4
    several = [as_lists(batch) for (batch,) in ours.batches(7)]
    later = list(theirs.batches(7))
    assert (len(several), len(later)) == (7, 3)
    for a, b in zip(several[4:], later, strict=True):
        assert all(map(torch.equal, a[0], b[0]))


def test_plain_images_flip_with_their_boxes(setup):
    data = setup().splits[0]
    (image, target), (flipped, moved) = (PlainImages(data, p)[4] for p in (0.0, 1.0))
    assert image.max() == 1
    for pixels, (box,) in ((image, target["boxes"]), (flipped, moved["boxes"])):
        x1, y1, x2, y2 = box.int().tolist()
        assert (pixels[:, y1:y2, x1:x2] == 1).all()
        assert (pixels == 1).sum() == 3 * (x2 - x1) * (y2 - y1)


def test_the_plain_loop_sees_every_image_with_a_box_once_an_epoch(setup):
    made = setup()

    def indices(step, count):
        batches = zip(train_loader(made.splits[0], made.settings, step), range(count), strict=False)
        return [target["index"].item() for (_, targets), _ in batches for target in targets]

    epochs = indices(0, 4)
    for epoch in (epochs[:4], epochs[4:]):  # five images in batches of two: one is left out
        assert len(set(epoch)) == 4
        assert 3 not in epoch
    assert indices(3, 1) == epochs[6:]
    with pytest.raises(ValueError, match="optim.batch_size=6, but .* has only 5 images"):
        optim = dataclasses.replace(made.settings.optim, batch_size=6)
        train_loader(made.splits[0], dataclasses.replace(made.settings, optim=optim), 0)


def test_the_plain_loop_learns(setup, tmp_path):
    made = setup("optim.lr=0.05", "schedule.warmup_steps=0", "schedule.decay=constant")
    peer = made.theirs(same_input=False)
    peer.model.train()
    samples = next(iter(peer.batches(9)))
    losses = [sum(peer.model(*samples).values())]
    for _ in range(4):
        peer.one_step(samples, made.schedule(tmp_path))
    losses.append(sum(peer.model(*samples).values()))
    assert losses[1] < 0.9 * losses[0]
    assert peer.validate()[1].evaluated.tolist() == [10, 11, 12, 13, 14, 15]


def test_a_loss_that_is_not_finite_stops_the_peer(setup, tmp_path):
    made = setup()
    peer = made.theirs()
    with torch.no_grad():
        peer.model.head.classification_head.cls_logits.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="torchvision's loss is nan at step 0"):
        peer.one_step(as_lists(made.batch()), made.schedule(tmp_path))


def timed(settings, num_images, tmp_path):
    contest = {"unit": "seconds", "amount": 100.0, "turns": 1}
    return Training("torchvision", settings, ([None] * num_images, None), contest, tmp_path)


def test_a_schedule_by_time_ends_with_the_time(data_settings, tmp_path):
    typed = ["optim.lr=0.1", "optim.reference_batch=2", "schedule.milestones=[0.5]"]
    typed += ["schedule.warmup_steps=10", "schedule.warmup_factor=0.1", "schedule.decay=steps"]
    training = timed(compose(SMALL, data_settings, typed), 292, tmp_path)
    for seconds, step, rate in (
        *((0.0, 0, 0.01), (0.1, 5, 0.055)),  # the warm-up counts steps
        *((49.0, 10, 0.1), (51.0, 10, 0.01), (49.0, 9000, 0.1), (51.0, 9000, 0.01)),
        (150.0, 99, 0.01),  # the last step began before the end
    ):
        training.seconds = seconds
        assert training.schedule(step)(step) == pytest.approx(rate)


def test_the_references_warm_up_within_the_first_epoch(data_settings, tmp_path):
    settings = compose(REFERENCES, data_settings, ["data=custom"])
    training = timed(settings, 292, tmp_path)
    assert training.schedule(0)(0) == pytest.approx(0.005 / 1000)
    training.seconds = 1.0
    assert training.schedule(34)(34) < 0.005
    assert training.schedule(35)(35) == pytest.approx(0.005)  # 36 steps of 8


def test_recipes_are_settings_of_ours(data_settings):
    ours = compose(RECOMMENDED, data_settings, ["data=custom", "precision=fp32"])
    theirs = compose(REFERENCES, data_settings, ["data=custom", "model=mobilenet_v2"])
    assert (theirs.model.head_depth, theirs.model.head_norm) == (4, "none")
    assert ours.precision == "fp32"  # typed later
    assert (theirs.optim.lr, theirs.optim.reference_batch) == (0.01, 16)
    assert theirs.optim.norm_weight_decay == theirs.optim.bias_weight_decay == 1e-4
    assert theirs.ema.decay is theirs.optim.max_grad_norm is None


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("model.head_depth=5", "model.head_depth must be at most 4"),
        ("model.head_channels=32", "model.head_channels must be model.fpn_channels=16"),
        ("model.relu_before_p7=false", "model.relu_before_p7 must be true"),
        ("matching.low_quality=false", "matching.low_quality must be true"),
        ("optim.accumulate=2", "optim.accumulate must be 1"),
    ],
)
def test_what_torchvisions_class_cannot_be_is_refused(data_settings, typed, message):
    with pytest.raises(ValueError, match=message):
        check_comparable(compose(SMALL, data_settings, [typed]))


def row(peer, seed, ap):
    numbers = dict.fromkeys(compare_peers.COLUMNS, ap)
    return {"peer": peer, "seed": seed, "step": 4, "seconds_per_step": 0.5, **numbers}


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


def run(folder, mode, *options, settings):
    return compare_peers.main([mode, *options, "--output", str(folder), "--", *settings])


@pytest.fixture
def settings(data_settings):
    return [*SMALL, *data_settings, "schedule.warmup_steps=0"]


def test_a_comparison_in_parts_gives_what_it_gives_at_once(tmp_path, settings, capsys):
    options = ("--steps", "4", "--seeds", "0", "--evaluations", "2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, "steps", *options, settings=settings) == 0
    assert "mean AP over 1 seed(s)" in capsys.readouterr().out

    statuses = []
    while 0 not in statuses:  # one step each
        statuses.append(run(parts, "steps", *options, "--stop-after", "1e-9", settings=settings))
    assert statuses == [compare_peers.NOT_FINISHED] * 8 + [0]
    results = [json.loads((folder / "results.json").read_text()) for folder in (whole, parts)]
    scores = [[(r["peer"], r["step"], r["AP"]) for r in result["rows"]] for result in results]
    assert scores[0] == scores[1]
    steps = [(peer, step) for peer, step, _ in scores[0]]
    assert steps == [(peer, step) for peer in ("retinanet", "torchvision") for step in (2, 4)]


def test_finished_trainings_are_kept_seeds_are_added_and_other_settings_refused(
    tmp_path, settings, monkeypatch, capsys
):
    assert run(tmp_path, "steps", "--steps", "1", "--seeds", "0", settings=settings) == 0
    made = []
    start = OurTraining.__init__

    def spy(self, settings, *rest):
        made.append(settings.seed)
        start(self, settings, *rest)

    monkeypatch.setattr(OurTraining, "__init__", spy)
    assert run(tmp_path, "steps", "--steps", "1", "--seeds", "0", "1", settings=settings) == 0
    assert made == [1]
    with (tmp_path / "results.csv").open() as file:
        rows = [(row["peer"], row["seed"]) for row in csv.DictReader(file)]
    assert rows == [(peer, seed) for seed in "01" for peer in ("retinanet", "torchvision")]
    assert (tmp_path / "ap.png").stat().st_size > 5000

    again = [*settings, "loss.gamma=1", "data.workers=1"]
    assert run(tmp_path, "steps", "--steps", "1", "--seeds", "0", settings=again) == 1
    error = capsys.readouterr().err
    assert "ValueError" in error
    assert "(settings.retinanet.loss.gamma, settings.torchvision.loss.gamma)" in error


def test_the_peers_take_turns(tmp_path, settings, monkeypatch):
    turns = []

    def turn(self, *_):
        turns.append((self.settings.seed, self.peer))
        self.rows.append({"AP": None, **row(self.peer, self.settings.seed, None)})
        return True

    monkeypatch.setattr(Training, "turn", turn)
    options = ("--steps", "9", "--evaluations", "3")
    assert run(tmp_path, "steps", *options, settings=settings) == 0
    assert turns == [(s, p) for s in (0, 1) for _ in range(3) for p in ("retinanet", "torchvision")]


@pytest.mark.slow
def test_time_from_the_command_line(tmp_path, settings, capsys):
    options = ("--minutes", "0.02", "--evaluations", "2", "--ours", "model.head_depth=1")
    common = [text for text in settings if not text.startswith(("optim.max", "ema"))]
    assert run(tmp_path, "time", *options, settings=common) == 0
    assert "Equal time: 0.02 minutes of training each" in capsys.readouterr().out
    result = json.loads((tmp_path / "results.json").read_text())
    rows = result["rows"]
    assert [row["peer"] for row in rows] == ["retinanet"] * 2 + ["torchvision"] * 2
    assert all(row["step"] >= 1 for row in rows)
    assert rows[1]["seconds"] >= 1.2 <= rows[3]["seconds"]
    depth = {peer: one["model"]["head_depth"] for peer, one in result["settings"].items()}
    assert depth == {"retinanet": 1, "torchvision": 4}


def test_mistakes_are_one_line(tmp_path, settings, capsys):
    assert run(tmp_path / "x", "steps", "--steps", "1", settings=[*settings, "loss.gama=1"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "loss.gamma" in lines[0]
    assert not (tmp_path / "x").exists()
