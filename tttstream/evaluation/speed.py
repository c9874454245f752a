"""The cost of a memory along a stream, and the time that the dual form of a TTT layer saves."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from tttstream.inner import takes_frames
from tttstream.memory import Memory, build
from tttstream_kernels import MLP, Linear, normalise, ttt
from tttstream_kernels.inner import Dense, with_one
from tttstream_kernels.norm import error_terms, reconstruction_gradient

CHUNK, FRAME = 512, 64  # tokens of a call of prefill, and of a frame
GRID = (8, 8)


class Cost(NamedTuple):
    """The cost of a memory after a number of tokens of one stream: milliseconds per token in calls of CHUNK tokens, of
    a frame of FRAME tokens, and of a call of one token (None if it accepts only whole frames); bytes of its state; the
    growth of the process in megabytes since the start of the stream."""

    memory: str
    tokens: int
    prefill: float
    frame: float
    step: float | None
    state: int
    grown: float


class Dual(NamedTuple):
    """Milliseconds per token of one call of `tokens` tokens, in the dual form, in the primal form, and token by
    token."""

    inner: str
    tokens: int
    backward: bool
    dual: float
    primal: float
    singly: float | None


def clock(device: torch.device) -> float:
    """Seconds: thread time on a CPU, wall time on other devices."""
    if device.type == "cpu":
        return time.thread_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def best(device: torch.device, work: Callable[[], object], repeats: int) -> float:
    """Milliseconds of the fastest of several runs."""
    took = []
    for _ in range(repeats):
        began = clock(device)
        work()
        took.append(clock(device) - began)
    return 1e3 * min(took)


def make(name: str, dim: int, heads: int) -> Memory:
    """A memory for the benchmark; memories of whole frames have frames of FRAME tokens."""
    return build(name, dim=dim, heads=heads, **({"grid": GRID} if takes_frames(name) else {}))


@torch.no_grad()
def costs(name: str, lengths: list[int], dim: int, heads: int, device: torch.device, limit: float) -> Iterator[Cost]:
    """The cost of a memory after each of these lengths (multiples of CHUNK) that it reaches in `limit` seconds."""
    torch.manual_seed(0)
    memory: Any = make(name, dim, heads).to(device).eval()
    x = torch.randn(1, CHUNK, dim, device=device)
    framed = getattr(memory, "causal", "token") == "frame"
    state: Any = None
    seen, started, resident = 0, clock(device), psutil.Process().memory_info().rss
    for length in sorted(lengths):
        while seen < length:
            state = memory(x, state)[1]
            seen += CHUNK
            if clock(device) - started > limit:
                return
        prefill = best(device, lambda at=state: memory(x, at), 3) / CHUNK  # type: ignore[misc]
        frame = best(device, lambda at=state: memory(x[:, :FRAME], at), 5)  # type: ignore[misc]
        step = None if framed else best(device, lambda at=state: memory(x[:, :1], at), 30)  # type: ignore[misc]
        grown = (psutil.Process().memory_info().rss - resident) / 2**20
        yield Cost(name, length, prefill, frame, step, state.nbytes, grown)


def dual(inner: Dense, *given: Tensor, size: int) -> Tensor:
    """The outputs of `ttt` for the tensors that `primal` takes."""
    return ttt(inner, *given, mini_batch=size)[0]


def primal(
    inner: Dense, q: Tensor, k: Tensor, v: Tensor, eta: Tensor, start: Tensor, gamma: Tensor, beta: Tensor, size: int
) -> Tensor:
    """The primal form of a call of fresh rows (arXiv 2407.04620, section 2.4): gradients and weights of every token are
    computed, [R, K, rows, columns] for each layer. q, k, v [B, T, H, D], T a multiple of the mini-batch `size`; eta [B,
    T, H]. Returns the outputs of `ttt`."""
    rows, tokens, heads, width = q.shape
    weights = [w.repeat(rows, 1, 1) for w in inner.split(start, width)]
    gamma, beta = (z.repeat(rows, 1)[:, None] for z in (gamma, beta))
    scale = 1 / torch.arange(1, size + 1, dtype=q.dtype, device=q.device)[None, :, None, None]

    def blocks(x: Tensor) -> tuple[Tensor, ...]:
        return x.transpose(1, 2).flatten(0, 1).split(size, dim=1)

    out = []
    for qs, ks, vs, rates in zip(blocks(q), blocks(k), blocks(v), blocks(eta[..., None]), strict=True):
        z, inputs, hidden = inner.layers(with_one(ks), tuple(weights))
        g = reconstruction_gradient(z, *error_terms(vs - ks, gamma, beta, rates))
        steps = inner.steps(g, tuple(weights), hidden)
        each = [
            w[:, None] - scale * (x[..., None] * s[:, :, None]).cumsum(1)
            for w, x, s in zip(weights, inputs, steps, strict=True)
        ]
        y = with_one(qs)[:, :, None]
        for layer, w in enumerate(each):
            if layer:
                y = with_one(torch.nn.functional.gelu(y, approximate="tanh"))
            y = y @ w
        out.append(qs + normalise(y[:, :, 0], gamma, beta))
        weights = [w[:, -1] for w in each]
    return torch.cat(out, 1).view(rows, heads, tokens, width).transpose(1, 2)


def dual_against_primal(tokens: int, dim: int, heads: int, size: int, device: torch.device) -> Iterator[Dual]:
    """Forward, and forward with backward, of one row in the dual form (`ttt`) and in the primal form; forward also
    token by token, in calls of one."""
    width = dim // heads
    for inner in (Linear(), MLP()):
        torch.manual_seed(0)
        q, k, v = torch.randn(3, 1, tokens, heads, width, device=device).unbind(0)
        eta = torch.full((1, tokens, heads), 0.5 / width, device=device)
        start = 0.02 * torch.randn(heads, inner.size(width), device=device)
        given = q, k, v, eta, start, torch.ones(heads, width, device=device), torch.zeros(heads, width, device=device)

        def run(form: Callable[..., Tensor], backward: bool = False, given: tuple[Tensor, ...] = given) -> Tensor:
            z = form(*(z.requires_grad_(backward) for z in given))
            if backward:
                z.sum().backward()
            return z

        forms = [partial(form, inner, size=size) for form in (dual, primal)]
        layer: Any = build(f"ttt_{inner.name}", dim=dim, heads=heads, mini_batch=size).to(device)
        x = torch.randn(1, 1, dim, device=device)
        with torch.no_grad():
            torch.testing.assert_close(*(run(form) for form in forms), rtol=0, atol=1e-3)
            state = layer(x)[1]
            singly = best(device, lambda: layer(x, state), 30)  # noqa: B023
            forward = [best(device, partial(run, form), 3) / tokens for form in forms]
        yield Dual(inner.name, tokens, False, forward[0], forward[1], singly)
        both = [best(device, partial(run, form, True), 3) / tokens for form in forms]
        yield Dual(inner.name, tokens, True, both[0], both[1], None)
