"""Why AP is near zero: findings with their evidence and what fixes each.

What can be tried is tried: AP is computed anew with the classes ignored or renamed, with the boxes
read in another form or scaled, with the annotations exchanged between images. Where one of these
brings the AP back, that is the cause. Where none does, the network and its training are looked at.
Each check is one function: evidence -> finding, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from retinanet.boxes import box_area
from retinanet.data.coco import DROPPED, FLAT, CocoData
from retinanet.data.splits import FIXES, VANISHED, are_shares, visible_boxes
from retinanet.data.transforms import MIN_BOX_SIDE, Augment, resized_size
from retinanet.evaluation.average_precision import Evaluation
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.matched import match_detections, overlaps
from retinanet.terminal import DEFAULT_WIDTH, LABELS, wrap
from retinanet.tools.anchor_coverage import best_overlaps, objects_at
from retinanet.tools.anchor_search import propose_anchors
from retinanet.tools.diagnose.annotation_faults import (
    box_format,
    label_map,
    normalized_boxes,
    wrong_images,
)
from retinanet.tools.diagnose.evidence import (
    LEARNED,
    Evidence,
    History,
    Network,
    proves,
    restrict,
    score,
    top_detections,
)
from retinanet.tools.diagnose.scored import Diagnosis, Finding
from retinanet.tools.expected_loss import (
    MAX_BACKGROUND_RATIO,
    balancing_prior,
    expected_class_loss,
)

# Verdicts that name no fault.
TOO_EARLY, UNDECIDED = "too early", "undecided"
# An AP below this is always explained.
NEAR_ZERO = 0.01
# A low one is looked at, and explained if a fault is found. Healthy runs pass through it. Mirrored
# boxes still give a network that has 0.5 on COCO 0.07: many objects lie in the middle.
LOW = 0.1
# AR says which objects have a box among the detections, AP whether those come first. In healthy
# runs AP is 0.4 to 0.8 of AR; classes in disorder bring it below 0.1.
FAR_BELOW_RECALL = 0.25
# Share of the boxes that are too small or without a good anchor, from which on that explains a
# failure (a run in which 29 % had no anchor learned its images by heart, thanks to
# matching.low_quality), and from which on it does so even while the loss falls.
MANY, NEARLY_ALL = 0.5, 0.9
# A threshold above this hides what AP is made of, its curve needs weak detections too, when it
# leaves fewer detections than this for each object.
HIGH_THRESHOLD, FEW_DETECTIONS = 0.1, 0.5
# The median over images of the best score, from which on a network is sure of its detections.
SURE = 0.3
# Scores of so many detections whose 5 % and 95 % quantiles differ by less than this factor are
# all alike.
ALIKE_DETECTIONS, ALIKE = 100, 1.3
# Objects that are so many times as large as in training, or as small, are hardly detected.
OTHER_SIZE = 2.0
# Learning rates, after scaling to the batch, that any recipe in configs/experiment, its sources or
# the built-in set uses, with a factor of 10 of room below and 3 above.
USUAL_RATES = {"sgd": (1e-4, 0.3), "adamw": (1e-6, 3e-3)}
# Steps from which on a loss that has risen, or has not moved since the warm-up, means something.
FEW_STEPS = 20
# Up to so many times the loss of one score for all anchors a loss is that loss.
SAME = 1.05
# A rate below this share of the final one is still warming up.
WARMING = 0.5
# Above, background outweighs the objects at the start; the paper has 0.01, and 0.1 still trains on
# the built-in set.
HIGH_PRIOR = 0.1
# The paper's table 1b finds its best values from 0.1 to 0.75.
SMALL_ALPHA, LARGE_ALPHA = 0.01, 0.99
# Lines of the log that a diagnosis may fill.
MOST_LINES = 25

Check = Callable[[Evidence], Finding | None]


def suspicious(evaluation: Evaluation) -> bool:
    """Whether an evaluation is worth looking into; cheap, and often true of healthy runs."""
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
    detections: DetectionArrays,
    evaluation: Evaluation | None,
    *,
    network: Network | None = None,
    history: History | None = None,
) -> Diagnosis | None:
    """Explain an AP near zero, or one far below what the boxes promise.

    Args:
        data: the ground truth.
        detections: what the network detected there.
        evaluation: of both; None for data without annotations.
        network: how the detections were made, for what concerns anchors and thresholds.
        history: of the training, for what concerns rates and losses.

    Returns:
        None where nothing is to be explained: no fault was found and AP is above 0.01 and not far
        below that of the run before, or there is nothing to be detected. Else always a verdict.
    """
    if evaluation is None or not suspicious(evaluation):
        return None
    e = Evidence(data, detections, evaluation, network, history)
    near_zero = evaluation.metrics["AP"] < NEAR_ZERO or e.fallen
    nothing = _all(e, [no_ground_truth, vanishing_boxes, no_positives])
    proven = [] if nothing else annotation_faults(e)
    if not near_zero and not proven:
        return None
    findings = nothing + proven
    if near_zero:
        _measure_overlap(e)
        anchors = no_anchors(e)
        if not nothing:
            findings += _all(
                e, [untrained, score_threshold, image_size, diverged, unbalanced, at_rest]
            )
        if not nothing and not proven:
            findings += _likely(e, findings, anchors)
    _compare_ids(e)
    if history is not None:
        e.sentences += history.describe()
    return Diagnosis(evaluation.metrics["AP"], tuple(findings), tuple(e.sentences), e.numbers)


def _all(e: Evidence, checks: Iterable[Check]) -> list[Finding]:
    return [finding for check in checks if (finding := check(e)) is not None]


def annotation_faults(e: Evidence) -> list[Finding]:
    """Faults of the annotation file, each proven by the AP that undoing it gives back."""
    if not len(e.detections):
        return _all(e, [normalized_boxes])
    findings, data = [], e.data
    if e.AP < LOW or _is_poor(e.AP, e.evaluation.metrics["AR100"]):
        boxes, data = box_format(e)
        findings.append(boxes or wrong_images(e))
    findings.append(label_map(e, data))
    return [finding for finding in findings if finding is not None]


def _likely(e: Evidence, so_far: list[Finding], anchors: Finding | None) -> list[Finding]:
    """Where no fault is proven: what the network could not have learned, or that it learned little.

    Empty only where something was found before.
    """
    short = None if e.fallen else too_early(e)
    done = short is None or e.history.step >= e.history.total_steps
    certain = anchors is not None and (done or e.boxes_without_anchor >= NEARLY_ALL)
    findings = ([anchors] if certain else []) + _all(e, [collapsed])
    if not so_far and not findings:
        checks = [images_without_boxes, misplaced_boxes] if done else []
        checks += [all_alike] if e.history is None else []
        findings = _all(e, checks)[:1] or ([short] if short is not None else [])
    if anchors is not None and not certain:
        findings.append(anchors)
    return findings if so_far or findings else [undecided(e)]


# There is nothing to learn from, or to be detected


def no_ground_truth(e: Evidence) -> Finding | None:
    """Objects that no detection can match, because their boxes have no area in the image."""
    data, objects = e.data, e.objects()
    if not objects.any() or (data.usable & objects).any():
        return None
    dropped = {what: count for what, count in data.repairs.items() if what in FIXES}
    most = max(dropped, key=dropped.get, default=FLAT)
    return Finding(
        "no ground truth",
        f"No detection can match the {objects.sum()} objects of {data.path}: none of their boxes "
        f"has an area inside its image ({most.removeprefix(DROPPED)}).",
        FIXES[most],
    )


def vanishing_boxes(e: Evidence) -> Finding | None:
    """Boxes of less than a pixel at the size of the network."""
    data, network = e.data, e.network
    objects = e.objects() & data.usable
    if network is None or not objects.any() or are_shares(data.bbox[objects]):
        return None
    augment = Augment(min_size=network.min_size, max_size=network.max_size)
    share = 1 - float(visible_boxes(data, augment)[objects].mean())
    if share < MANY:
        return None
    return Finding(
        "vanishing boxes",
        f"{share:.0%} of the {objects.sum()} boxes of {data.path} have a side below "
        f"{MIN_BOX_SIDE:g} px at data.min_size={network.min_size}, "
        f"data.max_size={network.max_size}: nothing of them is to be seen.",
        FIXES[VANISHED],
    )


def no_positives(e: Evidence) -> Finding | None:
    """A training in which no anchor was ever positive."""
    history = e.blamed
    if history is None or history.untrained or not history.without_objects:
        return None
    return Finding(
        "no positives",
        f"The network was shown background only: no anchor was positive in any of the "
        f"{history.step} steps.",
        "Look at the training set: python -m scripts.check_data with the settings of this run "
        "counts its boxes, and those that are lost: crowd regions, boxes without area, boxes below "
        "1 px at data.min_size. If only few of its images have boxes, train longer.",
    )


# What is certain of the training and of the settings


def untrained(e: Evidence) -> Finding | None:
    """The weights that training began with."""
    history = e.blamed
    if history is None or not history.untrained:
        return None
    return Finding(
        "untrained",
        f"The network is untrained: these are the weights after step {history.step}.",
        "Evaluate a checkpoint of later steps, or train: python train.py with the settings of "
        "this run and more schedule.epochs.",
    )


def score_threshold(e: Evidence) -> Finding | None:
    """A threshold that leaves too little to make AP of."""
    network, num_detections, num_gt = e.network, len(e.whole), e.evaluation.num_gt
    few = num_detections < FEW_DETECTIONS * num_gt
    if network is None or not few or network.score_threshold <= HIGH_THRESHOLD:
        return None
    return Finding(
        "score threshold",
        f"The threshold hides the detections: {num_detections} of them for {num_gt} objects have "
        f"a score above postprocess.score_threshold={network.score_threshold:g}.",
        "Evaluate with postprocess.score_threshold=0.05, the paper's: AP is about the order of "
        "the detections, and weak ones cost nothing.",
    )


def image_size(e: Evidence) -> Finding | None:
    """Images of another size than in training, unless nothing was learned at that size either."""
    network, history = e.network, e.history
    if network is None or network.trained_size is None or not len(e.data):
        return None
    if history is not None and not history.had_learned:
        return None
    height, width = map(int, np.median(e.data.sizes, axis=0))
    now = min(resized_size(height, width, network.min_size, network.max_size))
    then = min(resized_size(height, width, *network.trained_size))
    if max(now / then, then / now) < OTHER_SIZE:
        return None
    min_size, max_size = network.trained_size
    return Finding(
        "image size",
        f"The shorter side of these images is {now} px in the network, and would have been {then} "
        f"px in its training: objects are {now / then:.2g} times as large as those that it knows.",
        f"Evaluate with data.min_size={min_size} data.max_size={max_size}.",
    )


def diverged(e: Evidence) -> Finding | None:
    """Losses that rose, steps that were not finite, or an unusual rate that taught nothing."""
    history = e.blamed
    if history is None:
        return None
    low, high = USUAL_RATES[history.optimizer]
    loss, bad = history.class_loss, history.bad_steps
    above, long = history.peak_lr > high, history.step >= FEW_STEPS
    signs = [
        f"the {name} loss rose from {trend.lowest:.3g} to {trend.latest:.3g}"
        for name, trend in (("class", loss), ("box", history.trend("loss/box")))
        if long and trend is not None and trend.exploded
    ]
    if bad:
        signs.append(f"{bad} steps were not finite")
    if not signs and long and above and not history.learned:
        stayed = loss and f"the class loss stayed at {loss.latest:.3g}"
        signs = [stayed or "no loss is recorded"]
    if not signs:
        return None
    unusual = f" (usual with {history.optimizer}: {low:g} to {high:g})" if above else ""
    return Finding(
        "learning rate too high",
        f"Training diverged: {' and '.join(signs)}; the learning rate reached "
        f"{history.peak_lr:.3g}{unusual}.",
        f"Lower optim.lr to a tenth (the rate of this batch is {history.lr:g}), and start anew "
        f"with overwrite=true; schedule.warmup_steps={max(500, 2 * history.warmup_steps)} and "
        f"optim.max_grad_norm=10 help too.",
    )


def unbalanced(e: Evidence) -> Finding | None:
    """A start in which pi, alpha and gamma let one side outweigh the other by far."""
    history = e.blamed
    if history is None or history.anchor_counts is None or not history.focal or history.loaded:
        return None
    prior, alpha, gamma = history.prior, history.alpha, history.gamma
    start = expected_class_loss(alpha, gamma, prior, **history.anchor_counts)
    if not start.positives:
        return Finding(
            "alpha",
            f"Nothing pulls towards the objects: the loss of the positives is 0 with "
            f"loss.alpha={alpha}.",
            "Set loss.alpha=0.25, the paper's with loss.gamma=2.",
        )
    if history.learned:
        return None
    if start.ratio > MAX_BACKGROUND_RATIO and prior >= HIGH_PRIOR:
        balanced = balancing_prior(alpha, gamma, **history.anchor_counts)
        return Finding(
            "prior",
            f"Background outweighed the objects: at model.prior={prior:g}, loss.alpha={alpha}, "
            f"loss.gamma={gamma:g} it makes up {start.background / start.total:.1%} of the first "
            f"class loss, {start.total:.4g}.",
            f"Set model.prior=0.01, the paper's (at model.prior={balanced:.2g} both sides weigh "
            f"the same), and start anew.",
        )
    if isinstance(alpha, int | float) and not SMALL_ALPHA <= alpha <= LARGE_ALPHA:
        return Finding(
            "alpha",
            f"loss.alpha={alpha:g} weighs objects with {alpha:g} and background with "
            f"{1 - alpha:g}: the class loss cannot tell them apart.",
            "Set loss.alpha=0.25 with loss.gamma=2, the paper's, and start anew.",
        )
    return None


def at_rest(e: Evidence) -> Finding | None:
    """A loss that has not moved, where the gradient or the rate says why."""
    history = e.blamed
    loss = history and history.class_loss
    if loss is None or loss.moved or loss.exploded or history.step < FEW_STEPS:
        return None
    low, high = USUAL_RATES[history.optimizer]
    norms = history.column("grad_norm")
    state = f"the class loss is {loss.latest:.4g} after {history.step} steps"
    if len(norms) and not norms.any():
        return Finding(
            "frozen",
            f"Nothing is trained: the gradient is 0, and {state}.",
            "Lower model.frozen_stages; look at loss.alpha and loss.box_weight, which must not "
            "silence both losses.",
        )
    if history.lr < low:
        return Finding(
            "learning rate too low",
            f"The learning rate is too low: {history.lr:.3g}, usual with {history.optimizer} are "
            f"{low:g} to {high:g}, and {state} (at the start {loss.first:.4g}).",
            "Raise optim.lr: 0.01 for 16 images with optim=sgd, 0.0001 with optim=adamw.",
        )
    if history.step <= history.warmup_steps and history.peak_lr < WARMING * history.lr:
        return Finding(
            "warm-up",
            f"The warm-up is not over: {state}, and the learning rate has come to "
            f"{history.peak_lr:.3g} of {history.lr:.3g}.",
            f"Wait, or shorten schedule.warmup_steps={history.warmup_steps}; about "
            f"{max(1, history.total_steps // 20)} would suit {history.total_steps} steps.",
        )
    return None


# What the network could not have learned, and that it learned little


def no_anchors(e: Evidence) -> Finding | None:
    """Boxes without an anchor, and anchors or sizes that would have one."""
    network = e.network
    if network is None:
        return None
    generator = network.generator
    objects = objects_at(e.data, min_size=network.min_size, max_size=network.max_size)
    if not len(objects.boxes):
        return None
    best = best_overlaps(objects, generator)  # (N,) IoU
    uncovered = float((best < network.positive_iou).float().mean())
    background = float((best < network.negative_iou).float().mean())
    side = float(box_area(objects.boxes).sqrt().median())
    e.boxes_without_anchor = e.numbers["boxes_without_anchor"] = uncovered
    e.sentences.append(
        f"{uncovered:.0%} of {len(best)} boxes have no anchor of IoU {network.positive_iou:g}, "
        f"{background:.0%} none of {network.negative_iou:g}; their median side is {side:.3g} px in "
        f"the network"
    )
    if uncovered < MANY:
        return None
    small = min(generator.sizes) * min(generator.scales)
    large = max(generator.sizes) * max(generator.scales)
    fixes = [
        f"{' '.join(proposal.typed)}, which leaves {proposal.uncovered:.0%} of the boxes without "
        f"one"
        for proposal in propose_anchors(objects, generator, network.positive_iou, uncovered)[:1]
    ]
    if side < small:
        factor = min(small / max(side, 1.0), 4.0)
        fixes.append(f"data.min_size and data.max_size about {factor:.2g} times as large")
    return Finding(
        "anchors",
        f"The anchors do not fit: {uncovered:.0%} of the boxes have none with enough overlap at "
        f"the size of the network. Half of the boxes have a side of less than {side:.3g} px there; "
        f"anchors have {small:.3g} to {large:.3g} px.",
        f"Train with {'; or '.join(fixes) or 'other anchors.sizes and anchors.ratios'}.",
    )


def collapsed(e: Evidence) -> Finding | None:
    """A class loss that has come to rest where one score for all anchors has it."""
    history = e.blamed
    loss, constant = (history and history.class_loss), (history and history.constant_loss)
    if loss is None or constant is None or loss.falling:
        return None
    begun = history.step >= history.warmup_steps + FEW_STEPS
    if not begun or not LEARNED * constant <= loss.latest < SAME * constant:
        return None
    return Finding(
        "collapsed",
        f"The network gives all anchors the same score: the class loss stays at "
        f"{loss.latest:.4g}, and one score for all anchors costs {constant:.4g}.",
        f"Lower optim.lr to a tenth (the rate is now {history.lr:g}) and lengthen "
        f"schedule.warmup_steps={history.warmup_steps}; if that does not help, the training boxes "
        f"are not where the objects are: look at them with python -m scripts.check_data.",
    )


def images_without_boxes(e: Evidence) -> Finding | None:
    """Images without boxes in which the network detects objects: without them AP is back."""
    data, image_ids = e.data, e.detections.evaluated
    kept = image_ids[np.isin(image_ids, data.image_ids[data.num_boxes() > 0])]
    num_empty = len(image_ids) - len(kept)
    if not num_empty:
        return None
    AP = score(data, restrict(e.detections, kept), e.evaluation.max_dets)
    e.numbers["AP_of_images_with_boxes"] = AP
    if not proves(AP, e.AP):
        return None
    return Finding(
        "images without boxes",
        f"{num_empty} of {len(image_ids)} images of {data.path} have no box, but the network "
        f"detects objects in them: without these images AP is {AP:.3f}.",
        "If they show objects, label them or leave them out of the file. If they show none, train "
        "with more images that show none.",
    )


def misplaced_boxes(e: Evidence) -> Finding | None:
    """A network that is sure of its detections, in images that the boxes do not fit."""
    detections = e.detections
    best = np.zeros(len(detections.evaluated))
    rows = np.searchsorted(detections.evaluated, detections.image_ids)
    np.maximum.at(best, rows, detections.scores)
    if not e.fits_no_image or np.median(best) < SURE:
        return None
    return Finding(
        "misplaced boxes",
        f"The network is sure of its detections, but they fit the boxes of their image no better "
        f"than those of any other image ({e.numbers['rank_of_own_image']:.0%} of them fit worse; "
        f"chance: 50%).",
        f"Look at plots/predictions_1.png: in {e.data.path} file_name or image_id may belong to "
        f"other images than the boxes, or the boxes be in a form that was not recognized; or "
        f"these images show what the network was not trained on.",
    )


def all_alike(e: Evidence) -> Finding | None:
    """Without a training log: scores as before any training."""
    scores = e.whole.scores
    if not len(scores):
        return Finding(
            "untrained",
            "There are no detections: no score is above the threshold.",
            "The network is untrained or its training failed: look at train.log of its run; "
            "postprocess.score_threshold=0 shows what it detects.",
        )
    low, high = np.quantile(scores, [0.05, 0.95])
    if len(scores) < ALIKE_DETECTIONS or high > ALIKE * low:
        return None
    return Finding(
        "untrained",
        f"All scores are alike, {low:.3g} to {high:.3g}, wherever the detections are.",
        "The network is untrained or its training failed: look at train.log of its run, and "
        "evaluate the checkpoint of a later step.",
    )


def too_early(e: Evidence) -> Finding | None:
    """A training in which nothing is wrong but that it is short."""
    history = e.history
    if history is None:
        return None
    loss, step, total = history.class_loss, history.step, history.total_steps
    begun = step >= history.warmup_steps + FEW_STEPS
    if begun and (loss is None or not loss.moved or (not loss.falling and step >= total)):
        return None
    if loss is None:
        trend = "its log has too few steps with objects to show a trend"
    else:
        falls = ", and still falls" if loss.falling else ""
        trend = f"the class loss went from {loss.first:.4g} to {loss.latest:.4g}{falls}"
    longer = (
        f"Train longer: the same command with schedule.epochs or schedule.max_steps raised, such "
        f"as schedule.max_steps={4 * total}, goes on from here."
    )
    return Finding(
        TOO_EARLY,
        f"The network has made {step} of {total} steps; {trend}.",
        longer if step >= total else "Wait for the next evaluations.",
    )


def undecided(e: Evidence) -> Finding:
    """No check explains it."""
    seen = "classes, boxes and images agree as far as can be seen"
    if proves(e.AP_any, e.AP):
        seen = (
            f"the boxes are right, with an AP of {e.AP_any:.3f} when classes are ignored, and "
            f"the classes are not; if they are named otherwise in the annotations, there are too "
            f"few objects to see how"
        )
    more = "" if e.history is not None else " The log of the training would show more."
    if e.fallen:
        more = (
            f" But the run had AP {e.history.AP_before:.3f} before: either its training went "
            f"wrong since, or {e.data.path} is unlike the data of that time."
        )
    return Finding(
        UNDECIDED,
        f"No cause was found: {seen}.{more}",
        "Look at plots/predictions_1.png; python -m scripts.check_data looks at the data, "
        "train.log at the training. If the loss still fell at the end, train longer.",
    )


# More evidence, and the log


def _measure_overlap(e: Evidence) -> None:
    """How well the objects are detected when classes are ignored."""
    matched = match_detections(e.data, e.detections)
    G = len(matched.owner)
    if not len(e.detections) or not G:
        return
    detection, gt, iou = overlaps(matched, np.finfo(float).tiny)
    top = top_detections(e.detections)[matched.detection_row]
    best, best_of_top = np.zeros((2, G))
    np.maximum.at(best, gt, iou)
    np.maximum.at(best_of_top, gt, iou * top[detection])
    e.numbers["mean_best_iou"] = float(best.mean())
    e.sentences.append(
        f"mean IoU of the objects with their best detection {best.mean():.2f}, with the best of "
        f"an image's first 20 {best_of_top.mean():.2f}, classes ignored"
    )


def _compare_ids(e: Evidence) -> None:
    """Category ids that are not those of the training."""
    train_ids = e.network and e.network.train_ids
    if train_ids is None:
        return
    classes = zip(e.data.category_names, train_ids, e.data.category_ids, strict=True)
    differ = [f"{name} {there}, here {here}" for name, there, here in classes if there != here]
    if differ:
        more = ", ..." if len(differ) > 3 else ""
        e.sentences.append(f"category ids in training differ: {'; '.join(differ[:3])}{more}")


def describe(diagnosis: Diagnosis) -> list[str]:
    """A diagnosis for the log: verdict and fix, other findings, evidence.

    Returns:
        At most ``MOST_LINES`` lines of at most ``DEFAULT_WIDTH`` columns, unless a word is longer.
        Of what is only too early no evidence: diagnosis.json has it.
    """
    first, *others = diagnosis.causes
    parts = [("diagnosis", f"AP {diagnosis.AP:.4f}: {first.name}. {first.verdict}")]
    parts += [("fix", first.fix)]
    parts += [("or else", f"{finding.name}. {finding.verdict}") for finding in others[:2]]
    if first.name != TOO_EARLY:
        parts += [("evidence", sentence) for sentence in diagnosis.evidence]
    lines: list[str] = []
    for label, text in parts:
        more = wrap(f"{label:<{LABELS}}{text}", DEFAULT_WIDTH)
        if label == "evidence" and len(lines) + len(more) > MOST_LINES:
            break
        lines += more
    return lines
