"""Exported steps: torch.export and onnxruntime give what the policy gives, from episode to episode."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tttstream.errors import ConfigError, DependencyError
from tttstream_agents import MemoryPolicy

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'tttstream[export]'")
pytest.importorskip("onnxscript", reason="onnxscript is absent: pip install 'tttstream[export]'")

MEMORIES = ["ttt_linear", "ttt_mlp", "delta", "kernel_delta", "mesa", "ttt_slots", "window"]
"""Those with code of their own on the way of one step; gru and mlp are in the tests of spaces."""
BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
NESTED = spaces.Dict(
    {
        "a": spaces.Box(0, 255, (12, 12, 3), np.uint8), "action_mask": spaces.MultiBinary(3),
        "b": spaces.Tuple((spaces.Discrete(4, start=1), spaces.MultiBinary(2))), "c": BOX,
    }
)  # fmt: skip


def numpy_step(folder: Path) -> Any:
    session = onnxruntime.InferenceSession(str(folder / "policy.onnx"), providers=["CPUExecutionProvider"])
    return lambda inputs: [torch.as_tensor(x) for x in session.run(None, {k: v.numpy() for k, v in inputs.items()})]


def torch_step(folder: Path) -> Any:
    module = torch.export.load(folder / "policy.pt2").module()
    return lambda inputs: [x.detach() for x in module(*inputs.values())]


def flat(space: Any, samples: list[Any], name: str = "observation") -> dict[str, torch.Tensor]:
    """Observations by the names that exported inputs have."""
    if isinstance(space, spaces.Dict):
        parts = [(key, part, [one[key] for one in samples]) for key, part in space.spaces.items()]
    elif isinstance(space, spaces.Tuple):
        parts = [(str(i), part, [one[i] for one in samples]) for i, part in enumerate(space.spaces)]
    else:
        return {name: torch.as_tensor(np.stack([np.asarray(one) for one in samples]))}
    return {k: v for key, part, some in parts for k, v in flat(part, some, f"{name}.{key}").items()}


def check(policy: MemoryPolicy, folder: Path, masked: bool = False, batch: int = 3, steps: int = 20) -> None:
    """Actions drawn elsewhere, episodes that begin at any step, another batch size than at export."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    policy.export(folder, action_mask=masked)
    described = json.loads((folder / "policy.json").read_text())
    assert {path.name for path in folder.iterdir()} >= {"policy.pt2", "policy.onnx", "policy.json"}
    space, n = policy.observation_space, described["inputs"]["state"]["shape"][1]
    space.seed(0)
    generator = np.random.default_rng(0)
    for run in (torch_step(folder), numpy_step(folder)):
        state, kept = None, torch.zeros(batch, n)
        action = torch.zeros((batch, *policy.action_space.shape), dtype=torch.long)  # type: ignore[misc]
        if isinstance(policy.action_space, spaces.Box):
            action = action.float()
        for t in range(steps):
            starts = torch.as_tensor(generator.random(batch) < 0.2) | (t == 0)
            samples = [space.sample() for _ in range(batch)]
            reward = torch.randn(batch)
            mask = torch.as_tensor(generator.random((batch, policy.action.outputs)) < 0.5)
            mask[:, 0] = True
            seen = flat(space, samples)
            seen.pop("observation.action_mask", None)
            inputs = {"state": kept, "starts": starts}
            inputs |= {"previous_action": policy.executed(action)} if policy.played.width else {}
            inputs |= {"previous_reward": reward} if policy.previous_reward else {}
            inputs |= seen
            inputs |= {"action_mask": mask} if masked else {}
            assert list(inputs) == list(described["inputs"])
            best, logits, value, kept = run(inputs)
            batched: Any = {key: seen.get(f"observation.{key}") for key in ("a", "c")}
            obs = next(iter(seen.values())) if space is not NESTED else {
                **batched, "b": (seen["observation.b.0"], seen["observation.b.1"]), "action_mask": mask,
            }  # fmt: skip
            rewards, legal = reward if policy.previous_reward else None, mask if masked else None
            parts = policy.encoder.tensors(obs, 1)
            with torch.no_grad():
                before = policy.initial_state(batch) if state is None else state
                x, _ = policy.remember(
                    policy.encoder(parts)[None],
                    before,
                    starts[None],
                    None if rewards is None else torch.where(starts, 0.0, rewards)[None],
                )
                expected = policy.actor(x[0])
                if legal is not None:
                    expected = torch.where(legal, expected, -torch.inf)
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
            likeliest, _, _, _ = policy.act(obs, state, starts, rewards, action_mask=legal, deterministic=True)
            torch.testing.assert_close(best.numpy(), policy.to_env(likeliest), atol=1e-5, rtol=1e-5, check_dtype=False)
            action, _, true_value, state = policy.act(obs, state, starts, rewards, action_mask=legal)
            torch.testing.assert_close(value, true_value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("memory", MEMORIES)
def test_every_memory(memory: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"mini_batch": 4} if memory in ("ttt_linear", "ttt_mlp") else {}
    check(MemoryPolicy(BOX, spaces.Discrete(3), memory, dim=8, heads=2, options=options), tmp_path)


def test_nested_observations_masks_rewards_and_places(tmp_path: Path) -> None:
    torch.manual_seed(0)
    places = {"at": "c", "width": 3, "features": 16}
    policy = MemoryPolicy(NESTED, spaces.Discrete(3), "gru", dim=8, previous_reward=True, depth=2, places=places)
    check(policy, tmp_path, masked=True)


def test_continuous_actions_are_clipped_at_their_bounds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = MemoryPolicy(BOX, spaces.Box(-0.01, 0.02, (2,), np.float32), "mlp", dim=8)
    check(policy, tmp_path, steps=5)
    assert len(json.loads((tmp_path / "policy.json").read_text())["log_std"]) == 2


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="an exported state cannot"):
        MemoryPolicy(BOX, spaces.Discrete(3), "attention", dim=8).export(tmp_path / "a")
    with pytest.raises(ConfigError, match="has no gradient of a convolution"):
        MemoryPolicy(BOX, spaces.Discrete(3), "ttt_conv", dim=8).export(tmp_path / "a")
    with pytest.raises(ConfigError, match="has a Box"):
        MemoryPolicy(BOX, BOX, "gru", dim=8).export(tmp_path / "a", action_mask=True)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(DependencyError, match=r"pip install 'tttstream\[export\]'"):
        MemoryPolicy(BOX, spaces.Discrete(3), "gru", dim=8).export(tmp_path / "a")
    assert not (tmp_path / "a").exists()
