"""PPO with a TTT memory in one file, in the manner of CleanRL: the memory is a module, its state a value.

python agents/examples/cleanrl_ppo.py --env-id popgym:popgym-RepeatFirstEasy-v0 --total-timesteps 100000

What differs from a PPO without memory is marked with "memory:".
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import random
import re
import time
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn
from torch.distributions import Categorical

import tttstream


@dataclass
class Args:
    """Every hyper-parameter, with a sentence."""

    env_id: str = "popgym:popgym-RepeatFirstEasy-v0"
    """gymnasium id of the environment, with the module that registers it before a colon"""
    seed: int = 0
    """seed of weights, draws and environments"""
    total_timesteps: int = 100_000
    """environment steps in all"""
    learning_rate: float = 1e-3
    """of Adam"""
    num_envs: int = 16
    """environments side by side"""
    num_steps: int = 104
    """steps played in each of them between two updates; also the length of a training sequence"""
    gamma: float = 0.99
    """discount"""
    gae_lambda: float = 0.95
    """how far advantages look before they trust the critic"""
    num_minibatches: int = 4
    """gradient steps in an epoch; each takes whole environments, never single steps"""
    update_epochs: int = 4
    """epochs over each rollout"""
    clip_coef: float = 0.2
    """how far the ratio of new to old probabilities counts"""
    ent_coef: float = 0.01
    """weight of the entropy"""
    vf_coef: float = 0.5
    """weight of the critic's loss"""
    max_grad_norm: float = 0.5
    """gradients are scaled down to this length"""
    dim: int = 32
    """width of the agent"""
    heads: int = 1
    """inner models of the memory side by side"""


WAVES = 2.0 ** torch.arange(2, 11)


class Agent(nn.Module):
    """Observation and position -> token -> memory -> actor, critic."""

    def __init__(self, numbers: int, actions: int, dim: int, heads: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(numbers + 2 * len(WAVES), dim), nn.GELU(), nn.Linear(dim, dim))
        self.before, self.after = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.memory = tttstream.TTTLayer(dim, heads, "linear", conv=4)
        self.actor, self.critic = nn.Linear(dim, actions), nn.Linear(dim, 1)
        nn.init.orthogonal_(self.actor.weight, 0.01)

    def forward(self, obs: Tensor, state: Any, done: Tensor) -> tuple[Categorical, Tensor, Any]:
        """obs [B, T, N], done [B, T] (obs is the first of an episode) -> distribution, value [B, T], state."""
        x = self.encoder(obs)
        y, state = self.memory(self.before(x), state, done)  # memory: resets inside, all steps in parallel
        x = self.after(x + y)
        return Categorical(logits=self.actor(x)), self.critic(x).squeeze(-1), state


def seen(obs: Any, age: Tensor) -> Tensor:
    """Observations [B, N] with the waves of how many steps [B] of their episode are behind them."""
    angle = 2 * math.pi * age[:, None] / WAVES
    return torch.cat([torch.as_tensor(np.asarray(obs), dtype=torch.float32), angle.sin(), angle.cos()], -1)


def main(args: Args) -> dict[str, Any]:
    """Train; returns what came of it."""
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    envs = SyncVectorEnv(
        [lambda: gym.wrappers.FlattenObservation(gym.make(args.env_id, disable_env_checker=True))] * args.num_envs,
        autoreset_mode=AutoresetMode.SAME_STEP,  # memory: then done comes with the first observation of an episode
    )
    assert isinstance(envs.single_action_space, gym.spaces.Discrete), "only discrete actions"
    assert args.num_steps > 1, "a gradient step on one step of play cannot normalise its advantage"
    numbers, actions = int(np.prod(envs.single_observation_space.shape)), int(envs.single_action_space.n)
    agent = Agent(numbers, actions, args.dim, args.heads)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)

    shape = (args.num_envs, args.num_steps)
    obs = torch.zeros(*shape, numbers + 2 * len(WAVES))
    acts, dones = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    logprobs, rewards, values = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)

    began, returns, running = time.process_time(), [], np.zeros(args.num_envs)
    age = torch.zeros(args.num_envs)
    next_obs = seen(envs.reset(seed=args.seed)[0], age)
    next_done = torch.ones(args.num_envs, dtype=torch.bool)
    next_state = agent.memory.init_state(args.num_envs)
    updates = -(-args.total_timesteps // (args.num_envs * args.num_steps))
    for _ in range(updates):
        first_state = next_state  # memory: the only one kept; those of all other steps are computed again
        for t in range(args.num_steps):
            obs[:, t], dones[:, t] = next_obs, next_done
            with torch.no_grad():
                policy, value, next_state = agent(next_obs[:, None], next_state, next_done[:, None])
            action = policy.sample()[:, 0]
            acts[:, t], values[:, t], logprobs[:, t] = action, value[:, 0], policy.log_prob(action[:, None])[:, 0]
            new_obs, reward, terminated, truncated, info = envs.step(action.numpy())
            running += reward
            reward = torch.as_tensor(reward, dtype=torch.float32)
            next_done = torch.as_tensor(terminated | truncated)
            for row in np.flatnonzero(truncated & ~terminated):  # memory: the end's value, by the memory that saw it
                last = seen(info["final_obs"][row][None], age[row : row + 1] + 1)
                with torch.no_grad():
                    _, value, _ = agent(last[:, None], next_state[[row]], torch.zeros(1, 1, dtype=torch.bool))
                reward[row] += args.gamma * value[0, 0]
            rewards[:, t] = reward
            returns += running[next_done.numpy()].tolist()
            running[next_done.numpy()] = 0
            age = torch.where(next_done, 0, age + 1)
            next_obs = seen(new_obs, age)

        with torch.no_grad():
            _, next_value, _ = agent(next_obs[:, None], next_state, next_done[:, None])
        advantages, last_gae = torch.zeros(shape), torch.zeros(args.num_envs)
        for t in reversed(range(args.num_steps)):
            over = next_done if t == args.num_steps - 1 else dones[:, t + 1]
            following = next_value[:, 0] if t == args.num_steps - 1 else values[:, t + 1]
            delta = rewards[:, t] + args.gamma * following * ~over - values[:, t]
            last_gae = delta + args.gamma * args.gae_lambda * last_gae * ~over
            advantages[:, t] = last_gae
        targets = advantages + values

        for _ in range(args.update_epochs):
            for rows in torch.randperm(args.num_envs).chunk(args.num_minibatches):
                policy, value, _ = agent(obs[rows], first_state[rows], dones[rows])  # memory: whole sequences
                ratio = (policy.log_prob(acts[rows]) - logprobs[rows]).exp()
                advantage = (advantages[rows] - advantages[rows].mean()) / (advantages[rows].std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                loss = -torch.min(ratio * advantage, clipped * advantage).mean()
                loss = loss + args.vf_coef * 0.5 * (value - targets[rows]).square().mean()
                loss = loss - args.ent_coef * policy.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
    envs.close()
    return {
        "library": "one file, as CleanRL", "env": args.env_id, "memory": "ttt_linear",
        "steps": updates * args.num_envs * args.num_steps, "cpu_seconds": round(time.process_time() - began, 1),
        "return": round(float(np.mean(returns[-100:])), 3) if returns else None,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sentences = re.findall(r'^ +(\w+): .*\n +"""(.*)"""$', inspect.getsource(Args), re.MULTILINE)
    for name, sentence in sentences:
        default = getattr(Args, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=sentence)
    print(json.dumps(main(Args(**vars(parser.parse_args())))))
