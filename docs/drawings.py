"""The drawings of the concept pages: `python docs/drawings.py` writes docs/drawings/*.svg, the same bytes each time."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from tttstream.streams import Normaliser

INK, MUTED, LINE = "#1f2430", "#6b7280", "#c3c8d1"
MEMORY, STATE, TOKEN, OUTPUT, ALERT = "#4656b5", "#d97706", "#0f766e", "#7c3aed", "#c2410c"
PALE = {MEMORY: "#e4e7f8", STATE: "#fdecd2", TOKEN: "#d5efec", OUTPUT: "#ebe1fc", ALERT: "#fbe0d4", LINE: "#eef0f3"}


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose data units are tenths of an inch."""
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 10 * width)
    axes.set_ylim(0, 10 * height)
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str = "", colour: str = MEMORY) -> None:
    """A box with its lower left corner at (x, y)."""
    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.7",
            facecolor=PALE[colour],
            edgecolor=colour,
            linewidth=1.3,
        )
    )
    word(axes, x + width / 2, y + height / 2, text, colour if colour != LINE else MUTED)


def word(axes: Axes, x: float, y: float, text: str, colour: str = INK, size: float = 10, align: str = "center") -> None:
    """Text whose middle is at the height y."""
    axes.text(x, y, text, color=colour, fontsize=size, ha=align, va="center", linespacing=1.35)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = MUTED, bend: float = 0.0
) -> None:
    """An arrow from one point to another."""
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11}
    axes.annotate("", end, start, arrowprops={**style, "connectionstyle": f"arc3,rad={bend}"})


def draw_state() -> Figure:
    """One stream in three calls."""
    figure, axes = canvas(8, 3.0)
    cells = [(12, "37 tokens", "x[:, :37]"), (35, "1 token", "x[:, 37:38]"), (58, "62 tokens", "x[:, 38:]")]
    box(axes, 1, 12.5, 6, 5, "zeros", STATE)
    left = 7.0
    for number, (x, tokens, code) in enumerate(cells):
        box(axes, x, 11, 13, 8, "memory\n(same weights)", MEMORY)
        arrow(axes, (left, 15), (x, 15), STATE)
        arrow(axes, (x + 6.5, 7), (x + 6.5, 11), TOKEN)
        arrow(axes, (x + 6.5, 19), (x + 6.5, 23), OUTPUT)
        word(axes, x + 6.5, 5.2, f"{code}\n{tokens}", TOKEN)
        word(axes, x + 6.5, 24.6, "y", OUTPUT)
        left = x + 13
        if number:
            word(axes, x - 5, 17, "state", STATE)
    arrow(axes, (71, 15), (78, 15), STATE)
    word(axes, 74.5, 17, "state", STATE)
    word(axes, 40, 28, "The state goes in and comes out. It has the same size after 1 token and after 1,000,000.", INK)
    word(axes, 40, 1.3, "Another split of the same stream gives the same outputs and the same final state.", MUTED, 9)
    return figure


def draw_reset() -> Figure:
    """Two rows of a batch: one with a reset inside, one that is padded."""
    figure, axes = canvas(8, 2.9)
    word(axes, 40, 27, "x, reset: [B, T]     lengths: [B]", INK, 10.5)

    def tokens(y: float, colours: list[str], letters: list[str]) -> None:
        for i, (colour, letter) in enumerate(zip(colours, letters, strict=True)):
            box(axes, 15 + 6.2 * i, y, 5.2, 4.6, letter, colour)

    word(axes, 13.5, 20.3, "row 0", INK, 10, "right")
    tokens(18, [TOKEN] * 4 + [OUTPUT] * 4, [f"a{i}" for i in range(1, 5)] + [f"b{i}" for i in range(1, 5)])
    axes.plot([39.3, 39.3], [16.2, 24.4], color=ALERT, linewidth=1.6)
    word(axes, 66, 20.3, "reset[0, 4] = True:\nb1 starts from a\nfresh state", ALERT, 9, "left")
    word(axes, 13.5, 9.3, "row 1", INK, 10, "right")
    tokens(7, [TOKEN] * 3 + [LINE] * 5, [f"c{i}" for i in range(1, 4)] + ["pad"] * 5)
    word(axes, 66, 9.3, "lengths[1] = 3:\nthe state is the one\nafter c3", MUTED, 9, "left")
    word(axes, 40, 2.2, "Each row gives what it gives alone. A NaN in one row stays in that row.", MUTED, 9)
    return figure


def draw_chunk() -> Figure:
    """Token mode and frame mode."""
    figure, axes = canvas(8, 4.3)
    word(axes, 1.5, 40.5, 'causal="token", mini_batch=4', INK, 10.5, "left")
    for chunk in range(2):
        x = 8 + 31 * chunk
        box(axes, x - 6, 28.5, 4.6, 5, f"W{'₀₁₂'[chunk]}", STATE)
        for i in range(4):
            box(axes, x + 6.1 * i, 28.5, 5.2, 5, f"x{'₁₂₃₄₅₆₇₈'[4 * chunk + i]}", TOKEN)
        axes.plot([x, x + 23.5], [35.2, 35.2], color=MEMORY, linewidth=1.4)
        word(axes, x + 11.7, 37, f"chunk {chunk + 1}: gradients at W{'₀₁₂'[chunk]}", MEMORY, 9)
    box(axes, 64, 28.5, 4.6, 5, "W₂", STATE)
    word(axes, 70, 31, "…", MUTED, 12, "left")
    word(axes, 8, 25.5, "x₃ reads W₀ − (step of x₁, x₂, x₃)", TOKEN, 9, "left")
    word(axes, 8, 22.9, "After a full chunk the steps of all four become W₁.", MUTED, 9, "left")
    axes.plot([1.5, 78.5], [20.3, 20.3], color=LINE, linewidth=1)
    word(axes, 1.5, 17.7, 'causal="frame", grid=(2, 3)', INK, 10.5, "left")
    for frame in range(2):
        x = 8 + 31 * frame
        box(axes, x - 6, 8, 4.6, 5, f"W{'₀₁₂'[frame]}", STATE)
        for row in range(2):
            for column in range(3):
                axes.add_patch(
                    Rectangle(
                        (x + 4 * column, 6.6 + 4 * row),
                        3.6,
                        3.6,
                        facecolor=PALE[TOKEN],
                        edgecolor=TOKEN,
                        linewidth=1.2,
                    )
                )
        arrow(axes, (x + 12.6, 10.5), (x + 18, 10.5), MEMORY)
        word(axes, x + 15.2, 12.6, "learn", MEMORY, 9)
        word(axes, x + 5.8, 4.4, f"frame {frame + 1}", TOKEN, 9)
    box(axes, 64, 8, 4.6, 5, "W₂", STATE)
    word(axes, 70, 10.5, "…", MUTED, 12, "left")
    word(axes, 8, 1.6, "A frame is one chunk: all its tokens are learned, then all of them are read.", MUTED, 9, "left")
    return figure


def draw_inner() -> Figure:
    """What one token does to the inner model."""
    figure, axes = canvas(8, 3.7)
    box(axes, 2, 16, 8, 6, "token x", TOKEN)
    for y, name, role in ((28, "k", "training view"), (16, "v", "label view"), (4, "q", "test view")):
        arrow(axes, (10, 19), (17, y + 3), MUTED)
        box(axes, 17, y, 12, 6, f"{name}\n{role}", TOKEN)
    box(axes, 37, 28, 12, 6, "f(k; W)", MEMORY)
    box(axes, 37, 4, 12, 6, "f(q; W′)", MEMORY)
    arrow(axes, (29, 31), (37, 31), MUTED)
    arrow(axes, (29, 7), (37, 7), MUTED)
    box(axes, 56, 22, 21, 7, "loss = ½ |f(k; W) − v|²", ALERT)
    arrow(axes, (49, 31), (56, 27.5), MUTED)
    arrow(axes, (29, 19), (56, 23.6), MUTED)
    box(axes, 56, 12.5, 21, 6, "W′ = W − η · gradient", STATE)
    arrow(axes, (66.5, 22), (66.5, 18.5), STATE)
    arrow(axes, (56, 14), (47, 10), STATE)
    box(axes, 56, 4, 8, 6, "y", OUTPUT)
    arrow(axes, (49, 7), (56, 7), OUTPUT)
    word(axes, 66, 32.5, "learn", ALERT, 10.5)
    word(axes, 70.5, 7, "read", OUTPUT, 10.5)
    return figure


def draw_surprise() -> Figure:
    """The library's own scale on a made-up loss: it falls, and jumps twice."""
    frames = np.arange(300)
    noise = np.random.default_rng(0).normal(0, 0.012, 300)
    loss = np.exp(-1.1 + 0.9 * np.exp(-frames / 60) + noise)
    loss[150:] *= 1 + 0.45 * np.exp(-(frames[150:] - 150) / 12)
    loss[230:] *= 1 + 0.12 * np.exp(-(frames[230:] - 230) / 6)
    scale = Normaliser()
    scores, expected = [], []
    for value in loss:
        expected.append(np.exp(scale.level + scale.slope))
        scores.append(scale.push(float(value)))
    figure = Figure(figsize=(8, 3.6), facecolor="white")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(frames, loss, color=MEMORY, linewidth=1.3, label="loss of the frame before it is learned")
    above.plot(frames[8:], expected[8:], color=STATE, linewidth=1.2, linestyle="--", label="expected: level and trend")
    above.set_ylabel("loss")
    above.legend(frameon=False, fontsize=9, loc="upper right")
    below.plot(frames, scores, color=MEMORY, linewidth=1.2)
    below.axhline(3, color=ALERT, linestyle="--", linewidth=1)
    below.text(298, 3.9, "event", color=ALERT, fontsize=9, ha="right", va="bottom")
    below.set_ylabel("surprise, σ")
    below.set_xlabel("frame")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    figure.subplots_adjust(0.08, 0.14, 0.99, 0.97, hspace=0.18)
    return figure


def draw_map() -> Figure:
    """Learning what is where, and asking for a place."""
    figure, axes = canvas(8, 3.5)
    word(axes, 2, 32, "learn", ALERT, 10.5, "left")
    word(axes, 2, 14.5, "ask", OUTPUT, 10.5, "left")
    box(axes, 2, 22.5, 13, 4.6, "its pose", TOKEN)
    box(axes, 2, 17, 13, 4.2, "frame", TOKEN)
    box(axes, 23, 19.5, 17, 8, "tokens:\nwhere → what", TOKEN)
    arrow(axes, (15, 25), (23, 24.5), MUTED)
    arrow(axes, (15, 19.1), (23, 22), MUTED)
    box(axes, 49, 11.5, 13, 13, "memory\n(weights of\na small MLP)", STATE)
    arrow(axes, (40, 23.5), (49, 20.5), ALERT)
    box(axes, 2, 6, 13, 6, "any pose", OUTPUT)
    box(axes, 23, 6, 17, 6, "tokens: where → ?", OUTPUT)
    arrow(axes, (15, 9), (23, 9), MUTED)
    arrow(axes, (40, 9), (49, 14.5), OUTPUT)
    box(axes, 67, 18.5, 11, 6, "expected\npicture", OUTPUT)
    box(axes, 67, 11, 11, 6, "familiar\n0 to 1", OUTPUT)
    arrow(axes, (62, 19.5), (67, 21.5), OUTPUT)
    arrow(axes, (62, 15.5), (67, 14), OUTPUT)
    word(
        axes,
        40,
        2,
        "Asking changes nothing. The expected picture of a frame is asked before the frame is learned.",
        MUTED,
        9,
    )
    return figure


DRAWINGS: dict[str, Callable[[], Figure]] = {
    "state": draw_state,
    "reset": draw_reset,
    "chunk": draw_chunk,
    "inner": draw_inner,
    "surprise": draw_surprise,
    "map": draw_map,
}


def main() -> None:
    """Write all drawings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "drawings")
    parser.add_argument("--png", action="store_true", help="write PNG files instead, to look at")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "tttstream", "font.family": "DejaVu Sans"}):
        for name, draw in DRAWINGS.items():
            if args.png:
                FigureCanvasAgg(draw()).print_figure(args.out / f"{name}.png", dpi=110)
            else:
                FigureCanvasSVG(draw()).print_svg(args.out / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
