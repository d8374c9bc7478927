"""Where a run starts: at its own last checkpoint, or from the weights of another model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from retinanet.checks import value_text
from retinanet.data.coco import CocoData
from retinanet.distributed import gather_objects, on_main
from retinanet.model.retinanet import RetinaNet
from retinanet.training.checkpoint import final_weights, load_latest
from retinanet.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

# What last.pt has and best.pt has not.
TO_CONTINUE = {"optimizer", "scaler", "loss", "ema", "evaluated_step", "fruitless"}
# A backbone that matches less than this of its parameters is another backbone.
MIN_BACKBONE_SHARE = 0.95
# Parameters with one group of rows for each class.
CLASS_PARAMETERS = ("head.cls.pred.weight", "head.cls.pred.bias")
# Settings by which the same weights mean something else.
CONVENTIONS = (
    ("data", "resize"),
    *(("model", key) for key in ("norm_eps", "stride_in_1x1", "p6_from", "relu_before_p7")),
    *(("anchors", key) for key in ("sizes", "scales", "ratios", "offset", "rounding")),
)

# Its own checkpoint.


def find_checkpoint(
    directory: RunDirectory, settings: dict[str, Any], *, overwrite: bool
) -> tuple[dict[str, Any] | None, bool]:
    """The checkpoint to continue from, unless this is another run than the one on disk.

    Returns:
        The checkpoint or None, and whether it is not the last one, because that is damaged.

    Raises:
        ValueError: the directory holds something else, or no checkpoint that can be read.
    """
    moves = on_main(lambda: directory.check(settings, overwrite=overwrite))
    latest = None if moves else load_latest(directory.checkpoints)
    if latest is None:
        return None, False
    checkpoint, problems = latest
    for problem in problems:
        logger.warning("%s The checkpoint before it is used.", problem)
    return checkpoint, bool(problems)


def check_checkpoint(
    checkpoint: dict[str, Any], directory: RunDirectory, train_data: CocoData, val_data: CocoData
) -> None:
    """Refuse a checkpoint that this run cannot continue from.

    Raises:
        ValueError: the annotations are not those it was trained on, or it has no state of a
            training.
    """
    if not checkpoint.keys() >= TO_CONTINUE:
        raise ValueError(
            f"{directory.last} holds a model without the state of its training, as best.pt does; "
            f"put the last.pt of the run there, or choose another output_dir (with init_from=PATH "
            f"to keep the weights)."
        )
    for data, fingerprint in (
        (train_data, checkpoint["train_data"]),
        (val_data, checkpoint["val_data"]),
    ):
        if data.fingerprint != fingerprint:
            raise ValueError(
                f"{data.path} is not the file that {directory.root} was started with; restore it, "
                f"or choose another output_dir (with init_from={directory.best} to keep the "
                f"weights)."
            )


def check_images(
    checkpoint: dict[str, Any],
    directory: RunDirectory,
    data_root: str | None,
    sizes: dict[str, list[int | None]],
) -> list[str]:
    """Refuse other image files under the same annotations, known by their sizes in bytes.

    Below another folder one file of another size is enough. Below the same folder most of them
    must differ: a damaged image may have been replaced. Older checkpoints have no sizes.

    Args:
        checkpoint: of the run on disk.
        directory: of the run.
        data_root: of this command.
        sizes: ``train_files`` and ``val_files``, bytes of some files: ``CocoData.file_sizes``.

    Returns:
        A line for the log where ``data_root`` is another folder than that of the checkpoint.

    Raises:
        ValueError: the images are others.
    """
    pairs = []
    for name, now in sizes.items():
        both = zip(checkpoint.get(name) or [], now, strict=False)
        pairs += [pair for pair in both if None not in pair]
    num_other = sum(before != now for before, now in pairs)
    root = checkpoint["settings"]["data"]["root"]
    if num_other > (len(pairs) / 2 if root == data_root else 0):
        raise ValueError(
            f"{directory.root} holds a run on the images below data.root={root}; the files below "
            f"data.root={data_root} have the same names and other sizes. Choose another "
            f"output_dir, or set overwrite=true to move the old run aside."
        )
    if root == data_root:
        return []
    known = "train_files" in checkpoint
    how = "image files of the same sizes" if known else "not compared: an older checkpoint"
    return [f"moved      data.root from {root} to {data_root} ({how})"]


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


# The weights of another model.


def transfer(
    model: RetinaNet, state: dict[str, Any], path: str, class_names: Sequence[str]
) -> list[str]:
    """Copy what fits from a checkpoint into ``model``; class outputs are matched by name.

    Args:
        model: its class outputs keep their start from the prior where no class of the same name
            is in the checkpoint.
        state: the checkpoint, of this project or another.
        path: of its file, for the messages.
        class_names: of the model, in the order of labels.

    Returns:
        Lines for the log: what was kept, restarted and left out.

    Raises:
        ValueError: it is of another backbone.
    """
    given, own = final_weights(state), model.state_dict()
    fits = {
        name: value
        for name, value in given.items()
        if name in own and own[name].shape == value.shape and name not in CLASS_PARAMETERS
    }
    # Both ways: a batch norm's statistics that find no place are a mismatch too. Its counters of
    # batches do not matter.
    backbone = {name for name in own.keys() | given.keys() if name.startswith("backbone.")}
    backbone = {name for name in backbone if not name.endswith("num_batches_tracked")}
    share = len(backbone & fits.keys()) / len(backbone)
    if share < MIN_BACKBONE_SHARE:
        raise ValueError(
            f"init_from={path}: only {share:.0%} of the backbone's parameters fit; it was trained "
            f"with model.backbone={state['settings']['model']['backbone']} and model.norm="
            f"{state['settings']['model']['norm']}. Use the same here."
        )
    kept = _copy_classes(fits, own, given, class_names, state["classes"]["names"] or [])
    model.load_state_dict({**own, **fits})
    restarted = [name for name in class_names if name not in kept]
    untouched = [name for name in own if name not in fits]
    return [
        f"weights    {path} ({describe_source(state)}): {len(fits)} of {len(own)} parameters",
        f"classes    kept {', '.join(kept) or 'none'}; restarted from model.prior: "
        f"{', '.join(restarted) or 'none'}",
        f"restarted  {', '.join(untouched[:6]) or 'no parameter'}"
        + (f" and {len(untouched) - 6} more" if len(untouched) > 6 else ""),
    ]


def _copy_classes(
    fits: dict[str, Tensor],
    own: dict[str, Tensor],
    given: dict[str, Tensor],
    names: Sequence[str],
    old_names: Sequence[str],
) -> list[str]:
    """Add class outputs to ``fits``: rows of classes that both have; the others stay.

    Rows are anchor-major. None are copied where inputs or anchors of a cell are not as many.

    Returns:
        Names of the classes that were copied.
    """
    K, old_K = len(names), len(old_names)
    kept = [name for name in names if name in old_names]
    new_labels = [names.index(name) for name in kept]
    old_labels = [old_names.index(name) for name in kept]
    copied = {}
    for parameter in CLASS_PARAMETERS if kept else ():
        mine, theirs = own[parameter].clone(), given[parameter]
        if mine.shape[1:] != theirs.shape[1:] or len(mine) // K != len(theirs) // old_K:
            return []
        rows = mine.unflatten(0, (-1, K))  # (a, K, ...)
        rows[:, new_labels] = theirs.unflatten(0, (-1, old_K))[:, old_labels]
        copied[parameter] = rows.flatten(0, 1)  # (a * K, ...)
    fits |= copied
    return kept


def describe_source(state: dict[str, Any]) -> str:
    """Whose checkpoint it is, or after which step of a run."""
    return state.get("origin") or f"step {state['step']}"


def other_conventions(given: dict[str, Any], own: dict[str, Any]) -> list[str]:
    """A line for the log when a run with settings ``own`` reads weights in another way."""
    differing = [
        f"{group}.{key}={value_text(given[group][key])}"
        for group, key in CONVENTIONS
        if given[group].get(key, own[group][key]) != own[group][key]
    ]
    warning = f"they were trained with {' '.join(differing)}; set it to keep their meaning"
    return [f"warning    {warning}"] if differing else []
