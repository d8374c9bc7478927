"""A trained model with all it needs to look at photos: classes, sizes, anchors, thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retinanet import build
from retinanet.config import TrainConfig, restore
from retinanet.data.batches import padded_size
from retinanet.data.images import read_image
from retinanet.data.transforms import resize, resized_size
from retinanet.devices import autocast, choose_device
from retinanet.model.retinanet import RetinaNet
from retinanet.postprocess import to_original
from retinanet.training.checkpoint import load_trained, shipped_weights


@dataclass(frozen=True, slots=True)
class ImageDetections:
    """Objects found in one photo, best first."""

    boxes: Tensor  # (D, 4) x1, y1, x2, y2 in pixels of the file
    scores: Tensor  # (D,) in (0, 1)
    labels: Tensor  # (D,) int64 in [0, K)
    category_ids: tuple[int, ...]  # of the data the model was trained on
    names: tuple[str, ...]


class Detector:
    """Photos in, detections out."""

    def __init__(
        self,
        model: RetinaNet,
        settings: TrainConfig,
        names: Sequence[str],
        ids: Sequence[int],
        precision: str = "fp32",
    ) -> None:
        """Take a loaded model; see :func:`load`.

        Args:
            model: on its device.
            settings: it was trained with.
            names: of its classes, in the order of labels.
            ids: category ids of its classes.
            precision: of the forward pass.
        """
        self.precision = precision
        self.model = model.eval()
        self.settings = settings
        self.names = tuple(names)
        self.category_ids = tuple(ids)
        self.postprocess = build.build_postprocess(settings)

    def __call__(self, photos: Sequence[str | Path]) -> list[ImageDetections]:
        """Detect on image files, one after the other.

        Args:
            photos: paths.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file that is no readable image.
        """
        if isinstance(photos, str | Path):
            raise ValueError(f"give a list of paths, such as [{str(photos)!r}].")
        return list(self.stream(photos))

    @torch.inference_mode()
    def stream(self, photos: Sequence[str | Path]) -> Iterator[ImageDetections]:
        """As calling, but each result as soon as it is there."""
        data = self.settings.data
        device = next(self.model.parameters()).device
        for photo in photos:
            image = read_image(photo)  # (3, height, width)
            original = torch.tensor(image.shape[1:])
            size = resized_size(*image.shape[1:], data.min_size, data.max_size)
            bottom, right = (padded_size(size) - size).tolist()
            image = F.pad(resize(image, size), (0, right, 0, bottom))
            images = image[None].to(device)  # (1, 3, H, W)
            sizes = torch.tensor([size], device=device)
            with autocast(device, self.precision):
                logits, deltas, anchors = self.model(images, sizes)
            levels = self.model.level_sizes(*images.shape[-2:])
            (found,) = self.postprocess(logits, deltas, anchors, sizes, levels)
            found = to_original(found, sizes[0], original.to(device))
            labels = found.labels.cpu()
            yield ImageDetections(
                boxes=found.boxes.cpu(),
                scores=found.scores.cpu(),
                labels=labels,
                category_ids=tuple(self.category_ids[i] for i in labels.tolist()),
                names=tuple(self.names[i] for i in labels.tolist()),
            )


def load(path: str | Path, device: str = "auto", precision: str = "fp32") -> Detector:
    """A detector from a checkpoint; nothing but that file is needed.

    Args:
        path: such as ``runs/NAME/checkpoints/best.pt``.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: of the forward pass: ``"fp32"``, ``"bf16"`` or, on GPUs, ``"fp16"``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or not a checkpoint of this project.
    """
    state = load_trained(Path(path))
    settings = recorded_settings(state)
    model = load_model(state, settings).to(choose_device(device))
    return Detector(model, settings, state["classes"]["names"], state["classes"]["ids"], precision)


def recorded_settings(state: dict[str, Any]) -> TrainConfig:
    """The settings that a checkpoint was trained with."""
    return restore(TrainConfig, state["settings"])


def load_model(state: dict[str, Any], settings: TrainConfig) -> RetinaNet:
    """The model of a checkpoint with the weights to ship: the average's where there is one.

    Args:
        state: from :func:`retinanet.training.checkpoint.load_trained`.
        settings: :func:`recorded_settings` of it.
    """
    model = build.build_model(settings, len(state["classes"]["names"]), load_later=True)
    model.load_state_dict(shipped_weights(state))
    return model.eval()
