"""Carry one shard on a thread of its own, for as long as the relay wants it."""

import threading
from collections.abc import Callable

from relay import loop
from relay.lease import Lease
from relay.shard import Shard


class Carrier:
    """A shard with the bell it sleeps on. Started on a thread, or asked for rounds by a caller that loops.

    `ended` is called on the thread at its end, with what went wrong, if anything did.
    """

    def __init__(
        self, lease: Lease, bell: loop.Bell, shard: Shard, ended: Callable[[BaseException | None], None]
    ) -> None:
        self.lease = lease
        self.bell = bell
        self.shard = shard
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

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            try:
                loop.run(lambda: self.shard.run_once().rest, self.bell)
            finally:
                # The lease is renewed until the last acknowledgement is written down.
                self.shard.finish()
        except BaseException as error:
            failure = error
        self._over = True
        self._ended(failure)
