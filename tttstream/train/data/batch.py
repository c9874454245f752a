"""The input of a training step: one segment of each of B streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Segments of T frames; row b continues with the same stream in the next batch.

    frames: uint8 [B, T, 3, H, W]. reset: bool [B, T], whether the memory of row b is reset before frame t. position:
    int64 [B, T], frames since the last reset. frame: int64 [B, T], its number in its own video. clip: int64 [B, T], the
    number of the clip in the list of clips, -1 where there is none. label: int64 [B, T], the class of the clip, -1
    where there is none. valid: bool [B, T], False for positions without a frame, only in evaluations: a row has no
    further video, or a video ended early. These positions are zeros and are ignored. mask: int64 [B, T, H, W], the
    number of the object of each pixel, 0 the background, -1 unknown (void); None if no clip has masks. Numbers are
    those of the files and may have gaps. after: uint8 [B, 1, 3, H, W], the next frame if the batch is a part of a
    longer segment, else None. follows: bool [B, 1], whether it is valid and of the same video as the last frame.
    """

    frames: Tensor
    reset: Tensor
    position: Tensor
    frame: Tensor
    clip: Tensor
    label: Tensor
    valid: Tensor
    mask: Tensor | None = None
    pose: Tensor | None = None
    after: Tensor | None = None
    follows: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with each tensor changed."""
        return Batch._make(None if item is None else change(item) for item in self)

    def part(self, begin: int, end: int) -> Batch:
        """The frames [begin, end) of every row, and the next one in `after`."""
        cut = self.map(lambda item: item[:, begin:end])
        if end >= self.frames.shape[1]:
            return cut
        goes_on = self.valid & ~self.reset
        return cut._replace(after=self.frames[:, end : end + 1], follows=goes_on[:, end : end + 1])

    @staticmethod
    def woven(parts: Sequence[Batch]) -> Batch:
        """Interleave the rows of W batches: row b comes from batch b mod W."""

        def weave(items: Sequence[Tensor]) -> Tensor:
            whole = items[0].new_empty(sum(map(len, items)), *items[0].shape[1:])
            for number, item in enumerate(items):
                whole[number :: len(items)] = item
            return whole

        if len(parts) == 1:
            return parts[0]
        return Batch._make(None if items[0] is None else weave(items) for items in zip(*parts, strict=True))
