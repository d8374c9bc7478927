"""Sheets of images with their boxes: ground truth at the left, predictions at the right."""

import colorsys
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from retinanet.atomic import write_whole
from retinanet.data.coco import CocoData
from retinanet.data.images import BadImage, read_image
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.thresholds import DEFAULT_SCORE
from retinanet.tools.report.fonts import drawable_names
from retinanet.tools.report.style import BLACK, COLORS, house_style, plain_text

# Predictions below this score are not drawn.
DRAWN_SCORE = DEFAULT_SCORE

# Layout of a sheet, in pixels.
PANEL_WIDTH = 480
MAX_HEIGHT = 960
GAP = 10
HEADER = 22
LEGEND_HEIGHT = 26
ROWS_PER_SHEET = 4

# Boxes of one image that get a name; beyond it names would only hide the picture.
MAX_NAMED = 40
# Letters of a name that are shown.
NAME_LETTERS = 22


@dataclass(frozen=True, slots=True)
class Panel:
    """One image with boxes to be drawn on it."""

    title: str
    image: np.ndarray  # (h, w, 3) uint8, maybe smaller than the file
    size: tuple[int, int]  # height, width of the file in pixels
    boxes: np.ndarray  # (N, 4) x, y, width, height in pixels of the file
    labels: np.ndarray  # (N,)
    captions: Sequence[str]  # N texts
    crowd: np.ndarray  # (N,) bool: hatched, dashed
    colors: Sequence[str] | None = None  # N; None: of the classes


def draw_predictions(
    data: CocoData,
    detections: DetectionArrays,
    folder: Path,
    num_images: int,
    min_score: float = DRAWN_SCORE,
) -> np.ndarray | None:
    """Write ``predictions_1.png``, ...: what was found beside what is there.

    The images are the same at every call with the same evaluated images: they are spread
    evenly over those with objects.

    Args:
        data: images and ground truth; without annotations only predictions are drawn.
        detections: from :func:`retinanet.evaluation.detect.detect`.
        folder: of the sheets; made when missing.
        num_images: images drawn; 0 for none.
        min_score: weaker predictions are left out.

    Returns:
        The first sheet, (H, W, 3) uint8, for TensorBoard; None when there is no image to draw.
    """
    chosen = choose_images(data, detections, num_images)
    names = class_names(data)
    rows = (panels_of(data, detections, index, min_score, names) for index in chosen)
    return write_sheets(rows, folder, "predictions")[1]


def choose_images(data: CocoData, detections: DetectionArrays, num_images: int) -> list[int]:
    """Indices of evaluated images, evenly spread over those with objects if there are any."""
    evaluated = np.flatnonzero(np.isin(data.image_ids, detections.evaluated))
    with_objects = evaluated[data.num_boxes()[evaluated] > 0]
    candidates = with_objects if len(with_objects) else evaluated
    count = min(num_images, len(candidates))
    return candidates[np.arange(count) * len(candidates) // max(count, 1)].tolist()


def panels_of(
    data: CocoData,
    detections: DetectionArrays,
    index: int,
    min_score: float = DRAWN_SCORE,
    names: Sequence[str] | None = None,
) -> list[Panel]:
    """Ground truth (if the set has any) and predictions of one image.

    Args:
        data: images and ground truth.
        detections: what was found.
        index: of the image in ``data``.
        min_score: weaker predictions are left out.
        names: of the classes, as they are to stand on boxes; None: :func:`class_names`.
    """
    image, size = read_pixels(data, index), tuple(data.sizes[index].tolist())
    rows = slice(*data.first[index : index + 2])
    labels, crowd = data.labels[rows], data.crowd[rows]
    names = class_names(data) if names is None else names
    truth = Panel(
        title=f"{plain_text(data.file_name(index), 40)}, ground truth: {(~crowd).sum()}",
        image=image,
        size=size,
        boxes=data.bbox[rows],
        labels=labels,
        captions=[
            f"crowd: {names[i]}" if c else names[i] for i, c in zip(labels, crowd, strict=True)
        ],
        crowd=crowd,
    )
    found = np.flatnonzero(detections.image_ids == data.image_ids[index])
    best = detections.scores[found].max(initial=0)
    found = found[detections.scores[found] >= min_score][::-1]  # the best on top
    predicted = Panel(
        title=f"predictions with score \u2265 {min_score:g}: {len(found)}"
        + ("" if len(found) or not best else f", the best has {best:.2f}"),
        image=image,
        size=size,
        boxes=detections.boxes[found],
        labels=detections.labels[found],
        captions=[
            caption(names[i], s)
            for i, s in zip(detections.labels[found], detections.scores[found], strict=True)
        ],
        crowd=np.zeros(len(found), bool),
    )
    return [truth, predicted] if data.annotated else [predicted]


def write_sheets(
    rows: Iterable[Sequence[Panel]],
    folder: Path,
    stem: str,
    legend: Mapping[str, str] | None = None,
) -> tuple[list[Path], np.ndarray | None]:
    """Write ``STEM_1.png``, ..., with ``ROWS_PER_SHEET`` rows each.

    Args:
        rows: none of them empty; those of one sheet are in memory at a time.
        folder: made when missing; sheets of that name from an earlier call, perhaps more of them,
            are removed.
        stem: of the names.
        legend: what is said above each sheet: texts and their colors.

    Returns:
        The files, and the first sheet, (H, W, 3) uint8; None when there are no rows.
    """
    for old in folder.glob(f"{stem}_*.png"):
        old.unlink()
    rows = iter(rows)
    written: list[Path] = []
    first = None
    while some := list(islice(rows, ROWS_PER_SHEET)):
        sheet = draw_sheet(some)
        if legend is not None:
            sheet = np.concatenate([_draw_legend(legend, sheet.shape[1]), sheet])
        first = sheet if first is None else first
        written.append(folder / f"{stem}_{len(written) + 1}.png")
        save_picture(sheet, written[-1])
    return written, first


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write an (H, W, 3) uint8 picture as PNG, whole or not at all."""
    memory = io.BytesIO()
    Image.fromarray(picture).save(memory, format="png")
    write_whole(path, memory.getvalue())


def draw_sheet(rows: Sequence[Sequence[Panel]]) -> np.ndarray:
    """Panels in rows, as one picture.

    Args:
        rows: at least one, none of them empty. A row is as high as its highest panel.

    Returns:
        (H, W, 3) uint8.
    """
    sizes = [[_drawn_size(panel) for panel in row] for row in rows]
    width = max(map(len, rows)) * (PANEL_WIDTH + GAP) + GAP
    height = sum(max(h for h, _ in row) for row in sizes) + len(rows) * (HEADER + GAP)
    with house_style():
        figure = Figure(figsize=(width / 100, height / 100), dpi=100)
        top = height - HEADER
        for row, of_row in zip(rows, sizes, strict=True):
            for column, (panel, (h, w)) in enumerate(zip(row, of_row, strict=True)):
                left = GAP + column * (PANEL_WIDTH + GAP)
                place = left / width, (top - h) / height, w / width, h / height
                _draw_panel(figure.add_axes(place), panel)
            top -= max(h for h, _ in of_row) + GAP + HEADER
        return render(figure)


def render(figure: Figure) -> np.ndarray:
    """The pixels of a figure, (H, W, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_legend(legend: Mapping[str, str], width: int) -> np.ndarray:
    """(LEGEND_HEIGHT, width, 3) uint8: what the colors mean."""
    with house_style():
        figure = Figure(figsize=(width / 100, LEGEND_HEIGHT / 100), dpi=100)
        handles = [Patch(color=color, label=name) for name, color in legend.items()]
        figure.legend(
            handles=handles, loc="center", ncols=len(handles), fontsize=9, labelcolor=BLACK
        )
        return render(figure)


def _drawn_size(panel: Panel) -> tuple[int, int]:
    """Height and width of a panel on a sheet, in pixels; very high ones are narrower."""
    height, width = panel.size
    scale = min(PANEL_WIDTH / width, MAX_HEIGHT / height)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    """One image, its boxes, its title."""
    height, width = panel.size
    axes.imshow(panel.image, extent=(0, width, height, 0), aspect="auto")
    axes.set_axis_off()
    axes.set_title(panel.title, fontsize=8.5, color=BLACK, pad=4)
    named = len(panel.boxes) - MAX_NAMED
    rows = zip(panel.boxes, panel.labels, panel.captions, panel.crowd, strict=True)
    for number, ((x, y, w, h), label, caption, crowd) in enumerate(rows):
        color = class_color(int(label)) if panel.colors is None else panel.colors[number]
        style = {"linestyle": "--", "hatch": "///", "linewidth": 1.0} if crowd else {}
        axes.add_patch(
            Rectangle((x, y), w, h, fill=False, edgecolor=color, **{"linewidth": 1.8} | style)
        )
        if number >= named:
            draw_caption(axes, x, y, caption, color)


def draw_caption(axes: Axes, x: float, y: float, caption: str, color: str) -> None:
    """A name on a patch of its color: above the box, or inside where there is no room above."""
    above = y > 0.04 * axes.get_ylim()[0]
    axes.text(
        max(x, 0),
        max(y, 0),
        caption,
        fontsize=7,
        color="white",
        verticalalignment="bottom" if above else "top",
        bbox={"facecolor": color, "edgecolor": "none", "pad": 1.0, "alpha": 0.9},
        clip_on=True,
    )


def caption(name: str, score: float) -> str:
    """What stands on the box of a detection."""
    return f"{plain_text(name, NAME_LETTERS)} {score:.2f}"


def class_names(data: CocoData) -> list[str]:
    """Names of the classes as they stand on boxes."""
    names = drawable_names(data.category_names, data.category_ids)
    return [plain_text(name, NAME_LETTERS) for name in names]


def class_color(label: int) -> str | tuple[float, float, float]:
    """The color of a class, the same in every picture; neighbors are far apart."""
    if label < len(COLORS):
        return COLORS[label]
    # Steps of the golden ratio never come back to a hue.
    return colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.85, 0.75)


def read_pixels(data: CocoData, index: int, *, whole: bool = False) -> np.ndarray:
    """(h, w, 3) pixels, of large files every n-th unless whole; gray where it is unreadable."""
    try:
        image = read_image(data.image_path(index)).permute(1, 2, 0).numpy()
    except (BadImage, FileNotFoundError):
        return np.full((*data.sizes[index], 3) if whole else (8, 8, 3), 128, np.uint8)
    if whole:
        return image
    step = max(1, min(image.shape[:2]) // (2 * PANEL_WIDTH))
    return image[::step, ::step]
