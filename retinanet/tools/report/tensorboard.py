"""What TensorBoard gets of a run beside its rows: curves, distributions, and matched anchors."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from retinanet.data.coco import CocoData
from retinanet.data.loader import Batch, BatchDataset, plan_batch
from retinanet.data.transforms import Augment
from retinanet.devices import autocast
from retinanet.evaluation.average_precision import Evaluation
from retinanet.matching import IGNORED, NEGATIVE, Match
from retinanet.model.retinanet import RetinaNet
from retinanet.tools.report.boxes import (
    Box,
    Panel,
    class_names,
    draw_sheet,
    in_rows,
    save_picture,
    spread,
)
from retinanet.tools.report.figures import precision_curves
from retinanet.tools.report.style import class_color
from retinanet.training.logs import Board, MetricsLog
from retinanet.training.run_directory import RunDirectory
from retinanet.training.trainer import Trainer

# Images of a batch that are drawn, and panels side by side.
MAX_IMAGES, COLUMNS = 4, 2
# Ignored anchors drawn in one image; they are many, and show where the thresholds lie.
MAX_IGNORED = 60
# Background anchors drawn for the histogram of p_t; all of them are millions of numbers.
P_T_SAMPLES = 20_000
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


def show_first_batch(
    log: MetricsLog, directory: RunDirectory, trainer: Trainer, data: CocoData
) -> None:
    """The first batch with its matched anchors, as ``plots/train_batch.png`` too.

    Raises:
        OSError: it cannot be written.
    """
    latest = trainer.latest
    batch = Batch(*(tensor[:MAX_IMAGES] for tensor in latest[:-1]), latest.replaced)
    batch = batch.to(trainer.device)
    anchors = trainer.model.anchors(*batch.images.shape[-2:], trainer.device)
    picture = draw_anchors(batch, trainer.match(batch), anchors, None, data)
    save_picture(picture, directory.plots / "train_batch.png")
    log.show(lambda board: board.image(trainer.step, "train_batch", picture))


def show_evaluation(
    board: Board,
    trainer: Trainer,
    evaluation: Evaluation,
    *,
    best: float | None,
    model: RetinaNet,
    data: CocoData,
    augment: Augment | None,
    predictions: np.ndarray | None,
) -> None:
    """One evaluation.

    Args:
        board: of the run.
        trainer: after the step that was evaluated.
        evaluation: its numbers.
        best: AP of the best evaluation so far; None: none has one.
        model: what was evaluated, with the trained weights or the EMA weights.
        data: the training set.
        augment: without chance, to draw the anchors of some training images, the same at every
            call, the stronger the higher their score; None: not drawn.
        predictions: a sheet of them; None: none was drawn.
    """
    step = trainer.step
    board.best(step, best)
    board.curves(step, precision_curves(evaluation), evaluation.num_gt)
    if trainer.latest is not None:
        board.histograms(step, p_t(trainer, trainer.latest))
    if predictions is not None:
        board.image(step, "predictions", predictions)
    batch = None if augment is None else fixed_batch(data, augment)
    if batch is not None:
        batch = batch.to(trainer.device)
        match = trainer.match(batch)
        scores, anchors = _predict(trainer, model, batch)
        own = scores.gather(2, match.label.clamp(min=0)[..., None])[..., 0]  # (B, A)
        board.image(step, "anchors", draw_anchors(batch, match, anchors, own, data))


@torch.no_grad()
def _predict(trainer: Trainer, model: RetinaNet, batch: Batch) -> tuple[Tensor, Tensor]:
    """Scores (B, A, K) of a batch, and its anchors (A, 4); the model is left as it was."""
    training = model.training
    model.eval()  # or looking would change the statistics of batch norms
    with autocast(trainer.device, trainer.precision):
        logits, _, anchors = model(batch.images, batch.sizes)
    model.train(training)
    return logits.float().sigmoid(), anchors


def p_t(trainer: Trainer, batch: Batch) -> dict[str, Tensor]:
    """Probability given to the ground truth, for positives and for a sample of background.

    Returns:
        ``{"positives": (P,), "background": (at most P_T_SAMPLES,)}`` in [0, 1], on the CPU.
    """
    batch = batch.to(trainer.device)
    match = trainer.match(batch)
    scores, _ = _predict(trainer, trainer.model, batch)
    positive = match.label >= 0
    own = scores[positive].gather(1, match.label[positive][:, None])[:, 0]
    background = 1 - scores[match.label == NEGATIVE].flatten()
    stride = -(-len(background) // P_T_SAMPLES) or 1
    while math.gcd(stride, scores.shape[-1]) > 1:  # or some classes would never be met
        stride += 1
    return {"positives": own.cpu(), "background": background[::stride].cpu()}


def fixed_batch(data: CocoData, augment: Augment) -> Batch | None:
    """Images with objects, spread evenly over the set; None if there are none or one is damaged."""
    indices = spread(np.flatnonzero(data.num_boxes() > 0), MAX_IMAGES)
    if not indices:
        return None
    batch = BatchDataset(data, augment, 0, "stop")[plan_batch(data, augment, np.array(indices))]
    return batch if isinstance(batch, Batch) else None


def draw_anchors(
    batch: Batch, match: Match, anchors: Tensor, scores: Tensor | None, data: CocoData
) -> np.ndarray:
    """A sheet of :func:`anchor_panels`, (H, W, 3) uint8."""
    panels = anchor_panels(batch, match, anchors, scores, data)
    return draw_sheet(in_rows(panels, COLUMNS), LEGEND)


def anchor_panels(
    batch: Batch, match: Match, anchors: Tensor, scores: Tensor | None, data: CocoData
) -> list[Panel]:
    """Each image of a batch with its ignored and positive anchors, and above them its objects.

    Args:
        batch: the images.
        match: of its anchors.
        anchors: (A, 4) pixels.
        scores: (B, A) of the class of each positive anchor; None: not known.
        data: with the names of files and classes.
    """
    names = class_names(data)
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

        index = int(np.flatnonzero(data.image_ids == int(batch.image_ids[i]))[0])
        title = f"{data.file_name(index)}\n{len(objects)} objects, "
        title += f"{int(positive.sum())} positive anchors, {len(ignored)} ignored"
        if known:
            title += f", mean score of positives {np.mean(known):.2f}"
        if not matched.all():
            title += f"\n{int((~matched).sum())} without a positive anchor"
        image = batch.images[i, :, :height, :width].permute(1, 2, 0)
        pixels = image.clamp(0, 255).to(torch.uint8).cpu().numpy()
        panels.append(Panel(title, pixels, (height, width), drawn))
    return panels
