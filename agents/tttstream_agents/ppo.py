"""Proximal policy optimisation (Schulman et al., arXiv 1707.06347) of a policy with a memory.

Letters: T steps of a rollout, B environments, L steps of a segment, S = B * T / L segments.

The hidden state is stored at the start of each segment, and the steps of a segment are recomputed with gradients in one
parallel call. So training does not need to store the state of every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor
from torch.nn import functional as F

from tttstream.state import pack, unpack
from tttstream_agents.config import Config
from tttstream_agents.envs import quiet, tree
from tttstream_agents.errors import EnvError, ObservationError, TrainingError, one_line
from tttstream_agents.heads import Categorical
from tttstream_agents.policy import MemoryPolicy
from tttstream_agents.statistics import RewardScale
from tttstream_agents.trunk import PolicyState
from tttstream_agents.vectors import Overwritten, action_mask, final_obs, keep_last, mode_of, own

MEASURED = ("policy_loss", "value_loss", "entropy", "grad_norm", "kl", "clipped", "first_ratio")
"""The measurements of `learn`. kl is an estimate, ratio - 1 - log ratio; clipped is a share; first_ratio is the largest
|ratio - 1| of the first batch, which is 0 except for rounding."""


def nothing(policy: MemoryPolicy) -> dict[str, float]:
    """The measurements of an update that learned nothing."""
    return dict.fromkeys((*MEASURED, *policy.losses), math.nan)


class Step(NamedTuple):
    """A step of every environment: tensors [B], obs and action [B, ...]."""

    obs: Any
    starts: Tensor
    """Whether obs is the first of an episode; the memory is then reset."""
    valid: Tensor
    """False if the environment ignores the action, because it starts its next episode in this step."""
    previous_reward: Tensor
    """The reward that came with obs."""
    mask: Tensor | None
    """Legal actions [B, n], None if the environments give no masks."""
    action: Tensor
    log_prob: Tensor
    value: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_value: Tensor
    """The value of the last observation of a truncated episode, if the next row does not contain it."""


class Player:
    """Plays a policy in a vector of environments, episode after episode.

    The memory is reset exactly at the start of an episode. A vector that resets on the SAME step returns the first
    observation of the next episode at once, and the last one of the old episode in info["final_obs"]. A vector that
    resets on the NEXT step returns the last observation, ignores the next action, and then returns the first
    observation. The row in between is not valid. Its value, with the old memory, is the bootstrap of a truncated
    episode, and the memory is reset one row later.

    masks: obey masks of legal actions, in info["action_mask"] or under "action_mask" in a Dict of observations.

    Raises EnvError if an environment fails, ObservationError for a wrong observation or reward.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], policy: MemoryPolicy, masks: bool = True) -> None:
        self.masks = masks
        self.envs, self.policy, self.same_step = envs, policy, mode_of(envs) == AutoresetMode.SAME_STEP
        self.device = next(policy.parameters()).device
        batch, self.steps = envs.num_envs, 0
        if self.same_step:
            keep_last(envs)
            self.overwritten = Overwritten(envs)
        obs, info = self.call("reset")
        self.obs = own(obs)
        self.state = policy.initial_state(batch)
        self.starts = torch.ones(batch, dtype=torch.bool, device=self.device)
        self.valid = torch.ones_like(self.starts)
        self.previous_reward = torch.zeros(batch, device=self.device)
        self.gives_masks: bool | None = None  # not known yet
        self.mask = self._legal(info)

    def call(self, name: str, *args: Any) -> Any:
        """Call a method of the environments. Any exception becomes an EnvError."""
        try:
            with quiet():
                return getattr(self.envs, name)(*args)
        except (EOFError, ConnectionError) as error:
            raise EnvError(f"the environment failed in {name}: its process died") from error
        except Exception as error:  # an environment is foreign code and may raise anything
            raise EnvError(f"the environment failed in {name}: {one_line(error)}") from error

    def step(self, deterministic: bool = False) -> Step:
        """Act once in every environment. Raises the errors of the class."""
        obs, starts, valid, previous, mask = self.obs, self.starts, self.valid, self.previous_reward, self.mask
        action, log_prob, value, self.state = self._act(obs, self.state, starts, previous, mask, deterministic)
        self.obs, reward, ended, cut, info = self.call("step", self.policy.to_env(action))
        self.obs, self.steps = own(self.obs), self.steps + 1
        terminated, truncated = (torch.tensor(np.asarray(x), device=self.device) for x in (ended, cut & ~ended))
        came = self.previous_reward = torch.tensor(np.asarray(reward), dtype=torch.float32, device=self.device)
        if not bool(came.isfinite().all()):
            row = int((~came.isfinite()).nonzero()[0])
            raise ObservationError(
                f"environment {row} gave a reward that is not finite in float32, {reward[row]}, in step {self.steps}",
                row,
            )
        final_value = torch.zeros_like(value)
        if self.same_step:
            self.starts = terminated | truncated
            if truncated.any():  # by the old memory, before its reset
                rows = truncated.nonzero().squeeze(1)
                last = final_obs(info, rows.tolist())
                self.overwritten.look(last, self.obs, rows.tolist())
                state = pick(self.state, rows)
                all_legal = None if mask is None else torch.ones_like(mask[rows])  # the value does not depend on it
                final_value[rows] = self._act(last, state, None, came[rows], all_legal, True, rows)[2]
        else:
            self.starts, self.valid = ~valid, ~(terminated | truncated)
        self.mask = self._legal(info)
        return Step(
            obs, starts, valid, previous, mask, action, log_prob, value, came, terminated, truncated, final_value
        )

    def next_value(self) -> Tensor:
        """The value [B] of the current observation. Changes nothing."""
        return self._act(self.obs, self.state, self.starts, self.previous_reward, self.mask, True)[2]

    def _legal(self, info: Any) -> Tensor | None:
        """The legal actions [B, n] for the current observations; all of them if the action will be ignored."""
        head = self.policy.action
        if not self.masks or not isinstance(head, Categorical):
            return None
        mask = action_mask(info, self.valid.tolist(), head.outputs)
        if mask is None:
            mask = self.policy.mask_in(self.obs)
        if self.gives_masks is None:
            self.gives_masks = mask is not None
        if mask is None and not self.gives_masks:
            return None
        if mask is None and not bool(self.valid.any()):  # all episodes are over
            mask = np.ones((len(self.valid), head.outputs), dtype=bool)
        if mask is None or not self.gives_masks:
            gave, not_gave = ("the first step", "a later one") if mask is None else ("a later step", "the first")
            raise EnvError(f"the environments gave info['action_mask'] in {gave} but not in {not_gave}: give it always")
        return torch.as_tensor(np.asarray(mask), device=self.device).bool() | ~self.valid[:, None]

    def remask(self, rows: list[int], infos: Any) -> None:
        """Renew the masks of some environments, whose episodes started with these entries of `infos`."""
        found = self._legal(list(infos))
        if found is not None and self.mask is not None:
            self.mask[rows] = found[rows]

    def _act(
        self,
        obs: Any,
        state: PolicyState,
        starts: Tensor | None,
        previous_reward: Tensor,
        mask: Tensor | None,
        deterministic: bool,
        rows: Any = None,
    ) -> tuple[Tensor, Tensor, Tensor, PolicyState]:
        """As the policy's `act`; errors about an observation name its environment (one of `rows`) and step."""
        try:
            return self.policy.act(
                obs, state, starts, previous_reward, action_mask=mask, deterministic=deterministic
            )  # fmt: skip
        except ObservationError as error:
            if error.row is None:
                raise
            row = error.row if rows is None else int(rows[error.row])
            raise ObservationError(f"environment {row}, after {self.steps} steps in it: {error}", row) from error


def advantages(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float, lam: float
) -> Tensor:
    """Generalised advantage estimation (arXiv 1506.02438), all [T, B]. next_value: of the next observation in the same
    episode, also after a truncation. done: the last step of an episode, where the sum ends."""
    delta = reward + gamma * torch.where(terminated, 0.0, next_value) - value
    out, running = torch.zeros_like(value), torch.zeros_like(value[0])
    for t in reversed(range(len(value))):
        running = delta[t] + gamma * lam * torch.where(done[t], 0.0, running)
        out[t] = running
    return out


@dataclass
class Rollout:
    """A rollout in segments: tensors [L, S, ...], and the hidden states at the starts of the segments, S rows."""

    obs: Any
    starts: Tensor
    valid: Tensor
    previous_reward: Tensor
    mask: Tensor | None
    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    states: PolicyState
    ended: list[tuple[float, int]]
    """(return, length) of the episodes that ended."""

    @property
    def target(self) -> Tensor:
        """The target of the critic."""
        return self.advantage + self.value


class Collector:
    """Plays T steps at a time and makes a rollout of them."""

    def __init__(self, player: Player, config: Config) -> None:
        self.player, self.config = player, config
        self.returns = torch.zeros(player.envs.num_envs, dtype=torch.float64)
        self.lengths = torch.zeros(player.envs.num_envs, dtype=torch.long)
        self.scale = None
        if config.normalise_rewards:
            self.scale = RewardScale(player.envs.num_envs, config.gamma).to(player.device)

    def collect(self) -> Rollout:
        """The next rollout."""
        player, config, states, steps, ended = self.player, self.config, [], [], []
        for t in range(config.rollout):
            if t % config.segment == 0:
                states.append(player.state)
            step = player.step()
            ended += self._count(step)
            if self.scale is not None:
                scaled = self.scale(step.reward, step.valid, step.terminated, step.truncated)
                step = step._replace(reward=scaled)
            steps.append(step)
        names = [name for name in Step._fields if name != "obs" and getattr(steps[0], name) is not None]
        columns = {name: [getattr(step, name) for step in steps] for name in names}
        s = {name: torch.stack(column) for name, column in columns.items()}
        done = s["terminated"] | s["truncated"]
        following = torch.cat([s["value"][1:], player.next_value()[None]])
        if player.same_step:
            following = torch.where(done, s["final_value"], following)
        advantage = advantages(
            s["reward"], s["value"], following, s["terminated"], done, config.gamma, config.gae_lambda
        )
        obs = tree(lambda *rows: torch.as_tensor(np.stack(rows), device=player.device), *(step.obs for step in steps))
        cut = self._segments
        return Rollout(
            tree(cut, obs), cut(s["starts"]), cut(s["valid"]), cut(s["previous_reward"]),
            cut(s["mask"]) if "mask" in s else None, cut(s["action"]), cut(s["log_prob"]), cut(s["value"]),
            cut(advantage), join(states), ended,
        )  # fmt: skip

    def _segments(self, x: Tensor) -> Tensor:
        """[T, B, ...] -> [L, S, ...]; segment k of environment b is row k * B + b."""
        return x.unflatten(0, (-1, self.config.segment)).transpose(0, 1).flatten(1, 2)

    def _count(self, step: Step) -> list[tuple[float, int]]:
        valid = step.valid.cpu()
        self.returns += torch.where(valid, step.reward.cpu().double(), 0.0)
        self.lengths += valid
        over = (step.terminated | step.truncated).cpu()
        ended = list(zip(self.returns[over].tolist(), self.lengths[over].tolist(), strict=True))
        self.returns[over], self.lengths[over] = 0.0, 0
        return ended


def pick(state: PolicyState, rows: Tensor | slice) -> PolicyState:
    """The state of some environments."""
    return cast(PolicyState, state[rows])


def join(states: list[PolicyState]) -> PolicyState:
    """Concatenate states along the rows."""
    return states[0] if len(states) == 1 else unpack(torch.cat([pack(state) for state in states]), states[0])


def refresh(policy: MemoryPolicy, rollout: Rollout, batch: int) -> PolicyState:
    """The hidden states at the starts of the segments, recomputed with the current weights from the first one on."""
    state, states = pick(rollout.states, slice(0, batch)), []
    with torch.no_grad():
        for first in range(0, rollout.starts.shape[1], batch):
            rows = slice(first, first + batch)
            states.append(state)
            obs = tree(lambda x, rows=rows: x[:, rows], rollout.obs)
            previous, starts, action = (x[:, rows] for x in (rollout.previous_reward, rollout.starts, rollout.action))
            mask = None if rollout.mask is None else rollout.mask[:, rows]
            state = policy.evaluate(obs, action, state, starts, previous, action_mask=mask)[3]
    return join(states)


def learn(policy: MemoryPolicy, optimizer: torch.optim.Optimizer, rollout: Rollout, config: Config) -> dict[str, float]:
    """Train on a rollout. Returns the mean of each measurement in `MEASURED` and of each auxiliary loss. Raises
    TrainingError if the loss is not finite."""
    segments = rollout.starts.shape[1]
    states, count = rollout.states, 0
    sums = dict.fromkeys((*MEASURED, *policy.losses), 0.0)
    for epoch in range(config.epochs):
        if config.recompute and epoch:
            states = refresh(policy, rollout, config.n_envs)
        for rows in torch.randperm(segments).split(max(1, config.minibatch // config.segment)):
            log_prob, entropy, value, _, extra = policy.learn_from(
                tree(lambda x, rows=rows: x[:, rows], rollout.obs), rollout.action[:, rows], pick(states, rows),
                rollout.starts[:, rows], rollout.previous_reward[:, rows],
                action_mask=None if rollout.mask is None else rollout.mask[:, rows], valid=rollout.valid[:, rows],
            )  # fmt: skip
            valid = rollout.valid[:, rows]
            old, advantage, target, before = (
                x[:, rows][valid] for x in (rollout.log_prob, rollout.advantage, rollout.target, rollout.value)
            )
            if len(old) < 2:
                continue
            log_ratio = log_prob[valid] - old
            ratio = log_ratio.exp()
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
            policy_loss = -torch.min(ratio * advantage, clipped * advantage).mean()
            near = before + (value[valid] - before).clamp(-config.clip, config.clip)
            errors = [F.mse_loss(guess, target, reduction="none") for guess in (value[valid], near)]
            value_loss = 0.5 * (torch.max(*errors) if config.clip_value else errors[0]).mean()
            spread = entropy[valid].mean()
            loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * spread
            for name, one in extra.items():
                loss = loss + getattr(config, f"{name}_coef") * one
            if not bool(loss.isfinite()):
                raise TrainingError(f"the loss is {float(loss.detach())}: lower lr, or check the scale of the rewards")
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
            optimizer.step()
            with torch.no_grad():
                measured = (
                    policy_loss, value_loss, spread, norm, (ratio - 1 - log_ratio).mean(),
                    ((ratio - 1).abs() > config.clip).float().mean(),
                    (ratio - 1).abs().max() if count == 0 else torch.zeros(()),
                )  # fmt: skip
            for name, number in {**dict(zip(MEASURED, measured, strict=True)), **extra}.items():
                sums[name] += float(number.detach())
            count += 1
        if config.target_kl and sums["kl"] > config.target_kl * count:
            break
    if not count:
        return nothing(policy)
    return {**{name: total / count for name, total in sums.items()}, "first_ratio": sums["first_ratio"]}
