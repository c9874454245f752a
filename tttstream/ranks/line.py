"""Ranks in the order of time, and the messages between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from tttstream.errors import ConfigError, RankError
from tttstream.state import State, pack, unpack

S = TypeVar("S", bound=State)
T = TypeVar("T")


class Line:
    """The ranks of a process group in the order of time: rank 0 holds the first part of a stream.

    A message is one tensor. `send` does not wait for the other rank, `receive` does. Between two ranks messages arrive
    in the order in which they were sent. The process group gloo sends tensors of any device through the CPU.

    Args:
        group: a process group of torch.distributed; None for all processes.

    Raises ConfigError if torch.distributed is not initialised, RankError if another rank has ended.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ConfigError("a line of ranks needs torch.distributed: call torch.distributed.init_process_group")
        self.group = dist.group.WORLD if group is None else group
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self._processes = dist.get_process_group_ranks(self.group)
        self._by_cpu = dist.get_backend(self.group) == "gloo"
        self._sent: list[tuple[Any, Tensor]] = []

    def __deepcopy__(self, memo: Any) -> Line:
        """The same line: a copied owner is on the same rank."""
        return self

    @property
    def first(self) -> bool:
        """Whether this rank has the first part of the stream."""
        return self.rank == 0

    @property
    def last(self) -> bool:
        """Whether this rank has the last part of the stream."""
        return self.rank == self.size - 1

    def send(self, value: Tensor, to: int) -> None:
        """Send a tensor to a rank of the line, without waiting; see `settle`."""
        value = self._carried(value)
        with self._heard(to):
            self._sent.append((dist.isend(value, self._processes[to], group=self.group), value))

    def receive(self, like: Tensor, of: int) -> Tensor:
        """The next tensor from a rank of the line, with the shape, type and device of `like`."""
        into = torch.empty(like.shape, dtype=like.dtype, device="cpu" if self._by_cpu else like.device)
        with self._heard(of):
            dist.recv(into, self._processes[of], group=self.group)
        return into.to(like.device)

    def settle(self) -> None:
        """Wait until all sent tensors have arrived."""
        sent, self._sent = self._sent, []
        with self._heard():
            for work, _ in sent:
                work.wait()

    def from_last(self, state: S) -> S:
        """The state that the last rank holds, on every rank; every rank calls it with a state of the same sizes."""
        return unpack(self.value_of_last(pack(state)), state)

    def value_of_last(self, value: Tensor) -> Tensor:
        """The tensor that the last rank holds, on every rank; every rank calls it with a tensor of the same sizes."""
        held = self._carried(value)
        with self._heard(self.size - 1):
            dist.broadcast(held, self._processes[-1], group=self.group)
        return held.to(value.device)

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the ranks of the line, without a gradient; every rank calls it."""
        summed = self._carried(value).clone()
        with self._heard():
            dist.all_reduce(summed, group=self.group)
        return summed.to(value.device)

    def gathered(self, value: T) -> list[T]:
        """The values of all ranks of the line, such as dictionaries, in the order of time; every rank calls it."""
        every: list[Any] = [None] * self.size
        with self._heard():
            dist.all_gather_object(every, value, group=self.group)
        return every

    def _carried(self, value: Tensor) -> Tensor:
        value = value.detach().contiguous()
        return value.cpu() if self._by_cpu else value

    @contextmanager
    def _heard(self, other: int | None = None) -> Iterator[None]:
        """Errors of torch.distributed as a RankError that names both ranks."""
        try:
            yield
        except RuntimeError as error:
            whom = "another rank" if other is None else f"rank {other}"
            reason = " ".join(str(error).split())
            raise RankError(
                f"rank {self.rank} of {self.size} in time does not reach {whom}, which has ended or waits too long: "
                f"{reason}"
            ) from error
