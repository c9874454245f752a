"""MemoryReader: the readout and the surprise of a TTT memory, for agents without memory.

Letters: T steps, B environments, D width, N numbers of a flat observation.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple, cast

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream.errors import StateError
from tttstream.memory import TTTLayer
from tttstream.memory.ttt import TTTState
from tttstream_agents import memories
from tttstream_agents.checkpoint import load_policy, read_config
from tttstream_agents.encoder import Encoder
from tttstream_agents.envs import make, tree, vector
from tttstream_agents.errors import TrainingError
from tttstream_agents.trunk import mix


class Reading(NamedTuple):
    """readout [B, D]: the memory's output for an observation. surprise [B]: its inner loss before it learned that."""

    readout: Tensor
    surprise: Tensor
    state: TTTState


class MemoryReader(nn.Module):
    """An encoder, a norm and a TTT memory. The agent that uses it does not train its outer weights.

    space: of one observation. dim: D. memory: ttt_linear or ttt_mlp. options: further options of the memory; None is
    {"mini_batch": 1}, an update after every observation. The weights are random (from `seed`), or those of a trained
    policy (`from_run`), or trained to predict the next observation in random play (`pretrain`).

    Raises StateError for a memory without an inner loss.
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        memory: str = "ttt_linear",
        *,
        dim: int = 32,
        heads: int = 2,
        options: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if options is None:
            options = {"mini_batch": 1} if memory in ("ttt_linear", "ttt_mlp") else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = memories.build(memory, dim=dim, heads=heads, **options)
            if not isinstance(built, TTTLayer):
                raise StateError(
                    f"a MemoryReader needs a memory with an inner loss, ttt_linear or ttt_mlp; got {memory!r}"
                )
            self.space, self.dim, self.memory = space, dim, built
            self.encoder = Encoder(space)
            self.mix = mix(self.encoder.size, dim)
            self.norm = nn.LayerNorm(dim)
            self.guess = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))

    @classmethod
    def from_run(cls, folder: str | os.PathLike[str]) -> MemoryReader:
        """The encoder and first memory of a trained agent. Raises TrainingError unless it was trained with
        `--no-previous-action --no-positions`."""
        from pathlib import Path

        config = read_config(Path(folder))
        env = make(config.env, None, config.env_args, config.wrappers)
        policy = load_policy(Path(folder), env)
        if config.previous_action or config.previous_reward or config.positions:
            raise TrainingError(
                f"the agent in {folder} sees its previous action or reward, or positions, and a reader does not: "
                "train it with --no-previous-action --no-positions"
            )
        reader = cls(env.observation_space, config.memory, dim=config.dim, heads=config.heads, options=config.options)
        block = cast(Any, policy.blocks[0])
        for own, trained in (
            (reader.encoder, policy.encoder),
            (reader.mix, policy.mix),
            (reader.norm, block.norm),
            (reader.memory, block.memory),
        ):
            own.load_state_dict(trained.state_dict())
        env.close()
        return reader.eval()

    def initial_state(self, n_envs: int) -> TTTState:
        """A fresh state of `n_envs` environments: all zeros."""
        return self.memory.init_state(n_envs)

    def tokens(self, obs: Any, leading: int) -> Tensor:
        """Observations -> tokens [*, D]. leading: the number of dimensions before those of the space."""
        return self.mix(self.encoder(self.encoder.tensors(obs, leading)))

    @torch.no_grad()
    def read(self, obs: Any, state: TTTState, starts: Any) -> Reading:
        """Learn and read one step. obs [B, ...]; starts [B]: true at the first step of an episode."""
        x = self.norm(self.tokens(obs, leading=1))[:, None]
        reset = torch.as_tensor(starts, device=x.device).bool()[:, None]
        y, state, loss = self.memory(x, state, reset, return_loss=True)
        return Reading(y[:, 0], loss.before.mean((1, 2)), state)


def pretrain(
    reader: MemoryReader,
    make_env: Any,
    *,
    steps: int = 20_000,
    n_envs: int = 8,
    segment: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Train a reader's outer weights on random play, self-supervised. Returns the loss of each gradient step.

    The readout has to identify the token of the next observation among those of other steps and environments. The loss
    is contrastive, so that the encoder cannot make all tokens equal. make_env: makes one environment.

    Raises TrainingError if no episode has two observations in a row.
    """
    if min(steps, n_envs, segment - 1) < 1:
        raise TrainingError(f"expected steps, n_envs >= 1 and segment >= 2, got {steps}, {n_envs}, {segment}")
    reader.requires_grad_(True)
    envs = vector(make_env, n_envs, seed, "same_step")
    envs.action_space.seed(seed)
    optimizer = torch.optim.Adam(reader.parameters(), lr=lr)
    losses: list[float] = []
    state, starts = reader.initial_state(n_envs), torch.ones(n_envs, dtype=torch.bool)
    obs = envs.reset()[0]
    for _ in range(max(1, steps // (n_envs * segment))):
        played, begun = [], []
        for _ in range(segment):
            played.append(tree(torch.as_tensor, obs))
            begun.append(starts)
            obs, _, ended, cut, _ = envs.step(envs.action_space.sample())
            starts = torch.as_tensor(ended | cut)
        sequence, reset = cast(Any, tree(lambda *x: torch.stack(x), *played)), torch.stack(begun)
        token = reader.tokens(sequence, leading=2).transpose(0, 1)
        y, state = reader.memory(reader.norm(token), state, reset.T)
        state = state.detach()
        follows = ~reset.T[:, 1:]  # the next observation is of the same episode
        if not follows.any():
            continue
        guess = F.normalize(reader.guess(token + y)[:, :-1][follows], dim=-1)
        seen = F.normalize(token[:, 1:][follows], dim=-1)
        loss = F.cross_entropy(guess @ seen.T / 0.1, torch.arange(len(seen)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    envs.close()
    if not losses:
        raise TrainingError("there was nothing to predict: no episode had two observations in a row")
    return losses
