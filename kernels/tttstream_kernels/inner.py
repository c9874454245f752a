"""The inner models g: how each maps tokens with its weights, and the gradient of its weights, in closed form.

Shapes: R = rows times heads, K tokens of a mini-batch or frame, D head width. A layer's bias is the last row of its
matrix and its input carries a one, so (W, b) is one matrix [D + 1, columns] and one product does both.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream_kernels.activation import gelu, gelu_backward
from tttstream_kernels.errors import ConfigError
from tttstream_kernels.update import Weights

aten = torch.ops.aten


def with_one(x: Tensor) -> Tensor:
    """[..., D] -> [..., D + 1] with a one at the end, which the bias row of a weight meets."""
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)  # an expanded one would take three times as long


def flatten(weights: Weights) -> Tensor:
    """[R, rows, columns] a layer -> [R, P]."""
    pieces = [weight.flatten(1) for weight in weights]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


@dataclass(frozen=True)
class Inner:
    """An inner model. `residual`: f(x) = x + LN(g(x)) with squared error; else f = g with the dot-product loss."""

    name: ClassVar[str]
    token_causal: ClassVar[bool] = False
    residual: ClassVar[bool] = True
    bias: ClassVar[bool] = True
    """Whether the last row of every weight matrix is a bias."""
    rates: ClassVar[int] = 1
    """Learning rates a token: one for all weights, or one for each of them."""

    def shapes(self, width: int) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of each weight matrix for heads of this width."""
        raise NotImplementedError(f"{type(self).__name__} must define shapes")

    def forward(self, x: Tensor, weights: Weights) -> tuple[Tensor, Any]:
        """g(x) [R, K, D] -> [R, K, D], and what `gradients` needs."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def gradients(self, g: Tensor, weights: Weights, saved: Any, rates: Tensor | None = None) -> Weights:
        """The gradient of each weight, summed over the K tokens, for g [R, K, D]: each token's rate times dl/dZ.

        rates [R, K, n]: for inner models with a rate for each weight, which g then does not carry.
        """
        raise NotImplementedError(f"{type(self).__name__} must define gradients")

    def split(self, flat: Tensor, width: int) -> Weights:
        """[..., P] -> one matrix [R, rows, columns] a layer, R = the product of the other sizes (views)."""
        shapes = self.shapes(width)
        if len(shapes) == 1:
            return (flat.reshape(-1, *shapes[0]),)
        flat = flat.reshape(-1, flat.shape[-1])
        weights, begin = [], 0
        for rows, columns in shapes:
            weights.append(flat[:, begin : begin + rows * columns].view(-1, rows, columns))
            begin += rows * columns
        return tuple(weights)

    def size(self, width: int) -> int:
        """P: numbers in the weights of one head."""
        return sum(rows * columns for rows, columns in self.shapes(width))


@dataclass(frozen=True)
class Dense(Inner):
    """Layers of x W + b with tanh-GELU between them: the linear inner model (one layer) and the MLP (two, 4 D wide)."""

    token_causal: ClassVar[bool] = True
    hidden: ClassVar[tuple[int, ...]]

    def shapes(self, width: int) -> tuple[tuple[int, int], ...]:
        if not self.hidden:
            return ((width + 1, width),)
        widths = [width, *(multiple * width for multiple in self.hidden), width]
        return tuple((rows + 1, columns) for rows, columns in pairwise(widths))

    def layers(self, x: Tensor, weights: Weights) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """For x [R, K, D + 1] that carries its one: (Z of the last layer, input of every layer, Z of the others)."""
        inputs, hidden = [x], []
        z = torch.bmm(x, weights[0])
        for weight in weights[1:]:
            hidden.append(z)
            inputs.append(with_one(gelu(z)))
            z = torch.bmm(inputs[-1], weight)
        return z, inputs, hidden

    def steps(self, g: Tensor, weights: Weights, hidden: list[Tensor]) -> list[Tensor]:
        """Rate times dl/dZ of every layer [R, K, columns], first layer first, from g, that of the last (equation 5)."""
        steps = [g]
        for weight, z in zip(weights[:0:-1], hidden[::-1], strict=True):
            steps.insert(0, gelu_backward(torch.bmm(steps[0], weight[:, :-1].mT), z))
        return steps

    def forward(self, x: Tensor, weights: Weights) -> tuple[Tensor, tuple[list[Tensor], list[Tensor]]]:
        z, inputs, hidden = self.layers(with_one(x), weights)
        return z, (inputs, hidden)

    def gradients(self, g: Tensor, weights: Weights, saved: Any, rates: Tensor | None = None) -> Weights:
        inputs, hidden = saved
        return tuple(torch.bmm(x.mT, step) for x, step in zip(inputs, self.steps(g, weights, hidden), strict=True))


@dataclass(frozen=True)
class Linear(Dense):
    """g(x) = x W + b."""

    name: ClassVar[str] = "linear"
    hidden: ClassVar[tuple[int, ...]] = ()


@dataclass(frozen=True)
class MLP(Dense):
    """g(x) = gelu(x W1 + b1) W2 + b2, hidden 4 D."""

    name: ClassVar[str] = "mlp"
    hidden: ClassVar[tuple[int, ...]] = (4,)


@dataclass(frozen=True)
class Conv(Inner):
    """g(x) = gelu(dwconv3x3(x; C) + b1) W2 + b2 over a frame's h x w tokens, zeros around the picture.

    Tokens beyond h * w (registers) have no neighbours: only the kernel's middle weight meets them.
    Weights: (C, b1) as [9 + 1, D], rows 0..8 the kernel in reading order; (W2, b2) as [D + 1, D].
    """

    name: ClassVar[str] = "conv"
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ConfigError(f"conv: expected a grid of at least 1 x 1 tokens, got {self.height} x {self.width}")

    def shapes(self, width: int) -> tuple[tuple[int, int], ...]:
        return ((10, width), (width + 1, width))

    def _picture(self, x: Tensor) -> Tensor:
        """The grid's tokens as the channels of one picture: [R, K, D] -> [1, R * D, h, w]."""
        return x[:, : self.height * self.width].mT.reshape(1, -1, self.height, self.width)

    @staticmethod
    def _kernel(weight: Tensor) -> Tensor:
        return weight[:, :9].mT.reshape(-1, 1, 3, 3)

    def forward(self, x: Tensor, weights: Weights) -> tuple[Tensor, tuple[Tensor, ...]]:
        first, second = weights
        cells, tokens, width = x.shape
        places = self.height * self.width
        picture, kernel, bias = self._picture(x), self._kernel(first), first[:, 9]
        z = F.conv2d(picture, kernel, bias.flatten(), padding=1, groups=cells * width).view(cells, width, places).mT
        if tokens > places:
            z = torch.cat([z, torch.addcmul(bias[:, None], x[:, places:], first[:, 4:5])], dim=1)
        z = z.contiguous()  # token by token, as all that follows reads it
        inputs = with_one(gelu(z))
        return torch.bmm(inputs, second), (x, picture, z, inputs)

    def gradients(self, g: Tensor, weights: Weights, saved: Any, rates: Tensor | None = None) -> Weights:
        x, picture, z, inputs = saved
        first, second = weights
        cells, tokens, width = x.shape
        places = self.height * self.width
        inner = gelu_backward(torch.bmm(g, second[:, :-1].mT), z)
        kernel = aten.convolution_backward(
            self._picture(inner), picture, self._kernel(first), None, [1, 1], [1, 1], [1, 1],
            False, [0, 0], cells * width, [False, True, False],
        )[1]  # fmt: skip
        kernel = kernel.view(cells, width, 9).mT
        if tokens > places:
            middle = (x[:, places:] * inner[:, places:]).sum(dim=1, keepdim=True)
            kernel = kernel + F.pad(middle, (0, 0, 4, 4))
        return torch.cat([kernel, inner.sum(dim=1, keepdim=True)], dim=1), torch.bmm(inputs.mT, g)


@dataclass(frozen=True)
class SwiGLU(Inner):
    """g(x) = (silu(x W0) * (x W2)) W1, the inner model of large-chunk TTT (LaCT, arXiv 2505.23884), hidden 2 D.

    Weights in the order W0 [D, 2 D], W2 [D, 2 D], W1 [2 D, D]: the last layer comes last.
    """

    name: ClassVar[str] = "swiglu"
    bias: ClassVar[bool] = False

    def shapes(self, width: int) -> tuple[tuple[int, int], ...]:
        return ((width, 2 * width), (width, 2 * width), (2 * width, width))

    def forward(self, x: Tensor, weights: Weights) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        w0, w2, w1 = weights
        gate, value = torch.bmm(x, w0), torch.bmm(x, w2)
        hidden = F.silu(gate) * value
        return torch.bmm(hidden, w1), (x, gate, value, hidden)

    def gradients(self, g: Tensor, weights: Weights, saved: Any, rates: Tensor | None = None) -> Weights:
        x, gate, value, hidden = saved
        back = torch.bmm(g, weights[2].mT)
        open_share = gate.sigmoid()
        d_gate = back * value * open_share * (1.0 + gate * (1.0 - open_share))
        d_value = back * F.silu(gate)
        steps = d_gate, d_value, g
        if rates is not None:
            steps = tuple(rate * step for rate, step in zip(rates.split(1, dim=-1), steps, strict=True))
        return tuple(torch.bmm(a.mT, step) for a, step in zip((x, x, hidden), steps, strict=True))


@dataclass(frozen=True)
class SwiGLUDot(SwiGLU):
    """SwiGLU as published: f = g, loss -<f(k), v>, one rate a token for each matrix (W0, W2, W1)."""

    name: ClassVar[str] = "swiglu_dot"
    residual: ClassVar[bool] = False
    rates: ClassVar[int] = 3
