"""What `auto` means on which device, and that a step stays on one."""

import pytest
import torch

from retinanet import build
from retinanet.cli.main import composer
from retinanet.devices import autocast, choose_device, choose_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("abilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, "fp32"),
        ({"neon": True}, "fp32"),
    ],
)
def test_a_cpu_runs_in_bf16_if_it_has_the_instructions(monkeypatch, abilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)
    assert choose_precision("auto", CPU) == expected


def test_where_torch_cannot_tell_fp32_is_taken(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision("auto", CPU) == "fp32"


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_that_emulates_bf16_does_not_have_it(monkeypatch, native, expected):
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or native,
    )
    assert choose_precision("auto", GPU) == expected


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("device", [CPU, GPU])
def test_what_is_named_is_taken(name, device):
    assert choose_precision(name, device) == name


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


@pytest.mark.parametrize(("number", "expected"), [(0, CPU), (1, torch.device("cuda", 0))])
def test_auto_is_the_gpu_where_there_is_one(gpus, number, expected):
    chosen = gpus(number)
    assert choose_device("auto") == expected
    assert chosen == [expected] * number


def test_a_cpu_that_is_named_is_taken_beside_a_gpu(gpus):
    chosen = gpus(1)
    assert choose_device("cpu") == CPU
    assert chosen == []


def test_every_process_has_the_gpu_of_its_local_rank(gpus, monkeypatch):
    chosen = gpus(2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("cuda") == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"local rank 2 has no GPU: this machine has 2"):
        choose_device("cuda")


def test_a_gpu_that_is_named_must_be_there(gpus):
    gpus(0)
    with pytest.raises(ValueError, match="device=cuda, but torch finds no GPU"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_a_forward_pass_multiplies_in_its_precision(precision, dtype):
    x = torch.ones(2, 2)
    with autocast(CPU, precision):
        assert (x @ x).dtype == dtype


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
