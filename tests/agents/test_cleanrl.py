"""The single file in CleanRL's manner, and the other examples as a user would run them."""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch


@pytest.fixture
def example(root: Path) -> Any:
    spec = importlib.util.spec_from_file_location("cleanrl_ppo", root / "agents" / "examples" / "cleanrl_ppo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cleanrl_ppo"] = module  # its dataclass looks there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def env_id(repeat_first: Any) -> Any:
    gym.register("RepeatFirstTest-v0", entry_point=repeat_first)
    yield "RepeatFirstTest-v0"
    gym.registry.pop("RepeatFirstTest-v0")


def test_stepping_and_training_agree(example: Any) -> None:
    torch.manual_seed(0)
    agent = example.Agent(3, 4, 16, 1)
    obs, done = torch.randn(2, 9, 3 + 2 * len(example.WAVES)), torch.rand(2, 9) < 0.3
    whole, value, end = agent(obs, agent.memory.init_state(2), done)
    state = agent.memory.init_state(2)
    for t in range(9):
        policy, step, state = agent(obs[:, t : t + 1], state, done[:, t : t + 1])
        torch.testing.assert_close(policy.logits[:, 0], whole.logits[:, t], atol=1e-5, rtol=0)
        torch.testing.assert_close(step[:, 0], value[:, t], atol=1e-5, rtol=0)
    torch.testing.assert_close(state.delta, end.delta, atol=1e-5, rtol=0)


def test_it_learns_to_remember(example: Any, env_id: str) -> None:
    """Chance, and all that there is without a memory, is -0.33."""
    result = example.main(example.Args(env_id=env_id, num_steps=40, total_timesteps=14_000))
    assert result["steps"] == 14_080
    assert result["return"] > 0.5, result


def test_truncated_episodes_are_bootstrapped(example: Any, script: Any) -> None:
    """Each second episode is truncated: the run goes through the value of its last observation."""
    gym.register("ScriptTest-v0", entry_point=script)
    try:
        result = example.main(example.Args(env_id="ScriptTest-v0", num_steps=16, num_envs=4, total_timesteps=128))
    finally:
        gym.registry.pop("ScriptTest-v0")
    assert result["return"] == pytest.approx(10.4, abs=1)  # of 6, 15, 10, 6, 15 …


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("name", ["sb3_ppo", "torchrl_ppo", "torchrl_dqn", "pettingzoo_ppo", "cleanrl_ppo"])
def test_examples_run(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, option = (
        root / "agents" / "examples" / f"{name}.py",
        "--total-timesteps" if name == "cleanrl_ppo" else "--steps",
    )
    monkeypatch.setattr(sys, "argv", [str(file), option, "1664"])
    runpy.run_path(str(file), run_name="__main__")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["steps"] == 1664
    assert -1 <= result["return"] <= 1
