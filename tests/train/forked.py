"""The processes of one run of Lightning, forked from that of the tests, so that they import nothing anew."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch


def ranks(work: Callable[[], Any], count: int, start: str = "fork") -> list[Any]:
    """What `work()` returns in each of `count` processes, which are the ranks of a run if there are several.

    start: "spawn" where the processes need a GPU; then `work` can be pickled.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    context: Any = multiprocessing.get_context(start)
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{rank}.pt" for rank in range(count)]
        several = [{**meet, "LOCAL_RANK": str(rank), "NODE_RANK": "0"} if count > 1 else {} for rank in range(count)]
        processes = [
            context.Process(target=_run, args=given) for given in zip([work] * count, several, files, strict=True)
        ]
        gc.collect()  # a video that is garbage cannot be closed in a process without the threads that decoded it
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join()
        finally:
            for process in processes:
                process.kill()
        assert not any(process.exitcode for process in processes), [process.exitcode for process in processes]
        return [torch.load(file) for file in files]


def _run(work: Callable[[], Any], environment: dict[str, str], file: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.update(environment)
    torch.save(work(), file)
