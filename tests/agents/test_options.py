"""Options of policies and environments: networks for pictures, wrappers by name, a gate, auxiliary losses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tttstream.errors import ConfigError
from tttstream.io.presets import folder as shipped
from tttstream_agents import MemoryPolicy
from tttstream_agents import config as configs
from tttstream_agents.checkpoint import load_policy, read_checkpoint
from tttstream_agents.cli import build_parser, main
from tttstream_agents.config import Config
from tttstream_agents.encoder import CNNS, Encoder, Picture
from tttstream_agents.envs import make
from tttstream_agents.errors import EnvError, SpaceError
from tttstream_agents.logs import read_csv
from tttstream_agents.train import Run, train
from tttstream_agents.trunk import Gate

TINY = ["--n-envs=2", "--rollout=16", "--minibatch=16", "--dim=16", "--steps=32", "--no-tensorboard", "--quiet"]
SMALL = Config(n_envs=2, rollout=16, segment=8, minibatch=16, dim=16, epochs=2, steps=64, checkpoint_every=1)


@pytest.mark.parametrize("cnn", CNNS)
@pytest.mark.parametrize("shape", [(84, 84, 4), (3, 64, 96), (64, 64)])
def test_networks_for_pictures(cnn: str, shape: tuple[int, ...]) -> None:
    space = spaces.Box(0, 255, shape, np.uint8)
    picture = Picture(space, cnn)
    x = torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8)
    found = picture(x)
    assert found.shape == (2, 3, picture.size)
    torch.testing.assert_close(found[1, 2], picture(x[1, 2]), atol=1e-5, rtol=1e-5)
    scaled = picture.numbers(x).view(-1, *shape)
    scaled = scaled[:, None] if len(shape) == 2 else scaled.movedim(-1, 1) if picture.last else scaled
    torch.testing.assert_close(picture.pixels(x), scaled, atol=1e-6, rtol=0)


def test_sizes_are_those_of_the_papers() -> None:
    atari = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    nature, impala = Picture(atari, "nature"), Picture(atari, "impala")
    assert (nature.size, impala.size) == (512, 256)
    assert sum(p.numel() for p in nature.parameters()) == 1_684_128  # 8 x 8 x 4 x 32 + ... + 3,136 x 512, and biases
    assert sum(isinstance(m, torch.nn.Conv2d) for m in impala.modules()) == 15
    assert isinstance(Encoder(spaces.Box(0, 255, (84, 84), np.uint8)).parts[0].layers[0], torch.nn.Conv2d)
    assert Picture(atari).layers[0].kernel_size == (8, 8)
    assert Picture(spaces.Box(0, 255, (40, 40, 3), np.uint8)).layers[0].kernel_size == (3, 3)
    with pytest.raises(SpaceError, match="36 pixels or more"):
        Picture(spaces.Box(0, 255, (20, 90, 3), np.uint8), "nature")
    with pytest.raises(SpaceError, match="no cnn 'vgg': expected auto, strided"):
        Picture(atari, "vgg")


def test_wrappers_and_arguments_by_name(tmp_path: Path) -> None:
    env = make(
        "CartPole-v1", env_args={"sutton_barto_reward": True}, wrappers=[
            {"TimeLimit": {"max_episode_steps": 3}}, "FlattenObservation",
            {"tttstream_agents.places:PoseObservation": {"moves": [[-1], [1]], "waves": 2}},
        ],
    )  # fmt: skip
    obs, _ = env.reset(seed=0)
    assert set(obs) == {"observation", "pose"}
    assert [env.step(0)[1:4] for _ in range(3)] == [(0.0, False, False), (0.0, False, False), (0.0, False, True)]
    for described, says in (
        ("NoSuch", "no wrapper 'NoSuch' in gymnasium.wrappers or"),
        ("no_such_module:A", "wrapper no_such_module:A: ModuleNotFoundError"),
        ({"TimeLimit": {"max_episode_steps": -1}}, "TimeLimit cannot be put around"),
        ({"a": {}, "b": {}}, "expected a wrapper as a name or"),
        ({"TimeLimit": 3}, "expected {argument: value}, got 3"),
        ("os:PathLike", "no wrapper 'os:PathLike'"),
    ):
        with pytest.raises(EnvError, match=says.replace("{", r"\{").replace("(", r"\(")):
            make("CartPole-v1", wrappers=[described])
    with pytest.raises(EnvError, match="cannot be made: TypeError"):
        make("CartPole-v1", env_args={"gravity_of": 3})


def test_modules_that_register_their_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_package_of_envs.py").write_text(
        "import gymnasium\ngymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    assert make("my_package_of_envs:Mine-v0").spec.id == "Mine-v0"  # type: ignore[union-attr]
    gym.registry.pop("Mine-v0")


def test_they_are_options_of_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--env-args",
        "sutton_barto_reward=true",
        "--env-args",
        '{"render_mode": null}',
        "--gate",
        "--rebuild-coef=0.1",
    ]
    args = build_parser().parse_args(["train", "--out=x", *words])
    assert args.env_args == {"sutton_barto_reward": True, "render_mode": None}
    folder, limit = tmp_path / "run", '[{"TimeLimit": {"max_episode_steps": 4}}]'
    assert main(["train", "--out", str(folder), *TINY, *words[:2], *words[4:], "--wrappers", limit]) == 0
    assert main(["eval", str(folder), "--episodes=3"]) == 0
    assert '"length": 4.0' in capsys.readouterr().out
    (tmp_path / "a.yaml").write_text(
        "env: CartPole-v1\nenv_args: {sutton_barto_reward: true}\nwrappers: [FlattenObservation]\n"
    )
    config = configs.build(configs.read(str(tmp_path / "a.yaml")), "a")
    assert (config.env_args, config.wrappers) == ({"sutton_barto_reward": True}, ["FlattenObservation"])


def test_a_gate_starts_near_the_identity() -> None:
    torch.manual_seed(0)
    gate, x, y = Gate(32), torch.randn(4, 9, 32), torch.randn(4, 9, 32)
    found = gate(x, y)
    assert float(((found - x).square().mean() / x.square().mean()).detach()) < 0.05
    gate.bias.data.fill_(50.0)
    torch.testing.assert_close(gate(x, y), x, atol=1e-5, rtol=0)
    r = (gate.of_y(y)[..., :32] + gate.of_x(x)[..., :32]).sigmoid()
    z = (gate.of_y(y)[..., 32:64] + gate.of_x(x)[..., 32:] - gate.bias).sigmoid()
    h = (gate.of_y(y)[..., 64:] + gate.of_rx(r * x)).tanh()
    torch.testing.assert_close(gate(x, y), (1 - z) * x + z * h, atol=1e-5, rtol=0)


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_gates_and_auxiliary_losses_train_and_resume(tmp_path: Path, script: Any, autoreset: str) -> None:
    config = dataclasses.replace(
        SMALL, gate=True, rebuild_coef=0.5, predict_coef=0.5, keep_coef=0.5, autoreset=autoreset
    )  # fmt: skip

    def maker() -> Any:
        return script(nested=True, drawn=True)

    train(config, tmp_path, make_env=maker, quiet=True, tensorboard=False, minutes=0)
    train(config, tmp_path, make_env=maker, quiet=True, tensorboard=False, resume=True)
    run = Run(config, maker)
    policy = load_policy(tmp_path, run.envs)
    rollout = run.collector.collect()
    args = rollout.obs, rollout.action, rollout.states, rollout.starts
    log_prob, _, _, _, losses = run.policy.learn_from(*args, valid=rollout.valid)
    torch.testing.assert_close(log_prob[rollout.valid], rollout.log_prob[rollout.valid], atol=1e-5, rtol=0)
    assert policy.losses == tuple(losses) == ("rebuild", "predict", "keep")
    rows = read_csv(tmp_path / "metrics.csv")
    assert all(row["rebuild"] > 0 and row["predict"] > 0 and 0 < row["keep"] < 1 for row in rows)
    for loss in losses.values():
        before = [p.grad for p in run.policy.memories[0].parameters()]
        loss.backward(retain_graph=True)
        after = [p.grad for p in run.policy.memories[0].parameters()]
        assert any(a is not b for a, b in zip(before, after, strict=True))  # the memory learns from it
        run.policy.zero_grad()


def test_predictions_stay_inside_their_episode() -> None:
    """The observation after an episode's last step, and what NEXT_STEP puts there, are never a target."""
    torch.manual_seed(0)
    space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    policy = MemoryPolicy(space, spaces.Discrete(2), dim=16, auxiliary=["predict"])
    obs, actions = torch.rand(6, 1, 2), torch.zeros(6, 1, dtype=torch.long)
    starts, valid = torch.zeros(6, 1, dtype=torch.bool), torch.ones(6, 1, dtype=torch.bool)
    starts[3] = True

    def loss(x: torch.Tensor) -> float:
        torch.manual_seed(0)
        features = torch.ones(6, 1, 16)
        found = policy.auxiliary["predict"](policy.encoder, [x], features, policy.encoded(actions), starts, valid)
        return float(found.detach())

    changed = obs.clone()
    changed[3] = 1.0  # the first observation of the second episode: only "what follows step 2" would have it as target
    assert loss(changed) == loss(obs)
    changed = obs.clone()
    changed[5] = -1.0
    assert loss(changed) != loss(obs)
    starts[1:] = True
    assert loss(obs) == 0.0


def test_keep_is_the_mean_learning_rate_of_the_steps_that_count() -> None:
    torch.manual_seed(0)
    space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    for memory in ("ttt_linear", "ttt"):
        policy = MemoryPolicy(space, spaces.Discrete(2), memory, dim=16, depth=2, auxiliary=["keep"])
        obs, actions, valid = torch.rand(7, 2, 3), torch.zeros(7, 2, dtype=torch.long), torch.rand(7, 2) < 0.5
        seen: list[torch.Tensor] = []
        hooks = [
            one.rate.register_forward_hook(lambda _module, _args, out, seen=seen: seen.append(out.sigmoid()))
            for one in policy.memories
        ]
        *_, losses = policy.learn_from(obs, actions, None, valid=valid)
        expected = torch.stack([one[valid.T].mean() for one in seen]).mean()
        torch.testing.assert_close(losses["keep"], expected)
        for hook in hooks:
            hook.remove()
        losses["keep"].backward()
        assert all(bool(one.rate.bias.grad.gt(0).all()) for one in policy.memories)
        *_, none = policy.learn_from(obs, actions, None, valid=torch.zeros_like(valid))
        assert float(none["keep"].detach()) == 0.0
        assert not any(one.rate._forward_hooks for one in policy.memories)
    with pytest.raises(ConfigError, match="'keep' needs a memory with learning rates"):
        MemoryPolicy(space, spaces.Discrete(2), "gru", auxiliary=["keep"])
    with pytest.raises(ConfigError, match="expected auxiliary losses of rebuild, predict, keep, got guess"):
        MemoryPolicy(space, spaces.Discrete(2), auxiliary=["guess"])


def test_presets_for_pixels_build_their_policies() -> None:
    sizes = {"atari": (84, 84), "memory-gym": (84, 84, 3), "vizdoom": (60, 80, 3)}
    assert sizes.keys() <= {path.stem for path in (shipped() / "agents").glob("*.yaml")}
    for name, shape in sizes.items():
        config = configs.build(configs.read(name), name)
        policy = MemoryPolicy(spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(4), cnn=config.cnn, dim=config.dim)
        assert policy.encoder.size == 512


def test_runs_from_before_the_choice_of_network_keep_theirs(tmp_path: Path) -> None:
    class Picture64(gym.Env[Any, Any]):
        observation_space, action_space = spaces.Box(0, 255, (64, 64, 1), np.uint8), spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            return np.zeros((64, 64, 1), np.uint8), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return np.zeros((64, 64, 1), np.uint8), 0.0, False, False, {}

    run = Run(dataclasses.replace(SMALL, cnn="strided"), Picture64)
    run.save(tmp_path / "checkpoint.pt")
    values = read_checkpoint(tmp_path / "checkpoint.pt")
    for name in ("cnn", "gate", "action_masks", "wrappers", "env_args", "normalise_rewards", "rebuild_coef"):
        values["config"].pop(name)
    for name in ("mask", "reward_scale"):
        values.pop(name)
    torch.save(values, tmp_path / "checkpoint.pt")
    load_policy(tmp_path, run.envs)
    Run(dataclasses.replace(SMALL, cnn="strided"), Picture64).restore(tmp_path / "checkpoint.pt")
