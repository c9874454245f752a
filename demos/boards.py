"""Measures `watch`, `track` and `teach` on one and two threads, for boards and other small computers.

    python demos/boards.py VIDEO --frames 40

Each runs in a separate process on frames of VIDEO. Frames per second are over the processor time with one thread; with
more threads they are over the wall time of the fastest tenth of the frames, which is meaningful only on an idle
machine. Memory is the peak of the process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

COMMANDS = {"watch": "base", "track": "track", "teach": "teach"}


def measure(command: str, video: str, frames: int, threads: int) -> dict[str, Any]:
    """The figures of one command in this process."""
    import numpy as np
    import torch

    import tttstream
    from tttstream.streams import MaskStream, Stream, TeachStream
    from tttstream.streams.windows import usual

    torch.set_num_threads(threads)
    kinds: dict[str, Any] = {"watch": Stream, "track": MaskStream, "teach": TeachStream}
    model = tttstream.models.load(COMMANDS[command])
    options = dict(zip(("size", "crop"), usual(model, None, None), strict=True)) if command == "track" else {}
    stream, walls, times = kinds[command](model, **options), [], []
    with tttstream.open_source(video) as source:
        for number, frame in enumerate(itertools.islice(source, frames)):
            height, width = frame.image.shape[:2]
            box = (width // 4, height // 4, width // 3, height // 3)
            if number == 0 and command == "teach":
                stream.teach("thing", frame, box)
            mask = np.zeros((height, width), np.uint8)
            mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 1
            wall, processor = time.perf_counter(), time.process_time()
            stream.push(frame, mask) if number == 0 and command == "track" else stream.push(frame)
            walls.append(time.perf_counter() - wall)
            times.append(time.process_time() - processor)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    encoder = getattr(model, "encoder", None)
    if encoder is not None:
        parameters += sum(p.numel() * p.element_size() for p in encoder.parameters())
    return {
        "fps": 1 / float(np.median(times[1:])) if threads == 1 else 1 / float(np.quantile(walls[1:], 0.1)),
        "weights": parameters / 1e6,
        "state": stream.state_bytes / 1e6,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--one", choices=tuple(COMMANDS), help="measure it here and print JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.video, args.frames, args.threads[0])))
        return
    threads = " | ".join(f"fps, {count} thread{'s' * (count > 1)}" for count in args.threads)
    print(f"| command | {threads} | weights, MB | state, MB | memory, MB |")
    print("| --- |" + " --- |" * (len(args.threads) + 3))
    for command in COMMANDS:
        found = []
        for count in args.threads:
            words = [sys.executable, str(Path(__file__)), args.video, "--frames", str(args.frames)]
            out = subprocess.run([*words, "--one", command, "--threads", str(count)], check=True, capture_output=True)
            found.append(json.loads(out.stdout.splitlines()[-1]))
        rates = " | ".join(f"{one['fps']:.1f}" for one in found)
        first = found[0]
        print(
            f"| {command} | {rates} | {first['weights']:.1f} | {first['state']:.2f} | {first['memory']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
