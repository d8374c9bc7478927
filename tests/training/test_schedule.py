"""The learning rate of every step, by hand."""

import math

import pytest
import torch

from retinanet.training.optim import Schedule, scaled_lr


def test_warm_up_rises_linearly_from_its_first_step_to_the_full_rate():
    schedule = Schedule(
        lr=0.02, total_steps=100, warmup_steps=10, warmup_factor=0.1, decay="constant"
    )
    assert schedule(0) == pytest.approx(0.002)
    assert schedule(5) == pytest.approx(0.02 * 0.55)
    assert schedule(10) == 0.02
    assert schedule(99) == 0.02


def test_the_1x_schedule_drops_at_steps_60000_and_80000_of_90000():
    schedule = Schedule(
        lr=0.01,
        total_steps=90_000,
        warmup_steps=1000,
        warmup_factor=0.001,
        milestones=[2 / 3, 8 / 9],
        decay_factor=0.1,
    )
    rates = {59_999: 0.01, 60_000: 0.001, 79_999: 0.001, 80_000: 0.0001, 89_999: 0.0001}
    for step, rate in rates.items():
        assert schedule(step) == pytest.approx(rate), step
    assert schedule(0) == pytest.approx(1e-5)


def test_a_run_twice_as_long_drops_twice_as_late():
    short, long = (Schedule(lr=1.0, total_steps=n, milestones=[0.7]) for n in (100, 200))
    assert [short(69), short(70)] == pytest.approx([1, 0.1])
    assert [long(139), long(140)] == pytest.approx([1, 0.1])


def test_a_cosine_is_half_at_half_time_and_ends_near_zero():
    schedule = Schedule(lr=0.4, total_steps=100, decay="cosine")
    assert schedule(0) == 0.4
    assert schedule(50) == pytest.approx(0.2)
    assert schedule(25) == pytest.approx(0.4 * (1 + math.sqrt(0.5)) / 2)
    assert 0 < schedule(99) < 0.4 / 1000


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert Schedule(lr=0.4, total_steps=5, warmup_factor=0.1)(0) == 0.4


def test_every_group_gets_the_rate():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [p]} for p in parameters], lr=1.0)
    Schedule(lr=0.5, total_steps=10, warmup_steps=2, warmup_factor=0.5).apply(optimizer, 1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.375, 0.375]


@pytest.mark.parametrize(
    ("batch_size", "reference", "expected"), [(16, 16, 0.01), (128, 16, 0.08), (2, None, 0.01)]
)
def test_the_rate_is_linear_in_the_batch(batch_size, reference, expected):
    assert scaled_lr(0.01, batch_size, reference) == pytest.approx(expected)


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
