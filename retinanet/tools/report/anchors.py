"""Pictures of what the network is taught: anchors and the objects that they answer for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from retinanet.data.coco import CocoData
from retinanet.data.loader import Batch, BatchDataset, plan_batch
from retinanet.data.transforms import Augment
from retinanet.devices import autocast
from retinanet.matching import IGNORED, Match
from retinanet.model.retinanet import RetinaNet
from retinanet.tools.report.pictures import (
    GAP,
    HEADER,
    PANEL_WIDTH,
    class_color,
    draw_caption,
    render,
)
from retinanet.tools.report.style import BLACK, house_style, plain_text
from retinanet.training.trainer import Trainer

# Images of a batch that are drawn, and panels side by side.
MAX_IMAGES, COLUMNS = 4, 2
# Ignored anchors drawn in one image; they are many, and say where the thresholds lie.
MAX_IGNORED = 60
# Objects of one image that get a name.
MAX_NAMED = 12
# An object that no anchor is responsible for.
FORGOTTEN = "#ff0000"
LEGEND = (
    "thick: object    thin: anchor that is positive for it    dashed white: some ignored anchors"
    "    red: object without a positive"
)
# A positive that the network gives a score of 0 is drawn this faintly.
FAINTEST = 0.15


@dataclass(frozen=True, slots=True)
class Taught:
    """One image, its objects, and the anchors that are not background."""

    name: str
    image: np.ndarray  # (h, w, 3) uint8
    boxes: np.ndarray  # (G, 4) x1, y1, x2, y2 in pixels of the image
    labels: np.ndarray  # (G,)
    forgotten: np.ndarray  # (G,) bool: no anchor is positive for it
    positives: np.ndarray  # (P, 4)
    positive_labels: np.ndarray  # (P,)
    scores: np.ndarray | None  # (P,) of their own class, in [0, 1]
    ignored: np.ndarray  # (I, 4)


def draw_batch(trainer: Trainer, batch: Batch, data: CocoData) -> np.ndarray:
    """The first images of a batch as the network sees them, with their matched anchors.

    Args:
        trainer: matches as in training.
        batch: on any device.
        data: names files and classes.

    Returns:
        (H, W, 3) uint8.
    """
    batch = _first(batch).to(trainer.device)
    H, W = batch.images.shape[-2:]
    anchors = trainer.model.anchors(H, W, trainer.device)
    return draw(taught(batch, trainer.match(batch), anchors, None, data), data.category_names)


def draw_progress(
    trainer: Trainer, model: RetinaNet, data: CocoData, augment: Augment
) -> np.ndarray | None:
    """The same training images at every call: positives are the darker, the surer the model is.

    Args:
        trainer: matches as in training.
        model: whose scores are drawn, in any mode.
        data: the training set.
        augment: one made with ``train=False``.

    Returns:
        (H, W, 3) uint8; None where an image cannot be read, or none has an object.
    """
    batch = fixed_batch(data, augment)
    if batch is None:
        return None
    batch = batch.to(trainer.device)
    match = trainer.match(batch)
    training = model.training
    model.eval()
    with torch.no_grad(), autocast(trainer.device, trainer.precision):
        logits, _, anchors = model(batch.images, batch.sizes)
    model.train(training)
    scores = logits.float().sigmoid().gather(2, match.label.clamp(min=0)[..., None])[..., 0]
    return draw(taught(batch, match, anchors, scores, data), data.category_names)


def fixed_batch(data: CocoData, augment: Augment) -> Batch | None:
    """Images with objects, spread evenly over the set; None if there are none or one is damaged."""
    candidates = np.flatnonzero(data.num_boxes() > 0)
    count = min(MAX_IMAGES, len(candidates))
    if not count:
        return None
    indices = candidates[np.arange(count) * len(candidates) // count]
    batch = BatchDataset(data, augment, 0, "stop")[plan_batch(data, augment, indices)]
    return batch if isinstance(batch, Batch) else None


def taught(
    batch: Batch, match: Match, anchors: Tensor, scores: Tensor | None, data: CocoData
) -> list[Taught]:
    """What each image of a batch teaches.

    Args:
        batch: the images.
        match: of its anchors.
        anchors: (A, 4) pixels.
        scores: (B, A) of the class of each positive anchor; None: not known.
        data: names the files.
    """
    index_of = {int(image_id): index for index, image_id in enumerate(data.image_ids)}
    found = []
    for i, (height, width) in enumerate(batch.sizes.tolist()):
        positive, real = match.label[i] >= 0, batch.labels[i] >= 0
        boxes = batch.boxes[i][real]
        # A positive anchor carries its object's box as it is.
        served = (boxes[:, None] == match.box[i][positive]).all(dim=2).any(dim=1)
        image = batch.images[i, :, :height, :width].permute(1, 2, 0)
        found.append(
            Taught(
                name=data.file_name(index_of[int(batch.image_ids[i])]),
                image=image.clamp(0, 255).to(torch.uint8).cpu().numpy(),
                boxes=boxes.cpu().numpy(),
                labels=batch.labels[i][real].cpu().numpy(),
                forgotten=~served.cpu().numpy(),
                positives=anchors[positive].cpu().numpy(),
                positive_labels=match.label[i][positive].cpu().numpy(),
                scores=None if scores is None else scores[i][positive].cpu().numpy(),
                ignored=anchors[match.label[i] == IGNORED].cpu().numpy(),
            )
        )
    return found


def draw(images: Sequence[Taught], names: Sequence[str]) -> np.ndarray:
    """Objects, positive and ignored anchors of some images, in one picture.

    Args:
        images: at least one.
        names: of the classes.

    Returns:
        (H, W, 3) uint8.
    """
    rows = [images[start : start + COLUMNS] for start in range(0, len(images), COLUMNS)]
    heights = [
        max(round(PANEL_WIDTH * t.image.shape[0] / t.image.shape[1]) for t in row) for row in rows
    ]
    width = min(len(images), COLUMNS) * (PANEL_WIDTH + GAP) + GAP
    height = sum(heights) + len(rows) * (2 * HEADER + GAP) + HEADER
    with house_style():
        figure = Figure(figsize=(width / 100, height / 100), dpi=100)
        top = height
        for row, row_height in zip(rows, heights, strict=True):
            top -= 2 * HEADER
            for column, image in enumerate(row):
                own = round(PANEL_WIDTH * image.image.shape[0] / image.image.shape[1])
                left = GAP + column * (PANEL_WIDTH + GAP)
                place = (left / width, (top - own) / height, PANEL_WIDTH / width, own / height)
                _draw_image(figure.add_axes(place), image, names)
            top -= row_height + GAP
        figure.text(GAP / width, GAP / height, LEGEND, fontsize=8, color=BLACK)
        return render(figure)


def describe(image: Taught) -> str:
    """How many objects and anchors there are."""
    text = (
        f"{len(image.boxes)} objects, {len(image.positives)} positive anchors, "
        f"{len(image.ignored)} ignored"
    )
    if image.scores is not None and len(image.scores):
        text += f", mean score of positives {image.scores.mean():.2f}"
    return text


def _draw_image(axes: Axes, taught: Taught, names: Sequence[str]) -> None:
    height, width = taught.image.shape[:2]
    axes.imshow(taught.image, extent=(0, width, height, 0), aspect="auto")
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    forgotten = int(taught.forgotten.sum())
    title = f"{plain_text(taught.name, 60)}\n{describe(taught)}"
    axes.set_title(title, fontsize=8, fontweight="normal", color=BLACK, pad=4)
    some = np.linspace(0, len(taught.ignored) - 1, min(len(taught.ignored), MAX_IGNORED)).astype(
        int
    )
    _draw_boxes(axes, taught.ignored[some], "#ffffff", linewidths=0.6, alpha=0.55, dashed=True)
    for label in np.unique(taught.positive_labels):
        own = taught.positive_labels == label
        alpha = 0.75
        if taught.scores is not None:
            alpha = FAINTEST + (1 - FAINTEST) * taught.scores[own]
        _draw_boxes(axes, taught.positives[own], class_color(label), linewidths=0.8, alpha=alpha)
    for box, label, lost in zip(taught.boxes, taught.labels, taught.forgotten, strict=True):
        # White below, so that an object stands out from anchors of its color.
        _draw_boxes(axes, box[None], "#ffffff", linewidths=3.2)
        _draw_boxes(axes, box[None], FORGOTTEN if lost else class_color(label), linewidths=2.0)
    if forgotten:
        axes.text(
            *(0.99, 0.01, f"{forgotten} without a positive anchor"),
            **{"transform": axes.transAxes, "ha": "right", "va": "bottom", "fontsize": 8},
            color="white",
            bbox={"facecolor": FORGOTTEN, "edgecolor": "none", "pad": 1.5},
        )
    for box, label in list(zip(taught.boxes, taught.labels, strict=True))[:MAX_NAMED]:
        draw_caption(axes, box[0], box[1], plain_text(names[label], 22), class_color(int(label)))


def _draw_boxes(
    axes: Axes, boxes: np.ndarray, color: str | tuple, *, dashed: bool = False, **style: object
) -> None:
    """Outlines of (N, 4) boxes as one collection: hundreds of patches would take seconds."""
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3, 0, 1]].reshape(-1, 5, 2)
    dashes = "dashed" if dashed else "solid"
    axes.add_collection(
        LineCollection(corners, colors=[color] * len(boxes), linestyles=dashes, **style),
        autolim=False,
    )


def _first(batch: Batch) -> Batch:
    """At most ``MAX_IMAGES`` images."""
    return Batch(*(tensor[:MAX_IMAGES] for tensor in batch[:-1]), batch.replaced)
