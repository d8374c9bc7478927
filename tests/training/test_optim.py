"""Parameter groups, optimizers, and the average of the weights."""

import pytest
import torch
from torch import nn

from retinanet.training.optim import EMA, build_optimizer, parameter_groups, scaled_lr

DECAYS = {"weight_decay": 0.1, "norm_weight_decay": 0.2, "bias_weight_decay": 0.3}


def names_of(model: nn.Module, group: dict) -> set[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)] for p in group["params"]}


def test_every_parameter_is_in_the_group_of_its_kind(make_model):
    model = make_model(head_norm="group")
    groups = {g["weight_decay"]: names_of(model, g) for g in parameter_groups(model, **DECAYS)}
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    norms = {
        f"{prefix}.{kind}"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.GroupNorm)
        for kind in ("weight", "bias")
    }
    assert groups[0.2] == norms
    assert groups[0.3] == {
        name for name, p in model.named_parameters() if name.endswith("bias") and name not in norms
    }
    assert "head.cls.pred.bias" in groups[0.3]
    assert all(model.get_parameter(name).ndim == 4 for name in groups[0.1])


def test_frozen_parameters_are_in_no_group(make_model):
    model = make_model(frozen_stages=2, load_later=True)
    optimized = set().union(*(names_of(model, g) for g in parameter_groups(model, **DECAYS)))
    assert not any(name.startswith(("backbone.stem", "backbone.block2")) for name in optimized)
    assert optimized == {name for name, p in model.named_parameters() if p.requires_grad}


def test_groups_without_parameters_are_left_out():
    assert [
        g["weight_decay"] for g in parameter_groups(nn.Conv2d(1, 1, 1, bias=False), **DECAYS)
    ] == [0.1]


def build(model: nn.Module, name: str, **settings) -> torch.optim.Optimizer:
    return build_optimizer(model, name=name, lr=0.1, **{"momentum": 0.9, **DECAYS, **settings})


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_is_that_of_the_textbook(momentum):
    model = nn.Conv2d(2, 3, 1)
    weight, bias = (p.detach().clone() for p in (model.weight, model.bias))
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    optimizer = build(model, "sgd", momentum=momentum)
    for _ in range(3):
        model.weight.grad, model.bias.grad = torch.randn_like(weight), torch.randn_like(bias)
        for i, (value, p, decay) in enumerate(
            ((weight, model.weight, 0.1), (bias, model.bias, 0.3))
        ):
            velocity[i] = momentum * velocity[i] + p.grad + decay * value
            value -= 0.1 * velocity[i]
        optimizer.step()
    torch.testing.assert_close(model.weight, nn.Parameter(weight))
    torch.testing.assert_close(model.bias, nn.Parameter(bias))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_and_plain_optimizers_agree(name):
    ours, theirs = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizer = build(ours, name)
    assert optimizer.defaults["fused"]
    groups = parameter_groups(theirs, **DECAYS)
    plain = {
        "sgd": lambda: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
        "adamw": lambda: torch.optim.AdamW(groups, lr=0.1),
    }[name]()
    for _ in range(4):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        optimizer.step()
        plain.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="optim.name must be one of sgd, adamw, got 'lion'"):
        build(nn.Conv2d(1, 1, 1), "lion")


# Average of the weights


def test_the_average_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = EMA(model, 0.5)
    nn.init.constant_(model.weight, 2.0)
    average.update(model, 1)  # decay min(.5, 2 / 11)
    first = 1 + (1 - 2 / 11)
    assert average.model.weight.item() == pytest.approx(first)
    average.update(model, 1000)  # decay .5
    assert average.model.weight.item() == pytest.approx((first + 2) / 2)
    assert model.weight.item() == 2.0


def test_buffers_are_copied_and_the_average_has_no_gradient():
    model = nn.BatchNorm2d(2)
    average = EMA(model, 0.99)
    model(torch.randn(4, 2, 3, 3))
    average.update(model, 1)
    assert torch.equal(average.model.running_mean, model.running_mean)
    assert average.model.num_batches_tracked == 1
    assert not any(p.requires_grad for p in average.model.parameters())
    assert not average.model.training
    assert model.training


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_a_decay_outside_is_refused(decay):
    with pytest.raises(ValueError, match=r"ema.decay must lie in \(0, 1\)"):
        EMA(nn.Linear(1, 1), decay)


def test_momentum_starts_at_zero_before_the_first_step(make_trainer):
    # Otherwise a skipped first step leaves it to whatever lay in memory.
    optimizer = make_trainer().optimizer
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            momentum = optimizer.state[parameter]["momentum_buffer"]
            assert torch.equal(momentum, torch.zeros_like(parameter))


def test_the_learning_rate_is_linear_in_the_batch():
    assert scaled_lr(0.02, 4, 16) == pytest.approx(0.005)
    assert scaled_lr(0.02, 32, 16) == pytest.approx(0.04)
    assert scaled_lr(0.02, 4, None) == 0.02
