"""The program `tttstream-agents`: train, eval, play. A user's mistake is one line and exit code 2."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tttstream.cli.main import guarded
from tttstream.cli.numbers import whole
from tttstream_agents import __version__
from tttstream_agents.config import Config, build, read
from tttstream_agents.errors import TrainingError


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"tttstream-agents: error: {message} (see `{self.prog} --help`)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole program."""
    parser = _Parser(prog="tttstream-agents", description="Agents with a memory that learns.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"tttstream-agents {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = commands.add_parser("train", help="train an agent by PPO", description="Train an agent by PPO.")
    train.add_argument("--out", required=True, help="folder for checkpoint, metrics and summary")
    train.add_argument("--config", help="a YAML file, or a preset by name: popgym, minigrid, control, quick")
    train.add_argument("--resume", action="store_true", help="go on where the run in --out stands")
    train.add_argument("--minutes", type=float, default=float("inf"), help="stop then, with a checkpoint")
    train.add_argument("--quiet", action="store_true", help="no bar and no lines")
    train.add_argument("--no-tensorboard", action="store_true", help="write no TensorBoard files")
    group = train.add_argument_group("hyper-parameters (over those of --config)")
    for field in dataclasses.fields(Config):
        _add(group, field)
    train.set_defaults(run=_train)

    for name, function, words in (
        ("eval", _eval, "play whole episodes and print the returns"),
        ("play", _play, "watch an agent, in a window or as a video, with its memory's surprise"),
    ):
        parser_of = commands.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
        parser_of.add_argument("run_folder", metavar="DIR", help="the folder that `train --out` wrote")
        parser_of.add_argument("--env", help="another environment of the same spaces, e.g. a longer one")
        parser_of.add_argument("--seed", type=natural, default=1, help="of the episodes and of the draws (1)")
        parser_of.add_argument("--deterministic", action="store_true", help="take the likeliest action, draw none")
        episodes = 100 if name == "eval" else 3
        parser_of.add_argument("--episodes", type=whole, default=episodes, help=f"whole episodes to play ({episodes})")
        parser_of.set_defaults(run=function)
        if name == "eval":
            parser_of.add_argument("--n-envs", type=whole, default=8, help="environments side by side (8)")
            parser_of.add_argument("--max-steps", type=whole, default=10_000, help="cut episodes off there (10000)")
            parser_of.add_argument("--out", help="also write the result there, as JSON")
        else:
            parser_of.add_argument("--out", help="write this MP4; without it a window opens")
            parser_of.add_argument("--max-steps", type=whole, default=3000, help="stop after so many steps (3000)")
            parser_of.add_argument("--size", type=whole, default=480, help="width of the picture in pixels (480)")
    return parser


def _add(group: Any, field: dataclasses.Field[Any]) -> None:
    """The option of one hyper-parameter; absent unless given."""
    default = field.default_factory() if callable(field.default_factory) else field.default
    text = f"{field.metadata['help']} ({default})".replace("%", "%%")
    kind: Any = type(default)
    settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
    if kind is bool:
        settings["action"] = argparse.BooleanOptionalAction
    else:
        settings["type"] = {dict: _json, int: whole}.get(kind, kind)
        settings["metavar"] = "JSON" if kind is dict else kind.__name__.upper()
        if field.metadata["choices"]:
            settings["choices"], settings["metavar"] = field.metadata["choices"], None
    group.add_argument(f"--{field.name.replace('_', '-')}", **settings)


def natural(text: str) -> int:
    """A number from 0 that fits a seed."""
    value = whole(text)
    if not 0 <= value < 2**63:
        raise ValueError(text)
    return value


natural.__name__ = whole.__name__


def _json(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


_json.__name__ = "JSON object"  # argparse names it when the text is none


def _given(args: argparse.Namespace) -> dict[str, Any]:
    return {f.name: getattr(args, f.name) for f in dataclasses.fields(Config) if hasattr(args, f.name)}


def _train(args: argparse.Namespace) -> int:
    from tttstream_agents.checkpoint import read_config
    from tttstream_agents.train import train

    values = read(args.config) if args.config else {}
    if args.resume:
        values = {**dataclasses.asdict(read_config(Path(args.out))), **values}
    config = build({**values, **_given(args)}, args.config or "the command line")
    summary = train(
        config, args.out, resume=args.resume, minutes=args.minutes, quiet=args.quiet,
        tensorboard=not args.no_tensorboard,
    )  # fmt: skip
    end = "done" if summary["finished"] else "stopped; --resume goes on"
    print(f"{end}: {summary['steps']} steps, return {summary['return']:.3f} over the last episodes, in {args.out}")
    return 0


def _eval(args: argparse.Namespace) -> int:
    import torch
    from gymnasium.wrappers import TimeLimit

    from tttstream.io.outputs import TextFile
    from tttstream_agents.checkpoint import load_policy, read_config
    from tttstream_agents.envs import close, make, vector
    from tttstream_agents.evaluate import evaluate

    folder = Path(args.run_folder)
    env_id = args.env or read_config(folder).env
    if args.max_steps < 1:
        raise TrainingError(f"--max-steps must be at least 1, got {args.max_steps}")
    torch.manual_seed(args.seed)
    make(env_id).close()  # a mistake in its name shows itself before the vector is made
    count = max(1, min(args.n_envs, args.episodes))
    envs = vector(lambda: TimeLimit(make(env_id), args.max_steps), count, args.seed, unseen=True)
    try:
        result = evaluate(load_policy(folder, envs), envs, args.episodes, args.deterministic, progress=True)
    finally:
        close(envs)
    values = {
        "env": env_id, "episodes": len(result.returns), "return": float(result.returns.mean()),
        "deviation": float(result.returns.std()), "length": float(result.lengths.mean()),
        "cut": int((result.lengths >= args.max_steps).sum()),
    }  # fmt: skip
    print(json.dumps(values))
    if args.out:
        file = TextFile(args.out)
        with file:
            file.write_json(values)
    return 0


def _play(args: argparse.Namespace) -> int:
    from tttstream_agents.play import play

    steps, episodes = play(
        Path(args.run_folder), env_id=args.env, out=args.out, seed=args.seed, episodes=args.episodes,
        max_steps=args.max_steps, width=args.size, deterministic=args.deterministic,
    )  # fmt: skip
    print(f"{steps} steps, {episodes} whole episodes" + (f", in {args.out}" if args.out else ""))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with the given arguments (those of the process for None); returns its exit code."""
    args = build_parser().parse_args(argv)
    return guarded("tttstream-agents", lambda: int(args.run(args)))
