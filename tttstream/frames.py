"""The input and the output of streams: Frame and Result."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import FrameError

MOST_NUMBERS = 64  # of a pose, which is no picture and no embedding
MARGIN = 0.5  # tolerance of floats outside 0..1: sharpening and noise exceed the range less, 0..255 and whitening more


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a stream.

    image: [H, W, 3] RGB, uint8 0..255 or float 0..1. index: its number in the source, from 0. time_s: presentation time
    in seconds from the start of the source. pose: where it was taken, [P] float64, 1 to 64 finite numbers whose meaning
    is constant in a stream (position, pan and tilt, joint angles); None if unknown. It is stored as a read-only copy.
    captured: capture time by `time.monotonic()` of this machine; None for recorded or generated frames.

    Raises FrameError if the image is no RGB array or the pose is no such vector.
    """

    image: NDArray[np.generic]
    index: int = 0
    time_s: float = 0.0
    pose: NDArray[np.float64] | None = None
    captured: float | None = None

    def __post_init__(self) -> None:
        image = self.image
        if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            shape = getattr(image, "shape", None)
            raise FrameError(f"frame {self.index}: expected an RGB array [height, width, 3], got {shape = }")
        if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
            raise FrameError(f"frame {self.index}: expected uint8 (0..255) or float (0..1), got {image.dtype}")
        if self.pose is not None:
            object.__setattr__(self, "pose", _pose(self.pose, self.index))

    def pixels(self) -> NDArray[np.generic]:
        """The image [H, W, 3] as uint8 or float32. Raises FrameError if floats are not finite or far outside 0..1."""
        if self.image.dtype == np.uint8:
            return self.image
        with np.errstate(over="ignore"):
            image = self.image.astype(np.float32)
        low, high = float(image.min()), float(image.max())
        if not np.isfinite([low, high]).all():  # with a NaN both minimum and maximum are NaN
            raise FrameError(f"frame {self.index}: it has pixels that are not finite; drop it, or repair it first")
        if low < -MARGIN or high > 1 + MARGIN:
            raise FrameError(
                f"frame {self.index}: pixels as floats lie in 0..1, these in {low:.3g}..{high:.3g}; "
                "give uint8 for 0..255, and no whitened pictures"
            )
        return image

    def __repr__(self) -> str:
        height, width, _ = self.image.shape
        pose = "" if self.pose is None else f", pose=[{' '.join(f'{number:.4g}' for number in self.pose)}]"
        return f"Frame(index={self.index}, time_s={self.time_s:.3f}, {width}x{height} {self.image.dtype}{pose})"


def _pose(given: NDArray[np.generic], index: int) -> NDArray[np.float64]:
    """A read-only float64 copy of a pose, because the caller may change its array."""
    try:
        found = np.asarray(given)
    except ValueError as error:
        raise FrameError(f"frame {index}: its pose is no vector of numbers ({error})") from error
    if found.dtype.kind not in "iuf":
        raise FrameError(f"frame {index}: expected a pose of real numbers, got {found.dtype} ({given!r:.60})")
    if found.ndim != 1 or not 1 <= found.size <= MOST_NUMBERS:
        raise FrameError(f"frame {index}: expected a pose of 1 to {MOST_NUMBERS} numbers, got the shape {found.shape}")
    pose = np.array(found, np.float64)
    if not np.isfinite(pose).all():
        raise FrameError(f"frame {index}: its pose has numbers that are not finite ({pose.tolist()!s:.80})")
    pose.flags.writeable = False
    return pose


class Label(NamedTuple):
    """A class and its probability."""

    name: str
    probability: float


@dataclass(frozen=True, eq=False)
class Result:
    """The result of a stream for one frame.

    index, time_s: those of the frame. surprise: inner loss of the frame before the memory learned it, normalised online
    (0 is usual for this stream, 1 is one standard deviation above it), so that a threshold has the same meaning for
    every stream. loss: the same before normalisation (mean over tokens). learned: the share of `loss` that the update
    on this frame removed, (before - after) / before. surprise_map: [h, w] the loss per patch, same units as `loss`.
    embedding: [D] one vector of length 1 for the frame; [0] from a stream without embeddings. latency_ms: wall time
    from the frame's arrival to this result. expected: [S, S, 3] uint8, the prediction of this frame before it was
    processed. A map predicts it for the frame's pose, which it corrects where poses are not exact; a stream with
    `predict`, from the frames before; None from other streams, and for a first frame. familiar: 0..1, how well the
    place was known before the frame; None from a stream without a map. labels: of a classifier, the most probable
    classes of the frame, at most five, in decreasing order. so_far: the same for all frames since the last reset, by
    the mean of their log probabilities. A classifier whose memory has no inner loss (gru, window …) has surprise, loss
    and learned 0.
    """

    index: int
    time_s: float
    surprise: float
    loss: float
    learned: float
    latency_ms: float
    surprise_map: NDArray[np.float32] = field(repr=False)
    embedding: NDArray[np.float32] = field(repr=False)
    expected: NDArray[np.uint8] | None = field(repr=False, default=None)
    familiar: float | None = None
    labels: tuple[Label, ...] = ()
    so_far: tuple[Label, ...] = ()
