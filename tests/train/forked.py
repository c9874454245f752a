"""Processes of training, forked from that of the tests, so that they import nothing anew."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch


def ranks(work: Callable[[], Any], count: int, start: str = "fork") -> list[Any]:
    """What `work()` returns in each of `count` processes, which are the ranks of one run if there are several."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    world = {**meet, "WORLD_SIZE": str(count), "NODE_RANK": "0"}
    each = [{**world, "LOCAL_RANK": str(rank)} if count > 1 else {} for rank in range(count)]
    return forked([partial(_with, environment, work) for environment in each], start)


def forked(works: list[Callable[[], Any]], start: str = "fork") -> list[Any]:
    """What each of these returns, in a process of its own; start: "spawn" if they need a GPU and can be pickled."""
    context: Any = multiprocessing.get_context(start)
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{number}.pt" for number in range(len(works))]
        processes = [context.Process(target=_run, args=given) for given in zip(works, files, strict=True)]
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


def _with(environment: dict[str, str], work: Callable[[], Any]) -> Any:
    os.environ.update(environment)
    return work()


def _run(work: Callable[[], Any], file: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.save(work(), file)
