"""How often one client may ask: windows of a minute by name, and the guard that counts what changes something.

A client is its address; one that shows the admin key is the key, wherever it comes from. Reading costs nothing here,
so a page that polls is never refused. Failed credentials are counted apart, by address, so that tokens cannot be tried
one after the other.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from starlette.requests import HTTPConnection

from server.config import LimitsConfig
from server.errors import ApiError

WINDOW_S = 60.0
MAX_NAMES = 4096
"""Names remembered before those that were quiet for a whole window are forgotten."""


class RateByName:
    """At most `limit` calls within any minute, for each name by itself.

    Args:
        limit: calls a minute.
    """

    def __init__(self, limit: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._now = now
        self._times: dict[str, deque[float]] = {}

    def wait_s(self, name: str) -> int:
        """Count one call: 0 if it is allowed, else the whole seconds until the next one is; such a call counts not."""
        times = self._recent(name)
        if len(times) >= self._limit:
            return self._until_free(times)
        times.append(self._now())
        return 0

    def full_s(self, name: str) -> int:
        """What `wait_s` would say, without counting."""
        times = self._recent(name)
        return self._until_free(times) if len(times) >= self._limit else 0

    def _until_free(self, times: deque[float]) -> int:
        return max(1, math.ceil(WINDOW_S - (self._now() - times[0])))

    def _recent(self, name: str) -> deque[float]:
        now = self._now()
        if len(self._times) > MAX_NAMES:
            self._times = {n: t for n, t in self._times.items() if t and now - t[-1] < WINDOW_S}
        times = self._times.setdefault(name, deque())
        while times and now - times[0] >= WINDOW_S:
            times.popleft()
        return times


class Rates:
    """The limits of one server on requests that change something, on changes of one session, and on bad credentials.

    Args:
        limits: the three figures a minute.
    """

    def __init__(self, limits: LimitsConfig, *, now: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._requests = RateByName(limits.requests_per_minute, now=now)
        self._changes = RateByName(limits.changes_per_minute, now=now)
        self._failures = RateByName(limits.failed_logins_per_minute, now=now)

    def request(self, connection: HTTPConnection, *, is_admin: bool) -> None:
        """Count a request that changes something.

        Raises:
            ApiError: `rate_limited`.
        """
        wait_s = self._requests.wait_s("admin" if is_admin else address_of(connection))
        if wait_s:
            raise _too_many(self._limits.requests_per_minute, "requests", "requests_per_minute", wait_s)

    def change(self, session: str) -> None:
        """Count a change of a session's portrait or prompt, or candidates for it.

        Raises:
            ApiError: `rate_limited`.
        """
        wait_s = self._changes.wait_s(session)
        if wait_s:
            raise _too_many(self._limits.changes_per_minute, "changes of one session", "changes_per_minute", wait_s)

    def check_failures(self, connection: HTTPConnection) -> None:
        """Refuse an address that has shown too many wrong credentials.

        Raises:
            ApiError: `rate_limited`.
        """
        wait_s = self._failures.full_s(address_of(connection))
        if wait_s:
            most = self._limits.failed_logins_per_minute
            raise _too_many(most, "wrong credentials", "failed_logins_per_minute", wait_s)

    def failed(self, connection: HTTPConnection) -> None:
        """Count wrong credentials."""
        self._failures.wait_s(address_of(connection))


def address_of(connection: HTTPConnection) -> str:
    """The client's address; proxies are believed only where the server is told to."""
    return connection.client.host if connection.client else "unknown"


def _too_many(most: int, what: str, key: str, wait_s: int) -> ApiError:
    text = f"{most} {what} within a minute are the most (limits.{key}); wait {wait_s} s."
    return ApiError("rate_limited", text, retry_after_s=wait_s)
