"""MaskStream: follows objects through an endless stream and returns one mask for each frame."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tttstream import state as states
from tttstream.errors import ConfigError, FrameError
from tttstream.frames import Frame
from tttstream.io.mask_files import VOID
from tttstream.models.masks.networks import WHOLE
from tttstream.models.masks.propagator import MaskOutput, ObjectState, Propagator
from tttstream.models.masks.target import TargetState
from tttstream.streams import outlines, windows
from tttstream.streams.canvas import Canvas, Labels
from tttstream.streams.session import Session
from tttstream.streams.windows import Window


@dataclass(frozen=True, eq=False)
class MaskResult:
    """The result of a mask stream for one frame. index, time_s: those of the frame. mask: [H, W] uint8 of the frame's
    own size, the object of each pixel. confidence: [objects] the predicted overlap J of each object's mask, in 0..1;
    near 0 if the object is lost or out of view, 0 if it has no pixel. For models that do not predict J, such as `mask`,
    it is the mean probability over the pixels of the object. given: whether the mask was given with the frame.
    latency_ms: wall time from the frame's arrival to this result. added: the object of `add`, else None.
    """

    index: int
    time_s: float
    mask: Labels = field(repr=False)
    confidence: NDArray[np.float32]
    given: bool
    latency_ms: float
    added: int | None = None


class MaskStream(Session):
    """A mask model that follows objects through one stream.

    model: a TargetModel or MixtureModel. objects: how many it can follow at the same time. size: short side of the
    resized frames in pixels, by default the model's. crop: process only windows around the objects (see
    `tttstream.streams.windows`), with about as many pixels as a square of this side has, and never finer than `size`; a
    TargetModel only. learn: whether the memory learns from the masks it predicts. numbers: the values of the objects 1,
    2 … in mask files. The stream stores them, also when it is saved, and does not use them. windows: the number of
    windows in the last frame.

    >>> stream = MaskStream(tttstream.models.load("track"))
    >>> result = stream.push(first_frame, mask=first_mask)
    >>> for frame in the_others:
    ...     result = stream.push(frame)
    """

    MODELS = (Propagator,)
    KEY = "masks"
    state: ObjectState

    def __init__(
        self,
        model: Propagator[Any],
        *,
        objects: int = 1,
        size: int | None = None,
        crop: int | None = None,
        learn: bool = True,
    ) -> None:
        if not 1 <= objects <= 255:
            raise ConfigError(f"mask stream: expected 1 to 255 objects, got {objects}")
        self.objects, self.numbers = objects, list(range(1, objects + 1))
        super().__init__(model, "cpu", learn=learn)
        self.size = self.size if size is None else size
        if self.size < WHOLE:
            raise ConfigError(f"mask stream: size is {self.size}, expected a short side of at least {WHOLE} pixels")
        if crop is not None and not model.VIEWS:
            raise ConfigError(f"mask stream: a {type(model).__name__} looks at whole frames: leave crop out")
        if crop is not None and crop < windows.LEAST:
            raise ConfigError(f"mask stream: crop is {crop}, expected a side of at least {windows.LEAST} pixels")
        self.crop = crop

    def push(self, frame: Frame | NDArray[np.generic], mask: NDArray[np.generic] | None = None) -> MaskResult:
        """Find the objects in one frame and learn from the predicted masks.

        frame: a Frame, or an RGB array [H, W, 3], uint8 or float in 0..1. mask: [H, W] whole numbers, 0 the background
        and 1 … `objects`; bool for one object. It is the ground truth for the objects that it shows, which are learned
        again; the others are followed as before. An object without a mask so far has no pixels. Pixels of VOID (-1) are
        unknown: patches with other pixels are learned without them, and in the result they are background.

        Raises FrameError for a frame or mask that cannot be used; the stream is then unchanged.
        """
        arrived, frame = self._arrived(frame)
        height, width = frame.image.shape[:2]
        shown = None if mask is None else self.given(mask, height, width)
        void = None if mask is None else torch.from_numpy(np.asarray(mask) == VOID)
        through, zooms = self._windows(height, width, shown)
        canvas, parts = Canvas(height, width, self.objects), []
        with torch.inference_mode():
            for window in through:
                output, part = self._said(frame, window, shown, void)
                canvas.draw(output, window, alone=len(through) == 1)
                parts.append((window.objects, part))
            state = self.state.joined(parts)
        found, sure = canvas.done(self.model.FITS)
        if mask is not None and shown is not None:  # what was given stands to the pixel
            whole = np.maximum(np.asarray(mask), 0).astype(np.uint8)
            again = np.concatenate([[False], shown.flatten(1).any(1).numpy()])
            found = np.where(whole > 0, whole, np.where(again[found], 0, found))
        self.state, self._zooms, self.windows = state, zooms, len(through)
        self.frames += 1
        return MaskResult(
            index=frame.index,
            time_s=frame.time_s,
            mask=found.astype(np.uint8),
            confidence=sure,
            given=mask is not None,
            latency_ms=(time.perf_counter() - arrived) * 1e3,
        )

    def add(
        self,
        *,
        frame: Frame | NDArray[np.generic],
        mask: NDArray[np.generic] | None = None,
        box: Sequence[float] | None = None,
        point: Sequence[float] | None = None,
        number: int | None = None,
    ) -> MaskResult:
        """Process one frame like `push`, and add or correct an object in it.

        Give one of mask, box and point, in pixels of the frame. mask: [H, W], above 0 on the object. box: x, y, width,
        height. point: x, y. Boxes and points are segmented by colours, and the box of a followed object also by its
        predicted mask, see `tttstream.streams.outlines`. number: the object to correct; by default the first object
        that has no mask so far. The other objects are followed as before. `added` of the result is the number of the
        object.

        Raises FrameError for a frame or outline that cannot be used, ConfigError if the stream has no place for another
        object; the stream is then unchanged.
        """
        if (mask is not None) + (box is not None) + (point is not None) != 1:
            raise FrameError("add: expected one of mask, box and point")
        number = self._free() if number is None else number
        if not 1 <= number <= self.objects:
            raise ConfigError(f"add: the stream follows objects 1 to {self.objects}, got number {number}")
        frame = frame if isinstance(frame, Frame) else Frame(frame, index=self.frames)
        if mask is not None:
            shown = np.asarray(mask) > 0
        elif box is not None:
            known = bool(self.state.seen[0, number - 1] > 0)
            guess = self.copy().push(frame).mask == number if known else None
            shown = outlines.from_box(frame.pixels(), box, guess)
        else:
            assert point is not None
            shown = outlines.from_point(frame.pixels(), point)
        return replace(self.push(frame, shown * np.int64(number)), added=number)

    def forget(self, number: int) -> None:
        """Stop following one object; its place is free for another. Raises ConfigError for a number that the stream
        does not have."""
        if not 1 <= number <= self.objects:
            raise ConfigError(f"forget: the stream follows objects 1 to {self.objects}, got number {number}")
        self.state = self.state.without(number - 1)
        self._zooms[number - 1] = 0.0

    def reset(self) -> None:
        super().reset()
        self._zooms = [0.0] * self.objects
        self.windows = 0

    def _windows(self, height: int, width: int, shown: Tensor | None) -> tuple[list[Window], list[float]]:
        """The windows of a frame and the zoom of each object; without `crop` the whole frame is the only window."""
        if self.crop is None:
            sides, every = self._sides(height, width), list(range(self.objects))
            return [Window(0, 0, height, width, sides, every)], self._zooms
        assert isinstance(self.state, TargetState)
        boxes = windows.where(self.state, shown, height, width)
        before = list(self._zooms)
        for number in boxes:
            if shown is not None and bool(shown[number].any()):
                before[number] = 0.0
        return windows.planned(boxes, before, height, width, self.crop**2, self.size / min(height, width))

    def _said(
        self, frame: Frame, window: Window, shown: Tensor | None, void: Tensor | None
    ) -> tuple[MaskOutput, ObjectState]:
        """The output of the model for a window, and the state of its objects after it. shown: [objects, H, W], void:
        [H, W], those of the whole frame."""
        rows, columns = window.slices
        picture = self._prepared(frame.pixels()[rows, columns], window.sides)
        view = None if self.crop is None else window.view(*frame.image.shape[:2]).to(picture)[None, None]
        masks = given = None
        if shown is not None and void is not None:
            shown, void = shown[window.objects][:, rows, columns], void[rows, columns]
            masks = F.interpolate(shown[None], window.sides, mode="area")[None]
            if bool(void.any()):  # the share of an object is its share of the pixels that are known
                known = F.interpolate((~void).to(masks.dtype)[None, None], window.sides, mode="area")
                masks = masks / known.clamp(min=1e-3)
            given = shown.flatten(1).any(1)[None, None]
        state = self.state.of(window.objects)
        output, state = self.model(picture[None, None], state, masks=masks, given=given, view=view, learn=self.learn)
        if not all(bool(x.isfinite().all()) for x in (output.logits, *state.tensors())):
            raise FrameError(f"frame {frame.index}: the masks are not finite; reset the stream or load its last state")
        return output, state

    def _free(self) -> int:
        unseen = (self.state.seen[0] == 0).nonzero().flatten().tolist()
        if not unseen:
            raise ConfigError(
                f"the stream follows {self.objects} object{'s' * (self.objects > 1)} and has no room for another: make "
                "it with more, MaskStream(model, objects=…), or say with number= which one is corrected"
            )
        return int(unseen[0]) + 1

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        return self._scaled(height, width, WHOLE)

    def given(self, mask: NDArray[np.generic], height: int, width: int) -> Tensor:
        """The shares [objects, H, W] in 0..1 of the objects in a mask of labels [H, W]. Raises FrameError for a mask
        that does not fit."""
        mask = np.asarray(mask)
        if mask.shape != (height, width) or mask.dtype.kind not in "bui":
            raise FrameError(
                f"expected a mask of whole numbers [{height}, {width}] like the frame, "
                f"got {mask.dtype} {list(mask.shape)}"
            )
        numbers = np.unique(mask)
        if numbers[0] < VOID or numbers[-1] > self.objects:
            wrong = numbers[0] if numbers[0] < VOID else numbers[-1]
            raise FrameError(f"the mask has object {wrong}, the stream follows {self.objects}: say objects=…")
        if numbers[-1] <= 0:
            empty, void = "shows no object: every pixel is 0", "has objects nowhere: all is 0 or void (-1)"
            raise FrameError(f"the mask {void if numbers[0] == VOID else empty}")
        labels = torch.from_numpy(np.ascontiguousarray(mask).astype(np.int64))
        return (labels == torch.arange(1, self.objects + 1)[:, None, None]).to(self.model.dtype)

    def _fresh(self) -> ObjectState:
        return self.model.init_state(1, self.objects)

    def _more(self) -> dict[str, Any]:
        return {"objects": self.objects, "numbers": self.numbers, "crop": self.crop, "zooms": self._zooms}

    def _restored(self, path: str | os.PathLike[str], meta: dict[str, Any]) -> ObjectState:
        state: ObjectState = states.load(path, self.model.init_state(1, meta["objects"]))
        return state

    def _go_on(self, meta: dict[str, Any]) -> None:
        self.objects, self.size = int(meta["objects"]), int(meta["size"])
        self.numbers = meta.get("numbers", list(range(1, self.objects + 1)))  # files of 0.1 do not say
        self.crop, self._zooms = meta.get("crop"), meta.get("zooms", [0.0] * self.objects)  # nor files of 0.3
