"""A gated memory after one module of a network of frames."""

from typing import Any

import torch
from torch import Tensor, nn

from tttstream import memory as memories
from tttstream.errors import ConfigError, ShapeError
from tttstream.memory.ttt import TTTLayer
from tttstream.models.inserted.layouts import Shape, reading
from tttstream.state import State

SMALLEST = 0.1  # share of the module's scale that is added to deviations, for constant channels


class Place(nn.Module):
    """x + deviation · tanh(alpha) · out(memory(into(norm((x - mean) / deviation)))), alpha = 0 at the start: x itself.

    Mean and deviation are those of each channel over the example, so the memory's input shows the differences between
    frames, and alpha has the same scale in every network.

    shape: of the module's output. name: of the module, for messages. memory, dim, heads, tokens, options: see
    `insert`.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, shape: Shape, name: str, memory: str, dim: int, heads: int, tokens: str, options: dict[str, Any]
    ) -> None:
        super().__init__()
        self.shape, self.name, self.reading = shape, name, reading(tokens)
        if "insert" in options:
            raise ConfigError("insert: the option insert is a gate of TTTLayer, and a memory here has one already")
        self.by_frame = self.reading.frames and "grid" in memories.takes(memory) and options.get("causal") != "token"
        if self.by_frame:
            height, width = options.get("grid", shape.grid)
            frame = {"causal": "frame", "grid": (height, width), "registers": shape.tokens - height * width}
            options = {**frame, **options}
        self.extra = options["registers"] if self.by_frame else 0
        self.norm = nn.LayerNorm(shape.width)
        self.into = nn.Linear(shape.width, dim)
        try:
            self.memory = memories.build(memory, dim=dim, heads=heads, **options)
        except ConfigError as error:
            frames = 'tokens="sequence" gives it whole frames' if "grid" in memories.takes(memory) else ""
            raise ConfigError(f"insert: {error}{frames and f' ({frames})'}") from error
        self.out = nn.Linear(dim, shape.width)
        self.alpha = nn.Parameter(torch.zeros(shape.width))
        self.register_buffer("mean", torch.zeros(shape.width))
        self.register_buffer("deviation", torch.ones(shape.width))
        self.tokens = shape.tokens if self.by_frame or self.reading.fixed else None

    def measure(self, output: Tensor) -> None:
        """Measure mean and deviation of each channel of the module's output, [n, …]. Raises ConfigError for numbers
        that are not finite."""
        tokens = self.shape.tokens_of(output).flatten(0, 1).double()
        size = tokens.square().mean().sqrt()
        if not bool(size.isfinite()):
            raise ConfigError(f"insert: {self.name} gives numbers that are not finite")
        size = size if size > 0 else torch.ones_like(size)
        if len(tokens) > 1:
            self.mean.copy_(tokens.mean(0))
            self.deviation.copy_(tokens.std(0) + SMALLEST * size)
        else:
            self.deviation.fill_(float(size))

    def init_state(self, batch: int) -> State:
        """A fresh state of `batch` streams."""
        return self.reading.kept(self.memory.init_state(batch * self.reading.rows(self.shape)), batch)

    def forward(
        self,
        x: Tensor,
        rows: int,
        state: State | None,
        reset: Tensor | None = None,
        lengths: Tensor | None = None,
        learn: bool = True,
    ) -> tuple[Tensor, State]:
        """The module's output [rows · T, …] plus the memory's output, and the memory's state."""
        tokens = self._tokens(x).unflatten(0, (rows, -1))
        read = self.reading.into(tokens.roll(-self.extra, 2) if self.extra else tokens)
        seen = self.into(self.norm((read - self.mean) / self.deviation))
        more: dict[str, Any] = {"learn": learn} if isinstance(self.memory, TTTLayer) else {}
        y, after = self.memory(
            seen,
            None if state is None else self.reading.state(state),
            None if reset is None else self.reading.reset(reset, tokens),
            None if lengths is None else self.reading.lengths(lengths, tokens),
            **more,
        )
        y = self.reading.back((self.deviation * self.alpha.tanh() * self.out(y)).to(x.dtype), tokens)
        y = y.roll(self.extra, 2) if self.extra else y
        return self.shape.added(x, y.flatten(0, 1)), self.reading.kept(after, rows)

    def _tokens(self, x: Tensor) -> Tensor:
        """[n, …] -> [n, N, C]. Raises ShapeError for another width, or for another number of tokens if it must be
        constant."""
        sizes = [-1] * (1 + len(self.shape.sizes))
        sizes[self.shape.axis - (self.shape.axis > 0)] = self.shape.width
        if x.dim() == len(sizes) + 1 and x.shape[self.shape.axis] == self.shape.width:
            tokens = self.shape.tokens_of(x)
            if self.tokens in (None, tokens.shape[1]):
                return tokens
        known = "any number of" if self.tokens is None else self.tokens
        raise ShapeError(
            f"{self.name} gives {list(x.shape)}, expected {len(sizes) + 1} sizes with {self.shape.width} channels and "
            f"{known} tokens, as the frames had for which the memories were inserted"
        )
