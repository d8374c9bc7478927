"""The report of a run as one page: numbers, curves, classes, pictures, and what ran."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.atomic import write_whole
from retinanet.data.coco import CocoData, images_of
from retinanet.evaluation.coco import Evaluation
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.precision import AREAS
from retinanet.reports.curves import curve_section, precision_section
from retinanet.reports.exhibits import color_of, exhibits_of
from retinanet.reports.page import (
    Block,
    Colored,
    Column,
    Facts,
    Folded,
    Gallery,
    Image,
    Notice,
    Page,
    Section,
    Table,
    Tile,
    Tiles,
)
from retinanet.reports.run_record import Record
from retinanet.reports.tables import caps_warning, metrics_dict
from retinanet.training.directory import flatten

FILE = "report.html"
# Digits of a fingerprint or commit that tell it from others.
SHORT = 12
# Bad steps and warnings that are listed; the files have all.
LISTED = 20


@dataclass(frozen=True, slots=True)
class Scored:
    """What an evaluation looked at and found."""

    data: CocoData
    found: DetectionArrays
    evaluation: Evaluation | None  # None for data without annotations
    num_drawn: int  # images in the gallery, 0 for none


def write_run_report(
    folder: Path, record: Record, metrics: dict[str, Any] | None, scored: Scored | None
) -> None:
    """Write ``report.html``, whole or not at all.

    Args:
        folder: ``eval/`` of the run.
        record: of the run.
        metrics: what eval/metrics.json holds; None for data without annotations.
        scored: None where the data is gone: then curves and pictures of it are left out.
    """
    write_whole(folder / FILE, run_page(record, metrics, scored).html())


def run_page(record: Record, metrics: dict[str, Any] | None, scored: Scored | None) -> Page:
    """The page of a run; a section without anything to show is not in it."""
    exhibits, images = _exhibits(scored)
    warnings = _warnings(record, scored)
    sections = [
        curve_section(record),
        precision_section(None if scored is None else scored.evaluation),
        _classes(metrics, scored),
        _sizes(metrics, scored),
        exhibits,
        _data(record),
        _what_ran(record, metrics, scored),
    ]
    return Page(
        title=record.title,
        kind=f"RetinaNet \u00b7 {record.kind}",
        lead=_lead(record, metrics, scored),
        top=[*([] if metrics is None else [headline(metrics)]), *warnings],
        sections=[section for section in sections if section is not None],
        images=images,
    )


def headline(metrics: dict[str, Any]) -> Tiles:
    """COCO's numbers that people ask for first."""
    _, _, most = metrics["max_dets"]
    recall = "average recall: share of the objects found"
    meanings = {
        "AP": "average precision: 1 is every object found, in place, and nothing else",
        "AP50": "boxes may be rough: overlap (IoU) of at least 0.50",
        "AP75": "boxes must fit well: overlap of at least 0.75",
        "AR100": f"{recall} in {most} detections an image",
        "APs": "small objects, below 32 \u00d7 32 px",
        "APm": "medium objects, in between",
        "APl": "large objects, above 96 \u00d7 96 px",
    }
    return Tiles(
        [
            Tile(_recall_name(name, metrics), metrics[name], meaning)
            for name, meaning in meanings.items()
        ]
    )


def _recall_name(name: str, metrics: dict[str, Any]) -> str:
    """AR100 by the number of detections that it was really computed with."""
    return f"AR{metrics['max_dets'][2]}" if name == "AR100" else name


def _lead(record: Record, metrics: dict[str, Any] | None, scored: Scored | None) -> str:
    """One sentence: what was evaluated on what."""
    what = record.checkpoint if record.step is None else f"The checkpoint of step {record.step:,}"
    on = "" if scored is None else f" of {scored.data.path}"
    if metrics is not None:
        return (
            f"{what}, evaluated on {metrics['num_images']:,} images{on} with "
            f"{metrics['num_gt']:,} objects: {metrics['num_detections']:,} detections."
        )
    if scored is None:
        return f"{what}. There is no evaluation to show."
    return (
        f"{what}: {len(scored.found):,} detections in {len(scored.found.evaluated):,} images{on}, "
        "which has no annotations to score them by."
    )


def _warnings(record: Record, scored: Scored | None) -> list[Block]:
    """A box with what the run warned of."""
    points = list(record.warnings[:LISTED])
    if len(record.warnings) > LISTED:
        points.append(f"and {len(record.warnings) - LISTED} more in train.log.")
    cap = record.setting("postprocess", "detections")
    if scored is not None and cap is not None:
        points += filter(None, [caps_warning(scored.evaluation, scored.found, cap)])
    if record.bad_steps:
        steps = ", ".join(str(row["step"]) for row in record.bad_steps[:LISTED])
        points.append(
            f"{len(record.bad_steps)} steps had a loss or gradient that is not finite and changed "
            f"no weights (step {steps}); bad_steps.jsonl has their images. The last: "
            f"{record.bad_steps[-1].get('likely_cause', 'no cause recorded')}"
        )
    return [Notice("Warnings of this run", points=points, severe=False)] if points else []


def _classes(metrics: dict[str, Any] | None, scored: Scored | None) -> Section | None:
    """Numbers of every class."""
    if metrics is None:
        return None
    # Colors go by label, which is the order of these rows.
    columns = [
        Column("class"),
        Column("objects", meaning="in the images evaluated, crowds left out"),
        Column("detections", meaning="of any score, right or wrong"),
        Column("AP", 3, bar=True),
        Column("AP50", 3),
        Column("AP75", 3),
        Column(_recall_name("AR100", metrics), 3),
    ]
    rows = [
        [
            Colored(row["name"], color_of(label)),
            row["num_gt"],
            row["num_detections"],
            *(row[name] for name in ("AP", "AP50", "AP75", "AR100")),
        ]
        for label, row in enumerate(metrics["classes"])
    ]
    rows.sort(key=lambda row: (row[3] is None, -(row[3] or 0.0)))
    return Section(
        "Classes",
        "AP of the whole is the mean of this column over the classes that have objects. A low row "
        "with few objects says little; a low row with many is where to look. n/a: no object to "
        "find. A click on a title sorts.",
        [Table(columns, rows, what="classes")],
    )


def _sizes(metrics: dict[str, Any] | None, scored: Scored | None) -> Section | None:
    """AP and AR by size of the objects."""
    if metrics is None:
        return None
    counts = [None] * 3 if scored is None else _size_counts(scored)
    names = {
        "s": "small: up to 32 \u00d7 32 px",
        "m": "medium: up to 96 \u00d7 96 px",
        "l": "large: above 96 \u00d7 96 px",
    }
    rows = [
        [name, count, metrics[f"AP{key}"], metrics[f"AR{key}"]]
        for (key, name), count in zip(names.items(), counts, strict=True)
    ]
    columns = [Column("area in the file"), Column("objects"), Column("AP", 3, True)]
    return Section(
        "Sizes",
        "The same numbers for small, medium and large objects, in pixels of the image files. Small "
        "objects are the hardest for every detector: larger images (data.min_size) or smaller "
        "anchors (anchors=small) help them.",
        [Table([*columns, Column("AR", 3, True)], rows, what="sizes")],
    )


def _size_counts(scored: Scored) -> list[int]:
    """Objects of the images evaluated in each of COCO's sizes but the first, which is all."""
    data = scored.data
    seen = np.isin(data.image_ids, scored.found.evaluated)[images_of(data)] & ~data.crowd
    area = data.area[seen]
    return [int(((area >= low) & (area <= high)).sum()) for low, high in AREAS[1:]]


def _exhibits(scored: Scored | None) -> tuple[Section | None, list[Image]]:
    """Predictions beside ground truth, and the pixels of the images."""
    if scored is None or not scored.num_drawn:
        return None, []
    exhibits, legend = exhibits_of(scored.data, scored.found, scored.num_drawn)
    section = Section(
        "Pictures",
        "Left what is there, right what was found. They are spread evenly over the images that "
        "have objects, not chosen by how well they went. A click enlarges a picture; the arrow "
        "keys lead to the others, and the pointer on a box names it.",
        [legend, Gallery(exhibits)],
    )
    return (section if exhibits else None), [exhibit.image for exhibit in exhibits]


def _data(record: Record) -> Section | None:
    """What the run said of its data before the first step."""
    if not record.announced:
        return None
    return Section(
        "Before the first step",
        "What the run measured in the training data, and what it expected from its settings.",
        [Facts(record.announced)],
    )


def _what_ran(
    record: Record, metrics: dict[str, Any] | None, scored: Scored | None
) -> Section | None:
    """Command, versions, machine, fingerprints, settings."""
    start = record.starts[-1] if record.starts else {}
    facts = [
        ("command", shlex.join(map(str, start.get("command", [])))),
        ("in folder", str(start.get("folder", ""))),
        ("started", _starts(record)),
        (
            "checkpoint",
            record.checkpoint + ("" if record.step is None else f", step {record.step}"),
        ),
        ("machine", _machine(record, start)),
        ("source", _source(start)),
        ("versions", _versions(start)),
        ("evaluator", _evaluator(metrics)),
        ("training data", _short(start.get("train_data"))),
        ("evaluated on", _evaluated_on(scored, start)),
    ]
    blocks: list[Block] = [Facts([(name, value) for name, value in facts if value])]
    if record.typed:
        typed = [tuple(text.split("=", 1)) for text in record.typed if "=" in text]
        blocks.append(Folded(f"Settings of the command ({len(typed)})", [Facts(typed, code=True)]))
    if record.settings:
        every = [(key, str(value)) for key, value in flatten(record.settings).items()]
        blocks.append(Folded(f"All settings ({len(every)})", [Facts(every, code=True)]))
    return Section(
        "What ran",
        "Enough to run it again: the command, the versions, and fingerprints (SHA-256) of the "
        "annotation files, which tell whether the data is still the same.",
        blocks,
    )


def _starts(record: Record) -> str:
    times = [start["started"] for start in record.starts if "started" in start]
    if len(times) < 2:
        return "".join(times)
    return f"{times[0]}, then {len(times) - 1} more times, the last {times[-1]}"


def _machine(record: Record, start: dict[str, Any]) -> str:
    precision = record.settings.get("precision")
    processes = start.get("processes")
    parts = [
        start.get("device"),
        precision and f"forward pass in {precision}",
        processes and f"{processes} {'process' if processes == 1 else 'processes'}",
        start.get("cpus") and f"{start['cpus']} CPU cores",
        start.get("platform"),
    ]
    return ", ".join(str(part) for part in parts if part)


def _source(start: dict[str, Any]) -> str:
    git = start.get("git")
    if not git:
        return ""
    return f"commit {git['commit'][:SHORT]}{' with changes' if git['changed'] else ''}"


def _versions(start: dict[str, Any]) -> str:
    found = {"Python": start.get("python"), **start.get("versions", {})}
    return ", ".join(f"{name} {version}" for name, version in found.items() if version)


def _evaluator(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return ""
    return f"evaluation.backend={metrics['backend']} evaluation.max_dets={metrics['max_dets']}"


def _evaluated_on(scored: Scored | None, start: dict[str, Any]) -> str:
    if scored is None:
        return _short(start.get("val_data"))
    return f"{scored.data.path}, {_short(scored.data.fingerprint)}"


def _short(fingerprint: Sequence[str] | None) -> str:
    return "" if not fingerprint else f"fingerprint {fingerprint[:SHORT]}"


def metrics_of(evaluation: Evaluation | None) -> dict[str, Any] | None:
    """What eval/metrics.json holds, from the evaluation itself."""
    return None if evaluation is None else metrics_dict(evaluation)
