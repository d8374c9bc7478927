"""RetinaNet: backbone, pyramid and two heads in one module."""

import torch
from torch import Tensor, nn

from retinanet.model.anchors import AnchorGenerator, grid_sizes
from retinanet.model.backbone import build_backbone
from retinanet.model.convolution import guard_narrow_maps
from retinanet.model.fpn import FeaturePyramid
from retinanet.model.heads import Head, prior_bias
from retinanet.weights.pretrained import RGB_MEAN, RGB_STD


class RetinaNet(nn.Module):
    """Images in, class logits and box deltas of every anchor out.

    Source: Lin et al. 2017, arXiv:1708.02002, section 4.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        num_classes: int = 80,
        prior: float = 0.01,
        *,
        weights: str | None = "IMAGENET1K_V1",
        norm: str = "frozen",
        head_norm: str = "none",
        frozen_stages: int = 2,
        norm_eps: float = 1e-5,
        stride_in_1x1: bool = False,
        fpn_channels: int = 256,
        p6_from: str = "c5",
        relu_before_p7: bool = True,
        head_depth: int = 4,
        head_channels: int = 256,
        anchors: AnchorGenerator | None = None,
        load_later: bool = False,
    ) -> None:
        """Build and initialize; the defaults are the paper's.

        Args:
            backbone: ``"tiny"`` or torchvision's name of a ResNet, ResNeXt or MobileNetV2.
            num_classes: K, without a background class, at least 1.
            prior: pi, the probability of every class at every anchor at the start, in (0, 1).
            weights: of the backbone: a name such as ``"IMAGENET1K_V1"``, a path to weights of
                torchvision, timm, detectron2 or MSRA, or None for random ones.
            norm: of the backbone: ``"frozen"``, ``"batch"``, ``"sync"`` (CUDA only) or ``"group"``.
            head_norm: of the heads: ``"none"`` or ``"group"``.
            frozen_stages: 0 to 5 backbone stages that do not train, the stem first.
            norm_eps: added to the variance by the backbone's frozen and batch norms.
            stride_in_1x1: bottlenecks shrink in their first convolution, as in Caffe's ResNets.
            fpn_channels: of P3 to P7.
            p6_from: ``"c5"`` or ``"p5"``.
            relu_before_p7: ReLU between P6 and P7.
            head_depth: hidden layers of each head.
            head_channels: of each head.
            anchors: None for the paper's.
            load_later: a state dict will be loaded, so frozen norms may be random until then.

        Raises:
            ValueError: a setting outside its range, frozen norms with random weights, or weights
                that do not fit.
            FileNotFoundError: no such file of weights.
        """
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
        super().__init__()
        self.num_classes = num_classes
        self.anchor_generator = anchors or AnchorGenerator()
        self.backbone = build_backbone(
            backbone,
            weights=weights,
            norm=norm,
            frozen_stages=frozen_stages,
            norm_eps=norm_eps,
            stride_in_1x1=stride_in_1x1,
            load_later=load_later,
        )
        self.fpn = FeaturePyramid(
            self.backbone.channels, fpn_channels, p6_from=p6_from, relu_before_p7=relu_before_p7
        )
        self.head = nn.ModuleDict()
        for name, width in (("cls", num_classes), ("box", 4)):
            outputs = self.anchor_generator.num_per_cell * width
            self.head[name] = Head(fpn_channels, head_channels, head_depth, outputs, norm=head_norm)
        self.reset_prior(prior)
        self.register_buffer("rgb_mean", torch.tensor(RGB_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("rgb_std", torch.tensor(RGB_STD).view(3, 1, 1), persistent=False)
        guard_narrow_maps(self)
        self.to(memory_format=torch.channels_last)

    def reset_prior(self, prior: float) -> None:
        """Set the bias of the last class convolution to -log((1 - prior) / prior)."""
        nn.init.constant_(self.head["cls"].pred.bias, prior_bias(prior))

    def anchors(self, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
        """(A, 4) anchors in pixels of an image padded to ``height`` by ``width``."""
        return self.anchor_generator(height, width, device)

    def level_sizes(self, height: int, width: int) -> list[int]:
        """Number of anchors on each of P3 to P7; they sum to A."""
        a = self.anchor_generator.num_per_cell
        return [rows * columns * a for rows, columns in grid_sizes(height, width)]

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict for every anchor of every image.

        Args:
            images: (B, 3, H, W) uint8 or float, RGB from 0 to 255, padded at right and bottom.
            sizes: (B, 2) height and width of the valid part, pixels.

        Returns:
            logits (B, A, K), deltas (B, A, 4), anchors (A, 4) in pixels.
        """
        logits, deltas = self.predict(self.normalize(images, sizes))
        return logits, deltas, self.anchors(*images.shape[-2:], images.device)

    def normalize(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Zero mean and unit variance; the padding becomes 0, the mean color."""
        H, W = images.shape[-2:]
        rows = torch.arange(H, device=images.device) < sizes[:, 0, None]  # (B, H)
        columns = torch.arange(W, device=images.device) < sizes[:, 1, None]  # (B, W)
        valid = (rows[:, :, None] & columns[:, None, :])[:, None]  # (B, 1, H, W)
        normalized = (images.to(self.rgb_mean.dtype) - self.rgb_mean) / self.rgb_std * valid
        return normalized.contiguous(memory_format=torch.channels_last)

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, A, K) and deltas (B, A, 4) of normalized images; the part to compile."""
        features = self.fpn(*self.backbone(images))
        return self.head["cls"](features, self.num_classes), self.head["box"](features, 4)
