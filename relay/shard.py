"""Publish each committed event of one shard, in order and numbered, while its lease is held."""

import logging
from collections.abc import Callable
from typing import Any

import psycopg

from outbox import hooks
from outbox.errors import Fenced
from relay import database, guards, points
from relay.config import RelayConfig
from relay.database import Connection, Database, OutcomeUnknown
from relay.lease import Lease
from relay.producers import Abandoned, Interrupted, Producer, Refused
from relay.progress import ShardRow
from relay.supervision import Supervision
from relay.tenure import Did, Tenure
from relay.topics import UnknownTopic

log = logging.getLogger("relay.shard")

TROUBLED = 1.0
"""Seconds before another attempt after a failure."""

HALTED = 10.0
"""Seconds before a refused row is tried again: an operator may have raised the topic's limit."""


class Shard:
    """Carries one shard while its lease is held. `run_once` belongs to one thread.

    `stopping` says when to take up nothing new; `status` is written here and read by the heartbeat.
    """

    def __init__(
        self,
        config: RelayConfig,
        lease: Lease,
        producer: Callable[[], Producer],
        *,
        stopping: Callable[[], bool],
        status: dict[str, Any],
        behind: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._config = config
        self._database = Database(config.url, prepared=config.prepared_statements)
        self._lease = lease
        self._make_producer = producer
        self._producer: Producer | None = None
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
        except Fenced as fenced:
            hooks.fire(points.FENCED, shard=self._config.shard)
            return self._again("standby", str(fenced))
        except (OutcomeUnknown, psycopg.OperationalError) as error:
            return self._again("waiting", f"database {self._database}: {error}")
        except Abandoned:
            if not self._stopping():
                self.let_go()
            return Did(0, 0.0)
        except UnknownTopic as missing:
            return self._troubled("waiting", str(missing), TROUBLED)
        except Interrupted as interrupted:
            return self._troubled("waiting", str(interrupted), TROUBLED)
        except Refused as refused:
            hooks.fire(points.HALTED, shard=self._config.shard, reason=str(refused))
            return self._troubled(
                "halted", f"{refused}; nothing behind it is sent until this is mended", HALTED
            )
        self._supervision.well()
        return did

    def let_go(self) -> None:
        """Forget the claim: the next round starts from the row itself."""
        self._tenure = None
        self._disconnect()
        if self._producer is not None:
            self._producer.close()
            self._producer = None

    def finish(self) -> None:
        """Before a clean end: write down what is acknowledged, so that a successor repeats nothing."""
        if self._tenure is not None:
            try:
                self._tenure.finish()
            except (Fenced, OutcomeUnknown) as error:
                log.info("the last delta was not confirmed and will be sent again: %s", error)
        self.let_go()

    def break_off(self) -> None:
        """From another thread: end whatever waits for the database; its outcome is unknown."""
        for connection in tuple(self._connections):
            database.break_off(connection)

    def _begin(self) -> Tenure:
        """Claim the shard and believe its row; the broker comes first, so that a claim is not idle."""
        producer = self._producer = self._producer or self._make_producer()
        self._supervision.trouble = producer.trouble
        cluster = producer.cluster_id()
        self._disconnect()
        for purpose in (f"shard {self._config.shard}", f"shard {self._config.shard} reader"):
            self._connections.append(self._database.connect(purpose))
        connection, reading = self._connections
        here = guards.examine(connection, cluster)
        row = ShardRow(connection, self._config.shard)
        state = row.claim()
        hooks.fire(points.CLAIMED, shard=state.shard, epoch=state.epoch)
        guards.compare_counters(connection, state)
        tenure = Tenure(
            self._config, connection, reading, producer, row, state, here, supervision=self._supervision
        )
        log.info("shard %d: claimed with epoch %d, delta %d", state.shard, state.epoch, state.delta)
        return tenure

    def _disconnect(self) -> None:
        while self._connections:
            self._connections.pop().close()

    def _again(self, state: str, why: str) -> Did:
        """Drop the claim; the next round starts from the row."""
        self.let_go()
        return self._troubled(state, why, TROUBLED)

    def _troubled(self, state: str, why: str, rest: float) -> Did:
        self._supervision.troubled(state, why)
        return Did(0, rest)
