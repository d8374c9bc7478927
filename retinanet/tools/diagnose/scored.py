"""What is known of one evaluation, as reports take it: its numbers, and why AP is low."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from retinanet.data.coco import CocoData
from retinanet.evaluation.average_precision import Evaluation
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.thresholds import Thresholds


class Finding(NamedTuple):
    """One explanation of a low AP."""

    name: str  # such as "label map"
    verdict: str  # a sentence with the numbers that show it
    fix: str  # a sentence that names the setting, the file or the command


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why AP is low."""

    AP: float
    causes: tuple[Finding, ...]  # the first one is the verdict; never empty
    evidence: tuple[str, ...]  # sentences
    numbers: dict[str, Any]  # what was not measured is None

    @property
    def verdict(self) -> str:
        """Name of the cause, ``"too early"`` or ``"undecided"``."""
        return self.causes[0].name

    def as_dict(self) -> dict[str, Any]:
        """The content of diagnosis.json."""
        keys = ("name", "verdict", "remedy")
        return {
            "verdict": self.verdict,
            "causes": [dict(zip(keys, cause, strict=True)) for cause in self.causes],
            "evidence": list(self.evidence),
            "numbers": self.numbers,
        }


@dataclass(frozen=True, slots=True)
class Scored:
    """An evaluation, what it looked at, and what follows from it."""

    data: CocoData
    detections: DetectionArrays
    evaluation: Evaluation | None  # None for data without annotations
    num_drawn: int  # images in the gallery, 0 for none
    thresholds: Thresholds | None = None  # where F1 is largest
    diagnosis: Diagnosis | None = None  # why AP is low, if it is
