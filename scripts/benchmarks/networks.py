"""The whole network: a training step, and from an image to detections."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from retinanet.data.loader import Batch
from retinanet.devices import autocast
from retinanet.fast.fold_batchnorm import for_inference
from retinanet.losses import RetinaNetLoss
from retinanet.matching import Matcher
from retinanet.model.retinanet import RetinaNet
from retinanet.postprocess import Postprocess
from retinanet.training.optim import Schedule, build_optimizer
from retinanet.training.trainer import Trainer
from scripts.benchmarks.clock import Stage
from scripts.benchmarks.made_up import same_model, some_batch, torchvision_model

# So small that the weights stay as they are.
LR = 1e-6


PRECISIONS = ("fp32", "bf16")
# As torchvision's users may have it, one line away from what it does by itself.
BEST = "torchvision bf16, channels last"


def training_step(
    backbone: str, height: int, width: int, num_images: int, device: torch.device
) -> Stage:
    """Forward, loss, backward, SGD, of images that have their size already."""
    theirs = torchvision_model(backbone, height, width).train()
    batch = some_batch(height, width, num_images)
    trainers = {name: _trainer(same_model(theirs).to(device), name) for name in PRECISIONS}
    if device.type == "cuda":  # on CPUs compilation does not pay for training
        trainers["bf16 compiled"] = _trainer(same_model(theirs).to(device), "bf16", compiled=True)
    theirs.to(device)
    pictures = [image.float().to(device) / 255 for image in batch.images.contiguous()]
    targets = [
        {"boxes": boxes.to(device), "labels": labels.to(device)}
        for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
    ]
    errors = _errors(theirs, pictures, targets, trainers, batch)
    models = {f"torchvision {precision}": (theirs, precision) for precision in PRECISIONS}
    models[BEST] = copy.deepcopy(theirs).to(memory_format=torch.channels_last), "bf16"
    contestants = {
        name: partial(_their_step, model, _their_optimizer(model), pictures, targets, precision)
        for name, (model, precision) in models.items()
    }
    for name, trainer in trainers.items():
        contestants[f"retinanet {name}"] = partial(trainer.one_step, [batch])
    with FlopCounterMode(display=False) as counter:
        trainers["fp32"].one_step([batch])
    return Stage(
        f"training step, {backbone}, {height} x {width}, batch {num_images}",
        contestants,
        device=device,
        flops=float(counter.get_total_flops()),
        images=num_images,
        errors=errors,
    )


@torch.no_grad()
def _errors(
    theirs: nn.Module,
    pictures: list[Tensor],
    targets: list[dict[str, Tensor]],
    trainers: dict[str, Trainer],
    batch: Batch,
) -> dict[str, float]:
    """How far the loss in another precision is from the loss in fp32, of each project."""
    losses = {}
    for precision in PRECISIONS:
        with autocast(pictures[0].device, precision):
            losses["torchvision", precision] = sum(theirs(pictures, targets).values())
        trainer = trainers[precision]
        here = batch.to(trainer.device)
        match = trainer.match(here)
        (divisor,) = trainer.loss.divisors([match])
        losses["retinanet", precision] = sum(trainer.losses(here, match, divisor).values())
    return {
        f"{project} {precision}": abs(float(loss / losses[project, "fp32"]) - 1)
        for (project, precision), loss in losses.items()
    }


def _their_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=LR, momentum=0.9, weight_decay=1e-4)


def _their_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    pictures: list[Tensor],
    targets: list[dict[str, Tensor]],
    precision: str,
) -> None:
    """As torchvision's references/detection/engine.py."""
    with autocast(pictures[0].device, precision):
        losses = sum(model(pictures, targets).values())
    optimizer.zero_grad()
    losses.backward()
    optimizer.step()


def _trainer(model: RetinaNet, precision: str, *, compiled: bool = False) -> Trainer:
    if compiled:
        model.predict = torch.compile(model.predict, dynamic=True)
    optimizer = build_optimizer(
        model,
        name="sgd",
        lr=LR,
        momentum=0.9,
        weight_decay=1e-4,
        norm_weight_decay=1e-4,
        bias_weight_decay=1e-4,
    )
    schedule = Schedule(
        lr=LR,
        total_steps=10**6,
        warmup_steps=0,
        warmup_factor=1.0,
        decay="steps",
        milestones=(),
        decay_factor=0.1,
    )
    # Its alpha is a buffer: like the model it has to be on the device.
    loss = RetinaNetLoss(normalizer="image").to(next(model.parameters()).device)
    trainer = Trainer(model, Matcher(), loss, optimizer, schedule, precision=precision)
    trainer.network.train()
    return trainer


def inference_stage(height: int, width: int, device: torch.device) -> Stage:
    """The network and what follows, one image."""
    theirs = torchvision_model("resnet50", height, width).eval()
    ours = same_model(theirs).to(device)
    theirs.to(device)
    batch = some_batch(height, width, 1).to(device)
    picture = batch.images[0].contiguous().float() / 255
    levels, postprocess = ours.level_sizes(height, width), Postprocess()

    def run_theirs(model: nn.Module, precision: str) -> None:
        with torch.inference_mode(), autocast(device, precision):
            model([picture])

    def run_ours(network: RetinaNet, precision: str) -> None:
        with torch.inference_mode():
            with autocast(device, precision):
                logits, deltas, anchors = network(batch.images, batch.sizes)
            postprocess(logits, deltas, anchors, batch.sizes, levels)

    networks = {name: for_inference(ours, name) for name in PRECISIONS}
    networks["bf16 compiled"] = for_inference(ours, "bf16", compiled=True)
    last = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    contestants = {
        f"torchvision {precision}": partial(run_theirs, theirs, precision)
        for precision in PRECISIONS
    }
    contestants[BEST] = partial(run_theirs, last, "bf16")
    for name, network in networks.items():
        contestants[f"retinanet {name}"] = partial(run_ours, network, name.split()[0])
    with FlopCounterMode(display=False) as counter:
        run_ours(networks["fp32"], "fp32")
    return Stage(
        f"inference, resnet50, {height} x {width}",
        contestants,
        device=device,
        flops=float(counter.get_total_flops()),
        images=1,
    )
