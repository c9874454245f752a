"""Frame mode on Triton: the ops `tttstream::frame` and `tttstream::frame_backward` around the kernels.

One launch runs all frames of a call, one its backward pass, and no value is read on the host: resets and lengths are
masks that the kernels read, so that one frame is a step that runs in a CUDA graph. A program is a cell and walks its
frames; README, "Kernels of frame mode", says why, and what the kernels compute.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from tttstream_kernels import (
    conv_backward_triton,
    conv_triton,
    linear_frame_backward_triton,
    linear_frame_triton,
    mlp_frame_backward_triton,
    mlp_frame_triton,
)
from tttstream_kernels.backend import SHARED
from tttstream_kernels.call import Call
from tttstream_kernels.inner import Conv
from tttstream_kernels.launch_triton import launch, shared_memory
from tttstream_kernels.precision import cast
from tttstream_kernels.state import InnerState, Loss
from tttstream_kernels.token_parts_triton import numerics

KERNELS: dict[tuple[str, str], Any] = {
    ("linear", "forward"): linear_frame_triton.forward,
    ("linear", "backward"): linear_frame_backward_triton.backward,
    ("mlp", "forward"): mlp_frame_triton.forward,
    ("mlp", "backward"): mlp_frame_backward_triton.backward,
    ("conv", "forward"): conv_triton.forward,
    ("conv", "backward"): conv_backward_triton.backward,
}
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
    longest = None if update.max_norm is None else _heads(update.max_norm, start)
    height, width = (call.inner.height, call.inner.width) if isinstance(call.inner, Conv) else (0, 0)
    lengths, reset = (None if mask is None else mask.contiguous() for mask in (lengths, reset))
    learned = (q, k, v, eta, start, gamma, beta, state.delta.contiguous(), forget, longest)
    wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in learned)
    y, delta, phase, before, after, _ = frame(
        call.inner.name, *learned, state.phase.contiguous(), lengths, reset, height, width, call.tokens, update.restore,
        return_loss, group_of(q.shape[1] // call.tokens) if wanted else 0,
    )  # fmt: skip
    new = InnerState(delta, state.grad_sum, state.momentum, phase.detach())
    return y, new, Loss(before, after) if return_loss else None


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


def _constants(inner: str, way: str, q: Tensor, tokens: int, height: int, width: int) -> dict[str, Any]:
    picture = {"HEIGHT": height, "WIDE": width} if inner == "conv" else {}
    options = launch_options(inner, way, q.shape[3], tokens, q.dtype, shared_memory(q.device))
    return {"D": q.shape[3], **options, **picture, **numerics(q.dtype)}


@torch.library.custom_op("tttstream::frame", mutates_args=())
def frame(
    inner: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    start: Tensor,
    gamma: Tensor,
    beta: Tensor,
    delta: Tensor,
    forget: Tensor | None,
    longest: Tensor | None,
    phase: Tensor,
    lengths: Tensor | None,
    reset: Tensor | None,
    height: int,
    width: int,
    tokens: int,
    restore: bool,
    losses: bool,
    group: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(outputs [B, T, H, D], delta [B, H, P], phase [B], loss before, loss after [B, T, H], checkpoints).

    q, k, v [B, T, H, D] of one type, any strides with the last 1; eta [B, T, H], start [H, P], gamma, beta [H, D],
    delta [B, H, P], forget, longest [H] float32 and contiguous, as are phase, lengths [B] and reset [B, T]; height,
    width: of conv's picture; tokens: of a frame; losses: else they are empty; group: frames between checkpoints, 0:
    none.
    """
    rows, length, heads, _ = q.shape
    room = _outputs(q, delta, phase, tokens, losses, group)
    y, new_delta, new_phase, before, after, checkpoints = room
    scratch = delta.new_empty(rows * heads, SCRATCH[inner][0], tokens, q.shape[3])
    launch(
        KERNELS[inner, "forward"], rows * heads,
        q, k, v, eta, start, gamma, beta, delta, phase, forget, longest, reset, lengths,
        y, new_delta, new_phase, before, after, checkpoints, scratch,
        heads, length, tokens, max(1, group), checkpoints.shape[2], *(x.stride()[:3] for x in (q, k, v)),
        **_constants(inner, "forward", q, tokens, height, width), LOSS=losses, KEEP=group > 0, RESTORE=restore,
    )  # fmt: skip
    return room


def _outputs(
    q: Tensor, delta: Tensor, phase: Tensor, tokens: int, losses: bool, group: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for what `frame` returns; the kernels fill all of it."""
    rows, length, heads, _ = q.shape
    kept = -(-(length // tokens) // group) if group else 0
    return (
        torch.empty(q.shape, dtype=q.dtype, device=q.device),
        delta.new_empty(delta.shape),
        phase.new_empty(phase.shape),
        delta.new_empty(rows, length if losses else 0, heads),
        delta.new_empty(rows, length if losses else 0, heads),
        delta.new_empty(rows, heads, kept, delta.shape[2]),
    )


@frame.register_fake
def _(
    inner: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    start: Tensor,
    gamma: Tensor,
    beta: Tensor,
    delta: Tensor,
    forget: Tensor | None,
    longest: Tensor | None,
    phase: Tensor,
    lengths: Tensor | None,
    reset: Tensor | None,
    height: int,
    width: int,
    tokens: int,
    restore: bool,
    losses: bool,
    group: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _outputs(q, delta, phase, tokens, losses, group)


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("tttstream::frame_backward", mutates_args=())
def frame_backward(
    inner: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    start: Tensor,
    gamma: Tensor,
    beta: Tensor,
    forget: Tensor | None,
    longest: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    height: int,
    width: int,
    tokens: int,
    restore: bool,
    group: int,
    checkpoints: Tensor,
    d_y: Tensor,
    d_delta_end: Tensor,
    d_before: Tensor | None,
    d_after: Tensor | None,
) -> Gradients:
    """Gradients with respect to q, k, v, eta, start, gamma, beta, delta, forget and longest (without elements where
    there is none) from those of what `frame` gave; those of the losses are both there or both None."""
    rows, length, heads, size = q.shape
    streams, cells = _gradients(inner, q, eta, checkpoints, forget, longest, d_before is not None)
    slots = checkpoints.new_empty(rows, heads, group + 1, checkpoints.shape[3])
    scratch = checkpoints.new_empty(rows * heads, SCRATCH[inner][1], tokens, size)
    launch(
        KERNELS[inner, "backward"], rows * heads,
        q, k, v, eta, start, gamma, beta, forget, longest, reset, lengths, checkpoints,
        d_y, d_delta_end, d_before, d_after, *streams, *cells, slots, slots.new_empty(rows, heads, group), scratch,
        heads, length, tokens, group, checkpoints.shape[2], *(x.stride()[:3] for x in (q, k, v)),
        **_constants(inner, "backward", q, tokens, height, width), LOSS=d_before is not None, RESTORE=restore,
    )  # fmt: skip
    *d_tokens, d_eta = streams
    d_start, d_gamma, d_beta, d_delta, d_forget, d_longest = cells
    d_q, d_k, d_v = cast(q.dtype, *d_tokens)
    return (
        d_q, d_k, d_v, d_eta, d_start.sum(0), d_gamma.sum(0), d_beta.sum(0), d_delta, d_forget.sum(0), d_longest.sum(0),
    )  # fmt: skip


def _gradients(
    inner: str,
    q: Tensor,
    eta: Tensor,
    checkpoints: Tensor,
    forget: Tensor | None,
    longest: Tensor | None,
    losses: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Room for the gradients: of q, k, v, in float32 where kernels add to what they stored, and eta; and cell by cell
    of start, gamma, beta, delta, forget and longest."""
    rows, _, heads, size = q.shape
    dtype = torch.float32 if losses or inner != "linear" else q.dtype
    streams = [torch.empty(q.shape, dtype=dtype, device=q.device) for _ in range(3)]
    weights = checkpoints.shape[3]
    sizes: list[tuple[int, ...]] = [(heads, weights), (heads, size), (heads, size), (heads, weights)]
    sizes += [(0,) if number is None else (heads,) for number in (forget, longest)]
    return [*streams, torch.empty_like(eta)], [checkpoints.new_empty(rows, *shape) for shape in sizes]


@frame_backward.register_fake
def _(
    inner: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    start: Tensor,
    gamma: Tensor,
    beta: Tensor,
    forget: Tensor | None,
    longest: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    height: int,
    width: int,
    tokens: int,
    restore: bool,
    group: int,
    checkpoints: Tensor,
    d_y: Tensor,
    d_delta_end: Tensor,
    d_before: Tensor | None,
    d_after: Tensor | None,
) -> Gradients:
    streams, cells = _gradients(inner, q, eta, checkpoints, forget, longest, d_before is not None)
    *d_tokens, d_eta = streams
    d_start, d_gamma, d_beta, d_delta, d_forget, d_longest = cells
    d_q, d_k, d_v = (x.to(q.dtype) for x in d_tokens)
    return d_q, d_k, d_v, d_eta, d_start[0], d_gamma[0], d_beta[0], d_delta, d_forget[0], d_longest[0]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    inner, *tensors = inputs[:14]
    ctx.arguments = inner, inputs[14:]
    del tensors[10], tensors[7]  # phase, and delta: the checkpoints say where the weights stood
    y, delta, _, before, _, checkpoints = output
    ctx.save_for_backward(*tensors, checkpoints)
    ctx.shapes = y.shape, delta.shape, before.shape


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    inner, (*options, losses, group) = ctx.arguments
    *inputs, checkpoints = ctx.saved_tensors
    d_y, d_delta, _, d_before, d_after, _ = gradients
    losses = losses and not (d_before is None and d_after is None)

    def filled(g: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return checkpoints.new_zeros(shape, dtype=dtype) if g is None else g.contiguous()

    of_y, of_delta, of_losses = ctx.shapes
    found = frame_backward(
        inner, *inputs, *options, group, checkpoints,
        filled(d_y, of_y, inputs[0].dtype), filled(d_delta, of_delta, torch.float32),
        *(filled(g, of_losses, torch.float32) if losses else None for g in (d_before, d_after)),
    )  # fmt: skip
    forget, longest = (g if x is not None else None for g, x in zip(found[8:], inputs[7:9], strict=True))
    return None, *found[:8], forget, longest, *[None] * 9


torch.library.register_autograd("tttstream::frame", _backward, setup_context=_save)
