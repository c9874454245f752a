"""Frame mode on Triton: the ops `tttstream::frame` and `tttstream::frame_backward` around the kernels.

One launch runs all frames of a call, one its backward pass, and no value is read on the host: resets and lengths are
masks that the kernels read, so that one frame is a step that runs in a CUDA graph. A program is a cell and walks its
frames; README, "Kernels of frame mode", says why, and what the kernels compute.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from tttstream_kernels.backend import SHARED
from tttstream_kernels.call import Call
from tttstream_kernels.frame_kernels_triton import (
    MODELS,
    Gradients,
    Learned,
    Results,
    Room,
    Upstream,
    backward,
    forward,
)
from tttstream_kernels.inner import Conv
from tttstream_kernels.launch_triton import launch, operator, shared_memory
from tttstream_kernels.precision import cast
from tttstream_kernels.state import InnerState, Loss
from tttstream_kernels.token_parts_triton import Streams, numerics

SCRATCH = {"linear": (0, 0), "mlp": (1, 2), "conv": (0, 2)}
"""Frames of float32 tokens that a cell needs for itself, forward and backward."""


def frame_causal(
    call: Call, state: InnerState, reset: Tensor | None, lengths: Tensor | None, return_loss: bool
) -> tuple[Tensor, InnerState, Loss | None]:
    """`frame.frame_causal` where `triton_unavailable` gives no reason; q, k, v as they come."""
    start, gamma, beta = (x.contiguous() for x in cast(torch.float32, call.start, call.gamma, call.beta))
    dtype = torch.promote_types(torch.promote_types(call.q.dtype, call.k.dtype), call.v.dtype)
    q, k, v = cast(torch.float32 if dtype == torch.float64 else dtype, call.q, call.k, call.v)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    eta = call.eta[..., 0].to(torch.float32).contiguous()
    update = call.update
    forget = None if isinstance(update.forget, float | int) and update.forget == 0 else _heads(update.forget, start)
    max_norm = None if update.max_norm is None else _heads(update.max_norm, start)
    height, width = (call.inner.height, call.inner.width) if isinstance(call.inner, Conv) else (0, 0)
    lengths, reset = (None if mask is None else mask.contiguous() for mask in (lengths, reset))
    frames = Frames(
        call.inner.name, q, k, v, eta, start, gamma, beta, forget, max_norm, lengths, reset, height, width, call.tokens,
        update.restore,
    )  # fmt: skip
    before = state.delta.contiguous()
    wanted = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in (*frames, before))
    group = group_of(q.shape[1] // call.tokens) if wanted else 0
    y, delta, phase, *losses, _ = frame(*frames, before, state.phase.contiguous(), return_loss, group)
    new = InnerState(delta, state.grad_sum, state.momentum, phase.detach())
    return y, new, Loss(*losses) if return_loss else None


def group_of(frames: int) -> int:
    """Frames between two checkpoints: the root of all, which makes the checkpoints and the scratch of the backward
    pass together smallest: both grow as the root of the frames."""
    return max(1, math.isqrt(frames))


def _heads(value: float | Tensor, start: Tensor) -> Tensor:
    """A number of the update for every head, [H]."""
    if isinstance(value, Tensor):
        return value.to(torch.float32).contiguous()
    return torch.full(start.shape[:1], value, dtype=torch.float32, device=start.device)


def launch_options(
    inner: str, way: str, size: int, tokens: int, dtype: torch.dtype, shared: int = SHARED
) -> dict[str, int]:
    """Tokens of a tile, hidden units of a chunk and warps of a program, for heads of this size and frames of so many
    tokens: as large as registers allow, of which bfloat16 leaves more than tf32 (kernels/bench/frame_registers.py).
    The forward pass of the MLP has larger tiles, because it fetches the weights for each of them; its backward pass in
    tf32 has smaller ones where programs can share fewer bytes than on GPUs for data centres."""
    roomy = size <= 64 and dtype == torch.bfloat16
    if way == "forward":
        most = 64 if inner == "mlp" and roomy else 32
        warps = 4 if size < 64 or (roomy and inner != "mlp") else 8
    else:
        most = 32 if roomy or size < 64 else 16
        warps = 4 if size < 64 else 8
    options = {"TILE": min(most, max(16, triton.next_power_of_2(tokens))), "num_warps": warps, "num_stages": 1}
    if inner == "mlp":
        options["CHUNK"] = 64 if roomy or size < 64 else 32
        if way == "backward" and shared < SHARED and dtype != torch.bfloat16:
            options |= {"TILE": 16, "CHUNK": options["CHUNK"] // 2}
    return options


def constants(
    inner: str, way: str, width: int, tokens: int, picture: tuple[int, int], dtype: torch.dtype, shared: int = SHARED
) -> dict[str, Any]:
    """Constants at compile time that do not depend on the outputs wanted. width: of a head; picture: of conv."""
    last = {"linear": 0, "mlp": 4 * width * (width + 1), "conv": 10 * width}[inner]
    rows = 4 * width if inner == "mlp" else width
    options = launch_options(inner, way, width, tokens, dtype, shared)
    options = {"CHUNK": 0, "HEIGHT": picture[0], "WIDE": picture[1], **options}
    return {"D": width, "P": last + width * rows + width, "LAST": last, **options, **numerics(dtype)}


class Frames(NamedTuple):
    """Arguments of both ops: the inner model; q, k, v [B, T, H, D] of one type, any strides with the last 1; eta [B, T,
    H], start [H, P], gamma, beta [H, D], forget, max_norm [H], float32 and contiguous; lengths [B] and reset [B, T],
    contiguous; height, width: of conv's picture; tokens: of a frame; restore: as in `Update`."""

    inner: str
    q: Tensor
    k: Tensor
    v: Tensor
    eta: Tensor
    start: Tensor
    gamma: Tensor
    beta: Tensor
    forget: Tensor | None
    max_norm: Tensor | None
    lengths: Tensor | None
    reset: Tensor | None
    height: int
    width: int
    tokens: int
    restore: bool

    def launch(self, kernel: Any, way: str, group: int, kept: int, *arguments: Any, **options: Any) -> None:
        """Launch a kernel on these frames. group, kept: frames between checkpoints, and how many checkpoints."""
        rows, length, heads, size = self.q.shape
        picture, shared = (self.height, self.width), shared_memory(self.q.device)
        launch(
            kernel, rows * heads, self.q, MODELS[self.inner], Streams(self.q, self.k, self.v),
            Learned(self.start, self.gamma, self.beta, self.forget, self.max_norm), *arguments,
            self.reset, self.lengths,
            heads, length, self.tokens, group, kept, *(x.stride()[:3] for x in (self.q, self.k, self.v)),
            **constants(self.inner, way, size, self.tokens, picture, self.q.dtype, shared),
            RESTORE=self.restore, **options,
        )  # fmt: skip


class Begin(NamedTuple):
    """Further arguments of the forward pass: delta [B, H, P] and phase [B], contiguous; losses: whether they are
    wanted; group: frames between checkpoints, 0: none."""

    delta: Tensor
    phase: Tensor
    losses: bool
    group: int


class End(NamedTuple):
    """Further arguments of the backward pass: group, the checkpoints, and gradients of the forward pass's outputs;
    those of the losses are both there or both None."""

    group: int
    checkpoints: Tensor
    d_y: Tensor
    d_delta: Tensor
    d_before: Tensor | None
    d_after: Tensor | None


def _forward(frames: Frames, given: Begin) -> tuple[Tensor, ...]:
    results = _results(frames, given)
    checkpoints = results[-1]
    rows, _, heads, size = frames.q.shape
    scratch = given.delta.new_empty(rows * heads, SCRATCH[frames.inner][0], frames.tokens, size)
    frames.launch(
        forward, "forward", max(1, given.group), checkpoints.shape[2],
        Results._make((*results, scratch)), given.delta, frames.eta, given.phase,
        LOSS=given.losses, KEEP=given.group > 0,
    )  # fmt: skip
    return results


def _results(frames: Frames, given: Begin) -> tuple[Tensor, ...]:
    """Room for outputs [B, T, H, D], delta [B, H, P], phase [B], loss before and after [B, T, H] (without elements
    where they are not wanted) and checkpoints [B, H, groups, P]; the kernel fills all of it."""
    (rows, length, heads, _), delta = frames.q.shape, given.delta
    kept = -(-(length // frames.tokens) // given.group) if given.group else 0
    return (
        torch.empty(frames.q.shape, dtype=frames.q.dtype, device=frames.q.device),
        delta.new_empty(delta.shape),
        given.phase.new_empty(given.phase.shape),
        *(delta.new_empty(rows, length if given.losses else 0, heads) for _ in range(2)),
        delta.new_empty(rows, heads, kept, delta.shape[2]),
    )


def _backward(frames: Frames, given: End) -> tuple[Tensor, ...]:
    (rows, _, heads, size), kept, group = frames.q.shape, given.checkpoints, given.group
    tokens, cells = _gradients(frames, given)
    slots = kept.new_empty(rows, heads, group + 1, kept.shape[3])
    scratch = kept.new_empty(rows * heads, SCRATCH[frames.inner][1], frames.tokens, size)
    none = kept.new_empty(0)
    losses = [none if x is None else x for x in (given.d_before, given.d_after)]
    frames.launch(
        backward, "backward", group, kept.shape[2],
        Upstream(given.d_y, given.d_delta, *losses), Gradients(*tokens, *cells),
        Room(kept, slots, slots.new_empty(rows, heads, group), scratch), frames.eta, LOSS=given.d_before is not None,
    )  # fmt: skip
    return _summed(frames, tokens, cells)


def _gradients(frames: Frames, given: End) -> tuple[list[Tensor], list[Tensor]]:
    """Room for the gradients: of q, k, v, in float32 where kernels add to what they stored, and eta; and cell by cell
    of start, gamma, beta, delta, forget and max_norm."""
    rows, _, heads, size = frames.q.shape
    dtype = torch.float32 if given.d_before is not None or frames.inner != "linear" else frames.q.dtype
    streams = [torch.empty(frames.q.shape, dtype=dtype, device=frames.q.device) for _ in range(3)]
    weights = given.checkpoints.shape[3]
    sizes: list[tuple[int, ...]] = [(heads, weights), (heads, size), (heads, size), (heads, weights)]
    sizes += [(0,) if number is None else (heads,) for number in (frames.forget, frames.max_norm)]
    return [*streams, torch.empty_like(frames.eta)], [given.checkpoints.new_empty(rows, *shape) for shape in sizes]


def _summed(frames: Frames, tokens: list[Tensor], cells: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, eta, start, gamma, beta, delta, forget and max_norm (without elements where there is none):
    what heads have of their own is summed over rows."""
    *streams, d_eta = tokens
    d_start, d_gamma, d_beta, d_delta, *numbers = cells
    summed = (x.sum(0) for x in (d_start, d_gamma, d_beta))
    return (*(x.to(frames.q.dtype) for x in streams), d_eta, *summed, d_delta, *(x.sum(0) for x in numbers))


frame = operator("tttstream::frame", (Frames, Begin), 6, _forward, _results)
frame_backward = operator(
    "tttstream::frame_backward", (Frames, End), 10, _backward, lambda *given: _summed(given[0], *_gradients(*given))
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    frames, (_, _, ctx.losses, ctx.group) = inputs[: len(Frames._fields)], inputs[len(Frames._fields) :]
    ctx.others = [None if isinstance(x, Tensor) else x for x in frames]
    y, delta, _, before, _, checkpoints = output
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in frames), checkpoints)
    ctx.shapes = y.shape, delta.shape, before.shape


def _autograd(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, checkpoints = ctx.saved_tensors
    frames = Frames(*(other if x is None else x for x, other in zip(tensors, ctx.others, strict=True)))
    d_y, d_delta, _, d_before, d_after, _ = gradients
    losses = ctx.losses and not (d_before is None and d_after is None)

    def filled(g: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return checkpoints.new_zeros(shape, dtype=dtype) if g is None else g.contiguous()

    of_y, of_delta, of_losses = ctx.shapes
    *found, d_delta, d_forget, d_max_norm = frame_backward(
        *frames, ctx.group, checkpoints,
        filled(d_y, of_y, frames.q.dtype), filled(d_delta, of_delta, torch.float32),
        *(filled(g, of_losses, torch.float32) if losses else None for g in (d_before, d_after)),
    )  # fmt: skip
    numbers = (None if x is None else g for x, g in ((frames.forget, d_forget), (frames.max_norm, d_max_norm)))
    return None, *found, *numbers, *[None] * 6, d_delta, *[None] * 3


frame.register_autograd(_autograd, setup_context=_save)
