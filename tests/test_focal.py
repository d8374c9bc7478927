"""The summed focal loss: the readable one and its gradient, in one pass and little memory."""

import math

import pytest
import torch

from retinanet.fast import focal
from retinanet.fast.focal import focal_loss_sum
from retinanet.losses import focal_loss
from retinanet.matching import IGNORED, NEGATIVE


def some_logits(dtype=torch.float64, scale=3.0):
    generator = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(2, 50, 4, generator=generator, dtype=torch.float64)).to(dtype)
    label = torch.randint(-2, 4, (2, 50), generator=generator)
    weight = torch.rand(2, 50, generator=generator).double() * (label != IGNORED)
    return logits.requires_grad_(), label, weight.to(torch.promote_types(dtype, torch.float32))


def plain(logits, label, weight, alpha, gamma):
    is_class = label[..., None] == torch.arange(logits.shape[-1])
    return (weight[..., None] * focal_loss(logits, is_class, alpha, gamma)).sum()


ALPHAS = [None, torch.tensor(0.25), torch.tensor([0.1, 0.5, 0.9, 1.0])]


@pytest.mark.parametrize("alpha", ALPHAS, ids=["none", "one", "each"])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0, 5.0])
def test_loss_and_gradient_are_those_of_the_plain_form(alpha, gamma, monkeypatch):
    monkeypatch.setattr(focal, "PIECE_CPU", 7 * 4)  # several pieces, across images
    logits, label, weight = some_logits()
    alpha = None if alpha is None else alpha.double()
    expected = plain(logits, label, weight, alpha, gamma)
    (slope,) = torch.autograd.grad(3.0 * expected, logits)
    found = focal_loss_sum(logits, label, weight, alpha, gamma)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(3.0 * found, logits)[0], slope)


def test_no_piece_on_a_cpu_is_larger_than_its_limit(monkeypatch):
    logits, label, weight = some_logits()
    K = logits.shape[-1]
    anchors = []
    original = focal._loss_and_gradient

    def record(part, *others):
        anchors.append(len(part))
        return original(part, *others)

    monkeypatch.setattr(focal, "_loss_and_gradient", record)
    monkeypatch.setattr(focal, "PIECE_CPU", 7 * K)
    focal_loss_sum(logits, label, weight, None, 2.0)
    whole, rest = divmod(label.numel(), 7)
    assert anchors == [7] * whole + [rest] * (rest > 0)
    anchors.clear()
    monkeypatch.setattr(focal, "PIECE_CPU", K - 1)  # at least one anchor
    focal_loss_sum(logits, label, weight, None, 2.0)
    assert anchors == [1] * label.numel()


def test_finite_differences_agree():
    logits, label, weight = some_logits()
    alpha = torch.tensor(0.25, dtype=torch.float64)
    (slope,) = torch.autograd.grad(focal_loss_sum(logits, label, weight, alpha, 1.5), logits)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).double()
    step = 1e-5 * direction
    up, down = (focal_loss_sum(logits + d, label, weight, alpha, 1.5) for d in (step, -step))
    assert ((up - down) / 2e-5).item() == pytest.approx((slope * direction).sum().item(), rel=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("x", [-1e4, -100.0, 100.0, 1e4])
def test_large_logits_have_finite_gradients(x, gamma):
    for label in (NEGATIVE, 0):
        logits = torch.full((1, 1, 2), x, requires_grad=True)
        loss = focal_loss_sum(logits, torch.tensor([[label]]), torch.ones(1, 1), None, gamma)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad.isfinite().all()
        expected = plain(logits, torch.tensor([[label]]), torch.ones(1, 1), None, gamma)
        assert loss.item() == pytest.approx(expected.item())


def test_logits_of_minus_infinity_cost_background_nothing():
    logits = torch.tensor([[[-torch.inf, 0.0], [0.0, -torch.inf]]], requires_grad=True)
    label, weight = torch.tensor([[NEGATIVE, IGNORED]]), torch.tensor([[1.0, 0.0]])
    loss = focal_loss_sum(logits, label, weight, torch.tensor(0.25), 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.75 * 0.25 * math.log(2))
    assert logits.grad.isfinite().all()


def test_bf16_logits_lose_nothing_but_their_own_digits():
    logits, label, weight = some_logits(torch.bfloat16)
    exact = logits.detach().double().requires_grad_()
    expected = plain(exact, label, weight.double(), 0.25, 2.0)
    expected.backward()
    loss = focal_loss_sum(logits, label, weight, torch.tensor(0.25), 2.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(logits.grad, exact.grad.bfloat16(), rtol=0.01, atol=1e-6)


def test_an_ignored_anchor_has_no_gradient():
    logits, label, weight = some_logits()
    focal_loss_sum(logits, label, weight, None, 2.0).backward()
    assert not logits.grad[label == IGNORED].any()
    assert logits.grad[label != IGNORED].all()


def test_a_second_backward_pass_is_refused():
    # The gradient is scaled in place; a second time would scale it twice.
    logits, label, weight = some_logits()
    loss = focal_loss_sum(logits, label, weight, None, 2.0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_fp16_easy_background_keeps_its_gradient_for_the_scaler():
    # One of 1000 positives' share of background at pi: 2e-9, which fp16 rounds to 0 by itself.
    logits = torch.full((1, 1, 4), -4.6, dtype=torch.float16, requires_grad=True)
    exact = logits.detach().double().requires_grad_()
    label, weight, scale = torch.tensor([[NEGATIVE]]), torch.full((1, 1), 1e-3), 65536.0
    (scale * focal_loss_sum(logits, label, weight, torch.tensor(0.25), 2.0)).backward()
    (scale * plain(exact, label, weight.double(), 0.25, 2.0)).backward()
    assert logits.grad.dtype == torch.float16
    assert 0 < exact.grad.max() / scale < 6e-8
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=2e-3, atol=0)
