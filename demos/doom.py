"""First-person worlds of a game: does a memory recall the views of a place in a Doom map long after the camera left it?

    python demos/revisit.py --only ttt_mlp_longer --rates 3e-4 --seeds 1 --keep out/revisit
    python demos/doom.py --weights out/revisit/ttt_mlp_longer-0.0003-0.pt              # as it is
    python demos/doom.py --weights out/revisit/ttt_mlp_longer-0.0003-0.pt --steps 200  # after training on other maps

The worlds are the maps of Freedoom in ViZDoom (pip install vizdoom). A camera moves between waypoints 128 map units
apart, on shortest paths to random goals, and turns by quarters; each view is one token. A view is a picture of 40 x 30
pixels (code: 32 whitened principal components). Its pose is x, y and one of four headings; each heading has its own
plane. The network is that of demos/revisit.py, trained on tiles of photographs. It predicts the next view, and every 32
tokens some views that were last seen at least 64 tokens ago. One map in four is used for the measurement; the other
maps give the components and the data of further training. In a second measurement, things of the game are placed. While
they are out of sight one of them is exchanged, removed or added. The question is whether the error rises when the place
is seen again.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from doom_play import ASKED, KINDS, play
from doom_views import LENGTH, ROWS, SIDE, Album, Codes, cells, train
from doom_walks import HEIGHT, WIDTH
from numpy.typing import NDArray
from revisit import Network
from runs import publish
from tile_walks import CODES
from torch import Tensor
from tqdm import tqdm

from tttstream.errors import DependencyError
from tttstream.evaluation.detection import Baselines, auroc

try:
    import doom_world as doom
except DependencyError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)

SIDES = (SIDE // 2, 3 * SIDE // 4, SIDE)  # steps a side of the worlds that are measured
FEWEST = SIDE * SIDE // 2  # waypoints that the largest world of a map must have to be measured
AGES = (1, 8, 64, 256, 1024)
MINUTE = 30 * 60  # views
FROZEN, PLACE = "memory, frozen", "last view of the pose"
OTHERS = ("mean view", "previous view", PLACE)
SCORES = (PLACE, "frame difference", "MOG2")
Run = dict[str, NDArray[Any]]


def played(folder: Path, index: int, world: doom.World, side: int, tokens: int, changes: bool) -> Run:
    """A patrol in a map of MAPS, read from its file in a folder if the file exists."""
    wad, name = doom.MAPS[index]
    file = folder / f"{name}-{side}-{tokens}{'-changes' if changes else ''}.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part.npz")
        with doom.Game(wad, name) as game:
            np.savez(part, **play(game, world, side, tokens, changes, index))
        part.replace(file)
    with np.load(file) as kept:
        return {key: kept[key] for key in kept.files}


@torch.no_grad()
def follow(model: Network, codes: Codes, run: Run, frozen: bool = False) -> tuple[Tensor, Tensor, float]:
    """The predictions [T, CODES] of a patrol's tokens before each is seen (the first is 0), the answers to its queries,
    and the time a token in ms."""
    seen, where = codes.code(run["picture"])[None], cells(run["pose"], run["corner"])[None]
    following = torch.cat([where[:, 1:], where[:, -1:]], 1)
    asked = cells(run["asked_pose"].reshape(-1, 3), run["corner"])[None]
    answers, replies = [torch.zeros(1, 1, CODES)], [torch.zeros(1, 0, CODES)]
    state, took = model.init_state(1), 0.0
    for begin in range(0, seen.shape[1], ASKED):
        here = slice(begin, begin + ASKED)
        began = time.thread_time()
        if frozen:
            answer = model.read(following[:, here], state)
        else:
            answer, state = model(seen[:, here], where[:, here], following[:, here], state)
        took += time.thread_time() - began
        answers.append(answer[..., :CODES])
        if (now := run["asked_time"] == begin + ASKED).any():
            replies.append(model.read(asked[:, torch.from_numpy(now)], state)[..., :CODES])
    return torch.cat(answers, 1)[0, :-1], torch.cat(replies, 1)[0], 1e3 * took / seen.shape[1]


def otherwise(codes: Codes, run: Run) -> dict[str, tuple[Tensor, Tensor]]:
    """The predictions of the baselines, without a network: of the next views [T, CODES], and of the queried views."""
    seen = codes.code(run["picture"])
    mean = torch.cat([torch.zeros(1, CODES), seen.cumsum(0)[:-1]]) / torch.arange(len(seen)).clamp(min=1)[:, None]
    last: dict[int, int] = {}
    picks: list[int] = []
    for t, view in enumerate(run["view"].tolist()):
        picks.append(last.get(view, 0))
        last[view] = t
    now = torch.from_numpy(run["asked_time"]).long()
    then = now - torch.from_numpy(run["asked_age"]).long()
    previous = torch.cat([seen[:1], seen[:-1]])
    values = (mean, mean[now - 1]), (previous, seen[now - 1]), (seen[picks], seen[then])
    return dict(zip(OTHERS, values, strict=True))


def recall(models: dict[str, Network], codes: Codes, run: Run) -> dict[str, Any]:
    """Sums of squared errors by kind of query ("next", "asked"), age and method, with the spread around the mean view
    and how many; ms a token."""
    said, took = otherwise(codes, run), []
    for name, model in models.items():
        says, replies, ms = follow(model, codes, run)
        said[name] = says, replies
        took.append(ms)
    said[FROZEN] = follow(next(iter(models.values())), codes, run, frozen=True)[:2]
    seen = codes.code(run["picture"])
    truth = seen, codes.code(run["asked_picture"].reshape(-1, HEIGHT, WIDTH, 3))
    sums: dict[str, dict[str, float]] = {}
    for place, (kind, ages) in enumerate((("next", run["age"]), ("asked", run["asked_age"]))):
        spread = (truth[place] - seen.mean(0)).square().mean(-1)
        errors = {name: (says[place] - truth[place]).square().mean(-1) for name, says in said.items()}
        for low, high in zip(AGES, (*AGES[1:], 1 << 60), strict=True):
            mask = torch.from_numpy((ages >= low) & (ages < high))
            found = {name: float(error[mask].sum()) for name, error in errors.items()}
            sums[f"{kind} {low}"] = found | {"spread": float(spread[mask].sum()), "count": int(mask.sum())}
    return {"sums": sums, "ms": float(np.mean(took)), "views": len(np.unique(run["view"]))}


def change(models: dict[str, Network], codes: Codes, run: Run) -> dict[str, Any]:
    """The scores of all revisits without a change or with one, and the kind of change (-1: none)."""
    seen = codes.code(run["picture"])
    said = [follow(model, codes, run)[0] for model in models.values()]
    said += [otherwise(codes, run)[PLACE][0], torch.cat([seen[:1], seen[:-1]])]
    baselines = Baselines()
    mog = torch.tensor([baselines.scores(picture)[1] for picture in run["picture"]]).float()
    counts = torch.from_numpy(run["changed"] > -2)
    scores = torch.stack([*((says - seen).square().mean(-1) for says in said), mog], 1)
    return {"scores": scores[counts].numpy(), "kinds": run["changed"][counts.numpy()]}


def ratio(records: list[dict[str, Any]], key: str, way: str) -> str:
    """Error over the spread around the mean view, over all maps; (n) with fewer than 500 views."""
    sums = [record["sums"][key] for record in records]
    count = sum(one["count"] for one in sums)
    if not count:
        return ""
    value = sum(one[way] for one in sums) / sum(one["spread"] for one in sums)
    return f"{value:.3f}" + (f" ({count})" if count < 500 else "")


def recall_table(records: list[dict[str, Any]], names: list[str]) -> list[str]:
    """Rows of Markdown: worlds by side, query, method and age."""
    head = ["side", "maps", "views", "question", "way", *(f"age ≥ {age}" for age in AGES)]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for side in SIDES:
        mine = [record for record in records if record["side"] == side]
        views = [record["views"] for record in mine]
        for kind, title in (("next", "next"), ("asked", "out of sight")):
            for way in (*names, FROZEN, *OTHERS):
                about = [side, len(mine), f"{min(views)} to {max(views)}", title, way]
                cells = [ratio(mine, f"{kind} {age}", way) for age in AGES]
                lines.append("| " + " | ".join(map(str, [*about, *cells])) + " |")
    return lines


def change_table(records: list[dict[str, Any]], names: list[str]) -> list[str]:
    """A sentence, and rows of Markdown with the detections of each score."""
    scores, kinds = (np.concatenate([record[key] for record in records]) for key in ("scores", "kinds"))
    quiet, hit = scores[kinds < 0], scores[kinds >= 0]
    lines = [
        f"{len(hit)} revisits with a change and {len(quiet)} without one, in worlds of {SIDES[-1]} steps a side."
        " Things of the game, at most one of a kind, are exchanged, removed or added while they are out of sight for at"
        " least 32 tokens. A revisit has a change if exactly one took place there and the thing covers at least 1% of"
        " the view, now or in the visit before."
    ]
    head = ["score", "AUROC", "found at one false alarm a minute", *KINDS]
    lines += ["", "| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for column, name in enumerate((*names, *SCORES)):
        limit = np.quantile(quiet[:, column], 1 - 1 / MINUTE)
        parts = [auroc(scores[kinds == kind, column], quiet[:, column]) for kind in range(len(KINDS))]
        cells = [f"{auroc(hit[:, column], quiet[:, column]):.3f}", f"{(hit[:, column] > limit).mean():.2f}"]
        lines.append("| " + " | ".join([name, *cells, *(f"{part:.3f}" for part in parts)]) + " |")
    return lines


def draw(model: Network, codes: Codes, runs: list[tuple[str, Run]], out: Path) -> None:
    """Draw queried views from late in patrols: the true view, its components, and the predictions of the memory and of
    a frozen memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    titles = ("the view", f"its {CODES} components", "memory says", "frozen memory")
    figure, axes = plt.subplots(len(titles), 2 * len(runs), figsize=(3.2 * len(runs), 5.0), layout="constrained")
    for place, (name, run) in enumerate(runs):
        says, frozen = (follow(model, codes, run, frozen=still)[1] for still in (False, True))
        late = np.flatnonzero(run["asked_time"] > len(run["picture"]) // 2)
        oldest = late[np.argsort(run["asked_age"][late])][-len(late) // 4 :]
        for column, pick in enumerate(np.random.default_rng(0).choice(oldest, 2, replace=False), 2 * place):
            true = run["asked_picture"][pick]
            pictures = true, *(codes.picture(code) for code in (codes.code(true), says[pick], frozen[pick]))
            for row, picture in enumerate(pictures):
                axes[row, column].imshow(picture, interpolation="bicubic")
                axes[row, column].set(xticks=[], yticks=[])
            axes[0, column].set_title(f"{name}, {run['asked_age'][pick]} tokens ago", fontsize=8)
    for row, title in enumerate(titles):
        axes[row, 0].set_ylabel(title, fontsize=8)
    figure.savefig(out.with_suffix(".png"), dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="that demos/revisit.py kept")
    parser.add_argument("--steps", type=int, default=0, help=f"of further training, {ROWS} x {LENGTH} tokens each")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training; call again to continue")
    parser.add_argument("--maps", type=int, default=len(doom.MAPS), help="of the 68, evenly spaced")
    parser.add_argument("--tokens", type=int, default=8192, help="of a stream that is measured")
    parser.add_argument("--held-out", type=int, default=8, help="maps that are measured at most")
    parser.add_argument("--work", type=Path, default=Path("out/doom"), help="a folder for maps, weights and streams")
    parser.add_argument("--out", type=Path, default=Path("docs/results/doom.md"))
    args = parser.parse_args()
    if not args.weights.is_file():
        parser.error(f"--weights {args.weights}: no such file; demos/revisit.py --keep makes one")
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * args.minutes
    args.work.mkdir(parents=True, exist_ok=True)
    chosen = np.unique(np.linspace(0, len(doom.MAPS) - 1, args.maps).astype(int))
    albums = {int(i): doom.surveyed(*doom.MAPS[i], args.work / "maps") for i in tqdm(chosen, "maps", disable=None)}
    albums = {i: album for i, album in albums.items() if len(album.pictures)}
    probe = np.random.default_rng(0)
    held = [i for i, album in albums.items() if i % 4 == 0 and len(album.world.part(probe, SIDE)) >= FEWEST]
    held, others = held[: args.held_out], [album for i, album in albums.items() if i % 4]
    if not held or not others:
        parser.error(f"--maps {args.maps}: of {len(albums)} large ones {len(held)} are for measuring; take more")
    codes = Codes.of(np.concatenate([album.pictures.reshape(-1, HEIGHT, WIDTH, 3) for album in others]))
    models: dict[str, Network] = {}
    for steps in sorted({0, args.steps}):
        kept = args.work / f"network-{args.maps}-{steps}.pt"
        model = train(args.weights, [Album(a.world, codes.code(a.pictures)) for a in others], steps, kept, end)
        if model is None:
            sys.exit("time is up during training; the same command continues")
        models[f"memory, {steps} steps more" if steps else "memory"] = model
    records: list[dict[str, Any]] = []
    changes: list[dict[str, Any]] = []
    shown: list[tuple[str, Run]] = []
    for index in tqdm(held, "measuring", disable=None):
        for side in SIDES:
            run = played(args.work / "streams", index, albums[index].world, side, args.tokens, False)
            records.append({"side": side, **recall(models, codes, run)})
            if side == SIDES[0] and len(shown) < 4:
                shown.append((doom.MAPS[index][1], run))
        run = played(args.work / "streams", index, albums[index].world, SIDES[-1], args.tokens, True)
        changes.append(change(models, codes, run))
    draw(list(models.values())[-1], codes, shown, args.out)
    assert __doc__ is not None
    state: Any = model.init_state(1)
    parameters, ms = sum(p.numel() for p in model.parameters()), np.mean([r["ms"] for r in records])
    about = f"{len(held)} maps for measuring ({', '.join(doom.MAPS[i][1] for i in held)}), {len(others)} others for "
    about += f"the components; streams of {args.tokens} tokens; ttt_mlp_longer, {parameters} parameters, "
    about += f"{state.nbytes / 1e3:.0f} kB of state, {ms:.2f} ms a token of "
    about += f"one thread of a CPU; one seed; {time.strftime('%Y-%m-%d')}. `python demos/doom.py --weights "
    about += f"{args.weights.name} --tokens {args.tokens} --held-out {args.held_out} --steps {args.steps}`."
    lines = ["# First-person worlds", "", " ".join(__doc__.split("\n\n")[2].split()), "", about, "", "## Recall", ""]
    lines += [
        "Error divided by the variance of the views, by tokens since this pose was last seen; (n): under 500 views."
    ]
    lines[-1] += " Next: the prediction of the next view. Out of sight: the recall of earlier views.\n"
    lines += [*recall_table(records, list(models)), "", "## Changes", "", *change_table(changes, list(models)), ""]
    lines += [f"![True views and recalled views]({args.out.with_suffix('.png').name})", ""]
    lines += ["Made by `python demos/doom.py`; its first lines have the commands."]
    publish(lines, args.out, quiet=True)


if __name__ == "__main__":
    main()
