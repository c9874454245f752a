"""Times calls on a device, and what the device itself can do: how fast it copies and how fast it multiplies."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]
MB = 1e6


class Stopwatch:
    """Milliseconds of a call: by CUDA events with a cold second-level cache; on a CPU the processor time of the one
    thread, which others on the machine disturb little, or with several threads the clock.

    A layer in a network finds the caches full of the other layers' data, so everything is timed that way. The write
    that empties the cache also keeps the GPU busy while the call is queued: what is timed is the GPU's work, unless the
    call itself is slower to queue than to run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        if self.cuda:
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            self._flood = torch.empty(max(4 * cache, 1 << 27), dtype=torch.uint8, device=device)

    def time(self, call: Call) -> float:
        """Milliseconds of one call."""
        if not self.cuda:
            clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
            start = clock()
            call()
            return 1e3 * (clock() - start)
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._flood.zero_()
        before.record()
        call()
        after.record()
        after.synchronize()
        return before.elapsed_time(after)

    def memory(self, call: Call) -> float | None:
        """Megabytes that a call needs at its peak beyond what is there already; None on a CPU."""
        if not self.cuda:
            call()
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call()
        torch.cuda.synchronize(self.device)
        return (torch.cuda.max_memory_allocated(self.device) - before) / MB

    def rounds(self, calls: dict[str, Call], counts: dict[str, int]) -> dict[str, list[float]]:
        """Milliseconds of every call in every round: each round calls, in a new order, all that have a round left."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        for done in range(max(counts.values(), default=0)):
            names = [name for name in calls if counts[name] > done]
            for name in random.sample(names, len(names)):
                times[name].append(self.time(calls[name]))
        return times


def ceilings(watch: Stopwatch, dtype: torch.dtype) -> dict[str, float]:
    """Copy bandwidth in GB/s (bytes read and bytes written) and matrix rate in Tflop/s in that type, on random data,
    each the median of several rounds."""
    big, side = (1 << 30, 8192) if watch.cuda else (1 << 26, 1024)
    source = torch.empty(big, dtype=torch.uint8, device=watch.device).random_()
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, dtype=torch.float32, device=watch.device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    calls: dict[str, Call] = {"copy": lambda: target.copy_(source), "product": lambda: torch.mm(a, b, out=product)}
    for call in calls.values():
        for _ in range(3):
            watch.time(call)
    times = watch.rounds(calls, dict.fromkeys(calls, 10))
    copy, multiply = (sorted(times[name])[5] for name in calls)
    return {"copy_gb_s": 2 * big / copy / 1e6, "matrix_tflop_s": 2 * side**3 / multiply / 1e9}


def graphed(call: Call) -> Call:
    """The call as one CUDA graph. Raises RuntimeError where it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
