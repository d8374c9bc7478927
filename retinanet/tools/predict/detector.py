"""A trained model with all it needs to look at photos: classes, sizes, anchors, thresholds."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retinanet import build
from retinanet.build import known_classes, load_model, recorded_settings
from retinanet.config import DetectorConfig
from retinanet.data.workers import free_shared_memory
from retinanet.devices import choose_device, choose_precision
from retinanet.evaluation.detect import detect_images
from retinanet.evaluation.thresholds import known_thresholds, min_scores
from retinanet.fast.fold_batchnorm import for_inference
from retinanet.model.retinanet import RetinaNet
from retinanet.postprocess import Detections
from retinanet.tools.predict.prepared import (
    Photo,
    Prepared,
    Preparer,
    Unreadable,
    in_batches,
    pad_together,
    pixels_of,
    prepare_all,
    shared_bytes,
)
from retinanet.weights.read import read_trained


@dataclass(frozen=True, slots=True)
class ImageDetections:
    """Objects found in one photo, best first."""

    boxes: Tensor  # (D, 4) x1, y1, x2, y2 in pixels of the photo as displayed
    scores: Tensor  # (D,) in (0, 1)
    labels: Tensor  # (D,) int64 in [0, K)
    category_ids: tuple[int, ...]  # of the data the model was trained on
    names: tuple[str, ...]
    size: tuple[int, int]  # height, width of the photo as displayed, pixels


class Detector:
    """Photos in, detections out.

    A photo is a path, an image of Pillow, or RGB of uint8: an array (H, W, 3) or a tensor
    (3, H, W). ``thresholds`` are the scores of best F1 on the validation set, as
    :func:`retinanet.evaluation.thresholds.known_thresholds` describes them.
    """

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
            thresholds: see the class.
        """
        self.precision = precision
        self.model = for_inference(model, precision)
        self.settings = settings
        self.names = tuple(names)
        self.category_ids = tuple(ids)
        self.thresholds = thresholds
        self.postprocess = build.build_postprocess(settings)

    def __call__(
        self, photos: Iterable[Photo], *, score: float | str | None = None, batch_size: int = 1
    ) -> list[ImageDetections]:
        """Detect on photos; the results have their order.

        Args:
            photos: any number; see the class.
            score: see :meth:`min_scores`.
            batch_size: photos of one padded size that go through the model together. Boxes and
                scores in fp32 are the same to 1e-5 of their size.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file that is no readable image, an array of another shape or type, or a
                score out of range.
        """
        return list(self.stream(photos, score=score, batch_size=batch_size))

    def stream(
        self, photos: Iterable[Photo], *, score: float | str | None = None, batch_size: int = 1
    ) -> Iterator[ImageDetections]:
        """As calling, but each result as soon as it and those before it are there."""
        early: dict[int, ImageDetections] = {}
        wanted = 0
        for index, found in self.outcomes(photos, score=score, batch_size=batch_size):
            if not isinstance(found, ImageDetections):
                raise found
            early[index] = found
            while wanted in early:
                yield early.pop(wanted)
                wanted += 1

    @torch.inference_mode()
    def outcomes(
        self,
        photos: Iterable[Photo],
        *,
        score: float | str | None = None,
        batch_size: int = 1,
        workers: int = 0,
    ) -> Iterator[tuple[int, ImageDetections | ValueError | OSError]]:
        """What becomes of each photo, in the order in which that is known.

        Args:
            photos: of which few are in memory at a time.
            score: see :meth:`min_scores`.
            batch_size: see calling.
            workers: processes that read ahead; 0: photos are read one by one.

        Yields:
            The position of a photo, and what was found in it or why it cannot be read.

        Raises:
            FloatingPointError: the model's output is not a number.
        """
        if isinstance(photos, str | Path | Image.Image | np.ndarray | Tensor):
            raise ValueError("give a list of photos, such as [photo], also for one.")
        minimum = self.min_scores(score)
        postprocess = copy.copy(self.postprocess)
        if score is not None:  # what is asked for may be weaker than what usually is kept
            postprocess.score_threshold = min(postprocess.score_threshold, minimum.min().item())
        for group in in_batches(self._prepared(photos, workers), batch_size):
            if isinstance(group, Unreadable):
                yield group
                continue
            batch = [tensor.to(self.device, non_blocking=True) for tensor in pad_together(group)]
            indices = [photo.index for photo in group]
            found = detect_images(self.model, postprocess, batch, self.precision, indices)
            for photo, image in zip(group, found, strict=True):
                yield photo.index, self._result(image, photo.original, minimum)

    def can_share(self, workers: int, batch_size: int) -> bool:
        """Whether /dev/shm holds what so many workers read ahead.

        Args:
            workers: see :meth:`outcomes`.
            batch_size: see calling.
        """
        free = free_shared_memory()
        return free is None or shared_bytes(self._preparer(()), workers, batch_size) <= free

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def min_scores(self, score: float | str | None = None) -> Tensor:
        """The score that a detection of each class must reach, (K,) float32.

        Args:
            score: None: as the checkpoint's own evaluation (``postprocess.score_threshold``, 0.05
                in most). A number in [0, 1): that, for every class. ``"auto"``: the class's score
                of best F1 on the validation set, or that of all classes, or 0.3 where the
                checkpoint knows neither.

        Raises:
            ValueError: something else.
        """
        kept, K = self.postprocess.score_threshold, len(self.names)
        return min_scores(score, self.thresholds, K, kept)

    def draw(self, photo: Photo, found: ImageDetections) -> Image.Image:
        """The photo with boxes, names and scores on it, as an image of Pillow.

        Args:
            photo: in which it was found.
            found: of this detector.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it cannot be read.
        """
        from retinanet.tools.report.pictures import draw_detections  # imports matplotlib: only now

        pixels = pixels_of(photo).permute(1, 2, 0).numpy()
        what = found.labels, found.names, found.category_ids, found.scores
        return draw_detections(pixels, found.boxes, *what)

    def prepare(self, photo: Photo) -> tuple[Tensor, Tensor, Tensor]:
        """A photo as the model takes it, on its device.

        Args:
            photo: see the class.

        Returns:
            The padded image (1, 3, H, W), its size without padding (1, 2), that of the file (2,).
        """
        prepared = self._preparer([photo])[0]
        if isinstance(prepared, Unreadable):
            raise prepared.error
        images, sizes, originals = (x.to(self.device) for x in pad_together([prepared]))
        return images, sizes, originals[0]

    def _preparer(self, photos: Sequence[Photo]) -> Preparer:
        data = self.settings.data
        return Preparer(photos, data.min_size, data.max_size, data.resize)

    def _prepared(self, photos: Iterable[Photo], workers: int) -> Iterable[Prepared | Unreadable]:
        """Every photo ready for the model, or why it cannot be read."""
        if workers:
            pinned = self.device.type == "cuda"
            return prepare_all(self._preparer(list(photos)), workers, pinned)
        preparer = self._preparer(())
        return (preparer.prepare(index, photo) for index, photo in enumerate(photos))

    def _result(self, found: Detections, size: tuple[int, int], minimum: Tensor) -> ImageDetections:
        """Detections on the CPU, with their names, without the weak ones."""
        boxes, scores, labels = (field.cpu() for field in found)
        kept = scores >= minimum[labels]
        labels = labels[kept]
        return ImageDetections(
            boxes=boxes[kept],
            scores=scores[kept],
            labels=labels,
            category_ids=tuple(self.category_ids[i] for i in labels.tolist()),
            names=tuple(self.names[i] for i in labels.tolist()),
            size=size,
        )


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
