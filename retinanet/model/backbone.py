"""Trunks: images in, C3 to C5 out, under torchvision's parameter names."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from pathlib import Path

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from retinanet.checks import check, check_trunk, is_path
from retinanet.loading import read_tensors
from retinanet.model.heads import group_norm

# Parameters of the classifiers that torchvision's weight files carry and a detector does not.
CLASSIFIER_PREFIXES = ("fc.", "classifier.")


class Trunk(nn.Module):
    """A network of five stages; the last three make C3, C4 and C5.

    Attributes:
        channels: of C3, C4 and C5.
        stages: names of the submodules of the stem, C2, C3, C4 and C5.
    """

    channels: tuple[int, int, int]
    stages: tuple[tuple[str, ...], ...]
    frozen_stages: int = 0

    def freeze(self, frozen_stages: int) -> None:
        """Stop the first stages from training; their batch statistics stop too."""
        check("model.frozen_stages", frozen_stages)
        self.frozen_stages = frozen_stages
        for module in self._frozen():
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Trunk:
        """As usual, but frozen stages never leave evaluation mode."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        names = [name for stage in self.stages[: self.frozen_stages] for name in stage]
        return [self.get_submodule(name) for name in names]


class ResNetTrunk(Trunk):
    """torchvision's ResNet or ResNeXt without its classifier."""

    stages = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))

    def __init__(self, resnet: ResNet) -> None:
        """Take the layers of ``resnet``."""
        super().__init__()
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(name, getattr(resnet, name))
        expansion = 4 if isinstance(resnet.layer1[0], Bottleneck) else 1
        self.channels = (128 * expansion, 256 * expansion, 512 * expansion)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C3, C4, C5 of (B, 3, H, W) normalized images."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        c3 = self.layer2(self.layer1(x))
        c4 = self.layer3(c3)
        return c3, c4, self.layer4(c4)


class MobileNetTrunk(Trunk):
    """torchvision's MobileNetV2 without its classifier."""

    # Positions in torchvision's `features` after which the stride is 2, 4, 8, 16, 32.
    ENDS = (2, 4, 7, 14, 19)
    stages = tuple(
        tuple(f"features.{i}" for i in range(low, high))
        for low, high in zip((0, *ENDS), ENDS, strict=False)
    )

    def __init__(self, features: nn.Sequential) -> None:
        """Take the layers of ``features``."""
        super().__init__()
        self.features = features
        self.channels = (32, 96, 1280)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C3, C4, C5 of (B, 3, H, W) normalized images."""
        outputs = []
        for low, high in zip((0, *self.ENDS), self.ENDS, strict=False):
            for layer in self.features[low:high]:
                x = layer(x)
            outputs.append(x)
        return outputs[2], outputs[3], outputs[4]


class TinyTrunk(Trunk):
    """Five stages of one residual block each, for CPUs and tests; about 2 M parameters."""

    WIDTHS = (16, 32, 64, 128, 256)
    stages = (("stem",), ("block2",), ("block3",), ("block4",), ("block5",))

    def __init__(self, norm_layer: Callable[[int], nn.Module]) -> None:
        """Build with random weights."""
        super().__init__()
        self.stem = _conv_norm(3, self.WIDTHS[0], 2, norm_layer)
        for i in range(1, 5):
            block = TinyBlock(self.WIDTHS[i - 1], self.WIDTHS[i], norm_layer)
            self.add_module(f"block{i + 1}", block)
        self.channels = self.WIDTHS[2:]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C3, C4, C5 of (B, 3, H, W) normalized images."""
        c3 = self.block3(self.block2(self.stem(x).relu()))
        c4 = self.block4(c3)
        return c3, c4, self.block5(c4)


class TinyBlock(nn.Module):
    """Halve the resolution, then one residual block of two 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int, norm_layer: Callable[[int], nn.Module]) -> None:
        """Build with random weights."""
        super().__init__()
        self.down = _conv_norm(inputs, outputs, 2, norm_layer)
        self.first = _conv_norm(outputs, outputs, 1, norm_layer)
        self.second = _conv_norm(outputs, outputs, 1, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h / 2, w / 2)."""
        x = self.down(x).relu()
        return (x + self.second(self.first(x).relu())).relu()


def _conv_norm(
    inputs: int, outputs: int, stride: int, norm_layer: Callable[[int], nn.Module]
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), norm_layer(outputs)
    )


NORM_LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "batch": nn.BatchNorm2d,
    "sync": nn.SyncBatchNorm,
    "group": group_norm,
}


def build_trunk(
    name: str, *, weights: str | None, norm: str, frozen_stages: int, load_later: bool = False
) -> Trunk:
    """A trunk with its weights.

    Args:
        name: ``"tiny"`` or torchvision's name of a ResNet, ResNeXt or MobileNetV2.
        weights: a name such as ``"IMAGENET1K_V1"``, a path to a state dict under torchvision's
            names, or None for random ones.
        norm: ``"frozen"``, ``"batch"``, ``"sync"`` (CUDA only) or ``"group"``.
        frozen_stages: 0 to 5 stages that do not train, the stem first.
        load_later: a state dict follows, so the weights may be random for now.

    Raises:
        ValueError: frozen norms with random weights, weights that do not fit.
        FileNotFoundError: no such file.
    """
    check("model.backbone", name)
    check("model.norm", norm)
    if not load_later:
        check_trunk(name, norm, weights, frozen_stages)
    norm_layer = NORM_LAYERS[norm]
    if name == "tiny":
        trunk: Trunk = TinyTrunk(norm_layer)
    elif name == "mobilenet_v2":
        trunk = MobileNetTrunk(torchvision.models.mobilenet_v2(norm_layer=norm_layer).features)
    else:
        trunk = ResNetTrunk(torchvision.models.get_model(name, norm_layer=norm_layer))
    if weights is not None and not load_later:
        load_trunk(trunk, name, weights)
    trunk.freeze(frozen_stages)
    return trunk


def load_trunk(trunk: Trunk, name: str, weights: str) -> None:
    """Load ``weights`` (see :func:`build_trunk`) into ``trunk``; every parameter must be there.

    Raises:
        ValueError: an unknown name, a failed download, parameters missing or left over.
        FileNotFoundError: no such file.
    """
    state = _read_weights(Path(weights)) if is_path(weights) else _fetch_weights(name, weights)
    wanted = trunk.state_dict()
    given = {
        key: value
        for key, value in state.items()
        if not key.startswith(CLASSIFIER_PREFIXES) and not key.endswith("num_batches_tracked")
    }
    missing = [
        key for key in wanted if key not in given and not key.endswith("num_batches_tracked")
    ]
    extra = [key for key in given if key not in wanted]
    shapes = [key for key in given if key in wanted and given[key].shape != wanted[key].shape]
    if missing or extra or shapes:
        of_statistics = any(key.endswith("running_mean") for key in extra)
        hint = " Batch-norm weights do not fit model.norm=group." if of_statistics else ""
        raise ValueError(
            f"model.weights={weights} do not fit {name}: {len(missing)} parameters missing "
            f"(such as {missing[:2]}), {len(extra)} left over (such as {extra[:2]}), "
            f"{len(shapes)} of another shape (such as {shapes[:2]}).{hint} Give the weights of "
            f"this backbone under torchvision's names."
        )
    trunk.load_state_dict({**wanted, **given})


def _read_weights(path: Path) -> dict[str, Tensor]:
    """State dict of a file; nothing in it executes."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}; check model.weights.")
    try:
        state = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"model.weights={path} is not a readable state dict: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"model.weights={path} holds no plain state dict of tensors; a whole detector's "
            f"checkpoint belongs into init_from."
        )
    return state


def _fetch_weights(name: str, weights: str) -> dict[str, Tensor]:
    """State dict of torchvision's weights, from its cache or its server."""
    choices = torchvision.models.get_model_weights(name)
    if weights not in choices.__members__:
        raise ValueError(
            f"model.weights={weights}: {name} has {', '.join(choices.__members__)}; or give a "
            f"path (containing /), or null for random weights."
        )
    try:
        return choices[weights].get_state_dict(progress=True, check_hash=True)
    except (urllib.error.URLError, ConnectionError, TimeoutError, RuntimeError) as error:
        # RuntimeError: what came has another hash, as when a proxy answers with its own page.
        raise ValueError(
            f"model.weights={weights} could not be downloaded from {choices[weights].url} "
            f"({error}). Offline: fetch that file elsewhere and set model.weights=PATH, or train "
            f"from random weights with model.weights=null model.norm=group model.frozen_stages=0."
        ) from error
