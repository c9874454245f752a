"""A network of single frames with memories behind some of its modules: a network of streams."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tttstream.errors import CheckpointError, ConfigError, ShapeError, StateError
from tttstream.io import weights
from tttstream.models.base import SavedModel, check_reset
from tttstream.models.hub import fetched, is_remote
from tttstream.models.inserted.layouts import Shape
from tttstream.models.inserted.place import Place
from tttstream.state import State


class _InsertedFields(NamedTuple):
    places: tuple[State, ...]


class InsertedState(State, _InsertedFields):
    """The states of the memories, in the order in which they run."""

    __slots__ = ()


@dataclass(frozen=True)
class InsertedConfig:
    """memory, dim, heads, tokens, options: those of `insert`. places: the modules with a memory, and the layout of each
    output. frame: sizes of a frame of the example. frozen: whether the network is fixed. network: a hash of its
    weights."""

    memory: str
    dim: int
    heads: int
    tokens: str
    places: dict[str, Shape]
    frame: tuple[int, ...]
    frozen: bool = True
    network: str = ""
    options: dict[str, Any] = field(default_factory=dict)


class _Now(threading.local):
    """The call that runs in this thread."""

    call: _Call | None = None

    def __reduce__(self) -> Any:  # a copy of a model has its own calls
        return _Now, ()


class _Call:
    """One pass of frames through the network, with the states of the memories before and after it."""

    def __init__(self, rows: int, before: Sequence[Any], **arguments: Any) -> None:
        self.rows, self.before, self.arguments = rows, before, arguments
        self.after: list[State | None] = [None] * len(before)

    def through(self, number: int, place: Place, x: Tensor) -> Tensor:
        """The output of a module plus that of its memory."""
        if self.after[number] is not None:
            raise ConfigError(
                f"insert: {place.name} runs twice in one pass of the network; put the memory behind a module that runs "
                "once"
            )
        y, self.after[number] = place(x, self.rows, self.before[number], **self.arguments)
        return y


class _Tap:
    """The hook after a module. It changes nothing if the network is called directly."""

    def __init__(self, number: int, place: Place, now: _Now) -> None:
        self.number, self.place, self.now = number, place, now

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        call = self.now.call
        return output if call is None else call.through(self.number, self.place, output)


class Inserted(SavedModel):
    """A network of frames with memories; `insert` makes it.

    Called as `output, state = model(frames [B, T, …], state=None, reset=None, lengths=None)`. The output is that of the
    network, with each tensor [n, …] as [B, T, …]. reset: bool [B, T], whether the state is reset before this frame.
    lengths: [B], the number of valid frames of each row; outputs after them are zero. With `learn=False` TTT memories
    are read and do not learn.

    A frozen network stays in evaluation mode and gets no gradients, also after `train()`. The network is not copied and
    keeps its names. Called directly, its output is unchanged.
    """

    FORMAT: ClassVar[str] = "tttstream.inserted/1"
    CONFIG = InsertedConfig
    USE: ClassVar[str] = ""
    LOAD: ClassVar[str] = 'tttstream.models.inserted.load("{}", network)'

    def __init__(self, network: nn.Module, config: InsertedConfig) -> None:
        super().__init__()
        self.config, self.network = config, network
        if config.frozen:
            network.requires_grad_(False)
        self.memories = nn.ModuleList(
            Place(shape, name, config.memory, config.dim, config.heads, config.tokens, config.options)
            for name, shape in config.places.items()
        )
        like = next((weight for weight in network.parameters() if weight.is_floating_point()), None)
        if like is not None:
            self.memories.to(like.device, like.dtype)
        self._now = _Now()
        for number, place in enumerate(self.places):
            network.get_submodule(place.name).register_forward_hook(_Tap(number, place, self._now))
        self.train(network.training)

    @property
    def places(self) -> list[Place]:
        """The memories with their gates, in the order in which they run."""
        return [place for place in self.memories if isinstance(place, Place)]

    def train(self, mode: bool = True) -> Inserted:
        """As nn.Module's; a frozen network stays in evaluation mode."""
        super().train(mode)
        if self.config.frozen:
            self.network.eval()
        return self

    def init_state(self, batch: int) -> InsertedState:
        """A fresh state of `batch` streams, all zeros."""
        return InsertedState(tuple(place.init_state(batch) for place in self.places))

    def forward(
        self,
        frames: Tensor,
        state: InsertedState | None = None,
        reset: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        learn: bool = True,
    ) -> tuple[Any, InsertedState]:
        before = self._check(frames, state, reset, lengths)
        rows, count = frames.shape[:2]
        call = _Call(rows, before, reset=reset, lengths=lengths, learn=learn)
        with self._calling(call):
            output = self.network(frames.flatten(0, 1))
        if None in call.after:
            name = self.places[call.after.index(None)].name
            raise ConfigError(f"insert: {name} did not run in this pass of the network; put the memory elsewhere")
        inside = None if lengths is None else torch.arange(count, device=frames.device) < lengths[:, None]

        def streams(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if leaf.dim() < 1 or leaf.shape[0] != rows * count:
                raise ShapeError(f"the network gives {list(leaf.shape)} of {rows * count} frames: expected one of each")
            leaf = leaf.unflatten(0, (rows, count))
            return leaf if inside is None else torch.where(inside.view(rows, count, *[1] * (leaf.dim() - 2)), leaf, 0)

        return pytree.tree_map(streams, output), InsertedState(tuple(call.after))  # type: ignore[arg-type]

    @contextmanager
    def _calling(self, call: _Call) -> Iterator[None]:
        before, self._now.call = self._now.call, call
        try:
            yield
        finally:
            self._now.call = before

    def _check(self, frames: Tensor, state: Any, reset: Tensor | None, lengths: Tensor | None) -> Sequence[Any]:
        if frames.dim() != len(self.config.frame) + 2 or 0 in frames.shape[:2]:
            like = ", ".join(map(str, self.config.frame))
            raise ShapeError(f"expected frames of shape [rows, frames, {like}] or alike, got {list(frames.shape)}")
        rows, count = frames.shape[:2]
        check_reset(reset, (rows, count), "model")
        if lengths is not None and (lengths.shape != (rows,) or lengths.is_floating_point()):
            raise ShapeError(
                f"expected lengths of shape [{rows}] and a whole-number type, got {list(lengths.shape)} and "
                f"{lengths.dtype}"
            )
        if state is None:
            return [None] * len(self.memories)
        if not isinstance(state, InsertedState) or len(state.places) != len(self.memories):
            raise StateError(
                f"expected a state of this model, an InsertedState of {len(self.memories)} memories, got "
                f"{type(state).__name__}"
            )
        if state.rows != rows:
            raise StateError(f"the state has {state.rows} rows, frames have {rows}")
        return state.places

    def description(self) -> dict[str, Any]:
        return asdict(self.config)

    @classmethod
    def described(cls, description: dict[str, Any]) -> Inserted:
        """Raises CheckpointError, because a folder contains the memories, and not the network around them."""
        raise CheckpointError(
            "these are memories that were inserted into a network, which the folder does not contain: load them with "
            "tttstream.models.inserted.load(folder, network)"
        )

    def save(self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors into a folder: only the memories if the network is frozen, else all
        weights. dtype: as in SavedModel."""
        weights.write(self._kept(), self.description(), self.FORMAT, folder, dtype)

    def _kept(self) -> nn.Module:
        return self.memories if self.config.frozen else self


def load(folder: str | os.PathLike[str], network: nn.Module) -> Inserted:
    """A network with the memories that `Inserted.save` wrote.

    folder: or hf:OWNER/NAME of a hub. network: the network of `insert`, with the same weights (if it was trained with
    the memories, its weights are in the folder). Raises CheckpointError for another network, and for files that do not
    fit.
    """
    folder = fetched(os.fspath(folder)) if is_remote(os.fspath(folder)) else Path(folder)
    description = weights.read(folder)
    if description.pop("format", None) != Inserted.FORMAT:
        raise CheckpointError(f"{os.fspath(folder)} holds no memories that were inserted into a network")
    try:
        places: Mapping[str, Any] = description.pop("places")
        shapes = {name: Shape(**{**s, "sizes": tuple(s["sizes"])}) for name, s in places.items()}
        config = InsertedConfig(places=shapes, frame=tuple(description.pop("frame")), **description)
        missing = [name for name in shapes if name not in dict(network.named_modules())]
        if missing or (config.frozen and weights.fingerprint(network, {}) != config.network):
            what = f"it has no module {missing[0]}" if missing else "its weights are others"
            raise CheckpointError(f"{os.fspath(folder)} was inserted into another network: {what}")
        model = Inserted(network, config)
    except (AttributeError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not fit this version: {error}") from error
    weights.fill(model._kept(), folder)
    return model.eval()
