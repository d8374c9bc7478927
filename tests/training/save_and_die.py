"""Saves checkpoints in processes that die or run out of space; a program, not a test.

    python save_and_die.py ROOT

ROOT/0, ROOT/1, ... and ROOT/full hold a checkpoint each. In ROOT/N the next one is saved by a
process that is killed at the N-th of the moments that matter; in ROOT/full files may not grow
beyond LIMIT bytes. Prints the exit statuses as JSON. A process of its own, because a fork of a
process with threads, such as that of the tests, can wait forever for their locks.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from retinanet.training.checkpoint import save_checkpoint

LIMIT = 20_000
KILLED, NO_SPACE = 9, 3


def save_until(path: Path, moment: int) -> None:
    passed = 0

    def dying(original: Callable) -> Callable:
        def call(*arguments: object) -> object:
            nonlocal passed
            if passed == moment:
                os._exit(KILLED)
            passed += 1
            return original(*arguments)

        return call

    torch.save, os.fsync, os.link = dying(torch.save), dying(os.fsync), dying(os.link)
    Path.replace = dying(Path.replace)
    save_checkpoint(path, {"step": 3, "weight": torch.full((64,), 3.0)}, keep_previous=True)


def save_too_much(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    save_checkpoint(path, {"weight": torch.zeros(100_000)}, keep_previous=True)


def in_child(action: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            action()
        except OSError:
            os._exit(NO_SPACE)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    torch.set_num_threads(1)
    statuses = {}
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        path, name = folder / "last.pt", folder.name
        save = partial(save_too_much, path)
        statuses[name] = in_child(save if name == "full" else partial(save_until, path, int(name)))
    sys.stdout.write(json.dumps(statuses))


if __name__ == "__main__":
    main()
