"""What ranks tell each other beside their collectives, in which one of them may hang."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

import torch.distributed as dist

# Keys of the store.
STOP, FAILED = "stop", "failed"
# Seconds between two looks at the store.
LOOK_EVERY = 1.0
# Seconds that a rank has to end by itself when another has failed. With gloo it does, with an
# error of the collective that it waits in; with NCCL it would wait for the timeout of the group.
GRACE = 5.0


class Watch(threading.Thread):
    """Looks at the store of a process group until the group ends.

    Args:
        store: of the group; a connection of its own, since the group's may be busy waiting.
        rank: of this process.
    """

    def __init__(self, store: dist.Store, rank: int) -> None:
        super().__init__(daemon=True)
        self.told_to_stop = False
        self._store = store
        self._rank = rank
        self._over = threading.Event()

    def run(self) -> None:
        """Look, until :meth:`end`; ends the process when another rank has failed."""
        while not self._over.wait(LOOK_EVERY):
            try:
                self.told_to_stop = self.told_to_stop or self._store.check([STOP])
                if self._store.check([FAILED]) and not self._over.wait(GRACE):
                    self._follow(self._store.get(FAILED).decode())
            except RuntimeError:  # the store is gone, and with it the group
                return

    def end(self) -> None:
        """Stop looking."""
        self._over.set()
        self.join(LOOK_EVERY)

    def announce_stop(self) -> None:
        """Let the other ranks know that this one was told to end."""
        if not self.told_to_stop:
            self.told_to_stop = True
            with contextlib.suppress(RuntimeError):  # torchrun may be gone; the others hear of that
                self._store.set(STOP, "")

    def announce_failure(self, error: BaseException) -> None:
        """Let the other ranks know that this one is about to end with an error."""
        with contextlib.suppress(RuntimeError):  # the store may be what failed
            self._store.set(FAILED, f"rank {self._rank} failed with {type(error).__name__}")

    def _follow(self, reason: str) -> None:
        sys.stderr.write(f"[rank {self._rank}] ends because {reason}; see its message\n")
        sys.stderr.flush()
        os._exit(1)  # the main thread may never come back
