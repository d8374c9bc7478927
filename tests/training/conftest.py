"""A small network that trains in milliseconds, and batches of random images for it."""

import pytest
import torch

from retinanet.data.loader import Batch
from retinanet.losses import RetinaNetLoss
from retinanet.matching import Matcher
from retinanet.model.retinanet import RetinaNet
from retinanet.training.optim import EMA, Schedule, build_optimizer
from retinanet.training.trainer import Trainer

SMALL = {"weights": None, "norm": "group", "frozen_stages": 0, "fpn_channels": 16}
SMALL |= {"head_depth": 1, "head_channels": 16}


def _model(seed: int = 0, num_classes: int = 3, **settings) -> RetinaNet:
    torch.manual_seed(seed)
    return RetinaNet("tiny", num_classes, **{**SMALL, **settings})


def _batch(seed: int, *counts: int, first_id: int = 100) -> Batch:
    """Images of 128 x 128 with so many objects each."""
    generator = torch.Generator().manual_seed(seed)
    B, G = len(counts), max(counts)
    low = torch.rand(B, G, 2, generator=generator) * 60
    boxes = torch.cat([low, low + 20 + torch.rand(B, G, 2, generator=generator) * 40], dim=2)
    labels = torch.randint(0, 3, (B, G), generator=generator)
    real = torch.arange(G) < torch.tensor(counts)[:, None]
    return Batch(
        images=torch.randint(0, 256, (B, 3, 128, 128), dtype=torch.uint8, generator=generator),
        sizes=torch.full((B, 2), 128),
        boxes=boxes * real[..., None],
        labels=labels.masked_fill(~real, -1),
        crowds=torch.zeros(B, 0, 4),
        image_ids=torch.arange(first_id, first_id + B),
        original_sizes=torch.full((B, 2), 128),
    )


def _trainer(
    *,
    model: RetinaNet | None = None,
    name: str = "sgd",
    lr: float = 0.05,
    normalizer: str = "batch",
    ema: float | None = None,
    max_grad_norm: float | None = None,
    precision: str = "fp32",
) -> Trainer:
    model = _model() if model is None else model
    optimizer = build_optimizer(
        model,
        name=name,
        lr=lr,
        momentum=0.9,
        weight_decay=1e-4,
        norm_weight_decay=0.0,
        bias_weight_decay=0.0,
    )
    return Trainer(
        model,
        Matcher(),
        RetinaNetLoss(normalizer=normalizer),
        optimizer,
        Schedule(lr=lr, total_steps=10, decay="constant"),
        ema=None if ema is None else EMA(model, ema),
        precision=precision,
        max_grad_norm=max_grad_norm,
    )


@pytest.fixture
def make_model():
    return _model


@pytest.fixture
def make_batch():
    return _batch


@pytest.fixture
def make_trainer():
    return _trainer
