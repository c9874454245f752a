"""RerunLog: results in the Rerun viewer."""

import time
from typing import Any

from tttstream.errors import DependencyError
from tttstream.live.engine import Engine
from tttstream.views.overlay import to_uint8


class RerunLog:
    """Logs frame, surprise map, expected picture, surprise and latency of every camera. Raises DependencyError."""

    def __init__(self, engine: Engine) -> None:
        try:
            import rerun
        except ImportError as error:
            raise DependencyError("--rerun needs the Rerun viewer: pip install 'tttstream[rerun]'") from error
        self._rerun: Any = rerun
        self._engine, self._versions = engine, dict[str, int]()
        rerun.init("tttstream", spawn=True)

    def show(self) -> bool:
        """Log new results; True to continue."""
        log = self._rerun.log
        for camera in self._engine.cameras:
            shown = camera.shown
            if shown is None or self._versions.get(camera.id) == shown.number:
                continue
            self._versions[camera.id] = shown.number
            self._rerun.set_time("time", duration=shown.result.time_s)
            log(f"{camera.id}/frame", self._rerun.Image(to_uint8(shown.frame.image)).compress())
            log(f"{camera.id}/surprise", self._rerun.Scalars(shown.result.surprise))
            log(f"{camera.id}/latency_ms", self._rerun.Scalars(shown.latency_ms))
            if shown.result.surprise_map.size > 1:
                log(f"{camera.id}/surprise_map", self._rerun.DepthImage(shown.result.surprise_map))
            if shown.result.expected is not None:
                log(f"{camera.id}/expected", self._rerun.Image(shown.result.expected).compress())
        time.sleep(0.01)
        return True
