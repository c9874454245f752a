"""Generated sequences for mask propagation: objects that move over real frames or photographs, with their masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tttstream.errors import DataError
from tttstream.sources.photographs import NAMES, photograph
from tttstream.sources.video import Video
from tttstream.train.data.clips import Clip, Decoder, GeneratedClip, Numbers, Reader, Shot
from tttstream.train.data.indices import Index, Videos, seeds
from tttstream.train.data.split import cut
from tttstream.train.data.sprites import Floats, Motion, Pixels, Sprite, make_sprite, near, region, smooth, streak

SIZE = 112  # pixels: the default side of the frames
SHORT = 144  # pixels: the default short side of stored frames of videos
RUNS, RUN = 6, 16  # number of stored runs of a video, and number of frames in each


@dataclass(frozen=True)
class ObjectsClip(GeneratedClip):
    """Objects that move over a still picture, a moving view of one, or a real video; the camera moves too.

    Objects are cut out of other pictures along random shapes or along borders in the picture. They bend, rotate, grow,
    change their light, occlude each other, and some have similar colours; or the object is a region of the background.
    Masks number the tracked objects 1, 2 … A frame depends only on the seed and its number.

    seed: of the scene. size: side of the square frames in pixels. frames: length. objects: the largest number of
    tracked objects. videos: files whose frames are used in addition to the photographs of scikit-image. unrest: the
    amount of additional changes, from 0 to 1: objects change their proportions and colours, the camera shakes and
    blurs. The scene of a seed is the same for each unrest. short: short side in pixels of stored frames of videos;
    larger frames are blurred. lost: the share of scenes in which an object is out of view for some time.
    """

    masked: bool = True
    size: int = SIZE
    frames: int = 12
    objects: int = 2
    videos: tuple[str, ...] = ()
    unrest: float = 0.0
    short: int = SHORT
    lost: float = 0.0

    def open(self, decoder: Decoder) -> Reader:
        return _ObjectsReader(self)


@dataclass
class MovingObjects(Index):
    """Generated sequences of moving objects, generated on demand; see ObjectsClip.

    count: the number of sequences. frames: length of each. size: side in pixels, by default that of the data. objects:
    the largest number of tracked objects. folders: folders of videos, or video files, whose frames are used in addition
    to photographs; None for photographs only. part: of the videos, "train", "test" or "all"; the name of a video
    decides, see `split`. seed: of the first; the others have the next seeds. unrest, short, lost: see ObjectsClip.
    """

    count: int = 100_000
    frames: int = 12
    size: int | None = None
    objects: int = 2
    folders: list[str] | None = None
    part: str = "all"
    seed: int = 0
    unrest: float = 0.0
    short: int = SHORT
    lost: float = 0.0

    def clips(self) -> list[Clip]:
        size = SIZE if self.size is None else self.size
        numbers = {"frames": self.frames, "size": size, "objects": self.objects, "short": self.short}
        found = seeds("objects", self.seed, self.count, **numbers)
        for name in ("unrest", "lost"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"objects: {name} must lie between 0 and 1, got {getattr(self, name)}")
        videos = tuple(clip.name for clip in self._videos())
        options: dict[str, Any] = {**numbers, "videos": videos, "unrest": self.unrest, "lost": self.lost}
        return [ObjectsClip(f"objects {seed}", seed=seed, **options) for seed in found]

    def sized(self, size: int) -> MovingObjects:
        if self.size not in (None, size):
            raise DataError(
                f"objects: drawn at {self.size} pixels for data of {size}; leave size out, "
                f"or set --model.size={self.size}"
            )
        return replace(self, size=size)

    def _videos(self) -> Sequence[Clip]:
        if self.part not in ("train", "test", "all"):
            raise DataError(f"objects: part is {self.part!r}, expected train, test or all")
        if self.folders is None:
            return []
        videos = Videos(self.folders).clips()
        if self.part == "all":
            return videos
        return cut(videos, (0.85, 0.15))[self.part == "test"]


class _ObjectsReader(Reader):
    def __init__(self, clip: ObjectsClip) -> None:
        self.frames = clip.frames
        for attempt in range(20):
            rng = np.random.Generator(np.random.PCG64([clip.seed, attempt, 77]))
            self._scene = Scene(rng, clip.frames, clip.size, clip.videos, clip.short)
            if self._scene.choose(rng, clip.objects):
                self._scene.stir(clip.unrest)
                self._scene.lose(clip.lost)
                return
        raise RuntimeError(f"scene {clip.seed} shows no object in twenty attempts")

    def read(self, indices: Numbers) -> Shot:
        frames, masks = zip(*(self._scene.render(int(t)) for t in indices), strict=True)
        return Shot(np.stack(frames), np.stack(masks))


@lru_cache(maxsize=128)
def runs(path: str, short: int = SHORT) -> list[list[Pixels]]:
    """Several runs of consecutive frames of a video, spread over its length, reduced to `short` pixels."""
    with Video(path) as video:
        known = video.frames or RUNS * RUN
        starts = {int(start) for start in np.linspace(0, max(0, known - RUN), RUNS)}
        found: list[list[Pixels]] = []
        taken = 0
        for number, frame in enumerate(video):
            if number in starts:
                found.append([])
                taken = RUN
            if taken:
                found[-1].append(_reduced(np.asarray(frame.image, np.uint8), short))
                taken -= 1
            elif number > max(starts):
                break
    return found


def _reduced(image: Pixels, short: int) -> Pixels:
    scale = short / min(image.shape[:2])
    size = max(short, round(image.shape[1] * scale)), max(short, round(image.shape[0] * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


@lru_cache(maxsize=len(NAMES))
def _photograph(name: str, short: int) -> Pixels:
    whole = photograph(name)
    scale = 2.2 * short / min(whole.shape[:2])
    return np.asarray(cv2.resize(whole, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)


def pictures(rng: np.random.Generator, videos: Sequence[str], steps: int, short: int = SHORT) -> list[Pixels]:
    """`steps` consecutive pictures of a video, or one photograph repeated."""
    if not videos or rng.random() < 0.2:
        return [_photograph(NAMES[rng.integers(len(NAMES))], short)] * steps
    some = runs(videos[int(rng.integers(len(videos)))], short)
    run = some[rng.integers(len(some))]
    there_and_back = [*run, *run[-2:0:-1]] or run
    start = int(rng.integers(len(there_and_back)))
    return [there_and_back[(start + t) % len(there_and_back)] for t in range(steps)]


class Scene:
    """One sequence: a background under a moving camera, objects, light. `choose` selects the tracked objects."""

    def __init__(
        self, rng: np.random.Generator, steps: int, size: int, videos: Sequence[str], short: int = SHORT
    ) -> None:
        self.size, self.steps = size, steps
        self._seed = int(rng.integers(2**31))
        backdrop = pictures(rng, videos, steps, short)
        if rng.random() < 0.55:
            backdrop = backdrop[:1] * steps  # a still picture: only the camera and the objects move
        self.camera = Motion.draw(rng, steps, size, 0.7, 0.0)
        self.sway = Motion.draw(rng, steps, size, 0.0, float(rng.choice((0.0, 0.0, 1.0))))
        self.part: Floats | None = None  # a region of the background that may be tracked
        if rng.random() < 0.4:
            found = region(rng, backdrop[0], size)
            if found is not None:
                window, alpha = found
                wide = size // 2
                around = np.pad(window, ((wide, wide), (wide, wide), (0, 0)), mode="symmetric")
                backdrop = [around] * steps
                self.part = np.pad(alpha, wide)
        self.backdrop = backdrop
        height, width = backdrop[0].shape[:2]
        zoom = 1.0 if self.part is not None else size / (min(height, width) * rng.uniform(0.5, 1.0))
        spare = np.array([width * zoom - size, height * zoom - size]) / 2
        at = np.zeros(2) if self.part is not None else rng.uniform(-1, 1, 2) * spare
        middle = np.array([width, height]) / 2
        self.view = np.hstack([zoom * np.eye(2), (size / 2 + at - zoom * middle)[:, None]]).astype(np.float32)
        self.sprites: list[Sprite] = []
        for _ in range(int(rng.integers(0 if self.part is not None else 1, 5))):
            like = self.sprites[-1] if self.sprites and rng.random() < 0.3 else None
            made_of = [pictures(rng, videos, 1, short)[0] for _ in range(3)]
            if rng.random() < 0.25:
                made_of[0] = backdrop[0]  # coloured like the background behind it
            self.sprites.append(make_sprite(rng, made_of, steps, size, like))
        self.shadows = rng.random(len(self.sprites)) < 0.3
        self.tracked: dict[int, int] = {}
        self.gain = np.exp(smooth(rng, steps, 0.02 * rng.choice((0.3, 1.0, 2.5))))
        self.cast = np.exp(rng.normal(0, 0.06, 3)).astype(np.float32)
        self.gamma = float(np.exp(rng.normal(0, 0.2)))
        self.colour = float(rng.choice((1.0, 1.0, rng.uniform(0, 1))))
        self.blur = float(rng.choice((0.0, 0.0, rng.uniform(0.4, 1.1))))
        self.noise = float(rng.choice((0.0, rng.uniform(1, 7))))
        self.quality = int(rng.integers(25, 90)) if rng.random() < 0.3 else 0
        self.shake = np.zeros((steps, 2), np.float32)

    def choose(self, rng: np.random.Generator, most: int) -> bool:
        """Track up to `most` of the objects that the first frame shows well; False if it shows none."""
        _, owner = self._paint(0)
        shares = np.bincount(owner.ravel(), minlength=len(self.sprites) + 2) / owner.size
        fit = [number for number in range(1, len(shares)) if 0.012 < shares[number] < 0.5]
        rng.shuffle(fit)
        count = most if rng.random() < 0.7 else 1
        self.tracked = {number: place for place, number in enumerate(fit[:count], start=1)}
        return bool(fit)

    def stir(self, unrest: float) -> None:
        """Add changes of the objects' proportions and colours, and of the camera; all objects stay in view; see
        ObjectsClip."""
        if unrest == 0:
            return
        rng = np.random.Generator(np.random.PCG64([self._seed, 1 << 40]))
        for sprite in self.sprites:
            restless = unrest * float(rng.choice((0.0, 0.5, 1.5)))
            sprite.motion.stretch = smooth(rng, self.steps, 0.05 * restless)
            drift = np.stack([smooth(rng, self.steps, 0.03 * restless) for _ in range(3)], 1)
            sprite.light = sprite.light[:, None] * np.exp(drift)
            sprite.motion.shift = near(sprite.motion.shift, 0.3 * self.size)
        restless = unrest * float(rng.choice((0.0, 0.0, 1.0, 2.0)))
        self.shake = rng.normal(0, 0.014 * restless * self.size, (self.steps, 2)).astype(np.float32)
        self.shake[0] *= 0.3
        self.camera.shift = near(self.camera.shift, 0.25 * self.size) + self.shake

    def lose(self, chance: float) -> None:
        """With this probability, remove one of the tracked objects for some time after the first frames; it returns at
        another position, as after a cut or an occlusion."""
        rng = np.random.Generator(np.random.PCG64([self._seed, 1 << 41]))
        tracked = sorted(number for number in self.tracked if number > 1)  # 1 is the region of the background
        if rng.random() >= chance or not tracked or self.steps < 8:
            return
        motion = self.sprites[tracked[int(rng.integers(len(tracked)))] - 2].motion
        begin = int(rng.integers(3, self.steps // 2 + 1))
        end = begin + int(rng.integers(2, max(3, self.steps // 2)))
        back = near(rng.normal(0, 0.25 * self.size, 2).astype(np.float32), 0.4 * self.size)
        motion.shift = motion.shift.copy()
        motion.shift[end:] += back
        motion.shift[begin:end] += 8 * self.size

    def render(self, t: int) -> tuple[Pixels, NDArray[np.uint8]]:
        """Frame t uint8 [size, size, 3] and the tracked object of each pixel [size, size]."""
        canvas, owner = self._paint(t)
        table = np.zeros(len(self.sprites) + 2, np.uint8)
        for number, place in self.tracked.items():
            table[number] = place
        rng = np.random.Generator(np.random.PCG64([self._seed, t]))
        canvas *= self.cast * self.gain[t]
        grey = canvas.mean(2, keepdims=True)
        canvas = grey + self.colour * (canvas - grey)
        canvas = 255 * (canvas / 255).clip(0, 1) ** self.gamma
        if self.blur:
            canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), self.blur), np.float32)
        reach = float(np.hypot(*self.shake[t]))
        if reach > 1:
            canvas = np.asarray(cv2.filter2D(canvas, -1, streak(self.shake[t])), np.float32)
        if self.noise:
            canvas = canvas + self.noise * rng.standard_normal(canvas.shape, np.float32)
        frame = np.asarray(canvas.clip(0, 255), np.uint8)
        if self.quality:
            _, coded = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
            frame = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
        return frame, table[owner]

    def _paint(self, t: int) -> tuple[Floats, NDArray[np.uint8]]:
        """The picture before light and lens, and the number of each pixel: 0 the background, 1 the region, 2 …
        sprites."""
        size = self.size
        camera = self.camera.matrix(t, np.full(2, size / 2, np.float32))
        view = (np.vstack([camera, [0, 0, 1]]) @ np.vstack([self.view, [0, 0, 1]]))[:2].astype(np.float32)
        maps = self.sway.sources(t, view, size)
        behind = cv2.remap(self.backdrop[t], *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        canvas: Floats = np.asarray(behind, np.float32)
        owner = np.zeros((size, size), np.uint8)
        if self.part is not None:
            owner[cv2.remap(self.part, *maps, cv2.INTER_LINEAR) > 0.5] = 1
        for number, (sprite, shadow) in enumerate(zip(self.sprites, self.shadows, strict=True), start=2):
            before = canvas.copy() if shadow else canvas
            alpha = sprite.paint(canvas, t, camera)
            if shadow:
                soft = cv2.GaussianBlur(np.roll(alpha, (size // 25, size // 30), (0, 1)), (0, 0), size / 40)
                clear = 1 - alpha[..., None]
                canvas = np.asarray((1 - clear) * canvas + clear * (1 - 0.45 * soft[..., None]) * before, np.float32)
            owner[alpha > 0.5] = number
        return canvas, owner
