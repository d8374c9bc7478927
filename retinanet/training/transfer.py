"""Start a model from the weights of another run, also with other classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from retinanet.checks import value_text
from retinanet.model.retinanet import RetinaNet
from retinanet.training.checkpoint import shipped_weights

# A backbone that matches less than this of its parameters is another backbone.
MIN_BACKBONE_SHARE = 0.95

# Parameters with one group of rows for each class.
CLASS_PARAMETERS = ("head.cls.pred.weight", "head.cls.pred.bias")

# Settings by which the same weights mean something else.
CONVENTIONS = (
    ("data", "resize"),
    ("model", "norm_eps"),
    ("model", "stride_in_1x1"),
    ("model", "p6_from"),
    ("model", "relu_before_p7"),
    ("anchors", "sizes"),
    ("anchors", "scales"),
    ("anchors", "ratios"),
    ("anchors", "offset"),
    ("anchors", "rounding"),
)


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
    given, own = shipped_weights(state), model.state_dict()
    fits = {
        name: value
        for name, value in given.items()
        if name in own and own[name].shape == value.shape and name not in CLASS_PARAMETERS
    }
    # Both ways: a batch norm's statistics that find no place are a mismatch too.
    backbone = _backbone_names(own) | _backbone_names(given)
    share = sum(name in fits for name in backbone) / len(backbone)
    if share < MIN_BACKBONE_SHARE:
        raise ValueError(
            f"init_from={path}: only {share:.0%} of the backbone's parameters fit; it was trained "
            f"with model.backbone={state['settings']['model']['backbone']} and model.norm="
            f"{state['settings']['model']['norm']}. Use the same here."
        )
    old_names = state["classes"]["names"] or []
    copied = old_names and _rows_fit(own, given, model.num_classes, len(old_names))
    kept = [name for name in class_names if name in old_names and copied]
    if kept:
        for name in CLASS_PARAMETERS:
            fits[name] = _copy_rows(own[name], given[name], class_names, old_names)
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


def describe_source(state: dict[str, Any]) -> str:
    """Whose checkpoint it is, or after which step of a run."""
    return state.get("origin") or f"step {state['step']}"


def other_conventions(given: dict[str, Any], own: dict[str, Any]) -> list[str]:
    """A line for the log when a run reads the weights it starts from in another way.

    Args:
        given: settings recorded with the weights, as plain containers.
        own: those of the run.
    """
    differing = [
        f"{group}.{key}={value_text(given[group][key])}"
        for group, key in CONVENTIONS
        if given[group].get(key, own[group][key]) != own[group][key]
    ]
    if not differing:
        return []
    return [
        f"warning    they were trained with {' '.join(differing)}; set it to keep their meaning"
    ]


def _backbone_names(state: dict[str, Tensor]) -> set[str]:
    """Parameters and statistics of the backbone; counters of batches do not matter."""
    return {
        name
        for name in state
        if name.startswith("backbone.") and not name.endswith("num_batches_tracked")
    }


def _rows_fit(
    own: dict[str, Tensor], given: dict[str, Tensor], num_classes: int, old_num_classes: int
) -> bool:
    """Whether rows can be copied: as many inputs, as many anchors in a cell."""
    return all(
        own[name].shape[1:] == given[name].shape[1:]
        and own[name].shape[0] // num_classes == given[name].shape[0] // old_num_classes
        for name in CLASS_PARAMETERS
    )


def _copy_rows(
    own: Tensor, given: Tensor, names: Sequence[str], old_names: Sequence[str]
) -> Tensor:
    """Output rows of classes that both have; the others stay. Rows are anchor-major."""
    K, old_K = len(names), len(old_names)
    rows = own.clone().unflatten(0, (-1, K))  # (a, K, ...)
    old_rows = given.unflatten(0, (-1, old_K))  # (a, old K, ...)
    for label, name in enumerate(names):
        if name in old_names:
            rows[:, label] = old_rows[:, old_names.index(name)]
    return rows.flatten(0, 1)  # (a * K, ...)
