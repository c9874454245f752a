"""The public op: validates its arguments, chooses the backend, and runs an inner model over a stream of tokens."""

import math

import torch
from torch import Tensor

from tttstream_kernels import definition
from tttstream_kernels.backend import FRAMES, STEP, route
from tttstream_kernels.call import Call
from tttstream_kernels.direction import Direction
from tttstream_kernels.errors import ConfigError, ShapeError
from tttstream_kernels.factors import summed
from tttstream_kernels.frame import frame_causal
from tttstream_kernels.inner import Conv, Inner
from tttstream_kernels.precision import cast, full_precision
from tttstream_kernels.state import InnerState, Loss
from tttstream_kernels.token import one_token, token_causal
from tttstream_kernels.update import Update


def state_shapes(
    inner: Inner, rows: int, heads: int, width: int, update: Update, causal: str
) -> dict[str, tuple[int, ...]]:
    """Shape of each part of the state of `rows` rows."""
    size = inner.size(width)
    return {
        "delta": (rows, heads, size),
        "grad_sum": (rows, heads, size + update.normalised if causal == "token" else 0),
        "momentum": (rows, heads, size * (update.has_momentum + update.has_moment)),
        "phase": (rows,),
    }


def init_state(
    inner: Inner, rows: int, heads: int, width: int, update: Update, causal: str, like: Tensor
) -> InnerState:
    """A fresh state, all zeros, on the device of `like`, float64 where `like` is, else float32."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    shapes = state_shapes(inner, rows, heads, width, update, causal)
    return InnerState(**{name: torch.zeros(shape, dtype=dtype, device=like.device) for name, shape in shapes.items()})


def ttt(
    inner: Inner,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    start: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    mini_batch: int = 16,
    causal: str = "token",
    tau: Tensor | None = None,
    state: InnerState | None = None,
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
    update: Update | None = None,
    return_loss: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, InnerState, Loss | None]:
    """Run the TTT recurrence of an inner model over a stream (Sun et al., arXiv 2407.04620, section 2).

    Args:
        inner: an `Inner`: Linear(), MLP(), Conv(h, w), SwiGLU(), SwiGLUDot() …
        q, k, v: [B, T, H, D] test view, training view and label view of every token, any floating type.
        eta: [B, T, H] learning rate of every token (already divided by D); [B, T, H, 3] for SwiGLUDot.
        start: [H, P] learned initial weights, flattened layer after layer (`inner.shapes`), bias row last.
        gamma, beta: [H, D] of the layer normalisation.
        mini_batch: K tokens in token mode, N tokens of a frame in frame mode.
        causal: "token": token i of a mini-batch sees the gradients of tokens 1..i (linear, mlp). "frame": every
            token of a frame sees the weights after that frame.
        tau: [K] token scale, 1/i unless given; token mode only.
        state: what came out of the call before; None is a fresh start.
        reset: bool [B, T], token t of row b starts as if nothing came before; at frame starts in frame mode.
        lengths: [B] whole numbers, only the first tokens of a row count.
        update: forgetting, momentum and norms at mini-batch ends; None is the paper's plain step.
        return_loss: also return the inner loss of every token.
        backend: one of `BACKENDS`; "auto" is triton where it can run, else torch.

    Returns:
        outputs [B, T, H, D] in q's type (zero beyond a row's length), the new state (float32, or float64 where
        `start` is), and the Loss or None.

    Raises:
        ShapeError: a tensor does not fit the others. ConfigError: an option does not fit. BackendError: "triton" cannot
            run here.
    """
    update = Update() if update is None else update
    eta = eta[..., None] if eta.dim() == 3 else eta
    call = Call(inner, q, k, v, eta, start, gamma, beta, mini_batch, causal, tau, update)
    _check(call, reset, lengths)
    check_update(update, inner, q.shape[2])
    rows, tokens, heads, width = q.shape
    fresh = state is None  # known to be zero, so nobody need look
    if state is None:
        state = init_state(inner, rows, heads, width, update, causal, start)
    _check_state(state, state_shapes(inner, rows, heads, width, update, causal), start)
    if tau is None and causal == "token":
        tau = 1.0 / torch.arange(1, mini_batch + 1, dtype=state.delta.dtype, device=q.device)
        call = call._replace(tau=tau)
    output, dtype = q.dtype, state.delta.dtype
    state = state._replace(grad_sum=summed(state.grad_sum))
    way = route(
        backend, inner, causal, update=update, width=width, mini_batch=mini_batch, dtype=dtype, device=q.device,
        tokens=tokens,
    )  # fmt: skip
    with full_precision(q.device.type):
        if way.backend == "triton":
            from tttstream_kernels import frame_triton, token_triton  # only here: others have no use for triton

            if causal == "frame":
                y, state, loss = frame_triton.frame_causal(call, state, reset, lengths, return_loss)
            else:
                y, state, loss = token_triton.token_causal(call, state, fresh, reset, lengths, return_loss)
            return cast(output, y)[0], state, loss
        tau = None if tau is None else tau.to(dtype)
        q, k, v, eta, start, gamma, beta = cast(dtype, *call[1:8])
        call = Call(inner, q, k, v, eta, start, gamma, beta, mini_batch, causal, tau, update)
        if way.backend == "definition":
            y, state, loss = definition.ttt(
                *call[:8], mini_batch=mini_batch, causal=causal, tau=tau, state=state, reset=reset,
                lengths=lengths, update=update,
            )  # fmt: skip
            loss = loss if return_loss else None
        elif way.form == FRAMES:
            y, state, loss = frame_causal(call, state, reset, lengths, return_loss)
        elif way.form == STEP:
            y, state, loss = one_token(call, state, reset, lengths, return_loss)
        else:
            y, state, loss = token_causal(call, state, fresh, reset, lengths, return_loss)
    return cast(output, y)[0], state, loss


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if tensor.shape != shape or tensor.device != device:
        raise ShapeError(
            f"{name}: expected shape {list(shape)} on {device}, got {list(tensor.shape)} on {tensor.device}"
        )


def _check(call: Call, reset: Tensor | None, lengths: Tensor | None) -> None:
    inner, q, k, v, eta, start, gamma, beta, mini_batch, causal, tau, _ = call
    if q.dim() != 4 or not q.numel() or not q.is_floating_point():
        raise ShapeError(f"q: expected a floating tensor [B, T, H, D], none of them 0, got {q.dtype} {list(q.shape)}")
    rows, tokens, heads, width = q.shape
    for name, tensor, shape in (
        ("k", k, q.shape),
        ("v", v, q.shape),
        ("eta", eta, (rows, tokens, heads, inner.rates)),
        ("start", start, (heads, inner.size(width))),
        ("gamma", gamma, (heads, width)),
        ("beta", beta, (heads, width)),
    ):
        _expect(name, tensor, shape, q.device)
        if not tensor.is_floating_point():
            raise ShapeError(f"{name}: expected a floating type, got {tensor.dtype}")
    if reset is not None:
        _expect("reset", reset, (rows, tokens), q.device)
        if reset.dtype != torch.bool:
            raise ShapeError(f"reset: expected bool, got {reset.dtype}")
    if lengths is not None:
        _expect("lengths", lengths, (rows,), q.device)
        if lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise ShapeError(f"lengths: expected whole numbers, got {lengths.dtype}")
    if mini_batch < 1:
        raise ConfigError(f"mini_batch: expected at least 1, got {mini_batch}")
    if causal == "token":
        if not inner.token_causal:
            raise ConfigError(f'causal="token" has no dual form for the {inner.name} inner model: use causal="frame"')
        if tau is not None:
            _expect("tau", tau, (mini_batch,), q.device)
        return
    if causal != "frame":
        raise ConfigError(f'causal: expected "token" or "frame", got {causal!r}')
    if tau is not None:
        raise ConfigError("tau: frame mode weighs all tokens of a frame alike; leave it out")
    if isinstance(inner, Conv) and mini_batch < inner.height * inner.width:
        raise ShapeError(
            f"mini_batch: a grid of {inner.height} x {inner.width} tokens does not fit into frames of {mini_batch}"
        )
    check_frames(tokens, mini_batch, reset, lengths)


def check_frames(tokens: int, mini_batch: int, reset: Tensor | None, lengths: Tensor | None) -> None:
    """Raise where a call in frame mode does not consist of whole frames.

    Masks on the CPU are read. On a GPU that would wait for all that is queued, so there it is the GPU that checks: a
    mistake ends in a device-side assertion, with the same words on standard error. Inside a compiler only the number
    of tokens is looked at.
    """
    if tokens % mini_batch != 0:
        raise ShapeError(f"frame mode takes whole frames: {tokens} tokens are no multiple of {mini_batch}")
    if torch.compiler.is_compiling():
        return
    if reset is not None and mini_batch > 1:
        inside = reset.unflatten(1, (-1, mini_batch))[:, :, 1:]
        _require(~inside.any(), f"frame mode resets at frame starts only: every {mini_batch} tokens")
    if lengths is not None:
        _require(
            (lengths % mini_batch == 0).all(),
            f"frame mode takes whole frames: lengths must be multiples of {mini_batch}",
        )


def _require(met: Tensor, message: str) -> None:
    """See `check_frames`; met: one truth value."""
    if met.device.type == "cpu":
        if not met:
            raise ShapeError(message)
    else:
        torch._assert_async(met, message)


def check_update(update: Update, inner: Inner, heads: int) -> None:
    """Raise where an update does not fit an inner model of so many heads."""
    if update.columns and inner.bias:
        raise ConfigError(
            f"update.columns: the {inner.name} inner model has biases, whose columns have no norm of their own"
        )
    if update.step not in ("plain", "normalised"):
        raise ConfigError(f'update.step: expected "plain" or "normalised", got {update.step!r}')
    if update.normalised and not inner.residual:
        raise ConfigError(
            f"update.step: the loss of the {inner.name} inner model is no square, so it has no normalised step"
        )
    if update.direction is not None and not isinstance(update.direction, Direction):
        raise ConfigError(f"update.direction: expected Muon(), RMS() or None, got {update.direction!r}")
    if update.has_margin and not inner.residual:
        raise ConfigError(f"update.margin: the loss of the {inner.name} inner model is no square, so it has no margin")
    if update.restore and update.max_norm is None:
        raise ConfigError("update.restore puts the norm back to update.max_norm: give both")
    for name, most in (("forget", 1.0), ("momentum", 1.0), ("margin", None), ("max_norm", None)):
        value = getattr(update, name)
        if isinstance(value, Tensor):
            if value.shape != (heads,):
                raise ShapeError(f"update.{name}: expected a number or a tensor [{heads}], got {list(value.shape)}")
        elif name == "max_norm":
            if value is not None and not value > 0.0:
                raise ConfigError(f"update.{name}: expected more than 0, got {value}")
        elif not 0.0 <= value <= (math.inf if most is None else most):
            raise ConfigError(f"update.{name}: expected {'at least 0' if most is None else '0 to 1'}, got {value}")


def _check_state(state: InnerState, shapes: dict[str, tuple[int, ...]], start: Tensor) -> None:
    dtype = torch.float64 if start.dtype == torch.float64 else torch.float32
    for (name, shape), part in zip(shapes.items(), state, strict=True):
        if part.shape != shape or part.dtype != dtype:
            raise ShapeError(f"state.{name}: expected {dtype} {list(shape)}, got {part.dtype} {list(part.shape)}")
