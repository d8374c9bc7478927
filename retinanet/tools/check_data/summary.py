"""What a check of a data set says on the screen: at most 80 columns but for names."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from retinanet import build
from retinanet.config import TrainConfig
from retinanet.data.coco import CocoData, Reading, class_counts
from retinanet.data.issues import Effect, Issue
from retinanet.data.records import shown
from retinanet.tools.anchor_coverage import SIZE_NAMES, cover, objects_at, size_counts
from retinanet.tools.anchor_search import TOO_MANY, Proposal, propose_anchors, propose_size

WIDTH = 80
MARGIN = " " * 12
# Classes of a longer list are shown at both its ends.
SHOWN_CLASSES = 40
# Classes named among those that anchors fit worst, and the share of boxes from which on they are.
WORST_CLASSES = 5
WORST_SHARE = 0.05


def report(
    settings: TrainConfig, issues: Sequence[Issue], readings: Mapping[str, Reading], *, pixels: bool
) -> list[str]:
    """Lines for the screen: the issues, what there is to learn from, and the conclusion.

    Args:
        settings: of train.py.
        issues: of :func:`retinanet.tools.check_data.check.check`.
        readings: likewise.
        pixels: whether images were decoded.
    """
    root = Path(settings.data.root or ".")
    lines = [f"data.root={root}", ""]
    above = "" if root == Path() else f"{root}/"
    for effect in Effect:
        some = [issue for issue in issues if issue.effect is effect]
        lines += [effect.value, ""] if some else []
        for issue in some:
            lines += [line.replace(above, "") for line in _describe(issue)] + [""]
    refused = [issue for issue in issues if issue.effect is Effect.REFUSED]
    if readings:
        lines += ["DATA, without what is wrong" if refused else "DATA", ""]
        splits = {split: reading.data for split, reading in readings.items()}
        for split, data in splits.items():
            lines += _describe_split(split, data, settings)
        if "train" in splits:
            lines += _describe_anchors(settings, splits["train"]) + _class_table(splits)
        lines.append("")
    if refused:
        count = sum(issue.count for issue in refused)
        lines.append(f"train.py would stop. Mistakes: {count}; kinds of mistakes: {len(refused)}.")
    else:
        lines.append("train.py takes this data.")
        if not pixels:
            lines.append("Images were not decoded: --images does it, and finds damaged ones.")
    return lines


def _wrapped(text: str, indent: str = MARGIN, width: int = WIDTH) -> list[str]:
    """Lines of at most ``width``, the later ones indented; no word is cut."""
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, width, subsequent_indent=indent, **options)


def _describe(issue: Issue) -> list[str]:
    """One kind of issue: what, how often, where, what becomes of it, the fix."""
    places = list(issue.places)
    more = issue.count - len(places)
    of_all = ""
    if issue.out_of:
        share = 100 * issue.count / issue.out_of
        of_all = f" of {issue.out_of} annotations ({share:.3g} %)"
    return [
        f"  {issue.kind}: {issue.count}{of_all}",
        *(f"      {place}" for place in places),
        *([f"      ... and {more} more (--show {issue.count} names them all)"] if more else []),
        *_wrapped(f"    train.py  {issue.does}", " " * 14),
        *_wrapped(f"    fix       {issue.fix}", " " * 14),
    ]


def _describe_split(split: str, data: CocoData, settings: TrainConfig) -> list[str]:
    """What there is to learn from, or to be tested on."""
    size, boxes = settings.data, data.num_boxes()
    counts = size_counts(objects_at(data, min_size=size.min_size, max_size=size.max_size))
    shares = ", ".join(
        f"{count} {name} ({100 * count / max(sum(counts), 1):.0f} %)"
        for name, count in zip(SIZE_NAMES, counts, strict=True)
    )
    most = f", at most {boxes.max()} in an image" if len(boxes) else ""
    return [
        f"  {split:<9} {len(data)} images ({int((boxes == 0).sum())} without objects)",
        f"{MARGIN}{int(boxes.sum())} boxes{most}, {int(data.crowd.sum())} crowd regions",
        f"{MARGIN}at {size.min_size} px: {shares}",
    ]


def _describe_anchors(settings: TrainConfig, train: CocoData) -> list[str]:
    """How well the anchors fit the training boxes, and settings that would fit more."""
    anchors, iou = build.build_anchors(settings), settings.matching.positive_iou
    size = settings.data.min_size, settings.data.max_size
    names = train.category_names
    objects = objects_at(train, min_size=size[0], max_size=size[1])
    coverage = cover(objects, anchors, iou, len(names))
    every = coverage.all
    if not every.num_boxes:
        return []

    def listed(head: str, items: Sequence[str]) -> list[str]:
        """Lines that are broken between items only."""
        glued = ", ".join(item.replace(" ", "\u00a0") for item in items)
        return [line.replace("\u00a0", " ") for line in _wrapped(f"{MARGIN}{head}{glued}")]

    lines = [f"  anchors   {every} training boxes have none of IoU {iou:g} or more"]
    if every.num_uncovered:
        sizes = zip(coverage.sizes, SIZE_NAMES, strict=True)
        lines += listed("", [f"{share} {name}" for share, name in sizes if share.num_boxes])
    least = max(every.share, WORST_SHARE)
    worst = [row for row in zip(coverage.classes, names, strict=True) if row[0].share > least]
    worst.sort(key=lambda row: -row[0].num_uncovered)
    if worst:
        some = [f"{_quoted(name)} {share}" for share, name in worst[:WORST_CLASSES]]
        lines += listed("worst hit: ", some)
    if every.share > TOO_MANY:

        def uncovered_at(min_size: int, max_size: int) -> float:
            resized = objects_at(train, min_size=min_size, max_size=max_size)
            return cover(resized, anchors, iou, len(names)).all.share

        proposals = propose_anchors(objects, anchors, iou, every.share)
        proposals += propose_size(uncovered_at, *size, every.share)
        lines += _describe_proposals(proposals, settings.init_from)
    return lines


def _describe_proposals(proposals: Sequence[Proposal], init_from: str | None) -> list[str]:
    """Settings that fit more boxes, ready for the command line."""
    if not proposals:
        return _wrapped(
            f"{MARGIN}Above {100 * TOO_MANY:.0f} % is much, but neither other anchors nor images "
            f"up to three times as large do better: most of these boxes are too thin."
        )
    lines = [f"{MARGIN}Other settings, and the share that they leave, of the same boxes:"]
    for proposal in proposals:
        share = f"{100 * proposal.uncovered:.1f} %"
        typed = _wrapped(" ".join(proposal.typed), "", WIDTH - 16)
        lines += ["", f"    {share:>6}  {proposal.cost}"]
        lines += [f"{MARGIN}{line} \\" for line in typed[:-1]] + [f"{MARGIN}{typed[-1]}"]
    advice = "With init_from= keep the anchors of the checkpoint"
    if init_from:
        advice = f"But init_from={init_from} was trained with its own anchors"
    why = (
        "of another number per cell the last layers begin anew, and of other sizes its boxes "
        "mean something else."
    )
    return [*lines, "", *_wrapped(f"{MARGIN}{advice}: {why}")]


def _class_table(splits: Mapping[str, CocoData]) -> list[str]:
    """Boxes of every class, the most frequent first."""
    counts: dict[str, dict[str, int]] = {}
    for split, data in splits.items():
        for name, count in zip(data.category_names, class_counts(data), strict=True):
            counts.setdefault(name, {})[split] = count
    if not counts:
        return []
    ranked = sorted(counts, key=lambda name: -counts[name].get("train", 0))
    in_train = [counts[name]["train"] for name in ranked if counts[name].get("train")]
    ratio = ""
    if in_train:
        times = in_train[0] / in_train[-1]
        ratio = f", the most frequent {times:.3g} times as often as the rarest"
    rows = []
    for name in ranked:
        train, val = (counts[name].get(split, "-") for split in ("train", "val"))
        share = f"{100 * train / max(sum(in_train), 1):.1f} %" if train != "-" else ""
        rows.append(f"  {train:>9} {share:>7} {val:>9}  {_quoted(name)}")
    if len(rows) > SHOWN_CLASSES:
        half = SHOWN_CLASSES // 2
        rows[half:-half] = [f"  {'...':>9} {len(rows) - 2 * half} more classes"]
    head = f"  {'train':>9} {'share':>7} {'val':>9}  class"
    return ["", f"  {len(ranked)} classes{ratio}", head, *rows]


def _quoted(name: str) -> str:
    """A name; in quotes where it begins or ends with blanks, which nobody would see."""
    return name if name == name.strip() else shown(name)
