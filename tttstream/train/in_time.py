"""A strategy for Lightning that splits segments in time over ranks, for segments that do not fit on one device."""

from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import distributed as dist

from tttstream.errors import ConfigError
from tttstream.ranks import Line, Relay
from tttstream.train.data.batch import Batch
from tttstream.train.place import Place
from tttstream.train.task import StreamTask

NAME = "time"


def _handing(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step in which the memories pass their states to the next rank."""

    def run(strategy: Any, *args: Any, **kwargs: Any) -> Any:
        with nullcontext() if strategy._relay is None else strategy._relay:
            return step(strategy, *args, **kwargs)

    return run


class InTime(DDPStrategy):
    """Several processes share each segment in time and pass the states of memories to the next one, combined with DDP
    over rows.

    Processes k * ranks to (k + 1) * ranks - 1 have the same lanes, and each has another part of the `data.length`
    frames. Other groups of processes have other lanes, as in DDP. Gradients equal those of one process with all lanes
    and whole segments.

    Args:
        ranks: processes that share a segment; None for all of them. pieces: the number of pieces of the rows of a
        batch, see `Relay`; at most the number of rows. scan: see `Relay`. wait: the timeout in seconds: if a rank does
        not answer in this time, the run ends. options: of DDPStrategy.

    Raises ConfigError for a task that cannot be cut in time, and if the number of processes is no multiple of `ranks`.
    """

    strategy_name = NAME

    def __init__(
        self, ranks: int | None = None, pieces: int = 4, scan: bool = True, wait: float = 600.0, **options: Any
    ) -> None:
        super().__init__(**{"timeout": timedelta(seconds=wait), **options})
        if (ranks is not None and ranks < 1) or pieces < 1 or wait <= 0:
            raise ConfigError(
                f"time: expected ranks and pieces of at least 1 and a wait above 0, got {ranks}, {pieces}, {wait}"
            )
        self._ranks, self._pieces, self._scan = ranks, pieces, scan
        self._relay: Relay | None = None
        self.line: Line | None = None

    @property
    def place(self) -> Place:
        """The Place of this process."""
        world = self.world_size
        parts = self._ranks or world
        if world % parts:
            raise ConfigError(f"time: {world} processes are no multiple of {parts} ranks in time")
        return Place(self.global_rank // parts, world // parts, self.global_rank % parts, parts)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Each set of ranks gets different rows."""
        return {"num_replicas": self.place.sets, "rank": self.place.rows}

    def setup_distributed(self) -> None:
        """Create the lines, after the process group is initialised."""
        mine = self.place
        super().setup_distributed()
        for rows in range(mine.sets):  # every process makes every group, in the same order
            group = dist.new_group(list(range(rows * mine.parts, (rows + 1) * mine.parts)), timeout=self._timeout)
            if rows == mine.rows:
                self.line = Line(cast(dist.ProcessGroup, group))

    def setup(self, trainer: Trainer) -> None:
        """Prepare the task before DDP wraps it."""
        task: Any = self.lightning_module
        assert self.line is not None
        if not isinstance(task, StreamTask):
            raise ConfigError(f"time: expected a StreamTask, got {type(task).__name__}")
        task.go_along(self.line)
        self._relay = Relay(task.model, self.line, self._pieces, self._scan)
        super().setup(trainer)

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Cut this rank's part out of a batch. A data module with `reads_parts` has already done so."""
        data: Any = self.lightning_module and self.lightning_module.trainer
        if isinstance(batch, Batch) and not getattr(data.datamodule, "reads_parts", False):
            length, mine = batch.frames.shape[1], self.place
            if length < mine.parts:
                raise ConfigError(f"time: a segment of {length} frames cannot be cut into {mine.parts} parts")
            batch = batch.part(*mine.frames(length))
        return super().batch_to_device(batch, device, dataloader_idx)

    training_step = _handing(DDPStrategy.training_step)
    validation_step = _handing(DDPStrategy.validation_step)
    test_step = _handing(DDPStrategy.test_step)
    predict_step = _handing(DDPStrategy.predict_step)


def register() -> None:
    """Register this strategy for `--trainer.strategy=time`."""
    if NAME not in StrategyRegistry:
        StrategyRegistry.register(NAME, InTime, description=InTime.__doc__)
