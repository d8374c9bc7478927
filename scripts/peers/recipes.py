"""The settings that the two peers of an equal-time comparison have of their own."""

from __future__ import annotations

from collections.abc import Sequence

from retinanet.cli.main import composer
from retinanet.config import TrainConfig
from retinanet.devices import choose_device, choose_precision

# Settings of ours for a short training from pretrained weights on CPU cores.
RECOMMENDED = (
    "precision=bf16",
    "augment=flip",
    "model.head_norm=group",
    "loss.box=giou",
    "loss.box_weight=2.0",
    "optim=adamw",
    "optim.lr=0.0005",
    "optim.batch_size=8",
    "schedule=cosine",
    "schedule.warmup_steps=30",
    "schedule.warmup_factor=0.01",
    "ema=average",
)
# Recipe of pytorch/vision, references/detection: SGD with .01 for 16 images a step (linear in the
# batch: with .01 for 8 the loss became nan after 147 steps on blood cells of 400 px in bf16), decay
# of every parameter, drops after 16 and 22 of 26 epochs, left-right flips, no clipping, no
# averaging; four layers without norm in each subnet. Its warm-up lasts min(1000, steps of the first
# epoch - 1) from 1/1000; see rates.py.
REFERENCES = (
    "precision=bf16",
    "augment=flip",
    "model.head_depth=4",
    "model.head_norm=none",
    "optim=sgd",
    "optim.lr=0.01",
    "optim.reference_batch=16",
    "optim.norm_weight_decay=0.0001",
    "optim.bias_weight_decay=0.0001",
    "optim.max_grad_norm=null",
    "optim.batch_size=8",
    "schedule=1x",
    "schedule.milestones=[0.6153846153846154,0.8461538461538461]",
    "schedule.warmup_steps=1000",
    "schedule.warmup_factor=0.001",
    "ema=none",
)


def compose(*typed: Sequence[str], recipe: Sequence[str] = ()) -> TrainConfig:
    """Settings of several lists over a recipe; a later one replaces the same key of one before."""
    latest = {text.partition("=")[0]: text for texts in typed for text in texts}
    with composer("train") as reader:
        settings = reader.command(list(latest.values()), recipe).settings
    settings.precision = choose_precision(settings.precision, choose_device(settings.device))
    return settings
