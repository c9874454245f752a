"""The program `tttstream`: runs a subcommand, and reports a user's mistake with one line and exit code 2."""

import argparse
import atexit
import gc
import io
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from tttstream import __version__
from tttstream.cli.numbers import plain

# Each is a module of this package with `add_arguments(parser)`, `run(args) -> exit code` and, for more help, EPILOG.
COMMANDS = {
    "watch": "learn online from a video, a camera or the embedded walk, and report surprising frames",
    "live": "watch cameras and videos live, each with its own memory, on a browser page",
    "track": "follow objects from masks or boxes through a video or a camera",
    "teach": "teach things by name, and find the frames in which they are in view",
    "imagine": "draw the world of a saved map",
    "fit": "train a model on streams of video (Lightning's command line)",
    "validate": "measure a trained model on the validation videos",
    "test": "measure a trained model on the test videos",
    "predict": "write the predictions of a trained model for videos",
    "export": "turn a checkpoint into a model folder for `watch --model`",
    "push": "put a trained model on a hub, with its card",
    "bench": "measure time, memory and state of every memory along a stream",
    "info": "print versions, devices, and why Triton can or cannot run here",
}
# Commands of Lightning: they have their own parser, which takes seconds to import.
TRAINING = ("fit", "validate", "test", "predict")


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"tttstream: error: {message} (see `{self.prog} --help`)\n")


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of the whole program; only the named subcommand is imported and given its arguments."""
    parser = _Parser(
        prog="tttstream", description="Video models whose memory learns while it runs.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"tttstream {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        about, form = f"{summary[0].upper()}{summary[1:]}.", argparse.RawDescriptionHelpFormatter
        subparser = commands.add_parser(name, help=summary, description=about, formatter_class=form)
        if name == command and name not in TRAINING:
            module = import_module(f"tttstream.cli.{name}")
            module.add_arguments(subparser)
            subparser.epilog = getattr(module, "EPILOG", None)
            subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with these arguments, by default those of the process. Returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if argv is None:  # without it the garbage collection at exit takes a second for half a million objects of torch
        atexit.register(gc.freeze)
    return guarded("tttstream", lambda: _run(words))


def _run(words: list[str]) -> int:
    if words and words[0] in TRAINING:
        _refuse_nothing(words)
        return int(import_module("tttstream.train.cli").main(plain(words)))
    args = build_parser(next((word for word in words if word in COMMANDS), None)).parse_args(words)
    return int(args.run(args))


def _refuse_nothing(words: list[str]) -> None:
    """Raise DataError if the data of the command is missing, before Lightning is imported."""
    given = import_module("tttstream.train.given")
    part = given.without(words)
    if part is not None:
        from tttstream.errors import DataError  # here, as below

        raise DataError(given.missing(part))


def guarded(program: str, job: Callable[[], int]) -> int:
    """Run the job of a program. Returns its exit code; a user's mistake is one line on standard error and code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            # A terminal that cannot print these characters must not end a run
            stream.reconfigure(errors="backslashreplace")
    try:
        return job()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from tttstream.errors import TTTStreamError  # imported here, so that --help and --version need no torch

        if not isinstance(error, TTTStreamError):
            raise
        from tttstream.io.names import shown

        print(f"{program}: error: {shown(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
