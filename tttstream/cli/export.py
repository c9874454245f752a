"""`tttstream export`: writes the folder of a model from a checkpoint, or one step of it as files for deployment."""

import argparse
from pathlib import Path

from tttstream.cli import arguments
from tttstream.cli.numbers import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The checkpoint and the folder."""
    add = parser.add_argument
    add(
        "model",
        metavar="CKPT|DIR|NAME",
        type=arguments.model,
        help="a checkpoint that `tttstream fit` wrote, or a model",
    )
    add("folder", metavar="OUT", type=arguments.path, help="folder for config.json and model.safetensors")
    add(
        "--onnx", action="store_true",
        help="write one frame as step.pt2 (torch.export) and step.onnx instead, with the state in and out",
    )  # fmt: skip
    add(
        "--sides", nargs=2, type=whole, metavar=("HEIGHT", "WIDTH"),
        help="with --onnx: the picture that a model of `teach` takes (default: 256 448), or the window of a model of "
        "`track` (default: 384 384), in pixels",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Write the folder."""
    from tttstream import models
    from tttstream.errors import ConfigError
    from tttstream.io.names import shown
    from tttstream.io.outputs import saving
    from tttstream.train.export import read

    if args.sides and not args.onnx:
        raise ConfigError("--sides needs --onnx")
    model = read(Path(args.model)) if Path(args.model).is_file() or args.model.endswith(".ckpt") else None
    model = models.load(args.model) if model is None else model
    folder = shown(str(args.folder))
    if args.onnx:
        models.export(model, args.folder, args.sides and tuple(args.sides))
        print(f"one frame of the model is in {folder}: step.onnx, step.pt2, and step.json, which describes them")
        return 0
    with saving(args.folder):
        model.save(args.folder)
    print(f"the model is in {folder}: `tttstream {model.USE} --model {folder}` shows what it does")
    return 0
