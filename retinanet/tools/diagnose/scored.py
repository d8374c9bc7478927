"""One evaluation with all that is known of it, as reports take it."""

from __future__ import annotations

from dataclasses import dataclass

from retinanet.data.coco import CocoData
from retinanet.evaluation.coco import Evaluation
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.thresholds import Thresholds
from retinanet.tools.diagnose.diagnosis import Diagnosis


@dataclass(frozen=True, slots=True)
class Scored:
    """What an evaluation looked at and found."""

    data: CocoData
    found: DetectionArrays
    evaluation: Evaluation | None  # None for data without annotations
    num_drawn: int  # images in the gallery, 0 for none
    thresholds: Thresholds | None = None  # where F1 is largest
    diagnosis: Diagnosis | None = None  # why AP is low, if it is
