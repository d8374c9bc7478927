"""Load a trained model with its classes, sizes, anchors and thresholds, and detect in images."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from retinanet import build
from retinanet.build import known_classes, load_model, recorded_settings
from retinanet.checks import check
from retinanet.config import DetectorConfig
from retinanet.data.images import pillow_pixels, read_image
from retinanet.data.loader import padded_size
from retinanet.data.transforms import resize, resized_size
from retinanet.data.workers import PREFETCH, free_shared_memory, receive, share, start_worker
from retinanet.devices import choose_device, choose_precision
from retinanet.evaluation.detect import detect_images
from retinanet.evaluation.thresholds import known_thresholds, min_scores
from retinanet.fast.fold_batchnorm import for_inference
from retinanet.model.retinanet import RetinaNet
from retinanet.weights.read import read_trained

# A path, an image of Pillow, or RGB of uint8: an array (H, W, 3) or a tensor (3, H, W).
ImageLike = str | Path | Image.Image | np.ndarray | Tensor

# Images wait until a batch of their padded size is full, but no more than this many batches' worth:
# that bounds the memory, and how long the oldest waits.
WAITING_BATCHES = 4


@dataclass(frozen=True, slots=True)
class ImageDetections:
    """Detections in one image, best first."""

    boxes: Tensor  # (D, 4) x1, y1, x2, y2 in pixels of the image as displayed
    scores: Tensor  # (D,) in (0, 1)
    labels: Tensor  # (D,) int64 in [0, K)
    category_ids: tuple[int, ...]  # of the data the model was trained on
    names: tuple[str, ...]
    size: tuple[int, int]  # height, width of the image as displayed, pixels


class Resized(NamedTuple):
    """An image as the model takes it."""

    index: int  # among the images
    pixels: Tensor  # (3, height, width) not padded; uint8, or float32 from 0 to 255
    original: tuple[int, int]  # height, width of the image as displayed


class Unreadable(NamedTuple):
    """An image that cannot be read, and why."""

    index: int
    error: ValueError | OSError


class Detector:
    """Images in, detections out."""

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
            thresholds: scores of best F1 on the validation set, see
                :func:`retinanet.evaluation.thresholds.known_thresholds`.
        """
        self.precision = precision
        self.model = for_inference(model, precision)
        self.settings = settings
        self.names = tuple(names)
        self.category_ids = tuple(ids)
        self.thresholds = thresholds
        self.postprocess = build.build_postprocess(settings)

    def __call__(
        self, images: Iterable[ImageLike], *, score: float | str | None = None, batch_size: int = 1
    ) -> list[ImageDetections]:
        """Detections of each image, in their order.

        Args:
            images: any number, each as in ``ImageLike``.
            score: see :meth:`min_scores`.
            batch_size: images of one padded size that go through the model together. Boxes and
                scores in fp32 are the same to 1e-5 of their size.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file that is no readable image, an array of another shape or type, or a
                score out of range.
        """
        return list(self.stream(images, score=score, batch_size=batch_size))

    def stream(
        self, images: Iterable[ImageLike], *, score: float | str | None = None, batch_size: int = 1
    ) -> Iterator[ImageDetections]:
        """As calling, but each result as soon as it and those before it are there."""
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number, at least 1, got {batch_size!r}.")
        early: dict[int, ImageDetections] = {}
        wanted = 0
        for index, detections in self.outcomes(images, score=score, batch_size=batch_size):
            if not isinstance(detections, ImageDetections):
                raise detections
            early[index] = detections
            while wanted in early:
                yield early.pop(wanted)
                wanted += 1

    @torch.inference_mode()
    def outcomes(
        self,
        images: Iterable[ImageLike],
        *,
        score: float | str | None = None,
        batch_size: int = 1,
        workers: int = 0,
    ) -> Iterator[tuple[int, ImageDetections | ValueError | OSError]]:
        """What becomes of each image, in the order in which that is known.

        Args:
            images: of which few are in memory at a time.
            score: see :meth:`min_scores`.
            batch_size: see calling.
            workers: processes that read ahead; 0: images are read one by one.

        Yields:
            The index of an image, and its detections or why it cannot be read.

        Raises:
            FloatingPointError: the model's output is not a number.
        """
        if isinstance(images, ImageLike):
            raise ValueError("give a list of images, such as [image], also for one.")
        minimum = self.min_scores(score)
        postprocess = copy.copy(self.postprocess)
        if score is not None:  # what is asked for may be weaker than what usually is kept
            postprocess.score_threshold = min(postprocess.score_threshold, minimum.min().item())
        for group in in_batches(self._resized(images, workers), batch_size):
            if isinstance(group, Unreadable):
                yield group
                continue
            batch = [tensor.to(self.device, non_blocking=True) for tensor in pad_together(group)]
            indices = [image.index for image in group]
            detections = detect_images(self.model, postprocess, batch, self.precision, indices)
            for image, fields in zip(group, detections, strict=True):
                boxes, scores, labels = (field.cpu() for field in fields)
                kept = scores >= minimum[labels]
                boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
                ids = tuple(self.category_ids[label] for label in labels.tolist())
                names = tuple(self.names[label] for label in labels.tolist())
                result = ImageDetections(boxes, scores, labels, ids, names, image.original)
                yield image.index, result

    def _resized(self, images: Iterable[ImageLike], workers: int) -> Iterator[Resized | Unreadable]:
        """Every image ready for the model, or why it cannot be read, in their order."""
        data = self.settings.data
        limits = data.min_size, data.max_size, data.resize
        if workers == 0:
            yield from (read_and_resize(limits, item) for item in enumerate(images))
            return
        loader = DataLoader(
            list(enumerate(images)),
            batch_size=None,
            num_workers=workers,
            collate_fn=functools.partial(read_and_resize, limits),
            pin_memory=self.device.type == "cuda",
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # the global one stays as it is
        )
        yield from receive(loader, "lower the batch size")

    def can_share(self, workers: int, batch_size: int) -> bool:
        """Whether /dev/shm holds what so many workers read ahead, with batches of that size."""
        data, free = self.settings.data, free_shared_memory()
        num_images = PREFETCH * workers + (WAITING_BATCHES + 1) * batch_size
        value_bytes = 4 if data.resize == "torchvision" else 1
        needed = num_images * 3 * data.min_size * data.max_size * value_bytes
        return free is None or needed <= free

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
        return min_scores(score, self.thresholds, len(self.names), self.postprocess.score_threshold)

    def draw(self, image: ImageLike, detections: ImageDetections) -> Image.Image:
        """The image with boxes, names and scores of its detections on it.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it cannot be read.
        """
        from retinanet.tools.report.boxes import draw_detections  # imports matplotlib: only now

        pixels = read_pixels(image).permute(1, 2, 0).numpy()
        labels, names, ids = detections.labels, detections.names, detections.category_ids
        return draw_detections(pixels, detections.boxes, labels, names, ids, detections.scores)

    def prepare(self, image: ImageLike) -> tuple[Tensor, Tensor, Tensor]:
        """The padded image (1, 3, H, W), its size without padding (1, 2), that of the file (2,)."""
        (resized,) = self._resized([image], workers=0)
        if isinstance(resized, Unreadable):
            raise resized.error
        images, sizes, originals = (x.to(self.device) for x in pad_together([resized]))
        return images, sizes, originals[0]


def load(
    path: str | Path, device: str | int | torch.device = "auto", precision: str = "fp32"
) -> Detector:
    """A detector from a checkpoint; nothing but that file is needed.

    Args:
        path: such as ``runs/NAME/checkpoints/best.pt``; or a RetinaNet of torchvision, detectron2
            or mmdetection, which then resizes, rounds and clips as it does there.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or 1, ``"mps"``; a torch.device.
        precision: of the forward pass: ``"fp32"``, ``"bf16"``, on GPUs ``"fp16"``; ``"auto"`` takes
            bf16 where the device has it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or nobody's RetinaNet; a device that is not there.
    """
    check("precision", precision)
    place = choose_device(device)
    state = read_trained(Path(path).expanduser())
    try:
        settings = recorded_settings(state)
        model = load_model(state, settings).to(place)
        names, ids = known_classes(state, model.num_classes)
        thresholds = known_thresholds(state, model.num_classes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Detector(model, settings, names, ids, choose_precision(precision, place), thresholds)


def read_pixels(image: ImageLike) -> Tensor:
    """The pixels of an image as it is displayed, after its EXIF orientation: (3, H, W) uint8 RGB.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no readable image, or an array of another shape or type.
        TypeError: something else.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return pillow_pixels(image)
    if not isinstance(image, np.ndarray | Tensor):
        raise TypeError(
            f"an image is a path, an image of Pillow, an array or a tensor, got {type(image)}."
        )
    is_array = isinstance(image, np.ndarray)
    right = image.ndim == 3 and image.shape[2 if is_array else 0] == 3 and 0 not in image.shape
    if not right or image.dtype not in (np.uint8, torch.uint8):
        what = "an array (H, W, 3)" if is_array else "a tensor (3, H, W)"
        raise ValueError(
            f"{what} of uint8 from 0 to 255, RGB, makes an image; got {tuple(image.shape)} of "
            f"{image.dtype}."
        )
    if is_array:
        own = np.require(image, requirements=("C", "W"))  # torch warns of what is read-only
        return torch.from_numpy(own).permute(2, 0, 1)  # (3, H, W)
    return image.cpu()


def read_and_resize(
    limits: tuple[int, int, str], item: tuple[int, ImageLike]
) -> Resized | Unreadable:
    """An image as the model takes it, or why it cannot be read.

    Args:
        limits: of the shorter side after resizing, of the longer one, pixels; and the rule, see
            :func:`retinanet.data.transforms.resize`.
        item: index of the image, and the image.
    """
    (min_size, max_size, rule), (index, image) = limits, item
    try:
        pixels = read_pixels(image)
    except (ValueError, OSError) as error:
        # Without where it arose: that cannot go from one process to another.
        return Unreadable(index, error.with_traceback(None))
    height, width = pixels.shape[1:]
    size = resized_size(height, width, min_size, max_size, rule)
    return share(Resized(index, resize(pixels, size, rule), (height, width)))


def in_batches(
    images: Iterable[Resized | Unreadable], batch_size: int
) -> Iterator[list[Resized] | Unreadable]:
    """Images of one padded size together, in an order that only depends on the images."""
    waiting: dict[tuple[int, int], list[Resized]] = {}  # by padded height and width
    for image in images:
        if isinstance(image, Unreadable):
            yield image
            continue
        padded = tuple(padded_size(np.array(image.pixels.shape[1:])).tolist())
        group = waiting.setdefault(padded, [])
        group.append(image)
        if len(group) == batch_size:
            yield waiting.pop(padded)
        elif sum(map(len, waiting.values())) == WAITING_BATCHES * batch_size:
            yield waiting.pop(min(waiting, key=lambda size: waiting[size][0].index))
    yield from waiting.values()


def pad_together(images: Sequence[Resized]) -> tuple[Tensor, Tensor, Tensor]:
    """Images of one padded size as a batch.

    Returns:
        Images (B, 3, H, W), zeros at right and bottom, channels last in memory; their sizes
        without padding (B, 2); those of the files (B, 2).
    """
    sizes = torch.tensor([image.pixels.shape[1:] for image in images])
    H, W = padded_size(sizes[0].numpy()).tolist()
    batch = torch.zeros(len(images), H, W, 3, dtype=images[0].pixels.dtype).permute(0, 3, 1, 2)
    for row, image in zip(batch, images, strict=True):
        _, height, width = image.pixels.shape
        row[:, :height, :width] = image.pixels
    return batch, sizes, torch.tensor([image.original for image in images])
