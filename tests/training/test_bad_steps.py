"""Reports of steps that were not finite: the cause that is named is the one that was."""

import math

import pytest

from retinanet.training.progress import likely_cause
from retinanet.training.step_metrics import BadStep

ORDINARY = [1.0, 1.2, 0.9, 1.1, 1.3, 1.0]


def bad(
    class_loss: float = math.nan, box_loss: float = 0.1, grad_norm: float = math.nan
) -> BadStep:
    return BadStep(0, class_loss, box_loss, grad_norm, [7], True)


@pytest.mark.parametrize(
    ("step", "norms", "precision", "expected"),
    [
        (bad(), ORDINARY, "fp16", "use precision=bf16"),
        (
            bad(),
            [*ORDINARY, 3.0, 9.0, 40.0, 900.0],
            "fp32",
            "from 1.3 to 900 in 10 steps: training",
        ),
        (bad(), [math.nan, math.inf], "fp32", "check the weights of init_from"),
        (bad(), ORDINARY, "fp32", "The loss is not finite, and the gradients before were"),
        (bad(0.5, math.inf), ORDINARY, "bf16", "The box loss alone is not finite"),
        (bad(0.5, 0.1), ORDINARY, "fp32", "The gradient alone is not finite"),
    ],
)
def test_the_cause_follows_from_what_was_seen(step, norms, precision, expected):
    assert expected in likely_cause(step, norms, step=20, precision=precision)


def test_steps_without_objects_do_not_make_a_norm_rise():
    norms = [0.14, 0.15, 20.0, 0.14, 0.13, 0.14, 0.15, 21.0]
    assert "were ordinary" in likely_cause(bad(), norms, step=20, precision="fp32")
    assert "diverges" in likely_cause(bad(), [*norms[:-1], 900.0], step=20, precision="fp32")


def test_nothing_before_the_first_step_can_be_blamed():
    assert "check the weights" in likely_cause(bad(), [], step=1, precision="fp32")
