"""MemoryPolicy: acting and evaluating agree, for every space and memory, any split and any resets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tttstream.errors import ConfigError, StateError
from tttstream.state import pack, unpack
from tttstream.testing import assert_close, unroll
from tttstream_agents import MemoryPolicy, memories
from tttstream_agents.encoder import Encoder, Picture
from tttstream_agents.errors import ObservationError, SpaceError
from tttstream_agents.trunk import Trunk

BOX = spaces.Box(np.array([-1, -np.inf], "f4"), np.array([3, np.inf], "f4"))
IMAGE = spaces.Box(0, 255, (20, 24, 3), np.uint8)
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "box": BOX,
    "discrete": spaces.Discrete(5, start=-1),
    "multidiscrete": spaces.MultiDiscrete([2, 3]),
    "multibinary": spaces.MultiBinary([2, 2]),
    "image": IMAGE,
    "image-first": spaces.Box(0, 255, (4, 20, 24), np.uint8),
    "gray": spaces.Box(0, 255, (20, 24), np.uint8),
    "dict": spaces.Dict({"a": BOX, "b": spaces.Tuple((spaces.Discrete(3), IMAGE))}),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3, start=2),
    "multidiscrete": spaces.MultiDiscrete([3, 2, 4]),
    "multibinary": spaces.MultiBinary(3),
    "box": spaces.Box(-2, 2, (2,), np.float32),
    "box-2d": spaces.Box(-np.inf, np.inf, (2, 2), np.float32),
}
STEPS, ENVS = 21, 3


def stack(space: spaces.Space[Any], samples: list[Any]) -> Any:
    """Samples of a space side by side, nested as the space is."""
    if isinstance(space, spaces.Dict):
        return {key: stack(inner, [s[key] for s in samples]) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stack(inner, [s[i] for s in samples]) for i, inner in enumerate(space.spaces))
    return np.stack(samples)


def play(policy: MemoryPolicy, starts: np.ndarray[Any, Any], steps: int = STEPS) -> dict[str, Any]:
    """Random observations, acted on step by step."""
    space = policy.observation_space
    space.seed(0)
    state, record = policy.initial_state(ENVS), []
    rewards = np.random.default_rng(0).normal(size=(steps, ENVS)).astype("f4")
    for t in range(steps):
        obs = stack(space, [space.sample() for _ in range(ENVS)])
        action, log_prob, value, state = policy.act(obs, state, starts[t], rewards[t])
        record.append((obs, action, log_prob, value, state))
    obs, action, log_prob, value, states = zip(*record, strict=True)
    return {
        "obs": stack(space, list(obs)), "actions": torch.stack(action), "rewards": rewards, "states": states,
        "log_prob": torch.stack(log_prob), "value": torch.stack(value),
    }  # fmt: skip


def random_starts(steps: int = STEPS) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).random((steps, ENVS)) < 0.2


def check_parity(policy: MemoryPolicy, splits: tuple[int, ...]) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    starts = random_starts()
    played = play(policy, starts)
    state, first = policy.initial_state(ENVS), 0

    def cut(tree: Any, piece: slice) -> Any:
        if isinstance(tree, dict):
            return {key: cut(value, piece) for key, value in tree.items()}
        return tuple(cut(v, piece) for v in tree) if isinstance(tree, tuple) else tree[piece]

    for size in splits:
        piece = slice(first, first + size)
        log_prob, entropy, value, state = policy.evaluate(
            cut(played["obs"], piece), played["actions"][piece], state, starts[piece], played["rewards"][piece]
        )
        torch.testing.assert_close(log_prob, played["log_prob"][piece], atol=1e-5, rtol=0)
        torch.testing.assert_close(value, played["value"][piece], atol=1e-5, rtol=0)
        assert entropy.shape == (size, ENVS)
        first += size
        assert_close(state, played["states"][first - 1], 1e-4)


@pytest.mark.parametrize("memory", memories.names())
@pytest.mark.parametrize("splits", [(STEPS,), (1, 4, 9, 7)], ids=str)
def test_evaluate_equals_act(memory: str, splits: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    check_parity(MemoryPolicy(BOX, ACTIONS["discrete"], memory, dim=16, depth=2, previous_reward=True), splits)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("obs", OBSERVATIONS)
def test_every_space(obs: str, action: str) -> None:
    torch.manual_seed(0)
    policy = MemoryPolicy(OBSERVATIONS[obs], ACTIONS[action], dim=16)
    check_parity(policy, (8, 13))
    acted = policy.act(stack(policy.observation_space, [policy.observation_space.sample()] * 2), None)[0]
    assert all(policy.action_space.contains(one) for one in policy.to_env(acted))


@pytest.mark.parametrize("action", ACTIONS)
def test_densities_and_entropies_are_those_of_torch(action: str) -> None:
    policy = MemoryPolicy(BOX, ACTIONS[action], dim=16)
    head = policy.action
    outputs = torch.randn(7, head.outputs)
    acts = head.sample(outputs)
    if isinstance(policy.action_space, spaces.Box):
        middle, half = head.numbers.middle, head.numbers.reach
        normal = torch.distributions.Normal(middle + half * outputs, half * head.log_std.exp())
        expected, entropy = normal.log_prob(acts.flatten(1)).sum(-1), normal.entropy().sum(-1)
    else:
        pieces = outputs.split(head.choices.sizes, -1)
        dists = [torch.distributions.Categorical(logits=piece) for piece in pieces]
        first = head.choices.value[np.cumsum([0, *head.choices.sizes[:-1]])]
        places = acts.reshape(7, -1) - first
        expected = sum(d.log_prob(places[:, i]) for i, d in enumerate(dists))
        entropy = sum(d.entropy() for d in dists)
    torch.testing.assert_close(head.log_prob(outputs, acts), expected)
    torch.testing.assert_close(head.entropy(outputs), entropy)


def test_draws_follow_the_policy() -> None:
    torch.manual_seed(0)
    head = MemoryPolicy(BOX, spaces.MultiDiscrete([2, 3]), dim=8).action
    outputs = torch.tensor([0.0, 1.0, 0.5, -1.0, 0.0]).expand(20000, -1)
    drawn = head.sample(outputs)
    share = torch.stack([(drawn[:, 1] == k).float().mean() for k in range(3)])
    torch.testing.assert_close(share, outputs[0, 2:].softmax(-1), atol=0.015, rtol=0)
    assert head.sample(outputs, deterministic=True)[0].tolist() == [1, 0]


@pytest.mark.parametrize("memory", ["ttt_linear", "lstm", "framestack"])
def test_zeroing_the_state_is_a_reset(memory: str) -> None:
    """What every framework does at an episode's end: multiply a flat state by zero."""
    policy = MemoryPolicy(BOX, ACTIONS["discrete"], memory, dim=16)
    played = play(policy, random_starts())
    flat = pack(played["states"][-1])
    obs = np.zeros((ENVS, 2), "f4")
    zeroed = unpack(flat * torch.tensor([0.0, 1.0, 0.0])[:, None], policy.initial_state(1))
    by_zero = policy.act(obs, zeroed, None, deterministic=True)
    by_start = policy.act(obs, played["states"][-1], [True, False, True], deterministic=True)
    assert_close(by_zero[3], by_start[3])
    torch.testing.assert_close(by_zero[2], by_start[2])


def test_gradients_reach_the_learned_start_from_a_replayed_state() -> None:
    policy = MemoryPolicy(BOX, ACTIONS["discrete"], dim=16)
    played = play(policy, random_starts())
    state = played["states"][9].detach()
    log_prob, _, value, _ = policy.evaluate(played["obs"][10:12], played["actions"][10:12], state, None)
    (log_prob.sum() + value.sum()).backward()
    assert float(policy.memories[0].start.grad.abs().max()) > 0  # type: ignore[union-attr,operator]


def test_a_nan_in_one_state_stays_in_its_row_and_ends_with_the_episode() -> None:
    policy = MemoryPolicy(BOX, ACTIONS["discrete"], dim=16)
    state = policy.initial_state(2).map(lambda leaf: leaf.index_fill(0, torch.tensor(1), torch.nan))
    obs = np.ones((2, 2), "f4")
    value = policy.act(obs, state, [False, True])[2]
    torch.testing.assert_close(value, policy.act(obs, None)[2])


def test_surprise_falls_with_repetition_and_does_not_change_the_state() -> None:
    torch.manual_seed(0)
    options = {"mini_batch": 1, "base_lr": 8.0, "conv": 0}
    policy = MemoryPolicy(BOX, ACTIONS["discrete"], dim=16, depth=2, positions=False, options=options)
    state, losses = policy.initial_state(1), []
    for _ in range(20):
        kept = pack(state).clone()
        before, after = policy.surprise(np.ones((1, 2), "f4"), state)
        assert torch.equal(pack(state), kept)
        losses.append(float(before))
        assert float(after) < float(before)
        state = policy.act(np.ones((1, 2), "f4"), state, deterministic=True)[3]
    assert losses[1:] == sorted(losses[1:], reverse=True)
    with pytest.raises(StateError, match="has no inner loss"):
        MemoryPolicy(BOX, ACTIONS["discrete"], "gru").surprise(np.ones((1, 2), "f4"), None)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_frame_stack_keeps_the_contract(frames: int) -> None:
    memory = memories.build("framestack", dim=6, heads=1, frames=frames).double()
    x = torch.randn(3, 11, 6, dtype=torch.float64)
    reset = torch.rand(3, 11) < 0.3
    lengths = torch.tensor([11, 0, 6])
    whole, end = memory(x, reset=reset, lengths=lengths)
    parts, last = unroll(memory, x, [1, 2, 5, 3], reset=reset, lengths=lengths)
    assert_close((parts, last), (whole, end))
    cut = int(reset[0].nonzero()[-1])
    assert_close(memory(x[:1], reset=reset[:1])[0][:, cut:], memory(x[:1, cut:])[0])


@pytest.mark.parametrize(
    ("obs", "says"),
    [
        (np.array([[np.nan, 0]], "f4"), "NaN or infinity"),
        (np.array([[0, np.inf]], "f4"), "NaN or infinity"),
        (None, "expected numbers, got NoneType"),
        (np.zeros((0, 2), "f4"), "at least one observation"),
        (np.zeros((1, 3), "f4"), r"expected shape \['any', 2\], got \[1, 3\]"),
        (np.zeros(2, "f4"), "expected shape"),
    ],
)
def test_a_bad_observation_is_named(obs: np.ndarray[Any, Any], says: str) -> None:
    with pytest.raises(ObservationError, match=says):
        MemoryPolicy(BOX, ACTIONS["discrete"]).act(obs, None)


def test_wrong_calls_are_named() -> None:
    policy = MemoryPolicy(OBSERVATIONS["discrete"], ACTIONS["discrete"], previous_reward=True)
    obs = np.array([0, 1])
    with pytest.raises(ObservationError, match="outside its choices"):
        policy.act(np.array([0, 7]), None, None, np.zeros(2))
    with pytest.raises(ObservationError, match="pass rewards"):
        policy.act(obs, None)
    with pytest.raises(ObservationError, match="starts of shape"):
        policy.act(obs, None, [True], np.zeros(2))
    with pytest.raises(StateError, match="has 3 environments"):
        policy.act(obs, policy.initial_state(3), None, np.zeros(2))
    with pytest.raises(ObservationError, match="expected actions of shape"):
        policy.evaluate(obs[None], np.zeros((1, 3)), None, None, np.zeros((1, 2)))
    with pytest.raises(SpaceError, match="'mission'"):
        MemoryPolicy(spaces.Dict({"mission": spaces.Text(4)}), ACTIONS["discrete"])
    with pytest.raises(SpaceError, match="is not supported"):
        MemoryPolicy(BOX, spaces.Dict({}))
    with pytest.raises(ConfigError, match="no memory 'lstn'"):
        MemoryPolicy(BOX, ACTIONS["discrete"], "lstn")


def test_positions_are_on_by_default() -> None:
    """Without them a TTT memory cannot tell how long ago something was."""
    assert all(one.rotary is not None for one in MemoryPolicy(BOX, ACTIONS["discrete"]).memories)  # type: ignore[union-attr,attr-defined]


@pytest.mark.gpu
def test_gpu_and_cpu_agree() -> None:
    torch.manual_seed(0)
    policy = MemoryPolicy(BOX, ACTIONS["multidiscrete"], dim=16, previous_reward=True)
    starts, played = random_starts(), play(policy, random_starts())
    arguments = (played["obs"], played["actions"], None, starts, played["rewards"])
    here = policy.evaluate(*arguments)[:3]
    there = policy.cuda().evaluate(*arguments)[:3]
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a, b.cpu(), atol=1e-4, rtol=0)
    assert policy.act(played["obs"][0], None, starts[0], played["rewards"][0])[0].is_cuda


@pytest.mark.parametrize(
    ("space", "actions"),
    [(spaces.Discrete(3, start=5), torch.zeros(1, 2).long()), (ACTIONS["box"], torch.full((1, 2, 2), torch.nan))],
    ids=["choice", "number"],
)
def test_an_impossible_action_has_no_probability(space: Any, actions: torch.Tensor) -> None:
    with pytest.raises(ObservationError, match="the actions contain"):
        MemoryPolicy(BOX, space).evaluate(np.zeros((1, 2, 2), "f4"), actions, None)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint32])
def test_large_whole_numbers_are_not_rounded(kind: Any) -> None:
    near = Encoder(spaces.Box(10**9, 10**9 + 4, (1,), kind))
    seen = near(near.tensors(np.arange(10**9, 10**9 + 5, dtype=kind)[:, None], leading=1))
    assert seen.squeeze(1).tolist() == [-1, -0.5, 0, 0.5, 1]


def test_numbers_in_float64_are_read_in_it() -> None:
    """Close together far from zero, and beyond what float32 holds."""
    near = Encoder(spaces.Box(1e9, 1e9 + 4, (2,), np.float64))
    seen = near(near.tensors(np.array([[1e9 + 1, 1e9 + 3]]), leading=1))
    torch.testing.assert_close(seen, torch.tensor([[-0.5, 0.5]]))
    far = Encoder(spaces.Box(-np.inf, np.inf, (1,), np.float64))
    torch.testing.assert_close(far(far.tensors(np.array([[1e300]]), leading=1)), torch.tensor([[690.7755]]))


@pytest.mark.parametrize(
    ("shape", "channels"), [((7, 7, 20), 20), ((20, 7, 7), 20), ((5, 40, 30), 5), ((40, 30, 5), 5), ((8, 8, 8), 8)]
)
def test_channels_are_the_odd_side_or_the_fewer(shape: tuple[int, ...], channels: int) -> None:
    assert Picture(spaces.Box(0, 1, shape, np.float32)).layers[0].in_channels == channels


@pytest.mark.parametrize("observation", [BOX, spaces.Box(0, 255, (16, 16, 3), np.uint8)], ids=["row", "picture"])
def test_a_policy_in_bfloat16(observation: Any) -> None:
    policy = MemoryPolicy(observation, ACTIONS["box"], dim=16, heads=1).to(torch.bfloat16)
    action, _, _, _ = policy.act(observation.sample()[None], None)
    assert policy.to_env(action).dtype == np.float32


@pytest.mark.parametrize("action", ["discrete", "box"])
def test_probabilities_under_autocast_are_not_rounded(action: str) -> None:
    """bfloat16 has three digits, too few for the ratio of two probabilities."""
    torch.manual_seed(0)
    policy, obs = MemoryPolicy(BOX, ACTIONS[action], dim=16, heads=1), np.random.default_rng(0).random((64, 2))
    with torch.no_grad():
        policy.actor[-1].weight.mul_(100)
    with torch.autocast("cpu", torch.bfloat16):
        acted, log_prob, _, _ = policy.act(obs, None, [True] * 64)
        found, entropy, _, _ = policy.evaluate(obs[None], acted[None], None, [[True] * 64])
    assert log_prob.dtype == found.dtype == entropy.dtype == torch.float32
    assert float((log_prob - log_prob.bfloat16().float()).abs().max()) > 1e-4, "values that bfloat16 has not"
    torch.testing.assert_close(found[0], log_prob, atol=0.05, rtol=0)


def test_an_action_beyond_its_bounds_is_seen_as_executed() -> None:
    """The previous action is the clipped one in `act` and `evaluate`; an exported step gets it from the robot."""
    torch.manual_seed(0)
    policy = MemoryPolicy(BOX, spaces.Box(-0.01, 0.02, (2,), np.float32), "gru", dim=16)
    obs, drawn = np.zeros((2, 1, 2), "f4"), torch.tensor([[[5.0, -3.0]], [[0.0, 0.0]]])
    executed = torch.tensor([[[0.02, -0.01]], [[0.0, 0.0]]])
    torch.testing.assert_close(torch.as_tensor(policy.to_env(drawn)), executed)
    _, _, values, state = policy.evaluate(obs, drawn, None)
    _, _, expected, other = policy.evaluate(obs, executed, None)
    torch.testing.assert_close(values, expected)
    assert_close(state, other, 0)


def test_a_policy_made_in_float64() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        policy, obs = MemoryPolicy(BOX, ACTIONS["discrete"], dim=16, heads=1), np.zeros((1, 2))
        action, log_prob, value, state = policy.act(obs, None)
        again, _, _, _ = policy.evaluate(obs[None], action[None], None)
        policy.act(obs, state)
    finally:
        torch.set_default_dtype(torch.float32)
    assert value.dtype == torch.float64
    torch.testing.assert_close(again[0], log_prob, atol=1e-12, rtol=0)


def test_positions_up_to_a_period() -> None:
    """Steps a period apart look alike."""
    trunk = Trunk(2, None, "mlp", dim=8, heads=1, period=16)
    x = torch.randn(1, 1, 2).expand(40, 1, 2)
    y, _ = trunk.remember(x, trunk.initial_state(1), None)
    torch.testing.assert_close(y[:16], y[16:32])
    assert not torch.allclose(y[0], y[8])
    with pytest.raises(ConfigError, match="period must be one of 4, 8, 16"):
        Trunk(2, None, "mlp", dim=8, period=12)
