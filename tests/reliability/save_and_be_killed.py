"""Saves checkpoints in processes that are killed at random moments; a program, not a test.

    python save_and_be_killed.py FOLDER KILLS

Prints as JSON how many kills there were, after how many of them the latest checkpoint could be
read, how often it was older than one that had been saved, and how many were saved in all.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from retinanet.training.checkpoint import load_latest, save_checkpoint

# Seconds until a kill, at most: a save takes some milliseconds.
LONGEST = 0.05


def save_forever(folder: Path, step: int, pipe: int) -> None:
    weights = torch.arange(100_000.0)
    while True:
        step += 1
        state = {"step": step, "model": {"weight": weights + step}}
        save_checkpoint(folder / "last.pt", state, keep_previous=True)
        os.write(pipe, step.to_bytes(8, "big"))


def killed_once(folder: Path, step: int, generator: random.Random) -> int:
    """Steps whose save a process had finished when it was killed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        save_forever(folder, step, write)
    os.close(write)
    time.sleep(generator.uniform(0, LONGEST))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = bytearray()
    while part := os.read(read, 1 << 16):
        said += part
    os.close(read)
    return int.from_bytes(said[-8:], "big") if said else step


def main() -> None:
    torch.set_num_threads(1)
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    generator = random.Random(0)
    readable = lost = step = 0
    save_checkpoint(folder / "last.pt", {"step": 0, "model": {"weight": torch.zeros(1)}})
    for _ in range(kills):
        saved = killed_once(folder, step, generator)
        found, problems = load_latest(folder)
        step = found["step"]
        weight = found["model"]["weight"]
        readable += not problems and (step == 0 or weight[7].item() == 7 + step)
        lost += step < saved
    found = {"kills": kills, "readable": readable, "lost": lost, "saved": step}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
