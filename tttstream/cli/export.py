"""`tttstream export`: from a checkpoint to the model folder that `tttstream watch --model` takes."""

from __future__ import annotations

import argparse

from tttstream.cli import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The checkpoint and the folder."""
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", type=arguments.path, help="a checkpoint that `tttstream fit` wrote")
    add("folder", metavar="DIR", type=arguments.path, help="folder for config.json and model.safetensors")


def run(args: argparse.Namespace) -> int:
    """Write the folder."""
    from tttstream.io.names import shown
    from tttstream.io.outputs import saving
    from tttstream.train.export import read

    model = read(args.checkpoint)
    with saving(args.folder):
        model.save(args.folder)
    folder = shown(str(args.folder))
    print(f"the model is in {folder}: `tttstream {model.USE} --model {folder}` shows what it does")
    return 0
