"""What a check of a data set found, as lines for the screen: at most 80 columns but for names."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from retinanet.data.coco import CocoData
from retinanet.data.records import shown
from retinanet.data.verdict import Effect, Finding, Verdict
from retinanet.tools.anchor_coverage import SIZE_NAMES, Coverage, Objects, size_counts
from retinanet.tools.anchor_search import TOO_MANY, Proposal
from retinanet.tools.check_data.checkup import class_counts

TITLES = {
    Effect.REFUSED: "WRONG: train.py stops",
    Effect.LOST: "LOST: train.py drops it and goes on without",
    Effect.MENDED: "MENDED: train.py puts it right in memory and goes on",
    Effect.NOTED: "ODD: train.py goes on",
}
WIDTH = 80
# Classes of a longer list are shown at both its ends.
SHOWN_CLASSES = 40
# Classes named among those that anchors fit worst, and the share of boxes from which on they are.
WORST_CLASSES = 5
WORST_SHARE = 0.05


def describe_findings(verdict: Verdict, root: Path) -> list[str]:
    """All findings, by what becomes of them.

    Args:
        verdict: that kept them.
        root: ``data.root``, left out of names.
    """
    above = "" if root == Path() else f"{root}/"
    lines = []
    for effect, title in TITLES.items():
        findings = verdict.having(effect)
        lines += [title, ""] if findings else []
        for finding in findings:
            lines += [line.replace(above, "") for line in describe(finding)] + [""]
    return lines


def describe(finding: Finding) -> list[str]:
    """One kind of finding: what, how often, where, what becomes of it, what to do."""
    more = finding.count - len(finding.places)
    share = finding.count / finding.out_of if finding.out_of else 0.0
    of_all = f" of {finding.out_of} annotations ({100 * share:.3g} %)" if finding.out_of else ""
    return [
        f"  {finding.kind}: {finding.count}{of_all}",
        *(f"      {place}" for place in finding.places),
        *([f"      ... and {more} more (--show {finding.count} names them all)"] if more else []),
        *_wrapped(f"    train.py  {finding.does}", indent=14),
        *_wrapped(f"    to do     {finding.remedy}", indent=14),
    ]


def _wrapped(text: str, indent: int) -> list[str]:
    """Lines of at most ``WIDTH``, the later ones indented; no word is cut."""
    options = {"break_long_words": False, "break_on_hyphens": False, "drop_whitespace": True}
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * indent, **options)


def describe_split(split: str, data: CocoData, min_size: int, found: Objects) -> list[str]:
    """Counts of one split, and how large its objects are.

    Args:
        split: its name.
        data: the split.
        min_size: shorter side of resized images, pixels.
        found: its objects at that size.
    """
    boxes = data.num_boxes()
    counts = size_counts(found)
    total = max(sum(counts), 1)
    shares = ", ".join(
        f"{count} {name} ({100 * count / total:.0f} %)"
        for name, count in zip(SIZE_NAMES, counts, strict=True)
    )
    most = f", at most {boxes.max()} in an image" if len(boxes) else ""
    return [
        f"  {split:<9} {len(data)} images ({int((boxes == 0).sum())} without objects)",
        f"            {int(boxes.sum())} boxes{most}, {int(data.crowd.sum())} crowd regions",
        f"            at {min_size} px: {shares}",
    ]


def describe_coverage(found: Coverage, names: Sequence[str], positive_iou: float) -> list[str]:
    """The share of boxes without a good anchor; of which size, and of which classes.

    Args:
        found: of the training set.
        names: of the classes.
        positive_iou: what an anchor needs.
    """
    lines = [f"  anchors   {found.all} training boxes have none of IoU {positive_iou:g} or more"]
    if not found.all.num_uncovered:
        return lines
    sizes = zip(SIZE_NAMES, found.sizes, strict=True)
    lines += _listed("", [f"{share} {name}" for name, share in sizes if share.num_boxes])
    hit = [
        (share, name)
        for share, name in zip(found.classes, names, strict=True)
        if share.share > max(found.all.share, WORST_SHARE)
    ]
    hit.sort(key=lambda row: -row[0].num_uncovered)
    worst = [f"{_plain(name)} {share}" for share, name in hit[:WORST_CLASSES]]
    return [*lines, *(_listed("worst hit: ", worst) if worst else [])]


def _listed(head: str, items: Sequence[str]) -> list[str]:
    """Items after a head, on lines that are broken between them only."""
    glued = ", ".join(item.replace(" ", "\u00a0") for item in items)
    lines = _wrapped(f"{' ' * 12}{head}{glued}", indent=12)
    return [line.replace("\u00a0", " ") for line in lines]


def describe_proposals(proposals: Sequence[Proposal], init_from: str | None) -> list[str]:
    """Settings that fit more boxes, ready for the command line.

    Args:
        proposals: measured ones.
        init_from: the checkpoint that training starts from.
    """
    if not proposals:
        return _wrapped(
            f"            Above {100 * TOO_MANY:.0f} % is much, but neither other anchors nor "
            f"images up to three times as large do better: most of these boxes are too thin.",
            indent=12,
        )
    lines = ["            Other settings, and the share that they leave, of the same boxes:"]
    for proposal in proposals:
        share = f"{100 * proposal.uncovered:.1f} %"
        lines += ["", f"    {share:>6}  {proposal.cost}", *_lines_of(proposal.typed)]
    return [*lines, "", *_wrapped(f"            {_about_checkpoints(init_from)}", indent=12)]


def _lines_of(typed: Sequence[str]) -> list[str]:
    """Arguments on lines that can be pasted, continued by a backslash."""
    lines = [""]
    for text in typed:
        if len(lines[-1]) + len(text) > WIDTH - 16 and lines[-1]:
            lines.append("")
        lines[-1] += f" {text}" if lines[-1] else text
    return [f"            {line} \\" for line in lines[:-1]] + [f"            {lines[-1]}"]


def _about_checkpoints(init_from: str | None) -> str:
    what = (
        "of another number per cell the last layers begin anew, and of other sizes its boxes "
        "mean something else."
    )
    if init_from:
        return f"But init_from={init_from} was trained with its own anchors: {what}"
    return f"With init_from= keep the anchors of the checkpoint: {what}"


def class_table(splits: dict[str, CocoData]) -> list[str]:
    """Boxes of every class, the most frequent first."""
    counts: dict[str, dict[str, int]] = {}
    for split, data in splits.items():
        for name, count in zip(data.category_names, class_counts(data), strict=True):
            counts.setdefault(name, {})[split] = count
    ranked = sorted(counts, key=lambda name: -counts[name].get("train", 0))
    if not ranked:
        return []
    total = max(sum(row.get("train", 0) for row in counts.values()), 1)
    least = min((row["train"] for row in counts.values() if row.get("train")), default=0)
    most = counts[ranked[0]].get("train", 0)
    ratio = f", the most frequent {most / least:.3g} times as often as the rarest" if least else ""
    lines = [
        "",
        f"  {len(ranked)} classes{ratio}",
        f"  {'train':>9} {'share':>7} {'val':>9}  class",
    ]
    for name in ranked:
        train, val = (counts[name].get(split, "-") for split in ("train", "val"))
        share = f"{100 * train / total:.1f} %" if train != "-" else ""
        lines.append(f"  {train:>9} {share:>7} {val:>9}  {_plain(name)}")
    if len(ranked) > SHOWN_CLASSES:
        half = SHOWN_CLASSES // 2
        lines[3 + half : -half] = [f"  {'...':>9} {len(ranked) - 2 * half} more classes"]
    return lines


def _plain(name: str) -> str:
    """A name; in quotes where it begins or ends with blanks, which nobody would see."""
    return name if name == name.strip() else shown(name)
