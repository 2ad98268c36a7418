"""Publish each committed event of one shard, in order and numbered, while its lease is held."""

import logging
import time
from collections.abc import Callable, Collection
from typing import Any

import psycopg

from outbox import hooks
from outbox.errors import ConfigurationError, Fenced, OutboxError
from relay import database, guards, points, takeover, topics
from relay.config import RelayConfig
from relay.database import Connection, Database, OutcomeUnknown
from relay.lease import Lease
from relay.producers import Abandoned, Interrupted, Names, Producer, Producers, Refused, Target, Unsettled
from relay.progress import TRANSACTIONAL, Frozen, Progress, Resharded, ShardRow
from relay.supervision import Supervision
from relay.tenure import Did, Tenure
from relay.topics import UnfitTopic

log = logging.getLogger("relay.shard")

TROUBLED = 1.0
"""Seconds before another attempt after a failure."""

HALTED = 10.0
"""Seconds before what an operator has to mend is tried again: the topic's limit may be raised by then."""


class Shard:
    """Carries one shard while its lease is held. `run_once` belongs to one thread.

    `stopping` says when to take up nothing new; `status` is written here and read by the heartbeat.
    """

    def __init__(
        self,
        config: RelayConfig,
        lease: Lease,
        producers: Producers,
        *,
        stopping: Callable[[], bool],
        status: dict[str, Any],
        behind: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.number = lease.shard
        self._config = config
        self._database = Database(config.url, prepared=config.prepared_statements)
        self._lease = lease
        self._producers = producers
        self._producer: Producer | None = None
        self._mode: str | None = None
        self._switch_at = 0.0
        self._inside: Progress | None = None
        self._tenure: Tenure | None = None
        self._connections: list[Connection] = []
        self._stopping = stopping
        self._supervision = Supervision(
            lease,
            stopping=stopping,
            stop_timeout=config.stop_timeout.total_seconds(),
            status=status,
            behind=behind,
        )

    def run_once(self) -> Did:
        """Publish what is new, or find out why not. Raises only what an operator has to mend."""
        if not self._lease.held:
            self.let_go()
            self._supervision.standby()
            return Did(0, TROUBLED)
        try:
            self._tenure = self._tenure or self._begin()
            did = self._tenure.carry()
        except Resharded as over:
            # The producer stays: its session is empty, and a new one's first acknowledgement takes long.
            log.info("%s", over)
            self._tenure = None
            self._disconnect()
            hooks.fire(points.RESHARDED, shard=self.number)
            return Did(0, 0.0)
        except Fenced as fenced:
            hooks.fire(points.FENCED, shard=self.number)
            return self._again("standby", str(fenced))
        except (OutcomeUnknown, psycopg.OperationalError) as error:
            return self._again("waiting", f"database {self._database}: {error}")
        except Abandoned:
            if not self._stopping():
                self.let_go()
            return Did(0, 0.0)
        except (takeover.ModeWanted, Frozen) as interlude:
            self._inside = interlude.inside if isinstance(interlude, takeover.ModeWanted) else None
            self.let_go()
            return Did(0, 0.0)
        except Unsettled as unsettled:
            if not unsettled.expected:
                return self._again("waiting", str(unsettled))
            self.let_go()
            return Did(0, 0.0)
        except (UnfitTopic, Interrupted) as interrupted:
            return self._interrupted(interrupted)
        except Refused as refused:
            hooks.fire(points.HALTED, shard=self.number, reason=str(refused))
            return self._troubled(
                "halted", f"{refused}; nothing behind it is sent until this is mended", HALTED
            )
        self._supervision.well()
        return did

    def halt(self, failure: Exception) -> Did:
        """Stand still for a while after what `run_once` raised, then start anew from the row."""
        self.let_go()
        self._producer = None  # after a failure that nobody foresaw, its state is anybody's guess
        foreseen = isinstance(failure, OutboxError)
        why = str(failure) if foreseen else f"{type(failure).__name__}: {failure}"
        self._supervision.troubled("halted", why, None if foreseen else failure)
        return Did(0, HALTED)

    def let_go(self) -> None:
        """Forget the claim: the next round starts from the row itself."""
        self._tenure = None
        self._disconnect()
        if self._producer is not None:
            # It is kept: it may be looking for a row that is refused, over more than one claim.
            self._producer.close()

    def finish(self) -> None:
        """Before a clean end: write down what is acknowledged, so that a successor repeats nothing."""
        if self._tenure is not None:
            try:
                self._tenure.finish()
            except (Fenced, Frozen, Resharded, OutcomeUnknown) as error:
                log.info("the last delta was not confirmed and will be sent again: %s", error)
        self.let_go()

    def break_off(self) -> None:
        """From another thread: end whatever waits for the database; its outcome is unknown."""
        for connection in tuple(self._connections):
            database.break_off(connection)

    def _begin(self) -> Tenure:
        """Claim the shard, change its mode if that is wanted, and believe its row."""
        while True:
            tenure = self._claim()
            if tenure is not None:
                return tenure

    def _claim(self) -> Tenure | None:
        """One claim; None when it found, or gave, the shard another mode. The broker comes first, so that a
        claim is not idle."""
        shard = self.number
        self._disconnect()
        connection = self._connected(f"shard {shard}")
        mode, names = takeover.who(connection, shard)
        producer = self._producer_for(mode, names)
        self._supervision.trouble = producer.trouble
        cluster = producer.cluster_id()
        reading = self._connected(f"shard {shard} reader")
        here = guards.examine(connection, cluster)
        row = ShardRow(connection, shard)
        state = row.claim()
        hooks.fire(points.CLAIMED, shard=state.shard, epoch=state.epoch)
        guards.compare_counters(connection, state)
        wrote = topics.places(connection, shard) if mode == TRANSACTIONAL else set()
        if state.mode != mode or self._switched(row, state, names, wrote):
            return None
        failed_over = guards.failed_over(connection, here, shard) is not None
        known = state.low
        waited = bool(self._config.wait_for_standby) and self._config.standby_away == "wait"
        lossy = failed_over and not waited
        state = takeover.take_over(
            row,
            state,
            producer,
            self._may_go_on,
            wrote=wrote,
            failed_over=failed_over,
            lossy=lossy,
        )
        tenure = Tenure(
            self._config,
            connection,
            reading,
            producer,
            row,
            state,
            here,
            supervision=self._supervision,
            switch_at=self._switch_at,
        )
        tenure.passed_over(known)
        log.info(
            "shard %d: claimed with epoch %d, delta %d, mode %s", shard, state.epoch, state.delta, state.mode
        )
        return tenure

    def _switched(self, row: ShardRow, state: Progress, names: Names, wrote: Collection[Target]) -> bool:
        """Change the mode if it is wanted, possible and not refused a moment ago."""
        inside, self._inside = self._inside, None
        anew = state.mode == state.wanted_mode
        if not takeover.switchable(state, inside):
            return False
        if time.monotonic() < self._switch_at and not anew:
            return False
        recording = self._producers.transactional(names)
        try:
            takeover.switch(row, state, recording, self._may_go_on, wrote=wrote)
        except (Interrupted, ConfigurationError) as error:
            if anew or isinstance(error, Abandoned):
                raise
            self._switch_at = time.monotonic() + takeover.SWITCH_AGAIN
            self._supervision.not_switched(f"mode {state.wanted_mode} cannot be had: {error}")
            return False
        finally:
            recording.close()
        self._supervision.not_switched(None)
        return True

    def _producer_for(self, mode: str, names: Names) -> Producer:
        """The one at hand, unless the mode is another now."""
        if self._producer is None or self._mode != mode:
            if self._producer is not None:
                self._producer.close()
            transactional = mode == TRANSACTIONAL
            self._producer = (
                self._producers.transactional(names) if transactional else self._producers.sequenced()
            )
            self._mode = mode
        return self._producer

    def _may_go_on(self) -> bool:
        return self._lease.held and not self._stopping()

    def _connected(self, purpose: str) -> Connection:
        connection = self._database.connect(purpose)
        self._connections.append(connection)
        return connection

    def _disconnect(self) -> None:
        while self._connections:
            self._connections.pop().close()

    def _again(self, state: str, why: str) -> Did:
        """Drop the claim; the next round starts from the row."""
        self.let_go()
        return self._troubled(state, why, TROUBLED)

    def _interrupted(self, why: UnfitTopic | Interrupted) -> Did:
        if isinstance(why, Interrupted) and why.at_once:
            return Did(0, 0.0)
        return self._troubled("waiting", str(why), TROUBLED)

    def _troubled(self, state: str, why: str, rest: float) -> Did:
        self._supervision.troubled(state, why)
        return Did(0, rest)
