"""Workers that fail: one line, in seconds, and only where an item is awaited."""

import errno
import gc
import multiprocessing
import os
import signal
import threading
import time
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from retinanet.data import workers
from retinanet.data.loader import BatchPlan
from retinanet.data.workers import (
    LoaderError,
    check_shared_memory,
    receive,
    share,
    shared_bytes,
    start_worker,
)

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked on Linux and macOS"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    # Where a connection breaks, torch 2.10 opens files to count them, and leaves them so; what a
    # killed worker was handing over is closed by nobody.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
# Seconds in which a failure must be reported, on a busy machine; torch looks every five.
SECONDS = 20


@pytest.fixture(autouse=True)
def _nothing_left_to_later_tests():
    yield
    gc.collect()


class Item(NamedTuple):
    index: int
    values: Tensor


class Items(Dataset):
    """Twelve items; ``act`` is called in the worker that makes the sixth."""

    def __init__(self, act=lambda: None):
        self.act = act

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index == 5:
            self.act()
        return Item(index, torch.full((3,), index))


def loader(act=lambda: None, init=start_worker, **options):
    return DataLoader(
        Items(act), batch_size=None, num_workers=2, collate_fn=share, worker_init_fn=init, **options
    )


def failure(made):
    """The error of a loader, which comes soon, is one line, and leaves no worker behind."""
    before = multiprocessing.active_children()
    start = time.monotonic()
    with pytest.raises(LoaderError) as caught:
        list(receive(made))
    assert time.monotonic() - start < SECONDS
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(", or set data.workers=0.")
    caught.value.__cause__ = None
    del caught
    gc.collect()  # of what torch left open, within this test
    left = [child for child in multiprocessing.active_children() if child not in before]
    for child in left:
        child.join(SECONDS)
    assert not any(child.is_alive() for child in left)
    return message


def end_by(number):
    os.kill(os.getpid(), number)


def test_items_arrive_in_order_and_shared():
    items = list(receive(loader()))
    assert [item.index for item in items] == list(range(12))
    assert all(item.values.is_shared() and item.values.eq(item.index).all() for item in items)
    alone = list(receive(DataLoader(Items(), batch_size=None, collate_fn=share)))
    assert not any(item.values.is_shared() for item in alone)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda: end_by(signal.SIGKILL), "killed by SIGKILL, probably because memory ran out"),
        (lambda: end_by(signal.SIGBUS), "/dev/shm is full"),  # written to when it was full
        (lambda: os._exit(7), "ended with exit status 7"),
    ],
    ids=["killed", "full", "exit"],
)
def test_a_worker_that_ends_is_reported(end, said):
    assert said in failure(loader(end))


def test_a_worker_that_ends_while_it_starts_is_reported():
    assert "ended with exit status 8" in failure(loader(init=lambda _: os._exit(8)))


def test_a_worker_that_is_killed_while_a_thread_waits_is_reported():
    errors = []

    def wait():
        try:
            list(receive(loader(lambda: end_by(signal.SIGKILL))))
        except LoaderError as error:
            errors.append(str(error))

    # Torch's handler of dead workers is of the main thread: there only its looks are left.
    thread = threading.Thread(target=wait)
    thread.start()
    while thread.is_alive():  # the handler may raise here if it is not kept to the waiting
        time.sleep(0.01)
    assert "killed by SIGKILL" in errors[0]


def test_a_death_is_raised_only_where_an_item_is_awaited():
    before = multiprocessing.active_children()
    items = receive(loader())
    assert next(items).index == 0
    victim = next(child for child in multiprocessing.active_children() if child not in before)
    os.kill(victim.pid, signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while victim.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)  # a step, which is not interrupted
    with pytest.raises(LoaderError, match="killed by SIGKILL"):
        list(items)


def test_a_death_that_another_loader_hears_of_is_reported_there():
    # As when a worker of the training is killed while an evaluation waits for its own.
    before = multiprocessing.active_children()
    training = receive(loader())
    next(training)
    killed = next(child for child in multiprocessing.active_children() if child not in before)
    evaluation = receive(loader(lambda: time.sleep(3)))
    next(evaluation)
    os.kill(killed.pid, signal.SIGKILL)
    with pytest.raises(LoaderError, match="killed by SIGKILL"):
        list(evaluation)
    training.close()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("unable to allocate shared memory(shm): No space left on device (28)", "/dev/shm is full"),
        ("unable to open shared memory object: Too many open files (24)", "`ulimit -n 65536`"),
        ("something else", "cannot hand over 0 KiB in shared memory: something else"),
    ],
)
def test_a_batch_that_cannot_be_handed_over_is_reported(monkeypatch, said, expected):
    def fail(_):
        raise RuntimeError(said)

    monkeypatch.setattr(Tensor, "share_memory_", fail)
    message = failure(loader())
    assert expected in message
    if "/dev/shm" in message:
        assert "docker run --shm-size=8g" in message
        assert "--ipc=host" in message


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_a_second_worker_that_cannot_start_is_reported_and_the_first_ended(monkeypatch, number):
    fork, calls = os.fork, []

    def once():
        calls.append(1)
        if len(calls) == 2:
            raise OSError(number, os.strerror(number))
        return fork()

    monkeypatch.setattr(os, "fork", once)
    message = failure(loader())
    assert f"cannot start 2 data loader workers: [Errno {number}]" in message
    assert os.strerror(number) in message


def test_no_room_for_the_locks_of_the_workers_names_shared_memory(monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", fail)
    assert "/dev/shm is full: 2 data loader workers cannot start" in failure(loader())


@pytest.mark.filterwarnings("ignore:Got pickle error:UserWarning")
def test_a_data_set_that_does_not_pickle_is_reported():
    made = loader(lambda: None, multiprocessing_context="spawn")
    assert "cannot start 2 data loader workers: Can't pickle" in failure(made)


def test_an_error_of_ours_in_a_worker_stays_what_it_is():
    def act():
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake") as caught:
        list(receive(loader(act)))
    assert not isinstance(caught.value, LoaderError)


# Foreseen


def test_too_little_shared_memory_is_refused_with_both_sizes(monkeypatch):
    monkeypatch.setattr(workers, "free_shared_memory", lambda: 64 * 2**20)
    check_shared_memory(64 * 2**20)
    with pytest.raises(LoaderError, match="64 MiB free.*need 65 MiB") as caught:
        check_shared_memory(65 * 2**20)
    for word in ("/dev/shm", "docker run --shm-size", "--ipc=host", "data.workers=0"):
        assert word in str(caught.value)


def test_where_its_size_is_unknown_shared_memory_is_not_checked(monkeypatch):
    monkeypatch.setattr(workers, "free_shared_memory", lambda: None)
    check_shared_memory(2**60)


def test_workers_hold_two_batches_each_and_the_main_process_two_steps(monkeypatch):
    monkeypatch.setattr("retinanet.data.workers.num_cores", lambda: 3)
    sizes = [(2, 32, 64), (2, 64, 96), (1, 96, 96)]
    plans = [BatchPlan(0, tuple(range(n)), (), (H, W)) for n, H, W in sizes]
    largest = 2 * 3 * 64 * 96

    def held(workers, rule="antialias", **how):
        return shared_bytes(plans, rule, workers, **how)

    assert held(0) == 0
    assert held(2) == (2 * 2 + 2) * largest
    assert held(2, steps_held=4) == (2 * 2 + 8) * largest
    assert held(99) == held(3)
    assert held(2, limit=3) == 3 * largest
    assert held(2, "torchvision") == 4 * (2 * 2 + 2) * largest  # float32
