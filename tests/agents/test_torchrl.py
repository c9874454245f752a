"""TorchRL: the module in a collector, both modes agree, exact values at episode ends, and that it learns."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch

from tttstream.errors import ConfigError, ShapeError, StateError
from tttstream_agents.errors import ObservationError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TorchRL warns of itself when it is imported
    pytest.importorskip("torchrl", reason="TorchRL is absent: pip install 'tttstream[torchrl]'")
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.collectors import Collector
    from torchrl.envs import Compose, GymWrapper, InitTracker, RewardSum, SerialEnv, TransformedEnv
    from torchrl.envs.transforms import BurnInTransform
    from torchrl.modules import MLP, ActorValueOperator, OneHotCategorical, ProbabilisticActor, set_recurrent_mode
    from torchrl.modules.utils import get_primers_from_module
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    from tttstream_agents.pose_memory import PoseMemory
    from tttstream_agents.torchrl import TTTModule, state_values

pytestmark = pytest.mark.filterwarnings("ignore")


def operator(numbers: int, actions: int = 3, **options: Any) -> Any:
    """Actor and critic over one memory."""
    torch.manual_seed(0)
    memory = TTTModule(numbers, in_key="observation", **{"dim": 16, "heads": 1, **options})
    head = TensorDictModule(MLP(memory.trunk.mix[0].out_features, actions, num_cells=[32]), ["features"], ["logits"])
    actor = ProbabilisticActor(
        head, in_keys=["logits"], distribution_class=OneHotCategorical, return_log_prob=True
    )  # fmt: skip
    critic = TensorDictModule(MLP(memory.trunk.mix[0].out_features, 1, num_cells=[32]), ["features"], ["state_value"])
    return ActorValueOperator(memory, actor, critic)


def environment(make_env: Any, module: Any, n_envs: int = 3) -> Any:
    base = SerialEnv(n_envs, [lambda: GymWrapper(make_env())] * n_envs)
    return TransformedEnv(base, Compose(InitTracker(), get_primers_from_module(module), RewardSum()))


def collect(make_env: Any, op: Any, steps: int = 30, n_envs: int = 3, rollouts: int = 2) -> Any:
    frames = steps * n_envs
    env = environment(make_env, op, n_envs)
    collector = Collector(env, op.get_policy_operator(), frames_per_batch=frames, total_frames=rollouts * frames)
    data = list(collector)[-1]
    collector.shutdown()
    return data


@pytest.mark.parametrize("memory", ["ttt_linear", "ttt_mlp", "gru", "lstm", "window", "framestack", "places"])
def test_recurrent_mode_equals_the_collector(script: Any, memory: str) -> None:
    """Episodes end inside the rows; segments of 10 of 30 steps start from the states that the collector kept."""
    if memory == "places":
        op = operator(2, memory="mlp", places=PoseMemory(2, [0], [[0]], width=3, features=16))
    else:
        op = operator(2, memory=memory)
    data = collect(script, op)
    assert int(data["is_init"].sum()) > 15
    assert not bool(data["memory"][data["is_init"].squeeze(-1)].any())
    with set_recurrent_mode(False), torch.no_grad():
        acted = op.get_value_operator()(data.copy())["state_value"]
    for length in (30, 10):
        rows = data.unflatten(1, (30 // length, length)).flatten(0, 1)
        log_prob = rows["action_log_prob"]
        with set_recurrent_mode(True), torch.no_grad():
            again = op.get_policy_operator().get_dist(rows.copy()).log_prob(rows["action"])
            value = op.get_value_operator()(rows.copy())["state_value"]
        torch.testing.assert_close((again - log_prob).exp(), torch.ones_like(again), atol=1e-5, rtol=0)
        torch.testing.assert_close(value.reshape(acted.shape), acted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("memory", ["ttt_linear", "gru"])
def test_a_slice_begins_with_the_state_of_its_time(script: Any, memory: str) -> None:
    """As torchrl's SliceSampler marks them: `is_init` where a slice begins, inside an episode too, slices of several
    lengths one after another."""
    op = operator(2, memory=memory)
    data = collect(script, op)
    rows = data.reshape(-1)[: 3 * 29].clone()  # slices that cross the rows of the collector's environments
    cuts = [0, 5, 12, 17, 24, 30, 37, 60, 64]
    rows["is_init"][cuts] = True
    with set_recurrent_mode(True), torch.no_grad():
        again = op.get_policy_operator().get_dist(rows.copy()).log_prob(rows["action"])
        state = op[0](rows[:24].copy())["next", "memory"]
    torch.testing.assert_close(again, rows["action_log_prob"], atol=1e-5, rtol=0)
    torch.testing.assert_close(state[-1], rows["next", "memory"][23], atol=1e-4, rtol=1e-4)


def test_a_replay_buffer_burns_in(script: Any) -> None:
    op = operator(2)
    data = collect(script, op, rollouts=1)
    burnt = BurnInTransform(modules=[TTTModule(2, in_key="observation", dim=16, heads=1)], burn_in=5)
    burnt.modules[0].load_state_dict(op[0].state_dict())
    with set_recurrent_mode(True):
        rest = burnt(data.clone().exclude(("next", "memory")))
    fresh = ~data["is_init"][:, 5, 0]  # the next episode's state is the environment's to set
    torch.testing.assert_close(rest["memory"][fresh, 0], data["memory"][fresh, 5], atol=1e-4, rtol=1e-4)


def test_values_are_those_of_each_episode_played_alone(script: Any) -> None:
    """Also of the observation that an episode ended with, by the memory that saw it."""
    op = operator(2)
    value = op.get_value_operator()
    data = state_values(value, collect(script, op, rollouts=1))
    for row in range(3):
        starts = data["is_init"][row].squeeze(-1).nonzero().flatten().tolist()
        for first, after in itertools.pairwise(starts):
            obs = torch.cat(
                [data["observation"][row, first:after], data["next", "observation"][row, after - 1 : after]]
            )
            begin = torch.zeros(1, len(obs), 1, dtype=torch.bool)
            begin[:, 0] = True
            with set_recurrent_mode(True), torch.no_grad():
                td = TensorDict({"observation": obs[None], "is_init": begin}, [1, len(obs)])
                alone = value(td)["state_value"][0]
            torch.testing.assert_close(data["state_value"][row, first:after], alone[:-1], atol=1e-5, rtol=0)
            torch.testing.assert_close(data["next", "state_value"][row, first:after], alone[1:], atol=1e-5, rtol=0)


def train(make_env: Any, op: Any, gae: Any, updates: int, steps: int = 40, n_envs: int = 16, lr: float = 1e-3) -> float:
    """PPO as TorchRL does it; the mean return of the episodes of the last update."""
    policy, value = op.get_policy_operator(), op.get_value_operator()
    loss = ClipPPOLoss(policy, value, entropy_coeff=0.01, critic_coeff=0.5, normalize_advantage=True)
    optimizer = torch.optim.Adam(op.parameters(), lr)
    frames = steps * n_envs
    collector = Collector(
        environment(make_env, op, n_envs), policy, frames_per_batch=frames, total_frames=updates * frames
    )  # fmt: skip
    for data in collector:
        if gae.value_network is None:
            state_values(value, data)
        gae(data)
        for epoch in range(4):
            for place, rows in enumerate(torch.randperm(n_envs).split(n_envs // 2)):
                terms = loss(data[rows])
                if epoch == place == 0:
                    assert float(terms["max_ratio"]) == pytest.approx(1, abs=1e-4)
                optimizer.zero_grad()
                sum(terms[f"loss_{name}"] for name in ("objective", "critic", "entropy")).backward()
                torch.nn.utils.clip_grad_norm_(op.parameters(), 0.5)
                optimizer.step()
    collector.shutdown()
    return float(data["next", "episode_reward"][data["next", "done"]].mean())


def test_it_learns_to_remember(repeat_first: Any) -> None:
    """Chance, and all that there is without a memory, is -0.33."""
    assert train(repeat_first, operator(3, dim=32), GAE(gamma=0.99, lmbda=0.95, value_network=None), 12) > 0.5


def test_torchrls_own_estimates_take_the_module_too(script: Any) -> None:
    op = operator(2)
    before = [parameter.clone() for parameter in op.parameters()]
    gae = GAE(gamma=0.99, lmbda=0.95, value_network=op.get_value_operator(), deactivate_vmap=True)
    train(script, op, gae, updates=2, steps=20, n_envs=4)
    assert all(not torch.equal(a, b) for a, b in zip(before, op.parameters(), strict=True) if b.grad is not None)
    assert op[0].trunk.memories[0].start.grad.abs().max() > 0


def test_several_observations_and_other_names() -> None:
    memory = TTTModule(5, in_keys=["a", ("b", "c")], out_key="out", state_key="m", init_key="begin", dim=8, heads=1)
    assert memory.in_keys == ["a", ("b", "c"), "m", "begin"]
    assert memory.out_keys == ["out", ("next", "m")]
    td = TensorDict({"a": torch.ones(4, 3), "b": {"c": torch.ones(4, 2)}, "begin": torch.ones(4, 1).bool()}, [4])
    policy = TensorDictSequential(memory)
    assert policy(td)["out"].shape == (4, 8)
    assert td["next", "m"].shape == (4, memory.state_size)


def test_values_need_the_states_after_the_steps(script: Any) -> None:
    op = operator(2)
    data = collect(script, op, rollouts=1).exclude(("next", "memory"))
    with pytest.raises(StateError, match="before deleting it"):
        state_values(op.get_value_operator(), data)


def test_without_the_primer_the_second_step_says_so(script: Any) -> None:
    """In a collector, in a rollout, and in a call by hand; the first step of an episode needs no state."""
    op = operator(2)
    policy = op.get_policy_operator()
    bare = TransformedEnv(SerialEnv(3, [lambda: GymWrapper(script())] * 3), InitTracker())
    policy(bare.reset())
    with pytest.raises(StateError, match="make_tensordict_primer"):
        bare.rollout(2, policy)
    collector = Collector(bare, policy, frames_per_batch=30, total_frames=30)
    with pytest.raises(StateError, match="make_tensordict_primer"):
        list(collector)
    begin = torch.tensor([[True], [False], [True]])
    with pytest.raises(StateError, match="make_tensordict_primer"):
        op[0](TensorDict({"observation": torch.ones(3, 2), "is_init": begin}, [3]))
    policy(environment(script, op).fake_tensordict())  # a trial of the specs


@pytest.mark.filterwarnings("default")
def test_a_state_that_is_not_carried_is_warned_of(script: Any) -> None:
    op = operator(2)
    data = collect(script, op, rollouts=1)
    lost = data[:, 1].clone()
    lost["memory"].zero_()
    with pytest.warns(UserWarning, match="one of the out_keys"):
        op[0](lost)
    with set_recurrent_mode(True), pytest.warns(UserWarning, match="starts with zeros"):
        op[0](data[:, 1:].exclude("memory"))


def test_recurrent_mode_is_not_for_playing(script: Any) -> None:
    """There the environments side by side would be read as steps one after another."""
    with set_recurrent_mode(True), pytest.raises(ShapeError, match="act in environments outside of recurrent mode"):
        collect(script, operator(2))


def test_estimates_that_need_vmap_say_what_to_do(script: Any) -> None:
    op = operator(2)
    gae = GAE(gamma=0.99, lmbda=0.95, value_network=op.get_value_operator())
    with pytest.raises(StateError, match="deactivate_vmap=True"):
        gae(collect(script, op, rollouts=1))


def test_a_reward_that_is_not_finite_is_named(script: Any) -> None:
    op = operator(2)
    data = collect(script, op, rollouts=1)
    data["next", "reward"][1, 4] = torch.nan
    with pytest.raises(ObservationError, match=r"the reward at \[1, 4\] is not finite"):
        state_values(op.get_value_operator(), data)


def test_wrong_calls_are_named() -> None:
    memory = TTTModule(3, in_key="observation", dim=8, heads=1)
    begin = torch.ones(2, 1, dtype=torch.bool)
    with pytest.raises(StateError, match="InitTracker"):
        memory(TensorDict({"observation": torch.ones(2, 3)}, [2]))
    with pytest.raises(ObservationError, match="expected 3 numbers"):
        memory(TensorDict({"observation": torch.ones(2, 4), "is_init": begin}, [2]))
    with pytest.raises(ObservationError, match="NaN or infinity"):
        memory(TensorDict({"observation": torch.full((2, 3), torch.nan), "is_init": begin}, [2]))
    bad = torch.tensor([[0.0, 0, 0], [0, torch.inf, 0]])
    with pytest.raises(ObservationError, match=r"NaN or infinity in row \[1\]"):
        memory(TensorDict({"observation": bad, "is_init": begin}, [2]))
    with pytest.raises(ShapeError, match=r"one flag for each of \[2\], got \[2, 3\]"):
        memory(TensorDict({"observation": torch.ones(2, 3), "is_init": begin.expand(2, 3)}, [2]))
    with pytest.raises(StateError, match=rf"have shape \[2, {memory.state_size}\], got \[2, 7\]"):
        memory(TensorDict({"observation": torch.ones(2, 3), "is_init": begin, "memory": torch.ones(2, 7)}, [2]))
    with pytest.raises(ObservationError, match="no observation 'observation'"):
        memory(TensorDict({"is_init": begin}, [2]))
    with set_recurrent_mode(True), pytest.raises(ShapeError, match="time dimension"):
        memory(TensorDict({"observation": torch.ones(3), "is_init": begin[0]}, []))
    with pytest.raises(ConfigError, match="use 'window'"):
        TTTModule(3, "attention", in_key="observation")
    with pytest.raises(ConfigError, match="either in_key or in_keys"):
        TTTModule(3)
