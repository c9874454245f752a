"""Limits on the rate of requests of each client."""

import time
from collections import OrderedDict
from collections.abc import Callable

CLIENTS = 1024  # number of stored clients; the one without requests for the longest time is removed first


class Rate:
    """Limits the requests of each client (a token bucket).

    per_second: requests a second. burst: requests at once. clock: seconds.
    """

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second, self.burst, self._clock = per_second, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, client: str) -> bool:
        """Count a request. Returns False if the client has none left."""
        left = self._available(client)
        if left < 1:
            return False
        self._left[client] = left - 1, self._clock()
        self._left.move_to_end(client)
        while len(self._left) > CLIENTS:
            self._left.popitem(last=False)
        return True

    def is_spent(self, client: str) -> bool:
        """Whether the client has used up its requests."""
        return self._available(client) < 1

    def _available(self, client: str) -> float:
        left, since = self._left.get(client, (self.burst, self._clock()))
        return min(self.burst, left + (self._clock() - since) * self.per_second)
