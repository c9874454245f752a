"""A memory of places in a policy: the literal recurrence, acting and evaluating, mistakes, training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.agents.test_policy import STEPS, check_parity
from tttstream.errors import ConfigError
from tttstream.testing import assert_close
from tttstream_agents import MemoryPolicy, PoseObservation, load_policy
from tttstream_agents.checkpoint import read_config
from tttstream_agents.cli import main
from tttstream_agents.envs import make
from tttstream_agents.errors import EnvError
from tttstream_agents.pose_memory import PoseMemory

WORLD = {"side": 4, "steps": 16}
AT, ASK = range(3, 7), (range(7, 11), range(11, 15))
SEEN = spaces.Dict(
    {
        "around": spaces.Box(-1, 1, (2, 4), np.float32),
        "mode": spaces.Discrete(3),
        "pose": spaces.Box(-1, 1, (4,), np.float32),
        "speed": spaces.Box(-5, 5, (2,), np.float32),
    }
)


def literal(memory: PoseMemory, x: torch.Tensor, reset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the recurrence in the docstring of PoseMemory, row by row and step by step."""
    out, states = [], []
    for row, starts in zip(x, reset, strict=True):
        matrix = torch.zeros(2 * memory.frequencies.shape[1], memory.width + 1, dtype=x.dtype)
        for numbers, start in zip(row, starts, strict=True):
            if start:
                matrix = torch.zeros_like(matrix)
            out.append(torch.cat([numbers[:7], *(memory.keys(numbers[index]) @ matrix for index in memory.ask)]))
            key = memory.keys(numbers[memory.at])
            value = torch.cat([memory.value(numbers[memory.rest]), torch.ones(1, dtype=x.dtype)])
            beta = 2 * torch.sigmoid(memory.rate(numbers[memory.rest]))
            matrix = matrix + beta * key[:, None] * (value - key @ matrix)
        states.append(matrix)
    return torch.stack(out).view(*x.shape[:2], -1), torch.stack(states)[:, None]


def made(**options: Any) -> PoseMemory:
    torch.manual_seed(0)
    memory = PoseMemory(15, AT, ASK, **{"width": 3, "features": 16, **options}).double()
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return memory


@pytest.mark.parametrize("steps", [1, 2, 40])
def test_it_is_the_literal_recurrence_with_resets_and_gradients(steps: int) -> None:
    memory = made()
    x = torch.randn(3, steps, 15, dtype=torch.float64, requires_grad=True)
    reset = torch.rand(3, steps) < 0.2
    read, state = memory(x, memory.init_state(3), reset)
    expected, matrix = literal(memory, x, reset)
    torch.testing.assert_close(read, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(state.matrix, matrix, atol=1e-10, rtol=0)
    weights, inputs = torch.randn_like(read), [x, *memory.parameters()]
    found = torch.autograd.grad((read * weights).sum() + state.matrix.square().sum(), inputs, retain_graph=True)
    wanted = torch.autograd.grad((expected * weights).sum() + matrix.square().sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def test_any_split_has_the_same_result() -> None:
    memory = made()
    x, reset = torch.randn(2, 30, 15, dtype=torch.float64), torch.rand(2, 30) < 0.1
    whole, last = memory(x, memory.init_state(2), reset)
    state, out = memory.init_state(2), []
    for piece in (slice(0, 1), slice(1, 9), slice(9, 10), slice(10, 30)):
        read, state = memory(x[:, piece], state, reset[:, piece])
        out.append(read)
    torch.testing.assert_close(torch.cat(out, 1), whole, atol=1e-10, rtol=0)
    assert_close(state, last, 1e-10)


def test_a_place_returns_what_was_observed_there_and_whether_it_was_observed() -> None:
    torch.manual_seed(0)
    env = make("tttstream/Revisit-v0", env_args={"side": 6, "steps": 400})
    policy = MemoryPolicy(
        env.observation_space, env.action_space, "mlp", places={"at": "here", "ask": "asked", "features": 512}
    )
    memory = policy.places
    assert memory is not None
    obs, info = env.reset(seed=0)
    state, errors, known, new = memory.init_state(1), [], [], []
    over = False
    while not over:
        x = policy.encoder(policy.encoder.tensors({key: np.asarray(part)[None] for key, part in obs.items()}, 1))
        with torch.no_grad():
            read, state = memory(x[None], state, None)
        if info["answer"] >= 0:
            symbol = torch.nn.functional.one_hot(torch.tensor(info["answer"]), 4)
            with torch.no_grad():
                errors.append(float((read[0, 0, -33:-1] - memory.value(symbol.float())).abs().max()))
            known.append(float(read[0, 0, -1]))
        else:
            new.append(float(read[0, 0, -1]))
        obs, _, _, over, info = env.step(0)
    assert np.mean(errors) < 0.05
    assert max(errors) < 0.5
    assert min(known) > 0.5
    assert np.mean(known) > 0.9
    assert np.mean(np.abs(new)) < 0.2


@pytest.mark.parametrize(
    ("at", "ask", "cell"),
    [
        (spaces.Discrete(40), spaces.MultiDiscrete([40, 40]), lambda place: place),
        (spaces.Discrete(40, start=-3), spaces.Discrete(40, start=-3), lambda place: place - 3),
        (spaces.MultiDiscrete([5, 8]), spaces.MultiDiscrete([[5, 8], [5, 8]]), lambda place: divmod(place, 8)),
    ],
    ids=["one", "from -3", "two"],
)
def test_choices_are_places(at: spaces.Space[Any], ask: spaces.Space[Any], cell: Any) -> None:
    torch.manual_seed(0)
    space = spaces.Dict({"at": at, "ask": ask, "seen": spaces.Box(-1, 1, (3,), np.float32)})
    policy = MemoryPolicy(
        space, spaces.Discrete(2), "mlp", dim=8, places={"at": "at", "ask": "ask", "width": 3, "features": 1024}
    )
    memory, count = policy.places, int(np.prod(ask.shape)) // max(1, int(np.prod(at.shape)))
    assert memory is not None
    shown, order = torch.rand(40, 3), torch.randperm(40)

    def numbers(here: int, other: int) -> torch.Tensor:
        both = np.array([cell(here), cell(other)][2 - count :]).reshape(ask.shape)
        obs = {"at": np.array(cell(here)), "ask": both, "seen": shown[here].numpy()}
        return policy.encoder(policy.encoder.tensors({key: part[None] for key, part in obs.items()}, 1))[None]

    with torch.no_grad():
        state = memory.init_state(1)
        for place in order[:30].tolist():
            _, state = memory(numbers(place, place), state, None)
        read = torch.stack([memory(numbers(place, place), state, None)[0][0, 0, -4:] for place in range(40)])
        known, new = order[:30], order[30:]
        assert float((read[known, -1] - 1).abs().mean()) < 0.15
        assert float(read[new, -1].abs().mean()) < 0.25
        assert float((read[known, :-1] - memory.value(shown[known])).abs().mean()) < 0.15


@pytest.mark.parametrize("places", [{"at": "pose"}, {"at": "pose", "ask": ["around", "pose"], "width": 4}], ids=str)
@pytest.mark.parametrize("memory", ["mlp", "ttt_linear"])
def test_evaluating_equals_acting(places: dict[str, Any], memory: str) -> None:
    torch.manual_seed(0)
    policy = MemoryPolicy(SEEN, spaces.Discrete(3), memory, dim=16, previous_reward=True, places=places, normalise=True)
    check_parity(policy, (STEPS,))
    check_parity(policy, (1, 4, 9, 7))


def test_descriptions_of_places_are_not_normalised() -> None:
    policy = MemoryPolicy(
        SEEN, spaces.Discrete(3), "mlp", dim=8, places={"at": "pose", "ask": "around"}, normalise=True
    )
    obs = {"around": torch.rand(5, 2, 2, 4), "mode": torch.zeros(5, 2), "pose": torch.rand(5, 2, 4),
           "speed": torch.full((5, 2, 2), 4.0)}  # fmt: skip
    policy.observe(obs, torch.ones(5, 2, dtype=torch.bool))
    x = policy.encoder(policy.encoder.tensors(obs, 2))
    assert policy.places is not None
    torch.testing.assert_close(x[..., policy.places.at], obs["pose"])
    torch.testing.assert_close(x[..., policy.places.ask], obs["around"])
    assert float(x[..., -2:].abs().max()) < 0.1  # the speed is normalised


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ({"at": "here"}, "has no part 'here' of numbers; it has around, mode, pose, speed"),
        ({"at": "pose", "ask": "mode"}, "both be a Box or both have choices: pose, mode"),
        ({"at": "mode", "ask": ["mode", "pose"]}, "both be a Box or both have choices: mode, mode, pose"),
        ({"at": "pose", "ask": "speed"}, "has 4 numbers, those that are read have 2"),
        ({"ask": "around"}, "expected at, maybe ask, width, features, sharp, got ask"),
        ({"at": "pose", "size": 3}, "sharp, got at, size"),
        ({"at": "pose", "ask": 3}, "has no part '3'"),
        ({"at": ["pose"]}, "has no part"),
        ({"at": "pose", "width": "wide"}, "has a value of a wrong type"),
        ({"at": "pose", "features": 7}, "an even number of features"),
        ({"at": "pose", "sharp": 0}, "sharp above 0"),
    ],
    ids=str,
)
def test_mistakes_are_named(places: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        MemoryPolicy(SEEN, spaces.Discrete(3), "mlp", dim=8, places=places, normalise=True)


def test_an_observation_of_places_alone_is_refused() -> None:
    space = spaces.Dict({"pose": spaces.Box(-1, 1, (4,), np.float32)})
    with pytest.raises(ConfigError, match="nothing but places"):
        MemoryPolicy(space, spaces.Discrete(3), "mlp", dim=8, places={"at": "pose"})


def test_it_is_trained_resumed_and_loaded_by_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--env", "tttstream/Revisit-v0", "--env-args", *(f"{key}={value}" for key, value in WORLD.items())]
    words += [
        "--memory",
        "mlp",
        "--dim",
        "16",
        "--n-envs",
        "2",
        "--rollout",
        "16",
        "--minibatch",
        "16",
        "--epochs",
        "1",
    ]
    run = ["train", "--config", "popgym", *words, "--quiet", "--steps"]
    out = ["--places", "at=here", "ask=asked", "width=8", "--out", str(tmp_path)]
    assert main([*run, "64", *out]) == 0
    assert main([*run, "128", *out, "--resume"]) == 0
    policy = load_policy(tmp_path, make("tttstream/Revisit-v0", env_args=WORLD))
    assert read_config(tmp_path).places == {"at": "here", "ask": "asked", "width": 8}
    assert policy.places is not None
    assert policy.places.width == 8
    assert main(["eval", str(tmp_path), "--episodes", "2"]) == 0
    assert main([*run, "64", "--places", "at=there", "--out", str(tmp_path / "other")]) == 2
    assert "no part 'there' of numbers; it has asked, here" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_wrappers_give_poses_and_places_around_them() -> None:
    env = make("tttstream/Revisit-v0", env_args=WORLD, wrappers=[
        {"PoseObservation": {"keys": "pose", "period": 4, "waves": 2, "around": [[0, 1], [1, 0], [0, -1], [-1, 0]]}},
    ])  # fmt: skip
    obs, _ = env.reset(seed=0)
    assert obs["around"].shape == (4, 8)
    assert obs in env.observation_space
    moves = [np.abs(obs["around"] - obs["asked"]).max(1) < 1e-6, np.abs(obs["pose"] - obs["here"]).max() < 1e-6]
    assert moves[0].sum() == 1
    assert moves[1]
    policy = MemoryPolicy(env.observation_space, env.action_space, "mlp", places={"at": "pose", "ask": "around"})
    assert policy.places is not None
    assert policy.places.size == policy.encoder.size - 4 * 8 + 4 * 33
    assert isinstance(env, PoseObservation)


def test_the_last_action_is_a_pose_and_nothing_is_learned_before_it() -> None:
    pytest.importorskip("popgym")
    board = {"keys": "action", "period": 8, "waves": 4}
    env = make("popgym-MineSweeperEasy-v0", wrappers=[{"PoseObservation": {**board, "grid": [4, 4]}}])
    obs, _ = env.reset(seed=0)
    assert obs["grid"].shape == (16, 16)
    assert not obs["pose"].any()
    obs, _, _, _, _ = env.step(np.array([2, 3]))
    np.testing.assert_array_equal(obs["pose"], obs["grid"][2 * 4 + 3])
    mapped = make("popgym-MineSweeperEasy-v0", wrappers=[{"MapObservation": {"keys": "action"}}])
    assert np.isfinite(mapped.reset(seed=0)[0]).all()
    assert not mapped.get_wrapper_attr("map").weights.any()
    first, *_ = mapped.step(np.array([2, 3]))
    again, *_ = mapped.step(np.array([2, 3]))
    assert first[-1] == pytest.approx(0.0, abs=1e-6)
    assert again[-1] == pytest.approx(1.0)
    with pytest.raises(EnvError, match="a grid of 2 sizes"):
        make("popgym-MineSweeperEasy-v0", wrappers=[{"PoseObservation": {**board, "grid": [4]}}])


def test_the_probe_scores_a_memory_of_places(capsys: pytest.CaptureFixture[str]) -> None:
    words = "tttstream/Revisit-v0 --memories mlp --steps 48 --sequences 32 --updates 60 --lr 0.01 --dim 32 --quiet"
    assert main(["probe", *words.split(" "), "--env-args", "side=4", "--places", "at=here", "ask=asked"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    accuracy = {row[0]: float(row[-2]) for row in rows}
    assert accuracy["places"] > 0.9
    assert accuracy["mlp"] < 0.5
