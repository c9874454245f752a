"""Frame mode on Triton among torch's other tools: the compiler, recomputing, `opcheck`; and what has no kernel. What it
computes is tested in test_triton_frame.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from tttstream_kernels import MLP, BackendError, Inner, Linear, SwiGLU, Update, ttt
from tttstream_kernels.testing import framed

pytest.importorskip("triton", reason="triton is not installed")

from tttstream_kernels import frame_triton
from tttstream_kernels.frame_triton import Begin, Frames

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INNERS: list[Inner] = [Linear(), MLP()]  # conv takes the interpreter minutes
inners = pytest.mark.parametrize("inner", INNERS, ids=lambda inner: inner.name)
TOKENS = 3


def arguments(inner: Inner, frames: int = 2, rows: int = 2, heads: int = 1) -> list[Tensor]:
    """q, k, v, eta, start, gamma, beta: leaves, what lies around them NaN."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    streams = [random(rows, frames * TOKENS, heads, 16) for _ in range(3)]
    eta, start = 0.2 * random(rows, frames * TOKENS, heads).abs(), 0.3 * random(heads, inner.size(16))
    norm = [1.0 + 0.2 * random(heads, 16), 0.2 * random(heads, 16)]
    return [framed(x.to(DEVICE)).requires_grad_() for x in (*streams, eta, start, *norm)]


@inners
def test_under_the_compiler_and_recomputed(inner: Inner) -> None:
    """torch.compile without a break, resets given as a tensor; activation checkpointing."""
    reset = torch.zeros(2, 2 * TOKENS, dtype=torch.bool, device=DEVICE)
    reset[1, TOKENS] = True

    def call(*given: Tensor) -> tuple[Tensor, Tensor]:
        y, new, loss = ttt(inner, *given, mini_batch=TOKENS, causal="frame", reset=reset, return_loss=True,
                           update=Update(max_norm=2.0), backend="triton")  # fmt: skip
        assert loss is not None
        return y, new.delta.sum() + loss.after.sum() + new.phase.sum()

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    results = []
    for run in (call, compiled, lambda *given: checkpoint(call, *given, use_reentrant=False)):
        given = arguments(inner)
        y, more = run(*given)
        results.append((y, more, *torch.autograd.grad(y.square().sum() + more, given)))
    for other in results[1:]:
        for ours, theirs in zip(other, results[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@inners
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck looks at it
def test_the_ops_are_registered_as_torch_wants_them(inner: Inner) -> None:
    q, k, v, eta, start, gamma, beta = (x.detach().contiguous().requires_grad_() for x in arguments(inner, rows=1))
    numbers = (torch.tensor([value], device=DEVICE, requires_grad=True) for value in (0.1, 2.0))
    frames = Frames(inner.name, q, k, v, eta, start, gamma, beta, *numbers, None, None, 0, 0, TOKENS, False)
    delta = torch.zeros(1, *start.shape, device=DEVICE, requires_grad=True)
    begin = Begin(delta, torch.zeros(1, device=DEVICE), losses=True, group=1)
    torch.library.opcheck(frame_triton.frame, (*frames, *begin))


def test_checkpoints_grow_with_the_square_root_of_the_frames() -> None:
    """16 times the frames, 4 times the group: at most 4 times the memory of checkpoints and of the scratch."""
    sizes = []
    with FakeTensorMode():
        for count in (64, 1024):
            group = frame_triton.group_of(count)
            x, weights = torch.empty(1, count * 4, 2, 16), torch.empty(1, 2, MLP().size(16))
            learned = (weights[0], x[0, 0], x[0, 0], None, None, None, None)
            frames = Frames("mlp", x, x, x, x[..., 0], *learned, 0, 0, 4, False)
            kept = frame_triton.frame(*frames, weights, x[:, 0, 0, 0], False, group)[5]
            sizes.append((group, kept.numel()))
    (group, small), (larger_group, large) = sizes
    assert larger_group == 4 * group
    assert large == 4 * small > 0


@pytest.mark.parametrize(
    ("inner", "options", "reason"),
    [
        (Linear(), {"momentum": 0.5}, "update.momentum"),
        (SwiGLU(), {}, "no Triton kernel for the swiglu inner model"),
        (SwiGLU(), {"columns": True}, "no Triton kernel for the swiglu inner model"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_has_no_kernel_raises(inner: Inner, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BackendError, match=reason):
        ttt(inner, *arguments(inner), mini_batch=TOKENS, causal="frame", update=Update(**options), backend="triton")
