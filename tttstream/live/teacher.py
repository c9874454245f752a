"""Teacher: learns things by name, and finds which of them are in view."""

from typing import Any

from tttstream.frames import Frame
from tttstream.live.boxes import Box
from tttstream.live.companion import Companion, in_pixels
from tttstream.models.teach import TeachModel
from tttstream.streams import TeachStream


class Teacher(Companion):
    """The names that one camera was taught."""

    KIND = "teach"

    def __init__(self, model: TeachModel, name: str) -> None:
        self.stream: TeachStream = TeachStream(model)
        self._said: list[dict[str, Any]] = []
        super().__init__(name)

    @property
    def wanted(self) -> bool:
        return bool(self.stream.labels)

    def look(self, frame: Frame) -> None:
        height, width = frame.image.shape[:2]
        self._said = [
            {
                "label": found.label,
                "probability": round(found.probability, 3),
                "box": [round(v, 4) for v in _shares(found.box, width, height)],
            }
            for found in self.stream.push(frame).found
        ]

    def teach(self, label: str, frame: Frame, box: Box | None) -> None:
        """In its thread: learn one example of a thing, a box of a frame or the whole frame. Raises ConfigError."""
        self.stream.teach(label, frame, None if box is None else in_pixels(box, frame))

    def forget(self, label: str) -> None:
        """In its thread: remove a name. Raises ConfigError for one that was not taught."""
        self.stream.forget(label)
        self._said = [said for said in self._said if said["label"] != label]

    def taught(self) -> list[dict[str, Any]]:
        """The names, with the number of stored examples of each."""
        return [{"label": label, "examples": self.stream.examples(label)} for label in self.stream.labels]

    def said(self) -> list[dict[str, Any]]:
        """The things in view in the last processed frame."""
        return list(self._said)


def _shares(box: Any, width: int, height: int) -> tuple[float, float, float, float]:
    left, top, wide, tall = box
    return left / width, top / height, (left + wide) / width, (top + tall) / height
