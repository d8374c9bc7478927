"""The summed focal loss: the readable one and its gradient, in one pass and little memory."""

import math

import pytest
import torch

from retinanet.fast import focal
from retinanet.fast.focal import focal_loss_sum
from retinanet.losses import focal_loss
from retinanet.matching import IGNORED, NEGATIVE


@pytest.fixture
def batch():
    """Logits of 2 images, 50 anchors and 4 classes, labels, weights."""
    logits = 3 * torch.randn(2, 50, 4, dtype=torch.float64)
    label = torch.randint(-2, 4, (2, 50))
    weight = torch.rand(2, 50).double() * (label != IGNORED)
    return logits.requires_grad_(), label, weight


def plain(logits, label, weight, alpha, gamma):
    is_class = label[..., None] == torch.arange(logits.shape[-1])
    return (weight[..., None] * focal_loss(logits, is_class, alpha, gamma)).sum()


def pair(x, label=NEGATIVE, classes=1, dtype=torch.float32):
    """Logits, label and weight of one anchor."""
    logits = torch.full((1, 1, classes), x, dtype=dtype, requires_grad=True)
    return logits, torch.tensor([[label]]), torch.ones(1, 1)


ALPHAS = [None, torch.tensor(0.25), torch.tensor([0.1, 0.5, 0.9, 1.0])]


@pytest.mark.parametrize("alpha", ALPHAS, ids=["none", "one", "each"])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0, 5.0])
def test_loss_and_gradient_are_those_of_the_plain_form(alpha, gamma, batch, monkeypatch):
    monkeypatch.setattr(focal, "PIECE_CPU", 7 * 4)  # several pieces, across images
    alpha = None if alpha is None else alpha.double()
    expected, found = (form(*batch, alpha, gamma) for form in (plain, focal_loss_sum))
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(3.0 * loss, batch[0])[0] for loss in (found, expected)]
    torch.testing.assert_close(*slopes)
    assert not slopes[0][batch[1] == IGNORED].any()


def test_finite_differences_agree(batch):
    logits, *others = batch
    alpha = torch.tensor(0.25, dtype=torch.float64)
    (slope,) = torch.autograd.grad(focal_loss_sum(*batch, alpha, 1.5), logits)
    direction = torch.randn(logits.shape).double()
    up, down = (focal_loss_sum(logits + d * direction, *others, alpha, 1.5) for d in (1e-5, -1e-5))
    assert ((up - down) / 2e-5).item() == pytest.approx((slope * direction).sum().item(), rel=1e-7)


@pytest.mark.parametrize(("limit", "anchors"), [(7 * 4, 7), (7 * 4 + 3, 7), (3, 1)])
def test_no_piece_on_a_cpu_is_larger_than_its_limit(limit, anchors, batch, monkeypatch):
    sizes = []
    original = focal._loss_and_gradient
    monkeypatch.setattr(focal, "PIECE_CPU", limit)
    monkeypatch.setattr(
        focal, "_loss_and_gradient", lambda x, *rest: sizes.append(len(x)) or original(x, *rest)
    )
    focal_loss_sum(*batch, None, 2.0)
    whole, rest = divmod(100, anchors)  # at least one anchor
    assert sizes == [anchors] * whole + [rest] * (rest > 0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("x", [-1e4, -100.0, 100.0, 1e4])
@pytest.mark.parametrize("label", [NEGATIVE, 0])
def test_large_logits_have_finite_gradients(x, gamma, label):
    logits, label, weight = pair(x, label, classes=2)
    loss = focal_loss_sum(logits, label, weight, None, gamma)
    loss.backward()
    assert logits.grad.isfinite().all()
    assert loss.item() == pytest.approx(plain(logits, label, weight, None, gamma).item())


def test_logits_of_minus_infinity_cost_background_nothing():
    logits = torch.tensor([[[-torch.inf, 0.0], [0.0, -torch.inf]]], requires_grad=True)
    label, weight = torch.tensor([[NEGATIVE, IGNORED]]), torch.tensor([[1.0, 0.0]])
    loss = focal_loss_sum(logits, label, weight, torch.tensor(0.25), 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.75 * 0.25 * math.log(2))
    assert logits.grad.isfinite().all()


def test_bf16_logits_lose_nothing_but_their_own_digits(batch):
    logits = batch[0].detach().bfloat16().requires_grad_()
    label, weight = batch[1], batch[2].float()
    exact = logits.detach().double().requires_grad_()
    expected = plain(exact, label, weight.double(), 0.25, 2.0)
    loss = focal_loss_sum(logits, label, weight, torch.tensor(0.25), 2.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (expected + loss).backward()
    torch.testing.assert_close(logits.grad, exact.grad.bfloat16(), rtol=0.01, atol=1e-6)


def test_in_fp16_easy_background_keeps_its_gradient_for_the_scaler():
    # One of 1000 positives' share of background at pi: 2e-9, which fp16 rounds to 0 by itself.
    logits, label, weight = pair(-4.6, classes=4, dtype=torch.float16)
    exact, scale = logits.detach().double().requires_grad_(), 65536.0
    weight = 1e-3 * weight
    (scale * focal_loss_sum(logits, label, weight, torch.tensor(0.25), 2.0)).backward()
    (scale * plain(exact, label, weight.double(), 0.25, 2.0)).backward()
    assert logits.grad.dtype == torch.float16
    assert 0 < exact.grad.max() / scale < 6e-8
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=2e-3, atol=0)


def test_a_second_backward_pass_is_refused(batch):
    # The gradient is scaled in place; a second time would scale it twice.
    loss = focal_loss_sum(*batch, None, 2.0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
