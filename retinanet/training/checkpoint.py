"""Checkpoints: always whole on disk, checked before use, plain containers and tensors only."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retinanet.platforms import sync_folder
from retinanet.weights.loading import read_tensors

# Raised when the meaning of a key changes; load_checkpoint refuses what it does not know.
FORMAT = 1
# What a trained model is: the weights, and what it takes to use them.
NEEDED = {"model", "settings", "classes"}


def save_checkpoint(path: Path, state: dict[str, Any], *, keep_previous: bool = False) -> None:
    """Write ``state`` whole or not at all: temporary file, fsync, rename, fsync of the folder.

    Args:
        path: where; its folder exists.
        state: plain containers, numbers, strings and tensors.
        keep_previous: an existing file stays as ``previous.pt`` beside it.

    Raises:
        OSError: disk full or not writable; what was there before is untouched.
    """
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.exists():
            # A second name first, so that at no moment `path` is missing.
            link = path.with_name("previous.partial")
            link.unlink(missing_ok=True)
            try:
                os.link(path, link)
            except OSError:  # a file system without second names
                shutil.copyfile(path, link)
            link.replace(path.with_name("previous.pt"))
        partial.replace(path)
    except RuntimeError as error:
        # torch reports a full disk as a RuntimeError of its zip writer.
        raise OSError(f"could not write checkpoint {path}: {str(error).splitlines()[0]}") from error
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What :func:`save_checkpoint` saved, every byte checked, tensors on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or not a checkpoint of this project, or of another format.
    """
    state = read_checked(path)
    if not isinstance(state, dict) or not _is_known(state.get("format")):
        raise ValueError(
            f"{path} is not a checkpoint of this project (format {FORMAT}); weights of a backbone "
            f"belong into model.weights."
        )
    return state


def read_checked(path: Path) -> Any:
    """What is in a checkpoint of anybody, every byte checked; nothing in it is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or no file of tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}; give the path of a .pt, .pth or .pkl file.")
    try:
        return read_tensors(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged or no checkpoint ({error}); give another, of a run such as "
            f"previous.pt or best.pt."
        ) from error


def _is_known(number: Any) -> bool:
    return isinstance(number, int) and number == FORMAT  # a tensor would answer with a tensor


def check_trained(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """A checkpoint of this project, if it is of a model that a run trained.

    Raises:
        ValueError: it is of another format, or of something else.
    """
    number = state["format"]
    if not _is_known(number):
        said = number if isinstance(number, int) else type(number).__name__
        raise ValueError(
            f"{path} has format {said}, this version reads {FORMAT}; use the version that wrote it."
        )
    if not _holds_a_model(state):
        raise ValueError(
            f"{path} holds {', '.join(sorted(map(str, state)))}, but no model of train.py; give a "
            f"checkpoint from the checkpoints folder of a run."
        )
    return state


def _holds_a_model(state: dict[str, Any]) -> bool:
    """Whether the parts of a trained model are there, each of its type."""
    parts = all(isinstance(state.get(name), dict) for name in NEEDED)
    if not parts or "step" not in state or not {"names", "ids"} <= state["classes"].keys():
        return False
    weights, names, ids = final_weights(state), state["classes"]["names"], state["classes"]["ids"]
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        return False
    if names is None:
        return True
    are_lists = isinstance(names, list) and isinstance(ids, list) and len(names) == len(ids)
    return are_lists and {*map(type, names)} <= {str} and {*map(type, ids)} <= {int}


def load_latest(folder: Path) -> tuple[dict[str, Any], list[str]] | None:
    """The newest readable checkpoint in a folder, ``last.pt`` or else ``previous.pt``.

    Returns:
        The checkpoint and why newer ones were passed over; None when there is none.

    Raises:
        ValueError: checkpoints exist, but none can be read.
    """
    problems = []
    for name in ("last.pt", "previous.pt"):
        try:
            return load_checkpoint(folder / name), problems
        except FileNotFoundError:
            continue
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(
            f"no readable checkpoint in {folder}: {' '.join(problems)} Move the folder aside to "
            f"start again."
        )
    return None


def final_weights(state: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint that are evaluated: the EMA weights where there are some."""
    return state["model"] if state.get("ema") is None else state["ema"]
