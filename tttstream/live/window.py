"""LiveWindow: one camera of an engine in a window, with keys."""

from tttstream.live.camera import Camera
from tttstream.live.engine import Engine
from tttstream.streams import MapStream
from tttstream.views.overlay import Overlay, Picture
from tttstream.views.window import Viewer
from tttstream.views.world import WorldOverlay

INSTEAD = "leave --show out: the page in the browser shows the same"


class LiveWindow:
    """Shows a camera until q. Keys: f forget, l learning on/off, n next camera, space pause. Raises OutputError."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._viewer = engine, Viewer("tttstream live", INSTEAD)
        self._overlays: dict[str, Overlay] = {}
        self._place, self._paused = 0, False
        self._drawn: tuple[str, int, Picture] | None = None

    def show(self) -> bool:
        """Draw the newest picture and handle a key; False if the user wants to end."""
        cameras = self._engine.cameras
        if not cameras:
            return self._viewer.key(20) != "q"
        camera = cameras[self._place % len(cameras)]
        picture = self._picture(camera)
        key = self._viewer.key(20) if picture is None else self._viewer.show(picture, 10)
        if key == "f":
            camera.forget()
        elif key == "l":
            camera.set(learn=not camera.stream.learn)
        elif key == "n":
            self._place += 1
        elif key == " ":
            self._paused = not self._paused
        return key != "q"

    def _picture(self, camera: Camera) -> Picture | None:
        shown = camera.shown
        if shown is None:
            return None
        before = self._drawn
        if before is not None and (self._paused or before[:2] == (camera.id, shown.number)):
            return before[2]
        overlay = self._overlays.get(camera.id)
        if overlay is None:
            overlay = WorldOverlay(shown.memory) if isinstance(shown.memory, MapStream) else Overlay()
            self._overlays[camera.id] = overlay
        if isinstance(overlay, WorldOverlay) and isinstance(shown.memory, MapStream):
            overlay.stream = shown.memory
        overlay.threshold = camera.gate.threshold
        picture = overlay.draw(
            shown.frame.image,
            shown.result,
            event=camera.event_begins == shown.result.index,
            fps=camera.fps,
            state_bytes=shown.memory.state_bytes,
            note="" if shown.memory.learn else "not learning",
        )
        self._drawn = camera.id, shown.number, picture
        return picture

    def close(self) -> None:
        """Close the window."""
        self._viewer.close()
