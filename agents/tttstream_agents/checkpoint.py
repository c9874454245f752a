"""The checkpoint of a training run: its format, how it is written and read, and the policy in it.

A checkpoint is one file of tensors, numbers and texts. Reading it executes no code from the file.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from tttstream.errors import CheckpointError
from tttstream.io.outputs import saving
from tttstream_agents import config as configs
from tttstream_agents.auxiliary import LOSSES
from tttstream_agents.config import Config
from tttstream_agents.errors import one_line
from tttstream_agents.policy import MemoryPolicy

FORMAT = "tttstream.agent/1"
CHECKPOINT = "checkpoint.pt"
KEPT = ("config", "policy", "optimizer", "updates", "episodes", "recent", "memory", "obs", "positions", "random")
"""The values without which a run cannot be resumed."""


def build_policy(config: Config, env: Any) -> MemoryPolicy:
    """The untrained policy of a config, for an environment or for a vector of environments."""
    single = "single_" if hasattr(env, "single_observation_space") else ""
    return MemoryPolicy(
        getattr(env, f"{single}observation_space"), getattr(env, f"{single}action_space"), config.memory,
        dim=config.dim, depth=config.depth, heads=config.heads, positions=config.positions,
        previous_action=config.previous_action, previous_reward=config.previous_reward, options=dict(config.options),
        cnn=config.cnn, normalise=config.normalise_observations, gate=config.gate,
        period=config.period, places=dict(config.places),
        auxiliary=[name for name in LOSSES if getattr(config, f"{name}_coef")],
    )  # fmt: skip


def write_checkpoint(path: Path, values: dict[str, Any]) -> None:
    """Write the values under a temporary name, then rename the file. Raises OutputError if that fails."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **values}, buffer)
    part = path.with_name(f".{path.name}.part")
    try:
        with saving(path):
            part.write_bytes(buffer.getbuffer())
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The values of a checkpoint. Raises CheckpointError if the file is missing, damaged or of another format."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint at {path}") from error
    except Exception as error:  # pickle raises almost anything over a damaged file
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {one_line(error)[:200]}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of an agent: expected format {FORMAT!r}")
    missing = [name for name in KEPT if name not in values]
    if missing:
        raise CheckpointError(f"{path} is damaged: it has no {', '.join(missing)}")
    if isinstance(values["config"], dict):
        values["config"].setdefault("cnn", "strided")  # runs from before there was a choice
        values["config"].setdefault("period", 1024)
    return values


def read_config(folder: Path) -> Config:
    """The config of the run in a folder."""
    return configs.build(read_checkpoint(folder / CHECKPOINT)["config"], str(folder / CHECKPOINT))


def load_policy(folder: str | os.PathLike[str], env: Any) -> MemoryPolicy:
    """The trained policy of the run in a folder, for an environment (or a vector) with the same spaces.

    Raises CheckpointError if there is no such run, or if it was trained in other spaces.
    """
    path = Path(folder) / CHECKPOINT
    values = read_checkpoint(path)
    policy = build_policy(configs.build(values["config"], str(path)), env)
    try:
        policy.load_state_dict(values["policy"])
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder} was trained in other spaces than this environment's, or with an older form of its memory "
            f"{values['config'].get('memory')!r}: {one_line(error)}"
        ) from error
    return policy.eval()
