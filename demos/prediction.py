"""Measures the prediction of the next frame of videos, compared with repeating the last one and a frozen memory.

python demos/prediction.py out/small/held --model base > table.md
"""

import argparse
import datetime
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import tttstream
from tttstream.errors import TTTStreamError
from tttstream.models.frame import FrameModel
from tttstream.train.metrics import qualities

METHODS = {
    "repeating": "the last frame again",
    "untrained": "the same model with random weights: it only estimates motion and extrapolates it",
    "frozen": "the trained weights, but the memory does not learn from the stream",
    "model": "the trained weights, and the memory learns from every frame",
}


def frames(path: Path, stream: tttstream.Stream, most: int) -> Tensor:
    """The first frames of a video as input of the model: uint8 [T, 3, size, size]."""
    with tttstream.open_source(str(path)) as source:
        seen = [stream.picture(frame).mul(255).round().byte() for frame, _ in zip(source, range(most), strict=False)]
    return torch.stack(seen)


def foretold(model: FrameModel, video: Tensor, learn: bool, piece: int = 8) -> Iterator[Tensor]:
    """The model's next frames, from frame 0 on."""
    state = None
    for begin in range(0, len(video) - 1, piece):
        with torch.no_grad():
            output, state = model(video[None, begin : min(begin + piece, len(video) - 1)], state, learn=learn)
        yield from output.prediction[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="videos that the model was not trained on")
    parser.add_argument("--model", default="base", help="a model by name or from its folder (base)")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures (128)")
    parser.add_argument("--most", type=int, default=300, help="frames of each video (300)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    trained = tttstream.models.load(args.model, size=args.size)
    stream = tttstream.Stream(trained, device="cpu")
    torch.manual_seed(0)
    drawn = FrameModel(trained.config).eval()
    means: dict[str, dict[str, np.ndarray]] = {name: {} for name in METHODS}
    every: dict[str, list[Tensor]] = {name: [] for name in METHODS}
    paths = sorted(path for path in args.folder.iterdir() if path.is_file())
    for path in tqdm(paths, file=sys.stderr):
        video = frames(path, stream, args.most)
        last, target = video[:-1].float() / 255, video[1:].float() / 255
        said = {"repeating": last}
        for name, model, learn in (("untrained", drawn, True), ("frozen", trained, False), ("model", trained, True)):
            said[name] = torch.stack(list(foretold(model, video, learn)))
        for name, prediction in said.items():
            every[name].append(qualities(prediction, target))
            means[name][path.stem] = every[name][-1].mean(0).numpy()
    machine = f"{os.cpu_count()} {platform.machine()} cores, torch {torch.__version__}"
    print(f"`python {' '.join(sys.argv)}`, {datetime.date.today()}, {machine}.\n")
    print("| method | MSE | over repeating | PSNR, dB | SSIM |\n| --- | ---: | ---: | ---: | ---: |")
    total = {name: torch.cat(parts).mean(0).numpy() for name, parts in every.items()}
    for name, (mse, psnr, ssim) in total.items():
        print(f"| {name} | {mse:.3e} | {mse / total['repeating'][0]:.3f} | {psnr:.2f} | {ssim:.4f} |")
    print()
    for name, meaning in METHODS.items():
        print(f"- {name}: {meaning}.")
    print("\nMSE over that of repeating, and PSNR above that of repeating in dB, video by video:\n")
    print(f"| video | frames | {' | '.join(list(METHODS)[1:])} |\n| --- | ---: |{' ---: |' * (len(METHODS) - 1)}")
    for number, path in enumerate(paths):
        base = means["repeating"][path.stem]
        cells = []
        for name in list(METHODS)[1:]:
            row = means[name][path.stem]
            cells.append(f"{row[0] / base[0]:.3f}, {row[1] - base[1]:+.2f}")
        print(f"| {path.stem} | {len(every['model'][number]) + 1} | {' | '.join(cells)} |")


if __name__ == "__main__":
    try:
        main()
    except TTTStreamError as error:
        raise SystemExit(f"prediction: error: {error}") from error
