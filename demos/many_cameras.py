"""Measures the number of cameras that a machine can watch with `Engine`: one model, each stream with its own memory.

    python demos/many_cameras.py --cameras 1 2 4 8 --fps 10 --size 128 --seconds 20

Each camera is the embedded walk with its own seed, at this rate. Late frames are dropped, as with a real camera.
--video replaces the walk with a clip. Latency is from capture to result.
"""

import argparse
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil
import torch

import tttstream
from tttstream.frames import Frame
from tttstream.live import Engine
from tttstream.sources import Source


class Paced(Source):
    """The frames of a source, kept in memory and repeated at a fixed rate, like those of a camera."""

    live = True

    def __init__(self, source: Source, fps: float, length: int = 100) -> None:
        self.name, self.fps = source.name, fps
        with source:
            self._frames = [frame for _, frame in zip(range(length), source, strict=False)]

    def __iter__(self) -> Iterator[Frame]:
        began, index = time.monotonic(), 0
        while True:
            due = began + index / (self.fps or 10)
            time.sleep(max(0.0, due - time.monotonic()))
            frame = self._frames[index % len(self._frames)]
            yield replace(frame, index=index, time_s=due - began, captured=due)
            index += 1

    def position(self) -> dict[str, Any]:
        """See Source."""
        return {}

    def seek(self, position: dict[str, Any]) -> None:
        """See Source."""


def measure(model: Any, count: int, args: argparse.Namespace) -> str:
    """One row of the table."""

    def opener(spec: str) -> Source:
        seed = int(spec.rsplit("/", 1)[-1])
        return Paced(tttstream.open_source(args.video, seed=seed, size=args.size), args.fps)

    specs = [f"udp://camera/{number}" for number in range(count)]
    with Engine(model, allowed=specs, opener=opener, expect=False) as engine:
        cameras = [engine.add(number) for number in range(count)]
        for camera in cameras:
            camera.wait(int(2 * args.fps), 120)  # warm
        process = psutil.Process()
        began, used, before = time.monotonic(), sum(process.cpu_times()[:2]), [camera.version for camera in cameras]
        dropped = [camera.feed.dropped for camera in cameras]
        time.sleep(args.seconds)
        wall, cpu = time.monotonic() - began, sum(process.cpu_times()[:2]) - used
        rates = [(camera.version - start) / wall for camera, start in zip(cameras, before, strict=True)]
        lost = sum(camera.feed.dropped - start for camera, start in zip(cameras, dropped, strict=True))
        latencies = [camera.status()["latency_ms"] for camera in cameras]
    p50, p95, p99 = (max(latency[name] for latency in latencies) for name in ("p50", "p95", "p99"))
    done = sum(rates) * wall
    cells = (
        f"{count}", f"{min(rates):.1f}", f"{sum(rates):.0f}", f"{100 * lost / max(done + lost, 1):.1f} %",
        f"{p50:.0f}", f"{p95:.0f}", f"{p99:.0f}", f"{1e3 * cpu / done:.1f}", f"{cpu / wall:.2f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 2, 4, 8])
    options = {"--fps": 10.0, "--seconds": 20.0, "--size": 128, "--model": "base", "--video": "walk"}
    for name, default in options.items():
        parser.add_argument(name, type=type(default), default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = tttstream.models.load(args.model, size=args.size)
    print(
        f"{platform.machine()}, torch {torch.__version__}, {args.model} at {args.size} px, {args.fps:g} fps a camera\n"
    )
    print("| cameras | slowest, fps | all, fps | dropped | p50 ms | p95 | p99 | CPU ms a frame | cores |")
    print("| ---: " * 9 + "|")
    for count in args.cameras:
        print(measure(model, count, args), flush=True)


if __name__ == "__main__":
    main()
