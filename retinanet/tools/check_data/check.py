"""Every issue of a data set: what training refuses, loses, repairs, and takes as it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from tqdm import tqdm

from retinanet import build
from retinanet.config import TrainConfig
from retinanet.data.coco import Reading, read_records
from retinanet.data.issues import Effect, Issue, refusal
from retinanet.data.learnable import VANISHED, learnable_issues
from retinanet.data.records import read_json
from retinanet.data.splits import annotated_issues, class_issues, missing_issues
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


class Findings:
    """The issues of a data set, those of one kind as one.

    Args:
        keep: of every kind, how many places are kept.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._of_kind: dict[tuple[Effect, str], Issue] = {}

    def add(self, issues: Iterable[Issue]) -> None:
        """Take issues up, and the first places of each."""
        for issue in issues:
            if not issue.count:
                continue
            key = issue.effect, issue.kind
            before = self._of_kind.get(key)
            if before is None:
                before = replace(issue, count=0, places=[], out_of=0, sights=[])
            missing, sights = self.keep - len(before.places), SIGHTS - len(before.sights)
            self._of_kind[key] = replace(
                before,
                count=before.count + issue.count,
                places=[*before.places, *islice(issue.places, missing)],
                out_of=before.out_of + issue.out_of,
                sights=[*before.sights, *islice(issue.sights, sights)],
            )

    @property
    def issues(self) -> list[Issue]:
        """All, in the order in which their kinds were met."""
        return list(self._of_kind.values())

    def having(self, effect: Effect) -> list[Issue]:
        """Those of one effect."""
        return [issue for issue in self.issues if issue.effect is effect]

    @property
    def refused(self) -> list[Issue]:
        """What training would stop at, first the one whose error it would raise."""
        return self.having(Effect.REFUSED)


def check(
    settings: TrainConfig, *, pixels: bool = False, keep: int = 3
) -> tuple[Findings, dict[str, Reading]]:
    """Everything that can be found out about both splits.

    Args:
        settings: of train.py.
        pixels: decode every image.
        keep: places named of each kind of issue.

    Returns:
        The issues, and each split that could be read, without the records refused.

    Raises:
        ValueError: a path is not set.
    """
    findings = Findings(keep)
    readings = _read_splits(settings, findings)
    train, val = readings.get("train"), readings.get("val")
    skip = settings.data.on_bad_image == "skip"
    both = train is not None and val is not None
    if both:
        findings.add(annotated_issues(train.data, "train"))
        findings.add(annotated_issues(val.data, "val"))
        if not (train.categories.issues or val.categories.issues):
            findings.add(class_issues(train.data, val.data))
    if not skip:
        for reading in readings.values():
            findings.add(missing_issues(reading.data))
    if both:
        findings.add(_plan_issues(settings, train))
    files: dict[str, list[ImageFile]] = {}
    for split, reading in readings.items():
        if split == "val" and reading is train:
            files[split] = files["train"]
            continue
        files[split] = _read_images(settings, reading, split, pixels=pixels)
        findings.add(check_files(reading, files[split], skip))
        other_size = [file.index for file in other_sizes(reading.data, files[split])]
        findings.add(check_annotations(reading, other_size))
        findings.add([check_copies(reading.data, files[split])])
    if both:
        findings.add(check_pair(train, val, settings.data.keep_empty))
        if pixels:
            findings.add(check_leaks(train.data, val.data, files["train"], files["val"]))
    return findings, readings


def _read_splits(settings: TrainConfig, findings: Findings) -> dict[str, Reading]:
    """The splits that can be read; a file that serves both is read once."""
    paths = {split: build.data_paths(settings.data, split) for split in ("train", "val")}
    if paths["train"] == paths["val"]:
        paths = {"train": paths["train"]}
    readings = {}
    for split, (path, images) in paths.items():
        try:
            content, fingerprint = read_json(path)
            readings[split] = read_records(content, path, images, fingerprint)
            findings.add(readings[split].issues)
        except (ValueError, OSError) as error:
            findings.add([_refusal("the annotation file cannot be read", error)])
    if "train" in readings:
        readings["train"] = _without_unseen(settings, readings["train"])
        if len(paths) == 1:
            readings["val"] = readings["train"]
    return readings


def _without_unseen(settings: TrainConfig, reading: Reading) -> Reading:
    """A training set as training takes it: boxes that it never sees at its size are dropped."""
    data = build.drop_unseen(settings, reading.data)
    vanished = np.sort(reading.box_rows[reading.data.usable & ~data.usable])
    return reading._replace(data=data, repaired=reading.repaired | {VANISHED: vanished})


def _plan_issues(settings: TrainConfig, train: Reading) -> list[Issue]:
    """What the settings cannot do with the training set: no box, other classes in alpha."""
    if not train.whole:
        return []  # what is missing may be what was refused
    issues = learnable_issues(train.data)
    if not issues:
        try:
            build.resolve_alpha(settings.loss.alpha, train.data.category_names)
            build.build_stream(settings, train.data, torch.device("cpu"))
        except ValueError as error:
            issues = [_refusal("the settings do not go with the training set", error)]
    return issues


def _refusal(kind: str, error: Exception) -> Issue:
    return refusal(kind, [str(error)], error, "What the message says.")


def _read_images(
    settings: TrainConfig, reading: Reading, split: str, *, pixels: bool
) -> list[ImageFile]:
    """What the image files of a split hold, behind a progress bar."""
    if not reading.data.image_root.is_dir():
        return []  # refused when it was read
    bar = tqdm(
        read_files(reading.data, pixels=pixels, workers=settings.data.workers),
        total=len(reading.data),
        desc=f"images of {split}",
        leave=False,
        dynamic_ncols=True,
        disable=not has_bar(),
    )
    return list(bar)
