"""RLlib: the module acts and learns alike, and learns with several env runners; `make rllib` runs this file."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tttstream.errors import ConfigError, StateError
from tttstream_agents.errors import ObservationError, SpaceError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray warns of itself when it is imported
    pytest.importorskip("ray.rllib", reason="Ray, which pins a gymnasium of its own, is absent: make rllib")
    import ray
    from ray.rllib.algorithms.appo import APPOConfig
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.columns import Columns
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
    from ray.tune.registry import register_env

    from tttstream_agents.rllib import TTTRLModule

pytestmark = pytest.mark.filterwarnings("ignore")

BOX = spaces.Box(-1, 1, (3,), np.float32)
OBSERVATIONS = [BOX, spaces.Discrete(4), spaces.Dict({"a": BOX, "b": spaces.Discrete(3)})]
ACTIONS = [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.Box(-2, 2, (2,), np.float32)]
ROWS, STEPS = 3, 11


def build(observation: Any, action: Any, **config: Any) -> Any:
    torch.manual_seed(0)
    spec = RLModuleSpec(
        module_class=TTTRLModule, observation_space=observation, action_space=action,
        model_config={"dim": 16, "heads": 1, **config},
    )  # fmt: skip
    module = spec.build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module


def each(function: Any, *obs: Any) -> Any:
    if isinstance(obs[0], dict):
        return {key: function(*(one[key] for one in obs)) for key in obs[0]}
    return function(*obs)


def test_training_with_a_memory_of_places_equals_acting() -> None:
    places = {"at": "a", "width": 3, "features": 16}
    check_parity(OBSERVATIONS[2], ACTIONS[0], build(OBSERVATIONS[2], ACTIONS[0], memory="mlp", places=places))


@pytest.mark.parametrize("memory", ["ttt_linear", "lstm", "window"])
@pytest.mark.parametrize("action", ACTIONS, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("observation", OBSERVATIONS, ids=lambda space: type(space).__name__)
def test_training_equals_acting(observation: Any, action: Any, memory: str) -> None:
    check_parity(observation, action, build(observation, action, memory=memory))


def check_parity(observation: Any, action: Any, module: Any) -> None:
    """Step by step with the state that comes back, and sequences of 11 and of 4 steps from the states before them."""
    observation.seed(0)
    start = torch.as_tensor(module.get_initial_state()["memory"])
    assert not bool(start.any())
    state, record = {"memory": start.expand(ROWS, -1)}, []
    for _ in range(STEPS):
        drawn = [each(lambda x: torch.as_tensor(np.asarray(x)), observation.sample()) for _ in range(ROWS)]
        obs = each(lambda *x: torch.stack(x)[:, None], *drawn)
        out = module.forward_exploration({Columns.OBS: obs, Columns.STATE_IN: state})
        record.append((obs, out[Columns.ACTIONS], out[Columns.ACTION_LOGP], state["memory"]))
        state = out[Columns.STATE_OUT]
    obs, actions, logp, states = zip(*record, strict=True)
    for first, last in ((0, STEPS), (4, 8)):
        batch = {
            Columns.OBS: each(lambda *x: torch.cat(x, 1), *obs[first:last]),
            Columns.ACTIONS: torch.cat(actions[first:last], 1),
            Columns.STATE_IN: {"memory": states[first]},
        }
        train = module.forward_train(batch)
        again = module.get_train_action_dist_cls().from_logits(train[Columns.ACTION_DIST_INPUTS])
        found = again.logp(batch[Columns.ACTIONS])
        torch.testing.assert_close(found, torch.cat(logp[first:last], 1), atol=1e-5, rtol=0)
        values = module.compute_values(batch)
        torch.testing.assert_close(values, module.compute_values(batch, embeddings=train[Columns.EMBEDDINGS]))
        assert values.shape == (ROWS, last - first)
    greedy = [module.forward_inference({Columns.OBS: obs[0], Columns.STATE_IN: {"memory": states[0]}}) for _ in "ab"]
    assert torch.equal(greedy[0][Columns.ACTIONS], greedy[1][Columns.ACTIONS])


def test_illegal_actions_have_probability_zero() -> None:
    """In acting and in training, where RLlib pads sequences with zeros; a mask that allows nothing is named."""
    for action, choices in ((spaces.Discrete(3), 3), (spaces.MultiDiscrete([2, 3]), 5)):
        module = build(spaces.Dict({"observation": BOX, "action_mask": spaces.MultiBinary(choices)}), action)
        mask = torch.tensor([[1, 0, 1, 1, 0][:choices]] * ROWS)[:, None].repeat(1, 200, 1)
        obs = {"observation": torch.zeros(ROWS, 200, 3), "action_mask": mask}
        state = {"memory": torch.as_tensor(module.get_initial_state()["memory"]).expand(ROWS, -1)}
        shape = (ROWS, 200, *action.shape)
        batch = {Columns.OBS: obs, Columns.STATE_IN: state, Columns.ACTIONS: torch.zeros(shape, dtype=torch.long)}
        for out in (module.forward_train(batch), module.forward_exploration(each_first(batch))):
            logits = out[Columns.ACTION_DIST_INPUTS]
            sizes = [3] if choices == 3 else [2, 3]
            shares = torch.cat([part.softmax(-1) for part in logits.split(sizes, -1)], -1)
            assert torch.equal(shares == 0, (mask == 0)[:, : shares.shape[1]])
        train = module.forward_train(batch)
        distribution = module.get_train_action_dist_cls().from_logits(train[Columns.ACTION_DIST_INPUTS])
        assert bool(distribution.entropy().isfinite().all())
        assert bool(distribution.kl(distribution).isfinite().all())
        obs["action_mask"] = torch.zeros_like(mask)
        assert bool(module.forward_train(batch)[Columns.ACTION_DIST_INPUTS].isfinite().all())
        with pytest.raises(ObservationError, match="allows no action"):
            module.forward_exploration(each_first(batch))


def each_first(batch: dict[str, Any]) -> dict[str, Any]:
    """The first step of each sequence."""
    obs = {key: x[:, :1] for key, x in batch[Columns.OBS].items()}
    return {Columns.OBS: obs, Columns.STATE_IN: batch[Columns.STATE_IN]}


def test_wrong_choices_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown memroy; known are memory, dim"):
        build(BOX, ACTIONS[0], memroy="gru")
    with pytest.raises(ConfigError, match="use 'window'"):
        build(BOX, ACTIONS[0], memory="attention")
    with pytest.raises(SpaceError, match="from 0"):
        build(BOX, spaces.Discrete(3, start=1))
    for wrong in ({"use_lstm": True}, {"fcnet_hiddens": [64]}, {"lstm_cell_size": 8, "memory": "lstm"}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} has no effect here: use memory"):
            build(BOX, ACTIONS[0], **wrong)
    build(BOX, ACTIONS[0], **dataclasses.asdict(DefaultModelConfig(max_seq_len=7)))
    with pytest.raises(ConfigError, match="dim must be a whole number"):
        build(BOX, ACTIONS[0], dim="64")
    module = build(BOX, ACTIONS[0])
    size = len(module.get_initial_state()["memory"])
    obs = torch.zeros(2, 1, 3)
    for state_in in ({}, {Columns.STATE_IN: {}}, {Columns.STATE_IN: None}):
        for forward in (module.forward_exploration, module.forward_inference):
            with pytest.raises(StateError, match=r"no 'state_in' with 'memory' in the batch.*get_initial_state"):
                forward({Columns.OBS: obs, **state_in})
    with pytest.raises(StateError, match=rf"shape \[2, {size}\], got \[3, {size}\]"):
        module.forward_inference({Columns.OBS: obs, Columns.STATE_IN: {"memory": torch.zeros(3, size)}})
    with pytest.raises(StateError, match=rf"shape \[2, {size}\], got \[2, 5\]"):
        module.forward_train({
            Columns.OBS: obs, Columns.STATE_IN: {"memory": torch.zeros(2, 5)}, Columns.ACTIONS: torch.zeros(2, 1).long()
        })  # fmt: skip
    with pytest.raises(ObservationError, match="'rewards' of sequence 1 contain NaN"):
        module.forward_train({
            Columns.OBS: obs, Columns.STATE_IN: {"memory": torch.zeros(2, size)},
            Columns.ACTIONS: torch.zeros(2, 1).long(), Columns.REWARDS: torch.tensor([[0.0], [torch.nan]]),
        })  # fmt: skip
    state = {"memory": torch.as_tensor(module.get_initial_state()["memory"])[None]}
    with pytest.raises(ObservationError, match="NaN or infinity"):
        module.forward_exploration({Columns.OBS: torch.full((1, 1, 3), torch.nan), Columns.STATE_IN: state})


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


class Shaken(TTTRLModule):
    """With weights that make the memory count from the beginning."""

    def setup(self) -> None:
        super().setup()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))


def config(make_env: Any, runners: int, kind: Any = TTTRLModule, algorithm: Any = PPOConfig, **training: Any) -> Any:
    ray.cloudpickle.register_pickle_by_value(sys.modules[make_env.__module__])
    register_env("tttstream-test", lambda _: make_env())
    module = RLModuleSpec(module_class=kind, model_config={"dim": 32, "heads": 1, "max_seq_len": 20})
    return (
        algorithm().environment("tttstream-test").rl_module(rl_module_spec=module).learners(num_learners=0)
        .env_runners(num_env_runners=runners, num_envs_per_env_runner=8, num_cpus_per_env_runner=0.5)
        .training(train_batch_size_per_learner=640, entropy_coeff=0.01, grad_clip=0.5, **training)
        .debugging(seed=0, log_level="ERROR")
    )  # fmt: skip


def test_the_ratio_of_the_first_epoch_is_one(cluster: None, script: Any) -> None:
    """Through all of RLlib's pipeline, with episodes that end inside the batch: the policy is the one that acted."""
    algorithm = config(script, 0, Shaken, num_epochs=2, minibatch_size=128, lr=0.0).build_algo()
    for _ in range(2):
        result = algorithm.train()["learners"]["default_policy"]
        assert abs(result["mean_kl_loss"]) < 1e-7  # what is left is rounding
        assert result["entropy"] < 1.09  # of at most 1.0986: what it remembers does matter
    algorithm.stop()


def test_appo_and_its_target_network(cluster: None, script: Any) -> None:
    """It trains, and its target stands still until RLlib moves it."""
    algorithm = config(script, 1, algorithm=APPOConfig, target_network_update_freq=10_000_000).build_algo()
    module = algorithm.learner_group._learner.module["default_policy"]
    first = {name: value.clone() for name, value in module.policy.state_dict().items()}
    for _ in range(3):
        algorithm.train()
    now, old = module.policy.state_dict(), module._old_policy.state_dict()
    assert any(not torch.equal(now[name], value) for name, value in first.items())
    assert all(torch.equal(old[name], value) for name, value in first.items())
    algorithm.stop()


def test_it_learns_to_remember_with_two_env_runners(cluster: None, repeat_first: Any, tmp_path: Path) -> None:
    """Chance, and all that there is without a memory, is -0.33."""
    training: dict[str, Any] = {
        "lambda_": 0.95,
        "num_epochs": 4,
        "minibatch_size": 320,
        "lr": 1e-3,
        "use_kl_loss": False,
    }
    algorithm = config(repeat_first, 2, **training).build_algo()
    returns = [algorithm.train()["env_runners"]["episode_return_mean"] for _ in range(14)]
    assert max(returns) > 0.3, returns
    algorithm.save_to_path(str(tmp_path))
    trained = algorithm.get_module()
    algorithm.stop()
    path = tmp_path / "learner_group" / "learner" / "rl_module" / "default_policy"
    loaded: Any = RLModule.from_checkpoint(str(path))
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=0, rtol=0)
