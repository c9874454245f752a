"""Masks of legal actions in the Stable-Baselines3 adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tttstream_agents import ActionMaskObservation
from tttstream_agents.errors import ObservationError, SpaceError

sb3 = pytest.importorskip("tttstream_agents.sb3")
SMALL: dict[str, Any] = {"n_steps": 24, "batch_size": 24, "n_epochs": 2, "device": "cpu", "seed": 0}


class Half(gym.Env[Any, Any]):
    """Each choice of each component is legal half of the time; an illegal action raises."""

    def __init__(self, multi: bool = False) -> None:
        self.action_space: Any = spaces.MultiDiscrete([3, 2]) if multi else spaces.Discrete(5)
        self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.multi = multi

    def _out(self) -> tuple[Any, dict[str, Any]]:
        self.mask = self.np_random.random(5) < 0.5
        self.mask[[self.np_random.integers(3), 3 + self.np_random.integers(2)]] = True
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {"action_mask": self.mask}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._out()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        places = [int(action[0]), 3 + int(action[1])] if self.multi else [int(action)]
        assert self.mask[places].all(), "an illegal action"
        self.time += 1
        obs, info = self._out()
        return obs, 1.0, False, self.time == 7, info


def model(multi: bool) -> Any:
    return sb3.RecurrentPPO(
        "TTTMultiInputPolicy", ActionMaskObservation(Half(multi)), policy_kwargs={"dim": 16, "heads": 1}, **SMALL
    )


@pytest.mark.parametrize("multi", [False, True])
def test_training_obeys_masks_and_goes_on_after_loading(multi: bool, tmp_path: Path) -> None:
    made = model(multi).learn(96)
    batch = next(made.rollout_buffer.get(None))
    assert batch.observations["action_mask"].shape == (24, 5)
    values, log_prob, entropy = made.policy.evaluate_actions(
        batch.observations, batch.actions if multi else batch.actions.long().flatten(), batch.lstm_states,
        batch.episode_starts,
    )  # fmt: skip
    assert all(bool(x.isfinite().all()) for x in (values, log_prob, entropy))
    made.save(tmp_path / "model.zip")
    again = sb3.RecurrentPPO.load(tmp_path / "model.zip", env=ActionMaskObservation(Half(multi)))
    again.learn(48)
    made.policy.save(tmp_path / "policy.pt")
    type(made.policy).load(tmp_path / "policy.pt")
    env, state = ActionMaskObservation(Half(multi)), None
    obs, _ = env.reset(seed=3)
    for step in range(7):
        action, state = again.predict(obs, state, np.array([step == 0]), deterministic=step % 2 == 0)
        obs = env.step(action)[0]  # raises where the action is illegal


def test_an_illegal_action_has_probability_zero_and_no_gradient() -> None:
    policy = model(False).policy
    obs = {"observation": torch.zeros(2, 3), "action_mask": torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1]])}
    state, start = (torch.zeros(1, 2, policy.lstm_hidden_state_shape[2]),) * 2, torch.ones(2)
    distribution = policy.get_distribution(obs, state, start)[0].distribution
    assert torch.equal(distribution.probs == 0, obs["action_mask"] == 0)
    assert float(distribution.entropy()[1].detach()) == 0.0
    distribution.entropy().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in policy.parameters() if p.grad is not None)
    obs["action_mask"][0] = 0
    with pytest.raises(ObservationError, match="allows no action in row"):
        policy.get_distribution(obs, state, start)


def test_binary_actions_are_refused() -> None:
    class Binary(Half):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.MultiBinary(2)

    with pytest.raises(SpaceError, match="is for Discrete and MultiDiscrete"):
        sb3.RecurrentPPO("TTTMultiInputPolicy", ActionMaskObservation(Binary()), **SMALL)
