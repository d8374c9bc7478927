"""From which score on a detection counts: what is asked for, what a checkpoint knows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retinanet.data.records import shown

# Where the best score is not known; sheets of predictions have it too.
DEFAULT_SCORE = 0.3


def min_scores(
    score: float | str | None, thresholds: dict[str, Any] | None, num_classes: int, kept: float
) -> Tensor:
    """The score that a detection of each class must reach, (K,) float32.

    Args:
        score: a number in [0, 1): that, for every class; None: ``kept``; ``"auto"``: the class's
            score of best F1, or that of all classes, or ``DEFAULT_SCORE``.
        thresholds: what the checkpoint knows; see :func:`known_thresholds`.
        num_classes: K.
        kept: what the checkpoint's own evaluation keeps.

    Raises:
        ValueError: another score.
    """
    if score == "auto":
        known = thresholds or {"score": None, "classes": [None] * num_classes}
        common = DEFAULT_SCORE if known["score"] is None else known["score"]
        return torch.tensor([common if one is None else one for one in known["classes"]])
    score = kept if score is None else score
    if isinstance(score, bool | str) or not 0 <= score < 1:
        raise ValueError(f"score must be auto or a number in [0, 1), got {score}.")
    return torch.full((num_classes,), float(score))


def known_thresholds(state: dict[str, Any], num_classes: int) -> dict[str, Any] | None:
    """The scores at which F1 was largest when a checkpoint was evaluated.

    Returns:
        ``{"iou", "score", "f1", "classes"}``: the IoU of a right detection, the best score for all
        classes together and its F1, and a list of the best score of each label. A score is None
        where nothing was ever right. None for checkpoints without: those that were not evaluated,
        of older versions and of other projects.

    Raises:
        ValueError: they are not that, or of another number of classes.
    """
    found = state.get("thresholds")
    if found is None:
        return None
    listed = found.get("classes") if isinstance(found, dict) else None
    if not isinstance(listed, list) or len(listed) != num_classes:
        got = f"{len(listed)} of them" if isinstance(listed, list) else "no such list"
        raise ValueError(
            f"the checkpoint's thresholds must list a score for each of its {num_classes} classes, "
            f"got {got}."
        )
    values = [found.get("score"), found.get("f1"), *listed]
    wrong = [value for value in values if value is not None and not _is_fraction(value)]
    wrong += [] if _is_fraction(found.get("iou")) else [found.get("iou")]
    if wrong:
        raise ValueError(
            f"the checkpoint's thresholds must be numbers from 0 to 1, or None where nothing is "
            f"known, got {shown(wrong[0])}. Use a checkpoint as train.py wrote it."
        )
    return {key: found.get(key) for key in ("iou", "score", "f1", "classes")}


def _is_fraction(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1
