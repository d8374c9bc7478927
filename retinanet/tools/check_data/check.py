"""Every issue of a data set: what training refuses, loses, repairs, and takes as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice

import numpy as np
import torch
from tqdm import tqdm

from retinanet import build
from retinanet.config import TrainConfig
from retinanet.data.coco import Reading, read_records
from retinanet.data.issues import Effect, Issue, refusal
from retinanet.data.records import read_json
from retinanet.data.splits import (
    VANISHED,
    annotated_issues,
    class_issues,
    learnable_issues,
    missing_issues,
)
from retinanet.terminal import has_bar
from retinanet.tools.check_data.annotation_checks import check_annotations, check_pair
from retinanet.tools.check_data.image_checks import (
    ImageFile,
    check_copies,
    check_files,
    check_leaks,
    other_sizes,
    read_files,
)

# Of every kind of issue, how many records are drawn.
SIGHTS = 4


def check(
    settings: TrainConfig, *, pixels: bool = False, keep: int = 3
) -> tuple[list[Issue], dict[str, Reading]]:
    """Everything that can be found out about both splits.

    Args:
        settings: of train.py.
        pixels: decode every image.
        keep: places named of each kind of issue.

    Returns:
        The issues, one of each kind: of those refused the first has the error of training. And
        each split that could be read, without the records refused.

    Raises:
        ValueError: a path is not set.
    """
    readings, issues = _read_splits(settings)
    groups: dict[tuple[Effect, str], Issue] = {}
    for issue in chain(issues, _issues_of(settings, readings, pixels)):
        if not issue.count:
            continue
        key = issue.effect, issue.kind
        group = groups.get(key) or replace(issue, count=0, places=[], sights=[], out_of=0)
        groups[key] = replace(
            group,
            count=group.count + issue.count,
            places=[*group.places, *islice(issue.places, keep - len(group.places))],
            sights=[*group.sights, *islice(issue.sights, SIGHTS - len(group.sights))],
            out_of=group.out_of + issue.out_of,
        )
    return list(groups.values()), readings


def _read_splits(settings: TrainConfig) -> tuple[dict[str, Reading], list[Issue]]:
    """The splits that can be read; a file that serves both is read once."""
    paths = {split: build.data_paths(settings.data, split) for split in ("train", "val")}
    same = paths["train"] == paths["val"]
    if same:
        del paths["val"]
    readings, issues = {}, []
    for split, (path, images) in paths.items():
        try:
            content, fingerprint = read_json(path)
            readings[split] = read_records(content, path, images, fingerprint)
            issues += readings[split].issues
        except (ValueError, OSError) as error:
            issues.append(_refusal("the annotation file cannot be read", error))
    if "train" in readings:
        # As training takes it: without the boxes that it never sees at its size.
        train = readings["train"]
        data = build.drop_unseen(settings, train.data)
        vanished = np.sort(train.box_rows[train.data.usable & ~data.usable])
        train = train._replace(data=data, repaired=train.repaired | {VANISHED: vanished})
        readings |= {"train": train, "val": train} if same else {"train": train}
    return readings, issues


def _refusal(kind: str, error: Exception) -> Issue:
    return refusal(kind, [str(error)], error, "What the message says.")


def _issues_of(
    settings: TrainConfig, readings: Mapping[str, Reading], pixels: bool
) -> Iterator[Issue]:
    """Of splits that were read: what training refuses, in its order, and what it does not."""
    train, val = readings.get("train"), readings.get("val")
    skip = settings.data.on_bad_image == "skip"
    both = train is not None and val is not None
    if both:
        yield from annotated_issues(train.data, "train")
        yield from annotated_issues(val.data, "val")
        if not (train.categories.issues or val.categories.issues):
            yield from class_issues(train.data, val.data)
    for split, reading in readings.items():
        yield from missing_issues(reading.data, split, skip=skip)
    if both and train.whole:  # else what is missing may be what was refused
        issues = learnable_issues(train.data)
        yield from issues
        if not issues:
            try:
                build.resolve_alpha(settings.loss.alpha, train.data.category_names)
                build.build_loader(settings, train.data, torch.device("cpu"))
            except ValueError as error:
                yield _refusal("the settings do not go with the training set", error)
    files: dict[str, list[ImageFile]] = {}
    for split, reading in readings.items():
        if split == "val" and reading is train:
            files["val"] = files["train"]
            continue
        files[split] = []
        if reading.data.image_root.is_dir():  # else refused when it was read
            files[split] += tqdm(
                read_files(reading.data, pixels=pixels, workers=settings.data.workers),
                total=len(reading.data),
                desc=f"images of {split}",
                leave=False,
                dynamic_ncols=True,
                disable=not has_bar(),
            )
        yield from check_files(reading, files[split], skip)
        other_size = [file.index for file in other_sizes(reading.data, files[split])]
        yield from check_annotations(reading, other_size)
        yield check_copies(reading.data, files[split])
    if both:
        yield from check_pair(train, val, settings.data.keep_empty)
        if pixels:
            yield from check_leaks(train.data, val.data, files["train"], files["val"])
