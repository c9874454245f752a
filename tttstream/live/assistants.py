"""Assistants: create the companions of cameras. All companions of a kind share one model."""

import threading
from typing import Any

from tttstream import models
from tttstream.live.companion import Companion
from tttstream.live.follower import Follower
from tttstream.live.teacher import Teacher


class Assistants:
    """Creates companions; a model is loaded when it is first needed."""

    _MADE: dict[str, tuple[type[Any], str]] = {  # noqa: RUF012
        Follower.KIND: (Follower, "track"),
        Teacher.KIND: (Teacher, "teach"),
    }

    def __init__(self) -> None:
        self._models: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The available kinds."""
        return tuple(self._MADE)

    def __call__(self, kind: str, camera: str) -> Companion:
        """Create a companion of a kind for a camera. Raises the errors of loading its model."""
        made, name = self._MADE[kind]
        with self._lock:
            if kind not in self._models:
                self._models[kind] = models.load(name)
        companion: Companion = made(self._models[kind], camera)
        return companion
