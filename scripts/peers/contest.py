"""One training of a comparison, in turns that end with an evaluation and can be interrupted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from retinanet.evaluation.coco import Evaluation
from retinanet.evaluation.detect import DetectionArrays
from retinanet.training.checkpoint import load_checkpoint, save_checkpoint
from scripts.peers.contestants import Contestant


@dataclass(frozen=True, slots=True)
class Length:
    """How long every training is."""

    unit: str  # "steps", or "seconds" of training: reading images counts, evaluation does not
    amount: float
    turns: int  # evaluations, at equal distances; the last one at the end

    def end_of(self, turn: int) -> float:
        """Steps or seconds at which a turn, counted from 0, ends."""
        end = self.amount * (turn + 1) / self.turns
        return round(end) if self.unit == "steps" else end


@dataclass(slots=True)
class Progress:
    """How far a training is."""

    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)  # one for each evaluation


class Training:
    """One peer with one seed, kept in a file between its turns."""

    def __init__(
        self,
        peer: str,
        seed: int,
        *,
        path: Path,
        length: Length,
        batch_size: int,
        make: Callable[[Progress], Contestant],
        score: Callable[[DetectionArrays], Evaluation],
    ) -> None:
        """Read how far it is.

        Args:
            peer: its name.
            seed: of weights and batches.
            path: of the file with its state.
            length: of the training.
            batch_size: images of one step.
            make: the contestant; its learning rate may follow the progress.
            score: the evaluator.

        Raises:
            ValueError: the file is damaged.
        """
        self.peer = peer
        self.seed = seed
        self.path = path
        self.length = length
        self.batch_size = batch_size
        self.make = make
        self.score = score
        self.progress = Progress()
        if path.exists():
            self._read()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What its evaluations said."""
        return self.progress.rows

    def turn(self, *, deadline: float, save_every: float) -> bool:
        """Train up to the next evaluation, and evaluate.

        Args:
            deadline: ``time.monotonic()`` at which to save and stop.
            save_every: seconds between savings.

        Returns:
            False when the deadline came first.
        """
        contestant = self.make(self.progress)
        if self.path.exists():
            contestant.load_state_dict(self._read())
        end = self.length.end_of(len(self.rows))
        if not self._train(contestant, end, deadline, save_every):
            return False
        evaluation = self.score(contestant.detect())
        self.rows.append(
            {
                "peer": self.peer,
                "seed": self.seed,
                "step": contestant.step,
                "images": contestant.step * self.batch_size,
                "seconds": round(self.progress.seconds, 1),
                "seconds_per_step": round(self.progress.seconds / max(contestant.step, 1), 4),
                "load": round(os.getloadavg()[0], 2),
                **evaluation.metrics,
            }
        )
        self._save(contestant)
        return True

    def _train(self, contestant: Contestant, end: int, deadline: float, save_every: float) -> bool:
        """Steps until ``end``; false when the deadline came first, but not before one step."""
        progress, saved = self.progress, time.monotonic()
        batches = None
        name, unit = f"{self.peer} seed {self.seed}", f" {self.length.unit}"
        shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f}{unit}, {remaining}{postfix}"
        with tqdm(total=self.length.amount, desc=name, unit=unit, bar_format=shape) as bar:
            bar.update(self._done(contestant))
            while self._done(contestant) < end:
                started = time.perf_counter()
                # Starting the loader's processes is part of the first step.
                batches = iter(contestant.batches()) if batches is None else batches
                contestant.one_step(next(batches))
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                progress.seconds += time.perf_counter() - started
                bar.set_postfix_str(
                    f"{progress.seconds / contestant.step:.2f} s/step", refresh=False
                )
                bar.update(min(self._done(contestant), bar.total) - bar.n)
                now = time.monotonic()
                if now > deadline or now - saved > save_every:
                    self._save(contestant)
                    saved = time.monotonic()
                if now > deadline:
                    return False
        return True

    def _done(self, contestant: Contestant) -> float:
        return contestant.step if self.length.unit == "steps" else self.progress.seconds

    def _save(self, contestant: Contestant) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        progress = {"seconds": self.progress.seconds, "rows": self.rows}
        save_checkpoint(self.path, {"progress": progress, "contestant": contestant.state_dict()})

    def _read(self) -> dict[str, Any]:
        """The contestant's state; the progress is taken over."""
        state = load_checkpoint(self.path)
        self.progress.seconds = state["progress"]["seconds"]
        self.progress.rows = state["progress"]["rows"]
        return state["contestant"]
