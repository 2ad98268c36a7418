"""What one transaction could see, as a value: the pure half of finding newly committed events.

A snapshot `xmin:xmax:xip,…` sees every transaction below xmax that is not in xip, the ones still running
when it was taken (PostgreSQL, "Transaction ID and Snapshot Information Functions").
"""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Snapshot:
    """A pg_snapshot. `text` is PostgreSQL's own form and the only thing ever sent back to it."""

    text: str

    @cached_property
    def _bounds(self) -> tuple[int, int]:
        xmin, xmax, _ = self.text.split(":")
        return int(xmin), int(xmax)

    @property
    def xmin(self) -> int:
        return self._bounds[0]

    @property
    def xmax(self) -> int:
        return self._bounds[1]

    @cached_property
    def running(self) -> frozenset[int]:
        """Transactions below xmax that had not ended."""
        listed = self.text.rpartition(":")[2]
        return frozenset(map(int, listed.split(","))) if listed else frozenset()

    def sees(self, xid: int) -> bool:
        """Had transaction `xid` ended when this snapshot was taken?"""
        return xid < self.xmin or (xid < self.xmax and xid not in self.running)


def between(done: Snapshot, following: Snapshot, xid: int) -> bool:
    """Does `xid` belong to the delta that leads from `done` to `following`?"""
    return following.sees(xid) and not done.sees(xid)
