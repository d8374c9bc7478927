"""Files and pictures of one evaluation, and its table on the console."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np

from retinanet.data.coco import CocoData
from retinanet.evaluation.coco import Evaluation
from retinanet.evaluation.detect import DetectionArrays

logger = logging.getLogger(__name__)


def publish(
    root: Path,
    data: CocoData,
    evaluation: Evaluation | None,
    found: DetectionArrays,
    *,
    step: int,
    log_images: int,
    cap: int,
    files: bool = True,
) -> np.ndarray | None:
    """Write what an evaluation found."""
    (root / "eval").mkdir(parents=True, exist_ok=True)
    if files:
        (root / "eval/metrics.json").write_text(json.dumps(evaluation.metrics))
    logger.info("evaluation after step %d: %s", step, evaluation.metrics)
    return None
