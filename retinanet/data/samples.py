"""One image with its boxes, read and transformed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retinanet.checks import check
from retinanet.data.coco import CocoData
from retinanet.data.images import BadImage, read_header, read_image
from retinanet.data.transforms import Augment, Geometry


class Sample(NamedTuple):
    """One image of a batch, before padding."""

    image: Tensor
    boxes: Tensor
    labels: Tensor
    crowds: Tensor
    index: int


class Samples:
    """Makes the samples of a data set.

    Args:
        data: where images and boxes come from.
        augment: what happens to them.
        seed: of the run.
        on_bad_image: ``stop``, or ``skip`` to use another image for an unreadable one.
    """

    def __init__(self, data: CocoData, augment: Augment, seed: int, on_bad_image: str) -> None:
        check("data.on_bad_image", on_bad_image)
        self.data = data
        self.augment = augment
        self.seed = seed
        self.skip = on_bad_image == "skip"

    def read(self, index: int, epoch: int, padded: tuple[int, int], replaced: list[str]) -> Sample:
        """One image, or what stands in for it.

        Args:
            index: of the image in the data set.
            epoch: pass over the data.
            padded: (H, W) of the batch; what stands in for the image must fit.
            replaced: gets the cause of every unreadable image met.

        Raises:
            BadImage: the image is unreadable and must not, or cannot, be replaced.
            FileNotFoundError: likewise, there is no such file.
            ValueError: the image has another size than the annotations say.
        """
        try:
            return self._read(index, self._geometry(index, epoch), epoch)
        except (BadImage, FileNotFoundError) as error:
            if not self.skip:
                raise type(error)(self._explain(index, error)) from error
            replaced.append(str(error))
        return self._substitute(index, epoch, padded, replaced)

    def _substitute(
        self, index: int, epoch: int, padded: tuple[int, int], replaced: list[str]
    ) -> Sample:
        """What stands in for an unreadable image.

        In evaluation a black image, so that its objects count as missed. In training the next
        readable image of the file that fits into the batch, with objects if the unreadable one
        has some: the choice depends on the files alone.
        """
        if not self.augment.train:
            geometry = self._geometry(index, epoch)
            black = torch.zeros(3, *geometry.valid, dtype=torch.uint8)
            none = torch.zeros(0, 4)
            return Sample(black, none, torch.zeros(0, dtype=torch.int64), none, index)
        N = len(self.data)
        has_boxes = len(self.data.boxes(index)[0]) > 0
        for other in ((index + step) % N for step in range(1, N)):
            geometry = self._geometry(other, epoch)
            fits = geometry.valid[0] <= padded[0] and geometry.valid[1] <= padded[1]
            if not fits or (has_boxes and not len(self.data.boxes(other)[0])):
                continue
            try:
                return self._read(other, geometry, epoch)
            except (BadImage, FileNotFoundError) as error:
                replaced.append(str(error))
        raise BadImage(f"{replaced[-1]} No other image can take its place.")

    def _geometry(self, index: int, epoch: int) -> Geometry:
        height, width = self.data.sizes[index].tolist()
        image_id = int(self.data.image_ids[index])
        return self.augment.plan(height, width, self.seed, epoch, image_id)

    def _read(self, index: int, geometry: Geometry, epoch: int) -> Sample:
        """One image from its file, transformed."""
        image = read_image(self.data.image_path(index))
        height, width = self.data.sizes[index].tolist()
        if tuple(image.shape[1:]) != (height, width):
            problem = size_problem(self.data, index, tuple(image.shape[1:]))
            raise ValueError(f"{self.data.path}: {self._where(index)}: {problem.message}")
        boxes, labels = self.data.boxes(index)
        crowds = self.data.crowds(index)
        image_id = int(self.data.image_ids[index])
        parts = self.augment(image, boxes, labels, crowds, geometry, self.seed, epoch, image_id)
        return Sample(*parts, index)

    def _where(self, index: int) -> str:
        return f"images[{index}] (id {self.data.image_ids[index]})"

    def _explain(self, index: int, error: Exception) -> str:
        return (
            f"{str(error).rstrip('.')}, listed in {self.data.path} as {self._where(index)}. "
            f"Replace the file, or set data.on_bad_image=skip to "
            f"{'use another image in its place' if self.augment.train else 'miss its objects'}."
        )


class SizeProblem(NamedTuple):
    """Why an image has another size than its record says."""

    kind: str
    found: str
    remedy: str

    @property
    def message(self) -> str:
        """Both sizes, and what to do."""
        return f"{self.found}. {self.remedy}"


def size_problem(data: CocoData, index: int, size: tuple[int, int]) -> SizeProblem:
    """What is wrong with the size of an image.

    Args:
        data: where the image is listed.
        index: of the image.
        size: height and width that :func:`read_image` gives; not those of the record.
    """
    height, width = data.sizes[index].tolist()
    H, W = size
    path = data.image_path(index)
    found = f"width x height is {width} x {height}, but {path} has {W} x {H} pixels"
    if (width, height) != (H, W):
        return SizeProblem(
            "images: width and height are not those of the file",
            found,
            "The boxes belong to another version of the image: correct width and height, or "
            "restore the file.",
        )
    if read_header(path).orientation >= 5:
        return SizeProblem(
            "images: width and height are those before the file's EXIF orientation",
            found,
            "Its EXIF orientation turns it: annotate the image as it is displayed, or remove the "
            "tag from the file.",
        )
    return SizeProblem(
        "images: width and height are swapped",
        found,
        "They are swapped: exchange them, and make sure that the boxes are [x, y, width, height].",
    )
