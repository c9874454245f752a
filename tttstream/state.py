"""The state of a memory: a small value that every call takes and returns.

A state is a NamedTuple of tensors (or of further states, one level up), each with the rows (streams) as its first
dimension. A fresh state is all zeros, so setting it to zero is a reset. Phases and counters are whole numbers in the
float type of the state, so `pack` converts a state to one float matrix without loss.
"""

import json
import math
import os
import re
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.fx._pytree import SUPPORTED_NODES, SUPPORTED_NODES_EXACT_MATCH, register_pytree_flatten_spec
from torch.utils._pytree import _register_namedtuple

from tttstream.errors import CheckpointError, StateError
from tttstream.io.claims import beside
from tttstream.io.outputs import saving

FORMAT = "tttstream.state/1"

_NAMED_TUPLE = cast(type, namedtuple)
_named_tuple_rule = SUPPORTED_NODES[_NAMED_TUPLE]


def _fields(value: Any, spec: Any) -> list[Any]:
    """The fields of a named tuple in order. A module from torch.export unpacks named tuples by index, but an index of a
    state selects rows. torch.fx has one rule for all named tuples; it still applies to those that are no states."""
    if isinstance(value, State):
        return list(tuple.__iter__(cast(tuple[Any, ...], value)))
    return _named_tuple_rule(value, spec)


register_pytree_flatten_spec(_NAMED_TUPLE, _fields, SUPPORTED_NODES_EXACT_MATCH[_NAMED_TUPLE])

S = TypeVar("S", bound="State")
N = TypeVar("N")


def _map(function: Callable[[Tensor], Tensor], node: Any) -> Any:
    if isinstance(node, Tensor):
        return function(node)
    items = [_map(function, item) for item in node]
    return type(node)(*items) if hasattr(node, "_fields") else tuple(items)


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield name, node
        return
    names = getattr(node, "_fields", range(len(node)))
    for key, item in zip(names, tuple.__iter__(node), strict=True):
        yield from _leaves(item, f"{name}.{key}" if name else str(key))


def _tensors(node: Any) -> list[Tensor]:
    if isinstance(node, Tensor):
        return [node]
    return [leaf for item in tuple.__iter__(node) for leaf in _tensors(item)]


def exportable(kind: type[N]) -> type[N]:
    """Register a type of named tuples for `torch.export.save` and as a safe type for `torch.load`."""
    torch.serialization.add_safe_globals([kind])
    _register_namedtuple(kind, serialized_type_name=f"{kind.__module__}.{kind.__qualname__}")
    return kind


class State:
    """Methods shared by the states of all memories and models. Mix it in before a NamedTuple of tensors."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        exportable(cls)

    def map(self: S, function: Callable[[Tensor], Tensor]) -> S:
        """A new state with `function` applied to every tensor."""
        return _map(function, self)

    def leaves(self) -> list[tuple[str, Tensor]]:
        """(name, tensor) of every tensor in a fixed order; nested names are joined with dots."""
        return list(_leaves(self))

    def tensors(self) -> list[Tensor]:
        """Every tensor, in the order of `leaves`."""
        return _tensors(self)

    @property
    def rows(self) -> int:
        """The number of rows (streams) in the state."""
        return self.tensors()[0].shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(leaf.numel() * leaf.element_size() for _, leaf in self.leaves())

    def detach(self: S) -> S:
        """The same values without their graph."""
        return self.map(Tensor.detach)

    def to(self: S, *args: Any, **kwargs: Any) -> S:
        """`Tensor.to` on every tensor: a device, a type, or both."""
        return self.map(lambda leaf: leaf.to(*args, **kwargs))

    def __getitem__(self, rows: Any) -> Any:  # not S, which would conflict with the tuple base class
        """The state of some rows: an index (gives one row), a slice, a list, or a tensor of indices or bools."""
        if isinstance(rows, int):
            if not -self.rows <= rows < self.rows:
                raise IndexError(f"row {rows} of a state with {self.rows} rows")
            rows = [rows]
        return self.map(lambda leaf: leaf[rows])

    def where(self: S, mask: Tensor, other: S) -> S:
        """Select rows: this state where `mask` [B] is true, `other` elsewhere. A NaN in a row does not affect other
        rows."""
        others = iter(other.tensors())
        return self.map(lambda leaf: torch.where(mask.view(-1, *[1] * (leaf.dim() - 1)), leaf, next(others)))


class Stateful(Protocol):
    """A module with fresh states: every memory and model."""

    def init_state(self, batch: int) -> Any:
        """A fresh state of `batch` rows."""


def _template(like: State | Stateful) -> State:
    return like if isinstance(like, State) else like.init_state(1)


def pack(state: State) -> Tensor:
    """All tensors of a state concatenated: [B, n], in the float type of the state."""
    return torch.cat([leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:])) for _, leaf in state.leaves()], dim=1)


def unpack(flat: Tensor, like: S | Stateful) -> S:
    """The inverse of `pack`. like: the memory, or any state of it (with any number of rows)."""
    template = _template(like)
    widths = [math.prod(leaf.shape[1:]) for _, leaf in template.leaves()]
    if flat.dim() != 2 or flat.shape[1] != sum(widths):
        raise StateError(f"cannot unpack a tensor of shape {tuple(flat.shape)}: expected [rows, {sum(widths)}]")
    pieces = iter(flat.split(widths, dim=1))
    return template.map(lambda leaf: next(pieces).reshape(flat.shape[0], *leaf.shape[1:]))  # type: ignore[return-value]


def join(states: Sequence[S]) -> S:
    """Concatenate the rows of several states of one memory: for states of one row, `join(states)[n]` is the n-th."""
    if len(states) == 1:
        return states[0]
    columns = iter([torch.cat(leaves) for leaves in zip(*(state.tensors() for state in states), strict=True)])
    return states[0].map(lambda _: next(columns))


def save(state: State, path: str | os.PathLike[str], **texts: str) -> None:
    """Write a state as safetensors, under a temporary name first, so that no incomplete file remains. texts: stored as
    metadata, see `metadata`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    temporary = beside(path, f".{os.getpid()}.part")
    tensors = {name: leaf.detach().cpu().contiguous() for name, leaf in state.leaves()}
    try:
        with saving(path):
            save_file(tensors, temporary, metadata={"format": FORMAT, **texts})
            os.replace(temporary, path)
    except SafetensorError as error:
        number = re.search(r"os error ([0-9]+)", str(error))
        with saving(path):
            raise (OSError(int(number[1]), str(error)) if number else OSError(str(error))) from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if metadata.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path} is not a saved state: format is {metadata.get('format')!r}, expected {FORMAT!r}"
                )
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"no saved state at {path}") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as a saved state: {error}") from error


def metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that were saved with a state, including `format`."""
    return _read(path)[0]


def load(path: str | os.PathLike[str], like: S | Stateful) -> S:
    """Read a state that `save` wrote. like: the memory, or any state of it. Raises CheckpointError for the state of
    another memory."""
    template = _template(like)
    tensors = _read(path)[1]
    expected = {name: list(leaf.shape[1:]) for name, leaf in template.leaves()}
    for name in [name for name in tensors if name not in expected]:
        tensors[name.replace("pending", "grad_sum")] = tensors.pop(name)  # the old name of `grad_sum`
    came = {name: list(tensor.shape[1:]) for name, tensor in tensors.items()}
    if not getattr(like, "bounded", True):  # a fresh growing cache is empty: its size 0 matches any size
        for name, sizes in expected.items():
            if len(came.get(name, [])) == len(sizes):
                expected[name] = [size or got for size, got in zip(sizes, came[name], strict=True)]
    if came != expected:
        raise StateError(
            f"{path} holds the state of another memory: {json.dumps(came)}, expected {json.dumps(expected)}"
        )
    ordered = iter(tensors[name] for name, _ in template.leaves())
    # copied, because the rounding of matrix products may depend on the alignment of the tensors in the file
    return template.map(lambda leaf: next(ordered).to(leaf, copy=True))  # type: ignore[return-value]
