"""Pictures of a data set before training: what its boxes look like, and what looks wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from retinanet.data.coco import CocoData, images_of
from retinanet.data.issues import Issue, Sight
from retinanet.tools.report.pictures import Panel, class_names, read_pixels, write_sheets
from retinanet.tools.report.style import plain_text

COLUMNS = 2
# Images drawn: at least so many, and more until each class is seen, at most so many.
LEAST_IMAGES = 8
MOST_IMAGES = 96
# Images of a class that are compared to find one that shows other classes too.
COMPARED = 200
# Letters of a title.
TITLE_LETTERS = 64
# What surrounds an image where boxes reach outside, and how far at most, in shares of a side.
MARGIN_COLOR = 210
MAX_MARGIN = 0.5


def choose_images(data: CocoData) -> tuple[list[int], int]:
    """Images that together show every class, the rarest first, then others, evenly spread.

    Args:
        data: the data set.

    Returns:
        Indices of images, ascending, and how many classes that have boxes none of them shows.
    """
    counted = data.usable & ~data.crowd
    images, labels = images_of(data)[counted], data.labels[counted]
    counts = np.bincount(labels, minlength=len(data.category_names))
    missing = set(np.flatnonzero(counts).tolist())
    chosen: list[int] = []
    for label in np.argsort(counts, kind="stable").tolist():
        if label in missing and len(chosen) < MOST_IMAGES:
            candidates = np.unique(images[labels == label])
            best = _most_shown(data, candidates, missing)
            chosen.append(best)
            missing -= set(_shown(data, best))
    with_boxes = np.unique(images) if len(images) else np.arange(len(data))
    others = np.setdiff1d(with_boxes, chosen)
    wanted = min(max(LEAST_IMAGES - len(chosen), 0), len(others))
    chosen += others[np.arange(wanted) * len(others) // max(wanted, 1)].tolist()
    return sorted(chosen), len(missing)


def _shown(data: CocoData, index: int) -> list[int]:
    """Labels of the objects in an image."""
    return data.boxes(index)[1].tolist()


def _most_shown(data: CocoData, candidates: np.ndarray, missing: set[int]) -> int:
    """Of some images that with the most classes that are missing, then with the fewest boxes."""
    step = -(-len(candidates) // COMPARED)
    shown = {index: _shown(data, index) for index in candidates[::step].tolist()}
    return min(shown, key=lambda i: (-len(missing & set(shown[i])), len(shown[i])))


def draw_samples(data: CocoData, split: str, folder: Path) -> tuple[list[Path], int]:
    """Write ``sample_1.png``, ...: images with their boxes, so that every class is seen.

    Args:
        data: the split.
        split: its name, for the titles.
        folder: of the sheets.

    Returns:
        The files, and how many classes with boxes are on none of them.
    """
    chosen, unseen = choose_images(data)
    names = class_names(data)
    # Images of like shape side by side: a row is as high as its highest.
    chosen.sort(key=lambda index: data.sizes[index][0] / data.sizes[index][1])
    panels = [_panel(data, index, names, f"{split}: {_title(data, index)}") for index in chosen]
    rows = [panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)]
    return write_sheets(rows, folder, "sample")[0], unseen


def draw_findings(issues: Sequence[Issue], folder: Path) -> list[Path]:
    """Write ``findings_1.png``, ...: some images of every issue that can be seen.

    An issue about a box shows that box, one about an image all boxes; pairs stand side by side.

    Args:
        issues: of the data set.
        folder: of the sheets.
    """
    shown = [
        [_panel_of_sight(sight, issue) for sight in sights]
        for issue in issues
        for sights in issue.sights
    ]
    singles = [row[0] for row in shown if len(row) == 1]
    rows = [singles[i : i + COLUMNS] for i in range(0, len(singles), COLUMNS)]
    rows += [row for row in shown if len(row) > 1]
    return write_sheets(rows, folder, "findings")[0]


def _panel_of_sight(sight: Sight, issue: Issue) -> Panel:
    data, index, box = sight
    kind = issue.kind.partition(": ")[2] or issue.kind
    name = plain_text(data.file_name(index), 20)
    title = f"{plain_text(kind, TITLE_LETTERS - len(name))}: {name}"
    names = class_names(data)
    panel = _panel(data, index, names, title, None if box is None else [box])
    return _with_margin(panel)


def _panel(
    data: CocoData, index: int, names: Sequence[str], title: str, rows: list[int] | None = None
) -> Panel:
    """An image with some of its boxes, or all; as the file has them."""
    wanted = slice(*data.first[index : index + 2]) if rows is None else rows
    labels, crowd = data.labels[wanted], data.crowd[wanted]
    return Panel(
        title=title,
        image=read_pixels(data, index),
        size=tuple(data.sizes[index].tolist()),
        boxes=_near(data.bbox[wanted], data.sizes[index]),
        labels=labels,
        captions=[
            f"crowd: {names[i]}" if c else names[i] for i, c in zip(labels, crowd, strict=True)
        ],
        crowd=crowd,
    )


def _near(bbox: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Boxes cut at one image's side around the image: farther numbers cannot be drawn."""
    sides = size[::-1].astype(float)  # width, height
    with np.errstate(over="ignore"):
        ends = np.clip(bbox[:, :2] + bbox[:, 2:], -sides, 2 * sides)
    corner = np.clip(bbox[:, :2], -sides, 2 * sides)
    return np.concatenate([corner, ends - corner], axis=1)


def _with_margin(panel: Panel) -> Panel:
    """The same, with some gray around the image where a box reaches outside of it."""
    if not len(panel.boxes):
        return panel
    height, width = panel.size
    ends = (panel.boxes[:, :2] + panel.boxes[:, 2:]).max(axis=0)
    least = panel.boxes[:, :2].min(axis=0)
    sides = np.array([width, height])
    most = np.ceil(MAX_MARGIN * sides)
    before = np.clip(np.ceil(-least), 0, most).astype(int)  # x, y
    after = np.clip(np.ceil(ends - sides), 0, most).astype(int)
    if not (before.any() or after.any()):
        return panel
    # In the pixels of the reduced image, of which a file's pixel may be a part.
    scale = np.array(panel.image.shape[1::-1]) / sides
    (left, top), (right, bottom) = np.rint(before * scale), np.rint(after * scale)
    around = [(int(top), int(bottom)), (int(left), int(right)), (0, 0)]
    return replace(
        panel,
        image=np.pad(panel.image, around, constant_values=MARGIN_COLOR),
        size=(int(height + before[1] + after[1]), int(width + before[0] + after[0])),
        boxes=panel.boxes + [*before, 0, 0],
    )


def _title(data: CocoData, index: int) -> str:
    count = int(data.num_boxes()[index])
    return f"{plain_text(data.file_name(index), 44)}, {count} box{'es' * (count != 1)}"
