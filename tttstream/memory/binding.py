"""Binding: a memory of labelled examples, learned one by one, whose state has a constant size.

Letters: B rows, T tokens, L labels, D width of a key, n questions.

The inner model is linear in the label: label l -> its prototype mu_l, a row of M. An example (k, l) takes one step on
the inner loss |k - mu_l|^2 / 2 with the rate 1 / n_l, n_l the examples of l so far (at most `horizon`), which is its
exact minimum over all of them. S is the mean of (k - mu_l)^T (k - mu_l): the usual differences between examples of one
label.

A question q of length 1 is answered by the evidence for each label

    e_l = s (cos(q, mu_l) + w q A^-1 mu_l^T) - c,    A = sum_l mu_l^T mu_l + a S + r I

the cosine similarity to its prototype, and a least-squares classifier that gives the usual differences within a label a
low weight. All labels have the same weight in A, independent of the number of their examples. The evidence for "none of
them" is 0. s, w, c, a and r are learned in the outer loop.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream.errors import ConfigError, ShapeError
from tttstream.memory.base import Memory
from tttstream.state import State

NEWTON = 16  # steps to the inverse of a matrix in an exported model


class _Binding(NamedTuple):
    means: Tensor
    counts: Tensor
    scatter: Tensor
    repeats: Tensor


class BindingState(State, _Binding):
    """means [B, L, D]: prototypes. counts [B, L]: examples of each label, at most the horizon. scatter [B, D, D]: how
    examples of one label differ. repeats [B]: examples that scatter is the mean of, at most the horizon."""

    __slots__ = ()


class Binding(Memory):
    """Examples are bound to labels; questions are answered with the evidence for each label.

    Args:
        keys: D, width of a key. labels: L, how many labels there can be at the same time.
        horizon: examples after which a prototype is a fading mean of the last ones.

    Called as a `Memory` of dim = keys + labels. The first D numbers of a token are a key, of any length but 0; the
    others are 1 at the label of an example, and all 0 for a question. The output of a token holds what was known before
    it: the prototypes, weighted by their probability, and the evidence for each label, `NOTHING` for one without
    examples. A token with a NaN, or of zeros, is answered with NaN and is not learned. `bind` and `evidence` do the two
    halves for many keys at once.
    """

    state_type = BindingState
    NOTHING = -30.0

    def __init__(self, keys: int, labels: int, horizon: int = 1000) -> None:
        super().__init__()
        if min(keys, labels, horizon) < 1:
            raise ConfigError(f"Binding: expected {keys = }, {labels = } and {horizon = } of at least 1")
        self.keys, self.labels, self.horizon, self.dim = keys, labels, horizon, keys + labels
        self.scale = nn.Parameter(torch.tensor(2.3))  # logarithms of s, w, a and r
        self.weight = nn.Parameter(torch.tensor(0.0))
        self.spread = nn.Parameter(torch.tensor(0.0))
        self.ridge = nn.Parameter(torch.tensor(0.0))
        self.bar = nn.Parameter(torch.tensor(5.0))  # c

    def init_state(self, batch: int) -> BindingState:
        """A state without examples."""
        return BindingState(
            self.zeros(batch, self.labels, self.keys),
            self.zeros(batch, self.labels),
            self.zeros(batch, self.keys, self.keys),
            self.zeros(batch),
        )

    def forward(
        self, x: Tensor, state: Any = None, reset: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        state = self.check(x, state, reset, lengths)
        if reset is None and lengths is None and not bool((x[..., self.keys :] != 0).any()):
            return self._answer(state, x.to(self.state_dtype)).to(x.dtype), state  # questions alone change nothing
        outputs = []
        for t in range(x.shape[1]):
            if reset is not None:
                state = self.init_state(len(x)).where(reset[:, t], state)
            token = x[:, t].to(self.state_dtype)
            inside = torch.ones_like(token[:, :1], dtype=torch.bool) if lengths is None else (t < lengths)[:, None]
            outputs.append(torch.where(inside, self._answer(state, token[:, None])[:, 0], 0.0))
            key, label = torch.where(inside & self._fine(token), token, 0.0).split((self.keys, self.labels), -1)
            state = self.bind(state, key, label)
        return torch.stack(outputs, 1).to(x.dtype), state

    def _fine(self, x: Tensor) -> Tensor:
        """[..., 1]: whether a token is finite, and its key not zero."""
        return (x.isfinite().all(-1) & (x[..., : self.keys] != 0).any(-1))[..., None]

    def _answer(self, state: BindingState, x: Tensor) -> Tensor:
        """The outputs [B, T, dim] of tokens that read the same state."""
        fine = self._fine(x)
        found = self.evidence(state, torch.where(fine, x, 0.0)[..., : self.keys])
        share = torch.cat([found, torch.zeros_like(found[..., :1])], -1).softmax(-1)[..., :-1]
        return torch.where(fine, torch.cat([share @ state.means, found], -1), torch.nan)

    def bind(self, state: BindingState, key: Tensor, label: Tensor) -> BindingState:
        """The state after one example a row: key [B, D]; label [B, L], 1 at its place, or 0 everywhere for none."""
        means, counts, scatter, repeats = state
        key = F.normalize(key.to(means.dtype), dim=-1)
        told = label.sum(-1)
        counts = (counts + label).clamp(max=self.horizon)
        rate = torch.where(told > 0, 1 / (label * counts).sum(-1).clamp(min=1), 0.0)
        error = (key - (label[:, None] @ means)[:, 0]) * told[:, None]
        means = means + label[..., None] * (rate[:, None] * error)[:, None]
        again = (told > 0) & (rate < 1)
        repeats = torch.where(again, (repeats + 1).clamp(max=self.horizon), repeats)
        square = (1 - rate)[:, None, None] * error[..., None] * error[:, None]
        scatter = scatter + torch.where(again, 1 / repeats.clamp(min=1), 0.0)[:, None, None] * (square - scatter)
        return BindingState(means, counts, scatter, repeats)

    def told(self, keys: Tensor, labels: Tensor) -> BindingState:
        """The state after n examples of each row at once, as `bind` leaves it one by one while no label comes more
        often than the horizon: keys [B, n, D], labels [B, n, L], 1 at the place of each."""
        keys = F.normalize(keys.to(self.state_dtype), dim=-1)
        labels = labels.to(keys.dtype)
        counts = labels.sum(1)
        means = labels.mT @ keys / counts.clamp(min=1)[..., None]
        errors = keys - labels @ means
        repeats = (counts - 1).clamp(min=0).sum(-1)
        return BindingState(means, counts, errors.mT @ errors / repeats.clamp(min=1)[:, None, None], repeats)

    def evidence(self, state: BindingState, keys: Tensor) -> Tensor:
        """[B, n, L] of the questions keys [B, n, D]; `NOTHING` at labels without examples."""
        means, counts, scatter, _ = state
        if keys.dim() != 3 or keys.shape[-1] != self.keys:
            raise ShapeError(f"Binding: expected keys [rows, n, {self.keys}], got {tuple(keys.shape)}")
        q = F.normalize(keys.to(means.dtype), dim=-1)
        eye = torch.eye(self.keys, dtype=means.dtype, device=means.device)
        spread, ridge = self.spread.exp().to(means.dtype), self.ridge.exp().to(means.dtype)
        square = means.mT @ means + spread * scatter + ridge * eye
        likeness = q @ F.normalize(means, dim=-1).mT
        apart = q @ _solved(square, means.mT)
        found = self.scale.exp() * (likeness + self.weight.exp() * apart) - self.bar
        return torch.where((counts > 0)[:, None], found, self.NOTHING)

    def forget(self, state: BindingState, label: int) -> BindingState:
        """The state without the examples of one label. The scatter is kept, because all labels share it."""
        keep = torch.arange(self.labels, device=state.counts.device) != label
        means, counts, scatter, repeats = state
        return BindingState(torch.where(keep[:, None], means, 0.0), torch.where(keep, counts, 0.0), scatter, repeats)


def _solved(square: Tensor, right: Tensor) -> Tensor:
    """square^-1 right, for symmetric positive definite matrices [B, D, D] and right sides [B, D, L].

    ONNX has no factorisation of matrices, so an exported model takes Newton's iteration for the inverse, X (2 I - A X),
    which squares the error I - A X each time. After NEWTON of them it is below float32's precision for condition
    numbers up to 3,000.
    """
    if not torch.compiler.is_exporting():
        return torch.cholesky_solve(right, torch.linalg.cholesky(square))
    eye = torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
    inverse = eye / square.abs().sum(-1).amax(-1)[:, None, None]  # the largest row sum bounds the largest eigenvalue
    for _ in range(NEWTON):
        inverse = inverse @ (2 * eye - square @ inverse)
    return inverse @ right
