"""Pictures of matched anchors: what the network is taught, for TensorBoard and train_batch.png."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from retinanet.data.coco import CocoData
from retinanet.data.loader import Batch, BatchDataset, plan_batch
from retinanet.data.transforms import Augment
from retinanet.devices import autocast
from retinanet.matching import IGNORED, Match
from retinanet.model.retinanet import RetinaNet
from retinanet.tools.report.boxes import Box, Panel, draw_sheet
from retinanet.tools.report.pictures import class_names
from retinanet.tools.report.style import class_color
from retinanet.training.trainer import Trainer

# Images of a batch that are drawn, and panels side by side.
MAX_IMAGES, COLUMNS = 4, 2
# Ignored anchors drawn in one image; they are many, and show where the thresholds lie.
MAX_IGNORED = 60
# An object that no anchor is positive for.
UNMATCHED = "#ff0000"
LEGEND = {
    "thick: object": None,
    "thin: anchor that is positive for it": None,
    "dashed white: some ignored anchors": None,
    "object without a positive anchor": UNMATCHED,
}
# A positive anchor without a score, and one to which the network gives a score of 0.
OPACITY, FAINTEST = 0.75, 0.15


def draw_batch(trainer: Trainer, batch: Batch, data: CocoData) -> np.ndarray:
    """The first images of a batch as the network sees them, with their matched anchors.

    Args:
        trainer: matches as in training.
        batch: on any device.
        data: names files and classes.

    Returns:
        (H, W, 3) uint8.
    """
    batch = Batch(*(tensor[:MAX_IMAGES] for tensor in batch[:-1]), batch.replaced)
    batch = batch.to(trainer.device)
    H, W = batch.images.shape[-2:]
    anchors = trainer.model.anchors(H, W, trainer.device)
    return _draw(panels_of(batch, trainer.match(batch), anchors, None, data))


def draw_progress(
    trainer: Trainer, model: RetinaNet, data: CocoData, augment: Augment
) -> np.ndarray | None:
    """The same training images at every call: the higher its score, the darker a positive anchor.

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
    # (B, A): of the class of each positive anchor
    scores = logits.float().sigmoid().gather(2, match.label.clamp(min=0)[..., None])[..., 0]
    return _draw(panels_of(batch, match, anchors, scores, data))


def fixed_batch(data: CocoData, augment: Augment) -> Batch | None:
    """Images with objects, spread evenly over the set; None if there are none or one is damaged."""
    candidates = np.flatnonzero(data.num_boxes() > 0)
    count = min(MAX_IMAGES, len(candidates))
    if not count:
        return None
    indices = candidates[np.arange(count) * len(candidates) // count]
    batch = BatchDataset(data, augment, 0, "stop")[plan_batch(data, augment, indices)]
    return batch if isinstance(batch, Batch) else None


def panels_of(
    batch: Batch, match: Match, anchors: Tensor, scores: Tensor | None, data: CocoData
) -> list[Panel]:
    """Each image of a batch with its ignored and positive anchors, and above them its objects.

    Args:
        batch: the images.
        match: of its anchors.
        anchors: (A, 4) pixels.
        scores: (B, A) of the class of each positive anchor; None: not known.
        data: names the files and classes.
    """
    names = class_names(data)
    index_of = {int(image_id): index for index, image_id in enumerate(data.image_ids)}
    panels = []
    for i, (height, width) in enumerate(batch.sizes.tolist()):
        label = match.label[i]
        positive, object_rows = label >= 0, batch.labels[i] >= 0
        ignored = anchors[label == IGNORED].tolist()
        some = np.linspace(0, len(ignored) - 1, min(len(ignored), MAX_IGNORED)).astype(int)
        drawn = [Box(ignored[row], "#ffffff", "", "dashed", 0.55) for row in some]

        known = [] if scores is None else scores[i][positive].tolist()
        opacity = [FAINTEST + (1 - FAINTEST) * score for score in known]
        opacity = opacity or [OPACITY] * int(positive.sum())
        positives = zip(anchors[positive].tolist(), label[positive].tolist(), opacity, strict=True)
        drawn += [Box(box, class_color(k), "", "thin", seen) for box, k, seen in positives]

        objects = batch.boxes[i][object_rows]  # (G, 4)
        # A positive anchor carries the box of its object as it is.
        matched = (objects[:, None] == match.box[i][positive]).all(dim=2).any(dim=1)
        labels = batch.labels[i][object_rows].tolist()
        for box, k, is_matched in zip(objects.tolist(), labels, matched.tolist(), strict=True):
            drawn.append(Box(box, class_color(k) if is_matched else UNMATCHED, names[k], "haloed"))

        title = f"{data.file_name(index_of[int(batch.image_ids[i])])}\n{len(objects)} objects, "
        title += f"{int(positive.sum())} positive anchors, {len(ignored)} ignored"
        if known:
            title += f", mean score of positives {np.mean(known):.2f}"
        image = batch.images[i, :, :height, :width].permute(1, 2, 0)
        pixels = image.clamp(0, 255).to(torch.uint8).cpu().numpy()
        panels.append(Panel(title, pixels, (height, width), drawn))
    return panels


def _draw(panels: list[Panel]) -> np.ndarray:
    rows = [panels[start : start + COLUMNS] for start in range(0, len(panels), COLUMNS)]
    return draw_sheet(rows, LEGEND)
