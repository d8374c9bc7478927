"""From photos to files of predictions, with a detector and nothing else."""

from __future__ import annotations

import io
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from retinanet.atomic import write_whole
from retinanet.data.workers import num_cores
from retinanet.tools.image_files import Photos
from retinanet.tools.predict.detector import Detector, ImageDetections
from retinanet.tools.predict.files import (
    RESULTS,
    Classes,
    PhotoResult,
    begin,
    check_output,
    drawn_names,
    record,
    write_results,
)

# Processes that read photos and threads that draw them, at most: a model rarely takes more.
MOST_READERS = 8
MOST_DRAWERS = 8
# Fewer photos than this are read before the processes have started.
FEW_PHOTOS = 3
# Of the drawn photos. Colors are kept at full resolution: lines are thin, letters small.
JPEG_QUALITY = 90
# JPEG allows no longer side; pixels. Source: libjpeg, JPEG_MAX_DIMENSION.
LONGEST_SIDE = 65_500


class Prediction:
    """One pass over photos; its files are complete whenever it ends.

    Attributes:
        results: of the photos looked at so far.
        failed: name of a photo -> why it could not be read.
        seconds: that detecting took so far.
    """

    def __init__(self, detector: Detector, photos: Photos, output: Path, *, draw: bool) -> None:
        """Nothing is read or written yet.

        Args:
            detector: from :func:`retinanet.tools.predict.detector.load`.
            photos: to look at.
            output: folder of the files.
            draw: photos with their boxes too.

        Raises:
            ValueError: the folder holds other files than predictions, or a photo.
        """
        check_output(output, photos.paths)
        self.detector = detector
        self.photos = photos
        self.names = photos.names
        self.output = output
        self.drawn = drawn_names(self.names) if draw else []
        self.results: list[PhotoResult] = []
        self.failed: dict[str, str] = {}
        self.seconds = 0.0

    def run(
        self,
        *,
        score: float | str | None,
        batch_size: int,
        about: dict[str, Any],
        after_each: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Detect on every photo, draw, write; what was done is written also when it is ended.

        Args:
            score: see :meth:`retinanet.tools.predict.detector.Detector.min_scores`.
            batch_size: photos that go through the model together.
            about: entries of the record.
            after_each: is told how many photos are done.

        Raises:
            OSError: a file cannot be written.
            FloatingPointError: the model's output is not a number.
            MemoryError: of the GPU.
            KeyboardInterrupt: as it came, after writing.
        """
        begin(self.output, about | {"photos": str(self.photos.root)}, self.drawn)
        start, finished = time.perf_counter(), False
        try:
            with Drawers(self.detector) as drawers:
                self._detect(score, batch_size, drawers, after_each)
                drawers.wait()
            finished = True
        finally:
            self.seconds = time.perf_counter() - start
            self._write(about, finished)

    def _detect(
        self,
        score: float | str | None,
        batch_size: int,
        drawers: Drawers,
        after_each: Callable[[int], None],
    ) -> None:
        paths = self.photos.paths
        workers = 0 if len(paths) < FEW_PHOTOS else min(MOST_READERS, num_cores())
        if not self.detector.can_share(workers, batch_size):
            workers = 0
        outcomes = self.detector.outcomes(
            paths, score=score, batch_size=batch_size, workers=workers
        )
        for number, (index, found) in enumerate(outcomes, start=1):
            if isinstance(found, ImageDetections):
                self.results.append(self._result(index, found))
                if self.drawn:
                    drawers.add(self.output / self.drawn[index], paths[index], found)
            else:
                self.failed[self.names[index]] = " ".join(str(found).split())
            after_each(number)

    def _result(self, index: int, found: ImageDetections) -> PhotoResult:
        return PhotoResult(
            image_id=index + 1,
            name=self.names[index],
            size=found.size,
            boxes=found.boxes.double().numpy(),
            scores=found.scores.double().numpy(),
            labels=found.labels.numpy(),
        )

    def _write(self, about: dict[str, Any], finished: bool) -> None:
        """The lists of what was found, and at last the record."""
        detector = self.detector
        write_results(self.output, self.results, Classes(detector.names, detector.category_ids))
        done = {
            "finished": finished,
            "num_photos": len(self.names),
            "num_done": len(self.results),
            "num_detections": self.num_detections,
            "failed": self.failed,
        }
        drawn = [name for name in self.drawn if (self.output / name).exists()]
        record(self.output, about | {"photos": str(self.photos.root)} | done, [*RESULTS, *drawn])

    @property
    def num_detections(self) -> int:
        """In all photos so far."""
        return sum(len(result.scores) for result in self.results)


class Drawers:
    """Threads that draw photos while others are being looked at; a context manager.

    Args:
        detector: whose classes are drawn.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._num_threads = min(MOST_DRAWERS, num_cores())
        self._pool = ThreadPoolExecutor(self._num_threads)
        self._waiting: deque[Future[None]] = deque()
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> Drawers:
        # Reading an image silences warnings and brings them back, which threads do in each other's
        # way: so they stay silent until all are done.
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        return self

    def __exit__(self, *about: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._warnings.__exit__(*about)

    def add(self, target: Path, photo: Path, found: ImageDetections) -> None:
        """Draw a photo soon; wait when many are waiting, so that they fit into memory.

        Raises:
            OSError: an earlier one could not be written.
        """
        self._waiting.append(self._pool.submit(self._draw, target, photo, found))
        self.wait(2 * self._num_threads)

    def wait(self, most: int = 0) -> None:
        """Until at most so many are left to draw."""
        while len(self._waiting) > most:
            self._waiting.popleft().result()

    def _draw(self, target: Path, photo: Path, found: ImageDetections) -> None:
        picture = self._detector.draw(photo, found)
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        memory = io.BytesIO()
        picture.save(memory, format="jpeg", quality=JPEG_QUALITY, subsampling=0)
        write_whole(target, memory.getvalue())
