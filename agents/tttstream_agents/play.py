"""Shows an agent while it plays, with the surprise of its memory below the picture."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tttstream.errors import OutputError
from tttstream.frames import Result
from tttstream.memory import TTTLayer
from tttstream.streams.normaliser import Normaliser
from tttstream_agents.checkpoint import load_policy, read_config
from tttstream_agents.envs import close, make, tree, vector
from tttstream_agents.errors import EnvError, TrainingError
from tttstream_agents.ppo import Player

FPS = 10.0  # of environments without a rate
NOTHING = np.zeros((1, 1), dtype=np.float32)

Picture = NDArray[np.uint8]


def play(
    folder: Path,
    *,
    env_id: str | None = None,
    out: str | None = None,
    seed: int = 1,
    episodes: int = 3,
    max_steps: int = 3000,
    width: int = 480,
    deterministic: bool = False,
) -> tuple[int, int]:
    """Show the agent of a run in a window, or write an MP4 to `out`. Returns the numbers of steps and whole episodes.

    An environment without pictures is shown as text. Raises TrainingError for numbers that do not fit.
    """
    if min(episodes, max_steps) < 1 or not 120 <= width <= 4096:
        raise TrainingError(
            f"expected at least 1 episode, 1 step and 120 to 4096 pixels of width; got {episodes}, {max_steps}, {width}"
        )
    config = read_config(folder)

    def maker(mode: str | None) -> Any:
        return make(env_id or config.env, mode, config.env_args, config.wrappers)

    mode = "rgb_array" if draws(maker) else None
    torch.manual_seed(seed)
    envs = vector(lambda: maker(mode), 1, seed, "same_step", unseen=True)
    with ExitStack() as stack:
        stack.callback(close, envs)
        player = Player(envs, load_policy(folder, envs), config.action_masks)
        fps = float(envs.envs[0].metadata.get("render_fps") or FPS)  # type: ignore[union-attr]
        show = stack.enter_context(Screen(out, fps))
        done = steps = 0
        for picture, over in watch(player, width, fps, deterministic, renders=mode is not None, live=out is None):
            steps, done = steps + 1, done + over
            if not show.show(picture) or steps >= max_steps or done >= episodes:
                break
    return steps, done


def draws(maker: Callable[[str | None], Any]) -> bool:
    """Whether an environment renders pictures. maker: render mode -> environment. Some declare the mode but fail."""
    env = maker(None)
    env.close()
    if "rgb_array" not in (env.metadata.get("render_modes") or []):
        return False
    try:
        env = maker("rgb_array")
        env.reset(seed=0)
        picture = env.render()
        env.close()
    except Exception:  # an environment is foreign code and may raise anything
        return False
    return isinstance(picture, np.ndarray) and picture.ndim == 3


def watch(
    player: Player, width: int, fps: float, deterministic: bool, *, renders: bool, live: bool
) -> Iterator[tuple[Picture, bool]]:
    """Yield (picture, whether this step ended the episode) for each step of one environment.

    live: show the speed. Else the step number is shown instead, so that a recording is the same every time. Raises
    EnvError if the environment gives no RGB picture.
    """
    from tttstream.views.overlay import Overlay

    overlay, normaliser, total, step = Overlay(width=width), Normaliser(), 0.0, 0
    surprised = all(isinstance(memory, TTTLayer) for memory in player.policy.memories)
    state_bytes = player.state.nbytes
    while True:
        began = time.perf_counter()
        before = after = 0.0
        if surprised:
            losses = player.policy.surprise(player.obs, player.state, player.starts, player.previous_reward)
            before, after = (float(loss[0]) for loss in losses)
        surprise = normaliser.push(before) if surprised else 0.0
        drawn = copy.deepcopy(player.call("render")) if renders else None  # the next step may draw over it
        seen, last = player.obs, float(player.previous_reward[0])
        taken = player.step(deterministic)
        took = 1e3 * (time.perf_counter() - began)
        image = words(seen, player.policy.to_env(taken.action)[0], last, width) if drawn is None else drawn[0]
        if not isinstance(image, np.ndarray) or image.ndim != 3:
            raise EnvError("the environment gave no RGB picture to show")
        learned = (before - after) / before if before > 0 else 0.0
        result = Result(step, step / fps, surprise, before, learned, took, NOTHING, NOTHING[0])
        total += float(taken.reward[0])
        over = bool(taken.terminated[0] | taken.truncated[0])
        note = f"return {total:+.2f}{remark(before, after) if surprised else ', a memory without surprise'}"
        speed = 1e3 / took if live else None
        seen = headed(image[..., :3], width)
        if over:
            normaliser.restart()
        yield overlay.draw(seen, result, event=over, fps=speed, state_bytes=state_bytes, note=note), over
        step, total = step + 1, 0.0 if over else total


def remark(before: float, after: float) -> str:
    """A remark if the update of a step did not change its loss.

    The scale of the update at each position of a mini-batch is trained and may be 0. The output of such a step uses the
    weights from the start of the mini-batch, and its gradient is applied from the next position on.
    """
    return ", trained to wait here" if 0 < before == after else ""


def headed(image: Picture, width: int) -> Picture:
    """Add a dark band above the picture, for the text of the overlay. width: of the overlay, in pixels."""
    from tttstream.views.overlay import BACKGROUND, to_uint8

    band = np.empty((max(1, 32 * image.shape[1] // width), image.shape[1], 3), dtype=np.uint8)
    band[:] = BACKGROUND
    return np.concatenate([band, to_uint8(image)])


def words(obs: Any, action: Any, reward: float, side: int) -> Picture:
    """Return a picture that shows the observation, the action and the reward as text, for environments that do not
    render."""
    from PIL import Image, ImageDraw

    from tttstream.views.overlay import BACKGROUND, MUTED, TEXT, font

    board = Image.new("RGB", (side, side * 2 // 3), BACKGROUND)
    draw = ImageDraw.Draw(board)
    rows = (("sees", describe(obs)), ("does", describe(action)), ("reward", f"{reward:+.3f}"))
    for place, (label, text) in enumerate(rows):
        y = side * (0.12 + 0.18 * place)
        draw.text((side * 0.08, y), label, fill=MUTED, font=font(side // 24))
        draw.text((side * 0.28, y - side / 60), text, fill=TEXT, font=font(side // 14))
    return np.asarray(board)


def describe(value: Any) -> str:
    """An observation or action as a short text."""
    parts: list[NDArray[Any]] = []
    tree(lambda part: parts.append(np.asarray(part).ravel()), value)
    flat = np.concatenate(parts)
    text = " ".join(f"{number:.3g}" for number in flat[:5])
    return text if len(flat) <= 5 else f"{text} … ({len(flat)})"


class Screen:
    """Writes pictures to an MP4, or shows them in a window at the speed of the environment."""

    def __init__(self, out: str | None, fps: float) -> None:
        from tttstream.views.window import Viewer
        from tttstream.views.writer import VideoWriter

        self._pace = 1 / fps
        if out is not None:
            self._to: Any = VideoWriter(out, fps)
            return
        try:
            self._to = Viewer("tttstream-agents (q quits)")
        except OutputError as error:
            reason = str(error).split(":")[0]
            raise OutputError(f"{reason}: give --out FILE.mp4, and a video is written instead") from error

    def show(self, picture: Picture) -> bool:
        """Show a picture. Returns False when the user quits."""
        if not hasattr(self._to, "show"):
            self._to.write(picture)
            return True
        return bool(self._to.show(picture, max(1, round(1e3 * self._pace))) != "q")

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *error: Any) -> None:
        self._to.__exit__(*error)
