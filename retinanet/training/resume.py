"""The checkpoint that a run continues from, and its early stopping."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from retinanet.data.coco import CocoData
from retinanet.distributed import gather_objects, on_main
from retinanet.training.checkpoint import load_latest
from retinanet.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

# What last.pt has and best.pt has not.
TO_CONTINUE = {"optimizer", "scaler", "loss", "ema", "evaluated_step", "fruitless"}


@dataclass(slots=True)
class EarlyStopping:
    """The best evaluation of a run, and how many have passed without a better one."""

    best: dict[str, Any] = field(default_factory=lambda: {"AP": None, "step": 0})
    evaluated_step: int = 0
    without_improvement: int = 0

    def add(self, step: int, metrics: dict[str, Any]) -> bool:
        """Count an evaluation.

        Args:
            step: of the weights.
            metrics: theirs; AP is None where there is no ground truth.

        Returns:
            Whether it is the best so far. While no evaluation has an AP, the latest is: nothing
            says that it is worse than one before, and it was trained longer.
        """
        AP, best = metrics["AP"], self.best["AP"]
        better = best is None or (AP is not None and best < AP)
        self.evaluated_step = step
        if better:
            self.best = {"AP": AP, "step": step}
            self.without_improvement = 0
        elif AP is not None:
            self.without_improvement += 1
        return better

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, whose key for evaluations without improvement is ``fruitless``."""
        return {
            "best": self.best,
            "evaluated_step": self.evaluated_step,
            "fruitless": self.without_improvement,
        }

    @classmethod
    def of(cls, stored: dict[str, Any]) -> EarlyStopping:
        """As a checkpoint has it; evaluations without an AP do not count, as older ones did."""
        passed = 0 if stored["best"]["AP"] is None else stored["fruitless"]
        return cls(stored["best"], stored["evaluated_step"], passed)


def find_stored(
    directory: RunDirectory, settings: dict[str, Any], *, overwrite: bool
) -> tuple[dict[str, Any] | None, bool]:
    """The checkpoint to continue from, unless this is another run than the one on disk.

    Args:
        directory: of the run.
        settings: of this command, as plain containers.
        overwrite: another run will be moved aside.

    Returns:
        The checkpoint or None, and whether it is not the last one, because that is damaged.

    Raises:
        ValueError: the directory holds something else, or no checkpoint that can be read.
    """
    moves = on_main(lambda: directory.check(settings, overwrite=overwrite))
    found = None if moves else load_latest(directory.checkpoints)
    if found is None:
        return None, False
    stored, problems = found
    for problem in problems:
        logger.warning("%s The checkpoint before it is used.", problem)
    return stored, bool(problems)


def check_stored(
    stored: dict[str, Any], directory: RunDirectory, train_data: CocoData, val_data: CocoData
) -> None:
    """Refuse a checkpoint that this run cannot continue from.

    Raises:
        ValueError: the annotations are not those it was trained on, or it has no state of a
            training.
    """
    if not stored.keys() >= TO_CONTINUE:
        raise ValueError(
            f"{directory.last} holds a model without the state of its training, as best.pt does; "
            f"put the last.pt of the run there, or choose another output_dir (with init_from=PATH "
            f"to keep the weights)."
        )
    for data, fingerprint in ((train_data, stored["train_data"]), (val_data, stored["val_data"])):
        if data.fingerprint != fingerprint:
            raise ValueError(
                f"{data.path} is not the file that {directory.root} was started with; restore it, "
                f"or choose another output_dir (with init_from={directory.best} to keep the "
                f"weights)."
            )


def other_images(
    stored: dict[str, Any], train_data: CocoData, val_data: CocoData, *, moved: bool
) -> bool:
    """Whether a checkpoint was trained on other image files under the same annotations.

    Below another folder one file of another size is enough. Below the same folder most of them
    must differ: a damaged image may have been replaced.

    Args:
        stored: of last.pt or best.pt; older ones have no sizes and say nothing.
        train_data: of this command.
        val_data: likewise.
        moved: data.root is another one.
    """
    pairs = []
    for data, name in ((train_data, "train_files"), (val_data, "val_files")):
        before, now = stored.get(name) or [], data.file_sizes()
        pairs += [pair for pair in zip(before, now, strict=False) if None not in pair]
    num_other = sum(before != now for before, now in pairs)
    return num_other > (0 if moved else len(pairs) / 2)


def check_same_step(step: int, directory: RunDirectory) -> None:
    """Refuse ranks that begin at different steps; every rank must call it.

    Raises:
        ValueError: they do not see the same folder.
    """
    steps = gather_objects(step)
    if len(set(steps)) > 1:
        raise ValueError(
            f"the ranks found checkpoints of different steps ({steps}) in "
            f"{directory.checkpoints.absolute()}; output_dir must be one folder that all nodes "
            f"share."
        )
