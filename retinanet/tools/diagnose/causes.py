"""What a diagnosis is made of: what is known, what was found out, what explains it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from retinanet.data.coco import CocoData
from retinanet.evaluation.coco import Evaluation
from retinanet.evaluation.detect import DetectionArrays
from retinanet.model.anchors import AnchorGenerator
from retinanet.tools.diagnose.anchor_reach import Reach
from retinanet.tools.diagnose.box_format import Rereading
from retinanet.tools.diagnose.label_map import Naming
from retinanet.tools.diagnose.shuffled_images import Pairing

# Verdicts that name no fault.
TOO_EARLY = "too early"
UNDECIDED = "undecided"

# A reading of the boxes is the right one when it gives this AP, classes ignored, and so many times
# that of the boxes as they are.
PROVEN_AP = 0.05
PROVEN_FACTOR = 3.0


class Cause(NamedTuple):
    """One explanation of a low AP."""

    name: str  # such as "label map"
    verdict: str  # a sentence with the numbers that show it
    remedy: str  # a sentence that names the setting, the file or the command


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How the network looks at images, as far as it is known."""

    generator: AnchorGenerator
    min_size: int  # shorter side after resizing, pixels
    max_size: int  # bound of the longer side, pixels
    trained_size: tuple[int, int] | None = None  # the same two in training; None: not known
    score_threshold: float
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    train_path: Path | None = None  # annotations that it was trained on
    train_ids: tuple[int, ...] | None = None  # category ids there, by label


@dataclass(slots=True)
class Case:
    """What was found out so far; what was not looked at is None."""

    data: CocoData
    found: DetectionArrays
    evaluation: Evaluation
    AP: float  # of the sample
    AP_any: float  # classes ignored
    AP50_any: float
    best: Rereading | None = None
    best_rank: float | None = None  # of the own image, where only that shows that it is right
    naming: Naming | None = None
    AP_renamed: float | None = None
    pairing: Pairing | None = None
    num_empty: int = 0  # images without a box
    AP_with_boxes: float | None = None  # of the other images
    reach: Reach | None = None
    best_iou: float | None = None  # mean over the objects
    top_iou: float | None = None  # the same of the image's 20 best detections

    @property
    def rescued(self) -> bool:
        """Whether another reading of the boxes brings the AP back, or what there is of it."""
        if self.best is None:
            return False
        by_score = max(PROVEN_AP, PROVEN_FACTOR * self.AP_any) < self.best.AP
        return by_score or self.best_rank is not None

    @property
    def unlabelled(self) -> bool:
        """Whether leaving out the images without a box brings the AP back."""
        return (self.AP_with_boxes or 0.0) > max(PROVEN_AP, PROVEN_FACTOR * self.AP)
