"""Carry one shard on a thread of its own, for as long as the relay wants it."""

import threading
import time
from collections.abc import Callable

from outbox.errors import SchemaError, WrongDatabase
from relay import loop
from relay.lease import Lease
from relay.shard import Shard
from relay.standby import UnknownStandbys
from relay.tenure import Did

OF_ALL = (SchemaError, WrongDatabase, UnknownStandbys)
"""What concerns every shard of the database."""


class Carrier:
    """A shard with the bell it sleeps on. Started on a thread, or asked for rounds by a caller that loops.

    `several`: has the database more shards than this one? Then a failure that is this one's alone halts it,
    lease and all, and is tried again: no other shard stands still for it, and no other relay dies of it.
    `ended` is called on the thread at its end.
    """

    def __init__(
        self,
        lease: Lease,
        bell: loop.Bell,
        shard: Shard,
        *,
        several: Callable[[], bool],
        ended: Callable[["Carrier"], None],
    ) -> None:
        self.lease = lease
        self.bell = bell
        self.shard = shard
        self.failure: BaseException | None = None
        """With what it ended; final once it has `ended`."""
        self._several = several
        self._again_at = 0.0
        self._ended = ended
        self._over = False

    @property
    def ended(self) -> bool:
        """Is its thread through with everything?"""
        return self._over

    @property
    def stopping(self) -> bool:
        return self.bell.stopping

    def start(self) -> None:
        name = f"outbox-shard-{self.lease.shard}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def stop(self) -> None:
        """End after the chunk in hand; what is acknowledged is written down first."""
        self.bell.stop()

    def run_once(self) -> Did:
        """One round of the shard, or the rest of its halt. Raises only what concerns the whole database."""
        wait = self._again_at - time.monotonic()
        if wait > 0:
            return Did(0, wait)  # the doorbell mends nothing
        try:
            return self.shard.run_once()
        except Exception as failure:
            if isinstance(failure, OF_ALL) or not self._several():
                raise
            halted = self.shard.halt(failure)
            self._again_at = time.monotonic() + halted.rest
            return halted

    def _run(self) -> None:
        try:
            try:
                loop.run(lambda: self.run_once().rest, self.bell)
            finally:
                # The lease is renewed until the last acknowledgement is written down.
                self.shard.finish()
        except BaseException as error:
            self.failure = error
        self._over = True
        self._ended(self)
