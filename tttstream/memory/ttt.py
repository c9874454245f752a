"""TTTLayer: a memory whose state is the weights of a small model that takes a gradient step on every token."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream import inner as catalogue
from tttstream.errors import ConfigError
from tttstream.memory.base import Memory
from tttstream.memory.matrix import check_heads
from tttstream.memory.positions import Constant, Rotary, ShortConv, positions
from tttstream.memory.step import step, suits, traced
from tttstream.memory.tasks import Task, make_task
from tttstream.state import State
from tttstream_kernels import EPS, InnerState, Loss, Update, read, ttt
from tttstream_kernels.ops import check_frames, check_update, state_shapes
from tttstream_kernels.precision import cast


class _TTTFields(NamedTuple):
    delta: Tensor
    grad_sum: Tensor
    momentum: Tensor
    phase: Tensor
    window: Tensor


class TTTState(State, _TTTFields):
    """The state of a TTT memory for each row. delta: [B, H, P] the inner weights' difference from their learned start,
    at the last mini-batch end. grad_sum: [B, H, P] gradient sums of the unfinished mini-batch ([B, H, 0] in frame
    mode). momentum: [B, H, P], or [B, H, 0] without momentum. phase: [B] tokens in the unfinished mini-batch. window:
    [B, n, dim] the width - 1 last tokens that the short convolution still sees (none without one), then those that the
    inner task keeps (none by default).
    """

    __slots__ = ()


class TTTLayer(Memory):
    """Test-time-training layer (Sun et al., arXiv 2407.04620, sections 2.1 to 2.7), streaming and resettable.

    Every token x becomes a training view k, a label view v and a test view q; the inner model f(x; W) = x + LN(g(x; W))
    learns to map k to v by one gradient step with the token's own learning rate
    eta = base_lr * sigmoid(x . w_h + c_h) / D, and the output is f(q; W) with the weights just learned.

    Args:
        dim: width of the tokens. heads: inner models side by side, each D = dim / heads wide.
        inner: a name of `tttstream.inner.CATALOGUE`: linear, mlp, conv, swiglu, swiglu_dot.
        mini_batch: K, tokens whose gradients are taken at the same weights (token mode).
        causal: "token", or "frame": a frame of h * w (+ registers) tokens is learned, then read.
        grid: (h, w), the tokens of a frame (frame mode).
        registers: tokens of a frame beyond the grid, after it.
        rotary: rotate q and k by the position in the mini-batch (token mode).
        conv: width of causal convolutions on a projection that q and k share; 0 for separate projections and none.
        gate: multiply the output by gelu of a projection of x.
        unit_qk: scale every q and k to length 1 before the inner model.
        task: what the inner model learns: a name of `tttstream.memory.tasks.TASKS` (reconstruction, denoising, masking,
            next), or a function that makes a `Task`.
        insert: start of the learned branch weight, y = tanh(alpha) * TTT(x), small (0 to 0.1) for a layer that is put
            into a pretrained network; None for no such weight.
        base_lr, update: the inner optimiser, from `tttstream.inner` unless given; `Update()` is the paper's. What is an
            nn.Parameter [heads] in it (forget, momentum, max_norm, margin) is learned with the layer.
        backend: "auto", "definition", "torch" or "triton", see `tttstream_kernels.ttt`.

    Called as (x [B, T, dim], state, reset [B, T], lengths [B]) -> (y [B, T, dim], state), see `Memory`; with
    `return_loss=True` a third result holds loss.before and loss.after [B, H, T]; with `learn=False` the memory is read
    but neither learns nor forgets.
    """

    state_type = TTTState

    def __init__(
        self,
        dim: int,
        heads: int,
        inner: str = "linear",
        mini_batch: int = 16,
        causal: Literal["token", "frame"] = "token",
        grid: tuple[int, int] | None = None,
        *,
        registers: int = 0,
        rotary: bool = True,
        conv: int = 0,
        gate: bool = False,
        unit_qk: bool = False,
        task: str | Callable[..., Task] = "reconstruction",
        insert: float | None = None,
        base_lr: float | None = None,
        update: Update | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        entry = catalogue.find(inner)
        _check_options(dim, heads, inner, mini_batch, causal, grid, registers, conv, entry.frame_only)
        if rotary and causal == "token" and dim // heads % 2:
            raise ConfigError(
                f"TTTLayer: rotary positions turn pairs, but a head is dim / heads = {dim // heads} wide: "
                "choose an even width or rotary=False"
            )
        self.dim, self.heads, self.width = dim, heads, dim // heads
        self.causal, self.backend, self.unit_qk = causal, backend, unit_qk
        self.inner = entry.make(grid)
        self.tokens = mini_batch if grid is None or causal == "token" else grid[0] * grid[1] + registers
        self.base_lr = entry.base_lr if base_lr is None else base_lr
        self.task = make_task(task, self.tokens, heads, self.width, 1 if causal == "token" else self.tokens)
        self._update = entry.update(self.base_lr, self.width, self.tokens, causal) if update is None else update
        check_update(self._update, self.inner, heads)
        self._numbers = [
            name
            for name in ("forget", "momentum", "max_norm", "margin")
            if isinstance(getattr(self._update, name), Tensor)
        ]
        for name in self._numbers:
            number = getattr(self._update, name)
            if isinstance(number, nn.Parameter):
                self.register_parameter(name, number)
            else:
                self.register_buffer(name, number)

        self.project = nn.Linear(dim, (2 if conv else 3) * dim, bias=False)
        self.rate = nn.Linear(dim, heads * self.inner.rates)
        self.out = nn.Linear(dim, dim, bias=False)
        self.gate = nn.Linear(dim, dim, bias=False) if gate else None
        for linear in (self.project, self.out, self.gate):
            if linear is not None:
                nn.init.normal_(linear.weight, std=dim**-0.5)
        nn.init.normal_(self.rate.weight, std=0.02)
        nn.init.zeros_(self.rate.bias)
        self.conv = ShortConv(dim, conv) if conv else None
        self.rotary = Rotary(self.width, mini_batch) if rotary and causal == "token" else None
        self.start = nn.Parameter(entry.init(self.inner, heads, self.width))
        normed = self.inner.residual  # the dot-product loss knows no normalisation
        self.gamma = nn.Parameter(torch.ones(heads, self.width), requires_grad=normed)
        self.beta = nn.Parameter(torch.zeros(heads, self.width), requires_grad=normed)
        self.scale = nn.Parameter(torch.zeros(mini_batch)) if causal == "token" else None
        self.ramp = Constant(1.0 / torch.arange(1, mini_batch + 1, dtype=torch.float64, device="cpu"))
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.alpha = nn.Parameter(torch.full((dim,), float(insert))) if insert is not None else None
        self.one_by_one = suits(self)
        self.window = self.task.kept + (self.conv.taps - 1 if self.conv is not None else 0)
        self._shapes: dict[int, tuple[tuple[int, ...], ...]] = {}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Weights saved before `max_norm` had its name have it as `longest`. With assign=True,
        weights on the device "meta" get values and a device, and the constants move to that device."""
        if f"{prefix}longest" in state_dict:
            state_dict[f"{prefix}max_norm"] = state_dict.pop(f"{prefix}longest")
        super()._load_from_state_dict(state_dict, prefix, *rest)
        for module in self.modules():
            if isinstance(module, Constant) and module.value.is_meta and not self.start.is_meta:
                module.to_empty(device=self.start.device)

    def extra_repr(self) -> str:
        """Shown by print(layer)."""
        return (
            f"dim={self.dim}, heads={self.heads}, inner={self.inner.name}, causal={self.causal}, tokens={self.tokens}"
        )

    @property
    def views(self) -> nn.Linear | None:
        """See `Memory`. A convolution makes q and k of one shared projection."""
        return self.project if self.conv is None else None

    @property
    def update(self) -> Update:
        """The inner optimiser, its tensors as they stand."""
        return self._update._replace(**{name: getattr(self, name) for name in self._numbers})

    @property
    def state_dtype(self) -> torch.dtype:
        """See `Memory`; asked for at every step, so not by way of all parameters."""
        return torch.float64 if self.start.dtype == torch.float64 else torch.float32

    def state_shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parts of a state of `batch` rows."""
        if batch not in self._shapes:
            self._shapes = {batch: tuple((batch, *size) for size in self._sizes)}
        return self._shapes[batch]

    def init_state(self, batch: int) -> TTTState:
        """A fresh state of `batch` rows, all zeros."""
        shapes = state_shapes(self.inner, batch, self.heads, self.width, self.update, self.causal)
        return TTTState(
            **{name: self.zeros(*shape) for name, shape in shapes.items()},
            window=self.zeros(batch, self.window, self.dim),
        )

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.state_dtype, device=self.start.device)

    def tau(self) -> Tensor | None:
        """Token scale [K]: max(0, 1/i + delta_i), delta learned; None in frame mode."""
        if self.scale is None:
            return None
        return (self.ramp.value + self.scale).clamp(min=0.0)

    def forward(
        self,
        x: Tensor,
        state: TTTState | None = None,
        reset: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        return_loss: bool = False,
        learn: bool = True,
    ) -> Any:
        if learn and not return_loss and lengths is None:
            stepped = traced(self, x, state, reset) if torch.compiler.is_compiling() else step(self, x, state, reset)
            if stepped is not None:
                return stepped
        old: InnerState | None = None
        if state is None and learn:  # the op makes what is left out
            self.check_tokens(x, reset, lengths)
            window, phase = self.zeros(len(x), self.window, self.dim), self.zeros(len(x))
        else:
            checked: TTTState = self.check(x, state, reset, lengths)
            old, window, phase = InnerState(*tuple(checked)[:4]), checked.window, checked.phase
        inside = None
        if lengths is not None:
            inside = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
            x = torch.where(inside, x, 0.0)
        place = None if state is None and reset is None else phase
        q, k, v, learned, window = self._views(x, window, place, reset, lengths)
        tau = self.tau()
        loss: Loss | None
        if learn:
            rate = self.rate(x).to(self.state_dtype).sigmoid() * (self.base_lr / self.width)
            rate = rate.view(*x.shape[:2], self.heads, -1)
            if learned is not None:
                rate = torch.where(learned[..., None, None], rate, 0.0)
            update = self.update if self._numbers else self._update
            z, inner, loss = ttt(
                self.inner, q, k, v, rate, self.start, self.gamma, self.beta, mini_batch=self.tokens,
                causal=self.causal, tau=tau, state=old, reset=reset, lengths=lengths, update=update,
                return_loss=return_loss, backend=self.backend,
            )  # fmt: skip
            state = TTTState(*inner, window)
        else:
            assert old is not None
            if self.causal == "frame":
                check_frames(x.shape[1], self.tokens, reset, lengths)
            z, loss = read(
                self.inner, q, k, v, self.start, self.gamma, self.beta, state=old,
                mini_batch=self.tokens, causal=self.causal, tau=tau, reset=reset, update=self.update,
            )  # fmt: skip
            state = self._forgotten(checked, reset, lengths)
        y = self._output(x, z.flatten(2))
        if inside is not None:
            y = torch.where(inside, y, 0.0)
        return (y, state, Loss(loss.before.mT, loss.after.mT)) if return_loss and loss is not None else (y, state)

    def read(self, x: Tensor, state: Any = None) -> Tensor:
        """See `Memory.read`; nothing is learned. Convolutions and rotary positions take the tokens as successive ones,
        so x has whole frames in frame mode."""
        y: Tensor = self(x, state, learn=False)[0]
        return y

    @staticmethod
    def _forgotten(state: TTTState, reset: Tensor | None, lengths: Tensor | None) -> TTTState:
        """The state of a memory that did not learn: as it was, fresh in the rows that were reset."""
        if reset is None:
            return state
        if lengths is not None:
            reset = reset & (torch.arange(reset.shape[1], device=reset.device) < lengths[:, None])
        return state.map(torch.zeros_like).where(reset.any(1), state)

    def _views(
        self, x: Tensor, window: Tensor, phase: Tensor | None, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """q, k, v [B, T, H, D] in the type that the projection computes in, which tokens are learned (see `Task`), and
        the next window. window, phase: those of the state; no phase where every row is known to begin a mini-batch."""
        window, kept = window.tensor_split([window.shape[1] - self.task.kept], dim=1)
        projected = self.project(x)
        if self.conv is not None:
            shared, v = projected.chunk(2, dim=-1)
            q, k, window = self.conv(shared, window, reset, lengths)
            projected = torch.cat([q, k, v], dim=-1)
        qk, v = projected.view(*x.shape[:2], 3, self.heads, self.width).split((2, 1), dim=2)
        placed = qk.to(self.state_dtype)
        if self.unit_qk:
            placed = F.normalize(placed, dim=-1)
        place = None if phase is None else positions(phase, x.shape[1], self.tokens, reset)
        learned = None
        if not self.task.plain:
            q, k = placed.unbind(2)
            at = place
            if at is None or self.causal == "frame":
                at = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2]) % self.tokens
            k, learned, kept = self.task(k, at, kept, reset, lengths)
            placed, window = torch.stack([q, k], dim=2), torch.cat([window, kept], dim=1)
        if self.rotary is not None:
            placed = self.rotary(placed, place)
        q, k = cast(v.dtype, *placed.unbind(2))
        return q, k, v.squeeze(2), learned, window

    def _output(self, x: Tensor, z: Tensor) -> Tensor:
        """From the heads' outputs side by side [B, T, dim] to y."""
        y = self.norm(z.to(self.norm.weight.dtype))
        if self.gate is not None:
            y = F.gelu(self.gate(x), approximate="tanh") * y
        y = self.out(y)
        return y if self.alpha is None else self.alpha.tanh().to(y.dtype) * y


def _check_options(
    dim: int,
    heads: int,
    inner: str,
    mini_batch: int,
    causal: str,
    grid: tuple[int, int] | None,
    registers: int,
    conv: int,
    frame_only: bool,
) -> None:
    check_heads("TTTLayer", dim, heads, conv)
    if causal not in ("token", "frame"):
        raise ConfigError(f'TTTLayer: expected causal="token" or "frame", got {causal!r}')
    if causal == "token":
        if frame_only:
            raise ConfigError(f'TTTLayer: inner={inner!r} works on whole frames: use causal="frame" with grid=(h, w)')
        if mini_batch < 1:
            raise ConfigError(f"TTTLayer: mini_batch must be at least 1, got {mini_batch}")
        if grid is not None or registers:
            raise ConfigError(
                f'TTTLayer: grid and registers are for causal="frame", got causal="token" with grid={grid}, '
                f"registers={registers}"
            )
        return
    if grid is None or len(grid) != 2 or min(grid) < 1 or registers < 0:
        raise ConfigError(
            f'TTTLayer: causal="frame" needs grid=(h, w), both at least 1, and registers >= 0; '
            f"got grid={grid}, registers={registers}"
        )
    if conv:
        raise ConfigError("TTTLayer: a causal convolution runs from token to token; frame mode has no such order")
