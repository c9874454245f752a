"""Boxes in shares of a picture, drawn by the user."""

from collections.abc import Sequence

from tttstream.errors import ConfigError

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge in 0..1 of the picture."""
MOST = 32


def box_of(numbers: Sequence[float]) -> Box:
    """A box x0 < x1, y0 < y1 within 0..1. Raises ConfigError for anything else."""
    try:
        x0, y0, x1, y1 = (float(number) for number in numbers)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a box is four numbers x0, y0, x1, y1 in 0..1, got {numbers!r:.80}") from error
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise ConfigError(f"a box has 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, got {[x0, y0, x1, y1]}")
    return x0, y0, x1, y1


def boxes_of(boxes: Sequence[Sequence[float]]) -> tuple[Box, ...]:
    """At most MOST boxes. Raises ConfigError."""
    if len(boxes) > MOST:
        raise ConfigError(f"at most {MOST} boxes can be ignored, got {len(boxes)}")
    return tuple(box_of(box) for box in boxes)
