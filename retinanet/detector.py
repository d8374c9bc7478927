"""A trained model with all it needs to look at photos: classes, sizes, anchors, thresholds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retinanet import build
from retinanet.checks import check_settings
from retinanet.data.batches import padded_size
from retinanet.data.images import read_image
from retinanet.data.records import shown
from retinanet.data.transforms import resize, resized_size
from retinanet.devices import autocast, choose_device, choose_precision
from retinanet.exchange.read import read_trained
from retinanet.model.folding import for_inference
from retinanet.model.heads import count_classes
from retinanet.model.retinanet import RetinaNet
from retinanet.postprocess import to_original
from retinanet.recorded import DetectorConfig, restore
from retinanet.training.checkpoint import shipped_weights

# How images come into a model, which every checkpoint must say.
IMAGE_SETTINGS = ("min_size", "max_size", "resize")


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
        settings: DetectorConfig,
        names: Sequence[str],
        ids: Sequence[int],
        precision: str = "fp32",
        thresholds: dict[str, Any] | None = None,
    ) -> None:
        """Take a loaded model; see :func:`load`.

        Args:
            model: on its device; the detector keeps a copy that computes the same in less time.
            settings: that it detects with.
            names: of its classes, in the order of labels.
            ids: category ids of its classes.
            precision: of the forward pass.
            thresholds: scores at which F1 was largest in its evaluation; see
                :func:`known_thresholds`.
        """
        self.precision = precision
        self.thresholds = thresholds
        self.model = for_inference(model, precision)
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
        for photo in photos:
            images, sizes, original = self.prepare(photo)
            with autocast(images.device, self.precision):
                logits, deltas, anchors = self.model(images, sizes)
            levels = self.model.level_sizes(*images.shape[-2:])
            (found,) = self.postprocess(logits, deltas, anchors, sizes, levels)
            found = to_original(found, sizes[0], original)
            labels = found.labels.cpu()
            yield ImageDetections(
                boxes=found.boxes.cpu(),
                scores=found.scores.cpu(),
                labels=labels,
                category_ids=tuple(self.category_ids[i] for i in labels.tolist()),
                names=tuple(self.names[i] for i in labels.tolist()),
            )

    def prepare(self, photo: str | Path) -> tuple[Tensor, Tensor, Tensor]:
        """A photo as the model takes it, on its device.

        Args:
            photo: path.

        Returns:
            The padded image (1, 3, H, W), its size without padding (1, 2), that of the file (2,).
        """
        data = self.settings.data
        device = next(self.model.parameters()).device
        image = read_image(photo)  # (3, height, width)
        original = torch.tensor(image.shape[1:], device=device)
        size = resized_size(*image.shape[1:], data.min_size, data.max_size, data.resize)
        bottom, right = (padded_size(size) - size).tolist()
        image = F.pad(resize(image, size, data.resize), (0, right, 0, bottom))
        return image[None].to(device), torch.tensor([size], device=device), original


def load(path: str | Path, device: str = "auto", precision: str = "fp32") -> Detector:
    """A detector from a checkpoint; nothing but that file is needed.

    Args:
        path: such as ``runs/NAME/checkpoints/best.pt``; or a RetinaNet of torchvision, detectron2
            or mmdetection, which then resizes, rounds and clips as it does there.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: of the forward pass: ``"fp32"``, ``"bf16"``, on GPUs ``"fp16"``; ``"auto"`` takes
            bf16 where the device has it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or nobody's RetinaNet.
    """
    state = read_trained(Path(path))
    place = choose_device(device)
    try:
        settings = recorded_settings(state)
        model = load_model(state, settings).to(place)
        names, ids = known_classes(state, model.num_classes)
        thresholds = known_thresholds(state, model.num_classes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    precision = choose_precision(precision, place)
    return Detector(model, settings, names, ids, precision, thresholds)


def recorded_settings(state: dict[str, Any]) -> DetectorConfig:
    """The settings of a checkpoint that its model detects with.

    Raises:
        ValueError: they are not those of this version, or out of range.
    """
    fields = [f.name for f in dataclasses.fields(DetectorConfig)]
    found = restore(DetectorConfig, {k: v for k, v in state["settings"].items() if k in fields})
    lacking = [name for name in IMAGE_SETTINGS if getattr(found.data, name) is None]
    if lacking:
        raise ValueError(f"the recorded settings lack data.{', data.'.join(lacking)}.")
    check_settings(found)
    return found


def known_classes(state: dict[str, Any], num_classes: int) -> tuple[list[str], list[int]]:
    """Names and category ids of a checkpoint's classes; numbers where nobody wrote them down.

    Raises:
        ValueError: it names more or fewer classes than its model detects.
    """
    names, ids = state["classes"]["names"], state["classes"]["ids"]
    if names is None:
        return [f"class_{label}" for label in range(num_classes)], list(range(num_classes))
    if len(names) != num_classes:
        raise ValueError(
            f"the checkpoint names {len(names)} classes, and its model detects {num_classes}."
        )
    return names, ids


def known_thresholds(state: dict[str, Any], num_classes: int) -> dict[str, Any] | None:
    """The scores at which F1 was largest when a checkpoint was evaluated.

    Returns:
        ``{"iou", "score", "f1", "classes"}``: the IoU of a right detection, the best score for all
        classes together and its F1, and a list of the best score of each label. A score is None
        where nothing was ever right. None for checkpoints without: those that were not evaluated,
        of older versions and of other projects.

    Raises:
        ValueError: they are not that, or of another number of classes.
    """
    found = state.get("thresholds")
    if found is None:
        return None
    listed = found.get("classes") if isinstance(found, dict) else None
    if not isinstance(listed, list) or len(listed) != num_classes:
        got = f"{len(listed)} of them" if isinstance(listed, list) else "no such list"
        raise ValueError(
            f"the checkpoint's thresholds must list a score for each of its {num_classes} classes, "
            f"got {got}."
        )
    values = [found.get("score"), found.get("f1"), *listed]
    wrong = [value for value in values if value is not None and not _is_fraction(value)]
    wrong += [] if _is_fraction(found.get("iou")) else [found.get("iou")]
    if wrong:
        raise ValueError(
            f"the checkpoint's thresholds must be numbers from 0 to 1, or None where nothing is "
            f"known, got {shown(wrong[0])}. Use a checkpoint as train.py wrote it."
        )
    return {key: found.get(key) for key in ("iou", "score", "f1", "classes")}


def _is_fraction(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def load_model(state: dict[str, Any], settings: DetectorConfig) -> RetinaNet:
    """The model of a checkpoint with the weights to ship: the average's where there is one.

    Args:
        state: from :func:`retinanet.exchange.read.read_trained`.
        settings: :func:`recorded_settings` of it.

    Raises:
        ValueError: parameters are missing or left over.
    """
    weights = shipped_weights(state)
    # First what makes a model large: what is described may fit into no memory.
    _refuse(_misfits(weights, _described_shapes(settings)))
    K = count_classes(weights)
    model = build.build_model(settings, K, load_later=True)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    _refuse(sorted(weights.keys() - wanted.keys()) + _misfits(weights, wanted))
    model.load_state_dict(weights)
    return model.eval()


def _described_shapes(settings: DetectorConfig) -> dict[str, tuple[int, ...]]:
    """Parameter -> shape, of those that show the numbers of ``settings``."""
    model, anchors = settings.model, settings.anchors
    a = len(anchors.scales) * len(anchors.ratios)
    C = model.fpn_channels
    widths = [C] + [model.head_channels] * min(model.head_depth, 2)
    shapes = {"fpn.p7.weight": (C, C, 3, 3), "head.box.pred.weight": (4 * a, widths[-1], 3, 3)}
    if model.head_depth:
        last = f"head.cls.convs.{model.head_depth - 1}.weight"
        shapes[last] = (widths[-1], widths[-2], 3, 3)
    return shapes


def _misfits(weights: dict[str, Tensor], wanted: dict[str, tuple[int, ...]]) -> list[str]:
    """Names in ``wanted`` that the weights lack, or have in another shape."""
    return [n for n, shape in wanted.items() if n not in weights or weights[n].shape != shape]


def _refuse(wrong: list[str]) -> None:
    if wrong:
        raise ValueError(
            f"the checkpoint does not hold the model it describes: {len(wrong)} parameters are "
            f"missing, left over or of another shape, such as {', '.join(map(str, wrong[:3]))}."
        )
