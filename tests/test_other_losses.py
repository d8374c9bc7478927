"""What the paper compares focal loss with, and what people come from: FL*, softmax, OHEM."""

import math

import pytest
import torch
import torch.nn.functional as F

from retinanet import other_losses
from retinanet.boxes import encode_boxes
from retinanet.losses import RetinaNetLoss, focal_loss
from retinanet.matching import IGNORED, NEGATIVE, Match
from retinanet.other_losses import HardAnchors, focal_star_loss, softmax_focal_loss

# FL*


def test_the_other_form_by_hand():
    # x = 1.5 and the class is present: -0.25 ln sigmoid(2 * 1.5 + 1) / 2.
    loss = focal_star_loss(torch.tensor([1.5, 1.5]), torch.tensor([True, False]))
    expected = [0.25 * math.log1p(math.exp(-4.0)) / 2, 0.75 * math.log1p(math.exp(2.0)) / 2]
    assert loss.tolist() == pytest.approx(expected)


def test_without_steepness_and_shift_it_is_the_cross_entropy():
    x = torch.linspace(-20, 20, 81, dtype=torch.float64)
    present = torch.arange(81) % 2 == 0
    loss = focal_star_loss(x, present, alpha=None, gamma=1.0, beta=0.0)
    expected = F.binary_cross_entropy_with_logits(x, present.double(), reduction="none")
    torch.testing.assert_close(loss, expected)


def test_both_forms_forgive_easy_anchors_more_than_cross_entropy():
    # Figure 5 of the paper: below cross entropy from x_t > 0, and close to each other.
    easy, present = torch.linspace(1, 6, 20), torch.ones(20, dtype=torch.bool)
    entropy = focal_loss(easy, present, None, 0.0)
    star = focal_star_loss(easy, present, None, gamma=2.0, beta=1.0)
    focal = focal_loss(easy, present, None, 2.0)
    assert (star < 0.2 * entropy).all()
    assert (focal < 0.2 * entropy).all()


def test_its_gradient_is_finite_everywhere():
    logits = torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4], requires_grad=True)
    focal_star_loss(logits, torch.tensor([True, False, True, True, False])).sum().backward()
    assert logits.grad.isfinite().all()


# Softmax


def samples(classes=4, count=200):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64) * 3
    return logits.requires_grad_(), torch.randint(0, classes, (count,), generator=generator)


@pytest.mark.parametrize("weight", [None, [0.1, 1.0, 2.0, 0.0]])
def test_gamma_0_is_the_cross_entropy_and_its_gradient_weighted_or_not(weight):
    logits, target = samples()
    weight = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    ours = softmax_focal_loss(logits, target, weight, gamma=0.0)
    theirs = F.cross_entropy(logits, target, weight, reduction="none")
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_the_equation(gamma):
    logits, target = samples()
    p = logits.softmax(-1).gather(-1, target[:, None]).squeeze(1)
    expected = -((1 - p) ** gamma) * p.log()
    torch.testing.assert_close(softmax_focal_loss(logits, target, gamma=gamma), expected)


@pytest.mark.parametrize("background", [0, 3])
def test_one_alpha_is_that_of_foreground(background):
    logits, target = samples()
    loss = softmax_focal_loss(logits, target, 0.25, background=background)
    weight = torch.where(target == background, 0.75, 0.25).double()
    torch.testing.assert_close(loss, weight * softmax_focal_loss(logits, target))


def test_two_classes_are_the_sigmoid_of_their_difference():
    # background, object: p = sigmoid(x1 - x0), with the same alpha on the same side.
    logits, target = samples(classes=2)
    expected = focal_loss(logits[:, 1] - logits[:, 0], target == 1, 0.25)
    torch.testing.assert_close(softmax_focal_loss(logits, target, 0.25), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 2.0])
def test_the_gradient_is_finite_for_extreme_logits(gamma):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    softmax_focal_loss(logits, torch.tensor([0, 0]), gamma=gamma).sum().backward()
    assert logits.grad.isfinite().all()


def test_images_of_classes_work_as_samples_do():
    logits, target = samples(count=24)
    loss = softmax_focal_loss(logits.view(2, 3, 4, 4), target.view(2, 3, 4))
    torch.testing.assert_close(loss.flatten(), softmax_focal_loss(logits, target))


@pytest.mark.parametrize(
    ("classes", "settings", "message"),
    [
        (1, {}, "at least 2 classes, got 1"),
        (3, {"alpha": 0.25, "background": None}, "name the background class"),
        (3, {"alpha": torch.ones(2)}, r"shape \(2,\) for 3 classes"),
        (3, {"alpha": 1.5}, r"must lie in \[0, 1\], got 1.5"),
        (3, {"alpha": 0.5, "background": 7}, "background=7 is none of 3 classes"),
        (3, {"alpha": 0.5, "background": 3}, "background=3 is none of 3 classes"),
        (3, {"gamma": -1.0}, "gamma must be at least 0, got -1"),
    ],
)
def test_what_has_no_meaning_is_refused(classes, settings, message):
    with pytest.raises(ValueError, match=message):
        softmax_focal_loss(torch.zeros(1, classes), torch.zeros(1).long(), **settings)


@pytest.mark.parametrize(("dtype", "offset"), [(torch.bfloat16, 0), (torch.float32, 1e5)])
def test_softmax_focal_loss_is_as_exact_as_the_cross_entropy(dtype, offset):
    logits, target = (torch.randn(50, 4) + offset).to(dtype), torch.arange(50) % 4
    exact = F.cross_entropy(logits.double(), target, reduction="none").float()
    torch.testing.assert_close(softmax_focal_loss(logits, target, gamma=0.0), exact)


# OHEM


def spread_boxes(count):
    """Boxes that do not meet."""
    low = torch.arange(count)[:, None] * torch.tensor([20.0, 0.0])
    return torch.cat([low, low + 10], dim=1)[None]


def kept_of(losses, boxes=None, positives=(), **settings):
    """Indices of the anchors of one image that count."""
    losses = torch.as_tensor(losses, dtype=torch.float32)
    positive = torch.zeros(1, len(losses), dtype=torch.bool)
    positive[0, list(positives)] = True
    boxes = spread_boxes(len(losses)) if boxes is None else boxes
    return HardAnchors(**settings)(losses[None], boxes, positive)[0].nonzero().flatten().tolist()


def test_the_hardest_anchors_are_chosen():
    assert kept_of([0.1, 5.0, 0.3, 4.0, 0.2], anchors=2) == [1, 3]


def test_of_anchors_on_one_place_the_hardest_counts():
    boxes = spread_boxes(3)
    boxes[0, 1] = boxes[0, 0] + 1  # IoU 81 / 119
    assert kept_of([4.0, 5.0, 1.0], boxes, anchors=2, nms_iou=0.5) == [1, 2]
    assert kept_of([4.0, 5.0, 1.0], boxes, anchors=2, nms_iou=0.7) == [0, 1]


def test_the_ratio_takes_three_of_background_for_each_positive():
    settings = {"losses": range(12, 0, -1), "ratio": 3.0}
    assert kept_of(**settings, positives=[8, 9], anchors=8) == [0, 1, 2, 3, 4, 5, 8, 9]
    # No more positives than a quarter, no more of all than asked for, and some without positives.
    assert kept_of(**settings, positives=[7, 8, 9], anchors=8) == [0, 1, 2, 3, 4, 5, 7, 8]
    assert kept_of(**settings, anchors=8) == [0, 1, 2]
    assert kept_of(**settings, anchors=1) == [0]


def test_easy_positives_are_candidates_too(monkeypatch):
    monkeypatch.setattr(other_losses, "CANDIDATES", 4)
    losses = [0.1, 0.2, 5.0, 4.0, 3.0, 2.0, 1.0]
    assert kept_of(losses, positives=[0, 1], anchors=8, ratio=3.0)[:4] == [0, 1, 2, 3]


def test_where_the_hardest_are_all_on_one_place_easier_ones_fill_up():
    # More on one place than NMS looks at first.
    boxes = spread_boxes(2).repeat_interleave(torch.tensor([20, 1]), dim=1)
    assert kept_of(range(21, 0, -1), boxes, anchors=2) == [0, 20]


@pytest.mark.parametrize("nms_iou", [0.3, 0.7])
def test_of_many_anchors_the_same_are_kept_as_by_one_long_nms(nms_iou, monkeypatch):
    low = 40 * torch.rand(1, 300, 2)
    boxes = torch.cat([low, low + 5 + 30 * torch.rand(1, 300, 2)], dim=-1)
    arguments = {"losses": torch.rand(300), "boxes": boxes, "anchors": 10, "nms_iou": nms_iou}
    short = kept_of(**arguments)
    monkeypatch.setattr(other_losses, "CANDIDATES_FOR_EACH", 300)
    assert short == kept_of(**arguments)


def test_a_number_of_anchors_out_of_range_is_refused():
    with pytest.raises(ValueError, match="loss.ohem_anchors must lie in"):
        HardAnchors(anchors=0)


def loss_of(name, logits, labels, **settings):
    label = torch.tensor(labels)
    anchors = spread_boxes(label.shape[1])[0]
    match = Match(label, anchors.expand(len(label), -1, -1))
    loss = RetinaNetLoss(name=name, **settings)
    deltas = encode_boxes(match.box, anchors)
    return loss(logits, deltas, anchors, match, *loss.divisors([match]))["class"]


def test_easy_and_ignored_anchors_have_no_gradient():
    logits = torch.tensor([[[9.0], [3.0], [1.0], [-5.0]]], requires_grad=True)
    labels = [[IGNORED, NEGATIVE, NEGATIVE, 0]]
    loss = loss_of("ohem", logits, labels, alpha=None, gamma=0.0, ohem_anchors=2)
    loss.backward()
    assert (logits.grad.flatten() != 0).tolist() == [False, True, False, True]
    expected = F.softplus(torch.tensor([3.0, 5.0])).sum()  # cross entropy, one positive
    torch.testing.assert_close(loss, expected)


def test_the_sum_is_divided_by_the_positives_that_are_kept():
    # Three positives on one place: NMS keeps one of them.
    label, anchors = torch.zeros(1, 3, dtype=torch.int64), spread_boxes(1)[0].repeat(3, 1)
    match = Match(label, anchors[None])
    loss = RetinaNetLoss(name="ohem", alpha=None, ohem_anchors=3)
    logits = torch.tensor([[[-1.0], [-2.0], [-3.0]]])
    losses = loss(logits, torch.zeros(1, 3, 4), anchors, match, *loss.divisors([match]))
    torch.testing.assert_close(losses["class"], F.softplus(torch.tensor(3.0)))


@pytest.mark.parametrize("labels", [[NEGATIVE, NEGATIVE], [NEGATIVE, 0]])
def test_where_no_positive_is_kept_the_hardest_background_counts_once(labels):
    # Background at 3, and a positive that is easy or none: the divisor is 1.
    logits = torch.tensor([[[3.0], [2.0]]])
    loss = loss_of("ohem", logits, [labels], alpha=None, ohem_anchors=1)
    torch.testing.assert_close(loss, F.softplus(torch.tensor(3.0)))


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_with_room_for_all_anchors_ohem_is_the_cross_entropy_weighted_by_alpha(alpha):
    logits = torch.randn(2, 6, 3)
    labels = [[0, NEGATIVE, 2, NEGATIVE, IGNORED, 1], [NEGATIVE] * 6]
    ohem = loss_of("ohem", logits, labels, alpha=alpha, ohem_anchors=6)
    torch.testing.assert_close(ohem, loss_of("focal", logits, labels, alpha=alpha, gamma=0.0))


def test_the_name_reaches_the_loss():
    logits, labels = torch.randn(1, 4, 2), [[0, NEGATIVE, NEGATIVE, 1]]
    star = loss_of("focal_star", logits, labels, gamma=4.0, star_beta=0.0)
    is_class = torch.tensor(labels)[..., None] == torch.arange(2)
    expected = focal_star_loss(logits, is_class, 0.25, 4.0, 0.0).sum() / 2
    torch.testing.assert_close(star, expected)
