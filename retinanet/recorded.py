"""Settings as checkpoints keep them: plain containers, read back for what detection needs."""

from __future__ import annotations

import dataclasses
import types
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from retinanet.config import (
    AnchorsConfig,
    ModelConfig,
    PostprocessConfig,
    RecordedDataConfig,
)


@dataclass(slots=True, kw_only=True)
class DetectorConfig:
    """What a trained model needs to detect: the part of TrainConfig read from checkpoints."""

    data: RecordedDataConfig  # type: ignore[valid-type]
    model: ModelConfig
    anchors: AnchorsConfig
    postprocess: PostprocessConfig
    precision: str
    seed: int


# What versions did that had not yet the setting, so that their checkpoints still detect.
BEFORE: dict[type, dict[str, Any]] = {
    RecordedDataConfig: {"resize": "antialias"},
    ModelConfig: {"norm_eps": 1e-5, "stride_in_1x1": False},
    AnchorsConfig: {"rounding": "none"},
    PostprocessConfig: {"clip": "before_nms"},
}


def restore(cls: type, plain: dict[str, Any]) -> Any:
    """Settings from the plain containers of a checkpoint; the inverse of ``dataclasses.asdict``.

    Args:
        cls: such as :class:`TrainConfig`.
        plain: group -> key -> value.

    Raises:
        ValueError: a key is missing or unknown, or a value has another type: another version of
            this project wrote it, or another program.
    """
    hints = get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    plain = BEFORE.get(cls, {}) | plain
    if known != set(plain):
        raise ValueError(
            f"the recorded settings do not fit this version: missing {sorted(known - set(plain))}, "
            f"unknown {sorted(map(ascii, set(plain) - known))}. Use the version that wrote them."
        )
    wrong = [name for name in sorted(known) if not _fits(hints[name], plain[name])]
    if wrong:
        raise ValueError(
            f"the recorded settings do not fit this version: {', '.join(wrong)} of another type. "
            f"Use the version that wrote them."
        )
    return cls(
        **{
            name: restore(hints[name], value) if dataclasses.is_dataclass(hints[name]) else value
            for name, value in plain.items()
        }
    )


def _fits(hint: Any, value: Any) -> bool:
    """Whether a plain value has the type of a setting, or is the map of a group."""
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict)
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(choice, value) for choice in get_args(hint))
    if get_origin(hint) is list:
        (kind,) = get_args(hint)
        return isinstance(value, list) and all(_fits(kind, item) for item in value)
    if isinstance(value, bool):
        return hint in (bool, Any)
    return hint is Any or isinstance(value, int | float if hint is float else hint)
