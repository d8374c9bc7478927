"""The forecast of the first loss: by hand, and what would balance it."""

import math
from types import SimpleNamespace

import pytest
import torch

from retinanet.cli.main import composer
from retinanet.config import TrainConfig
from retinanet.losses import focal_loss
from retinanet.tools.expected_loss import (
    ClassLoss,
    balancing_prior,
    expected_class_loss,
    indifferent_score,
)
from retinanet.tools.first_loss.forecast import (
    describe_alpha,
    describe_steps,
    first_step,
    forecast_loss,
)
from retinanet.tools.first_loss.survey import Survey
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


def test_equal_alphas_for_classes_are_one_alpha_and_none_is_twice_one_half():
    one = expected_class_loss(0.3, 1.0, 0.05, **COCO)
    assert expected_class_loss([0.3] * 80, 1.0, 0.05, **COCO).total == pytest.approx(one.total)
    half = expected_class_loss(0.5, 1.0, 0.05, **COCO)
    assert expected_class_loss(None, 1.0, 0.05, **COCO).total == pytest.approx(2 * half.total)


def test_without_positives_the_loss_is_divided_by_one():
    loss = expected_class_loss(0.25, 0.0, 0.5, num_classes=2, num_positives=0, num_background=3)
    assert loss == ClassLoss(0, pytest.approx(6 * 0.75 * math.log(2)))
    assert loss.ratio == math.inf


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_balancing_prior_balances(gamma):
    prior = balancing_prior(0.25, gamma, **COCO)
    assert expected_class_loss(0.25, gamma, prior, **COCO).ratio == pytest.approx(1, rel=1e-6)
    worse = expected_class_loss(0.25, gamma, min(2 * prior, 0.9), **COCO)
    assert worse.ratio > 1


# The lines of the log


def forecast(positives: float = 50.0, **settings) -> str:
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


def test_an_alpha_next_to_one_is_not_proposed():
    line = forecast(positives=1e-3, gamma=0.0, prior=0.99)
    assert "model.prior=" in line
    assert "loss.alpha=" not in line


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"positives": 0.0}])
def test_no_fix_is_given_where_nothing_can_be_balanced(settings):
    line = forecast(**settings)
    assert "warning" in line
    assert "model.prior=" not in line


def test_alpha_says_which_side_it_weighs():
    line = describe_alpha(0.25, ["cat"])
    assert "0.25 weighs y = 1" in line
    assert "0.75 weighs y = 0" in line
    assert "both weigh 1" in describe_alpha(None, ["cat"])
    assert "cat 0.5, dog 0.9" in describe_alpha([0.5, 0.9], ["cat", "dog"])


def settings_of(*overrides: str) -> TrainConfig:
    with composer("train") as reader:
        return reader.command(["data=shapes", "optim=sgd", *overrides]).settings


def steps_of(*overrides: str, total_steps: int = 1000) -> list[str]:
    return describe_steps(settings_of(*overrides), total_steps, 100)


def test_the_rate_says_where_it_comes_from():
    scaled = ["optim.lr=0.01", "optim.batch_size=4", "optim.reference_batch=16"]
    assert steps_of(*scaled)[:2] == [
        "steps      1000 of 4 images: 40 epochs",
        "lr         0.0025 = 0.01 x 4 images a step / 16",
    ]
    fixed = steps_of("optim.lr=0.01", "optim.batch_size=4", "optim.reference_batch=null")
    assert fixed[1] == "lr         0.01, not scaled to the 4 images of a step"


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


# The score of an anchor of which the network can tell nothing


@pytest.mark.parametrize("share", [0.5, 0.04, 1e-5])
@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.9])
def test_the_indifferent_score_of_cross_entropy_is_the_weighted_share(alpha, share):
    expected = share * alpha / (share * alpha + (1 - share) * (1 - alpha))
    assert indifferent_score(alpha, 0.0, share) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_weighting_by_frequency_makes_the_indifferent_score_a_half(gamma):
    assert indifferent_score(0.96, gamma, 0.04) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.75, 0.5), (0.5, 5.0)])
def test_the_loss_has_no_slope_at_the_indifferent_score(alpha, gamma):
    share = 200 / 5000
    p = torch.tensor(indifferent_score(alpha, gamma, share), dtype=torch.float64)
    logits = torch.full((5000, 1), torch.logit(p).item(), dtype=torch.float64, requires_grad=True)
    is_class = (torch.arange(5000) < 200)[:, None]
    loss = focal_loss(logits, is_class, alpha, gamma)
    loss.sum().backward()
    assert abs(logits.grad.sum().item()) < 1e-5 * logits.grad.abs().sum().item()
