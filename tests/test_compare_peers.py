"""The comparison with torchvision's RetinaNet class is fair: same input, network, step, scores."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet import build
from retinanet.training.optim import Schedule
from scripts import compare_peers
from scripts.peers import contestants, outcome
from scripts.peers.contestants import Ours, PlainLoop, SameBatches
from scripts.peers.feeds import Setup, collect, normalized, targets_of, train_batches
from scripts.peers.plain import PlainImages, train_loader
from scripts.peers.rates import TICKS, RatesByTime, make_rates
from scripts.peers.recipes import RECOMMENDED, REFERENCES, compose
from scripts.peers.torchvision_model import check_comparable, torchvision_model

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
def folder(tmp_path_factory):
    """Six pictures of a square on noise, two of them portrait; one without a box."""
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
    return root


@pytest.fixture(scope="module")
def data_settings(folder):
    parts = {"images": ".", "annotations": "boxes.json"}
    paths = [f"data.{split}_{k}={v}" for split in ("train", "val") for k, v in parts.items()]
    return [f"data.root={folder}", *paths]


@pytest.fixture
def setup(data_settings):
    def make(*typed: str) -> Setup:
        settings = compose(SMALL, data_settings, typed)
        splits = build.build_splits(settings.data)
        rates = make_rates(settings, total_steps=4, clock=lambda: 0.0, num_images=6)
        return Setup(settings, *splits, torch.device("cpu"), rates)

    return make


def first_batch(setup):
    return next(iter(train_batches(setup, 0)))


def test_the_same_pixels_enter_both_trunks(setup):
    made = setup("optim.batch_size=6")  # landscape and portrait, so both sides are padded
    peer, batch = SameBatches(made), first_batch(made)
    assert (batch.sizes.amin(0) < torch.tensor(batch.images.shape[-2:])).all()
    entered = []
    for trunk in (peer.trainer.model.backbone, peer.ours.backbone):
        trunk.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    peer.trainer.model.train()
    peer.trainer.model(normalized(batch), targets_of(batch))
    peer.ours(batch.images, batch.sizes)
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
    settings = setup(*typed).settings
    ours = build.build_model(settings, 2).eval()
    theirs = torchvision_model(settings, ours, same_input=True).eval()
    pixels = torch.randn(2, 3, 128, 128)
    logits, deltas = ours.predict(pixels)
    outputs = theirs.head(list(theirs.backbone(pixels).values()))
    torch.testing.assert_close(outputs["cls_logits"], logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs["bbox_regression"], deltas, rtol=1e-4, atol=1e-5)
    count = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, theirs)]
    assert count[0] == count[1]


def test_both_match_against_the_same_anchors(setup):
    settings = setup().settings
    ours = build.build_model(settings, 2)
    theirs = torchvision_model(settings, ours, same_input=True)
    images, _ = theirs.transform([torch.zeros(3, 128, 160)])
    (anchors,) = theirs.anchor_generator(images, [torch.zeros(1, dtype=torch.bfloat16)])
    assert anchors.dtype == torch.float32
    assert torch.equal(anchors, ours.anchors(128, 160))


def test_the_plain_loop_has_torchvisions_rounded_anchors(setup):
    settings = setup().settings
    theirs = torchvision_model(settings, build.build_model(settings, 2), same_input=False)
    assert theirs.anchor_generator.sizes[0] == (32, 40, 50)
    assert theirs.transform.min_size == (96,)
    assert theirs.transform.size_divisible == 32


def test_with_the_same_divisor_one_step_makes_the_same_weights(setup):
    # torchvision divides by the positives of each image; so can we, and then nothing differs.
    made = setup("loss.normalizer=image", "schedule.warmup_steps=0", "optim.lr=1.0")
    ours, theirs = Ours(made), SameBatches(made)
    before = [p.clone() for p in theirs.trainer.model.parameters()]
    batch = first_batch(made)
    ours.one_step(batch)
    theirs.one_step(batch)
    expected = torchvision_model(made.settings, ours.trainer.model, same_input=True)
    moved = 0.0
    for a, b, start in zip(
        theirs.trainer.model.parameters(), expected.parameters(), before, strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)
        moved = max(moved, (a - start).abs().max().item())
    assert moved > 1e-2


def test_with_the_same_weights_both_detect_the_same(setup):
    made = setup()
    ours, theirs = Ours(made), SameBatches(made)
    mine, other = ours.detect(), theirs.detect()
    assert mine.evaluated.tolist() == other.evaluated.tolist() == [10, 11, 12, 13, 14, 15]
    assert len(mine) > 0
    # Untrained, so many scores are equal: compare as sets of the strongest.
    np.testing.assert_allclose(np.sort(mine.scores)[-50:], np.sort(other.scores)[-50:], atol=1e-5)


def test_both_get_the_same_batches_wherever_they_start(setup):
    made = setup()
    several = [b.image_ids.tolist() for b, _ in zip(train_batches(made, 0), range(7), strict=False)]
    later = [b.image_ids.tolist() for b, _ in zip(train_batches(made, 4), range(3), strict=False)]
    assert several[4:] == later


def test_plain_images_flip_with_their_boxes(setup):
    data = setup().train
    (image, target), (flipped, moved) = (PlainImages(data, p)[4] for p in (0.0, 1.0))
    assert image.max() == 1
    for pixels, (box,) in ((image, target["boxes"]), (flipped, moved["boxes"])):
        x1, y1, x2, y2 = box.int().tolist()
        assert (pixels[:, y1:y2, x1:x2] == 1).all()
        assert (pixels == 1).sum() == 3 * (x2 - x1) * (y2 - y1)


def test_the_plain_loop_sees_every_image_with_a_box_once_an_epoch(setup):
    loader = train_loader(setup().train, flip=0.5, batch_size=2, seed=0, step=0, workers=0)
    epochs = [t["index"].item() for (_, ts), _ in zip(loader, range(4), strict=False) for t in ts]
    for epoch in (epochs[:4], epochs[4:]):  # five images in batches of two: one is left out
        assert len(set(epoch)) == 4
        assert 3 not in epoch


def test_the_plain_loop_learns(setup):
    made = setup("optim.lr=0.05", "schedule.warmup_steps=0", "schedule.decay=constant")
    peer = PlainLoop(made)
    peer.trainer.model.train()
    images, targets = next(iter(peer.batches()))
    losses = [sum(peer.trainer.model(images, targets).values())]
    for _ in range(4):
        peer.one_step((images, targets))
    losses.append(sum(peer.trainer.model(images, targets).values()))
    assert losses[1] < 0.9 * losses[0]
    assert peer.detect().evaluated.tolist() == [10, 11, 12, 13, 14, 15]


def test_a_loss_that_is_not_finite_stops_the_peer(setup):
    made = setup()
    peer = SameBatches(made)
    with torch.no_grad():
        peer.trainer.model.head.classification_head.cls_logits.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="torchvision's loss is nan at step 0"):
        peer.one_step(first_batch(made))


def test_rates_by_time_end_with_the_time():
    now = [0.0]
    decay = Schedule(lr=0.1, total_steps=TICKS, decay="steps", milestones=[0.5])
    rates = RatesByTime(decay, lambda: now[0], warmup_steps=10, factor=0.1)
    assert rates(0) == pytest.approx(0.01)
    assert rates(5) == pytest.approx(0.055)
    now[0] = 0.49
    assert rates(10) == pytest.approx(0.1)
    now[0] = 0.51
    assert rates(10) == pytest.approx(0.01)
    now[0] = 1.5  # the last step began before the end
    assert rates(99) == pytest.approx(0.01)


def test_the_references_warm_up_within_the_first_epoch(data_settings):
    settings = compose(REFERENCES, data_settings, ["data=custom"])
    rates = make_rates(settings, total_steps=None, clock=lambda: 0.0, num_images=292)
    assert rates.warmup_steps == 35  # 36 steps of 8
    assert rates(0) == pytest.approx(0.005 / 1000)
    assert rates(35) == pytest.approx(0.005)


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


def test_detections_are_collected_as_the_evaluator_takes_them():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 2.0, 4.0, 8.0]])
    one = contestants.Detections(boxes, torch.tensor([0.9, 0.2]), torch.tensor([1, 0]))
    none = contestants.Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
    found = collect([(7, one), (3, none)], cap=2)
    assert found.boxes.tolist() == [[0, 0, 1, 1], [1, 2, 3, 6]]
    assert (found.image_ids.tolist(), found.evaluated.tolist()) == ([7, 7], [3, 7])
    assert found.num_capped == 1


def row(peer, seed, ap):
    numbers = dict.fromkeys(outcome.COLUMNS, ap)
    return {"peer": peer, "seed": seed, "step": 4, "seconds_per_step": 0.5, **numbers}


def test_the_verdict_compares_means_over_common_seeds():
    rows = [row("a", 0, 0.3), row("b", 0, 0.2), row("a", 1, 0.4), row("b", 1, 0.25)]
    lines = outcome.verdict([*rows, row("a", 2, 0.9)])
    assert lines[0] == "mean AP over 2 seed(s): a 0.3500, b 0.2250: +0.1250"
    assert "up to 0.1000 apart" in lines[1]
    assert outcome.verdict(rows[:1]) == []
    # What has no AP is no AP of 0: that seed has no pair.
    assert outcome.verdict([*rows, row("a", 3, 0.9), row("b", 3, None)])[0] == lines[0]


def test_the_table_shows_the_last_evaluation_and_undefined_numbers():
    early = row("a", 0, 0.1)
    last = {**row("a", 0, 0.2), "APs": None}
    lines = outcome.table([early, last])
    assert lines[1].split() == [
        "a",
        "0",
        "4",
        "0.50",
        "0.200",
        "0.200",
        "0.200",
        "n/a",
        *["0.200"] * 2,
    ]


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


def test_what_is_finished_is_reused_and_seeds_can_be_added(tmp_path, settings, monkeypatch):
    assert run(tmp_path, "steps", "--steps", "1", "--seeds", "0", settings=settings) == 0
    made = []
    start = contestants.Ours.__init__

    def spy(self, setup):
        made.append(setup.settings.seed)
        start(self, setup)

    monkeypatch.setattr(contestants.Ours, "__init__", spy)
    assert run(tmp_path, "steps", "--steps", "1", "--seeds", "0", "1", settings=settings) == 0
    assert made == [1]
    with (tmp_path / "results.csv").open() as file:
        rows = [(row["peer"], row["seed"]) for row in csv.DictReader(file)]
    assert rows == [(peer, seed) for seed in "01" for peer in ("retinanet", "torchvision")]
    assert (tmp_path / "ap.png").stat().st_size > 5000


def test_another_comparison_in_the_same_folder_is_refused(tmp_path, settings, capsys):
    assert run(tmp_path, "steps", "--steps", "1", "--seeds", "0", settings=settings) == 0
    again = [*settings, "loss.gamma=1", "data.workers=1"]
    assert run(tmp_path, "steps", "--steps", "1", "--seeds", "0", settings=again) == 1
    error = capsys.readouterr().err
    assert "ValueError" in error
    assert "(settings.retinanet.loss.gamma, settings.torchvision.loss.gamma)" in error


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


def test_the_peers_take_turns(tmp_path):
    length = compare_peers.Length("steps", 9, 3)
    assert [length.end_of(turn) for turn in range(3)] == [3, 6, 9]
    common = {"length": length, "batch_size": 2, "make": None, "score": None}
    path = tmp_path / "state.pt"
    trainings = [
        compare_peers.Training(peer, seed, path=path, **common) for seed in (0, 1) for peer in "ab"
    ]
    trainings[0].rows.append({})
    order = [(t.seed, t.peer) for t in compare_peers.in_turns(trainings, 3)]
    assert order[:5] == [(0, "b"), (0, "a"), (0, "b"), (0, "a"), (0, "b")]
    assert order[5:] == [(1, "a"), (1, "b")] * 3


def test_mistakes_are_one_line(tmp_path, settings, capsys):
    assert run(tmp_path / "x", "steps", "--steps", "1", settings=[*settings, "loss.gama=1"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "loss.gamma" in lines[0]
    assert not (tmp_path / "x").exists()
