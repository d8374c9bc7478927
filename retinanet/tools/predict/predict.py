"""Detect in many images, draw them, and write the files, with a detector and nothing else."""

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
from retinanet.tools.image_files import ImageFiles
from retinanet.tools.predict.detector import Detector, ImageDetections
from retinanet.tools.predict.files import (
    RESULTS,
    begin,
    check_output,
    drawn_names,
    record,
    write_results,
)

# Processes that read images and threads that draw them, at most: a model rarely takes more.
MAX_READERS = 8
MAX_DRAWERS = 8
# Fewer images than this are read before the processes have started.
FEW_IMAGES = 3
# Of the drawn images. Colors are kept at full resolution: lines are thin, letters small.
JPEG_QUALITY = 90
# JPEG allows no longer side; pixels. Source: libjpeg, JPEG_MAX_DIMENSION.
LONGEST_SIDE = 65_500


class Prediction:
    """One pass over images; its files are complete whenever it ends.

    Attributes:
        names: of the images, below the folder of all of them.
        detections: index of an image -> detections in it, of those looked at so far.
        failed: name of an image -> why it could not be read.
        seconds: that detecting took.
    """

    def __init__(self, detector: Detector, images: ImageFiles, output: Path, *, draw: bool) -> None:
        """Nothing is read or written yet.

        Args:
            detector: from :func:`retinanet.tools.predict.detector.load`.
            images: to look at.
            output: folder of the files.
            draw: images with their boxes too.

        Raises:
            ValueError: the folder holds other files than predictions, or an image.
        """
        check_output(output, images.paths)
        self.detector = detector
        self.images = images
        self.names = images.names
        self.output = output
        self.drawn = drawn_names(self.names) if draw else []
        self.detections: dict[int, ImageDetections] = {}
        self.failed: dict[str, str] = {}
        self.seconds = 0.0

    @property
    def num_detections(self) -> int:
        """In all images so far."""
        return sum(len(one.scores) for one in self.detections.values())

    def run(
        self,
        *,
        score: float | str | None,
        batch_size: int,
        about: dict[str, Any],
        after_each: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Detect on every image, draw, write; what was done is written also when it is ended.

        Args:
            score: see :meth:`retinanet.tools.predict.detector.Detector.min_scores`.
            batch_size: images that go through the model together.
            about: entries of the record.
            after_each: gets the number of images that are done.

        Raises:
            OSError: a file cannot be written.
            FloatingPointError: the model's output is not a number.
            MemoryError: of the GPU.
            KeyboardInterrupt: as it came, after writing.
        """
        about = about | {"photos": str(self.images.root)}
        begin(self.output, about, self.drawn)
        start, finished = time.perf_counter(), False
        try:
            self._detect(score, batch_size, after_each)
            finished = True
        finally:
            self.seconds = time.perf_counter() - start
            categories = zip(self.detector.category_ids, self.detector.names, strict=True)
            write_results(self.output, self.names, self.detections, dict(categories))
            done = {
                "finished": finished,
                "num_photos": len(self.names),
                "num_done": len(self.detections),
                "num_detections": self.num_detections,
                "failed": self.failed,
            }
            drawn = [name for name in self.drawn if (self.output / name).exists()]
            record(self.output, about | done, [*RESULTS, *drawn])

    def _detect(
        self, score: float | str | None, batch_size: int, after_each: Callable[[int], None]
    ) -> None:
        """Detect on every image, while threads draw those that are done."""
        paths = self.images.paths
        workers = 0 if len(paths) < FEW_IMAGES else min(MAX_READERS, num_cores())
        if not self.detector.can_share(workers, batch_size):
            workers = 0
        outcomes = self.detector.outcomes(
            paths, score=score, batch_size=batch_size, workers=workers
        )
        threads = min(MAX_DRAWERS, num_cores())
        pool = ThreadPoolExecutor(threads)
        drawing: deque[Future[None]] = deque()
        # Reading an image silences warnings and brings them back, which threads do in each other's
        # way: so they stay silent until all are done.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                for number, (index, outcome) in enumerate(outcomes, start=1):
                    if not isinstance(outcome, ImageDetections):
                        self.failed[self.names[index]] = " ".join(str(outcome).split())
                    else:
                        self.detections[index] = outcome
                        if self.drawn:
                            drawing.append(pool.submit(self._draw, index, outcome))
                    # So many at most wait to be drawn, as they lie in memory.
                    while len(drawing) > 2 * threads:
                        drawing.popleft().result()
                    after_each(number)
                for future in drawing:
                    future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _draw(self, index: int, detections: ImageDetections) -> None:
        drawn = self.detector.draw(self.images.paths[index], detections)
        drawn.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        memory = io.BytesIO()
        drawn.save(memory, format="jpeg", quality=JPEG_QUALITY, subsampling=0)
        write_whole(self.output / self.drawn[index], memory.getvalue())
