"""A device that is not there: its tensors keep their numbers on the host and refuse to mix.

Within :func:`emulated`, ``torch.zeros(2, device="mps")`` and ``x.to("mps")`` give tensors whose
``device`` is that one. Operators run on the numbers on the host; an operator that gets tensors of
both sides fails as it would there, and so does float64 on a device without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten


class OnDevice(torch.Tensor):
    """A tensor of the device; ``host`` has its numbers."""

    place = torch.device("cuda", 0)
    has_float64 = True

    @staticmethod
    def __new__(cls, host: Tensor) -> OnDevice:
        if host.dtype == torch.float64 and not cls.has_float64:
            raise TypeError("Cannot convert a tensor to float64: the device has no float64.")
        wrapped = torch.Tensor._make_subclass(cls, host.detach(), False)
        wrapped.host = host
        return wrapped

    device = property(lambda self: OnDevice.place)
    is_cuda = property(lambda self: OnDevice.place.type == "cuda")
    is_cpu = property(lambda self: False)

    def numpy(self, *_: object, **__: object) -> None:
        raise TypeError(f"can't convert {self.device} tensor to numpy; use Tensor.cpu() first.")

    __array__ = numpy

    def tolist(self) -> list:
        return self.host.tolist()

    def __deepcopy__(self, memo: dict) -> OnDevice:
        if id(self) not in memo:
            copied = OnDevice(self.host.clone(memory_format=torch.preserve_format))
            memo[id(self)] = copied.requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copied._is_param = True
        return memo[id(self)]

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.host.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        others = [t for t in tensors if not isinstance(t, OnDevice) and t.dim() > 0]
        if others and func not in (aten.copy_.default, aten.index.Tensor):
            raise RuntimeError(f"Expected all tensors to be on the same device: {func}")
        known = {id(t.host): t for t in tensors if isinstance(t, OnDevice)}
        args, kwargs = tree_map(_host, args), tree_map(_host, kwargs)
        out = func(*args, **kwargs)
        if func is aten.copy_.default and not isinstance(tensors[0], OnDevice):
            return tensors[0]
        return tree_map(lambda leaf: known[id(leaf)] if id(leaf) in known else _wrapped(leaf), out)


def _host(leaf):
    return leaf.host if isinstance(leaf, OnDevice) else leaf


def _wrapped(leaf):
    return OnDevice(leaf) if type(leaf) is Tensor else leaf


class _Move(torch.autograd.Function):
    """From one side to the other, gradients the other way."""

    @staticmethod
    def forward(ctx, x, there):
        ctx.there = there
        return OnDevice(x.detach().clone()) if there else x.host.detach().clone()

    @staticmethod
    def backward(ctx, grad):
        return (grad.host.clone() if ctx.there else OnDevice(grad.clone())), None


class _Placing(TorchFunctionMode):
    """Takes devices out of the arguments, and puts results where they belong."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._move(func, args, kwargs)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == OnDevice.place.type:
            kwargs["device"] = "cpu"
            given = [leaf for leaf in tree_leaves(args) if isinstance(leaf, OnDevice)]
            out = func(*args, **kwargs)
            return out if given else _wrapped(out)
        return func(*args, **kwargs)

    def _move(self, func, args, kwargs):
        x, rest = args[0], args[1:]
        on_device = isinstance(x, OnDevice)
        if func is not Tensor.to:
            there = func is Tensor.cuda
        elif rest and isinstance(rest[0], Tensor):
            there = isinstance(rest[0], OnDevice)
            rest = (rest[0].dtype, *rest[1:])
        else:
            copy = kwargs.pop("copy", False)
            device, dtype, _, memory_format = torch._C._nn._parse_to(*rest, **kwargs)
            there = on_device if device is None else device.type == OnDevice.place.type
            rest, kwargs = (dtype or x.dtype,), {"copy": copy}
            if memory_format is not None:
                kwargs["memory_format"] = memory_format
        if func is not Tensor.to:
            rest, kwargs = (x.dtype,), {}
        kwargs.pop("non_blocking", None)
        with torch._C.DisableTorchFunction():
            if not there:  # a type that only the host has is made there
                x = _Move.apply(x, False) if on_device else x
                return x.to(*rest, **kwargs)
            x = x.to(*rest, **kwargs)
            return x if on_device else _Move.apply(x, True)


@contextlib.contextmanager
def emulated(place: str, *, float64: bool = True) -> Iterator[None]:
    """Within, there is such a device, with or without float64; it is named ``place``."""
    kind = torch.device(place).type
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    autocast = torch.autocast
    patches = [
        mock.patch.object(OnDevice, "place", torch.device(place, 0)),
        mock.patch.object(OnDevice, "has_float64", float64),
        mock.patch("torch.autocast", lambda _, **how: autocast("cpu", **how)),
        # Wrapped tensors know no inference mode.
        mock.patch("torch.inference_mode", lambda mode=True: torch.no_grad()),
    ]
    if kind == "mps":
        patches.append(mock.patch("torch.backends.mps.is_available", lambda: True))
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(_Placing())
        try:
            yield
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)
