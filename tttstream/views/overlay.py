"""The overlay: the frame with the surprise map over it, and the numbers and a scrolling curve below it."""

import math
from collections import deque
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tttstream.frames import Label, Result

RGB = tuple[int, int, int]
Picture = NDArray[np.uint8]

BACKGROUND: RGB = (13, 17, 23)
GRID: RGB = (38, 44, 54)
TEXT: RGB = (230, 237, 243)
MUTED: RGB = (139, 148, 158)
CURVE: RGB = (88, 166, 255)
ALERT: RGB = (255, 166, 87)
OUTLINE: RGB = (250, 250, 160)

COLUMNS = 5
LABELS = 3  # largest number of shown classes
BAR: RGB = (40, 86, 140)
STRIP = 46  # height of the row of numbers, px
PANEL = 92  # height of the curve, px


@lru_cache(maxsize=8)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font at a size in pixels."""
    return ImageFont.load_default(size)


def to_uint8(image: NDArray[np.generic]) -> Picture:
    """An image [H, W, 3] of uint8 or of float 0..1 as uint8."""
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image, dtype=np.uint8)
    return np.ascontiguousarray(np.clip(np.nan_to_num(image.astype(np.float32)), 0, 1) * 255, dtype=np.uint8)


def fit(image: Picture, height: int, width: int) -> Picture:
    """Resize by whole factors as far as possible (fast, without aliasing), then to the exact size."""
    factor = min(image.shape[0] // height, image.shape[1] // width)
    if factor > 1:
        tall, wide = image.shape[0] // factor, image.shape[1] // factor
        whole = image[: tall * factor, : wide * factor]
        image = np.asarray(cv2.resize(whole, (wide, tall), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    method = cv2.INTER_CUBIC if height > image.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), dtype=np.uint8)


def compress(surprise: NDArray[np.generic], knee: float) -> NDArray[np.float64]:
    """The height at which a surprise is drawn: linear up to the knee and logarithmic above, so that the rest stays
    visible after a cut of a hundred deviations."""
    beyond = np.maximum(np.asarray(surprise, np.float64), knee)
    return np.minimum(surprise, knee) + knee * np.log(beyond / knee)


def clock(seconds: float, places: int = 1) -> str:
    """m:ss.t, with hours if there are any. places: digits after the point, at least 1."""
    unit = 10**places
    minutes, parts = divmod(round(seconds * unit), 60 * unit)
    hours, minutes = divmod(minutes, 60)
    rest = f"{parts / unit:0{places + 3}.{places}f}"
    return f"{hours}:{minutes:02}:{rest}" if hours else f"{minutes}:{rest}"


def size_text(count: int) -> str:
    """Bytes for people: 1.2 MB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def shortened(text: str, width: float, size: int) -> str:
    """A text on one line, cut to a width in pixels."""
    text = " ".join(text.split())
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


class HeatLayer:
    """Converts surprise maps to a translucent layer; usual values of this stream are transparent.

    low, high: the values at which the layer becomes visible and has its full opacity, in deviations of the patch losses
    above their median; both statistics are tracked over about the last fifty frames.
    """

    def __init__(self, low: float = 2.0, high: float = 8.0, opacity: float = 0.65) -> None:
        self.low, self.high = low, high
        alpha = opacity * np.linspace(0, 1, 256)[:, None, None]
        palette = np.linspace(100, 255, 256).astype(np.uint8)[:, None]
        colour = cv2.cvtColor(cv2.applyColorMap(palette, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
        self._light = (colour * alpha).astype(np.uint8)[:, 0]
        self._clear = np.repeat(255 - 255 * alpha, 3, axis=2).astype(np.uint8)[:, 0]
        self._frames = 0
        self._usual = self._spread = 0.0

    def over(self, region: Picture, surprise_map: NDArray[np.float32]) -> None:
        """Draw the map [h, w] over a region [H, W, 3], in place."""
        values = np.nan_to_num(surprise_map.astype(np.float32))
        usual, high = np.percentile(values, (50, 84))
        self._frames += 1
        weight = max(1 / self._frames, 1 / 50)
        self._usual += weight * (float(usual) - self._usual)
        self._spread += weight * (float(high - usual) - self._spread)
        level = ((values - self._usual) / max(self._spread, 1e-12) - self.low) / (self.high - self.low)
        index = (np.clip(level, 0, 1) * 255).astype(np.uint8)
        if index.any():
            size = region.shape[1], region.shape[0]
            cv2.multiply(region, cv2.resize(self._clear[index], size), dst=region, scale=1 / 255)
            cv2.add(region, cv2.resize(self._light[index], size), dst=region)
            _, inside = cv2.threshold(cv2.resize(index, size), 96, 255, cv2.THRESH_BINARY)
            outlines, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
            cv2.drawContours(region, outlines, -1, OUTLINE, 1, cv2.LINE_AA)


class Overlay:
    """Draws one picture [height, width, 3] uint8 for each frame, always in the size of the first.

    threshold: the surprise from which a frame counts as an event. width: of the picture, px. history: frames on the
    curve. Its memory is constant: one canvas, the last values of the curve and the statistics of the map.
    """

    def __init__(self, threshold: float = 3.0, width: int = 480, history: int = 240) -> None:
        self.threshold, self.width = threshold, width - width % 2
        self._curve: deque[float] = deque(maxlen=history)
        self._events: deque[int] = deque(maxlen=history)
        self._heat = HeatLayer()
        self._seen = 0
        self._top = 2 * threshold
        self._height = 0
        self._canvas: Picture | None = None
        self._labels: Picture | None = None

    def draw(
        self,
        image: NDArray[np.generic],
        result: Result,
        *,
        event: bool = False,
        fps: float | None = None,
        state_bytes: int | None = None,
        note: str = "",
    ) -> Picture:
        """The picture for a frame. The next call draws into the same array, so copy it to keep it.

        event: mark the frame on the curve. fps: the speed, for live display; without it the frame's index is shown, so
        that a recording is reproducible bit for bit. note: a word in the picture's corner ("paused").
        """
        frame = to_uint8(image)
        if self._canvas is None:
            self._height = self._tall(frame)
            self._canvas = np.empty((self._height + STRIP + PANEL, self.width, 3), dtype=np.uint8)
        self._seen += 1
        self._curve.append(result.surprise if math.isfinite(result.surprise) else 0.0)
        if event:
            self._events.append(self._seen)
        canvas = self._canvas
        self._draw_top(canvas[: self._height], frame, result, note)
        self._draw_numbers(canvas[self._height : self._height + STRIP], result, fps, state_bytes)
        self._draw_curve(canvas[self._height + STRIP :])
        return canvas

    def _tall(self, frame: Picture) -> int:
        """The height of the part above the numbers, px."""
        tall = round(self.width * frame.shape[0] / frame.shape[1])
        return int(max(160, min(tall, self.width)) // 2 * 2)

    def _draw_top(self, area: Picture, frame: Picture, result: Result, note: str) -> None:
        """Draw the part above the numbers."""
        self._draw_frame(area, frame, result, note)

    def _draw_frame(self, area: Picture, frame: Picture, result: Result, note: str) -> None:
        height, width = frame.shape[:2]
        scale = min(area.shape[0] / height, area.shape[1] / width)
        fitted = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = (area.shape[0] - fitted[0]) // 2, (area.shape[1] - fitted[1]) // 2
        inside = area[top : top + fitted[0], left : left + fitted[1]]
        if inside.shape != area.shape:
            cv2.rectangle(area, (0, 0), (area.shape[1], area.shape[0]), BACKGROUND, cv2.FILLED)
        inside[:] = fit(frame, *fitted)
        self._heat.over(inside, result.surprise_map)
        if result.surprise > self.threshold:
            cv2.rectangle(area, (1, 1), (area.shape[1] - 2, area.shape[0] - 2), ALERT, 2)
        if result.labels:
            self._draw_labels(area, result.labels[:LABELS])
        if note:
            self._write(area[8:30, 10 : 20 + 9 * len(note)], [(4, 2, note, 14, TEXT)])

    def _draw_labels(self, area: Picture, labels: Sequence[Label]) -> None:
        """Draw the most probable classes in the lower left corner, each with a bar of the length of its probability."""
        width, height = min(area.shape[1] - 20, 220), 20
        top = area.shape[0] - 8 - height * len(labels)
        board = area[top : top + height * len(labels), 10 : 10 + width]
        board //= 4
        texts: list[tuple[float, float, str, int, RGB]] = []
        for place, (name, probability) in enumerate(labels):
            y = place * height
            cv2.rectangle(board, (0, y + 1), (round(probability * (width - 1)), y + height - 2), BAR, cv2.FILLED)
            texts += [
                (6, y + 2, shortened(name, width - 60, 13), 13, TEXT),
                (width - 44, y + 2, f"{100 * probability:.0f} %", 13, TEXT),
            ]
        self._write(board, texts)

    def _write(self, area: Picture, texts: list[tuple[float, float, str, int, RGB]]) -> None:
        board = Image.fromarray(area)
        draw = ImageDraw.Draw(board)
        for x, y, text, size, colour in texts:
            draw.text((x, y), text, fill=colour, font=font(size))
        area[:] = np.asarray(board)

    def _draw_numbers(self, area: Picture, result: Result, fps: float | None, state_bytes: int | None) -> None:
        texts = [
            ("time", clock(result.time_s)),
            ("surprise", f"{result.surprise:+.1f}"),
            ("learned", f"{100 * result.learned:.0f} %")
            if result.familiar is None
            else ("familiar", f"{100 * result.familiar:.0f} %"),
            ("frame", str(result.index)) if fps is None else ("speed", f"{fps:.0f} fps"),
            ("memory", "-" if state_bytes is None else size_text(state_bytes)),
        ]
        if self._labels is None:
            self._labels = np.full_like(area, BACKGROUND)
            self._write(self._labels, [(self._column(i), 6, label, 11, MUTED) for i, (label, _) in enumerate(texts)])
        area[:] = self._labels
        colours = [ALERT if label == "surprise" and result.surprise > self.threshold else TEXT for label, _ in texts]
        values = zip([value for _, value in texts], colours, strict=True)
        self._write(area[20:40], [(self._column(i), 1, text, 16, colour) for i, (text, colour) in enumerate(values)])

    def _column(self, index: int) -> float:
        return 12 + index * (self.width - 12) / COLUMNS

    def _draw_curve(self, area: Picture) -> None:
        height, width = area.shape[0] - 8, area.shape[1]
        values = compress(np.array([0.0, self.threshold, *self._curve]), 2 * self.threshold)
        wanted = max(2 * self.threshold, 1.1 * float(values.max()))
        self._top += (wanted - self._top) * (1.0 if wanted > self._top else 0.05)
        bottom = -2.0
        shares = (np.clip(values, bottom, self._top) - bottom) / (self._top - bottom)
        zero, limit, *ys = np.round(4 + (1 - shares) * (height - 4)).astype(int).tolist()
        step = (width - 24) / (self._curve.maxlen or 1)
        xs = [round(12 + i * step) for i in range(len(ys))]
        points = np.array([xs, ys], dtype=np.int32).T
        cv2.rectangle(area, (0, 0), (width, area.shape[0]), BACKGROUND, cv2.FILLED)
        cv2.line(area, (12, zero), (width - 12, zero), GRID, 1)
        floor = np.array([(xs[-1], height), (xs[0], height)], dtype=np.int32)
        cv2.fillPoly(area, [np.concatenate([points, floor])], (24, 42, 66), cv2.LINE_AA)
        for mark in self._events:
            age = self._seen - mark
            if age < len(xs):
                x = xs[-1 - age]
                cv2.line(area, (x, 4), (x, height), (96, 66, 40), 1)
                cv2.circle(area, (x, 4), 3, ALERT, -1, cv2.LINE_AA)
        cv2.polylines(area, [points], False, CURVE, 1, cv2.LINE_AA)
        for x in range(12, width - 12, 8):
            cv2.line(area, (x, limit), (x + 3, limit), ALERT, 1)
