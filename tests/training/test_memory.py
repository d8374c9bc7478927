"""What fits is found by trying, leaves no trace, and what does not fit is explained."""

import json

import pytest
import torch

from retinanet.data.coco import read_coco
from retinanet.data.transforms import Augment
from retinanet.training.memory import divisors, explain_out_of_memory, fewest_parts, worst_batch


def limit_memory(trainer, images: int) -> list[int]:
    """Make the trainer run out of memory above so many images; sizes that it tried come here."""
    tried: list[int] = []
    plain = trainer.forward_losses

    def losses(batch, match, divisor):
        tried.append(len(batch.images))
        if len(batch.images) > images:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(batch, match, divisor)

    trainer.forward_losses = losses
    return tried


@pytest.mark.parametrize(("fits", "parts"), [(6, 1), (5, 2), (3, 2), (2, 3), (1, 6)])
def test_the_fewest_parts_that_fit_are_found(make_trainer, make_batch, fits, parts):
    trainer = make_trainer()
    tried = limit_memory(trainer, fits)
    assert fewest_parts(trainer, make_batch(1, *[2] * 6)) == parts
    # Of what fits two micro-batches are made: the second finds the gradients of the first.
    assert tried == [6 // n for n in (1, 2, 3, 6) if n < parts] + [6 // parts] * min(parts, 2)
    assert divisors(12) == [1, 2, 3, 4, 6, 12]


def test_trying_changes_nothing(make_trainer, make_batch):
    trainer, other = make_trainer(ema=0.9, name="adamw"), make_trainer(ema=0.9, name="adamw")
    for each in (trainer, other):
        each.model.train()
        each.one_step([make_batch(3, 2, 1)])
    limit_memory(trainer, 2)
    assert fewest_parts(trainer, make_batch(1, *[2] * 4)) == 2
    for each in (trainer, other):
        each.one_step([make_batch(4, 2, 1)])
    torch.testing.assert_close(trainer.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_one_image_that_does_not_fit_is_an_error(make_trainer, make_batch):
    trainer = make_trainer()
    limit_memory(trainer, 0)
    with pytest.raises(MemoryError, match="one image of 128 x 128 pixels with 2 boxes; lower"):
        fewest_parts(trainer, make_batch(1, 2, 2))


def test_the_worst_batch_is_as_high_and_wide_as_any_and_has_the_most_boxes(tmp_path):
    sizes = enumerate([(100, 200), (300, 100), (90, 90)], start=1)
    images = [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in sizes]
    boxes = [
        {"id": n, "image_id": 2, "category_id": 1, "bbox": [5, 5 * n, 20, 30]} for n in (1, 2, 3)
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = read_coco(tmp_path / "a.json", tmp_path)
    augment = Augment(min_size=64, max_size=256, min_sizes=[64, 128], train=True)
    batch = worst_batch(data, augment, 4)
    # 128 x 256, 256 x 85 and 128 x 128, in multiples of 32.
    assert batch.images.shape == (4, 3, 256, 256)
    assert batch.boxes.shape == (4, 3, 4)
    assert (batch.boxes[..., 2:] > batch.boxes[..., :2]).all()
    assert batch.labels.tolist() == [[0, 0, 0]] * 4


def test_the_message_names_the_batch_and_the_next_number_of_parts(make_trainer, make_batch):
    trainer = make_trainer()
    trainer.latest = make_batch(1, 3, 1)
    message = explain_out_of_memory(trainer, images=12, accumulate=6)
    assert "step 1: 2 images of 128 x 128 pixels with up to 3 boxes" in message
    assert "Set optim.accumulate=12 (now 6)" in message
    assert "Lower data.min_size" in explain_out_of_memory(trainer, images=12, accumulate=12)
