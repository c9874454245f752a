"""The inner models by name: their initial weights, learning rates and bounded updates.

The defaults of `update` are measured with demos/youth.py, and tests/test_law6_ever_young.py checks them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tttstream.errors import ConfigError
from tttstream_kernels import MLP, Conv, Inner, Linear, SwiGLU, SwiGLUDot, Update

Grid = tuple[int, int]
Default = Callable[[float, int, int, str], Update]
"""The default update at the end of a mini-batch, for (base_lr, head width, tokens of a mini-batch, causal)."""


@dataclass(frozen=True)
class InnerModel:
    """One entry of the catalogue.

    make: the inner model for a grid of tokens. base_lr: the paper's base of the inner learning rate. init: learned
    initial weights [H, P] for (inner, heads, head width). update: the default inner optimiser. about: one line about a
    memory with this model; with it `tttstream.memory` has the memory ttt_NAME.
    """

    make: Callable[[Grid | None], Inner]
    base_lr: float
    init: Callable[[Inner, int, int], Tensor]
    update: Default
    about: str | None = None

    @property
    def frame_only(self) -> bool:
        """Whether the model works on whole frames only."""
        return not self.make((1, 1)).token_causal


def bounded(token: float, frame: float, forget: float = 0.0, restore: bool = False) -> Default:
    """Bound the norm of the last layer by factor * sqrt(base_lr) * (D / K)^(1/4), or restore it to this value.

    The loss depends only on the direction of the weights, so a step of rate eta turns weights of norm L by about eta /
    L^2, and without a bound L grows forever. In this unit the effect of a factor does not depend on D, K and base_lr.
    The factors are the largest, in steps of a half, with which the memory learns as fast as a fresh one on every kind
    of scene: smaller factors learn faster, larger ones remember more (docs/results/youth.md). Frame mode has its own
    factor and uses K = 16 for all frames: the tokens of a frame are too similar for smaller norms, with which the
    weights oscillate from frame to frame on video.

    restore: set the norm, also if the initial norm is larger, as in a wide MLP. forget: bounds the layers before the
    last, whose scale affects the loss; its effect appears after about 100,000 mini-batches.
    """

    def update(base_lr: float, width: int, tokens: int, causal: str) -> Update:
        factor, scale = (token, width / tokens) if causal == "token" else (frame, width / 16)
        return Update(forget=forget, max_norm=factor * base_lr**0.5 * scale**0.25, restore=restore)

    return update


def published_update(base_lr: float, width: int, tokens: int, causal: str) -> Update:
    """The update that restores the initial norms of columns, as in large-chunk TTT (arXiv 2505.23884)."""
    return Update(columns=True)


def paper_init(inner: Inner, heads: int, width: int) -> Tensor:
    """Weights N(0, 0.02), biases 0 (the last row of each matrix)."""
    parts = [0.02 * torch.randn(heads, rows, columns) for rows, columns in inner.shapes(width)]
    for part in parts:
        part[:, -1] = 0.0
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def swiglu_init(inner: Inner, heads: int, width: int) -> Tensor:
    """The weights of gate and value N(0, 1 / D), the last layer N(0, 0.02), whose scale only affects its learning
    rate."""
    flat = scaled_init(inner, heads, width)
    rows, columns = inner.shapes(width)[-1]
    flat[:, -rows * columns :] *= 0.02 * rows**0.5
    return flat


def conv_init(inner: Inner, heads: int, width: int) -> Tensor:
    """As in the paper, plus 1 at the centre of the kernel, so that each token initially passes through."""
    flat = paper_init(inner, heads, width)
    flat[:, 4 * width : 5 * width] += 1.0
    return flat


def scaled_init(inner: Inner, heads: int, width: int) -> Tensor:
    """Weights N(0, 1 / rows) for matrices without biases, as in large-chunk TTT (arXiv 2505.23884)."""
    parts = [torch.randn(heads, rows, columns) / rows**0.5 for rows, columns in inner.shapes(width)]
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def _conv(grid: Grid | None) -> Inner:
    if grid is None:
        raise ConfigError("the conv inner model needs the grid of a frame's tokens: pass grid=(height, width)")
    return Conv(*grid)


CATALOGUE: dict[str, InnerModel] = {
    "linear": InnerModel(
        lambda grid: Linear(),
        1.0,
        paper_init,
        bounded(3.0, 2.5),
        "a linear model with LayerNorm, a gradient step a token",
    ),
    "mlp": InnerModel(
        lambda grid: MLP(),
        0.1,
        paper_init,
        bounded(3.0, 2.5, 1e-5, restore=True),
        "a two-layer MLP with LayerNorm, a gradient step a token",
    ),
    "conv": InnerModel(_conv, 1.0, conv_init, bounded(3.5, 3.5, 1e-5), "a small CNN, a gradient step a frame"),
    "swiglu": InnerModel(
        lambda grid: SwiGLU(), 1.0, swiglu_init, bounded(3.0, 3.0, 1e-5), "a SwiGLU MLP, a gradient step a frame"
    ),
    "swiglu_dot": InnerModel(lambda grid: SwiGLUDot(), 1.0, scaled_init, published_update),
}


def find(name: str) -> InnerModel:
    """The entry with this name. Raises ConfigError with the known names."""
    if name not in CATALOGUE:
        raise ConfigError(f"unknown inner model {name!r}: expected one of {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def takes_frames(memory: str) -> bool:
    """Whether the memory with this name, ttt_NAME, works on whole frames only and therefore needs a grid."""
    model = CATALOGUE.get(memory.removeprefix("ttt_")) if memory.startswith("ttt_") else None
    return model is not None and model.frame_only
