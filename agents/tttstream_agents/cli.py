"""The program `tttstream-agents`: train, eval, play, probe, export. A user's mistake is one line and exit code 2."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

from tttstream.cli.main import guarded
from tttstream.cli.numbers import whole
from tttstream_agents import __version__
from tttstream_agents.config import Config, build, near, read
from tttstream_agents.errors import TrainingError


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in the arguments in one line."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; an unknown option of `train` is named with the option that it probably means."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            option = unknown[0].partition("=")[0]
            hint = near(option.removeprefix("--")).replace("mean ", "mean --").replace("_", "-")
            self.error(f"unknown argument {option}{hint if found.run is _train else ''}")
        return found

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"tttstream-agents: error: {message} (see `{self.prog} --help`)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole program."""
    parser = _Parser(prog="tttstream-agents", description="Agents with a memory that learns.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"tttstream-agents {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = commands.add_parser("train", help="train an agent by PPO", description="Train an agent by PPO.")
    train.add_argument("--out", required=True, help="folder for checkpoint, metrics and summary")
    train.add_argument("--config", help="a YAML file, or a preset by name: quick, popgym, minigrid, atari ...")
    train.add_argument("--resume", action="store_true", help="continue the run in --out")
    train.add_argument("--weights", metavar="DIR", help="start from the weights of the run in this folder")
    train.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time, with a checkpoint")
    train.add_argument("--quiet", action="store_true", help="print no progress")
    train.add_argument("--no-tensorboard", action="store_true", help="write no TensorBoard files")
    group = train.add_argument_group("hyper-parameters (they override those of --config)")
    for field in dataclasses.fields(Config):
        _add(group, field)
    train.set_defaults(run=_train)

    for name, function, words in (
        ("eval", _eval, "play whole episodes and print the returns"),
        ("play", _play, "show an agent and the surprise of its memory, in a window or as a video"),
    ):
        parser_of = commands.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
        parser_of.add_argument("run_folder", metavar="DIR", help="the folder that `train --out` wrote")
        parser_of.add_argument("--env", help="another environment with the same spaces, for example a longer one")
        parser_of.add_argument("--seed", type=natural, default=1, help="seed of episodes and actions (1)")
        parser_of.add_argument(
            "--deterministic", action="store_true", help="take the most probable action instead of a random one"
        )
        episodes = 100 if name == "eval" else 3
        parser_of.add_argument(
            "--episodes", type=whole, default=episodes, help=f"number of whole episodes ({episodes})"
        )
        parser_of.set_defaults(run=function)
        if name == "eval":
            parser_of.add_argument("--n-envs", type=whole, default=8, help="environments in parallel (8)")
            parser_of.add_argument(
                "--max-steps", type=whole, default=10_000, help="truncate episodes after this many steps (10000)"
            )
            parser_of.add_argument("--out", help="also write the result to this file, as JSON")
        else:
            parser_of.add_argument("--out", help="MP4 file to write; without it a window opens")
            parser_of.add_argument("--max-steps", type=whole, default=3000, help="stop after this many steps (3000)")
            parser_of.add_argument("--size", type=whole, default=480, help="width of the picture in pixels (480)")
    probe = commands.add_parser(
        "probe", help="test in minutes, by supervised learning, whether memories can hold what a task needs",
        description="Play at random, train memories to name the right action, and print a table of their scores.",
    )  # fmt: skip
    probe.add_argument("env", metavar="ENV", help="gymnasium id of the environment")
    probe.add_argument("--target", default="answer", help="answer (the right action), first, count or back:K (answer)")
    probe.add_argument(
        "--memories", nargs="+", default=["ttt_linear", "ttt_mlp", "gru", "mlp"], metavar="NAME",
        help="memories to compare, with options as NAME:key=value,key=value (ttt_linear ttt_mlp gru mlp)",
    )  # fmt: skip
    for name, default, text in (
        ("seeds", 1, "number of seeds of weights and batches"), ("steps", 128, "steps of a sequence"),
        ("sequences", 512, "sequences to train on"), ("updates", 400, "gradient steps for each memory and seed"),
        ("batch", 16, "sequences in a gradient step"), ("dim", 64, "width"), ("heads", 2, "heads of a memory"),
        ("period", 1024, "longest period of the position in the episode"),
    ):  # fmt: skip
        probe.add_argument(f"--{name}", type=whole, default=default, help=f"{text} ({default})")
    probe.add_argument("--gate", action="store_true", help="a gate around each memory, as in `train`")
    probe.add_argument(
        "--no-positions", action="store_true", help="do not show the number of steps since the start of the episode"
    )
    probe.add_argument("--lr", type=float, default=3e-3, help="largest learning rate (0.003)")
    probe.add_argument("--env-args", nargs="+", action=_Arguments, default={}, metavar="KEY=VALUE",
                       help="arguments of the environment")  # fmt: skip
    probe.add_argument("--places", nargs="+", action=_Arguments, default={}, metavar="KEY=VALUE",
                       help="also score a memory of places, as in `train`")  # fmt: skip
    probe.add_argument("--wrappers", type=_json(list), default=[], metavar="JSON", help="wrappers of the environment")
    probe.add_argument("--out", help="also write the scores to this file, as JSON")
    probe.add_argument("--quiet", action="store_true", help="print no progress")
    probe.set_defaults(run=_probe)

    export = commands.add_parser(
        "export", help="write one step of an agent as policy.pt2 and policy.onnx, for deployment",
        description="Write one step of a trained agent as policy.pt2 (torch.export) and policy.onnx.",
    )  # fmt: skip
    export.add_argument("run_folder", metavar="DIR", help="the folder that `train --out` wrote")
    export.add_argument("--out", required=True, help="folder for policy.pt2, policy.onnx and policy.json")
    export.add_argument("--action-mask", action="store_true", help="add a mask of legal actions as the last input")
    export.set_defaults(run=_export)
    return parser


def _add(group: Any, field: dataclasses.Field[Any]) -> None:
    """Add the option of one hyper-parameter. It has no value unless it is given."""
    default = field.default_factory() if callable(field.default_factory) else field.default
    text = f"{field.metadata['help']} ({default})".replace("%", "%%")
    kind: Any = type(default)
    settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
    if kind is bool:
        settings["action"] = argparse.BooleanOptionalAction
    else:
        settings["type"] = _json(kind) if kind in (dict, list) else whole if kind is int else kind
        settings["metavar"] = "JSON" if kind in (dict, list) else kind.__name__.upper()
        if field.name in ("env_args", "places"):
            settings.update(type=str, nargs="+", action=_Arguments, metavar="KEY=VALUE")
        if field.metadata["choices"]:
            settings["choices"], settings["metavar"] = field.metadata["choices"], None
    group.add_argument(f"--{field.name.replace('_', '-')}", **settings)


def natural(text: str) -> int:
    """A seed: a whole number from 0 to 2^63 - 1."""
    value = whole(text)
    if not 0 <= value < 2**63:
        raise ValueError(text)
    return value


natural.__name__ = whole.__name__


def _json(kind: type) -> Any:
    """The argparse type of a JSON object (dict) or list."""

    def parse(text: str) -> Any:
        value = json.loads(text)
        if not isinstance(value, kind):
            raise ValueError(text)
        return value

    parse.__name__ = "JSON object" if kind is dict else "JSON list"  # for argparse's messages
    return parse


class _Arguments(argparse.Action):
    """Words key=value with values in YAML, or a JSON object, as a dictionary. Repeated options are merged."""

    def __call__(self, parser: Any, namespace: Any, words: Any, option_string: str | None = None) -> None:
        import yaml

        found: dict[str, Any] = dict(getattr(namespace, self.dest, None) or {})
        for word in words:
            key, equals, text = word.partition("=")
            try:
                if word.startswith("{"):
                    found.update(_json(dict)(word))
                elif equals and key.isidentifier():
                    found[key] = yaml.safe_load(text)
                else:
                    raise ValueError(word)
            except (ValueError, yaml.YAMLError) as error:
                raise argparse.ArgumentError(self, f"expected key=value, got {word!r}") from error
        setattr(namespace, self.dest, found)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    return {f.name: getattr(args, f.name) for f in dataclasses.fields(Config) if hasattr(args, f.name)}


def _train(args: argparse.Namespace) -> int:
    from tttstream_agents.checkpoint import read_config
    from tttstream_agents.logs import NO_EPISODE
    from tttstream_agents.train import train

    values = read(args.config) if args.config else {}
    if args.resume:
        values = {**dataclasses.asdict(read_config(Path(args.out))), **values}
    config = build({**values, **_given(args)}, args.config or "the command line")
    summary = train(
        config, args.out, resume=args.resume, minutes=args.minutes, quiet=args.quiet,
        tensorboard=not args.no_tensorboard, weights=args.weights,
    )  # fmt: skip
    end = "done" if summary["finished"] else "stopped; --resume continues"
    returned = f"return {summary['return']:.3f} over the last episodes" if summary["episodes"] else NO_EPISODE
    print(f"{end}: {summary['steps']} steps, {returned}, in {args.out}")
    return 0


def _eval(args: argparse.Namespace) -> int:
    import torch
    from gymnasium.wrappers import TimeLimit

    from tttstream.io.outputs import TextFile
    from tttstream_agents.checkpoint import load_policy, read_config
    from tttstream_agents.envs import close, make, vector
    from tttstream_agents.evaluate import evaluate

    folder = Path(args.run_folder)
    config = read_config(folder)
    env_id = args.env or config.env
    if args.max_steps < 1:
        raise TrainingError(f"--max-steps must be at least 1, got {args.max_steps}")
    torch.manual_seed(args.seed)
    count = max(1, min(args.n_envs, args.episodes))

    def maker() -> Any:
        return make(env_id, None, config.env_args, config.wrappers)

    with redirect_stdout(sys.stderr):  # some environments print; the result has to be the only output
        maker().close()  # so that a mistake appears before the vector is made
        envs = vector(lambda: TimeLimit(maker(), args.max_steps), count, args.seed, unseen=True)
        try:
            policy = load_policy(folder, envs)
            result = evaluate(policy, envs, args.episodes, args.deterministic, True, config.action_masks)
        finally:
            close(envs)
    values = {
        "env": env_id, "episodes": len(result.returns), "return": float(result.returns.mean()),
        "deviation": float(result.returns.std()), "length": float(result.lengths.mean()),
        "cut": int((result.lengths >= args.max_steps).sum()),
    }  # fmt: skip
    print(json.dumps(values))
    if args.out:
        with TextFile(args.out) as file:
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


def _probe(args: argparse.Namespace) -> int:
    from tttstream.io.outputs import TextFile
    from tttstream_agents.envs import make
    from tttstream_agents.probe import probe, table

    result = probe(
        lambda: make(args.env, None, args.env_args, args.wrappers), args.target, args.memories, seeds=args.seeds,
        steps=args.steps, sequences=args.sequences, updates=args.updates, batch=args.batch, lr=args.lr, dim=args.dim,
        heads=args.heads, gate=args.gate, positions=not args.no_positions,
        period=args.period, places=args.places, quiet=args.quiet,
    )  # fmt: skip
    print(table(result))
    if args.out:
        with TextFile(args.out) as file:
            file.write_json({"env": args.env, **result})
    return 0


def _export(args: argparse.Namespace) -> int:
    from tttstream_agents.checkpoint import load_policy, read_config
    from tttstream_agents.envs import make

    folder = Path(args.run_folder)
    config = read_config(folder)
    env = make(config.env, None, config.env_args, config.wrappers)
    out = load_policy(folder, env).export(args.out, action_mask=args.action_mask)
    env.close()
    print(f"wrote {out / 'policy.pt2'}, {out / 'policy.onnx'} and {out / 'policy.json'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with the given arguments (those of the process for None); returns its exit code."""
    args = build_parser().parse_args(argv)
    return guarded("tttstream-agents", lambda: int(args.run(args)))
