"""Token mode on Triton among torch's other tools: the compiler, autocast, recomputing, CUDA graphs, `opcheck`, and what
it says to a wrong shape. What it computes is tested in test_triton_token.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tttstream_kernels import MLP, Inner, Linear, ShapeError, Update, init_state, ttt
from tttstream_kernels.testing import framed

pytest.importorskip("triton", reason="triton is not installed")

from tttstream_kernels import token_triton
from tttstream_kernels.step_triton import token_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INNERS: list[Inner] = [Linear(), MLP()]
HEADS = {"linear": 2, "mlp": 1}  # the interpreter takes seconds for more
inners = pytest.mark.parametrize("inner", INNERS, ids=lambda inner: inner.name)


def arguments(inner: Inner, tokens: int = 20, rows: int = 3, heads: int | None = None) -> list[Tensor]:
    """q, k, v, eta, start, gamma, beta: leaves, what lies around them NaN."""
    heads, width = HEADS[inner.name] if heads is None else heads, 16
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    streams = [random(rows, tokens, heads, width) for _ in range(3)]
    eta, start = 0.2 * random(rows, tokens, heads).abs(), 0.3 * random(heads, inner.size(width))
    norm = [1.0 + 0.2 * random(heads, width), 0.2 * random(heads, width)]
    return [framed(x.to(DEVICE)).requires_grad_() for x in (*streams, eta, start, *norm)]


@inners
def test_under_the_compiler_and_recomputed(inner: Inner) -> None:
    """torch.compile without a break, resets and phases given as tensors; activation checkpointing."""
    state = init_state(inner, 3, HEADS[inner.name], 16, Update(), "token", torch.zeros((), device=DEVICE))
    state = state._replace(phase=torch.tensor([3.0, 0.0, 15.0], device=DEVICE))
    reset = torch.zeros(3, 20, dtype=torch.bool, device=DEVICE)
    reset[1, 6] = True

    def call(*given: Tensor) -> tuple[Tensor, Tensor]:
        y, new, loss = ttt(inner, *given, state=state, reset=reset, update=Update(max_norm=2.0), return_loss=True,
                           backend="triton")  # fmt: skip
        assert loss is not None
        return y, new.delta.sum() + loss.after.sum() + new.phase.sum()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    results = []
    for run in (call, compiled, lambda *given: checkpoint(call, *given, use_reentrant=False)):
        given = arguments(inner)
        y, more = run(*given)
        results.append((y, more, *torch.autograd.grad(y.square().sum() + more, given)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


@inners
def test_under_autocast(inner: Inner) -> None:
    given = arguments(inner)
    y, state, _ = ttt(inner, *given, backend="triton")
    with torch.autocast(DEVICE, torch.bfloat16):
        again, same, _ = ttt(inner, *given, backend="triton")
    assert torch.equal(again, y)
    assert torch.equal(same.delta, state.delta)


def test_no_gradient_of_a_gradient() -> None:
    given = arguments(Linear())
    y, _, _ = ttt(Linear(), *given, backend="triton")
    (first,) = torch.autograd.grad(y.square().sum(), given[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"through tttstream\.token_backward"):
        torch.autograd.grad(first.sum(), given[1])


def op_arguments(inner: Inner, tokens: int = 19) -> tuple[Any, ...]:
    """Positional arguments of `tttstream::token`; every segment holds a block's beginning, so all checkpoints fill."""
    given = [x.detach().contiguous().requires_grad_() for x in arguments(inner, tokens, rows=2, heads=2)]
    weights, pending = (torch.randn(2, 2, inner.size(16), device=DEVICE).requires_grad_() for _ in range(2))
    tau, (forget, limit) = torch.rand(16, device=DEVICE).requires_grad_(), torch.rand(2, 2, device=DEVICE).unbind(0)
    phase = torch.tensor([14, 0], dtype=torch.int32, device=DEVICE)
    bounds = (x.requires_grad_() for x in (forget, limit))
    return (inner.name, *given[:4], weights, pending, *given[4:], tau, *bounds, phase, None, None, False, 3, 16)


CHECKS = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_static")


@inners
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck looks
def test_the_ops_are_registered_as_torch_wants_them(inner: Inner) -> None:
    torch.library.opcheck(token_triton.token, op_arguments(inner), test_utils=CHECKS)
    given = [x.detach().contiguous() for x in arguments(inner, 1, rows=2, heads=2)]
    state = torch.randn(2, 2, 2, inner.size(16), device=DEVICE).unbind(0)
    phase, tau = torch.tensor([15.0, 0.0], device=DEVICE), torch.rand(16, device=DEVICE)
    options = (None, 0.1, None, 2.0, False, None, torch.tensor([[True], [False]], device=DEVICE), True)
    step = (inner.name, *given[:4], *state, phase, *given[4:], tau, *options)
    torch.library.opcheck(token_step, step, test_utils=CHECKS[:3])


def test_a_mistake_is_named() -> None:
    given = arguments(Linear())
    with pytest.raises(ShapeError, match=r"eta: expected shape \[3, 20, 2, 1\]"):
        ttt(Linear(), *given[:3], given[3][:, :-1], *given[4:], backend="triton")
    with pytest.raises(ShapeError, match="gamma: expected shape"):
        ttt(Linear(), *given[:5], given[5][:1], given[6], backend="triton")


@pytest.mark.gpu
@inners
def test_a_step_in_a_cuda_graph(inner: Inner) -> None:
    with torch.no_grad():
        given = [x.contiguous() for x in arguments(inner, 1)]
        state = init_state(inner, 3, HEADS[inner.name], 16, Update(), "token", given[0])
        for _ in range(3):
            ttt(inner, *given, state=state, backend="triton")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, new, _ = ttt(inner, *given, state=state, backend="triton")
            for old, fresh in zip(state, new, strict=True):
                old.copy_(fresh)
        expected = init_state(inner, 3, HEADS[inner.name], 16, Update(), "token", given[0])
        for old in state:
            old.zero_()
        for _ in range(20):
            graph.replay()
            out, expected, _ = ttt(inner, *given, state=expected, backend="triton")
            torch.testing.assert_close(y, out)
            torch.testing.assert_close(state.delta, expected.delta)
