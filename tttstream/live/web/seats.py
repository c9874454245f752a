"""Limits on the number of clients, and on the pictures per second that each receives."""

from collections.abc import Iterator
from contextlib import contextmanager

SEATS = 512  # a page takes two
PICTURES = 400  # per second, for all clients: sending takes time from the model
FASTEST = 30  # to one reader of one view, a second


class Seats:
    """Counts the clients of one server. Used in its event loop only. taken: seats in use."""

    def __init__(self, seats: int = SEATS) -> None:
        self._seats, self._looks = seats, 0
        self.taken = 0

    @property
    def are_taken(self) -> bool:
        """Whether all seats are taken."""
        return self.taken >= self._seats

    @property
    def pause_s(self) -> float:
        """Seconds between two pictures of a view to one reader; it grows with the number of readers."""
        return max(1 / FASTEST, self._looks / PICTURES)

    @contextmanager
    def seat(self) -> Iterator[None]:
        """Take a seat, until the context ends."""
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    @contextmanager
    def look(self) -> Iterator[None]:
        """Count as a reader of one view, until the context ends."""
        self._looks += 1
        try:
            yield
        finally:
            self._looks -= 1
