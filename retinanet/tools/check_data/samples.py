"""Pictures of a data set before training: what its boxes look like, and what looks wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retinanet.data.coco import CocoData, images_of
from retinanet.data.issues import Issue
from retinanet.tools.report.boxes import (
    Panel,
    annotated_boxes,
    class_names,
    in_rows,
    read_pixels,
    spread,
    write_sheets,
)
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
            some = candidates[:: -(-len(candidates) // COMPARED)].tolist()
            on_image = {index: data.boxes(index)[1].tolist() for index in some}
            # With the most classes that are missing, then with the fewest boxes.
            best = min(some, key=lambda i: (-len(missing & {*on_image[i]}), len(on_image[i])))
            chosen.append(best)
            missing -= {*on_image[best]}
    with_boxes = np.unique(images) if len(images) else np.arange(len(data))
    chosen += spread(np.setdiff1d(with_boxes, chosen), max(LEAST_IMAGES - len(chosen), 0))
    return sorted(chosen), len(missing)


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
    panels = []
    for index in chosen:
        count = int(data.num_boxes()[index])
        title = f"{split}: {plain_text(data.file_name(index), 44)}, {count} box"
        panels.append(_panel(data, index, names, title + "es" * (count != 1)))
    return write_sheets(in_rows(panels, COLUMNS), folder, "sample")[0], unseen


def draw_findings(issues: Sequence[Issue], folder: Path) -> list[Path]:
    """Write ``findings_1.png``, ...: some images of every issue that can be seen.

    An issue about a box shows that box, one about an image all boxes; pairs stand side by side.

    Args:
        issues: of the data set.
        folder: of the sheets.
    """
    singles, pairs = [], []
    for issue in issues:
        kind = issue.kind.partition(": ")[2] or issue.kind
        for sights in issue.sights:
            panels = []
            for data, index, box in sights:
                name = plain_text(data.file_name(index), 20)
                title = f"{plain_text(kind, TITLE_LETTERS - len(name))}: {name}"
                wanted = None if box is None else [box]
                panels.append(_with_margin(_panel(data, index, class_names(data), title, wanted)))
            if len(panels) == 1:
                singles += panels
            else:
                pairs.append(panels)
    return write_sheets([*in_rows(singles, COLUMNS), *pairs], folder, "findings")[0]


def _panel(
    data: CocoData, index: int, names: Sequence[str], title: str, rows: list[int] | None = None
) -> Panel:
    """An image with some of its boxes, or all; as the file has them."""
    wanted = slice(*data.first[index : index + 2]) if rows is None else rows
    size = tuple(data.sizes[index].tolist())
    return Panel(title, read_pixels(data, index), size, annotated_boxes(data, wanted, names))


def _with_margin(panel: Panel) -> Panel:
    """The same, with some gray around the image where a box reaches outside of it."""
    if not panel.boxes:
        return panel
    corners = np.array([box.corners for box in panel.boxes])
    height, width = panel.size
    sides = np.array([width, height])
    most = np.ceil(MAX_MARGIN * sides)
    before = np.clip(np.ceil(-corners[:, :2].min(axis=0)), 0, most).astype(int)  # x, y
    after = np.clip(np.ceil(corners[:, 2:].max(axis=0) - sides), 0, most).astype(int)
    # In the pixels of the reduced image, of which a file's pixel may be a part.
    scale = np.array(panel.image.shape[1::-1]) / sides
    (left, top), (right, bottom) = (np.rint(part * scale).astype(int) for part in (before, after))
    around = [(top, bottom), (left, right), (0, 0)]
    moved = (corners + [*before, *before]).tolist()
    return Panel(
        title=panel.title,
        image=np.pad(panel.image, around, constant_values=MARGIN_COLOR),
        size=(int(height + before[1] + after[1]), int(width + before[0] + after[0])),
        boxes=[box._replace(corners=at) for box, at in zip(panel.boxes, moved, strict=True)],
    )
