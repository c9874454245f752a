"""Masks of legal actions: an illegal action has probability 0 in acting, evaluating, entropy, KL and training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList
from torch.distributions import Categorical as TorchCategorical

from tttstream_agents import ActionMaskObservation, MemoryPolicy
from tttstream_agents.config import Config
from tttstream_agents.envs import Episodes, make, vector
from tttstream_agents.errors import EnvError, ObservationError, SpaceError
from tttstream_agents.heads import build
from tttstream_agents.ppo import Collector, Player, learn, refresh
from tttstream_agents.train import Run

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
SMALL = Config(n_envs=2, rollout=24, segment=8, minibatch=16, dim=16, epochs=2, recompute=True)
SPACES = {
    "discrete": spaces.Discrete(5, start=2),
    "multidiscrete": spaces.MultiDiscrete([3, 4]),
    "multibinary": spaces.MultiBinary(3),
}


class Doors(gym.Env[Any, Any]):
    """Three of six doors are open, others each step; a closed one must not be tried. The reward is for the first.

    where: "info", "obs" (a Dict) or "method" (action_masks, as sb3-contrib). shut: the step whose mask allows nothing.
    ends: the mask after the last step allows nothing.
    """

    def __init__(self, where: str = "info", shut: int = -1, ends: bool = True, multi: bool = False) -> None:
        self.where, self.shut, self.ends, self.multi = where, shut, ends, multi
        self.action_space: Any = spaces.MultiDiscrete([3, 3]) if multi else spaces.Discrete(6)
        seen = {"observation": BOX, "action_mask": spaces.MultiBinary(6)}
        self.observation_space = spaces.Dict(seen) if where == "obs" else BOX
        self.tried: list[bool] = []

    def _out(self) -> tuple[Any, dict[str, Any]]:
        over = self.time == 6
        self.mask = np.zeros(6, np.int8)
        if self.time != self.shut and not (over and self.ends):
            self.mask[self.np_random.permutation(6)[:3]] = 1
            if self.multi:
                self.mask[[0, 5]] = 1
        obs = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        seen: Any = {"observation": obs, "action_mask": self.mask} if self.where == "obs" else obs
        return seen, {"action_mask": self.mask} if self.where == "info" else {}

    def action_masks(self) -> Any:
        return self.mask if self.where == "method" else None

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._out()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        places = [int(action[0]), 3 + int(action[1])] if self.multi else [int(action)]
        assert all(self.mask[place] for place in places), "an illegal action"
        reward = float(places[0] == int(np.flatnonzero(self.mask)[0]))
        self.time += 1
        obs, info = self._out()
        return obs, reward, self.time == 6, False, info


def steps(player: Player, count: int) -> None:
    for _ in range(count):
        player.step()


@pytest.mark.parametrize("name", SPACES)
def test_probabilities_against_those_of_torch(name: str) -> None:
    """Log-probabilities, entropies and gradients equal those of a distribution over the legal choices alone."""
    head = build(SPACES[name])
    torch.manual_seed(0)
    mask = torch.rand(50, head.outputs) < 0.5
    parts = head.choices.sizes  # type: ignore[union-attr]
    first = 0
    for size in parts:  # something is legal everywhere
        mask[torch.arange(50), first + torch.randint(size, (50,))] = True
        first += size
    outputs = torch.randn(50, head.outputs, requires_grad=True)
    action = head.sample(outputs, mask=mask)
    found, entropy = head.log_prob(outputs, action, mask), head.entropy(outputs, mask)
    assert bool(found.isfinite().all())
    for row in range(50):
        expected, spread = 0.0, 0.0
        chosen = head.choices(action[row][None])[0].split(parts)  # type: ignore[union-attr]
        pieces = zip(outputs[row].split(parts), mask[row].split(parts), chosen, strict=True)
        for logits, legal, one in pieces:
            alone = TorchCategorical(logits=logits[legal])
            expected = expected + alone.log_prob(one[legal].argmax())
            spread = spread + alone.entropy()
        torch.testing.assert_close(found[row], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(entropy[row], spread, atol=1e-6, rtol=0)
    (found.sum() + entropy.sum()).backward()
    assert bool(outputs.grad.isfinite().all())  # type: ignore[union-attr]
    assert not outputs.grad[~mask].any()  # type: ignore[index]


@pytest.mark.parametrize("deterministic", [False, True])
def test_an_illegal_action_is_never_drawn(deterministic: bool) -> None:
    head = build(spaces.Discrete(4))
    outputs = torch.tensor([0.0, 30.0, 0.0, 30.0]).expand(20_000, -1)
    mask = torch.tensor([True, False, True, False]).expand(20_000, -1)
    drawn = head.sample(outputs, deterministic, mask)
    assert set(drawn.tolist()) == ({0} if deterministic else {0, 2})
    illegal = torch.full((20_000,), 1)
    assert bool((head.log_prob(outputs, illegal, mask) == -torch.inf).all())
    assert torch.equal(head.log_prob(outputs, illegal, torch.ones_like(mask)), head.log_prob(outputs, illegal))


@pytest.mark.parametrize("where", ["info", "obs"])
@pytest.mark.parametrize("mode", ["next_step", "same_step"])
@pytest.mark.parametrize("multi", [False, True])
def test_masks_go_through_training(mode: str, where: str, multi: bool) -> None:
    """The environments refuse illegal actions; masks are stored, and the ratio of the first epoch is 1."""
    torch.manual_seed(0)
    envs = vector(lambda: Doors(where, multi=multi), 2, 0, mode)
    policy = MemoryPolicy(envs.single_observation_space, envs.single_action_space, dim=16)
    assert policy.encoder.size == 3
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    play = Collector(Player(envs, policy), SMALL)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    for _ in range(2):
        rollout = play.collect()
        assert rollout.mask is not None
        valid = rollout.valid
        legal = rollout.mask[valid]
        assert int(legal.sum(-1).max()) <= 5
        assert bool(rollout.mask[~valid].all())
        log_prob, entropy, _, _ = policy.evaluate(
            rollout.obs, rollout.action, rollout.states, rollout.starts, action_mask=rollout.mask
        )
        torch.testing.assert_close(log_prob[valid], rollout.log_prob[valid], atol=1e-5, rtol=0)
        if not multi:
            assert float(entropy[valid].detach().max()) <= np.log(3) + 1e-5
        measured = learn(policy, optimizer, rollout, SMALL)
        assert measured["first_ratio"] < 1e-5
        assert abs(measured["kl"]) < 1e-5
        assert refresh(policy, rollout, 2).rows == rollout.states.rows
    learn(policy, torch.optim.Adam(policy.parameters(), 1e-2), rollout, SMALL)
    assert all(bool(parameter.isfinite().all()) for parameter in policy.parameters())


def test_an_illegal_action_gets_probability_zero_where_it_is_evaluated() -> None:
    policy = MemoryPolicy(BOX, spaces.Discrete(3), dim=16)
    obs, mask = np.zeros((1, 2, 3), "f4"), np.array([[[True, False, True], [True, True, True]]])
    log_prob, entropy, _, _ = policy.evaluate(obs, np.array([[1, 1]]), None, action_mask=mask)
    assert float(log_prob[0, 0].detach().exp()) == 0.0
    assert float(log_prob[0, 1].detach()) > -2
    assert bool(entropy.isfinite().all())


def test_masks_in_a_list_of_infos_and_of_tuples() -> None:
    class Tuples(Doors):
        def _out(self) -> tuple[Any, dict[str, Any]]:
            obs, _ = super()._out()
            return obs, {"action_mask": (self.mask[:3], self.mask[3:])}

    for wrapped in (
        lambda: DictInfoToList(SyncVectorEnv([Doors] * 2)),
        lambda: SyncVectorEnv([lambda: Tuples(multi=True)] * 2),
    ):
        envs = wrapped()
        player = Player(envs, MemoryPolicy(envs.single_observation_space, envs.single_action_space, dim=16))
        for _ in range(20):
            assert player.step().mask is not None


@pytest.mark.parametrize("where", ["info", "obs"])
@pytest.mark.parametrize("limit", [100, 2])
def test_a_resumed_run_obeys_the_masks_of_its_episodes(where: str, limit: int, tmp_path: Path) -> None:
    """Also where an episode is too long to be replayed, and another begins in its place."""
    config = Config(n_envs=2, rollout=16, segment=8, minibatch=16, dim=16, epochs=1, steps=96)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Episodes.__init__, "__defaults__", (False, limit))
        for done in range(3):
            run = Run(config, lambda: Doors(where))
            if done:
                run.restore(tmp_path / "checkpoint.pt")
            run.update()
            run.save(tmp_path / "checkpoint.pt")
            assert run.player.mask is not None
            run.close()


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_the_mask_may_be_missing_after_the_last_step(mode: str) -> None:
    """All episodes end together, so no environment gives a mask in that step."""

    class Ended(Doors):
        def _out(self) -> tuple[Any, dict[str, Any]]:
            obs, info = super()._out()
            return obs, {} if self.time == 6 else info

    envs = vector(Ended, 2, 0, mode)
    player = Player(envs, MemoryPolicy(BOX, spaces.Discrete(6), dim=16))
    assert all(player.step().mask is not None for _ in range(20))


def test_the_masks_of_a_method_are_obeyed() -> None:
    """`action_masks`, the convention of sb3-contrib. The environments refuse illegal actions."""
    envs = vector(lambda: Doors("method"), 2, 0)
    player = Player(envs, MemoryPolicy(BOX, spaces.Discrete(6), dim=16))
    assert all(player.step().mask is not None for _ in range(20))


def test_a_mask_of_another_shape_in_the_observations_is_refused() -> None:
    """If it were encoded as numbers, illegal actions would be possible."""
    joint = spaces.Dict({"observation": BOX, "action_mask": spaces.MultiBinary([3, 2])})
    with pytest.raises(SpaceError, match=r"action_mask: expected 5 zeros and ones, .* got MultiBinary"):
        MemoryPolicy(joint, spaces.MultiDiscrete([3, 2]), dim=16)
    assert MemoryPolicy(joint, BOX, dim=16).encoder.size == 3 + 2 * 6  # of a Box no action is illegal


def test_masks_can_be_ignored() -> None:
    envs = vector(lambda: make("Taxi-v4"), 2, 0)  # its info has masks
    policy = MemoryPolicy(envs.single_observation_space, envs.single_action_space, dim=16)
    assert Player(envs, policy, masks=False).step().mask is None
    assert int(Player(envs, policy).step().mask.sum()) < 12  # type: ignore[union-attr]


def test_mistakes_are_named() -> None:
    policy, obs = MemoryPolicy(BOX, spaces.MultiDiscrete([2, 3]), dim=16), np.zeros((2, 3), "f4")
    for mask, says in (
        (np.ones((2, 4), bool), r"expected an action mask of shape \[2, 5\], got \[2, 4\]"),
        (np.full((2, 5), 0.5), "other than 0 and 1"),
        ("all", "expected an action mask of bools, got str"),
        ([[1, 0, 1, 0, 0], [1, 1, 0, 0, 0]], r"allows no action in row \[1\] for component 1"),
    ):
        with pytest.raises(ObservationError, match=says):
            policy.act(obs, None, action_mask=mask)
    with pytest.raises(SpaceError, match="this policy has a Box"):
        MemoryPolicy(BOX, BOX, dim=16).act(obs, None, action_mask=np.ones((2, 3), bool))
    player = Player(vector(lambda: Doors(shut=2), 2, 0), MemoryPolicy(BOX, spaces.Discrete(6), dim=16))
    with pytest.raises(ObservationError, match="after 2 steps in it: the action mask allows no action in row"):
        steps(player, 4)

    class Sometimes(Doors):
        def _out(self) -> tuple[Any, dict[str, Any]]:
            obs, info = super()._out()
            return obs, {} if self.time == 2 and self.shut == -2 else info

    player = Player(vector(lambda: Sometimes(shut=-2), 2, 0), MemoryPolicy(BOX, spaces.Discrete(6), dim=16))
    with pytest.raises(EnvError, match="in the first step but not in a later one: give it always"):
        steps(player, 4)
    makers = iter([Sometimes, lambda: Sometimes(shut=-2)])
    player = Player(vector(lambda: next(makers)(), 2, 0), MemoryPolicy(BOX, spaces.Discrete(6), dim=16))
    with pytest.raises(EnvError, match="environment 1 gave no info"):
        steps(player, 4)


@pytest.mark.parametrize("where", ["info", "method"])
def test_a_wrapper_puts_masks_into_observations(where: str) -> None:
    env = ActionMaskObservation(Doors(where))
    obs, _ = env.reset(seed=0)
    for _ in range(6):
        assert env.observation_space.contains(obs)
        obs, _, terminated, _, _ = env.step(int(obs["action_mask"].argmax()))
    assert terminated
    assert obs["action_mask"].all()
    with pytest.raises(EnvError, match="neither info"):
        ActionMaskObservation(Doors("none")).reset()
    with pytest.raises(SpaceError, match="this is a Box"):
        ActionMaskObservation(gym.make("Pendulum-v1"))


def test_a_masked_policy_learns() -> None:
    """The first legal door: a policy that sees no mask cannot know it, one that is masked gets more than its third."""
    torch.manual_seed(0)
    envs = vector(lambda: Doors(), 8, 0)
    policy = MemoryPolicy(BOX, spaces.Discrete(6), dim=16)
    config = Config(n_envs=8, rollout=42, minibatch=84, dim=16, epochs=4, segment=42)
    play, optimizer = Collector(Player(envs, policy), config), torch.optim.Adam(policy.parameters(), 3e-3)
    returns = []
    for _ in range(15):
        rollout = play.collect()
        learn(policy, optimizer, rollout, config)
        returns.append(np.mean([one for one, _ in rollout.ended]))
    # the order of preference 0, 1, 2 … always takes the first legal door: 6 of 6
    assert np.mean(returns[-3:]) > 4.5, returns
    assert returns[0] < 3.0


def test_wrappers_import_neither_ppo_nor_the_command_line() -> None:
    script = (
        "import sys, tttstream_agents.wrappers; "
        "print([name for name in sys.modules if name in ('tttstream_agents.ppo', 'tttstream_agents.train', "
        "'tttstream_agents.cli') or name.startswith(('tttstream.cli', 'lightning'))])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
