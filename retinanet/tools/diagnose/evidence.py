"""The case that a diagnosis looks at: what is known, and what was measured so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.data.coco import CocoData, images_of
from retinanet.evaluation.average_precision import Evaluation, evaluate
from retinanet.evaluation.detect import DetectionArrays
from retinanet.model.anchors import AnchorGenerator
from retinanet.tools.diagnose.history import History, constant_loss

# Images that are scored anew, spread evenly: enough to tell an AP of 0 from 0.1, in seconds.
SAMPLED_IMAGES = 500
# The best detections of an image, where the others would only add chance.
TOP_DETECTIONS = 20
# Undoing a fault proves it when it gives this AP, and so many times the AP before.
PROVEN_AP, PROVEN_FACTOR = 0.05, 3.0

# The numbers of diagnosis.json; those of a training come with its history.
NUMBERS = (
    "sampled_images",
    "AP_sampled",
    "AP_classes_ignored",
    "AP50_classes_ignored",
    "AP_renamed",
    "renaming",
    "other_reading",
    "AP_other_reading",
    "mean_best_iou",
    "rank_of_own_image",
    "AP_images_exchanged",
    "AP_of_images_with_boxes",
    "boxes_without_anchor",
)


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
    """One evaluation to explain; the checks add evidence and numbers."""

    data: CocoData
    whole: DetectionArrays  # of all images
    evaluation: Evaluation
    network: Network | None
    history: History | None
    detections: DetectionArrays = field(init=False)  # of at most SAMPLED_IMAGES images
    AP: float = field(init=False)  # of these images, and so the next two
    AP_any: float = field(init=False)  # classes ignored
    AP50_any: float = field(init=False)
    fits_no_image: bool = False  # detections fit the boxes of their image hardly better than others
    evidence: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(NUMBERS))

    def __post_init__(self) -> None:
        """Choose the images, score them with and without classes."""
        self.detections = self.whole
        N = len(self.whole.evaluated)
        if N > SAMPLED_IMAGES:
            rows = np.linspace(0, N - 1, SAMPLED_IMAGES).astype(int)
            self.detections = restrict(self.whole, self.whole.evaluated[rows])
        self.AP = score(self.data, self.detections, self.evaluation.max_dets)
        self.AP_any, self.AP50_any = score_any(self.data, self.detections)
        self.numbers |= {
            "sampled_images": len(self.detections.evaluated),
            "AP_sampled": self.AP,
            "AP_classes_ignored": self.AP_any,
            "AP50_classes_ignored": self.AP50_any,
        }
        if self.history is not None:
            self.numbers["step"] = self.history.step
            self.numbers["loss_of_one_score"] = constant_loss(self.history)
        self._count()

    def _count(self) -> None:
        """What there is, as sentences."""
        evaluation, whole = self.evaluation, self.whole
        without = evaluation.num_images - len(np.unique(whole.image_ids))
        rows = sorted(evaluation.per_class, key=lambda row: -row.num_gt)
        classes = ", ".join(f"{r.name} {r.num_gt}/{r.num_detections}" for r in rows[:4])
        more = f", and {len(rows) - 4} more" if len(rows) > 4 else ""
        self.evidence += [
            f"{evaluation.num_gt} objects and {len(whole)} detections in {evaluation.num_images} "
            f"images, of which {without} have no detection",
            f"objects/detections of classes: {classes}{more}",
        ]
        if len(whole):
            quantiles = np.quantile(whole.scores, [0.05, 0.5, 0.95, 1])
            shown = ", ".join(f"{q:.3g}" for q in quantiles)
            self.evidence.append(f"scores: 5 %, median, 95 %, best {shown}")
        AP, AP50, AR = (
            "n/a" if value is None else f"{value:.4f}"
            for value in (evaluation.metrics[name] for name in ("AP", "AP50", "AR100"))
        )
        part = f" (on {SAMPLED_IMAGES} images)" if evaluation.num_images > SAMPLED_IMAGES else ""
        self.evidence.append(
            f"AP {AP}, AP50 {AP50}, AR {AR}; classes ignored AP {self.AP_any:.3f}, AP50 "
            f"{self.AP50_any:.3f}{part}"
        )

    def objects(self) -> np.ndarray:
        """(M,) bool: the annotations of the images that are looked at, without crowds."""
        looked_at = np.isin(self.data.image_ids, self.detections.evaluated)
        return looked_at[images_of(self.data)] & ~self.data.crowd


def restrict(detections: DetectionArrays, image_ids: np.ndarray) -> DetectionArrays:
    """The detections of some images.

    Args:
        detections: of more images.
        image_ids: those that count, increasing.
    """
    kept = np.isin(detections.image_ids, image_ids)
    return dataclasses.replace(
        detections,
        image_ids=detections.image_ids[kept],
        boxes=detections.boxes[kept],
        scores=detections.scores[kept],
        labels=detections.labels[kept],
        evaluated=image_ids,
    )


def score(
    data: CocoData, detections: DetectionArrays, max_dets: Sequence[int] = (1, 10, 100)
) -> float:
    """AP, 0 where there is nothing to detect."""
    evaluation = evaluate(data, detections, detections.evaluated, max_dets=max_dets)
    return evaluation.metrics["AP"] or 0.0


def score_any(data: CocoData, detections: DetectionArrays) -> tuple[float, float]:
    """AP and AP50 when classes are ignored: of the boxes alone."""
    data = dataclasses.replace(
        data, labels=np.zeros_like(data.labels), category_ids=(1,), category_names=("object",)
    )
    detections = dataclasses.replace(detections, labels=np.zeros_like(detections.labels))
    evaluation = evaluate(data, detections, detections.evaluated)
    return evaluation.metrics["AP"] or 0.0, evaluation.metrics["AP50"] or 0.0


def index_of(data: CocoData, image_ids: np.ndarray) -> np.ndarray:
    """Rows of images in the data, by ids that it has."""
    order = np.argsort(data.image_ids, kind="stable")
    return order[np.searchsorted(data.image_ids, image_ids, sorter=order)]


def top_detections(detections: DetectionArrays) -> np.ndarray:
    """(D,) bool: among the ``TOP_DETECTIONS`` best of their image."""
    first = np.searchsorted(detections.image_ids, detections.image_ids, side="left")
    return np.arange(len(detections)) - first < TOP_DETECTIONS
