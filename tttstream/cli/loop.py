"""The loop of `watch` and `track` over a source: frames, the window with its keys, the end, and the files."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tttstream.cli.progress import Progress
from tttstream.cli.recorder import Record
from tttstream.errors import FrameError, SourceError
from tttstream.frames import Frame
from tttstream.io.addresses import public
from tttstream.io.claims import Claim
from tttstream.io.interrupt import Interrupt
from tttstream.io.names import shown
from tttstream.io.outputs import OutputFolder, saving
from tttstream.streams.session import Session
from tttstream.views.overlay import Picture, size_text

if TYPE_CHECKING:
    from tttstream.sources.base import Source
    from tttstream.views.window import Viewer

PATIENCE = 300  # frames of an endless source, none of which can be used

Step = Callable[[Frame], tuple["Picture | None", "float | None"]]
"""Push one frame and record it. Returns (the drawn picture, the surprise), each None if there is none."""


def opened(spec: str, args: argparse.Namespace) -> Source:
    """Open a source with the options of the command."""
    from tttstream.sources import open_source

    more = {"poses": args.poses, "pose": args.pose, "pose_start": args.pose_start, "policy": args.policy}
    more |= {"pose_tolerance": args.pose_tolerance, "topic": args.topic, "clock": args.clock}
    return open_source(spec, on_error=args.on_error, size=args.size, seed=args.seed, **more)


def claimed(args: argparse.Namespace, stack: ExitStack) -> Viewer | None:
    """Open the window, if --show is given, and lock the file of --save-state, until the stack ends."""
    window = None
    if args.show:
        from tttstream.views.window import Viewer

        window = Viewer()
        stack.callback(window.close)
    if args.save_state is not None:
        stack.enter_context(OutputFolder(args.save_state.absolute().parent, claim=False))
        with saving(args.save_state):
            stack.enter_context(Claim.on_file(args.save_state))
    return window


def described(summary: dict[str, Any]) -> str:
    """The source of a summary, its frames, its speed and its latency, in words."""
    frames = f"{summary['frames']} frames{', interrupted' if summary['interrupted'] else ''}"
    latency = f"latency {summary['latency_ms']['p50']:.0f} ms (p95 {summary['latency_ms']['p95']:.0f})"
    return f"{shown(summary['source'])}: {frames}, {summary['fps']:.1f} fps, {latency}"


@dataclass
class Run:
    """One source, and everything that takes part in processing it."""

    spec: str
    source: Source
    stream: Session
    step: Step
    record: Record
    window: Viewer | None
    interrupt: Interrupt
    args: argparse.Namespace
    why: str = ""
    """Why the first frame that was skipped could not be used."""

    def recorded(self, more: dict[str, Any], title: str = "") -> dict[str, Any]:
        """Process every frame of the source and write the results. Returns the summary. After a failure no file is
        left. more: additional entries of the summary. title: of the chart.
        """
        record, args = self.record, self.args
        try:
            record.open(endless=self.source.frames is None and args.max_frames is None)
            interrupted = self._follow()
            if not record.frames and interrupted:
                raise KeyboardInterrupt
            if not record.frames:
                after = " after the saved position" if args.load_state else ""
                raise SourceError(f"{public(self.spec)}: no readable frame{after}{self.why}")
            summary = {
                "source": public(self.spec),
                "model": args.model,
                "size": self.stream.size,
                **more,
                "learn": not args.no_learn,
                "interrupted": interrupted,
                "state_bytes": self.stream.state_bytes,
                **record.summary(),
            }
            record.finish(summary, title)
            if args.save_state is not None:
                self.stream.save(args.save_state, self.source)
            record.publish()
        except BaseException:
            record.discard()
            raise
        return summary

    def _follow(self) -> bool:
        """Process every frame of the source; True if the user ended it."""
        source, stream, window, args = self.source, self.stream, self.window, self.args
        known = [count for count in (source.frames, args.max_frames) if count is not None]
        if source.about:
            print(f"poses: {source.about}", file=sys.stderr)
        progress = Progress(source.name, min(known) if known else None)
        pace = None
        try:
            for frame in source:
                try:
                    picture, surprise = self.step(frame)
                except FrameError as error:
                    if args.on_error == "raise":
                        raise
                    self.why = self.why or f": {error}"
                    self.record.rejected += 1
                    if source.frames is None and not self.record.frames and self.record.rejected >= PATIENCE:
                        break
                    continue
                progress.update(self.record.rate.late, surprise, size_text(stream.state_bytes))
                if window is not None and picture is not None:
                    pace = pace or time.perf_counter() - frame.time_s
                    early_s = 0.0 if source.live else pace + frame.time_s - time.perf_counter()
                    if self._obey(window, window.show(picture, max(1, min(200, int(1000 * early_s))))):
                        return True
                if self.interrupt.asked:
                    return True
                if self.record.frames == args.max_frames:
                    break
        except KeyboardInterrupt:
            return True
        finally:
            progress.close()
            for remark in source.remarks():
                print(f"{source.name}: {remark}", file=sys.stderr)
        return False

    def _obey(self, window: Viewer, key: str) -> bool:
        """Handle a key; True ends the run."""
        if key == " ":
            key = ""
            while not key and not self.interrupt.asked:
                key = window.key()
        if key == "f":
            self.stream.reset()
        elif key == "l":
            self.stream.learn = not self.stream.learn
        elif key == "q":
            self.interrupt.asked = True
        return self.interrupt.asked
