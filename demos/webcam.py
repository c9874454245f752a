"""Shows a live camera in a window with the surprise of a model that learns from it.

    python demos/webcam.py                      camera 0
    python demos/webcam.py --file clip.mp4      a file instead of a camera, in a loop

Keys: q quit, f forget, l learning on/off, space pause.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import tttstream
from tttstream import models
from tttstream.evaluation.detection import EventDetector
from tttstream.frames import Frame
from tttstream.views.overlay import Overlay
from tttstream.views.window import KEYS, Viewer


def looped(path: str) -> Iterator[Frame]:
    """The frames of a file at its own speed, in a loop, with increasing times."""
    began = time.monotonic()
    offset = 0.0
    index = 0
    while True:
        last = 0.0
        with tttstream.open_source(path) as source:
            for frame in source:
                last = frame.time_s
                time.sleep(max(0.0, offset + last - (time.monotonic() - began)))
                yield Frame(frame.image, index, offset + last)
                index += 1
            offset += last + 1 / (source.fps or 25)


def watch(frames: Iterator[Frame], stream: tttstream.Stream, window: Viewer) -> None:
    """Push every frame through the stream and show the result, until q is pressed."""
    overlay, events = Overlay(), EventDetector()
    seen = time.perf_counter()
    fps = 0.0
    for frame in frames:
        result = stream.push(frame)
        now = time.perf_counter()
        fps += 0.1 * (1 / (now - seen) - fps)
        seen = now
        picture = overlay.draw(
            frame.image,
            result,
            event=events.update(result),
            fps=fps,
            state_bytes=stream.state_bytes,
            note="" if stream.learn else "not learning",
        )
        key = window.show(picture)
        if key == " ":  # paused until another key
            key = ""
            while not key:
                key = window.key()
        if key == "q":
            return
        if key == "f":
            stream.reset()
        if key == "l":
            stream.learn = not stream.learn


def main() -> int:
    parser = argparse.ArgumentParser(
        description="A live camera, watched by a model that learns.", epilog=f"Keys: {KEYS}"
    )
    parser.add_argument("--camera", default="0", help="number of the camera (default: 0)")
    parser.add_argument("--file", help="a video instead of a camera, in a loop")
    parser.add_argument("--model", default="base", help="name or folder of the model (default: base)")
    args = parser.parse_args()
    try:
        stream = tttstream.Stream(models.load(args.model), embed=False)
        with Viewer("tttstream webcam") as window:
            if args.file:
                watch(looped(args.file), stream, window)
            else:
                with tttstream.open_source(args.camera) as camera:
                    watch(iter(camera), stream, window)
    except tttstream.TTTStreamError as error:
        print(f"webcam: {error}", file=sys.stderr)
        return 2
    print(f"{stream.frames} frames, state {stream.state_bytes} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
