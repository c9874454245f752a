"""The gradient sum of an unfinished mini-batch as its factors, to which one-token steps add.

The sum S of equation 7 is as large as the weights. The factors of a token, its inputs and steps of every layer, are
not, and by equation 8 a query needs no more than these. So a step that keeps factors reads W and writes nothing of its
size. A state holds them as a `GradSum`: a tensor that computes the sum when its numbers are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from tttstream_kernels.inner import Dense, flatten
from tttstream_kernels.update import Rule, Update

_SAMPLES = 64  # numbers of the learned start that are compared


class Unfinished:
    """A mini-batch of R cells (rows times heads) to which steps add tokens. States share it: a step takes the next free
    slot and writes there, what stands in the others stays.

    delta: [B, H, P] of the state. flat: [B, H, P] the weights W where the mini-batch began; by layer weights
    [R, rows, columns], those after the first also transposed, and biases [R, 1, columns]. By layer inputs [R, K, rows]
    and steps [R, K, columns] of its tokens, steps zero in free slots; turned: the inputs transposed. ones: [R, 1, K].
    """

    def __init__(
        self, inner: Dense, width: int, tokens: int, start: Tensor, delta: Tensor, last: Unfinished | None = None
    ) -> None:
        """tokens: K. last: the previous mini-batch, if `start` is unchanged since then."""
        if delta.is_inference():  # no changes of such a tensor are counted
            with torch.inference_mode(False):
                delta = delta.clone()
        self.inner, self.width, self.tokens, self.delta = inner, width, tokens, delta
        self.kind = delta.shape, delta.dtype, delta.device
        self.flat = start + delta
        layers = inner.split(self.flat, width)
        self.weights = [w[:, :-1] for w in layers]
        self.transposed = [w.mT for w in self.weights[1:]]
        self.biases = [w[:, -1:] for w in layers]
        self.ones = self.flat.new_ones(len(layers[0]), 1, tokens)
        inputs = [self.flat.new_ones(len(w), tokens, w.shape[1]) for w in layers]
        self._slots(inputs, [self.flat.new_zeros(len(w), tokens, w.shape[2]) for w in layers], 0)

        self._origin = _version(start), _version(delta)
        self._rule: Rule | None = None
        some = start.detach().view(-1)[:: max(1, start.numel() // _SAMPLES)]
        self._some: tuple[Tensor, Tensor] = (some, some.clone()) if last is None else last._some
        if last is not None:
            self._rule = last._rule

    def _slots(self, inputs: list[Tensor], steps: list[Tensor], filled: int) -> None:
        """Set the tokens' inputs (with a last column of ones) and steps; slots from `filled` on are free."""
        self._inputs, self.steps, self._free = inputs, steps, list(range(filled, self.tokens))
        self.inputs = [x[..., :-1] for x in inputs]
        self.turned = [x.mT for x in self.inputs]

    def stands(self, start: Tensor, delta: Tensor) -> bool:
        """Whether W is still start + delta. PyTorch does not count writes to `start.data`, so some of its numbers are
        compared."""
        return self._origin == (_version(start), _version(delta)) and torch.equal(*self._some)

    def take(self, slot: int) -> Unfinished:
        """This mini-batch, with the slot reserved for the caller; a copy, if another step from the same state has
        reserved it."""
        try:
            self._free.remove(slot)  # one call, so that of two threads one gets it
        except ValueError:
            other = object.__new__(Unfinished)
            other.__dict__.update(self.__dict__)
            inputs, steps = ([x.clone() for x in part] for part in (self._inputs, self.steps))
            for step in steps:
                step[:, slot:] = 0.0
            other._slots(inputs, steps, slot + 1)
            return other
        return self

    def sums(self, count: int) -> Tensor:
        """The gradient sum [B, H, P] of the first `count` tokens."""
        pairs = zip(self._inputs, self.steps, strict=True)
        return flatten(tuple(torch.bmm(x[:, :count].mT, step[:, :count]) for x, step in pairs)).view(self.delta.shape)

    def rule(self, update: Update, start: Tensor) -> Rule:
        """The update rule of the cells."""
        rule = self._rule
        if rule is None or rule.update is not update or any(isinstance(value, Tensor) for value in update):
            rule = self._rule = update.rule(self.inner.split(start.expand_as(self.delta), self.width))
        return rule

    def ended(self, update: Update, start: Tensor, tau: float) -> Unfinished:
        """The next mini-batch. This one is full."""
        flat = self.flat.clone()
        weights, turned = self.inner.split(flat, self.width), [x.mT for x in self._inputs]
        self.rule(update, start).step(weights, ((), ()), turned, self.steps, (), tau, in_place=True)
        return Unfinished(self.inner, self.width, self.tokens, start, flat.sub_(start), self)


class GradSum(Tensor):
    """`grad_sum` [B, H, P] of a state whose mini-batch is `unfinished` with its first `count` tokens.

    A function of tensors that gets it gets the sum, and from then on it is the sum, so that a step continues from it as
    from a copy of its numbers. Its shape, type and device can be asked for without that.
    """

    unfinished: Unfinished | None
    count: int
    made: Tensor | None

    @staticmethod
    def of(unfinished: Unfinished, count: int) -> GradSum:
        """The sum of the gradients of an unfinished mini-batch, which has `count` tokens."""
        shape, dtype, device = unfinished.kind
        made: GradSum = Tensor._make_wrapper_subclass(GradSum, shape, dtype=dtype, device=device)
        made.unfinished, made.count, made.made = unfinished, count, None
        return made

    def tensor(self) -> Tensor:
        """The sum, as an ordinary tensor."""
        unfinished = self.unfinished
        if self.made is None:
            assert unfinished is not None
            with torch.no_grad():
                self.made = unfinished.sums(self.count)
        self.unfinished = None
        return self.made

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _UNREAD:
            return super().__torch_function__(func, types, args, kwargs)
        if func is Tensor.detach:  # it has no graph
            return args[0]
        return func(*_tensors(args), **_tensors(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See the class. This handles calls from C++, which skip `__torch_function__`."""
        return func(*_tensors(args), **_tensors(kwargs or {}))


_UNREAD = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_leaf")),
    *(getattr(Tensor, name).__get__ for name in ("grad_fn", "layout", "is_cpu", "is_cuda", "itemsize", "nbytes")),
    *(getattr(Tensor, name) for name in ("dim", "size", "numel", "element_size", "is_floating_point")),
}


def summed(grad_sum: Tensor) -> Tensor:
    """`grad_sum` as an ordinary tensor."""
    return grad_sum.tensor() if isinstance(grad_sum, GradSum) else grad_sum


def look(grad_sum: Tensor) -> Tensor:
    """`grad_sum` as an ordinary tensor that the caller only reads. The state keeps its factors."""
    if isinstance(grad_sum, GradSum) and (unfinished := grad_sum.unfinished) is not None:
        return unfinished.sums(grad_sum.count)
    return summed(grad_sum)


def _tensors(values: Any) -> Any:
    return tree_map_only(GradSum, GradSum.tensor, values)


def _version(tensor: Tensor) -> tuple[int, int]:
    """A value that stays equal until somebody writes to the tensor."""
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version
