"""Focal loss and box losses: by hand, by limit, by gradient, by torchvision, by parts of a step."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor
from torchvision.models.detection.retinanet import RetinaNetClassificationHead

from retinanet import losses
from retinanet.boxes import decode_boxes, encode_boxes
from retinanet.fast.focal import is_equal
from retinanet.losses import AVERAGE_START, RetinaNetLoss, box_loss, focal_loss
from retinanet.matching import IGNORED, NEGATIVE, Match
from retinanet.model.anchors import AnchorGenerator
from retinanet.tools.expected_loss import expected_class_loss

TRUE, FALSE = torch.tensor([True]), torch.tensor([False])
IOU_LOSSES = {
    "giou": torchvision.ops.generalized_box_iou_loss,
    "diou": torchvision.ops.distance_box_iou_loss,
    "ciou": torchvision.ops.complete_box_iou_loss,
}
KINDS = ["l1", "smooth_l1", *IOU_LOSSES]
NORMALIZERS = ["batch", "image", "ema"]


def make_match(labels: list[list[int]] | Tensor) -> tuple[Tensor, Match]:
    """Anchors (A, 4) in a row, and a match whose objects lie 2 px right of their anchors."""
    label = torch.as_tensor(labels)
    low = torch.arange(label.shape[1])[:, None] * torch.tensor([40.0, 0.0])
    anchors = torch.cat([low, low + 32], dim=1)
    shift = torch.tensor([2.0, 0.0, 2.0, 0.0])
    return anchors, Match(label, torch.where((label >= 0)[..., None], anchors + shift, anchors))


def run_loss(loss: RetinaNetLoss, logits: Tensor, deltas: Tensor | None, labels) -> dict:
    anchors, match = make_match(labels)
    deltas = torch.zeros(*match.box.shape) if deltas is None else deltas
    return loss(logits, deltas, anchors, match, *loss.divisors([match]))


# Focal loss


def test_value_by_hand():
    # p = 0.9 and the class is present: -0.25 * (1 - 0.9)^2 * ln 0.9.
    logit = torch.tensor([math.log(0.9 / 0.1)])
    assert focal_loss(logit, TRUE).item() == pytest.approx(-0.25 * 0.1**2 * math.log(0.9))
    # The class is absent: -0.75 * 0.9^2 * ln 0.1.
    assert focal_loss(logit, FALSE).item() == pytest.approx(-0.75 * 0.9**2 * math.log(0.1))


@pytest.mark.parametrize("gamma", [0, 1, 2, 5])
@pytest.mark.parametrize("alpha", [0.25, 0.0, 0.9, 1.0])
def test_equal_to_torchvision_in_float64_with_its_gradient(gamma, alpha):
    logits = torch.linspace(-30, 30, 121, dtype=torch.float64).repeat(2).requires_grad_()
    is_class = torch.arange(242) < 121
    ours = focal_loss(logits, is_class, alpha, gamma)
    theirs = torchvision.ops.sigmoid_focal_loss(logits, is_class.double(), alpha, gamma)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("alpha", "weight"), [(0.5, 0.5), (None, 1.0)])
def test_gamma_zero_is_the_cross_entropy_and_without_alpha_both_sides_weigh_one(alpha, weight):
    logits = torch.linspace(-8, 8, 33)
    is_class = torch.arange(33) % 2 == 0
    entropy = F.binary_cross_entropy_with_logits(logits, is_class.float(), reduction="none")
    torch.testing.assert_close(focal_loss(logits, is_class, alpha, 0), weight * entropy)
    halves = focal_loss(logits, is_class, 0.5, 1.5)
    torch.testing.assert_close(focal_loss(logits, is_class, alpha, 1.5), 2 * weight * halves)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("is_class", [TRUE, FALSE])
def test_value_and_gradient_are_finite_for_extreme_logits(gamma, is_class):
    # torchvision's gradient is nan from 120 on for gamma below 1.
    logits = torch.tensor([-3e38, -1e4, -120.0, -20.0, 0.0, 20.0, 120.0, 1e4, 3e38])
    logits.requires_grad_()
    loss = focal_loss(logits, is_class, gamma=gamma)
    loss.clamp(max=1e5).sum().backward()
    assert loss.isfinite().all()
    assert (loss >= 0).all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.5, 2.0])
def test_the_gradient_is_the_slope(gamma):
    logits = torch.linspace(-6, 6, 9, dtype=torch.float64, requires_grad=True)
    is_class = torch.arange(9) % 2 == 0
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, is_class, 0.25, gamma), logits)


@pytest.mark.parametrize(("alpha", "silent"), [(0.0, TRUE), (1.0, FALSE)])
def test_alpha_0_and_1_silence_one_side_exactly(alpha, silent):
    logits = torch.tensor([-50.0, -1.0, 0.0, 3.0, 50.0], requires_grad=True)
    loss = focal_loss(logits, silent.expand(5), alpha=alpha)
    loss.sum().backward()
    assert (loss == 0).all()
    assert (logits.grad == 0).all()
    assert (focal_loss(logits, ~silent.expand(5), alpha=alpha) > 0)[1:4].all()


def test_every_class_may_have_its_own_alpha():
    logits, is_class, alphas = torch.randn(6, 3), torch.rand(6, 3) < 0.5, [0.1, 0.5, 0.9]
    loss = focal_loss(logits, is_class, torch.tensor(alphas))
    for k, alpha in enumerate(alphas):
        torch.testing.assert_close(loss[:, k], focal_loss(logits[:, k], is_class[:, k], alpha))


# The loss before the first step


@pytest.mark.parametrize(
    ("prior", "expected"), [(0.5, 41_900), (0.1, 255), (0.01, 1.372), (0.001, 1.724)]
)
def test_the_first_class_loss_of_an_image_of_coco(prior, expected):
    # 201,600 anchors (800 x 1344), 80 classes, 50 positives.
    logits = torch.full((1, 201_600, 80), math.log(prior) - math.log1p(-prior))
    label = torch.full((1, 201_600), NEGATIVE)
    label[0, :50] = torch.arange(50)
    measured = run_loss(RetinaNetLoss(), logits, None, label)["class"].item()
    assert measured == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("alpha", [0.25, None, [0.1, 0.3, 0.8]])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_closed_form_equals_the_loss_of_equal_scores(alpha, gamma):
    logits = torch.full((1, 24, 3), math.log(0.03 / 0.97))
    labels = [[0, 1, 2, *[NEGATIVE] * 20, IGNORED]]
    measured = run_loss(RetinaNetLoss(alpha=alpha, gamma=gamma), logits, None, labels)
    counts = {"num_classes": 3, "num_positives": 3, "num_background": 20}
    predicted = expected_class_loss(alpha, gamma, 0.03, **counts)
    assert measured["class"].item() == pytest.approx(predicted.total, rel=1e-5)


# Box losses


@pytest.mark.parametrize("kind", IOU_LOSSES)
def test_iou_losses_equal_torchvision_with_their_gradients(kind):
    anchors = AnchorGenerator()(64, 64).double()
    target = anchors[None] + torch.tensor([5.0, -3.0, 9.0, 4.0], dtype=torch.float64)
    deltas = (0.3 * torch.randn(1, len(anchors), 4, dtype=torch.float64)).requires_grad_()
    ours = box_loss(kind, deltas, target, anchors, 1.0)
    theirs = IOU_LOSSES[kind](decode_boxes(deltas, anchors)[0], target[0])[None]
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(loss.sum(), deltas)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_box_costs_nothing(kind):
    anchors = AnchorGenerator()(64, 64)
    target = (anchors + torch.tensor([5.0, -3.0, 9.0, 4.0]))[None]
    loss = box_loss(kind, encode_boxes(target, anchors), target, anchors, 1 / 9)
    assert loss.abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "delta",
    [
        pytest.param([0.0, 0.0, -200.0, -200.0], id="no size"),
        pytest.param([0.0, 0.0, -200.0, 0.0], id="no width"),
        pytest.param([1e5, -1e5, 0.0, 0.0], id="far away"),
        pytest.param([0.0, 0.0, 1e6, 1e6], id="beyond the cap"),
    ],
)
def test_wild_boxes_have_finite_losses_and_gradients(kind, delta):
    anchors = torch.tensor([[0.0, 0.0, 32.0, 32.0], [0.0, 0.0, 900.0, 450.0]])
    target = torch.tensor([[[3.0, 0.0, 35.0, 30.0], [0.0, 0.0, 899.0, 2.0]]])
    deltas = torch.tensor([[delta, delta]], requires_grad=True)
    loss = box_loss(kind, deltas, target, anchors, 1 / 9)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert (loss >= 0).all()
    assert deltas.grad.isfinite().all()


def test_l1_and_smooth_l1_by_hand():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    target = anchors[None] + torch.tensor([1.0, 0.0, 1.0, 0.0])  # dx = 0.1
    deltas = torch.tensor([[[0.3, -0.02, 0.0, 0.0]]])
    assert box_loss("l1", deltas, target, anchors, 9.0).item() == pytest.approx(0.22)
    # Of .2 and .02 the first lies beyond beta = .1: .2 - .05, and .02^2 / .2.
    expected = 0.15 + 0.002
    assert box_loss("smooth_l1", deltas, target, anchors, 0.1).item() == pytest.approx(expected)


# Both together


def test_ignored_anchors_do_not_matter_and_background_has_no_box():
    labels = [[1, NEGATIVE, IGNORED]]
    logits, deltas = torch.zeros(1, 3, 2), torch.zeros(1, 3, 4)
    before = run_loss(RetinaNetLoss(), logits, deltas, labels)
    assert before["box"].item() == pytest.approx(2 / 32)  # 2 px of an anchor of 32
    logits[0, 2] = 50.0
    deltas[0, 1:] = 50.0
    assert run_loss(RetinaNetLoss(), logits, deltas, labels) == before
    twice = run_loss(RetinaNetLoss(box_weight=2.0), logits, deltas, labels)
    assert twice["box"].item() == pytest.approx(4 / 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_are_computed_in_fp32(dtype):
    labels = [[0, 1, *[NEGATIVE] * 500]]
    logits = (torch.randn(1, 502, 3) - 4).to(dtype).requires_grad_()
    deltas = torch.randn(1, 502, 4).to(dtype)
    half = run_loss(RetinaNetLoss(), logits, deltas, labels)
    full = run_loss(RetinaNetLoss(), logits.detach().float(), deltas.float(), labels)
    for name in ("class", "box"):
        assert half[name].dtype == torch.float32
        assert half[name].item() == full[name].item()
    half["class"].backward()
    assert logits.grad.isfinite().all()


def test_without_a_prior_the_sum_still_fits():
    # 3.6e5 before the division: more than fp16 can hold.
    logits = torch.zeros(1, 50_000, 80, dtype=torch.float16)
    loss = run_loss(RetinaNetLoss(), logits, None, [[NEGATIVE] * 50_000])["class"].item()
    assert loss == pytest.approx(4e6 * 0.75 * 0.25 * math.log(2), rel=1e-4)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_empty_images_teach_background_and_keep_the_box_loss_in_the_graph(normalizer):
    logits = torch.zeros(2, 4, 3, requires_grad=True)
    deltas = torch.zeros(2, 4, 4, requires_grad=True)
    losses = run_loss(RetinaNetLoss(normalizer=normalizer), logits, deltas, [[NEGATIVE] * 4] * 2)
    assert losses["box"].item() == 0
    (losses["class"] + losses["box"]).backward()
    assert (logits.grad > 0).all()
    assert (deltas.grad == 0).all()
    # 24 terms of .75 * .5^2 * ln 2, divided by 1 (an image by 1, and their mean; an EMA's 90.1).
    divisor = {"batch": 1, "image": 2, "ema": 0.9 * AVERAGE_START + 0.1}[normalizer]
    assert losses["class"].item() == pytest.approx(24 * 0.75 * 0.25 * math.log(2) / divisor)


@pytest.fixture
def step() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, deltas and labels of four images with 3, 0, 1 and 2 positives."""
    labels = torch.full((4, 12), NEGATIVE)
    labels[0, :3], labels[2, 0], labels[3, :2] = torch.tensor([0, 1, 0]), 1, 0
    labels[:, 11] = IGNORED
    return torch.randn(4, 12, 2).double(), torch.randn(4, 12, 4).double(), labels


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_micro_batches_add_up_to_the_whole_batch(normalizer, step):
    logits, deltas, labels = step
    whole = run_loss(RetinaNetLoss(normalizer=normalizer), logits, deltas, labels)
    loss = RetinaNetLoss(normalizer=normalizer)
    anchors, _ = make_match(labels)
    matches = [make_match(part)[1] for part in labels.split(2)]
    parts = zip(logits.split(2), deltas.split(2), matches, loss.divisors(matches), strict=True)
    parts = [loss(x, d, anchors, match, divisors) for x, d, match, divisors in parts]
    sums = {name: sum(part[name] for part in parts) for name in whole}
    torch.testing.assert_close(sums, whole)


def test_the_batch_normalizer_divides_once_by_all_positives(step):
    logits, deltas, labels = step
    is_class = labels[..., None] == torch.arange(2)
    expected = (focal_loss(logits, is_class) * (labels != IGNORED)[..., None]).sum() / 6
    torch.testing.assert_close(run_loss(RetinaNetLoss(), *step)["class"], expected)


def test_the_image_normalizer_is_torchvisions(step):
    logits, _, labels = step
    # Index of the object of every anchor, or -1 and -2: the same signs as ours.
    matched = list(torch.where(labels < 0, labels, torch.arange(12)))
    targets = [{"labels": image.clamp(min=0)} for image in labels]
    head = RetinaNetClassificationHead(8, 9, 2)
    theirs = head.compute_loss(targets, {"cls_logits": logits.float()}, matched)
    ours = run_loss(RetinaNetLoss(normalizer="image"), *step)["class"]
    torch.testing.assert_close(ours.float(), theirs)


def test_the_average_of_positives_is_state_that_moves_by_a_tenth():
    loss = RetinaNetLoss(normalizer="ema")
    _, match = make_match([[0, 1, 0, NEGATIVE]])
    (divisors,) = loss.divisors([match])
    assert divisors.tolist() == [pytest.approx(0.9 * 100 + 0.1 * 3)]
    (divisors,) = loss.divisors([match])
    assert divisors.tolist() == [pytest.approx(0.9 * 90.3 + 0.3)]
    restored = RetinaNetLoss(normalizer="ema")
    restored.load_state_dict(loss.state_dict())
    assert torch.equal(restored.average_positives, loss.average_positives)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 25.0}, r"loss.alpha must lie in \[0, 1\], got 25.0"),
        ({"alpha": [0.5, -0.1]}, r"loss.alpha\[1\]"),
        ({"gamma": -1.0}, "loss.gamma must be at least 0"),
        ({"gamma": float("nan")}, "loss.gamma"),
        ({"name": "ghm"}, "loss.name must be one of focal, focal_star, ohem"),
        ({"name": "focal_star", "gamma": 0.0}, "loss.gamma=0 with loss.name=focal_star"),
        ({"star_beta": 101.0}, "loss.star_beta"),
        ({"ohem_anchors": 0}, "loss.ohem_anchors must lie in"),
        ({"box": "l2"}, "loss.box must be one of"),
        ({"normalizer": "none"}, "loss.normalizer must be one of"),
        ({"box_beta": 0.0}, "loss.box_beta must be above 0"),
        ({"box_weight": -1.0}, "loss.box_weight"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RetinaNetLoss(**settings)


# The definition leads: focal_loss as it stands when the loss is built, or later.


@pytest.fixture
def warned(caplog):
    """The messages so far."""
    return lambda: [record.message for record in caplog.records]


@pytest.fixture
def edit(monkeypatch):
    """Put another definition in the place of ``losses.focal_loss``."""
    return lambda definition: monkeypatch.setattr(losses, "focal_loss", definition)


LABELS = torch.randint(-2, 4, (2, 50), generator=torch.Generator().manual_seed(0))


def class_loss_and_gradient(loss, definition=None):
    """Those of LABELS and fixed logits: by the loss, or by a definition written out."""
    logits = 3 * torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    if definition is None:
        value = run_loss(loss, logits, None, LABELS)["class"]
    else:
        of_pairs = definition(logits, LABELS[..., None] == torch.arange(4), loss.alpha, loss.gamma)
        value = of_pairs[LABELS != IGNORED].sum() / (LABELS >= 0).sum()
    return value, torch.autograd.grad(value, logits)[0]


def squared(logits, is_class, alpha, gamma):
    """Another definition: half the squared error of the probability."""
    return 0.5 * (logits.sigmoid() - is_class.to(logits.dtype)) ** 2


def for_four_classes(logits, is_class, alpha, gamma):
    """A definition that fails for any other number of classes; RetinaNetLoss does not know K."""
    return focal_loss(logits, is_class, alpha, gamma) * torch.tensor([1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize("definition", [squared, for_four_classes])
def test_training_follows_an_edited_definition_and_says_so_once(definition, edit, warned):
    edit(definition)
    loss = RetinaNetLoss(ohem_anchors=1)  # without effect: all anchors count
    assert not loss.fused
    for _ in range(2):
        expected = class_loss_and_gradient(loss, definition)
        torch.testing.assert_close(class_loss_and_gradient(loss), expected)
    assert warned() == [losses.FUSED_OFF_WARNING]


def test_training_follows_a_definition_that_is_edited_after_the_loss_was_built(edit, warned):
    loss = RetinaNetLoss()
    edit(squared)
    expected = class_loss_and_gradient(loss, squared)
    torch.testing.assert_close(class_loss_and_gradient(loss), expected)
    assert warned() == [losses.FUSED_OFF_WARNING]
    edit(focal_loss)
    class_loss_and_gradient(loss)
    assert loss.fused


def test_a_definition_that_fails_is_not_hidden(edit):
    def broken(*args, **kwargs):
        raise ArithmeticError("broken")

    edit(broken)
    with pytest.raises(ArithmeticError, match="broken"):
        RetinaNetLoss()
    with pytest.raises(ArithmeticError, match="broken"):
        class_loss_and_gradient(RetinaNetLoss(name="ohem", alpha=None))


@pytest.mark.parametrize("error", [RuntimeError, IndexError, ValueError, AssertionError])
def test_a_definition_for_other_shapes_than_the_comparison_is_followed(error):
    def for_80_classes(logits, is_class, alpha, gamma):
        raise error("80 classes only")

    assert not is_equal(for_80_classes, torch.tensor(0.25), 2.0)


@pytest.mark.parametrize(
    "changed",
    [
        lambda x, y, alpha, gamma: focal_loss(x, y, alpha, gamma) + 1e-4,
        lambda x, y, alpha, gamma: focal_loss(x, y, alpha, gamma) * 1.00001,
        lambda x, y, alpha, gamma: focal_loss(x, y, alpha, gamma + 1e-4),
        lambda x, y, alpha, gamma: focal_loss(x.clamp(-50, 50), y, alpha, gamma),
        lambda x, y, alpha, gamma: focal_loss(x, ~y, alpha, gamma),
        # Equal values, another gradient.
        lambda x, y, alpha, gamma: (
            2 * focal_loss(x, y, alpha, gamma) - focal_loss(x.detach(), y, alpha, gamma)
        ),
    ],
    ids=["constant", "factor", "gamma", "clamped", "swapped", "gradient"],
)
def test_a_small_edit_is_an_edit(changed, edit):
    edit(changed)
    assert not RetinaNetLoss().fused


ALPHAS = [None, 0.0, 0.1, 0.25, 0.999999, 1.0, [0.3, 0.9], [0.25] * 80]


@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.5, 1.0, 2.0, 5.0, 50.0])
@pytest.mark.parametrize("alpha", ALPHAS, ids=lambda a: f"{len(a)}" if isinstance(a, list) else a)
def test_the_fused_form_serves_while_the_definition_stands(alpha, gamma, warned):
    random = torch.get_rng_state()
    with torch.no_grad():
        assert RetinaNetLoss(alpha=alpha, gamma=gamma).fused
    assert not warned()
    assert torch.equal(torch.get_rng_state(), random)


def test_other_losses_have_no_fused_form(warned):
    assert not RetinaNetLoss(name="focal_star").fused
    assert not RetinaNetLoss(name="ohem", alpha=None).fused
    assert not warned()


def test_the_fused_form_keeps_the_gradient_alone_and_the_definition_many_numbers(edit):
    def numbers_kept():
        """Numbers that the graph of the class loss keeps for its gradient, per logit."""
        loss, kept = RetinaNetLoss(), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.append(x.numel()) or x, lambda x: x
        ):
            class_loss_and_gradient(loss)
        return sum(kept) / (LABELS.numel() * 4)

    fused = numbers_kept()
    edit(lambda *args: 1.5 * focal_loss(*args))
    assert numbers_kept() - fused > 4
