"""Say whether to go on, and what is wrong: the lease, the time to stop, silence of the broker, `status`."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from outbox.notice import Notice
from relay.lease import Lease

log = logging.getLogger("relay.shard")

SILENT = 5.0
"""Seconds without an acknowledgement for what is on its way before `status` says so."""

T = TypeVar("T")


class Supervision:
    """One shard's view of its surroundings. `stopping` says when to take up nothing new.

    `status` is written here and read by the heartbeat; `trouble` asks the producer for its last complaint,
    `behind` whether events wait for too long; `reservation` is an alarm under which events are carried all
    the same.
    """

    def __init__(
        self,
        lease: Lease,
        *,
        stopping: Callable[[], bool],
        stop_timeout: float,
        status: dict[str, Any],
        behind: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.lease = lease
        self.stopping = stopping
        self.status = status
        self.trouble: Callable[[], str | None] = _nothing
        self._behind = behind
        self.reservation: str | None = None
        self._stop_timeout = stop_timeout
        self._stop_by: float | None = None
        self._notice = Notice(log)
        self._heard_at = 0.0

    def alive(self) -> bool:
        """May we go on waiting for the broker? Asked while something is on its way."""
        now = time.monotonic()
        if now - self._heard_at > SILENT:
            why = self.trouble() or "it gives no reason"
            self.troubled("waiting", f"the broker acknowledges nothing: {why}")
        if self.stopping():
            self._stop_by = self._stop_by or now + self._stop_timeout
            return self.lease.held and now < self._stop_by
        return self.lease.held

    def timed(self, chunks: Iterable[T]) -> Iterator[T]:
        """What takes long to read is no silence of the broker."""
        self._heard_at = time.monotonic()
        for chunk in chunks:
            self._heard_at = time.monotonic()
            yield chunk

    def heard(self, rows: int) -> None:
        """Count rows as they are acknowledged: a large delta takes minutes, an interrupted one counts."""
        now = time.monotonic()
        silent, self._heard_at = now - self._heard_at > SILENT, now
        self.status["published"] += rows
        self.status["acknowledged_at"] = round(time.time(), 3)
        if silent or self.status["alarm"] != (self.reservation or self._behind()):
            self.well()

    def well(self) -> None:
        """Nothing is wrong on our side; what the client says of its brokers shows in `status` too."""
        trouble = self.trouble()
        alarm = trouble or self.reservation or self._behind()
        if alarm is None:
            self._notice.over()
        else:
            self._notice.trouble(alarm)
        self.status |= {"state": "carrying" if trouble is None else "waiting", "alarm": alarm}

    def not_switched(self, why: str | None) -> None:
        """Another mode is wanted, and why it cannot be had; the shard is carried all the same."""
        self.status["switch"] = why
        if why is not None:
            log.warning("%s", why)

    def parked(self, keys: int) -> None:
        """So many keys wait behind a refused row."""
        self.status["parked"] = keys

    def standby(self) -> None:
        """Another relay carries the shard."""
        self.status |= {"state": "standby", "alarm": None}

    def troubled(self, state: str, why: str, because: BaseException | None = None) -> None:
        """Something is wrong and is tried again; `because` is what nobody foresaw."""
        self.status |= {"state": state, "alarm": why}
        level = logging.ERROR if state == "halted" else logging.WARNING
        self._notice.trouble(why, level=level, because=because)


def _nothing() -> None:
    return None
