"""The trainings that are compared, behind one face: batches, one step, detections, state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet

from retinanet import build
from retinanet.data.loader import Batch
from retinanet.devices import autocast
from retinanet.evaluation.detect import DetectionArrays, detect
from retinanet.postprocess import Detections, to_original
from retinanet.training.optim import WeightAverage, build_optimizer, scaled_lr
from scripts.peers.feeds import Setup, collect, normalized, targets_of, train_batches, val_batches
from scripts.peers.plain import train_loader, val_loader
from scripts.peers.torchvision_model import same_pixels, torchvision_model

# Both are evaluated so, as torchvision's references do: in bf16 torchvision would round its
# boxes to 8 bits.
EVAL_PRECISION = "fp32"


class Contestant(Protocol):
    """One training."""

    step: int  # optimizer steps made

    def batches(self) -> Iterable[Any]:
        """What the steps from the present one on are fed with, without end."""

    def one_step(self, batch: Any) -> None:
        """One optimizer step."""

    def detect(self) -> DetectionArrays:
        """What the present weights find in the validation images."""

    def state_dict(self) -> dict[str, Any]:
        """What a later process needs to go on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""


class Ours:
    """This package: the trainer and the evaluation of ``train.py``."""

    def __init__(self, setup: Setup) -> None:
        """Build model and trainer."""
        settings, names = setup.settings, setup.train.category_names
        self.setup = setup
        self.trainer = build.build_trainer(
            settings,
            build.build_model(settings, len(names)),
            names,
            total_steps=1,  # of a schedule that is replaced below
            device=setup.device,
        )
        self.trainer.schedule = setup.rates
        self.state_dict = self.trainer.state_dict
        self.load_state_dict = self.trainer.load_state_dict

    @property
    def step(self) -> int:
        """Optimizer steps made."""
        return self.trainer.step

    def batches(self) -> Iterable[Batch]:
        """Those of ``train.py``."""
        return train_batches(self.setup, self.step)

    def one_step(self, batch: Batch) -> None:
        """The step of ``train.py``."""
        self.trainer.network.train()
        self.trainer.one_step([batch])

    def detect(self) -> DetectionArrays:
        """By the averaged weights, where there are any."""
        ema = self.trainer.ema
        return detect(
            self.trainer.model if ema is None else ema.model,
            build.build_postprocess(self.setup.settings),
            val_batches(self.setup),
            self.setup.device,
            EVAL_PRECISION,
            progress=True,
        )


class TorchvisionTrainer:
    """The loop of torchvision's references around torchvision's class."""

    def __init__(self, model: TorchvisionRetinaNet, setup: Setup) -> None:
        """Optimizer and, if the settings say so, an average of the weights."""
        settings, optim = setup.settings, setup.settings.optim
        self.device = setup.device
        self.model = model.to(setup.device)
        self.rates = setup.rates
        self.precision = settings.precision
        self.max_grad_norm = optim.max_grad_norm
        self.optimizer = build_optimizer(
            model,
            name=optim.name,
            lr=scaled_lr(optim.lr, optim.batch_size, optim.reference_batch),
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
            norm_weight_decay=optim.norm_weight_decay,
            bias_weight_decay=optim.bias_weight_decay,
        )
        decay = settings.ema.decay
        self.ema = None if decay is None else WeightAverage(model, decay)
        self.step = 0

    def one_step(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
        """One optimizer step.

        Raises:
            FloatingPointError: the loss is not a finite number.
        """
        self.model.train()
        images = [image.to(self.device) for image in images]
        targets = [{k: v.to(self.device) for k, v in target.items()} for target in targets]
        with autocast(self.device, self.precision):
            loss = sum(self.model(images, targets).values())
        if not loss.isfinite():
            raise FloatingPointError(
                f"torchvision's loss is {loss.item()} at step {self.step}; lower optim.lr (mode "
                f"time: --theirs optim.lr=...) and choose another --output."
            )
        self.optimizer.zero_grad()
        loss.backward()
        if self.max_grad_norm is not None:
            clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.rates.apply(self.optimizer, self.step)
        self.optimizer.step()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model, self.step)

    @torch.inference_mode()
    def detect(self, images: list[Tensor]) -> list[Detections]:
        """Detections of each image, in its own pixels."""
        model = self.model if self.ema is None else self.ema.model
        model.eval()
        found = model([image.to(self.device) for image in images])
        return [Detections(one["boxes"], one["scores"], one["labels"]) for one in found]

    def state_dict(self) -> dict[str, Any]:
        """What a later process needs to go on."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])


class SameBatches:
    """torchvision's class on the very batches, anchors and initial weights of :class:`Ours`."""

    def __init__(self, setup: Setup) -> None:
        """Build ours, for its weights, and torchvision's."""
        self.setup = setup
        self.ours = build.build_model(setup.settings, len(setup.train.category_names))
        self.trainer = TorchvisionTrainer(
            torchvision_model(setup.settings, self.ours, same_input=True), setup
        )
        self.state_dict = self.trainer.state_dict
        self.load_state_dict = self.trainer.load_state_dict
        self.checked = False

    @property
    def step(self) -> int:
        """Optimizer steps made."""
        return self.trainer.step

    def batches(self) -> Iterable[Batch]:
        """Those of :class:`Ours`."""
        return train_batches(self.setup, self.step)

    def one_step(self, batch: Batch) -> None:
        """One step; the first one makes sure that both models see the same pixels."""
        images = normalized(batch)
        if not self.checked:
            expected = self.ours.normalize(batch.images, batch.sizes)
            assert same_pixels(self.trainer.model, images, expected), "not the same pixels"
            self.checked = True
        self.trainer.one_step(images, targets_of(batch))

    def detect(self) -> DetectionArrays:
        """On the batches that ours is evaluated on."""
        return collect(self._found(), self.setup.settings.postprocess.detections)

    def _found(self) -> Iterator[tuple[int, Detections]]:
        for batch in val_batches(self.setup):
            rows = zip(
                batch.image_ids.tolist(),
                self.trainer.detect(normalized(batch)),
                batch.sizes,
                batch.original_sizes,
                strict=True,
            )
            for image_id, found, size, original_size in rows:
                yield image_id, to_original(found, size, original_size)


class PlainLoop:
    """torchvision's class as its references train it: own reader, resizing, padding, anchors."""

    def __init__(self, setup: Setup) -> None:
        """Build torchvision's model with the initial weights of one of ours of its size."""
        self.setup = setup
        ours = build.build_model(setup.settings, len(setup.train.category_names))
        self.trainer = TorchvisionTrainer(
            torchvision_model(setup.settings, ours, same_input=False), setup
        )
        self.state_dict = self.trainer.state_dict
        self.load_state_dict = self.trainer.load_state_dict

    @property
    def step(self) -> int:
        """Optimizer steps made."""
        return self.trainer.step

    def batches(self) -> Iterable[tuple[list[Tensor], list[dict[str, Tensor]]]]:
        """Shuffled epochs of whole batches."""
        settings = self.setup.settings
        return train_loader(
            self.setup.train,
            flip=settings.augment.flip,
            batch_size=settings.optim.batch_size,
            seed=settings.seed,
            step=self.step,
            workers=settings.data.workers,
        )

    def one_step(self, batch: tuple[list[Tensor], list[dict[str, Tensor]]]) -> None:
        """The references' step."""
        self.trainer.one_step(*batch)

    def detect(self) -> DetectionArrays:
        """torchvision's model resizes, and gives boxes in pixels of the file."""
        return collect(self._found(), self.setup.settings.postprocess.detections)

    def _found(self) -> Iterator[tuple[int, Detections]]:
        settings, data = self.setup.settings, self.setup.val
        loader = val_loader(
            data,
            batch_size=settings.evaluation.batch_size,
            max_images=settings.evaluation.max_images,
            workers=settings.data.workers,
        )
        for images, targets in loader:
            for target, found in zip(targets, self.trainer.detect(images), strict=True):
                yield int(data.image_ids[target["index"]]), found
