"""What every kind of `tttstream watch` does with a source: frame after frame, a picture in a window, keys, an end."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from tttstream.cli.progress import Progress
from tttstream.cli.recorder import Record
from tttstream.errors import FrameError
from tttstream.frames import Frame
from tttstream.io.interrupt import Interrupt
from tttstream.views.overlay import Picture, size_text

if TYPE_CHECKING:
    from tttstream.sources.base import Source
    from tttstream.views.window import Window

Step = Callable[[Frame], tuple["Picture | None", "float | None"]]
"""Push one frame and record it: (the picture drawn of it, its surprise; None where there is none)."""


class Watching(Protocol):
    """What the loop and the keys need of a stream."""

    learn: bool

    @property
    def state_bytes(self) -> int:
        """Bytes of the memory."""

    def reset(self) -> None:
        """Forget."""


def opened(spec: str, args: argparse.Namespace) -> Source:
    """The source of that name, as the options say."""
    from tttstream.sources import open_source

    more = {"poses": args.poses, "pose": args.pose, "pose_start": args.pose_start, "policy": args.policy}
    more["pose_tolerance"] = args.pose_tolerance
    return open_source(spec, on_error=args.on_error, size=args.size, seed=args.seed, **more)


def follow(
    source: Source,
    stream: Watching,
    step: Step,
    record: Record,
    window: Window | None,
    interrupt: Interrupt,
    args: argparse.Namespace,
) -> bool:
    """Take every frame of a source; True if a person ended it."""
    known = [count for count in (source.frames, args.max_frames) if count is not None]
    if source.about:
        print(f"poses: {source.about}", file=sys.stderr)
    progress = Progress(source.name, min(known) if known else None)
    pace = None
    try:
        for frame in source:
            try:
                picture, surprise = step(frame)
            except FrameError:
                if args.on_error == "raise":
                    raise
                record.rejected += 1
                continue
            progress.update(record.rate.late, surprise, size_text(stream.state_bytes))
            if window is not None and picture is not None:
                pace = pace or time.perf_counter() - frame.time_s
                early_s = 0.0 if source.live else pace + frame.time_s - time.perf_counter()
                if obey(window, window.show(picture, max(1, min(200, int(1000 * early_s)))), stream, interrupt):
                    return True
            if interrupt.asked:
                return True
            if record.frames == args.max_frames:
                break
    except KeyboardInterrupt:
        return True
    finally:
        progress.close()
        for remark in source.remarks():
            print(f"{source.name}: {remark}", file=sys.stderr)
    return False


def obey(window: Window, key: str, stream: Watching, interrupt: Interrupt) -> bool:
    """Do what a key says; True for the end of the run."""
    if key == " ":
        key = ""
        while not key and not interrupt.asked:
            key = window.key()
    if key == "f":
        stream.reset()
    elif key == "l":
        stream.learn = not stream.learn
    elif key == "q":
        interrupt.asked = True
    return interrupt.asked
