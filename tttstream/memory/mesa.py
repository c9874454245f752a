"""Mesa: the ridge regression of all tokens so far, solved for every query.

Letters: B rows, T tokens, H heads, D head width, n = chunks * H, C tokens of a chunk.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tttstream.memory.matrix import NORM_EPS, Additive, Decay, Seen, linear
from tttstream.memory.recurrence import CHUNK, Before, Decays, Token, effect, prepare, step, walk
from tttstream_kernels.plan import Ragged, plan
from tttstream_kernels.precision import full_precision

LEAST_RIDGE = 0.25


class Mesa(Additive):
    """Mesa (von Oswald et al., arXiv 2506.05233, equations 4 to 6): o = q (R + L)^-1 G with R = g R + b k^T k and
    G = g G + b k^T v.

    This is the least-squares solution for all pairs of k and v at every token, with weights that decay by g (one for
    each head) and a ridge L for each channel. A single token uses a Cholesky factor. A chunk uses the method of
    conjugate gradients for all its tokens at once, to the precision of the state's type. The gradient solves the same
    system again and has no gradient itself. q and k have length 1; the read-out is normalised head by head.

    Args:
        dim, heads, conv: see `Additive`. The matrix holds G beside R, [D, 2 D].
    """

    adds_up = False
    columns = 2

    def __init__(self, dim: int, heads: int = 1, conv: int = 4) -> None:
        super().__init__(dim, heads, conv)
        self.rate = linear(dim, heads, bias=True)
        self.decay = Decay(dim, heads)
        self.ridge = nn.Parameter(torch.full((heads, dim // heads), math.log(math.expm1(1 - LEAST_RIDGE))))
        self.norm = nn.RMSNorm(dim // heads, eps=NORM_EPS)

    def look(self, seen: Seen) -> tuple[Token, Any, Tensor]:
        q, k, v, window = self.projected(seen)
        weight = torch.sigmoid(self.rate(seen.x).to(k.dtype))[..., None]
        both = torch.cat([v.to(k.dtype), k], -1)
        return Token(q, weight * k, both, self.decay(seen.x).to(self.state_dtype)), None, window

    def read_out(self, x: Tensor, o: Tensor, rest: Any) -> Tensor:
        return self.out(self.norm(o.to(self.norm.weight.dtype)).flatten(2))

    def run(
        self, token: Token, state: Any, reset: Tensor | None, lengths: Tensor | None, before: Before | None = None
    ) -> tuple[Tensor, ...]:
        matrix: Tensor = state.matrix
        token = token.each(lambda part: part.to(matrix.dtype))
        ridge = F.softplus(self.ridge.to(matrix.dtype)) + LEAST_RIDGE
        rows, tokens = token.q.shape[:2]
        with full_precision(matrix.device.type):
            if tokens == 1 and lengths is None and before is None:
                if reset is not None:
                    matrix = torch.where(reset[..., None, None], 0.0, matrix)
                _, matrix = step(token.each(lambda part: part[:, 0]), matrix)
                values, squares = _halves(matrix)
                system, query = squares + torch.diag_embed(ridge), token.q[:, 0, :, :, None]
                if torch.compiler.is_exporting():  # ONNX has no Cholesky decomposition
                    asked = torch.linalg.solve_ex(system, query)[0]
                else:
                    asked = torch.cholesky_solve(query, torch.linalg.cholesky_ex(system)[0])
                return (asked.mT @ values).transpose(1, 2), matrix
            cut = plan(rows, tokens, min(tokens, CHUNK), None, reset, lengths, matrix.device)
            if isinstance(cut, Ragged) and not cut.active:
                return torch.zeros_like(token.q), matrix
            q, k, both, log = token.each(cut.pack)[:4]
            assert log is not None
            decays = Decays(log)
            chunks = prepare(Token(q, k, both, log))
            if before is not None:
                matrix = before(*effect(cut, matrix, chunks), matrix)
            starts, _, matrix = walk(cut, matrix, chunks)
            ridges = ridge.repeat(len(q) // self.heads, 1)[:, None]
            chunk = _Chunk(q, k, both, decays, starts, ridges)
            return cut.unpack(chunk.read()), matrix


class _Chunk:
    """Chunks side by side: q, k [n, C, D], both [n, C, 2 D], starts [n, D, 2 D], ridge [n, 1, D]."""

    def __init__(self, q: Tensor, k: Tensor, both: Tensor, decays: Decays, starts: Tensor, ridge: Tensor) -> None:
        self.q, self.k, self.decays, self.ridge = q, k, decays, ridge
        self.v, self.key = both.chunk(2, -1)
        self.values, self.squares = _halves(starts)

    def read(self) -> Tensor:
        """o [n, C, D] of every token."""
        decays, pairs = self.decays, self.decays.pairs
        fading = None if decays.sums is None else decays.sums.exp()
        with torch.no_grad():
            operator = _operator(self.k, self.key, self.squares, self.ridge, pairs, fading)
            found = conjugate_gradients(operator, self.q)
        again = _operator(self.k, self.key, self.squares, self.ridge, pairs, fading)
        if torch.is_grad_enabled():
            detached = [None if z is None else z.detach() for z in (pairs, fading)]
            fixed = _operator(*(z.detach() for z in (self.k, self.key, self.squares, self.ridge)), *detached)
            found = found + _Implicit.apply(self.q - again(found), fixed)
        return torch.baddbmm(decays.products(found, self.k, 0) @ self.v, decays.since(found), self.values)


def _halves(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """G and R of [..., D, 2 D]; R is symmetric, so its gradient is made so."""
    values, squares = matrix.chunk(2, -1)
    return values, 0.5 * (squares + squares.mT)


def _operator(
    k: Tensor, key: Tensor, squares: Tensor, ridge: Tensor, pairs: Tensor | None, fading: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """p -> p (R + L) for every token: p [n, C, D], with R that of the token."""
    assert pairs is not None
    assert fading is not None

    def apply(p: Tensor) -> Tensor:
        return torch.baddbmm(p * ridge, (p @ k.mT) * pairs, key) + (p * fading) @ squares

    return apply


def conjugate_gradients(operator: Callable[[Tensor], Tensor], wanted: Tensor) -> Tensor:
    """Solve operator(x) = wanted for x [..., D], one system for each token (Hestenes and Stiefel, 1952).

    A first run gives half of the digits. A second run starts from the true residual and gives the others, because the
    computed residual of a run drifts away from the true one. A token stops when its residual reaches rounding error,
    while others continue, so its answer does not depend on the other tokens.
    """
    size, eps = wanted.square().sum(-1, keepdim=True), torch.finfo(wanted.dtype).eps
    x = _descend(operator, wanted, eps * size)
    return x + _descend(operator, wanted - operator(x), eps**2 / 64 * size)


def _descend(operator: Callable[[Tensor], Tensor], residual: Tensor, small: Tensor) -> Tensor:
    """The step x that leaves of a residual [..., D] no more than small [..., 1], both squared, in 2 D steps at most."""
    x, direction = torch.zeros_like(residual), residual
    size = residual.square().sum(-1, keepdim=True)
    for _ in range(2 * residual.shape[-1]):
        going = size > small
        if not bool(going.any()):
            break
        ahead = operator(direction)
        length = torch.where(going, size / (direction * ahead).sum(-1, keepdim=True), 0.0)
        x = torch.addcmul(x, length, direction)
        residual = torch.addcmul(residual, length, ahead, value=-1)
        after = residual.square().sum(-1, keepdim=True)
        direction = residual + torch.where(going, after / size, 0.0) * direction
        size = after
    return x


class _Implicit(torch.autograd.Function):
    """Zeros with the gradient of a linear system's solution: forward, residual -> 0; backward, g -> the x with
    operator(x) = g (the operator is symmetric)."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, operator: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.operator = operator
        return torch.zeros_like(residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return conjugate_gradients(ctx.operator, gradient), None
