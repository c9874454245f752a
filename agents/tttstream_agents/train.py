"""A training run: collects rollouts, learns, logs and saves, and resumes exactly after it was killed."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from tttstream.errors import CheckpointError, TTTStreamError
from tttstream.io.interrupt import Interrupt
from tttstream.io.outputs import OutputFolder, TextFile
from tttstream_agents.checkpoint import (
    CHECKPOINT,
    build_policy,
    load_policy,
    read_checkpoint,
    read_config,
    write_checkpoint,
)
from tttstream_agents.config import Config
from tttstream_agents.envs import Position, close, make, tree, vector
from tttstream_agents.errors import EnvError, ObservationError, TrainingError, one_line
from tttstream_agents.logs import Logs, Row
from tttstream_agents.ppo import Collector, Player, learn, nothing

__all__ = ["Run", "load_policy", "train"]

MakeEnv = Callable[[], gym.Env[Any, Any]]


class Stop(Interrupt):
    """Ctrl-C or SIGTERM ends the run after this update, with a checkpoint. A second one ends it at once."""

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping after this update (once more: at once)", flush=True)


def usable(device: str) -> str:
    """The name of a device, for a name or "auto". Raises TrainingError if it cannot be used."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # by what torch was built without
        reason = one_line(error).split(". ")[0][:200]
        raise TrainingError(f"device {device!r} cannot be used, choose cpu, cuda or auto: {reason}") from error
    return device


class Run:
    """The policy, optimizer, environments and progress of a run. `update()` does one update."""

    def __init__(self, config: Config, make_env: MakeEnv | None = None) -> None:
        self.config = config
        device = usable(config.device)
        torch.manual_seed(config.seed)
        maker = make_env or (lambda: make(config.env, None, config.env_args, config.wrappers))
        try:
            self.envs = vector(maker, config.n_envs, config.seed, config.autoreset, config.workers)
        except TTTStreamError:
            raise
        except Exception as error:  # an environment is foreign code and may raise anything
            raise EnvError(f"the environments cannot be made: {one_line(error)}") from error
        self.policy = build_policy(config, self.envs).to(device)
        if config.segment < config.rollout and not all(memory.bounded for memory in self.policy.memories):
            self.close()
            raise TrainingError(
                f"the state of {config.memory!r} grows: train it with segment = rollout, or use 'window'"
            )
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=config.lr, eps=1e-5)
        self.player = Player(self.envs, self.policy, config.action_masks)
        self.collector = Collector(self.player, config)
        self.recent: deque[tuple[float, int]] = deque(maxlen=100)
        self.updates = self.episodes = 0

    @property
    def per_update(self) -> int:
        """The environment steps of an update."""
        return self.config.rollout * self.config.n_envs

    @property
    def steps(self) -> int:
        """The environment steps so far."""
        return self.updates * self.per_update

    @property
    def reached(self) -> bool:
        """Whether the last 100 episodes have reached `stop_return`."""
        return len(self.recent) == self.recent.maxlen and self.mean(0) >= self.config.stop_return

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or `stop_return` is reached."""
        return self.steps >= self.config.steps or self.reached

    def mean(self, part: int) -> float:
        """The mean return (part 0) or length (part 1) of the last 100 episodes; NaN if there are none."""
        return float(np.mean([one[part] for one in self.recent])) if self.recent else float("nan")

    def update(self) -> Row:
        """Collect a rollout and learn from it. Once `stop_return` is reached, the policy does not change, since another
        update might make it worse. Returns a row for the logs."""
        began = time.perf_counter()
        if self.config.anneal:
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr * max(0.0, 1 - self.steps / self.config.steps)
        rollout = self.collector.collect()
        self.updates += 1
        self.episodes += len(rollout.ended)
        self.recent.extend(rollout.ended)
        measured = nothing(self.policy) if self.reached else learn(self.policy, self.optimizer, rollout, self.config)
        if self.config.normalise_observations:
            self.policy.observe(rollout.obs, rollout.valid)
        error, target = (rollout.target - rollout.value)[rollout.valid], rollout.target[rollout.valid]
        explained = 1 - float(error.var(correction=0) / target.var(correction=0).clamp(min=1e-12))
        return {
            "steps": self.steps, "episodes": self.episodes, "return": self.mean(0), "length": self.mean(1),
            **measured, "explained": explained, "fps": self.per_update / (time.perf_counter() - began),
        }  # fmt: skip

    def start_from(self, folder: str | os.PathLike[str]) -> None:
        """Load the weights of another run, which may have other auxiliary losses. Raises CheckpointError."""
        own, path = self.policy.state_dict(), Path(folder) / CHECKPOINT
        theirs = read_checkpoint(path)["policy"]
        kept = {name: value for name, value in own.items() if name.startswith("auxiliary.") and name not in theirs}
        taken = {name: value for name, value in theirs.items() if not name.startswith("auxiliary.") or name in own}
        try:
            self.policy.load_state_dict({**kept, **taken})
        except RuntimeError as error:
            raise CheckpointError(f"the weights in {folder} belong to another policy: {one_line(error)}") from error

    def save(self, path: Path) -> None:
        """Write a checkpoint from which the run continues exactly."""
        positions = self.envs.call("position")
        player = self.player
        values = {
            "config": json.loads(self.config.to_json()), "updates": self.updates,
            "episodes": self.episodes, "recent": [list(one) for one in self.recent],
            "policy": self.policy.state_dict(), "optimizer": self.optimizer.state_dict(),
            "memory": [leaf for _, leaf in player.state.leaves()],
            "obs": tree(torch.as_tensor, player.obs), "starts": player.starts, "valid": player.valid,
            "came": player.previous_reward, "mask": player.mask,
            "returns": self.collector.returns, "lengths": self.collector.lengths,
            "reward_scale": None if self.collector.scale is None else self.collector.scale.state_dict(),
            "positions": [(one.episode, one.steps, torch.tensor(one.actions)) for one in positions],
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if player.device.type == "cuda" else None,
        }  # fmt: skip
        write_checkpoint(path, values)

    def restore(self, path: Path) -> None:
        """Restore what `save` wrote: weights, random state, hidden states, and the progress of every environment.
        Raises CheckpointError for a damaged file."""
        values = read_checkpoint(path)
        try:
            self._take(path, values)
        except TTTStreamError:
            raise
        except Exception as error:  # for anything that `save` did not write
            raise CheckpointError(f"{path} is damaged: {one_line(error)}") from error
        if differ := sum(self.player.call("get_attr", "differs")):
            warnings.warn(
                f"{differ} of {self.config.n_envs} episodes were different when replayed, new ones replace them: the "
                "environment is not deterministic given its seed, so the run cannot resume exactly",
                stacklevel=3,
            )

    def _take(self, path: Path, values: dict[str, Any]) -> None:
        player, device = self.player, self.player.device
        try:
            self.policy.load_state_dict(values["policy"])
            self.optimizer.load_state_dict(values["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise TrainingError(f"{path} belongs to another policy: {one_line(error)}") from error
        self.updates, self.episodes = values["updates"], values["episodes"]
        self.recent.extend((one[0], one[1]) for one in values["recent"])
        leaves = iter(values["memory"])
        player.state = player.state.map(lambda leaf: next(leaves).to(device))
        player.obs = tree(lambda x: x.numpy(), values["obs"])
        player.starts, player.valid, player.previous_reward = (
            values[key].to(device) for key in ("starts", "valid", "came")
        )
        mask = values.get("mask")
        player.mask = None if mask is None else mask.to(device)
        if self.collector.scale is not None and values.get("reward_scale") is not None:
            self.collector.scale.load_state_dict(values["reward_scale"])
        self.collector.returns, self.collector.lengths = values["returns"], values["lengths"]
        positions = [Position(episode, steps, actions.numpy()) for episode, steps, actions in values["positions"]]
        seen = [(tree(lambda x, row=row: x[row], player.obs), float(self.collector.returns[row]))
                for row in range(len(positions))]  # fmt: skip
        replaced = []
        for row, begun in enumerate(player.call("call", "seek", positions, seen)):
            if begun is not None:  # a new episode in place of one that cannot be replayed
                tree(lambda x, new, row=row: x.__setitem__(row, new), player.obs, begun)
                player.starts[row], player.valid[row], player.previous_reward[row] = True, True, 0.0
                self.collector.returns[row], self.collector.lengths[row] = 0.0, 0
                replaced.append(row)
        if replaced:
            player.remask(replaced, player.call("get_attr", "first_info"))
        torch.set_rng_state(values["random"])
        if values["random_cuda"] is not None and device.type == "cuda":
            torch.cuda.set_rng_state(values["random_cuda"])

    def close(self) -> None:
        """Close the environments."""
        close(self.envs)


def _check_folder(folder: Path, config: Config, resume: bool) -> None:
    """Raise TrainingError if a run cannot start, or resume, in a folder."""
    if not resume and (folder / CHECKPOINT).exists():
        raise TrainingError(f"{folder} already contains a run: add --resume to continue it, or choose another folder")
    if resume:
        before = read_config(folder)
        free = ("steps", "stop_return", "checkpoint_every", "workers", "device")
        other = [name for name, value in vars(before).items() if value != getattr(config, name) and name not in free]
        if other:
            raise TrainingError(
                f"{folder} was trained with another {', '.join(other)}: omit the option, or start a new run (--weights)"
            )


def train(
    config: Config, out: str | os.PathLike[str], *, make_env: MakeEnv | None = None, resume: bool = False,
    minutes: float = float("inf"), quiet: bool = False, tensorboard: bool = True,
    weights: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train an agent and write metrics.csv, checkpoint.pt and summary.json into a folder; returns the summary.

    make_env: makes an environment, instead of the one that config.env names. resume: continue from the checkpoint in
    the folder. minutes: stop after this time, with a checkpoint. quiet: print no progress. weights: the folder of
    another run of the same policy, whose weights are the first ones of this run; the config may differ otherwise.

    Raises TrainingError for a mistake in the arguments, CheckpointError for a missing or damaged checkpoint, and
    EnvError if an environment fails; the last checkpoint is kept.
    """
    if not minutes >= 0:
        raise TrainingError(f"minutes must be 0 or more, got {minutes}")
    if not str(out):
        raise TrainingError("out must name a folder")
    if resume and weights is not None:
        raise TrainingError("a resumed run has its own weights: give either resume or weights")
    made = OutputFolder(out)
    folder, checkpoint = made.path, made.path / CHECKPOINT
    began = time.perf_counter()
    with ExitStack() as stack:
        stack.callback(made.discard)  # removes the folder if it is empty
        _check_folder(folder, config, resume)
        run = Run(config, make_env)
        stack.callback(run.close)
        if weights is not None:
            run.start_from(weights)
        if resume:
            run.restore(checkpoint)
        logs = stack.enter_context(closing(Logs(folder, config.steps, run.steps, quiet, tensorboard)))
        stop = stack.enter_context(Stop())
        going = True
        try:
            while going and not run.finished:
                logs.write(run.update())
                going = not stop.asked and time.perf_counter() - began < 60 * minutes
                if run.updates % config.checkpoint_every == 0 or run.finished or not going:
                    run.save(checkpoint)
        except (EnvError, ObservationError, TrainingError) as error:
            kept = f"the last checkpoint is {checkpoint}" if checkpoint.exists() else "there is no checkpoint yet"
            raise type(error)(f"{error} (after {run.steps} steps; {kept})") from error
    summary = {
        "env": config.env, "memory": config.memory, "steps": run.steps, "episodes": run.episodes,
        "return": run.mean(0), "finished": run.finished, "seconds": round(time.perf_counter() - began, 1),
        "parameters": sum(p.numel() for p in run.policy.parameters()),
        "state_bytes": run.policy.initial_state(1).nbytes,
    }  # fmt: skip
    with TextFile(folder / "summary.json") as file:
        file.write_json({**summary, "return": summary["return"] if run.recent else None})  # JSON knows no NaN
    return summary
