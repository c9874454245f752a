"""The base class of models of masks: frames and masks in, masks out, frame after frame; and the checks of inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.errors import ShapeError, StateError
from tttstream.models.base import SavedModel, check_reset
from tttstream.models.masks.networks import WHOLE
from tttstream.state import State

SURE = 12.0
"""Log-odds of a mask that is given."""


S = TypeVar("S", bound="ObjectState")


class ObjectState(State):
    """The state of the objects of each stream; its size depends neither on the number of frames nor on their size."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def seen(self) -> Tensor:
            """[B, O] 1 after the object was given."""

    @property
    def objects(self) -> int:
        """The largest number of objects of each stream."""
        return self.seen.shape[1]

    def of(self: S, objects: Sequence[int]) -> S:
        """The state of some of the objects. For models with VIEWS, which have a separate state for each object."""
        if len(objects) == self.objects:
            return self
        return self.map(lambda x: x[:, list(objects)])

    def without(self: S, number: int) -> S:
        """This state without one of the objects. number: its index, from 0."""
        state: Any = self
        seen = self.seen.clone()
        seen[:, number] = 0
        return cast(S, state._replace(seen=seen))

    def joined(self: S, parts: Sequence[tuple[Sequence[int], S]]) -> S:
        """This state with the states of some objects replaced."""
        if len(parts) == 1 and len(parts[0][0]) == self.objects:
            return parts[0][1]
        new = [x.clone() for x in tuple.__iter__(cast(tuple[Tensor, ...], self))]
        for objects, part in parts:
            for x, y in zip(new, tuple.__iter__(cast(tuple[Tensor, ...], part)), strict=True):
                x[:, list(objects)] = y
        return type(self)(*new)


class MaskOutput(NamedTuple):
    """The output of a model for every frame.

    logits: [B, T, 1 + O, H, W], softmax over the third axis gives the share of background and of each object. guess:
    [B, T, O, h, w] log-odds of the tokens, predicted by the memory alone. fit: [B, T, O] log-odds of the expected
    overlap J of each object's mask (0 if it is out of view); None for models without this output.
    """

    logits: Tensor
    guess: Tensor
    fit: Tensor | None = None


class Propagator(SavedModel, ABC, Generic[S]):
    """Mask propagation: for each frame the memory predicts the masks, then it learns the frame with these masks.

    Called as `output, state = model(frames, state=None, reset=None, masks=…, given=…)` with frames [B, T, 3, H, W] in
    0..1 (or uint8), H and W multiples of 16; masks [B, T, O, H, W] in 0..1 count where given bool [B, T, O] is true:
    there they replace the prediction, in the first frame and in frames in which an object is added or corrected. reset
    bool [B, T]: the frame begins another stream. lengths [B]: the number of valid frames of the row. Any partition of a
    stream gives the results of one call. Objects that were never given have no pixels.

    With `learn=False` the memory learns given masks only: a classifier from the first frame.
    """

    CELL: ClassVar[int]
    """Pixels along the side of a token."""
    VIEWS: ClassVar[bool] = False
    """Whether it accepts parts of frames, and some of the objects alone."""
    FITS: ClassVar[bool] = False
    """Whether it predicts the overlap of its masks."""
    config: Any

    @abstractmethod
    def encoded(self, frames: Tensor, offset: Tensor | None = None, view: Tensor | None = None) -> Any:
        """The encoded frames [n, 3, H, W] in 0..1, a NamedTuple of tensors [n, …]; offset: [n, 2], view:
        [n, 4], see `forward`."""

    @abstractmethod
    def compared(self, frames: Tensor) -> Tensor:
        """Keys [T, N, D] of length 1 of the frames of one stream [T, 3, H, W] in 0..1. Their products are the
        similarities of tokens."""

    @abstractmethod
    def init_state(self, batch: int, objects: int = 1) -> S:
        """A fresh state of `batch` streams with room for this number of objects each, all zeros."""

    @abstractmethod
    def _frame(
        self,
        features: Any,
        state: S,
        masks: Tensor | None,
        given: Tensor,
        forced: Tensor | None,
        learn: bool,
    ) -> tuple[MaskOutput, S]:
        """The output for one frame, without the axis T, and the state after it."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters."""
        return next(self.parameters()).dtype

    def forward(
        self,
        frames: Tensor,
        state: S | None = None,
        reset: Tensor | None = None,
        *,
        masks: Tensor | None = None,
        given: Tensor | None = None,
        lengths: Tensor | None = None,
        forced: Tensor | None = None,
        offset: Tensor | None = None,
        view: Tensor | None = None,
        learn: bool = True,
    ) -> tuple[MaskOutput, S]:
        """See the class. view: [B, T, 4], the frames are parts of frames: their top, left, bottom and right in short
        sides of the whole ones, from their middle. Two arguments are for training. forced: bool [B, T], the memory
        learns `masks` instead of its own prediction (teacher forcing). offset: [B, 2] pixels by which the centre of
        the frames is shifted."""
        state, given = self._check(frames, state, reset, masks, given)
        frames = frames.to(self.dtype) / 255.0 if frames.dtype == torch.uint8 else frames.to(self.dtype)
        rows, count = frames.shape[:2]
        moved = None if offset is None else offset.repeat_interleave(count, 0)
        seen = self.encoded(frames.flatten(0, 1), moved, None if view is None else view.flatten(0, 1))
        parts = (x.unflatten(0, (rows, count)).unbind(1) for x in seen)
        every = [type(seen)(*here) for here in zip(*parts, strict=True)]
        said: list[MaskOutput] = []
        for t, here in enumerate(every):
            before = state
            if reset is not None:
                state = state.map(torch.zeros_like).where(reset[:, t], state)
            mask = None if masks is None else masks[:, t].to(frames.dtype)
            told = None if forced is None else forced[:, t]
            output, state = self._frame(here, state, mask, given[:, t], told, learn)
            said.append(output)
            if lengths is not None:
                state = state.where(t < lengths, before)
        logits, guesses, fits = zip(*said, strict=True)
        fit = None if fits[0] is None else torch.stack(fits, 1)
        return MaskOutput(torch.stack(logits, 1), torch.stack(guesses, 1), fit), state

    def measured(self, keys: Tensor, middle: Tensor, spread: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation [B, heads * D] of a stream's keys: those of this frame if it is the first one or shows the
        `first` object, else the earlier ones."""
        fresh = ((spread == 0).all(1) | first)[:, None]
        if not bool(fresh.any()):
            return middle, spread
        mean, deviation = moments(keys.to(middle.dtype))
        return torch.where(fresh, mean, middle), torch.where(fresh, deviation, spread)

    def centred(self, keys: Tensor, middle: Tensor, spread: Tensor) -> Tensor:
        """Keys [B, N, heads * D] -> centred keys of the memory [B, N, heads, D] of length sqrt(D).

        All frames of a stream are centred in the same way, so that equal content has equal keys. Keys that are not
        centred are similar to each other, and the memory learns to distinguish them slowly.
        """
        keys = ((keys - middle[:, None]) / spread[:, None]).unflatten(2, (self.config.heads, self.config.head_width))
        return F.layer_norm(keys, keys.shape[-1:])

    def _check(
        self,
        frames: Tensor,
        state: S | None,
        reset: Tensor | None,
        masks: Tensor | None,
        given: Tensor | None,
    ) -> tuple[S, Tensor]:
        whole = frames.dim() == 5 and frames.shape[1] > 0 and frames.shape[2] == 3
        if not whole or frames.shape[3] % WHOLE or frames.shape[4] % WHOLE:
            raise ShapeError(
                f"mask model: expected frames [B, T >= 1, 3, H, W] with H and W multiples of {WHOLE}, "
                f"got {list(frames.shape)}"
            )
        rows, count, _, height, width = frames.shape
        if state is None and masks is None:
            raise ShapeError("mask model: the first call needs masks [B, T, objects, H, W], or a state")
        if masks is not None and (
            masks.dim() != 5 or (*masks.shape[:2], *masks.shape[3:]) != (rows, count, height, width)
        ):
            raise ShapeError(
                f"mask model: expected masks [{rows}, {count}, objects, {height}, {width}], got {list(masks.shape)}"
            )
        if state is None:
            assert masks is not None
            state = self.init_state(rows, masks.shape[2])
        elif not isinstance(state, ObjectState) or state.rows != rows:
            raise StateError(f"mask model: expected a state of {rows} rows, got {type(state).__name__}")
        shape = (rows, count, state.objects)
        if masks is not None and masks.shape[2] != state.objects:
            raise ShapeError(f"mask model: masks of {masks.shape[2]} objects, a state of {state.objects}")
        if given is None:
            given = torch.zeros(shape, dtype=torch.bool, device=frames.device)
            if masks is not None:
                raise ShapeError("mask model: masks need given [B, T, objects], which of them count")
        if given.shape != shape or given.dtype != torch.bool:
            raise ShapeError(f"mask model: expected given bool {list(shape)}, got {given.dtype} {list(given.shape)}")
        check_reset(reset, shape[:2], "mask model")
        return state, given


def moments(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the tokens of a frame: [B, N, C] -> two of [B, C], the second never 0."""
    variance, mean = torch.var_mean(keys, 1, correction=0)
    return mean, (variance + 1e-5).sqrt()


def together(logits: Tensor) -> Tensor:
    """Log-odds of each object by itself [B, O, H, W] to logits of background and objects [B, 1 + O, H, W].

    Each pixel is divided in proportion to the odds of every object and of no object (soft aggregation, arXiv
    1904.00607, section 3.4).
    """
    logits = logits.clamp(-SURE, SURE)
    none = F.logsigmoid(-logits).sum(1, keepdim=True)  # log of the probability that the pixel belongs to no object
    return torch.cat([none - torch.log(-torch.expm1(none.clamp(max=-1e-6))), logits], 1)
