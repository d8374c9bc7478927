"""What `auto` means on which device, and that a step stays on one."""

import pytest
import torch

from retinanet import build, devices
from retinanet.cli.main import composer
from retinanet.devices import (
    autocast,
    bf16_error,
    choose_device,
    choose_precision,
    explain_precision,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("abilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, "fp32"),
        ({"neon": True}, "fp32"),
        (None, "fp32"),  # torch cannot tell
    ],
)
def test_a_cpu_runs_in_bf16_if_it_has_the_instructions(monkeypatch, abilities, expected):
    if abilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)
    assert choose_precision("auto", CPU) == expected


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_bf16_kernels_that_are_wrong_are_not_used_and_the_log_says_so(monkeypatch, where):
    class Unwritten(torch.autograd.Function):
        """Garbage in one element of a result, or of a gradient, where the map is small."""

        @staticmethod
        def forward(ctx, y):
            return y.clone().index_fill_(-1, torch.tensor([0]), 1e6) if where == "forward" else y

        @staticmethod
        def backward(ctx, grad):
            return grad.index_fill(-1, torch.tensor([0]), 1e6) if where == "backward" else grad

    original = torch.nn.functional.conv2d

    def wrong(x, *others, **steps):
        y = original(x, *others, **steps)
        return Unwritten.apply(y) if torch.is_autocast_enabled("cpu") else y

    abilities = {"avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)
    bf16_error.cache_clear()
    assert choose_precision("auto", CPU) == "bf16"
    assert explain_precision(CPU) == "auto: this device multiplies in bf16"
    bf16_error.cache_clear()
    monkeypatch.setattr(torch.nn.functional, "conv2d", wrong)
    assert choose_precision("auto", CPU) == "fp32"
    assert explain_precision(CPU).startswith("auto: bf16 is wrong on this device, by ")
    bf16_error.cache_clear()


def test_asking_for_the_precision_draws_no_random_number():
    bf16_error.cache_clear()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    choose_precision("auto", CPU)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_that_emulates_bf16_does_not_have_it(monkeypatch, native, expected):
    def is_supported(including_emulation=True):
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    monkeypatch.setattr(devices, "bf16_error", lambda device: 0.01)
    assert choose_precision("auto", GPU) == expected


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_a_precision_that_is_named_is_taken_and_multiplied_in(name, dtype):
    assert choose_precision(name, CPU) == choose_precision(name, GPU) == name
    x = torch.ones(2, 2)
    with autocast(CPU, name):
        assert (x @ x).dtype == dtype


@pytest.fixture
def gpus(monkeypatch):
    """``gpus(number)``: as many as torch finds; returns those that are made the current one."""

    def find(number: int) -> list[torch.device]:
        chosen = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        return chosen

    return find


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [("auto", 0, CPU), ("auto", 1, torch.device("cuda", 0)), ("cpu", 1, CPU)],
)
def test_auto_is_the_gpu_where_there_is_one(gpus, name, number, expected):
    chosen = gpus(number)
    assert choose_device(name) == expected
    assert chosen == [expected] * (expected != CPU)


def test_every_process_has_the_gpu_of_its_local_rank(gpus, monkeypatch):
    chosen = gpus(2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("cuda") == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"local rank 2 has no GPU: this machine has 2"):
        choose_device("cuda")
    gpus(0)
    with pytest.raises(ValueError, match="device=cuda, but torch finds no GPU"):
        choose_device("cuda")


@pytest.mark.parametrize("name", [1, "cuda:1", torch.device("cuda:1")])
def test_a_gpu_may_be_named_by_its_number(gpus, name):
    gpus(2)
    assert choose_device(name) == torch.device("cuda", 1)
    gpus(1)
    with pytest.raises(ValueError, match="device=cuda:1: this machine has 1 GPUs"):
        choose_device(name)
    gpus(0)
    with pytest.raises(ValueError, match="device=cuda:1, but torch finds no GPU"):
        choose_device(name)
    assert choose_device(CPU) == CPU


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "auto:1", -1, None, 1.5, torch.device("meta")])
def test_what_is_no_device_is_refused_with_what_is(name):
    with pytest.raises(ValueError, match="device must be one of auto, cpu, cuda, mps, or cuda:N"):
        choose_device(name)


@pytest.mark.parametrize("alpha", [0.25, [0.2, 0.4]])
def test_everything_that_a_step_uses_is_on_the_device_of_the_model(alpha):
    typed = ["model=tiny", "ema=none", "precision=fp32"]
    with composer("train") as reader:
        settings = reader.command([*typed, f"loss.alpha={alpha}"]).settings
    device = torch.device("meta")
    model = build.build_model(settings, 2)
    trainer = build.build_trainer(settings, model, ["a", "b"], total_steps=1, device=device)
    tensors = [*model.parameters(), *model.buffers(), *trainer.loss.buffers()]
    tensors += [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert trainer.loss.alpha is not None
    assert {tensor.device.type for tensor in tensors} == {"meta"}
