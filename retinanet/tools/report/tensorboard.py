"""What TensorBoard gets of a run beside its rows: curves, distributions and pictures."""

from __future__ import annotations

import numpy as np

from retinanet.data.coco import CocoData
from retinanet.data.transforms import Augment
from retinanet.evaluation.coco import Evaluation
from retinanet.model.retinanet import RetinaNet
from retinanet.tools.report.anchors import draw_batch, draw_progress
from retinanet.tools.report.boxes import save_picture
from retinanet.tools.report.figures import precision_curves
from retinanet.training.board import Board
from retinanet.training.logs import MetricsLog
from retinanet.training.run_directory import RunDirectory
from retinanet.training.trainer import Trainer


def show_first_batch(
    log: MetricsLog, directory: RunDirectory, trainer: Trainer, data: CocoData
) -> None:
    """What the network is taught, before it knows anything: ``plots/train_batch.png`` too.

    Args:
        log: of the run.
        directory: of the run.
        trainer: after its first step.
        data: the training set.

    Raises:
        OSError: it cannot be written.
    """
    picture = draw_batch(trainer, trainer.latest, data)
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
        model: what was evaluated: the trained weights or their average.
        data: the training set.
        augment: of an evaluation, to draw matched anchors; None: not drawn.
        predictions: a sheet of them; None: none was drawn.
    """
    step = trainer.step
    board.best(step, best)
    board.curves(step, precision_curves(evaluation), evaluation.num_gt)
    if trainer.latest is not None:
        board.histograms(step, trainer.p_t(trainer.latest))
    pictures = {"predictions": predictions}
    if augment is not None:
        pictures["anchors"] = draw_progress(trainer, model, data, augment)
    for name, picture in pictures.items():
        if picture is not None:
            board.image(step, name, picture)
