"""The first loss: its closed form by hand, its forecast, and the survey of the training set."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from retinanet.cli.main import composer
from retinanet.data.coco import CocoData, read_coco
from retinanet.losses import focal_loss
from retinanet.matching import NEGATIVE, Matcher
from retinanet.model.anchors import AnchorGenerator
from retinanet.tools.expected_loss import (
    balancing_prior,
    expected_class_loss,
    indifferent_score,
)
from retinanet.tools.first_loss import (
    Survey,
    describe_alpha,
    describe_steps,
    describe_survey,
    first_step,
    forecast_loss,
    survey,
)
from retinanet.training.step_metrics import Means

COCO = {"num_classes": 80, "num_positives": 50, "num_background": 201_550}


@pytest.mark.parametrize(
    ("prior", "expected"), [(0.5, 41_900), (0.1, 255), (0.01, 1.372), (0.001, 1.724)]
)
def test_known_values_of_an_image_of_coco(prior, expected):
    assert expected_class_loss(0.25, 2.0, prior, **COCO).total == pytest.approx(expected, rel=2e-3)


def test_both_sides_by_hand():
    loss = expected_class_loss(0.25, 2.0, 0.1, num_classes=3, num_positives=2, num_background=10)
    assert loss.positives == pytest.approx(0.25 * 0.9**2 * -math.log(0.1))
    zeros = 2 * 2 + 10 * 3  # two positive anchors lack two classes, ten anchors lack three
    assert loss.background == pytest.approx(zeros * 0.75 * 0.1**2 * -math.log(0.9) / 2)
    assert loss.total == loss.positives + loss.background
    assert loss.ratio == pytest.approx(loss.background / loss.positives)
    # Without positives it is divided by 1.
    loss = expected_class_loss(0.25, 0.0, 0.5, num_classes=2, num_positives=0, num_background=3)
    assert (loss.positives, loss.ratio) == (0, math.inf)
    assert loss.background == pytest.approx(6 * 0.75 * math.log(2))


def test_equal_alphas_for_classes_are_one_alpha_and_none_is_twice_one_half():
    one = expected_class_loss(0.3, 1.0, 0.05, **COCO)
    assert expected_class_loss([0.3] * 80, 1.0, 0.05, **COCO).total == pytest.approx(one.total)
    half = expected_class_loss(0.5, 1.0, 0.05, **COCO)
    assert expected_class_loss(None, 1.0, 0.05, **COCO).total == pytest.approx(2 * half.total)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_balancing_prior_balances(gamma):
    prior = balancing_prior(0.25, gamma, **COCO)
    assert expected_class_loss(0.25, gamma, prior, **COCO).ratio == pytest.approx(1, rel=1e-6)
    assert expected_class_loss(0.25, gamma, min(2 * prior, 0.9), **COCO).ratio > 1


@pytest.mark.parametrize(("alpha", "share"), [(0.1, 0.5), (0.25, 0.04), (0.9, 1e-5)])
def test_the_indifferent_score_of_cross_entropy_is_the_weighted_share(alpha, share):
    expected = share * alpha / (share * alpha + (1 - share) * (1 - alpha))
    assert indifferent_score(alpha, 0.0, share) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_weighting_by_frequency_makes_the_indifferent_score_a_half(gamma):
    assert indifferent_score(0.96, gamma, 0.04) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.75, 0.5), (0.5, 5.0)])
def test_the_loss_has_no_slope_at_the_indifferent_score(alpha, gamma):
    p = torch.tensor(indifferent_score(alpha, gamma, 200 / 5000), dtype=torch.float64)
    logits = torch.full((5000, 1), torch.logit(p).item(), dtype=torch.float64, requires_grad=True)
    is_class = (torch.arange(5000) < 200)[:, None]
    focal_loss(logits, is_class, alpha, gamma).sum().backward()
    assert abs(logits.grad.sum().item()) < 1e-5 * logits.grad.abs().sum().item()


# The lines of the log


def forecast(positives=50.0, **settings):
    counts = Survey(1, 0, 5, 0, (5,), 201_600.0, positives, 201_550.0, 0.0)
    settings = {"alpha": 0.25, "gamma": 2.0, "prior": 0.01, **settings}
    return "\n".join(forecast_loss(counts, num_classes=80, **settings))


def test_the_papers_settings_are_balanced():
    assert forecast() == (
        "first loss class 1.372 (positives 1.128, background 0.2431) with alpha=0.25 gamma=2 "
        "pi=0.01: balanced"
    )


@pytest.mark.parametrize("prior", [0.05, 0.5])
def test_cross_entropy_with_a_high_prior_is_warned_of_with_a_fix_that_balances(prior):
    line = forecast(gamma=0.0, prior=prior)
    assert "background outweighs positives" in line
    proposed = float(line.partition("model.prior=")[2].split()[0])
    assert expected_class_loss(0.25, 0.0, proposed, **COCO).ratio == pytest.approx(1, rel=0.1)
    alpha = float(line.partition("loss.alpha=")[2].split()[0])
    assert alpha < 1
    assert expected_class_loss(alpha, 0.0, prior, **COCO).ratio == pytest.approx(1, rel=0.1)


def test_no_fix_is_proposed_that_balances_nothing():
    line = forecast(positives=1e-3, gamma=0.0, prior=0.99)  # an alpha next to 1
    assert "model.prior=" in line
    assert "loss.alpha=" not in line
    for settings in ({"alpha": 0.0}, {"positives": 0.0}):
        line = forecast(**settings)
        assert "warning" in line
        assert "model.prior=" not in line


def test_alpha_says_which_side_it_weighs():
    line = describe_alpha(0.25, ["cat"])
    assert "0.25 weighs y = 1" in line
    assert "0.75 weighs y = 0" in line
    assert "both weigh 1" in describe_alpha(None, ["cat"])
    assert "cat 0.5, dog 0.9" in describe_alpha([0.5, 0.9], ["cat", "dog"])


def settings_of(*overrides):
    with composer("train") as reader:
        return reader.command(["data=shapes", "optim=sgd", *overrides]).settings


def steps_of(*overrides, total_steps=1000):
    return describe_steps(settings_of(*overrides), total_steps, 100)


def test_the_rate_says_where_it_comes_from():
    scaled = ["optim.lr=0.01", "optim.batch_size=4", "optim.reference_batch=16"]
    assert steps_of(*scaled)[:2] == [
        "steps      1000 of 4 images: 40 epochs",
        "lr         0.0025 = 0.01 x 4 images a step / 16",
    ]
    fixed = steps_of("optim.lr=0.01", "optim.batch_size=4", "optim.reference_batch=null")
    assert fixed[1] == "lr         0.01, not scaled to the 4 images of a step"


def test_epochs_are_those_of_the_rows_also_where_a_step_takes_more_than_all_images():
    # 12 whole steps of 8 images make an epoch of 100; what is left over waits for the next.
    assert steps_of("optim.batch_size=8", total_steps=24)[0].endswith(": 2 epochs")
    steps, _, warning, *_ = steps_of("optim.batch_size=250", total_steps=2)
    assert steps == "steps      2 of 250 images: 2 epochs"
    assert "there are 100: each is in every step 2.5 times; lower optim.batch_size" in warning


def test_a_run_that_is_all_warm_up_is_warned_of():
    assert len(steps_of("schedule.warmup_steps=250")) == 2
    assert steps_of("schedule.warmup_steps=251")[2].endswith("set about 50")
    assert steps_of("schedule.warmup_steps=1", total_steps=2)[2].endswith("set about 0")


@pytest.mark.parametrize(
    ("loss", "positives", "words"),
    [
        (1.372 * 1.05, 50, "as expected"),
        (1.372 * 1.5, 50, "NOT as expected"),
        # Of background alone it is the spread of the first logits.
        (0.008, 0, "no object in this batch, so not compared"),
    ],
)
def test_the_first_loss_is_compared_with_its_closed_form(loss, positives, words):
    means = Means(1, 1, loss, 0.0, 0.0, positives, 201_550.0, 1.0, [], [])
    data = SimpleNamespace(category_names=("cat",) * 80)
    trainer = SimpleNamespace(
        model=SimpleNamespace(num_classes=80), loss=SimpleNamespace(fused=True)
    )
    line = first_step(settings_of(), data, trainer, means)
    assert line.split(": ")[1].startswith(words)


# The survey


def write_set(root, boxes, names):
    """Images of 100 x 200 with boxes of (category, x, y, w, h, crowd)."""
    annotations = [
        {"image_id": i, "category_id": category, "bbox": box, "iscrowd": crowd, "area": 1}
        for i, of_image in enumerate(boxes)
        for category, *box, crowd in of_image
    ]
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 200}
            for i in range(len(boxes))
        ],
        "annotations": [{"id": n, **a} for n, a in enumerate(annotations, start=1)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, start=1)],
    }
    (root / "a.json").write_text(json.dumps(content))
    return read_coco(root / "a.json", root)


def look(data, min_size=100):
    counts = survey(data, AnchorGenerator(), Matcher(), min_size=min_size, max_size=1000)
    return counts, "\n".join(describe_survey(counts, data.category_names))


@pytest.fixture
def data(tmp_path):
    objects = [
        [(1, 10, 10, 60, 60, 0), (2, 100, 20, 5, 5, 0)],
        [],
        [(1, 0, 0, 200, 100, 1), (1, 20, 20, 40, 40, 0), (1, 20, 20, 0, 40, 0)],
    ]
    return write_set(tmp_path, objects, ("cat", "dog", "cow"))


def test_counts_by_hand(data):
    counts, lines = look(data)
    assert counts[:4] == (3, 1, 3, 1)
    assert counts.class_counts == (2, 1, 0)
    assert "3 (1 without objects), 3 boxes, 1 crowd" in lines
    assert "3: cat 2, dog 1, cow 0" in lines
    assert "1 classes have no box to learn from: cow" in lines


def test_anchors_are_counted_as_training_matches_them(data):
    counts, _ = look(data)
    anchors = AnchorGenerator()(128, 224)  # 100 x 200, padded
    labels = [
        Matcher()(anchors, *(part[None] for part in (*data.boxes(i), data.crowds(i)))).label
        for i in range(3)
    ]
    positives = sum(int((label >= 0).sum()) for label in labels)
    assert counts.anchors == len(anchors)
    assert counts.positives == pytest.approx(positives / 3)
    background = sum(int((label == NEGATIVE).sum()) for label in labels)
    assert counts.background == pytest.approx(background / 3)
    assert positives > 0


def test_boxes_without_a_good_anchor_depend_on_the_training_size(data):
    # Of three boxes the one of 5 px has none; eight times as large, it has.
    counts, lines = look(data)
    assert counts.uncovered == pytest.approx(1 / 3)
    assert "33.3 % of the boxes" in lines
    assert look(data, min_size=800)[0].uncovered == 0


def test_boxes_that_vanish_at_the_training_size_have_no_positives(tmp_path):
    data = write_set(tmp_path, [[(1, 10, 10, 5, 5, 0), (1, 50, 50, 0.9, 9, 0)]], ("cat",))
    assert look(data, min_size=32)[0].positives > 0  # 5 px are 1.6 px
    assert look(data, min_size=16)[0].positives == 0  # 5 px are 0.8 px


def test_a_set_without_objects_can_be_described(tmp_path):
    counts, lines = look(write_set(tmp_path, [[], []], ("cat",)))
    assert (counts.num_boxes, counts.positives, counts.uncovered) == (0, 0, 0)
    assert "2 without objects" in lines


def test_large_sets_are_sampled_and_many_classes_cut_short(tmp_path, monkeypatch):
    names = tuple(f"class_{i}" for i in range(12))
    data = write_set(tmp_path, [[(3, 10, 10, 60, 60, 0)]] * 40, names)
    monkeypatch.setattr("retinanet.tools.first_loss.SAMPLED_IMAGES", 5)
    seen = []
    boxes = CocoData.boxes
    monkeypatch.setattr(CocoData, "boxes", lambda self, i: seen.append(i) or boxes(self, i))
    counts, lines = look(data)
    assert sorted(seen) == [0, 9, 19, 29, 39]
    assert counts.num_boxes == 40
    assert "and 4 more" in lines
