"""A unit scale for poses, which is given, or determined once and then constant."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import ConfigError, ShapeError, StateError

Floats = NDArray[np.float64]
WARMUP = 256


class PoseScale:
    """Scales poses to about unit size, the same pose always to the same numbers: (pose - offset) / scale.

    scale: the value that becomes 1, in the units of the poses: one number, or one for each number of a pose. Without it
    the scale is fixed after a warm-up of `warmup` poses: the offset is their mean, the scale their largest standard
    deviation, the same for all numbers, so that all axes keep one unit. The warm-up continues while all poses are
    equal. offset: is subtracted first, with a given scale; 0 unless given. directions: the indices of cosines, sines
    and rotations (`Form.directions`), which are not scaled.

    `push` returns None until the scale is fixed; then it never changes. Raises ShapeError for a scale that is not
    positive, and for a pose of another length than the first or with numbers that are not finite.
    """

    def __init__(
        self,
        scale: float | Sequence[float] | None = None,
        *,
        offset: Sequence[float] | None = None,
        directions: Sequence[int] = (),
        warmup: int = WARMUP,
    ) -> None:
        if warmup < 2:
            raise ConfigError(f"the warm-up of a pose's scale is {warmup}: expected 2 poses or more")
        if scale is None and offset is not None:
            raise ConfigError("an offset of poses belongs to a given scale: give scale=… too")
        self.warmup, self.directions = warmup, tuple(sorted(directions))
        self._scale = None if scale is None else np.asarray(scale, np.float64)
        self._offset = np.asarray(0.0 if offset is None else offset, np.float64)
        for name, value in (("scale", self._scale), ("offset", self._offset)):
            if value is not None and (value.ndim > 1 or not np.isfinite(value).all()):
                raise ConfigError(
                    f"the {name} of poses is {value.tolist()}: expected one number, or one for each number"
                )
        if self._scale is not None and not (self._scale > 0).all():
            raise ConfigError(f"the scale of poses is {self._scale.tolist()}: expected numbers above 0")
        self._width: int | None = None
        self._count = 0
        self._mean, self._squares = np.zeros(0), np.zeros(0)

    @property
    def fixed(self) -> bool:
        """Whether the scale is fixed."""
        return self._scale is not None

    def push(self, pose: NDArray[np.generic]) -> Floats | None:
        """The scaled pose [P], or None in the warm-up, in which the pose is used for the scale."""
        given = self._checked(pose)
        if self._scale is None:
            self._learn(given)
        return None if self._scale is None else self._apply(given)

    def normalise(self, pose: NDArray[np.generic]) -> Floats:
        """The scaled pose [P], without a change of the warm-up. Raises StateError in the warm-up."""
        if self._scale is None:
            raise StateError(f"the scale of poses is not known yet: {self._count} of {self.warmup} poses came")
        return self._apply(self._checked(pose))

    def _checked(self, pose: NDArray[np.generic]) -> Floats:
        given = np.asarray(pose, np.float64)
        if given.ndim != 1 or not np.isfinite(given).all():
            raise ShapeError(f"expected a pose [P] of finite numbers, got {given.tolist()!s:.80}")
        width = given.size if self._width is None else self._width
        fits = all(value is None or value.ndim == 0 or value.size == width for value in (self._scale, self._offset))
        if given.size != width or not fits or any(not 0 <= place < width for place in self.directions):
            raise ShapeError(
                f"a pose of {given.size} numbers does not go with its scale, which is for "
                f"{width if fits else 'another number of'} numbers and directions {list(self.directions)}"
            )
        self._width = width
        return given

    def _learn(self, pose: Floats) -> None:
        """Welford's running mean and sum of squares, doi 10.1080/00401706.1962.10490022."""
        if not self._count:
            self._mean, self._squares = np.zeros_like(pose), np.zeros_like(pose)
        self._count += 1
        change = pose - self._mean
        self._mean = self._mean + change / self._count
        self._squares = self._squares + change * (pose - self._mean)
        if self._count < self.warmup:
            return
        lengths = np.ones(pose.size, bool)
        lengths[list(self.directions)] = False
        spread = math.sqrt(float(self._squares[lengths].max(initial=0.0)) / self._count)
        if spread > 0 or not lengths.any():
            self._scale = np.where(lengths, spread, 1.0)
            self._offset = np.where(lengths, self._mean, 0.0)

    def _apply(self, pose: Floats) -> Floats:
        assert self._scale is not None
        scaled = (pose - self._offset) / self._scale
        places = list(self.directions)
        scaled[places] = pose[places]
        return scaled

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to continue bit for bit; JSON-able."""
        return {
            "warmup": self.warmup,
            "directions": list(self.directions),
            "width": self._width,
            "count": self._count,
            "mean": self._mean.tolist(),
            "squares": self._squares.tolist(),
            "scale": None if self._scale is None else self._scale.tolist(),
            "offset": self._offset.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the values of `state()`. Raises StateError for anything else."""
        if set(state) != set(self.state()):
            raise StateError(f"not the state of a scale of poses: it has {', '.join(sorted(map(str, state)))}")
        self.warmup, self.directions = int(state["warmup"]), tuple(map(int, state["directions"]))
        self._width = None if state["width"] is None else int(state["width"])
        self._count = int(state["count"])
        self._mean, self._squares, self._offset = (
            np.asarray(state[name], np.float64) for name in ("mean", "squares", "offset")
        )
        self._scale = None if state["scale"] is None else np.asarray(state["scale"], np.float64)
