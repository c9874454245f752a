"""The program tttstream-agents from end to end, and one line for every mistake."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv

from tttstream.errors import DependencyError
from tttstream_agents import cli
from tttstream_agents import config as configs
from tttstream_agents.checkpoint import load_policy
from tttstream_agents.cli import main
from tttstream_agents.envs import make
from tttstream_agents.errors import TrainingError
from tttstream_agents.play import remark

TINY = ["--n-envs=2", "--rollout=16", "--minibatch=16", "--dim=16", "--steps=64", "--no-tensorboard", "--quiet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert main(["train", "--env", "CartPole-v1", "--out", str(folder), *TINY]) == 0
    return folder


def test_train_eval_resume(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--episodes", "11", "--out", str(run / "eval.json")]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["episodes"] == 11
    assert values == json.loads((run / "eval.json").read_text())
    assert main(["eval", str(run), "--episodes", "11"]) == 0
    assert json.loads(capsys.readouterr().out) == values
    assert values["cut"] == 0
    assert main(["eval", str(run), "--episodes", "3", "--max-steps", "5"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["length"], values["cut"]) == (5, 3)
    assert main(["train", "--resume", "--steps", "96", "--out", str(run), "--quiet", "--no-tensorboard"]) == 0
    assert "done: 96 steps" in capsys.readouterr().out


def test_options_of_other_libraries_are_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, says in (
        (["--total-timesteps", "9"], "unknown argument --total-timesteps (did you mean --steps?)"),
        (["--ent-coef=0.1"], "unknown argument --ent-coef (did you mean --entropy-coef?)"),
        (["--memmory", "gru"], "unknown argument --memmory (did you mean --memory?)"),
        (["--zzz"], "unknown argument --zzz (see"),
    ):
        with pytest.raises(SystemExit) as exit:
            main(["train", "--out", str(tmp_path / "a"), *words])
        assert exit.value.code == 2
        assert says in capsys.readouterr().err
    with pytest.raises(TrainingError, match=r"unknown option num_envs \(did you mean n_envs\?\), qqq; known are"):
        configs.build({"num_envs": 8, "qqq": 1}, "a.yaml")
    fields = {field.name for field in dataclasses.fields(configs.Config)}
    assert set(configs.OTHER_NAMES.values()) <= fields
    assert not set(configs.OTHER_NAMES) & fields


def test_what_an_environment_prints_is_not_in_the_result(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = CartPoleEnv.step
    monkeypatch.setattr(CartPoleEnv, "step", lambda self, action: (print("a step"), step(self, action))[1])
    assert main(["eval", str(run), "--episodes", "2"]) == 0
    seen = capsys.readouterr()
    assert json.loads(seen.out)["episodes"] == 2
    assert "a step" in seen.err


def test_play_writes_a_video_of_what_the_agent_sees(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import av

    out = tmp_path / "play.mp4"
    assert main(["play", str(run), "--out", str(out), "--max-steps", "12", "--size", "240"]) == 0
    assert "12 steps" in capsys.readouterr().out
    again = tmp_path / "again.mp4"
    assert main(["play", str(run), "--out", str(again), "--max-steps", "12", "--size", "240"]) == 0
    assert again.read_bytes() == out.read_bytes()
    with av.open(str(out)) as video:
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(pictures) == 12
    assert pictures[0].shape[1] == 240
    assert abs(pictures[0].astype(int) - pictures[11]).max() > 50


@pytest.mark.parametrize("memory", ["ttt_linear", "gru"])
def test_play_of_an_environment_without_pictures(tmp_path: Path, memory: str) -> None:
    folder = tmp_path / "run"
    env = ["--env", "popgym-AutoencodeEasy-v0", "--memory", memory]
    assert main(["train", *env, "--out", str(folder), *TINY]) == 0
    assert main(["play", str(folder), "--out", str(tmp_path / "a.mp4"), "--max-steps", "5"]) == 0
    assert (tmp_path / "a.mp4").stat().st_size > 1000


@pytest.mark.parametrize("env", ["popgym-NoisyPositionOnlyCartPoleEasy-v0", "popgym-PositionOnlyCartPoleMedium-v0"])
def test_play_where_drawing_fails(tmp_path: Path, env: str) -> None:
    """One names a mode that it does not take, the other draws nothing in it: both are shown in words."""
    folder = tmp_path / "run"
    assert main(["train", "--env", env, "--out", str(folder), *TINY]) == 0
    assert main(["play", str(folder), "--out", str(tmp_path / "a.mp4"), "--max-steps", "3"]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train --env NoSuch-v0", "no environment 'NoSuch-v0'"),
        ("train --memory lstn", "no memory 'lstn'"),
        ("train --segment 5 --rollout 16", "segment must divide"),
        ("train --options {mini", "argument --options: invalid JSON object value"),
        ("train --config none-such", "presets: atari, control, memory-gym, minigrid, popgym, quick, vizdoom"),
        ("train --resume", "no checkpoint at"),
        ("train --lr fast", "argument --lr: invalid float value"),
        ("train --env Blackjack-v1 --memory ttt_conv --options {\"grid\":[2,2]}", "cannot have 4"),
        ("train --device abacus", "device 'abacus' cannot be used, choose cpu, cuda or auto"),
        ("train --env NoSuch-v0", "error: there is no environment 'NoSuch-v0'"),
        ("train --env popgym-BattleshipEasy-v0 --dim 30 --heads 4", "multiple of heads"),
        ("train --device mps", "device 'mps' cannot be used, choose cpu, cuda or auto: NotImplementedError"),
        ("train --device hpu", "device 'hpu' cannot be used"),
        ("train --steps 1.5", "argument --steps: invalid whole number value: '1.5'"),
        ("train --steps 1e999999999", "argument --steps: invalid whole number value"),
        ("train --steps many", "argument --steps: invalid whole number value: 'many'"),
        ("train --device meta", "device 'meta' cannot be used"),
        ("train --seed 99999999999999999999999", "seed is below 2^63"),
        ("train --minutes nan", "minutes must be 0 or more, got nan"),
        ("train --minibatch 3", "minibatch must be at least one segment of 128 steps, got 3"),
        ('train --options {"mini_batch":"a"}', "memory 'ttt_linear' cannot be made with options {'mini_batch': 'a'}"),
        ('train --options {"dim":3}', "memory 'ttt_linear' cannot be made with options {'dim': 3}"),
        ('train --memory framestack --options {"frames":"x"}', "cannot be made with options"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, says: str) -> None:
    try:
        code: Any = main([*words.split(), "--out", str(tmp_path / "out")])
    except SystemExit as error:
        code = error.code
    printed = capsys.readouterr().err
    assert code == 2
    assert says in printed
    assert printed.startswith("tttstream-agents: error: ")
    assert printed.count("\n") == 1
    assert len(printed) < 400
    assert not list(tmp_path.iterdir())


def test_mistakes_of_other_commands_are_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for words, says in (
        (["eval", str(tmp_path)], "there is no checkpoint"),
        (["eval", str(run), "--env", "Acrobot-v1"], "other spaces"),
        (["eval", str(run), "--episodes", "0"], "at least 1"),
        (["eval", str(run), "--max-steps", "0"], "at least 1"),
        (["play", str(run), "--size", "100000", "--out", str(tmp_path / "a.mp4")], "120 to 4096 pixels"),
        (["play", str(run)], "give --out FILE.mp4"),
        (["play", str(run), "--out", str(tmp_path / "no" / "a.mp4")], "cannot write"),
        (["train", "--out", str(run)], "already contains a run"),
    ):
        assert main(words) == 2, words
        assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_step_without_an_update_is_marked(run: Path) -> None:
    """Where the scale of a place in the mini-batch is 0, nothing is learned at once, and all of it one step later."""
    env = make("CartPole-v1")
    policy = load_policy(run, env)
    with torch.no_grad():
        policy.memories[0].scale[1] = -9.0  # type: ignore[index]
    state, obs, found = policy.initial_state(1), env.reset(seed=0)[0], []
    for step in range(3):
        before, after = policy.surprise(obs[None], state, [step == 0])
        found.append((float(before), float(after)))
        state = policy.act(obs[None], state, [step == 0])[3]
        obs = env.step(step % 2)[0]
    assert [remark(*losses) for losses in found] == ["", ", trained to wait here", ""]
    assert found[1][0] == found[1][1] > 0
    assert found[2][1] < found[2][0]
    assert remark(0.0, 0.0) == ""


def test_whole_numbers_in_scientific_notation(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line, in a YAML file, for every option that counts."""
    args = cli.build_parser().parse_args(["train", "--out=x", "--steps=1e6", "--seed", "2E+3", "--n-envs=16.0"])
    assert (args.steps, args.seed, args.n_envs) == (1_000_000, 2000, 16)
    file = tmp_path / "agent.yaml"
    file.write_text("steps: 1e6\nrollout: 1.28e+2\nlr: 3e-4\n")
    config = configs.build(configs.read(str(file)), "agent.yaml")
    assert (config.steps, config.rollout, config.lr) == (1_000_000, 128, 3e-4)
    assert isinstance(config.steps, int)
    for text in ("steps: 1.5", "steps: 1e-6", "steps: true", "steps: .inf", "steps: 1e400"):
        file.write_text(text)
        with pytest.raises(TrainingError, match="steps must be a whole number"):
            configs.build(configs.read(str(file)), "agent.yaml")
    assert main(["eval", str(run), "--episodes", "1e0", "--max-steps", "0.5e1", "--n-envs", "1e0", "--seed=1e1"]) == 0
    assert json.loads(capsys.readouterr().out)["length"] == 5


def test_advice_names_the_extra_that_installs_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, env, advice in (
        ("ale_py", "ALE/Pong-v5", "pip install ale-py"),
        ("minigrid", "MiniGrid-Empty-5x5-v0", r"pip install 'tttstream\[agents\]'"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(DependencyError, match=advice + "$"):
            make(env)


def test_shipped_presets_are_whole() -> None:
    names = sorted(path.stem for path in configs.presets().glob("*.yaml"))
    assert names == ["atari", "control", "memory-gym", "minigrid", "popgym", "quick", "vizdoom"]
    for name in names:
        configs.build(configs.read(name), name)


def test_help_says_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for name in ("--memory", "--gae-lambda", "--no-previous-action", "--stop-return", "--autoreset"):
        assert name in text


def test_a_run_in_which_no_episode_ended_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--env=tttstream/RepeatFirst-v0", "--memory=mlp", "--dim=8", "--heads=1", "--n-envs=2"]
    sizes = ["--rollout=4", "--minibatch=4", "--epochs=1", "--steps=8", "--quiet", "--no-tensorboard"]
    assert main([*words, *sizes, f"--out={tmp_path / 'run'}"]) == 0
    assert "done: 8 steps, no episode has ended yet, in" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["return"] is None
