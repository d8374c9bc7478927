"""One step, its parts, what a bad gradient does and how it is explained, and going on exactly."""

import contextlib
import copy
import dataclasses
import itertools
import json
import math
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from retinanet.losses import RetinaNetLoss
from retinanet.matching import Matcher
from retinanet.model.anchors import AnchorGenerator
from retinanet.tools.report.tensorboard import P_T_SAMPLES, p_t
from retinanet.training.checkpoint import load_checkpoint, save_checkpoint
from retinanet.training.logs import MetricsLog
from retinanet.training.optim import Schedule
from retinanet.training.progress import Progress, likely_cause
from retinanet.training.run_directory import RunDirectory, read_rows
from retinanet.training.step_metrics import BadStep
from retinanet.training.trainer import Trainer

GOLDEN = Path(__file__).parent.parent / "assets" / "golden_losses.json"
# Of nested states.
assert_same_bits = partial(torch.testing.assert_close, rtol=0, atol=0)


def step(trainer: Trainer, *micro_batches) -> None:
    trainer.model.train()
    trainer.one_step(list(micro_batches))


def poison(batch):
    """The batch with one pixel that is not a number."""
    images = batch.images.float()
    images[0, 0, 5, 5] = float("nan")
    return batch._replace(images=images)


def part(batch, start: int, end: int):
    return type(batch)(*(tensor[start:end] for tensor in batch[:-1]))


def test_gradients_stay_on_the_rank_until_the_last_micro_batch(make_trainer, make_batch):
    trainer = make_trainer()
    seen = []

    class Wrapped(torch.nn.Module):
        """Tells what DistributedDataParallel would do."""

        def forward(self, *arguments):
            seen.append("forward")
            return trainer.model(*arguments)

        @contextlib.contextmanager
        def no_sync(self):
            seen.append("alone")
            yield
            seen.append("end")

    trainer.network = Wrapped()
    trainer.one_step([make_batch(1, 1)])
    assert seen == ["forward"]
    seen.clear()
    trainer.one_step([make_batch(seed, 1) for seed in (1, 2, 3)])
    assert seen == ["alone", "forward", "end"] * 2 + ["forward"]


@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
def test_a_step_is_matching_losses_gradient_clipping_and_sgd(
    make_trainer, make_model, make_batch, max_grad_norm
):
    batch = make_batch(1, 3, 1)
    trainer = make_trainer(max_grad_norm=max_grad_norm)
    step(trainer, batch)

    model, loss = make_model(), RetinaNetLoss()
    logits, deltas, anchors = model(batch.images, batch.sizes)
    match = Matcher()(anchors, batch.boxes, batch.labels, batch.crowds)
    losses = loss(logits, deltas, anchors, match, loss.divisors([match])[0])
    gradients = torch.autograd.grad(losses["class"] + losses["box"], list(model.parameters()))
    norm = torch.stack([g.norm() for g in gradients]).norm()
    factor = 1.0 if max_grad_norm is None else max_grad_norm / norm
    assert factor <= 1
    decayed = {id(p) for g in trainer.optimizer.param_groups[:1] for p in g["params"]}
    for own, p, g in zip(trainer.model.parameters(), model.parameters(), gradients, strict=True):
        update = factor * g + (1e-4 * p if id(own) in decayed else 0)
        torch.testing.assert_close(own, p - 0.05 * update, rtol=1e-5, atol=1e-6)
    means = trainer.totals.take()
    assert means.class_loss == pytest.approx(losses["class"].item(), rel=1e-5)
    assert means.box_loss == pytest.approx(losses["box"].item(), rel=1e-5)
    assert means.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    assert means.positives == (match.label >= 0).sum()
    assert means.images == 2


@pytest.mark.parametrize("normalizer", ["batch", "image", "ema"])
def test_micro_batches_make_the_step_of_the_whole_batch(make_trainer, make_batch, normalizer):
    whole, parts = (make_trainer(normalizer=normalizer) for _ in range(2))
    for seed in (1, 2):
        batch = make_batch(seed, 3, 0, 1, 2)
        step(whole, batch)
        step(parts, part(batch, 0, 2), part(batch, 2, 4))
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    mine, other = whole.totals.take(), parts.totals.take()
    assert mine.class_loss == pytest.approx(other.class_loss, rel=1e-5)
    assert mine.positives == other.positives
    assert (mine.steps, mine.images) == (other.steps, other.images) == (2, 8)


def test_every_step_has_the_rate_of_the_schedule(make_trainer, make_batch):
    trainer = make_trainer()
    trainer.schedule = Schedule(lr=0.05, total_steps=4, decay="cosine")
    for done in range(3):
        step(trainer, make_batch(done, 1))
        rates = {group["lr"] for group in trainer.optimizer.param_groups}
        assert rates == {trainer.schedule(done)}


def test_images_without_objects_are_a_step_like_any_other(make_trainer, make_batch):
    trainer = make_trainer()
    before = copy.deepcopy(trainer.model.state_dict())
    step(trainer, make_batch(1, 0, 0))
    means = trainer.totals.take()
    assert means.positives == means.box_loss == 0
    assert means.bad == []
    assert means.class_loss > 0
    name = "head.cls.pred.bias"
    assert not torch.equal(trainer.model.state_dict()[name], before[name])


def test_bf16_gives_about_the_same_losses(make_trainer, make_batch):
    means = []
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(precision=precision)
        step(trainer, make_batch(1, 3, 1))
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
        means.append(trainer.totals.take())
    # Logits are rounded; what is made of them is not.
    for name in ("class_loss", "box_loss"):
        assert getattr(means[0], name) == pytest.approx(getattr(means[1], name), rel=0.002)
    assert means[0].class_loss != means[1].class_loss


# A gradient that is not a number


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_bad_gradient_changes_nothing(make_trainer, make_batch, name, steps_before):
    trainer = make_trainer(name=name, max_grad_norm=10.0)
    for seed in range(steps_before):
        step(trainer, make_batch(seed, 2))
    weights = copy.deepcopy(trainer.model.state_dict())
    state = copy.deepcopy(trainer.optimizer.state_dict()["state"])
    # Memory that is not cleared must not become momentum.
    junk = [torch.full_like(p, 7.0) for p in trainer.model.parameters()]
    del junk
    step(trainer, poison(make_batch(50, 2)))
    assert_same_bits(trainer.model.state_dict(), weights)
    if steps_before or name == "sgd":
        assert_same_bits(trainer.optimizer.state_dict()["state"], state)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_after_a_bad_first_step_the_next_is_a_first_step(make_trainer, make_batch, name):
    trainer, fresh = make_trainer(name=name), make_trainer(name=name)
    step(trainer, poison(make_batch(50, 2)))
    for each in (trainer, fresh):
        step(each, make_batch(1, 2))
    assert_same_bits(
        copy.deepcopy(trainer.model.state_dict()), copy.deepcopy(fresh.model.state_dict())
    )


def test_an_infinite_loss_with_a_finite_gradient_changes_nothing(make_trainer, make_batch):
    trainer = make_trainer()
    plain = trainer.loss.forward

    def infinite(*given):
        losses = plain(*given)
        return {**losses, "class": losses["class"] + math.inf}

    trainer.loss.forward = infinite
    before = copy.deepcopy(trainer.model.state_dict())
    step(trainer, make_batch(1, 2))
    assert_same_bits(trainer.model.state_dict(), before)
    (bad,) = trainer.totals.take().bad
    assert bad.class_loss == math.inf
    assert math.isfinite(bad.box_loss)


def test_running_statistics_forget_a_bad_step(make_trainer, make_model, make_batch):
    trainer = make_trainer(model=make_model(norm="batch"))
    step(trainer, make_batch(1, 2))
    before = copy.deepcopy(trainer.model.state_dict())
    assert any("running_mean" in key for key in before)
    step(trainer, poison(make_batch(2, 2)))
    assert_same_bits(trainer.model.state_dict(), before)
    step(trainer, make_batch(3, 2))
    after = trainer.model.state_dict()
    assert all(not torch.equal(after[key], before[key]) for key in before if "running" in key)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_averages_over_the_steps_forget_a_bad_step(make_trainer, make_batch, precision):
    trainer = make_trainer(ema=0.9, normalizer="ema", precision=precision)
    step(trainer, make_batch(1, 2))
    before = copy.deepcopy([trainer.ema.model.state_dict(), trainer.loss.state_dict()])
    step(trainer, poison(make_batch(2, 2)))
    assert_same_bits([trainer.ema.model.state_dict(), trainer.loss.state_dict()], before)
    step(trainer, make_batch(3, 2))
    weight = "head.cls.pred.weight"
    assert not torch.equal(trainer.ema.model.state_dict()[weight], before[0][weight])
    assert trainer.loss.average_positives != before[1]["average_positives"]


def test_bad_steps_are_left_out_of_the_means_and_named(make_trainer, make_batch):
    trainer, good = make_trainer(), make_trainer()
    step(trainer, make_batch(1, 2, first_id=10))
    step(trainer, make_batch(2, 1, 1, first_id=20), poison(make_batch(3, 1, first_id=33)))
    step(trainer, make_batch(4, 2, first_id=40))
    for seed in (1, 4):
        step(good, make_batch(seed, 2))
    means, expected = trainer.totals.take(), good.totals.take()
    (bad,) = means.bad
    assert (bad.steps_ago, bad.image_ids, bad.blamed) == (1, [20, 21, 33], True)
    assert math.isnan(bad.class_loss)
    assert (means.steps, expected.steps) == (3, 2)
    assert means.class_loss == pytest.approx(expected.class_loss, rel=1e-6)
    assert means.grad_norm == pytest.approx(expected.grad_norm, rel=1e-6)
    assert [math.isfinite(norm) for norm in means.grad_norms] == [True, False, True]


def test_a_row_of_bad_steps_alone_has_no_numbers_and_the_next_begins_again(
    make_trainer, make_batch, tmp_path
):
    trainer = make_trainer()
    directory = RunDirectory(tmp_path)
    log = MetricsLog(directory, next_step=1)
    progress = Progress(log, step=0, total_steps=9, steps_per_epoch=3, main=False)
    step(trainer, poison(make_batch(1, 2)))
    assert len(progress.row(trainer).bad) == 1
    step(trainer, make_batch(2, 2))
    means = progress.row(trainer)
    assert (means.steps, means.bad) == (1, [])
    progress.close()
    row, _ = read_rows(directory.metrics)
    assert row["loss/class"] is row["grad_norm"] is row["positives"] is None
    assert row["bad_steps"] == 1


def test_rows_that_cannot_be_written_are_an_error_or_warned_of_once(tmp_path, caplog):

    def full(_):
        raise OSError("No space left on device.")

    log = MetricsLog(RunDirectory(tmp_path), next_step=1, must_write=False)
    for _ in range(3):
        log.show(full)
    log.close()
    warnings = ["No space left on device. Training goes on without rows."]
    assert [record.message for record in caplog.records] == warnings
    log.must_write = True
    with pytest.raises(OSError, match="No space left"):
        log.show(full)


@pytest.mark.parametrize(
    ("seconds", "threads", "told"),
    [
        ([1] * 4 + [4] * 12, 2, 1),
        ([1] * 4 + [4] * 12, 1, 0),  # nobody waits for anybody
        ([1] * 4 + [4] * 4 + [1] + [4] * 4, 2, 0),
        ([1] * 4 + [2.9] * 12, 2, 0),
    ],
)
def test_a_cpu_that_others_keep_busy_is_hinted_at_once(
    make_trainer, tmp_path, monkeypatch, caplog, seconds, threads, told
):
    now = itertools.accumulate([0.0, *seconds])
    monkeypatch.setattr("retinanet.training.progress.time.perf_counter", lambda: next(now))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    trainer = make_trainer()
    trainer.step = 1
    log = MetricsLog(RunDirectory(tmp_path), next_step=1)
    progress = Progress(log, step=0, total_steps=99, steps_per_epoch=3, main=False)
    row = torch.tensor([1.0, 1, 1, 9, 9, 30, 0])
    with caplog.at_level("INFO"):
        for _ in seconds:
            trainer.totals.rows, trainer.totals.image_ids = [row], [[torch.tensor([1])]]
            progress.row(trainer)
    progress.close()
    hints = [message for message in caplog.messages if "OMP_NUM_THREADS=1" in message]
    assert len(hints) == told


ORDINARY = [1.0, 1.2, 0.9, 1.1, 1.3, 1.0]
# Some steps have no objects.
MIXED = [0.14, 0.15, 20.0, 0.14, 0.13, 0.14, 0.15]


@pytest.mark.parametrize(
    ("losses", "norms", "precision", "expected"),
    [
        ((math.nan, 0.1), ORDINARY, "fp16", "use precision=bf16"),
        ((math.nan, 0.1), [*ORDINARY, 3, 9, 40, 900], "fp32", "from 1.3 to 900 in 10 steps: train"),
        ((math.nan, 0.1), [math.nan, math.inf], "fp32", "check the weights of init_from"),
        ((math.nan, 0.1), [], "fp32", "check the weights of init_from"),
        ((math.nan, 0.1), ORDINARY, "fp32", "The loss is not finite, and the gradients before"),
        ((math.nan, 0.1), [*MIXED, 21.0], "fp32", "were ordinary"),
        ((math.nan, 0.1), [*MIXED, 900.0], "fp32", "diverges"),
        ((0.5, math.inf), ORDINARY, "bf16", "The box loss alone is not finite"),
        ((0.5, 0.1), ORDINARY, "fp32", "The gradient alone is not finite"),
    ],
)
def test_the_likely_cause_follows_from_what_was_seen(losses, norms, precision, expected):
    bad = BadStep(0, *losses, grad_norm=math.nan, image_ids=[7], blamed=True)
    assert expected in likely_cause(bad, norms, step=20, precision=precision)


def test_a_row_over_a_restart_is_the_row_without_it(make_trainer, make_batch):
    whole, first, second = (make_trainer() for _ in range(3))
    for seed in range(4):
        step(whole, make_batch(seed, 2))
    for seed in range(3):
        step(first, make_batch(seed, 2))
    second.load_state_dict(first.state_dict())
    step(second, make_batch(3, 2))
    means, expected = second.totals.take(), whole.totals.take()
    assert means.images == 1  # of images_per_s, whose clock begins anew
    assert dataclasses.replace(means, images=expected.images) == expected
    assert first.totals.take().steps == 3  # saving takes nothing away


def test_waiting_for_batches_is_measured_and_explained_once(make_trainer, make_batch, caplog):
    trainer = make_trainer()
    progress = Progress(
        MetricsLog(None, next_step=1), step=0, total_steps=9, steps_per_epoch=3, main=True
    )

    def slow():
        for seed in range(5):
            time.sleep(0.3)  # a step takes a tenth of it
            yield [make_batch(seed, 2)]

    caplog.set_level("INFO")
    shares = []

    for _ in trainer.steps(slow()):
        waited, passed = trainer.wait_seconds, time.perf_counter() - progress.since
        shares.append(waited / passed)
        progress.row(trainer)
    assert len(shares) == 5
    assert all(0.5 < share <= 1 for share in shares)
    hints = [record.message for record in caplog.records if "raise data.workers" in record.message]
    assert len(hints) == 1
    assert trainer.wait_seconds < 0.05  # each row starts anew


# Looking at it


def test_p_t_is_the_probability_of_the_truth(make_trainer, make_model, make_batch):
    model = make_model(prior=0.2)
    torch.nn.init.zeros_(model.head["cls"].pred.weight)
    trainer = make_trainer(model=model)
    batch = make_batch(1, 2, 0)
    found = p_t(trainer, batch)
    positives = int((trainer.match(batch).label >= 0).sum())
    torch.testing.assert_close(found["positives"], torch.full((positives,), 0.2))
    torch.testing.assert_close(found["background"], torch.full_like(found["background"], 0.8))


def test_looking_does_not_change_the_model(make_trainer, make_model, make_batch):
    trainer = make_trainer(model=make_model(norm="batch"))
    trainer.model.train()
    before = copy.deepcopy(trainer.model.state_dict())
    p_t(trainer, make_batch(1, 2, 1))
    assert_same_bits(trainer.model.state_dict(), before)
    assert trainer.model.training


@pytest.mark.parametrize("num_classes", [2, 3, 80])
def test_the_background_sample_meets_every_class(make_trainer, make_model, make_batch, num_classes):
    model = make_model(num_classes=num_classes)
    torch.nn.init.zeros_(model.head["cls"].pred.weight)
    probabilities = torch.linspace(0.1, 0.9, num_classes)
    a = model.anchor_generator.num_per_cell
    model.head["cls"].pred.bias.data = probabilities.logit().repeat(a)
    found = p_t(make_trainer(model=model), make_batch(1, 1, 0, 0, 0))["background"]
    assert len(found) <= P_T_SAMPLES
    shares = ((found[:, None] - (1 - probabilities)).abs() < 1e-4).float().mean(dim=0)
    assert (shares - 1 / num_classes).abs().max() < 0.01


# The host


class Waits(TorchDispatchMode):
    """Counts operations whose result the host must wait for when the device is a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        indexed = name.startswith(("aten::index.", "aten::index_put"))
        masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if indexed else []
        if masks or name in WAITING:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique2"}


@pytest.mark.parametrize("normalizer", ["batch", "image", "ema"])
@pytest.mark.parametrize("box", ["l1", "smooth_l1", "giou", "diou", "ciou"])
def test_no_step_waits_for_the_device(make_trainer, make_batch, normalizer, box, monkeypatch):
    # Only the CPU, for which nobody waits, matches by windows.
    monkeypatch.setattr(AnchorGenerator, "windows", lambda *_: None)
    trainer = make_trainer(normalizer=normalizer, ema=0.9, max_grad_norm=1.0)
    trainer.loss.box = box
    step(trainer, make_batch(1, 2, 0))  # the first one makes anchors and momentum
    with Waits() as waits:
        step(trainer, make_batch(2, 2, 1))
    assert waits.found == []


def test_waiting_is_noticed():
    x = torch.arange(4.0)
    with Waits() as waits:
        x[x > 1], x.sum().item(), torch.nonzero(x)
    assert waits.found == ["aten::index.Tensor", "aten::_local_scalar_dense", "aten::nonzero"]


# Going on


@pytest.mark.parametrize(
    "settings",
    [
        {"ema": 0.9},
        {"name": "adamw", "normalizer": "ema", "max_grad_norm": 0.5},
        {"precision": "bf16", "normalizer": "image"},
    ],
)
def test_a_run_that_is_resumed_is_the_run_that_was_not_interrupted(
    tmp_path, make_trainer, make_batch, settings
):
    batches = [make_batch(seed, 2, 0, 1) for seed in range(5)]
    whole, first = make_trainer(**settings), make_trainer(**settings)
    for batch in batches:
        step(whole, batch)
    for batch in batches[:3]:
        step(first, batch)
    save_checkpoint(tmp_path / "last.pt", first.state_dict())
    second = make_trainer(**settings)
    second.load_state_dict(load_checkpoint(tmp_path / "last.pt"))
    for batch in batches[3:]:
        step(second, batch)
    assert second.step == whole.step == 5
    assert_same_bits(copy.deepcopy(second.state_dict()), copy.deepcopy(whole.state_dict()))


def test_steps_are_made_one_by_one_as_they_are_asked_for(make_trainer, make_batch):
    trainer = make_trainer()
    endless = ([make_batch(seed, 1)] for seed in itertools.count())
    assert list(itertools.islice(trainer.steps(endless), 3)) == [1, 2, 3]
    assert trainer.step == 3
    assert trainer.latest is not None


def test_the_first_losses_are_the_recorded_ones(make_trainer, make_batch):
    # A change of numbers is a change of the file, said in its commit: paste what is measured.
    trainer = make_trainer(lr=0.2)
    measured = []
    for _ in range(3):
        step(trainer, make_batch(0, 2, 0, 1))
        means = trainer.totals.take()
        measured.append({"class": means.class_loss, "box": means.box_loss})
    recorded = json.loads(GOLDEN.read_text())
    expected = [pytest.approx(losses, rel=1e-4) for losses in recorded]
    assert measured == expected, json.dumps(measured)


def test_images_that_are_not_square_match_the_anchors_of_their_sides(make_trainer, make_batch):
    trainer = make_trainer()
    batch = make_batch(0, 1)
    wide = torch.zeros(1, 3, 128, 256, dtype=torch.uint8)
    boxes = torch.tensor([[[192.0, 32, 256, 96]]])  # no anchor of a tall image is there
    batch = batch._replace(images=wide, sizes=torch.tensor([[128, 256]]), boxes=boxes)
    match = trainer.match(batch)
    _, _, anchors = trainer.model(batch.images, batch.sizes)
    positive = match.label[0] >= 0
    assert positive.any()
    centers = (anchors[positive, :2] + anchors[positive, 2:]) / 2
    assert (centers[:, 0] > 192).all() and (centers[:, 1] < 96).all()


@pytest.mark.parametrize(("precision", "is_bad"), [("fp16", False), ("fp32", True)])
def test_a_gradient_that_overflows_is_ordinary_with_a_scaler(
    make_trainer, make_batch, precision, is_bad
):
    trainer = make_trainer(precision=precision)
    before = copy.deepcopy(trainer.model.state_dict())
    for parameter in trainer.model.parameters():
        parameter.register_hook(lambda gradient: gradient * math.inf)
    step(trainer, make_batch(0, 1))
    assert_same_bits(copy.deepcopy(trainer.model.state_dict()), before)
    assert bool(trainer.totals.take().bad) == is_bad
