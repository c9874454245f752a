"""Stable-Baselines3: the policies, the buffer of segments, bootstraps, save and load, and that it learns."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tttstream.errors import ConfigError, StateError
from tttstream_agents.errors import ObservationError, SpaceError, TrainingError

sb3_contrib = pytest.importorskip("sb3_contrib", reason="Stable-Baselines3 is absent: pip install 'tttstream[sb3]'")

from sb3_contrib.ppo_recurrent.policies import MlpLstmPolicy  # noqa: E402
from stable_baselines3.common.callbacks import BaseCallback  # noqa: E402
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402
from stable_baselines3.common.monitor import Monitor  # noqa: E402
from stable_baselines3.common.torch_layers import FlattenExtractor  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv  # noqa: E402

from tttstream.state import pack  # noqa: E402
from tttstream_agents.sb3 import RecurrentPPO, TTTPolicy  # noqa: E402

BOX = spaces.Box(-1, 1, (3,), np.float32)
OBSERVATIONS = {
    "TTTPolicy": BOX,
    "TTTCnnPolicy": spaces.Box(0, 255, (40, 40, 1), np.uint8),
    "TTTMultiInputPolicy": spaces.Dict({"a": BOX, "b": spaces.Discrete(3)}),
}
ACTIONS = [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2), spaces.Box(-2, 2, (2,), np.float32)]
SMALL: dict[str, Any] = {"n_steps": 12, "batch_size": 10, "n_epochs": 2, "seed": 0, "device": "cpu"}
TINY: dict[str, Any] = {"dim": 16, "heads": 1, "options": {"mini_batch": 4}}


class Noise(gym.Env[Any, Any]):
    """Random observations of a space; episodes of 3 to 9 steps, each second one truncated."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.episode = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.episode, self.left = self.episode + 1, int(self.np_random.integers(3, 10))
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.left -= 1
        over, cut = self.left == 0, self.episode % 2 == 0
        return self.observation_space.sample(), float(self.np_random.normal()), over and not cut, over and cut, {}


def model(policy: Any, make_env: Any, n_envs: int = 3, tiny: dict[str, Any] = TINY, **kwargs: Any) -> Any:
    made = RecurrentPPO(policy, DummyVecEnv([make_env] * n_envs), policy_kwargs=tiny, **{**SMALL, **kwargs})
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def collect(made: Any, rollouts: int = 2) -> None:
    """Play on without learning."""
    _, callback = made._setup_learn(10_000, None)
    for _ in range(rollouts):
        assert made.collect_rollouts(made.env, callback, made.rollout_buffer, made.n_steps)


def check_first_ratio(made: Any) -> None:
    seen = 0
    for data in made.rollout_buffer.get(made.batch_size):
        actions = data.actions.long().flatten() if isinstance(made.action_space, spaces.Discrete) else data.actions
        with torch.no_grad():
            value, log_prob, _ = made.policy.evaluate_actions(
                data.observations, actions, data.lstm_states, data.episode_starts
            )
        mask = data.mask > 0
        ratio = (log_prob - data.old_log_prob)[mask].exp()
        torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-5, rtol=0)
        torch.testing.assert_close(value.flatten()[mask], data.old_values[mask], atol=1e-5, rtol=0)
        seen += len(ratio)
    assert seen == made.n_steps * made.n_envs


@pytest.mark.parametrize("action", ACTIONS, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("policy", OBSERVATIONS)
def test_the_ratio_of_the_first_epoch_is_one(policy: str, action: Any) -> None:
    """Segments of 5 of 12 steps, resets inside them, the last ones filled up: what was acted is what is evaluated."""
    made = model(policy, lambda: Noise(OBSERVATIONS[policy], action), segment=5)
    collect(made)
    check_first_ratio(made)
    before = copy.deepcopy(made.policy.state_dict())
    made.train()
    assert all(not torch.equal(before[name], p) for name, p in made.policy.named_parameters() if p.grad is not None)
    assert made.policy.trunk.memories[0].start.grad.abs().max() > 0


@pytest.mark.parametrize("memory", ["ttt_mlp", "gru", "lstm", "window", "framestack"])
def test_every_bounded_memory(memory: str) -> None:
    made = model(
        "TTTPolicy", lambda: Noise(BOX, ACTIONS[0]), tiny={"memory": memory, "dim": 16, "heads": 1, "depth": 2}
    )
    collect(made)
    check_first_ratio(made)


def test_a_memory_of_places(tmp_path: Path) -> None:
    tiny = {**TINY, "memory": "mlp", "options": {}, "places": {"at": "a", "width": 3}}
    made = model("TTTMultiInputPolicy", lambda: Noise(OBSERVATIONS["TTTMultiInputPolicy"], ACTIONS[0]), tiny=tiny)
    assert made.policy.trunk.places.at == [0, 1, 2]
    collect(made)
    check_first_ratio(made)
    made.save(tmp_path / "made")
    again = RecurrentPPO.load(tmp_path / "made")
    torch.testing.assert_close(again.policy.trunk.places.frequencies, made.policy.trunk.places.frequencies)
    with pytest.raises(ConfigError, match="has no part 'a' of numbers; it has none"):
        model("TTTPolicy", lambda: Noise(BOX, ACTIONS[0]), tiny=tiny)


@pytest.mark.parametrize("kwargs", [{"use_sde": True}, {"sde_sample_freq": 4, "use_sde": True, "n_steps": 9}])
def test_state_dependent_exploration(kwargs: dict[str, Any]) -> None:
    made = model("TTTPolicy", lambda: Noise(BOX, ACTIONS[3]), tiny={**TINY, "net_arch": [8]}, **kwargs)
    collect(made)
    check_first_ratio(made)


def test_the_buffer_keeps_states_only_where_segments_begin() -> None:
    made = model("TTTPolicy", lambda: Noise(BOX, ACTIONS[0]), n_steps=24, batch_size=24, segment=8)
    collect(made)
    numbers = pack(made.policy.trunk.initial_state(1)).shape[1]
    assert [state.shape for state in made.rollout_buffer.states] == [(3, numbers)] * 3
    arrays = [value for value in vars(made.rollout_buffer).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) < 24 * 3 * 4 * 20  # a dozen numbers a step
    assert numbers > 256
    batches = [len(data.mask) for data in made.rollout_buffer.get(24)]
    assert batches == [24] * 3
    assert model("TTTPolicy", lambda: Noise(BOX, ACTIONS[0])).rollout_buffer.segment == 6  # batch_size < n_steps


def alone(made: Any, first: int, last: int, env: int, extra: Any = None) -> torch.Tensor:
    """Values of an episode, rows first..last of one environment, with `extra` as its last observation."""
    buffer = made.rollout_buffer
    obs, actions = (torch.as_tensor(x[first : last + 1, env]) for x in (buffer.observations, buffer.actions))
    if extra is not None:
        obs = torch.cat([obs, torch.as_tensor(extra)[None]])
        actions = torch.cat([actions, actions[-1:]])
    starts = torch.zeros(len(obs))
    starts[0] = 1
    state = torch.zeros(made.policy.lstm_hidden_state_shape)
    states = sb3_contrib.common.recurrent.type_aliases.RNNStates((state, state), (state, state))
    with torch.no_grad():
        return made.policy.evaluate_actions(obs, actions.long().flatten(), states, starts)[0].flatten()


def test_memories_start_with_episodes_and_truncations_bootstrap_from_the_memory_that_saw_them(script: Any) -> None:
    """Rewards are 1, 2, 3 …; a truncated episode's last one has gamma times the value of what it ended with."""
    made = model("TTTPolicy", script, n_steps=30, batch_size=30)
    collect(made, 1)
    buffer = made.rollout_buffer
    for env in range(3):
        starts = np.flatnonzero(buffer.episode_starts[:, env])
        assert starts.tolist() == np.cumsum([0, 3, 5, 4, 3, 5, 4, 3])[: len(starts)].tolist()
        for episode, (first, after) in enumerate(itertools.pairwise(starts)):
            length = after - first
            last = np.array([episode, length], np.float32)
            values = alone(made, first, after - 1, env, last)
            torch.testing.assert_close(values[:-1], torch.as_tensor(buffer.values[first:after, env]), atol=1e-5, rtol=0)
            expected = length + (made.gamma * float(values[-1]) if episode % 2 else 0.0)
            assert buffer.rewards[after - 1, env] == pytest.approx(expected, abs=1e-5)


def test_predict_continues_from_its_state_and_resets_it(script: Any) -> None:
    made = model("TTTPolicy", lambda: Noise(BOX, ACTIONS[0]))
    obs = np.random.default_rng(0).uniform(-1, 1, (6, 2, 3)).astype(np.float32)
    state, actions, states = None, [], []
    for t in range(6):
        action, state = made.predict(obs[t], state, np.array([t == 0, t in (0, 3)]), deterministic=True)
        actions.append(action)
        states.append(state)
    again = None
    for t in range(3, 6):  # row 1 began again at 3
        action, again = made.predict(obs[t, 1], again, deterministic=True)
        assert action == actions[t][1]
    np.testing.assert_allclose(again[0][0, 0], states[5][0][0, 1], atol=1e-6)
    assert np.abs(again[0][0, 0] - states[5][0][0, 0]).max() > 1e-3


class Cut(BaseCallback):
    """Saves after a number of calls, with what the draws and the environments then were."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.n_calls == 24:
            self.model.save(self.path)
            self.envs = copy.deepcopy(self.model.env)
            self.draws = torch.get_rng_state(), np.random.get_state()


def test_a_loaded_model_continues_inside_its_episodes(tmp_path: Path) -> None:
    made = model("TTTPolicy", lambda: Noise(BOX, ACTIONS[3]))
    cut = Cut(tmp_path / "model.zip")
    made.learn(12 * 3 * 4, callback=cut)
    loaded = RecurrentPPO.load(cut.path, env=cut.envs, device="cpu", force_reset=False)
    assert loaded.live_state.abs().max() > 0
    torch.set_rng_state(cut.draws[0])
    np.random.set_state(cut.draws[1])
    loaded.learn(12 * 3 * 2, reset_num_timesteps=False)
    assert loaded.num_timesteps == made.num_timesteps
    assert loaded.rollout_buffer.segment == made.rollout_buffer.segment
    for (name, a), b in zip(made.policy.named_parameters(), loaded.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0, msg=name)
    obs = np.ones((2, 3), np.float32)
    assert np.array_equal(*(one.predict(obs, deterministic=True)[0] for one in (made, loaded)))
    bare = RecurrentPPO.load(cut.path, device="cpu")  # without environments, to predict
    assert bare.predict(obs, deterministic=True)[0].shape == (2, 2)
    other = RecurrentPPO.load(cut.path, env=DummyVecEnv([lambda: Noise(BOX, ACTIONS[3])]), device="cpu")
    other.learn(12)  # another number of environments
    assert other.live_state.shape[1] == 1
    made.policy.save(tmp_path / "policy.pt")
    assert np.array_equal(TTTPolicy.load(tmp_path / "policy.pt").predict(obs, deterministic=True)[0],
                          made.predict(obs, deterministic=True)[0])  # fmt: skip


@pytest.mark.parametrize(
    ("n_steps", "batch_size", "n_envs", "segment"),
    [(13, 12, 1, None), (3, 2, 1, None), (5, 1, 1, None), (2, 64, 1, None), (20, 13, 2, 1), (11, 5, 2, 5)],
)
def test_no_step_is_learned_alone(n_steps: int, batch_size: int, n_envs: int, segment: int | None) -> None:
    """The advantage of one step has no deviation: every batch holds two or more, and every step is in one."""
    sizes = {"n_steps": n_steps, "batch_size": batch_size, "segment": segment}
    made = model("TTTPolicy", lambda: Noise(BOX, ACTIONS[0]), n_envs, **sizes)
    collect(made, rollouts=1)
    check_first_ratio(made)
    assert min(int(data.mask.sum()) for data in made.rollout_buffer.get(batch_size)) >= 2
    made.train()
    assert all(parameter.isfinite().all() for parameter in made.policy.parameters())


def test_segments_are_as_equal_as_can_be() -> None:
    made = model("TTTPolicy", lambda: Noise(BOX, ACTIONS[0]), n_steps=20, batch_size=16)
    assert made.rollout_buffer.segment == 10


class Direction(FlattenExtractor):
    """Which way an observation points, of one of zeros NaN."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        flat = super().forward(observations)
        return flat / flat.norm(dim=-1, keepdim=True)


def test_what_fills_up_a_segment_was_played() -> None:
    """A network never sees an observation that the environment did not give."""
    made = model(
        "TTTPolicy", lambda: Noise(BOX, ACTIONS[3]), tiny={**TINY, "features_extractor_class": Direction}, segment=7
    )  # fmt: skip
    collect(made, rollouts=1)
    check_first_ratio(made)
    made.train()


def test_sb3_contribs_own_algorithm_takes_the_policy_too() -> None:
    env = DummyVecEnv([lambda: Noise(BOX, ACTIONS[0])] * 2)
    stock = sb3_contrib.RecurrentPPO(TTTPolicy, env, policy_kwargs=TINY, **SMALL)
    stock.learn(48)
    assert stock.num_timesteps == 48


def test_it_learns_to_remember(repeat_first: Any) -> None:
    """Chance, and all that there is without a memory, is -0.33."""
    made = RecurrentPPO(
        "TTTPolicy", DummyVecEnv([lambda: Monitor(repeat_first())] * 16), n_steps=40, batch_size=320, n_epochs=4,
        learning_rate=1e-3, ent_coef=0.01, target_kl=0.05, seed=0, device="cpu", policy_kwargs={"dim": 32, "heads": 1},
    )  # fmt: skip
    made.learn(14_000)
    mean, _ = evaluate_policy(made, made.get_env(), 40, deterministic=True)
    assert mean > 0.6


@pytest.mark.parametrize(
    ("fault", "step", "says"),
    [
        ("nan", 5, "environment 1, after 5 steps in it: an observation contains NaN"),
        ("nan", 8, "environment 1, after 8 steps in it: the last observation of an episode contains NaN"),
        ("reward", 15, "environment 1, after 15 steps in it: gave a reward that is not finite in float32, inf"),
    ],
)
def test_what_is_not_finite_is_named_by_environment_and_step(script: Any, fault: str, step: int, says: str) -> None:
    makers = [script, lambda: script(faults={step: fault}), script]
    made = RecurrentPPO("TTTPolicy", DummyVecEnv(makers), policy_kwargs=TINY, **SMALL)
    with pytest.raises(ObservationError, match=says):
        made.learn(100)
    assert all(parameter.isfinite().all() for parameter in made.policy.parameters())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rewards_too_large_to_learn_from_raise_an_error(script: Any) -> None:
    class Rich(script):  # type: ignore[misc]
        def step(self, action: Any) -> Any:
            obs, _, *others = super().step(action)
            return (obs, 3e38, *others)

    with pytest.raises(TrainingError, match="no longer finite: lower learning_rate"):
        model("TTTPolicy", Rich).learn(100)


@pytest.mark.parametrize("nested", [False, True])
def test_an_environment_that_overwrites_its_observations(script: Any, nested: bool) -> None:
    """Stable-Baselines3 keeps the last observation of an episode past the reset."""

    class Flat(script):  # type: ignore[misc]
        def __init__(self, reuse: bool) -> None:
            super().__init__(reuse=reuse)
            if nested:
                self.observation_space = spaces.Dict({"a": self.observation_space})

        def _obs(self) -> Any:
            obs = super()._obs()
            return {"a": obs} if nested else obs

    found = []
    for reuse in (False, True):
        made = model("TTTMultiInputPolicy" if nested else "TTTPolicy", lambda reuse=reuse: Flat(reuse), n_steps=30)
        collect(made, 1)
        found.append((made.rollout_buffer.rewards, made.rollout_buffer.values))
    np.testing.assert_array_equal(*(np.stack(one) for one in found))


def test_wrong_choices_are_named() -> None:
    def noise() -> Noise:
        return Noise(BOX, ACTIONS[0])

    for policy in (MlpLstmPolicy, "MlpLstmPolicy", "MlpPolicy", None):
        with pytest.raises(TrainingError, match=r"expected one of TTTPolicy, .*'memory': 'lstm'"):
            RecurrentPPO(policy, DummyVecEnv([noise]), policy_kwargs={"memory": "lstm"}, **SMALL)
    with pytest.raises(ConfigError, match=r"unknown memroy; known are memory, dim, .*net_arch"):
        model("TTTPolicy", noise, tiny={"memroy": "gru"})
    with pytest.raises(ConfigError, match="unknown netarch"):
        model("TTTCnnPolicy", lambda: Noise(OBSERVATIONS["TTTCnnPolicy"], ACTIONS[0]), tiny={"netarch": [3]})
    with pytest.raises(ConfigError, match="dim must be a whole number of at least 1, got '64'"):
        model("TTTPolicy", noise, tiny={"dim": "64"})
    with pytest.raises(ConfigError, match="no option minibatch"):
        model("TTTPolicy", noise, tiny={"options": {"minibatch": 4}})
    with pytest.raises(TrainingError, match="between 1 and n_steps = 12, got 13"):
        model("TTTPolicy", noise, segment=13)
    with pytest.raises(ConfigError, match="use 'window'"):
        model("TTTPolicy", noise, tiny={"memory": "attention"})
    with pytest.raises(ConfigError, match="one features extractor"):
        model("TTTPolicy", noise, tiny={"share_features_extractor": False})
    with pytest.raises(ConfigError, match="n_lstm_layers, lstm_kwargs describe an LSTM"):
        model("TTTPolicy", noise, tiny={"n_lstm_layers": 2, "lstm_kwargs": {}})
    for space in (spaces.Discrete(3, start=5), spaces.MultiDiscrete([2, 3], start=[0, 1])):
        with pytest.raises(SpaceError, match=r"counts actions from 0, this space is .*start"):
            TTTPolicy(spaces.Box(-1.0, 1.0, (3,)), space, lambda _: 1e-3)
    with pytest.raises(SpaceError, match="use TTTMultiInputPolicy"):
        model("TTTPolicy", lambda: Noise(OBSERVATIONS["TTTMultiInputPolicy"], ACTIONS[0]))
    with pytest.raises(TrainingError, match="raise n_steps"):
        model("TTTPolicy", noise, 1, n_steps=1)


def test_predict_names_what_does_not_fit() -> None:
    made = model("TTTPolicy", lambda: Noise(BOX, ACTIONS[0]))
    size = made.policy.lstm_hidden_state_shape[2]
    obs = np.zeros((2, 3), np.float32)
    _, state = made.predict(obs)
    with pytest.raises(StateError, match=rf"state of shape \[1, 3, {size}\], got \[1, 2, {size}\]"):
        made.predict(np.zeros((3, 3), np.float32), state)
    with pytest.raises(StateError, match=rf"state of shape \[1, 1, {size}\], got \[1, 2, {size}\]"):
        made.predict(obs[0], state)
    with pytest.raises(StateError, match=rf"state of shape \[1, 2, {size}\], got \[1, 2, 7\]"):
        made.predict(obs, (np.zeros((1, 2, 7)),) * 2)
    with pytest.raises(StateError, match=rf"state of shape \[1, 2, {size}\], got \[2, {size}\]"):
        made.predict(obs, (np.zeros((2, size)),) * 2)
    with pytest.raises(StateError, match="a pair of arrays, got ndarray"):
        made.predict(obs, state[0])
    with pytest.raises(ObservationError, match=r"episode_start of shape \[2\], got \[3\]"):
        made.predict(obs, state, np.zeros(3, bool))
    alone = made.predict(obs[0], (state[0][:, :1],) * 2, True, deterministic=True)
    among = made.predict(obs, state, np.array([True, False]), deterministic=True)
    np.testing.assert_allclose(alone[1][0][0, 0], among[1][0][0, 0], atol=1e-6)
    with pytest.raises(ObservationError, match="NaN or infinity"):
        made.predict(np.full((2, 3), np.nan, np.float32))


def test_continuing_needs_the_same_number_of_environments(tmp_path: Path) -> None:
    made = model("TTTPolicy", lambda: Noise(BOX, ACTIONS[0]))
    made.learn(36)
    made.save(tmp_path / "model.zip")
    fewer = DummyVecEnv([lambda: Noise(BOX, ACTIONS[0])])
    with pytest.raises(TrainingError, match="saved with 3 environments and now has 1"):
        RecurrentPPO.load(tmp_path / "model.zip", env=fewer, device="cpu", force_reset=False)
    RecurrentPPO.load(tmp_path / "model.zip", env=fewer, device="cpu").learn(12, reset_num_timesteps=False)


def test_discrete_observations() -> None:
    made = model("TTTPolicy", lambda: Noise(spaces.MultiDiscrete([3, 4]), ACTIONS[0]))
    collect(made)
    check_first_ratio(made)
