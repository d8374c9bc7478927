"""The numbers that a diagnosis rests on: of the network, of its training, of its detections."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retinanet.data.coco import CocoData, images_of
from retinanet.evaluation.average_precision import Evaluation, evaluate
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.numbers import COCO_MAX_DETS
from retinanet.model.anchors import AnchorGenerator
from retinanet.tools.expected_loss import expected_class_loss, indifferent_score

# Images that are scored anew, spread evenly: enough to tell an AP of 0 from 0.1, in seconds.
SAMPLED_IMAGES = 500
# The best detections of an image, where the others would only add chance.
TOP_DETECTIONS = 20
# Undoing a fault proves it when it gives this AP, and so many times the AP before.
PROVEN_AP, PROVEN_FACTOR = 0.05, 3.0
# From here on an AP shows that a network has learned; below the share of the AP that the run had
# before, it has lost that.
LEARNED_AP, FALLEN = 0.05, 0.1

# A loss has moved when it lost the first share of its first value: rows of neighboring steps differ
# by as much. It still falls when the latest part of the rows is lower than the one before by FALLS.
MOVED, FALLS, LATEST = 0.03, 0.01, 0.25
# It has exploded when it is so many times its lowest value, and so far above its first, which at
# pi = 0.01 is already above that of one score for all anchors.
EXPLODED, ABOVE_FIRST = 2.0, 1.2
# The class loss of a network that detects something is below this share of the lowest that one
# score for all anchors can have (0.9 after 60 steps in runs that came to AP 0.25).
LEARNED = 0.97

# The numbers of diagnosis.json; those of a training come with its history.
NUMBERS = (
    *("sampled_images", "AP_sampled", "AP_classes_ignored", "AP50_classes_ignored"),
    *("AP_renamed", "renaming", "other_reading", "AP_other_reading", "mean_best_iou"),
    *("rank_of_own_image", "AP_images_exchanged", "AP_of_images_with_boxes"),
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


class Trend(NamedTuple):
    """One loss from the first row to the latest."""

    first: float
    before: float  # mean of the part of the rows before the latest part
    latest: float  # mean of the latest part
    lowest: float
    moved: bool  # it has fallen since the first step
    falling: bool  # it still falls
    exploded: bool  # it is far above where it was


@dataclass(frozen=True, kw_only=True)
class History:
    """A training run until an evaluation."""

    rows: Sequence[dict[str, Any]] = field(repr=False)  # of metrics.jsonl, those of steps
    step: int
    total_steps: int
    optimizer: str  # "sgd" or "adamw"
    lr: float  # after the warm-up, scaled to the batch
    warmup_steps: int
    batch_size: int
    anchors: int  # of an image
    num_classes: int
    prior: float  # model.prior
    alpha: float | Sequence[float] | None  # loss.alpha, as resolved
    gamma: float
    focal: bool  # loss.name=focal with loss.normalizer=batch
    loaded: bool  # the run started from the weights of a checkpoint
    AP_before: float | None = None  # the highest of its own evaluations; None: there was none
    AP_own: float | None = None  # of its own evaluation of these weights

    def column(self, name: str) -> np.ndarray:
        """The values of one column that are numbers."""
        values = [row.get(name) for row in self.rows]
        return np.array([value for value in values if isinstance(value, int | float)], dtype=float)

    def level(self, name: str) -> np.ndarray:
        """The values of a column that depends on objects, of the steps that had any.

        Both losses are next to 0 in a step without a positive anchor, whose loss nothing
        divides. Rows are means over steps, so each is divided by its share of steps with
        positives; rows without one are left out.
        """
        values = []
        for row in self.rows:
            value, share = row.get(name), row.get("with_objects")
            if isinstance(value, int | float) and row.get("positives") != 0:
                known = isinstance(share, int | float) and share > 0
                values.append(value / share if known else value)
        return np.array(values, dtype=float)

    def trend(self, name: str) -> Trend | None:
        """Where a loss comes from and where it goes; None with fewer than two rows."""
        values = self.level(name)
        if len(values) < 2:
            return None
        part = max(1, round(LATEST * len(values)))
        first, lowest = values[0], values.min()
        before, latest = values[-2 * part : -part].mean(), values[-part:].mean()
        above = latest > EXPLODED * max(lowest, 1e-3) and latest > ABOVE_FIRST * first
        moved, falling = latest < (1 - MOVED) * first, latest < (1 - FALLS) * before
        return Trend(first, before, latest, lowest, moved, falling, above)

    @cached_property
    def class_loss(self) -> Trend | None:
        """Of the class loss."""
        return self.trend("loss/class")

    @cached_property
    def bad_steps(self) -> int:
        """Steps that were not finite."""
        return int(self.column("bad_steps").sum())

    @cached_property
    def peak_lr(self) -> float:
        """The largest rate of the rows; without any, that of after the warm-up."""
        rates = self.column("lr")
        return float(rates.max()) if len(rates) else self.lr

    @cached_property
    def without_objects(self) -> bool:
        """Whether the rows say that no step had a positive anchor."""
        positives = self.column("positives")
        return len(positives) > 0 and not positives.any()

    @property
    def untrained(self) -> bool:
        """Whether these are the weights that training began with."""
        return self.step < 2 and not self.loaded

    @property
    def was_good(self) -> bool:
        """Whether these very weights had an AP: then nothing was wrong with their training."""
        return (self.AP_own or 0.0) >= LEARNED_AP

    @property
    def had_learned(self) -> bool:
        """Whether some weights of the run had an AP."""
        return (self.AP_before or 0.0) >= LEARNED_AP

    @cached_property
    def anchor_counts(self) -> dict[str, float] | None:
        """Anchors of a step that has objects; the few ignored ones are taken for background."""
        positives = self.level("positives")
        if not len(positives):
            return None
        mean = float(positives.mean())
        background = max(self.anchors * self.batch_size - mean, 0.0)
        return {
            "num_classes": self.num_classes,
            "num_positives": mean,
            "num_background": background,
        }

    @cached_property
    def constant_loss(self) -> float | None:
        """The lowest class loss of a network with one score for all anchors; None: not known."""
        counts, alpha = self.anchor_counts, 0.5 if self.alpha is None else self.alpha
        if counts is None or not self.focal or not isinstance(alpha, int | float):
            return None
        if not 0 < alpha < 1 or not counts["num_positives"]:
            return None
        pairs = self.num_classes * (counts["num_positives"] + counts["num_background"])
        score = indifferent_score(alpha, self.gamma, counts["num_positives"] / pairs)
        return expected_class_loss(self.alpha, self.gamma, score, **counts).total

    @property
    def learned(self) -> bool:
        """Class loss clearly below that of one score for all anchors; not known: fallen."""
        loss, constant = self.class_loss, self.constant_loss
        if loss is None:
            return False
        return loss.moved if constant is None else loss.latest < LEARNED * constant

    def describe(self) -> list[str]:
        """It as evidence, one sentence each."""
        loss, box = self.class_loss, self.trend("loss/box")
        if loss is None or box is None:
            return [f"training: step {self.step} of {self.total_steps}, no rows to look at"]
        constant, norms = self.constant_loss, self.column("grad_norm")
        same = "" if constant is None else f"; one score for all anchors costs {constant:.4g}"
        norm = f", gradient norm {norms[-1]:.3g}" if len(norms) else ""
        return [
            f"class loss {loss.first:.4g} at the start, {loss.latest:.4g} now, {loss.before:.4g} "
            f"before{same}",
            f"box loss {box.first:.4g} at the start, {box.latest:.4g} now",
            f"step {self.step} of {self.total_steps}, warm-up {self.warmup_steps}; learning "
            f"rate at most {self.peak_lr:.3g}{norm}, {self.bad_steps} bad steps",
        ]


class Evidence:
    """One evaluation to explain; what is measured on the way is added.

    Attributes:
        whole: detections of all images.
        detections: of at most ``SAMPLED_IMAGES`` images.
        AP: of these images; ``AP_any`` and ``AP50_any`` with the classes ignored.
        fits_no_image: detections fit the boxes of their image hardly better than those of others.
        boxes_without_anchor: share of the boxes; 0 where it is not known.
        sentences: for the log, and ``numbers`` for diagnosis.json.
    """

    def __init__(
        self,
        data: CocoData,
        detections: DetectionArrays,
        evaluation: Evaluation,
        network: Network | None,
        history: History | None,
    ) -> None:
        self.data, self.whole, self.evaluation = data, detections, evaluation
        self.network, self.history = network, history
        self.fits_no_image = False
        self.boxes_without_anchor = 0.0

        self.detections, N = detections, len(detections.evaluated)
        if N > SAMPLED_IMAGES:
            rows = np.linspace(0, N - 1, SAMPLED_IMAGES).astype(int)
            self.detections = restrict(detections, detections.evaluated[rows])
        self.AP = score(data, self.detections, evaluation.max_dets)
        self.AP_any, self.AP50_any = score_any(data, self.detections)
        self.numbers: dict[str, Any] = dict.fromkeys(NUMBERS) | {
            "sampled_images": len(self.detections.evaluated),
            "AP_sampled": self.AP,
            "AP_classes_ignored": self.AP_any,
            "AP50_classes_ignored": self.AP50_any,
        }
        if history is not None:
            self.numbers |= {"step": history.step, "loss_of_one_score": history.constant_loss}

        num_images, num_gt, scores = evaluation.num_images, evaluation.num_gt, detections.scores
        without = num_images - len(np.unique(detections.image_ids))
        rows = sorted(evaluation.per_class, key=lambda row: -row.num_gt)
        classes = ", ".join(f"{r.name} {r.num_gt}/{r.num_detections}" for r in rows[:4])
        more = f", and {len(rows) - 4} more" if len(rows) > 4 else ""
        self.sentences = [
            f"{num_gt} objects and {len(scores)} detections in {num_images} images, of which "
            f"{without} have no detection",
            f"objects/detections of classes: {classes}{more}",
        ]
        if len(scores):
            shown = ", ".join(f"{q:.3g}" for q in np.quantile(scores, [0.05, 0.5, 0.95, 1]))
            self.sentences.append(f"scores: 5 %, median, 95 %, best {shown}")
        metrics = (evaluation.metrics[name] for name in ("AP", "AP50", "AR100"))
        AP, AP50, AR = ("n/a" if value is None else f"{value:.4f}" for value in metrics)
        part = f" (on {SAMPLED_IMAGES} images)" if num_images > SAMPLED_IMAGES else ""
        self.sentences.append(
            f"AP {AP}, AP50 {AP50}, AR {AR}; classes ignored AP {self.AP_any:.3f}, AP50 "
            f"{self.AP50_any:.3f}{part}"
        )

    def objects(self) -> np.ndarray:
        """(M,) bool: the annotations of the images that are looked at, without crowds."""
        looked_at = np.isin(self.data.image_ids, self.detections.evaluated)
        return looked_at[images_of(self.data)] & ~self.data.crowd

    @property
    def blamed(self) -> History | None:
        """The training, unless these very weights were good."""
        return None if self.history is None or self.history.was_good else self.history

    @property
    def fallen(self) -> bool:
        """Whether AP is far below what the run had before: then it is no lack of training."""
        history = self.history
        if history is None or not history.had_learned:
            return False
        return self.evaluation.metrics["AP"] < FALLEN * history.AP_before


def proves(after: float, before: float) -> bool:
    """Whether the AP after undoing a fault shows that it was one."""
    return max(PROVEN_AP, PROVEN_FACTOR * before) < after


def restrict(detections: DetectionArrays, image_ids: np.ndarray) -> DetectionArrays:
    """The detections of some images, whose ids increase."""
    kept = np.isin(detections.image_ids, image_ids)
    columns = ("image_ids", "boxes", "scores", "labels")
    some = {name: getattr(detections, name)[kept] for name in columns}
    return dataclasses.replace(detections, evaluated=image_ids, **some)


def score(
    data: CocoData, detections: DetectionArrays, max_dets: Sequence[int] = COCO_MAX_DETS
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
