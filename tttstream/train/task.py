"""Shared by all training tasks: a memory carried from batch to batch, saved with the weights, and the optimiser."""

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from tttstream.errors import CheckpointError, ConfigError, ShapeError, StateError
from tttstream.memory.base import Memory
from tttstream.memory.ttt import TTTLayer
from tttstream.models.backbone import Losses, ModelState
from tttstream.models.base import SavedModel
from tttstream.models.frame import Output
from tttstream.ranks import Line
from tttstream.state import pack, unpack
from tttstream.train.data.batch import Batch
from tttstream.train.export import described

FIRST = {"fit": "train", "validate": "val", "test": "test", "predict": "test"}  # the data of each command


class StreamTask(LightningModule):
    """Trains a model on streams longer than memory, one segment per step (truncated backpropagation).

    Row i of a batch continues row i of the batch before it; its state is carried and detached between steps;
    `batch.reset` marks where a row begins another video. Validation starts from a fresh state each time. The state is
    part of the checkpoint, so that a resumed run equals an uninterrupted one.

    Args:
        model: a SavedModel, called as a FrameModel. learn: whether the memory learns (False is the frozen baseline of
        equal parameters). recompute: 0, or the number of frames whose activations are recomputed in the backward pass
        instead of kept. lr, weight_decay: of AdamW; matrices decay, biases, norms and start weights do not. warmup:
        optimiser steps over which the learning rate rises; it then falls along a cosine to the share FLOOR, if the
        number of steps is known.
    """

    FLOOR: ClassVar[float] = 0.1
    CARRIED: ClassVar[str] = ""
    """The entry of a checkpoint for further tensors of the training lanes, those in `_carried["train"]`."""
    line: Line | None = None  # the ranks that share each segment in time

    def __init__(
        self,
        model: Any,
        *,
        learn: bool = True,
        recompute: int = 0,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        warmup: int = 100,
    ) -> None:
        super().__init__()
        not_negative(recompute=recompute, lr=lr, weight_decay=weight_decay, warmup=warmup)
        self.model = model
        for memory in self.memories():
            if not memory.bounded:
                name = model.config.memory
                raise ConfigError(f"task: memory {name!r} grows with the stream: use window, or a ttt_ one")
        self.learn, self.recompute = learn, recompute
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self._states: dict[str, Any] = {}
        self._carried: dict[str, Any] = {}
        if not learn:  # parameters that no loss reaches would stop DDP, which waits for every gradient
            for memory in self.memories():
                if isinstance(memory, TTTLayer):
                    memory.rate.requires_grad_(False)

    def memories(self) -> Iterator[Memory]:
        """The memories of the model's blocks."""
        return (module for module in self.model.modules() if isinstance(module, Memory))

    def go_along(self, line: Line) -> None:
        """Prepare for a run whose ranks share each segment in time. Raises ConfigError if the task cannot be cut in
        time."""
        raise ConfigError(f"time: the task {type(self).__name__} cannot be cut in time; Prediction, Classification can")

    def fresh(self, rows: int, stage: str) -> Any:
        """A fresh state of this number of lanes."""
        return self.model.init_state(rows)

    def state_before(self, batch: Batch, stage: str) -> Any:
        """The state before a batch, from which its rows continue; None if all of them are reset.

        Raises ShapeError if the number of rows changes although some of them continue.
        """
        state = self._states.get(stage)
        if state is None or state.rows == len(batch.frames):
            return None if state is None else state.to(self.device)
        if not bool(batch.reset[:, 0].all()):
            raise ShapeError(
                f"{stage}: a batch of {len(batch.frames)} rows after one of {state.rows}: rows that continue must keep "
                "their position, also when a run is resumed: keep batch_size"
            )
        return None

    def keep(self, stage: str, state: Any) -> None:
        """Store the detached state for the next batch of a stage; of several ranks in time, that of the last one."""
        state = state.detach()
        self._states[stage] = state if self.line is None else self.line.from_last(state)

    def mean(self, values: Tensor, mask: Tensor) -> Tensor:
        """`mean_where` for a loss: the mean over ranks is that over all values of their segments."""
        if self.line is None or not self.training:
            return mean_where(values, mask)
        count = self.line.total(mask.sum()) / self.line.size
        return torch.where(mask, values, 0.0).sum() / count.clamp(min=1 / self.line.size)

    def run_segment(self, frames: Tensor, state: ModelState | None, reset: Tensor | None) -> tuple[Output, ModelState]:
        """Run the model over [B, T] frames; with `recompute`, piece by piece."""
        if not self.recompute or not torch.is_grad_enabled():
            return self._model(frames, state, reset)
        outputs: list[Output] = []
        for begin in range(0, frames.shape[1], self.recompute):
            piece = slice(begin, begin + self.recompute)
            cut = None if reset is None else reset[:, piece]
            output, state = checkpoint(self._model, frames[:, piece], state, cut, use_reentrant=False)
            outputs.append(output)
        assert state is not None
        return join(outputs), state

    def _model(self, frames: Tensor, state: ModelState | None, reset: Tensor | None) -> tuple[Output, ModelState]:
        return self.model(frames, state, reset, learn=self.learn)

    def setup(self, stage: str) -> None:
        """Start with fresh lanes; loading a checkpoint after this restores its lanes."""
        self._states.clear()
        self._carried.clear()

    def begin(self, stage: str) -> None:
        """Start a stage other than training, from a fresh state; the training lanes are kept."""
        self._states[stage] = None
        self._carried.pop(stage, None)

    def measure(self, batch: Batch, stage: str) -> Any:
        """Log the metrics of the model on one segment of every lane."""
        raise NotImplementedError

    def finish(self, stage: str) -> None:
        """Log the metrics over a whole stage."""

    def complete(self, model: SavedModel) -> None:
        """Change a trained model in place before it is saved for use, for instance to calibrate it."""

    def validation_step(self, batch: Batch, index: int) -> Any:
        """Log the metrics of one segment."""
        self.measure(batch, "val")

    def test_step(self, batch: Batch, index: int) -> None:
        """Log the metrics of one segment of the test data."""
        self.measure(batch, "test")

    def on_validation_epoch_start(self) -> None:
        self.begin("val")

    def on_test_epoch_start(self) -> None:
        self.begin("test")

    def on_predict_epoch_start(self) -> None:
        self.begin("predict")

    def on_validation_epoch_end(self) -> None:
        self.finish("val")

    def on_test_epoch_end(self) -> None:
        self.finish("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the task, the description of the model, and the training lanes of every process."""
        state = self._states.get("train")
        checkpoint["tttstream"] = {
            "task": type(self).__name__,
            "format": self.model.FORMAT,
            "description": self.model.description(),
            "lanes": None if state is None else self.gathered(pack(state)),
        }
        if "train" in self._carried:
            checkpoint["tttstream"][self.CARRIED] = tree_map(self.gathered, self._carried["train"])

    def gathered(self, part: Tensor) -> Tensor:
        """A tensor of every process, one after the other [processes, …]."""
        every = self.all_gather(part.to(self.device))
        assert isinstance(every, Tensor)
        return every.view(self.trainer.world_size, *part.shape).cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another task or model; restore the training lanes."""
        saved = checkpoint.get("tttstream")
        if saved is None:
            raise CheckpointError("the checkpoint was not written by `tttstream fit`")
        task = type(self).__name__
        if saved["task"] != task:
            raise CheckpointError(
                f"the checkpoint is of the task {saved['task']}, this is {task}: give the config of its run"
            )
        theirs, mine = (self.model.shape(one) for one in (described(saved)[1], self.model.description()))
        wrong = [name for name, value in mine.items() if theirs.get(name) != value]
        if wrong:
            said = ", ".join(f"{name} {theirs.get(name)!r}, here {mine[name]!r}" for name in wrong)
            raise CheckpointError(f"the checkpoint is of another model: {said}")
        if saved["lanes"] is not None and self.resumes():
            lanes = lanes_of(saved["lanes"], self.trainer)
            try:
                self._states["train"] = unpack(lanes, self.fresh(1, "train"))
            except StateError as error:
                raise CheckpointError(f"the checkpoint's lanes are of a task with other options: {error}") from error
        if saved.get(self.CARRIED) is not None and self.resumes():
            rank = self.trainer.global_rank
            self._carried["train"] = tree_map(lambda part: part[rank].to(self.device), saved[self.CARRIED])

    def resumes(self) -> bool:
        """Whether a checkpoint is loaded to continue with training."""
        return self._trainer is not None and self._trainer.state.fn == "fit"

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, warm-up, and a cosine where the number of steps is known."""
        trained = [p for p in self.parameters() if p.requires_grad]
        starts = {id(m.start) for m in self.memories() if isinstance(m, TTTLayer)}
        decays = [p for p in trained if p.dim() > 1 and id(p) not in starts]
        rest = [p for p in trained if p.dim() <= 1 or id(p) in starts]
        groups = [{"params": decays, "weight_decay": self.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        self._decays = [group["weight_decay"] for group in groups]
        optimizer = torch.optim.AdamW(groups, lr=self.lr)
        total = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / (self.warmup + 1))
            if not math.isfinite(total) or total <= self.warmup:
                return rise
            along = min(1.0, max(0.0, (step - self.warmup) / (total - self.warmup)))
            return rise * 0.5 * (1 + self.FLOOR + (1 - self.FLOOR) * math.cos(math.pi * along))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Use the learning rate and the weight decay of this run, since Lightning restores those of a checkpoint."""
        for optimizer, config in zip(self.trainer.optimizers, self.trainer.lr_scheduler_configs, strict=True):
            scheduler = config.scheduler
            if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):  # a subclass has its own
                continue
            scheduler.base_lrs = [self.lr] * len(scheduler.base_lrs)
            scheduler._last_lr = [self.lr * factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
            for group, lr, decay in zip(optimizer.param_groups, scheduler._last_lr, self._decays, strict=True):
                group.update(lr=lr, initial_lr=self.lr, weight_decay=decay)

    def log_losses(
        self, stage: str, losses: dict[str, Tensor], inner: Losses | None, valid: Tensor, counted: Tensor
    ) -> None:
        """Log the losses by name, and the inner loss before and after each valid frame was learned (mean over tokens).

        valid: bool [B, T]. counted: bool, the frames over which the losses are means. Segments with fewer frames have
        less weight in the mean of a stage.
        """
        measured = stage != "train"
        together = measured or self.line is not None
        values = {f"{stage}/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(values, batch_size=int(counted.sum()) if measured else len(valid), sync_dist=together)
        if inner is not None:
            means = [mean_where(part.detach().mean(-1), valid) for part in inner]
            values = {f"{stage}/inner_before": means[0], f"{stage}/inner_after": means[1]}
            self.log_dict(values, batch_size=int(valid.sum()) if measured else len(valid), sync_dist=together)


def lanes_of(lanes: Tensor, trainer: Trainer) -> Tensor:
    """This process's lanes [rows, …] among those of a checkpoint [processes, rows, …].

    Raises CheckpointError if this run has a different number of processes.
    """
    if len(lanes) != trainer.world_size:
        raise CheckpointError(
            f"the checkpoint holds the lanes of {len(lanes)} processes, this run has {trainer.world_size}: "
            "start as many as before"
        )
    return lanes[trainer.global_rank]


def named(batch: Batch, row: int, t: int) -> str:
    """The title of a frame of a batch above its picture."""
    if not batch.valid[row, t]:
        return "no frame"
    clip = int(batch.clip[row, t])
    return f"{'' if clip < 0 else f'clip {clip}, '}frame {int(batch.frame[row, t])}"


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the values in the mask, 0 if it is empty."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def not_negative(**settings: float) -> None:
    """Raises ConfigError if one of a task's settings is negative."""
    for name, value in settings.items():
        if value < 0:
            raise ConfigError(f"task: {name} cannot be negative, got {value}")


def join(outputs: list[Output]) -> Output:
    """Concatenate the outputs of successive pieces."""
    parts = [output.losses for output in outputs if output.losses is not None]
    losses = Losses(*(torch.cat(part, 1) for part in zip(*parts, strict=True))) if parts else None
    prediction = torch.cat([output.prediction for output in outputs], 1)
    return Output(prediction, torch.cat([output.embedding for output in outputs], 1), losses)
