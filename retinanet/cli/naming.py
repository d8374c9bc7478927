"""The name of a run's directory: a function of the command alone.

No clock and no counter: every rank of a job, a requeued job and each job of a sweep find the
same directory by themselves.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from retinanet.limits import value_text
from retinanet.training.run_directory import MAY_BECOME, MAY_DIFFER

MAX_LENGTH = 100
UNSAFE = re.compile(r"[^A-Za-z0-9._,=+-]")


def changes_weights(key: str) -> bool:
    """Whether another value of this key (or choice of this group) makes it another run."""
    return key not in MAY_BECOME and not f"{key}.".startswith(MAY_DIFFER)


def safe_name(name: str) -> str:
    """``name`` as one folder name; a hash of the whole tells shortened names apart."""
    safe = UNSAFE.sub("_", name)
    if safe == name and len(name) <= MAX_LENGTH:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{safe[: MAX_LENGTH - len(digest) - 1]},{digest}"


def run_name(base: str, overrides: Mapping[str, Any]) -> str:
    """Folder name of a run: ``shapes,loss.gamma=0``.

    Args:
        base: the experiment, or the data set without one.
        overrides: key (or group) -> value (or choice) of what the command changes.

    Returns:
        At most ``MAX_LENGTH`` characters, safe in a path.
    """
    changed = [f"{k}={value_text(overrides[k])}" for k in sorted(overrides) if changes_weights(k)]
    return safe_name(",".join([base, *changed]))


def sweep_name(base: str, fixed: Mapping[str, Any], swept: list[str]) -> str:
    """Folder name of a sweep's table: ``sweep_shapes,loss.gamma``.

    The swept values are left out, so that a sweep that goes on with other values adds to the
    same table.
    """
    changed = [f"{k}={value_text(fixed[k])}" for k in sorted(fixed) if changes_weights(k)]
    return safe_name(",".join([f"sweep_{base}", *changed, *sorted(swept)]))
