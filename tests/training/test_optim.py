"""Parameter groups, optimizers, the learning rate of every step by hand, and the EMA weights."""

import math

import pytest
import torch
from torch import nn

from retinanet.training.optim import EMA, Schedule, build_optimizer, parameter_groups, scaled_lr

DECAYS = {"weight_decay": 0.1, "norm_weight_decay": 0.2, "bias_weight_decay": 0.3}


def names_of(model: nn.Module, group: dict) -> set[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)] for p in group["params"]}


def test_every_parameter_is_in_the_group_of_its_kind(make_model):
    model = make_model(head_norm="group")
    groups = {g["weight_decay"]: names_of(model, g) for g in parameter_groups(model, **DECAYS)}
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    norms = {prefix for prefix, module in model.named_modules() if isinstance(module, nn.GroupNorm)}
    assert groups[0.2] == {f"{prefix}.{kind}" for prefix in norms for kind in ("weight", "bias")}
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert groups[0.3] == biases - groups[0.2]
    assert "head.cls.pred.bias" in groups[0.3]
    assert all(model.get_parameter(name).ndim == 4 for name in groups[0.1])


def test_frozen_parameters_and_empty_groups_are_left_out(make_model):
    model = make_model(frozen_stages=2, load_later=True)
    optimized = set().union(*(names_of(model, g) for g in parameter_groups(model, **DECAYS)))
    assert not any(name.startswith(("backbone.stem", "backbone.block2")) for name in optimized)
    assert optimized == {name for name, p in model.named_parameters() if p.requires_grad}
    (group,) = parameter_groups(nn.Conv2d(1, 1, 1, bias=False), **DECAYS)
    assert group["weight_decay"] == 0.1


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
        each = ((weight, model.weight, 0.1), (bias, model.bias, 0.3))
        for i, (value, p, decay) in enumerate(each):
            velocity[i] = momentum * velocity[i] + p.grad + decay * value
            value -= 0.1 * velocity[i]
        optimizer.step()
    torch.testing.assert_close(model.weight, nn.Parameter(weight))
    torch.testing.assert_close(model.bias, nn.Parameter(bias))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_and_plain_optimizers_agree(name):
    ours, theirs = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizer, groups = build(ours, name), parameter_groups(theirs, **DECAYS)
    assert optimizer.defaults["fused"]
    if name == "sgd":
        plain = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    else:
        plain = torch.optim.AdamW(groups, lr=0.1)
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


def test_momentum_starts_at_zero_before_the_first_step(make_trainer):
    # Otherwise a skipped first step leaves it to whatever lay in memory.
    optimizer = make_trainer().optimizer
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert not optimizer.state[parameter]["momentum_buffer"].any()


# The learning rate


@pytest.mark.parametrize(
    ("batch_size", "reference", "expected"), [(16, 16, 0.01), (128, 16, 0.08), (2, None, 0.01)]
)
def test_the_rate_is_linear_in_the_batch(batch_size, reference, expected):
    assert scaled_lr(0.01, batch_size, reference) == pytest.approx(expected)


WARM_UP = {"lr": 0.02, "warmup_steps": 10, "warmup_factor": 0.1, "decay": "constant"}
ONE_X = {"lr": 0.01, "total_steps": 90_000, "milestones": [2 / 3, 8 / 9], "decay_factor": 0.1}
ONE_X |= {"warmup_steps": 1000, "warmup_factor": 0.001}
COSINE = {"lr": 0.4, "decay": "cosine"}


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        (WARM_UP, {0: 0.002, 5: 0.02 * 0.55, 10: 0.02, 99: 0.02}),
        ({"lr": 0.4, "warmup_factor": 0.1}, {0: 0.4}),  # without warm-up
        (ONE_X, {0: 1e-5, 59_999: 0.01, 60_000: 0.001, 79_999: 0.001, 80_000: 1e-4, 89_999: 1e-4}),
        ({"lr": 1, "milestones": [0.7]}, {69: 1, 70: 0.1}),
        ({"lr": 1, "milestones": [0.7], "total_steps": 200}, {139: 1, 140: 0.1}),
        (
            COSINE,
            {
                0: 0.4,
                50: 0.2,
                25: 0.4 * (1 + math.sqrt(0.5)) / 2,
                99: 0.2 * (1 - math.cos(math.pi / 100)),
            },
        ),
    ],
)
def test_a_schedule_has_the_rates_computed_by_hand(settings, rates):
    schedule = Schedule(**{"total_steps": 100, **settings})
    assert {step: schedule(step) for step in rates} == pytest.approx(rates)


def test_every_group_gets_the_rate():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [p]} for p in parameters], lr=1.0)
    Schedule(lr=0.5, total_steps=10, warmup_steps=2, warmup_factor=0.5).apply(optimizer, 1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.375, 0.375]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": "linear"}, "schedule.decay must be one of steps, cosine, constant"),
        ({"warmup_factor": 0.0}, "schedule.warmup_factor"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Schedule(lr=0.1, total_steps=10, **settings)


# EMA weights


def test_the_average_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    ema = EMA(model, 0.5)
    nn.init.constant_(model.weight, 2.0)
    ema.update(model, 1)  # decay min(.5, 2 / 11)
    first = 1 + (1 - 2 / 11)
    assert ema.model.weight.item() == pytest.approx(first)
    ema.update(model, 1000)  # decay .5
    assert ema.model.weight.item() == pytest.approx((first + 2) / 2)
    assert model.weight.item() == 2.0


def test_buffers_are_copied_and_the_average_has_no_gradient():
    model = nn.BatchNorm2d(2)
    ema = EMA(model, 0.99)
    model(torch.randn(4, 2, 3, 3))
    ema.update(model, 1)
    assert torch.equal(ema.model.running_mean, model.running_mean)
    assert ema.model.num_batches_tracked == 1
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert model.training and not ema.model.training


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_a_decay_outside_is_refused(decay):
    with pytest.raises(ValueError, match=r"ema.decay must lie in \(0, 1\)"):
        EMA(nn.Linear(1, 1), decay)
