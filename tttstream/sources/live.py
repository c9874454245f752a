"""The base class of live sources, and the poses that they request at each capture."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tttstream.errors import FrameError, SourceError, TTTStreamError
from tttstream.frames import Frame
from tttstream.poses import Form, PoseMissing
from tttstream.sources.base import Source


class Asked:
    """Requests the current pose, and counts the frames without a pose.

    give: a callable that takes the capture time (`time.monotonic()`) and returns a pose, or None if it is unknown; or a
    Feed. A frame without a pose is unchanged and counts in `unposed`; with strict it raises PoseMissing.
    """

    def __init__(self, give: Callable[[float], ArrayLike | None], name: str, *, strict: bool) -> None:
        self._give, self._name, self._strict = give, name, strict
        self.unposed, self.first = 0, ""
        self._width: int | None = None

    @property
    def form(self) -> Form | None:
        """The form of the poses, None if it is unknown."""
        return getattr(self._give, "form", None)

    @property
    def text(self) -> str:
        """The origin of the poses, in one line."""
        return str(getattr(self._give, "text", ""))

    def ask(self, moment: float) -> Any:
        """Request the current pose, for `put`. Returns errors instead of raising them, for use in a thread."""
        try:
            pose = self._give(moment)
            return pose if pose is not None else PoseMissing(getattr(self._give, "reason", "") or "none was given")
        except Exception as error:  # code of the user; `put` raises the error in the thread of the reader
            return error

    def put(self, frame: Frame, answer: Any) -> Frame:
        """The frame with the answered pose. Raises SourceError if the request failed."""
        if isinstance(answer, PoseMissing):
            return self._none(frame, str(answer))
        if isinstance(answer, Exception):
            if isinstance(answer, TTTStreamError):
                raise answer
            what = " ".join(str(answer).split())
            raise SourceError(
                f"{self._name}: the request for a pose failed: {type(answer).__name__}: {what}"
            ) from answer
        try:
            posed = replace(frame, pose=answer)
        except FrameError as error:
            return self._none(frame, str(error))
        assert posed.pose is not None
        self._width = self._width or posed.pose.size
        if posed.pose.size != self._width:
            return self._none(frame, f"a pose of {posed.pose.size} numbers, those before had {self._width}")
        return posed

    def _none(self, frame: Frame, reason: str) -> Frame:
        said = f"frame {frame.index} at {frame.time_s:.3f} s: {reason}"
        if self._strict:
            raise PoseMissing(f"{self._name} has no pose for {said}")
        self.unposed, self.first = self.unposed + 1, self.first or said
        return frame

    def remarks(self) -> list[str]:
        """A line about the frames without a pose, if there are any."""
        return [f"{self.unposed} frames without a pose, the first: {self.first}"] if self.unposed else []


class Live(Source):
    """Frames in real time, numbered in the order in which they are read; `time_s` counts from the first one.

    A live source cannot go back: `seek` continues the counts with the newest frame.
    """

    live = True
    _asked: Asked | None = None
    _index, _offset = 0, 0.0
    _origin: float | None = None

    def _numbered(self, image: NDArray[np.generic], moment: float) -> Frame:
        """The next frame, captured at this time."""
        if self._origin is None:
            self._origin = moment - self._offset
        self._index += 1
        return Frame(image, self._index - 1, max(0.0, moment - self._origin), captured=moment)

    @property
    def pose_form(self) -> Form | None:  # type: ignore[override]
        """The form of the poses, None while it is unknown."""
        return None if self._asked is None else self._asked.form

    @property
    def unposed(self) -> int:  # type: ignore[override]
        """Frames without a pose so far."""
        return 0 if self._asked is None else self._asked.unposed

    def remarks(self) -> list[str]:
        return [] if self._asked is None else self._asked.remarks()

    def position(self) -> dict[str, Any]:
        """The number of the next frame, and the time so far."""
        time_s = self._offset if self._origin is None else time.monotonic() - self._origin
        return {"source": self.name, "index": self._index, "time_s": time_s}

    def seek(self, position: dict[str, Any]) -> None:
        """Continue the counts from a position."""
        self._check(position)
        self._index, self._offset, self._origin = position["index"], float(position["time_s"]), None
