"""A training run: it learns, resumes after it was killed, and keeps its last checkpoint after an error."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tttstream.errors import CheckpointError, OutputError
from tttstream_agents.checkpoint import FORMAT, load_policy, read_checkpoint
from tttstream_agents.config import Config
from tttstream_agents.envs import Episodes, make, smallest, vector
from tttstream_agents.errors import EnvError, ObservationError, TrainingError
from tttstream_agents.evaluate import evaluate
from tttstream_agents.logs import read_csv
from tttstream_agents.train import Run, train

SMALL = Config(n_envs=2, rollout=16, segment=8, minibatch=16, dim=16, epochs=2, steps=16 * 2 * 8, checkpoint_every=3)


def fast(folder: Path, config: Config = SMALL, **options: Any) -> dict[str, Any]:
    return train(config, folder, quiet=True, tensorboard=False, **options)


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "fps"} for row in csv.DictReader(file)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
@pytest.mark.parametrize("env", ["CartPole-v1", "script"])
def test_a_killed_run_resumes_to_the_same_losses(tmp_path: Path, script: Any, env: str, autoreset: str) -> None:
    """Killed between two checkpoints, in the midst of episodes, and with rows waiting for a reset."""
    make_env = None if env == "CartPole-v1" else lambda: script(drawn=True)
    config = dataclasses.replace(SMALL, autoreset=autoreset)
    fast(tmp_path / "whole", config, make_env=make_env)

    class Killed(BaseException):
        pass

    updates = Run.update
    for dies in (5, 8):  # the second time in the resumed run

        def update(run: Run, dies: int = dies) -> Any:
            if run.updates == dies - 1:
                raise Killed
            return updates(run)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, "update", update)
            with pytest.raises(Killed):
                fast(tmp_path / "killed", config, make_env=make_env, resume=dies == 8)
    assert len(table(tmp_path / "killed")) == 7
    fast(tmp_path / "killed", config, make_env=make_env, resume=True)
    assert table(tmp_path / "killed") == table(tmp_path / "whole")
    assert len(table(tmp_path / "whole")) == 8


def test_a_signal_ends_a_run_with_a_checkpoint_and_it_resumes_exactly(tmp_path: Path) -> None:
    fast(tmp_path / "whole")
    updates = Run.update

    def update(run: Run) -> Any:
        if run.updates == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return updates(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "update", update)
        assert not fast(tmp_path / "stopped")["finished"]
    assert len(table(tmp_path / "stopped")) == 4
    assert fast(tmp_path / "stopped", resume=True)["finished"]
    assert table(tmp_path / "stopped") == table(tmp_path / "whole")


def test_a_run_stops_after_its_time_and_resumes_exactly(tmp_path: Path) -> None:
    fast(tmp_path / "whole")
    for stage in range(8):
        assert fast(tmp_path / "parts", resume=stage > 0, minutes=0)["finished"] == (stage == 7)
    assert table(tmp_path / "parts") == table(tmp_path / "whole")


def test_a_seed_repeats_a_run_and_another_does_not(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, steps=64)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fast(tmp_path / name, dataclasses.replace(config, seed=seed))
    assert table(tmp_path / "a") == table(tmp_path / "b") != table(tmp_path / "c")


def test_several_processes_give_the_results_of_one(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, steps=64)
    fast(tmp_path / "one", config)
    fast(tmp_path / "many", dataclasses.replace(config, workers=1))
    assert table(tmp_path / "one") == table(tmp_path / "many")


@pytest.mark.parametrize("over", [False, True])
def test_an_environment_resumes_inside_its_episode(script: Any, over: bool) -> None:
    first = Episodes(script(drawn=True), 0, 0)
    first.reset()
    length = script.LENGTHS[first.unwrapped.episode % 3]  # type: ignore[attr-defined]
    for _ in range(length if over else 2):
        first.step(0)
    again = Episodes(script(drawn=True), 0, 0)
    assert again.seek([first.position()]) is None
    assert again.over == over
    if over:
        assert again.step(0)[0].tolist() == first.reset()[0].tolist()
    assert again.step(1)[0].tolist() == first.step(1)[0].tolist()


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_an_episode_that_differs_when_replayed_is_replaced(autoreset: str, script: Any, tmp_path: Path) -> None:
    """One of two environments ignores its seed. The other one resumes inside its episode."""

    class Unseeded(gym.Wrapper[Any, Any, Any, Any]):
        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            return self.env.reset(seed=next(fresh), options=options)

    fresh, runs = iter(range(100)), []
    config = dataclasses.replace(SMALL, autoreset=autoreset)
    for resumed in (False, True):
        makers = iter([lambda: script(drawn=True), lambda: Unseeded(script(drawn=True))])
        run = Run(config, lambda makers=makers: next(makers)())
        if resumed:
            with pytest.warns(UserWarning, match="1 of 2 episodes were different when replayed"):
                run.restore(tmp_path / "checkpoint.pt")
        else:
            run.update()
            run.save(tmp_path / "checkpoint.pt")
        runs.append(run)
    before, after = (run.player for run in runs)
    assert after.obs[0].tolist() == before.obs[0].tolist()
    assert after.obs[1].tolist() == [runs[1].envs.envs[1].unwrapped.episode, 0]  # type: ignore[union-attr]
    assert bool(after.starts[1])
    assert int(runs[1].collector.lengths[1]) == 0


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (spaces.Discrete(4), 1),
        (spaces.Discrete(4, start=-2), 2),
        (spaces.Discrete(300), 2),
        (spaces.MultiDiscrete([3, 256]), 1),
        (spaces.Box(-1.0, 1.0, (3,)), 4),
    ],
    ids=str,
)
def test_actions_are_stored_in_a_small_type_and_restored(space: spaces.Space[Any], size: int) -> None:
    class Still(gym.Env[Any, Any]):
        observation_space, action_space = spaces.Discrete(2), space

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            return 0, {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return 0, 0.0, False, False, {}

    assert smallest(space).itemsize == size
    env = Episodes(Still(), 0, 0)
    env.reset()
    space.seed(0)
    actions = [space.sample() for _ in range(50)]
    for action in actions:
        env.step(action)
    kept = env.position().actions
    assert kept.dtype == space.dtype
    np.testing.assert_array_equal(kept, actions)


def test_an_episode_too_long_to_replay_starts_again(script: Any) -> None:
    first = Episodes(script(), 0, 0, limit=2)
    first.reset()
    for _ in range(3):
        first.step(0)
    assert first.position()[1] == 3
    assert len(first.position()[2]) == 0
    again = Episodes(script(), 0, 0, limit=2)
    assert again.seek([first.position()]).tolist() == [0, 0]
    assert again.episode == 1


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("nan", ObservationError, r"NaN or infinity \(after 96 steps; the last checkpoint is .*checkpoint.pt"),
        ("raise", EnvError, r"failed in step: RuntimeError: the simulator crashed \(after 96 steps; the last"),
        ("reward", ObservationError, "reward that is not finite"),
    ],
)
def test_a_bad_environment_ends_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, script: Any, fault: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        fast(tmp_path, make_env=lambda: script(drawn=True, faults={40: fault}))
    before = digest(tmp_path / "checkpoint.pt")
    with pytest.raises(error):
        fast(tmp_path, make_env=lambda: script(drawn=True, faults={2 if fault == "raise" else 12: fault}), resume=True)
    assert digest(tmp_path / "checkpoint.pt") == before
    assert fast(tmp_path, make_env=lambda: script(drawn=True), resume=True)["finished"]
    assert not list(tmp_path.glob(".*.part"))


def test_a_process_that_raises_is_named(tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(SMALL, workers=1)
    monkeypatch.setattr(gym.logger, "min_level", 50)
    with pytest.raises(EnvError, match=r"RuntimeError: the simulator crashed .*no checkpoint yet"):
        fast(tmp_path, config, make_env=lambda: script(faults={4: "raise"}))


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(SMALL)
    run.save(tmp_path / "checkpoint.pt")
    before = digest(tmp_path / "checkpoint.pt")

    def full(path: Path, data: Any) -> int:
        path.open("wb").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    run.update()
    with pytest.raises(OutputError, match="disk is full"):
        run.save(tmp_path / "checkpoint.pt")
    assert digest(tmp_path / "checkpoint.pt") == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_folders_and_checkpoints_that_do_not_fit_are_named(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, steps=32)
    fast(tmp_path, config)
    with pytest.raises(TrainingError, match="already contains a run"):
        fast(tmp_path, config)
    with pytest.raises(TrainingError, match="another dim"):
        fast(tmp_path, dataclasses.replace(config, dim=32), resume=True)
    with pytest.raises(CheckpointError, match="other spaces"):
        load_policy(tmp_path, make("Acrobot-v1"))
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        fast(tmp_path, config, resume=True)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        fast(tmp_path / "empty", config, resume=True)
    torch.save({"format": "other"}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        fast(tmp_path, config, resume=True)


def test_a_run_without_a_whole_episode_has_no_return(tmp_path: Path) -> None:
    train(Config(env="MountainCar-v0", n_envs=2, rollout=4, steps=8, dim=16), tmp_path, quiet=True, tensorboard=False)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)["return"] is None


def test_the_files_of_a_run(tmp_path: Path) -> None:
    summary = fast(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "metrics.csv", "summary.json"}
    assert [int(row["steps"]) for row in table(tmp_path)] == list(range(32, 257, 32))
    assert all(float(row["first_ratio"]) < 1e-5 for row in table(tmp_path))


def test_tensorboard_is_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(dataclasses.replace(SMALL, steps=32), tmp_path, quiet=True)
    assert list((tmp_path / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("memory", ["ttt_mlp", "gru", "attention", "mlp", "framestack"])
def test_every_memory_trains_and_resumes(tmp_path: Path, script: Any, memory: str) -> None:
    config = dataclasses.replace(SMALL, memory=memory, segment=16, steps=64, checkpoint_every=1, anneal=True)
    fast(tmp_path / "whole", config, make_env=lambda: script(nested=True, drawn=True))
    updates = Run.update

    def update(run: Run) -> Any:
        if run.updates:
            raise KeyboardInterrupt
        return updates(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "update", update)
        with pytest.raises(KeyboardInterrupt):
            fast(tmp_path / "cut", config, make_env=lambda: script(nested=True, drawn=True))
    fast(tmp_path / "cut", config, make_env=lambda: script(nested=True, drawn=True), resume=True)
    assert table(tmp_path / "cut") == table(tmp_path / "whole")


def test_it_learns_to_remember(tmp_path: Path, repeat_first: Any) -> None:
    """A TTT memory learns to repeat the first observation. A policy without memory cannot do this."""
    config = Config(n_envs=16, rollout=40, minibatch=160, dim=16, heads=1, lr=3e-3, steps=60_000, stop_return=0.97)
    config = dataclasses.replace(config, options={"mini_batch": 4})
    summary = fast(tmp_path, config, make_env=repeat_first)
    assert summary["return"] > 0.9, summary
    envs = vector(repeat_first, 8, 1)
    result = evaluate(load_policy(tmp_path, envs), envs, episodes=40)
    assert result.returns.mean() > 0.7
    assert result.lengths.tolist() == [10] * 40


def test_the_policy_that_reached_the_return_is_kept(tmp_path: Path, repeat_first: Any) -> None:
    """One more update may spoil it. Here the first rollout has over 100 episodes, so nothing is learned at all."""

    def one_step() -> Any:
        return repeat_first(steps=1)

    config = dataclasses.replace(SMALL, n_envs=16, rollout=32, minibatch=128, steps=5_000, stop_return=-1.0)
    assert fast(tmp_path, config, make_env=one_step)["steps"] == 512
    fresh = Run(config, one_step)
    kept = load_policy(tmp_path, fresh.envs)
    torch.testing.assert_close(kept.state_dict(), fresh.policy.state_dict(), rtol=0, atol=0)
    assert [row["policy_loss"] for row in table(tmp_path)] == [""]

    later = dataclasses.replace(config, stop_return=2.0, steps=1_024)  # with a higher aim it learns on
    assert fast(tmp_path, later, make_env=one_step, resume=True)["steps"] == 1_024
    assert table(tmp_path)[1]["policy_loss"]
    fresh.close()


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_evaluation_counts_each_environments_first_episodes(script: Any, mode: str) -> None:
    envs = vector(script, 3, 0, mode)
    torch.manual_seed(0)
    from tttstream_agents.policy import MemoryPolicy

    result = evaluate(MemoryPolicy(envs.single_observation_space, envs.single_action_space, dim=8), envs, episodes=6)
    assert sorted(result.lengths.tolist()) == [3, 3, 3, 5, 5, 5]
    assert sorted(result.returns.tolist()) == [6, 6, 6, 15, 15, 15]


def test_a_run_can_start_from_the_weights_of_another(tmp_path: Path) -> None:
    fast(tmp_path / "first", dataclasses.replace(SMALL, rebuild_coef=0.1))
    found = read_checkpoint(tmp_path / "first" / "checkpoint.pt")["policy"]
    run = Run(dataclasses.replace(SMALL, predict_coef=0.1, keep_coef=0.1, lr=1e-4, n_envs=3))
    fresh = {name: value.clone() for name, value in run.policy.state_dict().items()}
    run.start_from(tmp_path / "first")
    for name, value in run.policy.state_dict().items():
        assert torch.equal(value, fresh[name] if name.startswith("auxiliary.") else found[name])
    fast(tmp_path / "second", dataclasses.replace(SMALL, seed=1, steps=1), weights=tmp_path / "first", minutes=0)
    with pytest.raises(CheckpointError, match=r"the weights in .* belong to another policy"):
        Run(dataclasses.replace(SMALL, dim=24)).start_from(tmp_path / "first")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        fast(tmp_path / "third", weights=tmp_path / "nowhere")
    assert not (tmp_path / "third").exists()
    with pytest.raises(TrainingError, match="either resume or weights"):
        fast(tmp_path / "first", resume=True, weights=tmp_path / "second")


def test_a_memory_that_grows_needs_whole_rollouts(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the state of 'attention' grows"):
        Run(dataclasses.replace(SMALL, memory="attention"))
    Run(dataclasses.replace(SMALL, memory="attention", segment=SMALL.rollout)).update()


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for content in (b"abc", b"", b"PK\x03\x04" + bytes(50)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            read_checkpoint(path)
    torch.save({"format": FORMAT}, path)
    with pytest.raises(CheckpointError, match="is damaged: it has no config, policy"):
        load_policy(tmp_path, gym.make("CartPole-v1"))
    run = Run(SMALL)
    run.save(path)
    for name, value in (("memory", []), ("random", torch.zeros(3)), ("recent", 7)):
        torch.save({**read_checkpoint(path), name: value}, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match="is damaged"):
            Run(SMALL).restore(tmp_path / "other.pt")


def test_an_unknown_table_is_named(tmp_path: Path) -> None:
    for text in ("a,b\n1,2\n", "steps,x\none,2\n"):
        (tmp_path / "metrics.csv").write_text(text)
        with pytest.raises(TrainingError, match=r"not the metrics.csv of an agent"):
            read_csv(tmp_path / "metrics.csv")
