"""A chart of a whole stream: surprise over time with the most surprising frames, the learned share, and latency."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import OutputError
from tttstream.io.names import shown
from tttstream.io.outputs import OutputFile, saving
from tttstream.sources.base import Event
from tttstream.views.overlay import ALERT, BACKGROUND, CURVE, GRID, MUTED, RGB, TEXT, clock, compress
from tttstream.views.trace import Envelope, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREEN: RGB = (126, 200, 140)
KINDS: tuple[RGB, ...] = ((188, 140, 255), (86, 211, 200), (255, 123, 114), (227, 179, 65))


def _hex(colour: RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


class ChartFile(OutputFile):
    """A PNG file with the chart of one stream. Nothing is written before `draw`."""

    def draw(
        self,
        trace: Trace,
        title: str = "",
        *,
        planted: Sequence[Event] = (),
        detected: Sequence[int] = (),
        threshold: float = 3.0,
    ) -> None:
        """Draw the whole stream. planted: known events; detected: the index of each detected event."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figure = draw_chart(trace, title, planted, detected, threshold)
        with saving(self.path), open(self.part, "wb") as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # a character of a name that no font has
            FigureCanvasAgg(figure).print_png(file)

    def _end(self) -> None:
        if not self.part.exists():
            raise OutputError(f"cannot write {self.path}: no chart was drawn")


def draw_chart(trace: Trace, title: str, planted: Sequence[Event], detected: Sequence[int], threshold: float) -> Figure:
    """The chart as a matplotlib figure, without touching pyplot or any setting of matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), dpi=130, facecolor=_hex(BACKGROUND))
    rows = figure.add_gridspec(
        3, 1, height_ratios=(6, 2, 1.7), left=0.06, right=0.98, top=0.72, bottom=0.05, hspace=0.16
    )
    above = figure.add_subplot(rows[0])
    middle, below = (figure.add_subplot(rows[i], sharex=above) for i in (1, 2))
    labels = ("surprise, σ", "learned, %", "latency, ms")
    for axes, label in zip((above, middle, below), labels, strict=True):
        _dress(axes, label)
    above.set_xlim(*trace.limits())
    _draw_surprise(above, trace, detected, threshold)
    _draw_planted(above, trace, planted)
    _draw_band(middle, trace, trace.learned, GREEN, 100.0)
    _draw_band(below, trace, trace.latency, MUTED, 1.0)
    low, high = np.percentile(100 * trace.learned.curves()[2], (1, 99))  # the first frame would flatten the rest
    middle.set_ylim(min(0.0, 1.2 * float(low)) - 1, max(1.0, 1.2 * float(high)))
    below.set_ylim(0, max(1e-3, 1.6 * float(np.percentile(trace.latency.curves()[2], 98))))
    for axes in (above, middle):
        axes.tick_params(labelbottom=False)
    below.locator_params(axis="y", nbins=2, prune="lower")
    _draw_times(below, trace)
    _draw_highlights(figure, above, trace, threshold)
    # a name may contain any character: two $ must not make a formula, and invalid bytes are replaced
    figure.text(0.06, 0.963, shown(title), color=_hex(TEXT), fontsize=13, va="center", parse_math=False)
    count = f"{trace.frames:,} frame{'' if trace.frames == 1 else 's'}".replace(",", "\u2009")
    figure.text(0.98, 0.963, count, color=_hex(MUTED), fontsize=9.5, va="center", ha="right")
    handles, names = above.get_legend_handles_labels()
    style: dict[str, Any] = {"fontsize": 9, "labelcolor": _hex(MUTED), "frameon": False, "handlelength": 1.2}
    figure.legend(handles, names, loc="center right", bbox_to_anchor=(0.9, 0.963), ncols=len(names), **style)
    return figure


def _dress(axes: Axes, label: str) -> None:
    axes.set_facecolor(_hex(BACKGROUND))
    axes.grid(True, color=_hex(GRID), linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_hex(MUTED), labelsize=8.5, length=0)
    axes.set_ylabel(label, color=_hex(MUTED), fontsize=9)
    axes.yaxis.set_label_coords(-0.036, 0.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_times(axes: Axes, trace: Trace) -> None:
    """Times under the chart: of each frame in a short run, otherwise round times with enough digits to differ."""
    if trace.short:
        names = [
            f"frame {trace.first_index + number} · {clock(time_s, 2)}" for number, time_s in enumerate(trace.times)
        ]
        axes.set_xticks(range(trace.frames), names)
        return
    first, last = trace.limits()
    axes.locator_params(axis="x", nbins=10, steps=[1, 2, 5, 10])
    places = max(1, math.ceil(-math.log10((last - first) / 10)))
    axes.xaxis.set_major_formatter(lambda value, _: clock(value, places) if value % 1 else clock(value)[:-2])


def _marker(trace: Trace) -> dict[str, Any]:
    """The marker of frames in a short run, because a line through one or two of them is hardly visible."""
    return {"marker": "o", "markersize": 5} if trace.short else {}


def _draw_band(axes: Axes, trace: Trace, envelope: Envelope, colour: RGB, factor: float) -> None:
    numbers, low, mean, high = envelope.curves()
    along = trace.along(numbers)
    if envelope.width > 1:
        axes.fill_between(along, low * factor, high * factor, color=_hex(colour), alpha=0.25, linewidth=0)
    axes.plot(along, mean * factor, color=_hex(colour), linewidth=1.0, **_marker(trace))


def _draw_surprise(axes: Axes, trace: Trace, detected: Sequence[int], threshold: float) -> None:
    numbers, _, mean, high = trace.surprise.curves()
    along = trace.along(numbers)
    if trace.surprise.width > 1:
        axes.fill_between(along, mean, high, color=_hex(CURVE), alpha=0.35, linewidth=0)
        axes.plot(along, high, color=_hex(CURVE), linewidth=0.7, alpha=0.8)  # a peak is narrower than a pixel
    axes.fill_between(along, mean, 0, color=_hex(CURVE), alpha=0.14, linewidth=0)
    axes.plot(along, mean, color=_hex(CURVE), linewidth=1.2, **_marker(trace))
    axes.axhline(threshold, color=_hex(ALERT), linewidth=0.9, linestyle=(0, (4, 3)))
    knee = 2 * threshold
    axes.set_yscale("function", functions=(partial(compress, knee=knee), partial(expand, knee=knee)))
    top = max(knee, 1.2 * float(high.max()))
    axes.set_ylim(max(-4.0, float(mean.min()) - 0.5), top)
    decades = [step * 10**power for power in range(1, 7) for step in (1, 3)]
    axes.set_yticks([0, threshold, *(value for value in decades if knee < value < top)])
    axes.yaxis.set_major_formatter("{x:g}")
    if detected:
        places = [trace.place_of(index) for index in detected]
        axes.plot(places, [top] * len(places), "v", color=_hex(ALERT), markersize=5, clip_on=False, label="detected")


def expand(height: NDArray[np.generic], knee: float) -> NDArray[np.float64]:
    """The surprise that `compress` puts at a height."""
    return np.minimum(height, knee) * np.exp(np.maximum(np.asarray(height, np.float64) / knee - 1, 0))


def _draw_planted(axes: Axes, trace: Trace, planted: Sequence[Event]) -> None:
    top = 1.0 if len(planted) <= 40 else 0.06  # many of them would hide the curve: a rug under it
    for number, kind in enumerate(dict.fromkeys(event.kind for event in planted)):
        colour = _hex(KINDS[number % len(KINDS)])
        spans = [(trace.place_of(e.start), trace.place_of(e.stop)) for e in planted if e.kind == kind]
        bars = [(start, stop - start) for start, stop in spans]
        place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "color": colour}
        axes.broken_barh(bars, (0, top), alpha=0.22, linewidth=0, label=f"planted {kind}", **place)
        axes.vlines([start for start, _ in bars], 0, top, alpha=0.8, linewidth=0.8, **place)


def _draw_highlights(figure: Figure, axes: Axes, trace: Trace, threshold: float) -> None:
    from matplotlib.patches import ConnectionPatch

    moments = trace.highlights.in_order(trace.frames, threshold)
    tall, gap = 0.165, 0.008
    wide = tall * figure.get_figheight() / figure.get_figwidth()
    box, (first, last) = axes.get_position(), axes.get_xlim()
    feet = [float(trace.along(np.array([moment.frame], np.float32))[0]) for moment in moments]
    centres = [box.x0 + (foot - first) / (last - first) * box.width for foot in feet]
    for i in range(len(centres)):  # push neighbours apart to the right, then back from the right edge
        centres[i] = max(centres[i], centres[i - 1] + wide + gap if i else box.x0 + wide / 2)
    for i in reversed(range(len(centres))):
        limit = centres[i + 1] - wide - gap if i + 1 < len(centres) else box.x1 - wide / 2
        centres[i] = min(centres[i], limit)
    for moment, centre, place in zip(moments, centres, feet, strict=True):
        thumb = figure.add_axes((centre - wide / 2, 0.77, wide, tall))
        thumb.imshow(moment.picture, interpolation="bilinear")
        thumb.set(xticks=(), yticks=())
        for spine in thumb.spines.values():
            spine.set_color(_hex(GRID))
        foot = (place, axes.get_ylim()[1])
        line: dict[str, Any] = {"color": _hex(MUTED), "linewidth": 0.7, "alpha": 0.8}
        figure.add_artist(ConnectionPatch((0.5, 0), foot, thumb.transAxes, axes.transData, **line))
