"""Two processes over gloo do what one does; one process needs no group."""

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from small_runs import ROOT, command, rows, write_split
from torch import nn

from retinanet import distributed
from retinanet.data.loader import Batch
from retinanet.losses import AVERAGE_START, RetinaNetLoss
from retinanet.matching import NEGATIVE, Match, Matcher
from retinanet.model.retinanet import RetinaNet
from retinanet.training.optim import Schedule, build_optimizer
from retinanet.training.run_directory import RunDirectory
from retinanet.training.start import check_same_step
from retinanet.training.trainer import Trainer

# Objects of each image: the ranks differ, the second has an image without any, or no other.
OBJECTS = {"some": (3, 2, 0, 1), "one rank without": (3, 2, 0, 0)}
NORMALIZERS = ("batch", "image", "ema")


def make_batch(images: slice, case: str = "some") -> Batch:
    """Part of a batch of four images of 64 x 64."""
    generator = torch.Generator().manual_seed(3)
    B, G = len(OBJECTS[case]), max(OBJECTS[case])
    low = torch.rand(B, G, 2, generator=generator) * 20
    boxes = torch.cat([low, low + 20 + torch.rand(B, G, 2, generator=generator) * 20], dim=2)
    labels = torch.randint(0, 2, (B, G), generator=generator)
    real = torch.arange(G) < torch.tensor(OBJECTS[case])[:, None]
    whole = (
        torch.randint(0, 256, (B, 3, 64, 64), dtype=torch.uint8, generator=generator),
        torch.full((B, 2), 64),
        boxes * real[..., None],
        labels.masked_fill(~real, NEGATIVE),
        torch.zeros(B, 0, 4),
        torch.arange(70, 70 + B),
        torch.full((B, 2), 64),
    )
    return Batch(*(tensor[images] for tensor in whole))


def make_trainer(normalizer: str) -> Trainer:
    """In float64: what remains of rounding is far below any difference in what is computed."""
    torch.manual_seed(0)
    settings = {"weights": None, "norm": "group", "frozen_stages": 0, "fpn_channels": 8}
    model = RetinaNet("tiny", 2, head_depth=0, head_channels=8, **settings).double()
    decays = {"weight_decay": 1e-4, "norm_weight_decay": 0.0, "bias_weight_decay": 0.0}
    return Trainer(
        model,
        Matcher(),
        RetinaNetLoss(normalizer=normalizer),
        build_optimizer(model, name="sgd", lr=0.05, momentum=0.9, **decays),
        Schedule(lr=0.05, total_steps=9, decay="constant"),
        network=distributed.wrap(model, torch.device("cpu")),
        max_grad_norm=1.0,
    )


def four_steps(normalizer: str, parts: list[slice], case: str = "some") -> dict:
    """Weights and logged means after four steps on the given micro-batches."""
    trainer = make_trainer(normalizer)
    trainer.network.train()
    for _ in range(4):
        trainer.one_step([make_batch(part, case) for part in parts])
    means = trainer.totals.take()
    return {
        "weights": trainer.model.state_dict(),
        "means": [means.class_loss, means.box_loss, means.grad_norm, means.positives],
        "images": means.images,
        "average": trainer.loss.average_positives,
    }


def bad_step(infinite_loss_only: bool) -> dict:
    """What each rank knows after the second one saw a pixel, or a loss, that is not a number."""
    trainer = make_trainer("batch")
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.network.train()
    rank = distributed.rank()
    batch = make_batch(slice(2 * rank, 2 * rank + 2))
    images = batch.images.float()
    if rank == 1 and infinite_loss_only:
        plain = trainer.loss.forward
        trainer.loss.forward = lambda *given: {k: v + math.inf for k, v in plain(*given).items()}
    elif rank == 1:
        images[0, 0, 0, 0] = float("nan")
    trainer.one_step([batch._replace(images=images)])
    after = trainer.model.state_dict()
    (bad,) = trainer.totals.take().bad
    return {
        "blamed": bad.blamed,
        "images": bad.image_ids,
        "same": all(torch.equal(after[key], before[key]) for key in before),
    }


def divisors_of_few() -> list[float]:
    """What losses are divided by when one positive on rank 0, or none at all, is all there is."""
    divisors = []
    for first in (0, NEGATIVE):
        label = torch.full((1, 5), NEGATIVE)
        label[0, 0] = first if distributed.is_main() else NEGATIVE
        divisors += RetinaNetLoss().divisors([Match(label, torch.zeros(1, 5, 4))])[0].tolist()
    return divisors


def failing_main() -> str:
    def fail() -> None:
        raise ValueError("no such file on rank 0")

    with pytest.raises(ValueError) as refused:
        distributed.on_main(fail)
    return str(refused.value)


def other_steps() -> str:
    """What ranks that would begin at different steps are told."""
    directory = RunDirectory(Path("runs/try"))
    check_same_step(5, directory)
    with pytest.raises(ValueError) as refused:
        check_same_step(5 + distributed.rank(), directory)
    return str(refused.value)


def work(rank: int, port: int, folder: Path) -> None:
    """All that needs two processes, in one go: starting them takes longest."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.start("cpu")
    half = slice(2 * rank, 2 * rank + 2)
    quarters = [slice(2 * rank, 2 * rank + 1), slice(2 * rank + 1, 2 * rank + 2)]
    found = {
        "who": [distributed.rank(), distributed.local_rank(), distributed.world_size()],
        "main": distributed.is_main(),
        "sum": distributed.all_reduce_sum(torch.tensor(10.0 + rank)),
        "gathered": distributed.gather_objects({"rank": rank}),
        "on_main": distributed.on_main(lambda: f"made by {distributed.rank()}"),
        "failing": failing_main(),
        "halves": {name: four_steps(name, [half]) for name in NORMALIZERS},
        "quarters": {name: four_steps(name, quarters) for name in NORMALIZERS},
        "empty": {name: four_steps(name, [half], "one rank without") for name in NORMALIZERS},
        "bad": [bad_step(False), bad_step(True)],
        "any": [distributed.any_rank(False), distributed.any_rank(rank == 1)],
        "divisors": divisors_of_few(),
        "steps": other_steps(),
    }
    distributed.stop()
    found["after"] = [distributed.world_size(), distributed.is_main()]
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_every_process_knows_who_it_is(ranks):
    assert [found["who"] for found in ranks] == [[0, 0, 2], [1, 1, 2]]
    assert [found["main"] for found in ranks] == [True, False]
    assert [found["after"] for found in ranks] == [[1, True], [1, True]]


def test_sums_objects_flags_and_what_the_main_process_makes_reach_all(ranks):
    assert [found["sum"].item() for found in ranks] == [21, 21]
    assert [found["gathered"] for found in ranks] == [[{"rank": 0}, {"rank": 1}]] * 2
    assert [found["any"] for found in ranks] == [[False, True]] * 2
    assert [found["on_main"] for found in ranks] == ["made by 0"] * 2
    assert [found["failing"] for found in ranks] == ["no such file on rank 0"] * 2


def test_ranks_that_would_begin_at_different_steps_are_refused_on_every_rank(ranks):
    for found in ranks:
        assert "checkpoints of different steps ([5, 6])" in found["steps"]
        assert "runs/try/checkpoints; output_dir must be one folder" in found["steps"]


@pytest.mark.parametrize("parts", ["halves", "quarters", "empty"])
@pytest.mark.parametrize("normalizer", ["batch", "image"])
def test_four_steps_on_two_ranks_are_those_of_one(ranks, normalizer, parts):
    case = "one rank without" if parts == "empty" else "some"
    one = four_steps(normalizer, [slice(0, 4)], case)
    for found in ranks:
        two = found[parts][normalizer]
        assert two["images"] == one["images"] == 16
        torch.testing.assert_close(two["means"], one["means"], rtol=1e-12, atol=0)
        for key, value in one["weights"].items():
            torch.testing.assert_close(two["weights"][key], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("parts", ["halves", "quarters", "empty"])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_ranks_never_drift_apart(ranks, normalizer, parts):
    first, second = (found[parts][normalizer] for found in ranks)
    assert torch.equal(first["average"], second["average"])
    assert first["means"] == second["means"]
    for key, value in first["weights"].items():
        assert torch.equal(value, second["weights"][key]), key


def test_the_average_of_positives_is_that_of_the_ranks(ranks):
    found = ranks[0]["halves"]["ema"]
    positives = found["means"][3]  # of a step, over both ranks
    expected = AVERAGE_START
    for _ in range(4):
        expected = 0.9 * expected + 0.1 * positives / 2
    assert found["average"].item() == pytest.approx(expected, rel=1e-6)


def test_the_number_of_positives_is_clamped_once_over_all_ranks(ranks):
    # Gradients are averaged over ranks: half of 1 on each of two is 1. Clamped on each, it is 2.
    assert [found["divisors"] for found in ranks] == [[0.5, 0.5]] * 2


@pytest.mark.parametrize("case", [0, 1])
def test_a_bad_loss_on_one_rank_changes_no_weights_on_either(ranks, case):
    found = [rank["bad"][case] for rank in ranks]
    assert all(rank["same"] for rank in found)
    assert [rank["blamed"] for rank in found] == [False, True]
    assert [rank["images"] for rank in found] == [[70, 71], [72, 73]]


@pytest.mark.parametrize(
    ("own_store", "environment", "expected"),
    [
        (None, {}, "attempt"),
        ("True", {"TORCHELASTIC_RESTART_COUNT": "2"}, "attempt2"),
        ("False", {"TORCHELASTIC_RESTART_COUNT": "2"}, "attempt"),
        ("True", {"GROUP_WORLD_SIZE": "2"}, "attempt0"),
    ],
)
def test_every_attempt_has_a_name_space_or_a_store_of_its_own(own_store, environment, expected):
    environment |= {} if own_store is None else {"TORCHELASTIC_USE_AGENT_STORE": own_store}
    assert distributed.store_prefix(environment) == expected


def test_restarts_on_several_nodes_need_a_store_for_each_attempt():
    environment = {"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "2"}
    with pytest.raises(ValueError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        distributed.store_prefix({**environment, "TORCHELASTIC_MAX_RESTARTS": "3"})


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    distributed.start("cpu")
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather_objects(5) == [5]
    assert distributed.on_main(lambda: 7) == 7
    assert distributed.all_reduce_sum(torch.tensor(3.0)).item() == 3
    model = nn.Linear(1, 1)
    assert distributed.wrap(model, torch.device("cpu")) is model
    distributed.stop()


def test_a_step_without_positives_anywhere_is_divided_by_one():
    match = Match(torch.full((2, 5), NEGATIVE), torch.zeros(2, 5, 4))
    (divisors,) = RetinaNetLoss().divisors([match])
    assert divisors.tolist() == [1, 1]


@pytest.mark.slow
def test_torchrun_makes_one_run_directory_with_one_set_of_rows(tmp_path):
    write_split(tmp_path / "data", "train", range(10, 14))
    write_split(tmp_path / "data", "val", range(20, 23))
    output = tmp_path / "runs" / "two"
    typed = command(tmp_path / "data", output, "optim.batch_size=4", "schedule.max_steps=2")
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    line += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(ROOT / "train.py"), *typed]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(2):  # the same command again finds the run finished, on both ranks
        done = subprocess.run(line, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two"]
    assert [row["step"] for row in rows(output) if "loss/class" in row] == [1, 2]
    assert "finished   2 steps" in done.stdout
