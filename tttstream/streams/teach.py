"""TeachStream: things are taught by name, and then found in every later frame."""

import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tttstream.errors import ConfigError, FrameError, ShapeError
from tttstream.frames import Frame
from tttstream.memory.binding import BindingState
from tttstream.models.teach import CELL, TeachModel, windows
from tttstream.streams.session import Session

UNKNOWN = "unknown"
"""The name of everything that was not taught."""

LONGEST = 64  # most letters of a name

Box = tuple[float, float, float, float]
"""Left edge, top edge, width and height, in pixels of the frame."""


@dataclass(frozen=True)
class Found:
    """A taught thing in view. label: its name. probability: that it is in view. box: its rough position, see `Box`."""

    label: str
    probability: float
    box: Box


@dataclass(frozen=True)
class TeachResult:
    """The result of a teach stream for one frame. index, time_s: those of the frame. found: the taught things in view,
    the surest first. unknown: the probability that no taught thing is in view. latency_ms: wall time from the frame's
    arrival to this result.
    """

    index: int
    time_s: float
    found: tuple[Found, ...]
    unknown: float
    latency_ms: float

    @property
    def label(self) -> str:
        """The surest thing in view, or "unknown"."""
        return self.found[0].label if self.found else UNKNOWN


class TeachStream(Session):
    """A stream that remembers taught things and finds them in later frames.

    model: a TeachModel. device: "auto", "cpu", "cuda" … learn: whether it may be taught. size: the short side of the
    resized frames in pixels, by default the model's. certain: the least probability of a thing that is in view, by
    default the model's. labels: the taught names, in the order of their slots in the memory.

    The size of its memory is constant. `push` does not change the memory, so a taught thing stays until `forget`.

    >>> stream = TeachStream(tttstream.models.load("teach"))
    >>> stream.teach("my mug", frame, box=(120, 80, 60, 70))
    >>> stream.push(frame).found
    """

    MODELS = (TeachModel,)
    KEY = "taught"
    state: BindingState
    surprises = False

    def __init__(
        self,
        model: TeachModel,
        device: str = "cpu",
        *,
        learn: bool = True,
        size: int | None = None,
        certain: float | None = None,
    ) -> None:
        self._places: dict[str, int] = {}
        super().__init__(model, device, learn=learn)
        self.size = self.size if size is None else size
        self.certain = float(model.config.certain if certain is None else certain)
        if self.size < CELL:
            raise ConfigError(f"teach stream: size is {self.size}, expected a short side of at least {CELL} pixels")
        if not 0 < self.certain < 1:
            raise ConfigError(f"teach stream: certain is {self.certain}, expected a probability between 0 and 1")

    @property
    def labels(self) -> tuple[str, ...]:
        """The taught names, in the order in which they were first taught."""
        return tuple(self._places)

    def examples(self, label: str) -> int:
        """The number of stored examples of a label, at most the model's horizon. Raises ConfigError for a label that
        was not taught."""
        return int(self.state.counts[0, self._place(label)])

    def teach(
        self,
        label: str,
        frame: Frame | NDArray[np.generic],
        box: Sequence[float] | None = None,
        mask: NDArray[np.generic] | None = None,
    ) -> None:
        """Learn one example of a thing. More examples of the same label improve its recognition.

        label: its name. frame: a Frame, or an RGB array [H, W, 3]. box: where it is, (left, top, width, height) in
        pixels. mask: [H, W], not 0 if it is, instead of a box; the box around it counts. The whole frame unless one
        is given.

        Raises ConfigError for a name that cannot be used, if all slots of the model are used, and if `learn` is off;
        ShapeError for a box or mask that does not fit; FrameError for a frame that cannot be used. The stream is then
        unchanged.
        """
        if not self.learn:
            raise ConfigError(f"cannot teach {label!r}: learning is off")
        label = _name(label)
        place = self._places[label] if label in self._places else self._free(label)
        frame = frame if isinstance(frame, Frame) else Frame(frame)
        height, width = frame.image.shape[:2]
        where = torch.tensor([_shares(box, mask, height, width)], device=self.device)
        with torch.no_grad():
            key = self.model.keys(self.model.maps(self.picture(frame)), where)
            if not bool(key.isfinite().all()):
                raise FrameError(f"frame {frame.index}: its features are not finite")
            told = torch.zeros(1, self.model.config.labels, device=self.device)
            told[0, place] = 1
            self.state = self.model.memory.bind(self.state, key, told)
        self._places[label] = place

    def forget(self, label: str) -> None:
        """Remove all examples of one label. Raises ConfigError for a label that was not taught."""
        place = self._place(label)
        with torch.no_grad():
            self.state = self.model.memory.forget(self.state, place)
        del self._places[_plain(label)]

    def reset(self) -> None:
        """Remove all examples of all labels."""
        super().reset()
        self._places = {}

    def push(self, frame: Frame | NDArray[np.generic]) -> TeachResult:
        """Find the taught things in a frame. frame: a Frame, or an RGB array [H, W, 3].

        Raises FrameError for a frame that cannot be used.
        """
        arrived, frame = self._arrived(frame)
        height, width = frame.image.shape[:2]
        found: list[Found] = []
        unknown = 1.0
        picture = self.picture(frame)
        if self._places:
            boxes = windows(height, width)
            with torch.inference_mode():
                keys = self.model.everywhere(self.model.maps(picture), height, width)
                evidence = self.model.memory.evidence(self.state, keys[None])[0].cpu()
            if not bool(evidence.isfinite().all()):
                raise FrameError(f"frame {frame.index}: the evidence is not finite; reset the stream or load its state")
            found, unknown = self._seen(evidence, boxes, height, width)
        self.frames += 1
        return TeachResult(
            index=frame.index,
            time_s=frame.time_s,
            found=tuple(found),
            unknown=unknown,
            latency_ms=(time.perf_counter() - arrived) * 1e3,
        )

    def _seen(self, evidence: Tensor, boxes: Tensor, height: int, width: int) -> tuple[list[Found], float]:
        """From the evidence [n, L] of the windows `boxes` [n, 4]: the things in view, and the probability that none
        is."""
        most, at = evidence.max(0)
        best = (most - self.model.config.search).sigmoid()
        found = []
        for label, place in self._places.items():
            probability = float(best[place])
            if probability >= self.certain:
                left, top, right, bottom = boxes[at[place]].tolist()
                box = (left * width, top * height, (right - left) * width, (bottom - top) * height)
                found.append(Found(label, probability, box))
        return sorted(found, key=lambda thing: -thing.probability), 1 - float(best.max())

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        return self._scaled(height, width, CELL)

    def _place(self, label: str) -> int:
        place = self._places.get(_plain(label)) if isinstance(label, str) else None
        if place is None:
            known = ", ".join(self._places) or "nothing yet"
            raise ConfigError(f"{label!r} was not taught; taught are: {known}")
        return place

    def _free(self, label: str) -> int:
        """The first free slot. Raises ConfigError if there is none."""
        taken = set(self._places.values())
        free = next((place for place in range(self.model.config.labels) if place not in taken), None)
        if free is None:
            raise ConfigError(f"cannot teach {label!r}: all {len(taken)} labels of the model are taken, forget one")
        return free

    def _more(self) -> dict[str, Any]:
        return {"labels": self._places, "certain": self.certain}

    def _go_on(self, meta: dict[str, Any]) -> None:
        labels = {str(label): int(place) for label, place in meta["labels"].items()}
        plain = {_plain(label): place for label, place in labels.items()}
        self._places = plain if len(plain) == len(labels) else labels  # saved before both forms of a name were one
        self.size, self.certain = int(meta["size"]), float(meta["certain"])


def _plain(label: str) -> str:
    """A label without spaces around it, with composed accents: names of folders may have decomposed ones."""
    return unicodedata.normalize("NFC", label.strip())


def _name(label: str) -> str:
    """A label in the form of `_plain`. Raises ConfigError for an empty or long one, and for "unknown"."""
    name = _plain(label) if isinstance(label, str) else ""
    if not name or len(name) > LONGEST or not name.isprintable():
        raise ConfigError(f"{label!r} is no label: expected a name of 1 to {LONGEST} printable letters")
    if name.lower() == UNKNOWN:
        raise ConfigError(f"{name!r} stands for things that were not taught: use another label")
    return name


def _shares(box: Sequence[float] | None, mask: NDArray[np.generic] | None, height: int, width: int) -> list[float]:
    """A box, or the box around a mask, as left, top, right, bottom, in shares of the frame's sides; the whole frame if
    neither is given. Boxes are clipped to the frame."""
    if box is not None and mask is not None:
        raise ShapeError("teach: give a box or a mask, not both")
    if mask is not None:
        shown = np.asarray(mask)
        if shown.shape != (height, width):
            raise ShapeError(f"teach: expected a mask of the frame's size [{height}, {width}], got {list(shown.shape)}")
        if shown.dtype.kind not in "buif" or not np.isfinite(shown).all():
            raise ShapeError(f"teach: expected a mask of finite numbers or bool, got {shown.dtype}, or it has a NaN")
        rows, columns = np.nonzero(shown)
        if not len(rows):
            raise ShapeError("teach: the mask shows nothing, every pixel is 0")
        left, top = columns.min(), rows.min()
        box = (left, top, columns.max() + 1 - left, rows.max() + 1 - top)
    if box is None:
        return [0.0, 0.0, 1.0, 1.0]
    try:
        numbers = np.asarray(box, np.float64)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.shape != (4,) or not np.isfinite(numbers).all() or (numbers[2:] <= 0).any():
        raise ShapeError(f"teach: expected a box (left, top, width, height) in pixels, got {box}")
    left, top = max(0.0, numbers[0]), max(0.0, numbers[1])
    right, bottom = min(float(width), numbers[0] + numbers[2]), min(float(height), numbers[1] + numbers[3])
    if right - left < 1 or bottom - top < 1:
        raise ShapeError(f"teach: the box {tuple(numbers.tolist())} is outside the frame of {width}x{height} pixels")
    return [left / width, top / height, right / width, bottom / height]
