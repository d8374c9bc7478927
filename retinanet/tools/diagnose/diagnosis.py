"""Why AP is near zero: evidence, a verdict and its remedy.

What can be tried is tried: AP is computed anew with the classes ignored or renamed, with the boxes
read as corners, centers or fractions or scaled, with the images exchanged. Where one of these
brings the AP back, that is the cause. Where none does, training and anchors are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from retinanet.data.coco import CocoData
from retinanet.evaluation.coco import Evaluation
from retinanet.evaluation.detect import DetectionArrays
from retinanet.terminal import DEFAULT_WIDTH, LABELS, wrap
from retinanet.tools.diagnose.anchor_reach import find_reach
from retinanet.tools.diagnose.box_format import (
    VOTING_DETECTIONS,
    are_fractions,
    readings_of,
    reread,
)
from retinanet.tools.diagnose.causes import TOO_EARLY, Case, Cause, Network
from retinanet.tools.diagnose.evidence import evidence_of, numbers_of
from retinanet.tools.diagnose.history import Course, has_fallen, was_good
from retinanet.tools.diagnose.label_map import find_naming, score_renamed
from retinanet.tools.diagnose.overlaps import (
    counted_things,
    image_rows,
    only,
    pairs_of,
    places,
    sample,
    score,
    score_any,
)
from retinanet.tools.diagnose.shuffled_images import find_pairing, own_rank
from retinanet.tools.diagnose.training_causes import causes_of, early
from retinanet.tools.diagnose.verdicts import (
    alike_cause,
    anchor_cause,
    box_cause,
    exchange_cause,
    fractions_cause,
    name_cause,
    no_ground_truth_cause,
    other_images_cause,
    size_cause,
    threshold_cause,
    undecided,
    unlabelled_cause,
    vanishing_cause,
)

# An AP below this is always explained.
NEAR_ZERO = 0.01
# A low one is looked at, and explained if a fault is found. Healthy runs pass through it. Mirrored
# boxes still give a network that has 0.5 on COCO 0.07: many objects lie in the middle.
LOW = 0.1
# AR says which objects have a box among the detections, AP whether those come first. In healthy
# runs AP is 0.4 to 0.8 of AR; classes in disorder bring it below 0.1.
FAR_BELOW_RECALL = 0.25
# Renaming must give this AP, and so many times that of the classes that it renames.
RENAMED_AP = 0.02
RENAMED_FACTOR = 1.15
# The right reading of the boxes fits better than those of this share of other images, and by so
# many standard deviations more than chance, where the boxes as they are fit by chance.
RIGHT_RANK = 0.75
RIGHT_DEVIATIONS = 5.0
# Share of the boxes without a good anchor that explains a failure even while the loss falls.
NEARLY_ALL = 0.9


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why AP is low."""

    AP: float
    causes: tuple[Cause, ...]  # the first one is the verdict; never empty
    evidence: tuple[str, ...]  # sentences
    numbers: dict[str, Any]  # for diagnosis.json

    @property
    def verdict(self) -> str:
        """Name of the cause, ``"too early"`` or ``"undecided"``."""
        return self.causes[0].name

    def as_dict(self) -> dict[str, Any]:
        """For diagnosis.json."""
        return {
            "verdict": self.verdict,
            "causes": [cause._asdict() for cause in self.causes],
            "evidence": list(self.evidence),
            "numbers": self.numbers,
        }


def suspicious(evaluation: Evaluation) -> bool:
    """Whether an evaluation is worth looking into; cheap, and often true of healthy runs.

    Args:
        evaluation: of any data.
    """
    AP, AR = evaluation.metrics["AP"], evaluation.metrics["AR100"]
    if AP is None or not evaluation.num_gt:
        return False
    poor = [row for row in evaluation.per_class if row.num_gt and _is_poor(row.AP, row.AR100)]
    return AP < LOW or _is_poor(AP, AR) or len(poor) >= 2


def _is_poor(precision: float | None, recall: float | None) -> bool:
    """Whether AP is far below what AR promises, or next to nothing."""
    if precision is None:
        return False
    return precision < NEAR_ZERO or precision < FAR_BELOW_RECALL * (recall or 0.0)


def diagnose(
    data: CocoData,
    found: DetectionArrays,
    evaluation: Evaluation | None,
    *,
    network: Network | None = None,
    course: Course | None = None,
) -> Diagnosis | None:
    """Explain an AP near zero, or one far below what the boxes promise.

    Args:
        data: the ground truth.
        found: the detections.
        evaluation: of both; None for data without annotations.
        network: how the detections were made, for what concerns anchors and thresholds.
        course: of the training, for what concerns rates and losses.

    Returns:
        None where nothing is to be explained: no fault was found and AP is above 0.01 and not far
        below that of the run before, or there is nothing to be found. Else always a verdict.
    """
    if evaluation is None or not suspicious(evaluation):
        return None
    whole = found
    data, found = sample(data, found)
    limits = evaluation.max_dets
    case = Case(data, found, evaluation, score(data, found, limits), *score_any(data, found))
    basics = _basics(case, network, course)
    proofs = [] if basics else _proofs(case, network)
    AP = evaluation.metrics["AP"]
    near_zero = AP < NEAR_ZERO or has_fallen(evaluation, course)
    if not proofs and not near_zero:
        return None
    causes = basics or proofs
    if near_zero:
        _measure(case, network)
    if near_zero and not basics:
        causes = [*proofs, *_likely(case, whole, network, course, bool(proofs))]
    evidence = evidence_of(case, whole, network, course)
    return Diagnosis(AP, tuple(causes), tuple(evidence), numbers_of(case, course))


def _basics(case: Case, network: Network | None, course: Course | None) -> list[Cause]:
    """What must be there before anything else can be wrong: ground truth, boxes, positives."""
    causes = [no_ground_truth_cause(case), vanishing_cause(case, network)]
    if course is not None and course.without_objects and not was_good(course):
        causes += [cause for cause in causes_of(course) if cause.name == "no positives"]
    return [cause for cause in causes if cause is not None]


def _proofs(case: Case, network: Network | None) -> list[Cause]:
    """Causes that give the AP back when they are undone."""
    if not len(case.found):
        return [fractions_cause(case)] if are_fractions(case.data, case.found) else []
    causes = []
    if case.AP < LOW or _is_poor(case.AP, case.evaluation.metrics["AR100"]):
        _try_boxes(case)
        if case.rescued or are_fractions(case.data, case.found):
            causes.append(box_cause(case))
        elif case.pairing is not None and case.pairing.exchanged:
            causes.append(exchange_cause(case))
    read = case.best.data if case.rescued else case.data
    case.naming = find_naming(read, case.found)
    case.AP_renamed = score_renamed(read, case.found, case.naming)
    if _names_differ(case, read):
        causes.append(name_cause(case, network))
    return causes


def _leave_out_empty(case: Case) -> None:
    """Score the images that have boxes alone."""
    image_ids = case.found.evaluated
    has_boxes = case.data.num_boxes()[image_rows(case.data, image_ids)] > 0
    case.num_empty = int((~has_boxes).sum())
    if case.num_empty:
        kept = image_ids[has_boxes]
        found = only(case.found, np.isin(case.found.image_ids, kept), kept)
        case.AP_with_boxes = score(case.data, found, case.evaluation.max_dets)


def _try_boxes(case: Case) -> None:
    """Read the boxes in other ways, and as those of other images."""
    readings = [reread(case.data, case.found, r) for r in readings_of(case.data, case.found)]
    case.best = max(readings, key=lambda r: r.AP, default=None)
    if case.rescued:
        return
    case.pairing = find_pairing(case.data, case.found)
    if case.pairing is None or not case.pairing.by_chance or case.pairing.exchanged:
        return
    # A network too weak for an AP still finds more in its own image than in others.
    ranks = [own_rank(read.data, case.found) for read in readings]
    least = max(RIGHT_RANK, 0.5 + RIGHT_DEVIATIONS * case.pairing.deviation)
    if ranks and max(ranks) > least:
        case.best_rank = max(ranks)
        case.best = readings[int(np.argmax(ranks))]


def _names_differ(case: Case, read: CocoData) -> bool:
    if not case.naming.significant:
        return False
    before = score(read, case.found) if case.rescued else case.AP
    return case.AP_renamed > max(RENAMED_AP, RENAMED_FACTOR * before)


def _measure(case: Case, network: Network | None) -> None:
    """Evidence that only an AP near zero is worth."""
    _leave_out_empty(case)
    if len(case.found):
        pairs = pairs_of(case.data, case.found, np.ones(len(case.found), dtype=bool))
        top = places(case.found) < VOTING_DETECTIONS
        best, best_of_top = np.zeros((2, len(case.data.bbox)))
        np.maximum.at(best, pairs.thing, pairs.iou)
        np.maximum.at(best_of_top, pairs.thing, pairs.iou * top[pairs.detection])
        things = counted_things(case.data, case.found)
        if things.any():
            case.best_iou = float(best[things].mean())
            case.top_iou = float(best_of_top[things].mean())
    if network is not None:
        case.reach = find_reach(
            case.data,
            network.generator,
            min_size=network.min_size,
            max_size=network.max_size,
            positive_iou=network.positive_iou,
            negative_iou=network.negative_iou,
        )


def _likely(
    case: Case,
    whole: DetectionArrays,
    network: Network | None,
    course: Course | None,
    proven: bool,
) -> list[Cause]:
    """Causes that explain what is seen, the most certain first; never empty unless one is proven.

    What is certain of the training comes first; then what the network could not have learned;
    then that it learned little.
    """
    of_course = causes_of(course) if course is not None and not was_good(course) else []
    ready = course is None or has_fallen(case.evaluation, course)
    short = None if ready else early(course)
    anchors = anchor_cause(case)
    causes = [cause for cause in of_course if cause.name == "untrained"]
    of_network = threshold_cause(case, whole, network), size_cause(case, network, course)
    causes += [cause for cause in of_network if cause]
    causes += [c for c in of_course if c.name not in ("untrained", "collapsed")]
    if proven:
        return causes
    sure = case.reach is not None and case.reach.uncovered >= NEARLY_ALL
    finished = course is None or course.step >= course.total_steps
    if anchors and (sure or finished or short is None):
        causes.append(anchors)
    causes += [cause for cause in of_course if cause.name == "collapsed"]
    if not causes and (finished or short is None) and case.unlabelled:
        causes.append(unlabelled_cause(case))
    if not causes and (finished or short is None):
        causes += [cause for cause in [other_images_cause(case)] if cause]
    if not causes and course is None:
        causes += [cause for cause in [alike_cause(case, whole)] if cause]
    if short is not None and not causes:
        causes.append(short)
    if anchors and anchors not in causes:
        causes.append(anchors)
    return causes or [undecided(case, course)]


# Lines that a diagnosis may fill.
MOST_LINES = 25


def describe(diagnosis: Diagnosis) -> list[str]:
    """A diagnosis for the log: verdict and remedy, other causes, evidence.

    Args:
        diagnosis: from :func:`diagnose`.

    Returns:
        At most ``MOST_LINES`` lines of at most ``DEFAULT_WIDTH`` columns, unless a word is longer.
        Of what is only too early no evidence: diagnosis.json has it.
    """
    first, *others = diagnosis.causes
    lines = _wrapped("diagnosis", f"AP {diagnosis.AP:.4f}: {first.name}. {first.verdict}")
    lines += _wrapped("remedy", first.remedy)
    for cause in others[:2]:
        lines += _wrapped("or else", f"{cause.name}. {cause.verdict}")
    for sentence in diagnosis.evidence if first.name != TOO_EARLY else ():
        more = _wrapped("evidence", sentence)
        if len(lines) + len(more) > MOST_LINES:
            break
        lines += more
    return lines


def _wrapped(keyword: str, text: str) -> list[str]:
    """Lines that begin with a keyword, as those of the log do."""
    return wrap(f"{keyword:<{LABELS}}{text}", DEFAULT_WIDTH)
