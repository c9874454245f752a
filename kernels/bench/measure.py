"""Times calls on a device, and measures its copy bandwidth and its matrix rate."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]
MB = 1e6


class Stopwatch:
    """Measures the milliseconds of a call: CUDA events with a cold second-level cache; on a CPU processor time with one
    thread (other processes affect it little), and wall time with several threads.

    In a network the caches contain data of other layers, so all calls are timed with an emptied cache. The write that
    empties the cache also keeps the GPU busy while the call is queued, so the time is that of the GPU's work, unless
    queueing takes longer than running.
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
        """Peak megabytes that a call allocates; None on a CPU."""
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
        """Milliseconds of every call in every round. Each round calls all that have rounds left, in a new order."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        for done in range(max(counts.values(), default=0)):
            names = [name for name in calls if counts[name] > done]
            for name in random.sample(names, len(names)):
                times[name].append(self.time(calls[name]))
        return times


def ceilings(watch: Stopwatch, dtype: torch.dtype) -> dict[str, float]:
    """Copy bandwidth in GB/s (bytes read and written) and matrix rate in Tflop/s in that type, with random data,
    medians of several rounds."""
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
    """The call as one CUDA graph. Raises RuntimeError if it cannot be captured."""
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
