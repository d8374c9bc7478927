"""Plans share every step out equally, and batches depend on nothing but their requests."""

import dataclasses
import json
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.data.coco import read_coco
from retinanet.data.loader import DIVISOR, NO_BOX, BatchLoader, eval_plan, plan_batch, train_plan
from retinanet.data.transforms import Augment, resize

# Neither matters here: fewer cores than workers, and threads of the parent at a fork.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

SIZES = [(40, 60), (60, 40), (50, 50)]


def write_set(root, count, *, boxes=lambda i: i % 3, files=True, sizes=SIZES):
    """``count`` noisy images, the i-th with ``boxes(i)`` boxes and a crowd on every fourth."""
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(count):
        height, width = sizes[i % len(sizes)]
        name = f"{i:03d}.{'jpg' if i % 2 else 'png'}"
        images.append({"id": 1000 - 3 * i, "file_name": name, "height": height, "width": width})
        if files:
            noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / name)
        for number in range(boxes(i) + (i % 4 == 0)):
            box = {"bbox": [5 + number, 6, 20, 25 - number], "area": 100}
            box |= {"id": len(annotations) + 1, "image_id": 1000 - 3 * i}
            box |= {"category_id": 1 + number, "iscrowd": int(number == boxes(i))}
            annotations.append(box)
    categories = [{"id": i, "name": f"class {i}"} for i in (1, 2, 3, 4)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "a.json").write_text(json.dumps(content))
    return read_coco(root / "a.json", root)


@pytest.fixture
def small(tmp_path):
    return write_set(tmp_path, 14)


def augment(**changes):
    settings = {"min_size": 64, "max_size": 100, "flip": 0.5, "train": True}
    return Augment(**(settings | changes))


JITTERED = augment(scale=(0.3, 3.0), min_sizes=(48, 150), color=0.3)
PLAIN = augment(train=False)


def plan(data, transform=JITTERED, **changes):
    settings = {"seed": 0, "epoch": 0, "batch_size": 4, "accumulate": 1, "keep_empty": True}
    return train_plan(data, transform, **(settings | {"rank": 0, "world_size": 1} | changes))


def requests_of(data, **changes):
    return [request for step in plan(data, **changes) for request in step]


def indices(steps):
    return [i for step in steps for request in step for i in request.indices]


def load(data, requests, transform=JITTERED, **options):
    loader = BatchLoader(data, transform, requests, **options)
    batches = list(loader)
    assert len(batches) == len(loader) == len(requests)
    return batches


def load_one(data, transform, *chosen, padded=(128, 128), **options):
    (batch,) = load(data, [plan_batch(data, transform, chosen, padded)], transform, **options)
    return batch


def all_equal(found, expected):
    return all(equal(a, b) for a, b in zip(found, expected, strict=True))


def spoil(data, *which):
    for index in which:
        data.image_path(index).write_bytes(b"not an image")


def equal(one, two):
    return one.replaced == two.replaced and all(
        torch.equal(a, b) for a, b in zip(one[:-1], two[:-1], strict=True)
    )


# Plans of training


def test_an_epoch_leaves_out_only_what_fills_no_step(small):
    steps = plan(small)
    assert [len(step) for step in steps] == [1, 1, 1]
    assert len(indices(steps)) == len(set(indices(steps))) == 12


def test_every_image_is_left_out_equally_often(tmp_path):
    # 2 of 14 in each epoch. Two portraits among landscapes: not they alone.
    data = write_set(tmp_path, 14, files=False, sizes=[(40, 60)] * 6 + [(60, 40)])
    epochs = 400
    left_out = Counter()
    for epoch in range(epochs):
        left_out.update(set(range(14)) - set(indices(plan(data, epoch=epoch))))
    assert sum(left_out.values()) == 2 * epochs
    # 57 expected; its standard deviation is 7.
    assert all(abs(left_out[i] - 2 * epochs / 14) < 28 for i in range(14))


def test_few_images_repeat_to_fill_one_step(tmp_path):
    data = write_set(tmp_path, 3, files=False)
    steps = plan(data, batch_size=8)
    assert len(steps) == 1
    assert sorted(Counter(indices(steps)).values()) == [2, 3, 3]


def test_epochs_and_seeds_shuffle_differently_and_repeat_exactly(small):
    orders = [indices(plan(small, seed=s, epoch=e)) for s, e in [(0, 0), (0, 1), (1, 0)]]
    assert len({tuple(order) for order in orders}) == 3
    assert plan(small, epoch=1) == plan(small, epoch=1)


@pytest.mark.parametrize("transform", [JITTERED, PLAIN], ids=["jittered", "plain"])
@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (4, 1), (2, 2), (1, 8)])
def test_ranks_and_micro_batches_share_out_the_same_steps(
    tmp_path, transform, world_size, accumulate
):
    data = write_set(tmp_path, 45, files=False)
    whole = plan(data, transform, batch_size=8)
    how = {"batch_size": 8, "world_size": world_size, "accumulate": accumulate}
    ranks = [plan(data, transform, rank=rank, **how) for rank in range(world_size)]
    for number, (request,) in enumerate(whole):
        parts = [part for rank in ranks for part in rank[number]]
        assert len(parts) == world_size * accumulate
        assert {len(part.indices) for part in parts} == {8 // (world_size * accumulate)}
        shared_out = [i for part in parts for i in part.indices]
        assert sorted(shared_out) == sorted(request.indices)
        assert {part.padded for part in parts} == {request.padded}


def test_at_most_one_step_mixes_landscape_and_portrait(tmp_path):
    data = write_set(tmp_path, 100, files=False)
    for epoch in range(5):
        portrait = data.sizes[:, 0] > data.sizes[:, 1]
        mixed = [len(set(portrait[list(r.indices)])) == 2 for r in requests_of(data, epoch=epoch)]
        assert len(mixed) == 25
        assert sum(mixed) <= 1


def test_steps_of_one_shape_are_not_bunched(tmp_path):
    data = write_set(tmp_path, 400, files=False)
    portrait = [data.sizes[step[0].indices[0], 0] == 60 for step in plan(data)]
    first = sum(portrait[:50]) / sum(portrait)
    assert 0.3 < first < 0.7


def test_the_padded_size_holds_every_sample_and_is_the_least_multiple(tmp_path):
    data = write_set(tmp_path, 60, files=False)
    for (request,) in plan(data):
        sizes = [
            JITTERED.plan(*data.sizes[i].tolist(), 0, 0, int(data.image_ids[i])).valid
            for i in request.indices
        ]
        for side, padded in zip(np.max(sizes, axis=0), request.padded, strict=True):
            assert padded % DIVISOR == 0
            assert padded - DIVISOR < side <= padded


def test_images_without_boxes_can_be_left_out(tmp_path):
    # Boxes in images 1 and 2 of every three; image 0 has a crowd at most.
    data = write_set(tmp_path, 30, files=False)
    assert set(np.array(indices(plan(data, keep_empty=False))) % 3) == {1, 2}
    assert len(indices(plan(data, keep_empty=False))) == 20


def test_nothing_to_train_on_is_refused(tmp_path):
    data = write_set(tmp_path, 5, boxes=lambda i: 0, files=False)
    with pytest.raises(ValueError, match=r"a\.json has no image with a box .*keep_empty"):
        plan(data, keep_empty=False)
    assert len(plan(data, keep_empty=True)) == 1


def test_a_batch_that_cannot_be_shared_out_is_refused(small):
    with pytest.raises(ValueError, match=r"batch_size=4 .* 3 rank.*multiple of 6"):
        plan(small, world_size=3, accumulate=2)


def test_the_work_of_a_plan_grows_no_faster_than_its_images(tmp_path):
    data = write_set(tmp_path, 3, files=False)

    def calls(many):
        large = dataclasses.replace(
            data, sizes=np.tile(data.sizes, (many // 3, 1)), image_ids=np.arange(many)
        )
        counted = Counter()
        sys.setprofile(lambda frame, event, what: counted.update([event]))
        try:
            steps = plan(large, batch_size=16)
        finally:
            sys.setprofile(None)
        assert len(steps) == many // 16
        return counted["call"] + counted["c_call"]

    # Counted, not timed: the machine may be busy.
    assert 7 * calls(1200) < calls(12_000) < 10.5 * calls(1200) < 1200 * 10.5 * 10


# Plans of evaluation


@pytest.mark.parametrize(("count", "world_size"), [(1, 1), (1, 7), (5, 2), (23, 4)])
def test_evaluation_visits_each_image_once_over_all_ranks(tmp_path, count, world_size):
    data = write_set(tmp_path, count, files=False)
    requests = eval_plan(data, PLAIN, batch_size=4)
    ranks = [requests[rank::world_size] for rank in range(world_size)]
    visited = [i for rank in ranks for request in rank for i in request.indices]
    assert sorted(visited) == list(range(count))
    assert max(len(request.indices) for request in requests) <= 4


def test_evaluation_batches_have_one_padded_size_largest_first(tmp_path):
    data = write_set(tmp_path, 30, files=False, sizes=[(64, 64), (64, 90), (64, 200), (90, 64)])
    wide = augment(train=False, max_size=200)
    requests = eval_plan(data, wide, batch_size=3)
    for request in requests:
        for i in request.indices:
            height, width = wide.plan(*data.sizes[i].tolist(), 0, 0, 0).valid
            assert request.padded == (-(-height // 32) * 32, -(-width // 32) * 32)
    areas = [H * W for H, W in (request.padded for request in requests)]
    assert areas == sorted(areas, reverse=True)


def test_only_the_first_images_are_evaluated_when_asked(small):
    for max_images, count in [(5, 5), (14, 14), (99, 14)]:
        requests = eval_plan(small, PLAIN, batch_size=4, max_images=max_images)
        assert sorted(i for r in requests for i in r.indices) == list(range(count))


# Batches


def test_a_batch_by_hand(small):
    # Images 4 and 2: portrait 60 x 40 with a box and a crowd, square with two boxes.
    batch = load_one(small, PLAIN, 4, 2)
    assert batch.images.shape == (2, 3, 128, 128)
    assert batch.images.dtype == torch.uint8
    assert batch.sizes.tolist() == [[96, 64], [64, 64]]
    assert batch.original_sizes.tolist() == [[60, 40], [50, 50]]
    assert batch.image_ids.tolist() == [988, 994]
    expected = torch.tensor([[[5.0, 6, 25, 31], [0, 0, 0, 0]], [[5, 6, 25, 31], [6, 6, 26, 30]]])
    torch.testing.assert_close(batch.boxes, expected * torch.tensor([1.6, 1.28]).view(2, 1, 1))
    assert batch.labels.tolist() == [[0, NO_BOX], [0, 1]]
    crowd = torch.tensor([6.0, 6, 26, 30]) * 1.6
    torch.testing.assert_close(batch.crowds, torch.stack([crowd, torch.zeros(4)])[:, None])
    assert batch.replaced == ()
    assert (batch.images[0, :, 96:] == 0).all()
    assert (batch.images[0, :, :, 64:] == 0).all()
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    picture = torch.from_numpy(np.array(Image.open(small.image_path(4)))).permute(2, 0, 1)
    assert torch.equal(batch.images[0, :, :96, :64], resize(picture, (96, 64)))


def test_a_batch_without_any_box_is_ordinary(tmp_path):
    data = write_set(tmp_path, 2, boxes=lambda i: 0)
    batch = load_one(data, JITTERED, 1)
    assert batch.boxes.shape == (1, 0, 4)
    assert batch.labels.shape == (1, 0)
    assert batch.crowds.shape == (1, 0, 4)


def test_a_batch_moves_as_one(small):
    batch = load_one(small, PLAIN, 4, 2)
    assert equal(batch.to("cpu", non_blocking=True), batch)
    assert {tensor.device.type for tensor in batch.to("meta")[:-1]} == {"meta"}


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(small, workers):
    spoil(small, 3)
    requests = requests_of(small) + requests_of(small, epoch=1)
    expected = load(small, requests, on_bad_image="skip")
    assert len(expected) == 6
    assert all_equal(load(small, requests, workers=workers, on_bad_image="skip"), expected)
    # A plan whose start is left out continues in mid-epoch.
    found = load(small, requests[1:], workers=workers, on_bad_image="skip")
    assert all_equal(found, expected[1:])


def test_the_number_of_ranks_changes_no_sample(small):
    def samples(world_size):
        found = {}
        for rank in range(world_size):
            for batch in load(small, requests_of(small, rank=rank, world_size=world_size)):
                for i, image_id in enumerate(batch.image_ids.tolist()):
                    real = batch.labels[i] != NO_BOX
                    found[image_id] = (batch.images[i], batch.boxes[i][real], batch.labels[i][real])
        return found

    one, two = samples(1), samples(2)
    assert one.keys() == two.keys()
    for image_id, parts in one.items():
        assert all(torch.equal(a, b) for a, b in zip(parts, two[image_id], strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_generator_alone(small, workers):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load(small, requests_of(small), workers=workers)
    assert torch.equal(torch.get_rng_state(), before)


# Bad images


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (spoil, ValueError, r"003\.jpg.*a\.json as images\[3\] \(id 991\).*on_bad_image=skip"),
        (
            lambda data, i: data.image_path(i).unlink(),
            FileNotFoundError,
            "no image .*003.jpg, listed",
        ),
    ],
    ids=["unreadable", "missing"],
)
def test_a_bad_image_stops_with_one_line(small, damage, error, words, workers):
    damage(small, 3)
    with pytest.raises(error, match=words) as caught:
        load_one(small, PLAIN, 3, workers=workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "orientation", "words"),
    [
        ((61, 40), 1, r"images\[3\].*is 60 x 40, but .*has 61 x 40 pixels.*correct"),
        ((60, 40), 6, r"is 60 x 40, but .*has 40 x 60 pixels\. Its EXIF"),
        ((40, 60), 1, r"is 60 x 40, but .*has 40 x 60 pixels\. They are swapped"),
    ],
)
def test_an_image_of_another_size_stops_even_when_skipping(small, size, orientation, words):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(small.image_path(3), exif=exif)
    with pytest.raises(ValueError, match=words):
        load_one(small, JITTERED, 3, on_bad_image="skip")


def test_a_bad_image_is_replaced_by_the_next_with_boxes_that_fits(small):
    # 4 is bad, 5 is wider than the batch, 6 has no box; 7 is a portrait with a box.
    spoil(small, 4)
    small.sizes[[5, 8]] = [[60, 100]]
    batch = load_one(small, augment(), 4, padded=(128, 72), on_bad_image="skip")
    assert batch.image_ids.tolist() == [1000 - 3 * 7]
    assert len(batch.replaced) == 1
    assert "004.png" in batch.replaced[0]


def test_a_bad_image_is_warned_of_once_and_counted(small, caplog):
    spoil(small, 3)
    requests = [plan_batch(small, augment(), (3,), (256, 256), epoch=epoch) for epoch in range(3)]
    loader = BatchLoader(small, augment(), requests, workers=2, on_bad_image="skip")
    with caplog.at_level(logging.WARNING):
        assert [len(batch.replaced) for batch in loader] == [1, 1, 1]
    assert len(caplog.records) == 1
    assert "003.jpg" in caplog.text
    assert "Another image takes its place" in caplog.text
    assert len(loader.bad) == 1


def test_in_evaluation_a_bad_image_is_black_and_keeps_its_place(small, caplog):
    spoil(small, 3)
    requests = eval_plan(small, PLAIN, batch_size=4)
    batches = load(small, requests, PLAIN, on_bad_image="skip")
    ids = [image_id for batch in batches for image_id in batch.image_ids.tolist()]
    assert sorted(ids) == sorted(small.image_ids.tolist())
    batch = load_one(small, PLAIN, 3, on_bad_image="skip")
    assert batch.images.max() == 0
    assert batch.sizes.tolist() == [[64, 96]]
    assert "objects are missed" in caplog.text


def test_too_many_bad_images_stop_the_run(small):
    spoil(small, 1, 2)
    with pytest.raises(ValueError, match=r"2 of 14 images are unreadable, more than 10%"):
        load(small, requests_of(small, batch_size=14), on_bad_image="skip")


def test_nothing_left_to_take_the_place_stops_the_run(tmp_path):
    data = write_set(tmp_path, 2)
    spoil(data, 0, 1)
    with pytest.raises(ValueError, match="No other image can take its place"):
        load_one(data, JITTERED, 0, padded=(256, 256), on_bad_image="skip")


def test_an_unknown_choice_for_bad_images_is_refused(small):
    with pytest.raises(ValueError, match=r"data\.on_bad_image must be one of stop, skip"):
        load(small, [], on_bad_image="ignore")


# Memory

GROWTH = """
import os, sys
from pathlib import Path
from retinanet.data.coco import read_coco
data = read_coco(Path(sys.argv[1]), Path(sys.argv[1]).parent)

def private():
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(row.split()[1]) for row in rows if row.startswith("Private_"))

child = os.fork()
if child == 0:
    data.boxes(0), data.crowds(0), data.file_name(0)
    before = private()
    for i in range(len(data)):
        data.boxes(i), data.crowds(i), data.file_name(i)
    print(private() - before, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells")
def test_a_worker_that_reads_everything_copies_nothing(tmp_path):
    # As lists of Python objects these 20,000 boxes would be copied, reference count by
    # reference count: some 10 MB.
    data = write_set(tmp_path, 6000, boxes=lambda i: 3, files=False)
    assert len(data.bbox) == 19_500
    command = [sys.executable, "-W", "ignore", "-c", GROWTH, str(data.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # kB


# Real data


@pytest.mark.parametrize("workers", [0, 2])
def test_real_epochs_load(real_data, workers):
    root = real_data("coco_slice")
    data = read_coco(root / "annotations/instances_train2017.json", root / "train2017")
    transform = augment(min_size=160, max_size=256, scale=(0.5, 1.5), color=0.2)
    requests = requests_of(data, transform=transform, batch_size=8)
    for batch in load(data, requests, transform, workers=workers):
        assert (batch.sizes <= torch.tensor(batch.images.shape[2:])).all()
        real = batch.labels != NO_BOX
        assert real.any()
        assert (batch.labels[real] < 80).all()
        limits = batch.sizes.flip(-1).repeat(1, 2)[:, None].expand_as(batch.boxes)
        assert ((batch.boxes >= 0) & (batch.boxes <= limits)).all()
        sides = batch.boxes[..., 2:] - batch.boxes[..., :2]
        assert (sides[real] >= 1).all()
        assert (sides[~real] == 0).all()
