"""What the commands of this folder share: their parser, settings after --, exit statuses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from retinanet.terminal import INTERRUPTED, MISTAKES, complain


def new_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for ``python -m scripts.NAME`` that shows the description as it is written."""
    parser = argparse.ArgumentParser(
        prog=f"python -m scripts.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # Shells leave the ~ of --output=~/x as it is. What `type=Path` means to this parser:
    parser.register("type", Path, lambda text: Path(text).expanduser())
    return parser


def split_settings(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """What stands before ``--`` and what stands after; argparse alone would mix them up.

    Args:
        arguments: of the command line; None: those of this process.
    """
    options = list(sys.argv[1:] if arguments is None else arguments)
    at = options.index("--") if "--" in options else len(options)
    return options[:at], options[at + 1 :]


def exit_status(work: Callable[[], int]) -> int:
    """Run the work of a command: its own status, 130 after ctrl-c, 1 for a user's mistake.

    A mistake is one line on stderr; any other exception is a bug and keeps its traceback.
    """
    try:
        return work()
    except KeyboardInterrupt:
        return INTERRUPTED
    except MISTAKES as error:
        complain(error)
        return 1
