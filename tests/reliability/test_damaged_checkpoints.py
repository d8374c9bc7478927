"""Damaged checkpoints are refused in one line, or hold exactly what was saved."""

import dataclasses
import functools
import logging
import random
import re

import torch
from torch import nn

from retinanet.cli.main import composer
from retinanet.training.checkpoint import load_checkpoint, save_checkpoint
from retinanet.training.run_directory import RunDirectory
from retinanet.training.start import find_checkpoint

# Where headers and directory of a zip file begin.
SIGNATURES = (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x07")


@functools.cache
def settings() -> dict:
    with composer("train") as reader:
        return dataclasses.asdict(reader.command(["loss.alpha={a: 0.5, b: 0.25}"]).settings)


def state_of(step: int) -> dict:
    """A training checkpoint with all its parts; the network is small, so that headers weigh."""
    torch.manual_seed(step)
    network = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(6)))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    network(torch.randn(1, 4, 16, 16)).sum().backward()
    optimizer.step()
    return {
        "step": step,
        "model": network.state_dict(),
        "ema": {name: value * 0.5 for name, value in network.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "scaler": {},
        "loss": {"average": torch.tensor(12.5, dtype=torch.float64)},
        "settings": settings(),
        "classes": {"names": ["a", "b"], "ids": [1, 7]},
        "best": {"AP": 0.125, "step": step - 1},
        "train_data": "0123456789abcdef" * 4,
        "evaluated_step": step,
        "fruitless": 0,
    }


def identical(first, second) -> bool:
    """Same types, same keys in the same order, same bits."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        same_kind = first.dtype == second.dtype and first.shape == second.shape
        return same_kind and first.numpy().tobytes() == second.numpy().tobytes()
    if isinstance(first, dict):
        return list(first) == list(second) and all(identical(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(identical, first, second))
    return repr(first) == repr(second)


def flip_bits(rng, content):
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return changed


def damage_a_header(rng, content):
    """Flip a bit, or set a byte, of what describes an entry of the zip file."""
    places = [match.start() for match in re.finditer(b"|".join(SIGNATURES), content)]
    changed = bytearray(content)
    place = min(rng.choice(places) + rng.randrange(46), len(content) - 1)
    changed[place] = rng.choice([changed[place] ^ 1 << rng.randrange(8), 0, 255])
    return changed


def zero_a_block(rng, content):
    start, length = rng.randrange(len(content)), rng.choice([1, 64, 512, 4096])
    block = content[start : start + length]
    return content[:start] + bytes(len(block)) + content[start + length :]


def swap_two_blocks(rng, content):
    length = rng.choice([4, 64, 512, 4096])
    first, second = sorted(rng.randrange(len(content) - length) for _ in range(2))
    second = max(second, first + length)
    a, b = content[first : first + length], content[second : second + length]
    return content[:first] + b + content[first + length : second] + a + content[second + length :]


def insert_or_remove_bytes(rng, content):
    place, length = rng.randrange(len(content)), rng.choice([1, 2, 64, 1000])
    if rng.random() < 0.5:
        return content[:place] + rng.randbytes(length) + content[place:]
    return content[:place] + content[place + length :]


def damage_an_end(rng, content):
    tail = rng.choice([rng.randbytes(rng.choice([1, 22, 1000])), bytes(100), content[-200:]])
    head = rng.choice([b"", b"\0", b"PK", b"\x80\x02", rng.randbytes(4), rng.randbytes(100)])
    cut = rng.choice([rng.randrange(len(content)), len(content) - rng.randrange(1, 40)])
    start = rng.choice([0, 1, 4, len(head)])
    return rng.choice(
        [content[:cut], content + tail, head + content[start:], head + content[start:]]
    )


# Each takes a generator of random numbers and the bytes of a file.
DAMAGES = [flip_bits, damage_a_header, zero_a_block, swap_two_blocks]
DAMAGES += [insert_or_remove_bytes, damage_an_end, damage_an_end]


def test_a_damaged_checkpoint_is_refused_in_one_line_or_loads_as_it_was(tmp_path, times, tally):
    path, saved = tmp_path / "last.pt", {"format": 1, **state_of(7)}
    save_checkpoint(path, state_of(7))
    content = path.read_bytes()
    assert identical(load_checkpoint(path), saved)
    rng, refused, harmless = random.Random(0), 0, 0
    for number in range(times(300, 1000)):
        damage = DAMAGES[number % len(DAMAGES)]
        path.write_bytes(damage(rng, content))
        try:
            loaded = load_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
            refused += 1
        else:
            assert identical(loaded, saved), (number, damage.__name__)
            harmless += 1
    assert refused > 0.7 * number
    tally(
        f"damaged checkpoints: {number + 1} files, {refused} refused in one line, {harmless} "
        f"load as they were, 0 silently different, 0 other errors"
    )


def test_a_run_goes_on_from_the_checkpoint_before_with_one_warning(tmp_path, caplog, tally):
    rng, folder = random.Random(1), tmp_path / "checkpoints"
    folder.mkdir()
    for step in (1, 2):
        save_checkpoint(folder / "last.pt", state_of(step), keep_previous=True)
    content = (folder / "last.pt").read_bytes()
    directory = RunDirectory(tmp_path)
    directory.check = lambda *_, **__: False
    replaced = 0
    for number in range(40):
        (folder / "last.pt").write_bytes(DAMAGES[number % len(DAMAGES)](rng, content))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "retinanet"):
            found, fell_back = find_checkpoint(directory, {}, overwrite=False)
        assert fell_back == (found["step"] == 1)
        if fell_back:
            (record,) = caplog.records
            assert "last.pt is damaged" in record.getMessage()
            assert "\n" not in record.getMessage()
            replaced += 1
        assert identical(found, {"format": 1, **state_of(found["step"])})
        assert bool(caplog.records) == (found["step"] == 1)
    assert replaced > 20
    tally(f"damaged last.pt: {number + 1} starts, {replaced} from previous.pt with one warning")
