"""Settings of train.py behind the options of a script."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def split_settings(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """What stands before ``--`` and what stands after; argparse alone would mix them up.

    Args:
        arguments: of the command line; None: those of this process.
    """
    options = list(sys.argv[1:] if arguments is None else arguments)
    at = options.index("--") if "--" in options else len(options)
    return options[:at], options[at + 1 :]
