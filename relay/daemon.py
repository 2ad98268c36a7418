"""Wire the relay's actors together; the only place that knows them all."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from outbox import hooks
from outbox.errors import ConfigurationError, OutboxError
from relay import loop
from relay.carrier import Carrier
from relay.config import RelayConfig
from relay.database import Database, name
from relay.ends import Ends
from relay.envelope import envelope
from relay.lease import Lease, Leases
from relay.mover import Mover
from relay.producers import Kafka
from relay.reach import Reach
from relay.ring import A_FEW, ATTEMPTS, EVERY, Ring
from relay.shard import TROUBLED, Shard
from relay.telemetry.backlog import Backlog
from relay.telemetry.health import Health, Pages
from relay.telemetry.metrics import Observed
from relay.telemetry.report import Report
from relay.tenure import Did

log = logging.getLogger("relay")

RENEWALS = 3
"""Renewals within one lease: two may fail before a successor takes over."""

HEARTBEAT = 1.25
"""Seconds until what is wrong shows in `status` at the latest, and until a shard that another relay let go
is taken, however long the lease."""

AWAIT_LEASE = 0.5
"""Seconds until a relay that leads nothing looks again whether scheduled events are its business."""

LATE = 3.0
"""Seconds after the time to stop until the connections to a database that does not answer are broken off."""


class Relay:
    """Publish each committed event of one database, in order per key, for as long as it runs.

    `run()` blocks until SIGTERM, SIGINT or `stop()`; `run_once()` does one round for a caller that loops
    itself. `ring()` is the doorbell of a service in the same process: it saves the wait for the next look. An
    Outbox in this process rings by itself while `run()` runs.
    """

    def __init__(self, config: RelayConfig) -> None:
        if config.databases:
            raise ConfigurationError(
                "a Relay carries one database, the settings name several; use Relays, or give database_url"
            )
        self._config = config
        self._bell = loop.Bell()
        self._news = loop.Bell()
        self._asked_to_stop = loop.Bell()
        self._ended = loop.Bell()
        self._renew_at = self._turn_at = self._move_at = self._survey_at = 0.0
        self._threads = False
        self._report = Report()
        where = Database(config.url, prepared=config.prepared_statements)
        self._leases = Leases(
            where,
            owner=config.instance,
            duration=config.lease,
            state=lambda: self.status,
            reaching=lambda: self._reach.reaching,
        )
        self._reach = Reach(config.kafka_properties, heard=self._bell.ring)
        self._carriers: dict[int, Carrier] = {}
        self._ring = Ring(where, retention=config.retention)
        self._ends = Ends(where, properties=config.kafka_properties)
        self._mover = Mover(where)
        self._backlog = Backlog(where, limit=config.pending_alarm)
        self._chores: tuple[Ring | Mover | Backlog, ...] = (self._ring, self._mover, self._backlog)
        self._failure: BaseException | None = None

    @property
    def status(self) -> dict[str, Any]:
        """`state` (starting, standby, carrying, waiting, halted, stopped), `alarm` in words, events
        `published`, and the same for each of the `shards` carried here."""
        return self._report.whole()

    def observed(self) -> Observed:
        """What a page of metrics shows of this relay and its database; never blocks."""
        return Observed(database=name(self._config.url), status=self.status, shards=self._backlog.shards)

    def ring(self) -> None:
        """An event was committed: look now."""
        for carrier in tuple(self._carriers.values()):
            carrier.bell.ring()

    def stop(self) -> None:
        """End `run()` after the chunks in hand; callable from any thread or signal handler."""
        self._bell.stop()
        self._ring.bell.stop()
        for carrier in tuple(self._carriers.values()):
            carrier.stop()
        self._asked_to_stop.stop()

    def run_once(self) -> Did:
        """Take our share of the shards and do one round of each. Needs no other thread; `close()` at the end.

        Call it again after `rest` seconds of what it returns, and at least three times within a lease.
        """
        now = time.monotonic()
        if now >= self._renew_at or not self._leases.held:
            self._renew_at = now + self._tend()
        if now >= self._turn_at:
            self._turn_at = now + self._turn_ring()
        if now >= self._move_at:
            self._move_at = now + self._move()
        if now >= self._survey_at:
            self._survey_at = now + self._backlog.run_once()
        rounds = [carrier.run_once() for carrier in tuple(self._carriers.values())]
        return Did(sum(did.published for did in rounds), min((did.rest for did in rounds), default=TROUBLED))

    def close(self) -> None:
        """End cleanly after `run_once`: confirm, release the leases."""
        for carrier in tuple(self._carriers.values()):
            carrier.shard.finish()
            self._release(carrier)
        for number in tuple(self._leases.mine):
            self._leases.release(number)  # taken while we were told to stop, so nobody carries it
        for actor in self._chores:
            actor.connection.close()
        self._reach.close()
        self._leases.farewell()

    def run(self) -> None:
        """Carry events until told to stop. Raises what an operator has to mend (schema, rights, identity)."""
        log.info("relay %s: database %s", self._config.instance, Database(self._config.url))
        self._threads = True
        bells = [self._ring.bell, loop.Bell(), loop.Bell()]
        with loop.stopped_by_signals(self.stop), self._healthy(), self._rung():
            beside = [
                self._beside("ring", self._turn_ring, bells[0]),
                self._beside("mover", self._move, bells[1]),
                self._beside("backlog", self._backlog.run_once, bells[2]),
            ]
            threading.Thread(target=self._break_off_when_late, name="outbox-stop", daemon=True).start()
            try:
                # The leases have this thread and a connection to themselves: no sending can starve them.
                loop.run(self._tend, self._bell)
            finally:
                self.stop()
                self._end(bells, beside)
        if self._failure is not None:
            raise self._failure

    def _tend(self) -> float:
        """Keep the leases, and a carrier for each; returns how long that may rest."""
        self._release_ended()
        self._reach.run_once()
        wanted = self._leases.run_once()
        self._report.trouble, self._report.began = self._leases.trouble or self._reach.trouble, True
        self._report.space = self._ring.trouble if self._leases.leads else None
        if not self._carriers:
            self._reach.complain()
        for lease in tuple(self._leases.mine.values()):
            if lease.shard not in self._carriers and not self._bell.stopping:
                self._carry(lease)
        leaving = [carrier for carrier in self._carriers.values() if carrier.stopping]
        for carrier in tuple(self._carriers.values()):
            if carrier.lease.lost and not carrier.lease.held:
                self._leave(carrier)
        if wanted.give and not leaving and self._carriers:
            given = self._carriers[max(self._carriers)]
            log.info("shard %d: handed over to another relay", given.lease.shard)
            self._leave(given)
        seconds = self._config.lease.total_seconds()
        return min(seconds / 10, 0.5) if wanted.short else min(seconds / RENEWALS, HEARTBEAT)

    def _carry(self, lease: Lease) -> None:
        bell = loop.Bell()
        shard = Shard(
            self._config,
            lease,
            Kafka(
                self._config.kafka_properties,
                stopping=lambda: bell.stopping,
                together=self._config.transaction_time.total_seconds(),
                envelope=envelope(self._config.envelope, self._config.cloudevents_source),
            ),
            stopping=lambda: bell.stopping,
            status=self._report.shard(lease.shard),
            behind=lambda: self._backlog.alarm(lease.shard),
        )
        carrier = self._carriers[lease.shard] = Carrier(
            lease, bell, shard, several=lambda: self._leases.shards > 1, ended=self._carrier_ended
        )
        if self._threads:
            carrier.start()
            if self._bell.stopping:
                carrier.stop()

    def _leave(self, carrier: Carrier) -> None:
        """Carry a shard no longer: what is under way is acknowledged and written down first."""
        carrier.stop()
        if not self._threads:
            carrier.shard.finish()
            self._release(carrier)

    def _carrier_ended(self, carrier: Carrier) -> None:
        """On the carrier's thread, its last act."""
        if carrier.failure is not None:
            self.stop()
        self._bell.ring()
        self._news.ring()

    def _release_ended(self) -> None:
        for carrier in tuple(self._carriers.values()):
            if self._threads and carrier.ended:
                self._failure = carrier.failure or self._failure
                self._release(carrier)

    def _release(self, carrier: Carrier) -> None:
        number = carrier.lease.shard
        del self._carriers[number]
        self._leases.release(number)
        self._report.forget(number)

    def _end(self, bells: list[loop.Bell], beside: list[threading.Thread]) -> None:
        try:
            for bell in bells:
                bell.stop()
            # Renewed until the last acknowledgement is written down; each is released as soon as that is.
            while self._carriers:
                try:
                    self._leases.run_once(leaving=True)
                    self._release_ended()
                except OutboxError as error:
                    log.debug("leases while stopping: %s", error)
                if self._carriers:
                    self._news.sleep(min(self._config.lease.total_seconds() / RENEWALS, HEARTBEAT))
            for thread, actor in zip(beside, self._chores, strict=True):
                thread.join(1.0)
                actor.connection.break_off()  # what it asked for happens or not, whether or not we hear of it
                thread.join()
            self._report.ended = True
            self.close()
        finally:
            self._ended.stop()

    @contextmanager
    def _rung(self) -> Iterator[None]:
        """What services in this process commit meanwhile rings the bell by itself."""

        def hear(point: str, _facts: dict[str, Any]) -> None:
            if point == "outbox.committed":
                self.ring()

        unsubscribe = hooks.subscribe(hear)
        try:
            yield
        finally:
            unsubscribe()

    @contextmanager
    def _healthy(self) -> Iterator[None]:
        """Answer over HTTP while inside, when an address is set."""
        if self._config.health_address is None:
            yield
            return
        health = Health(self._config.health_address, Pages(lambda: [self.observed()]))
        health.start()
        try:
            yield
        finally:
            health.close()

    def _beside(self, name: str, work: Callable[[], float], bell: loop.Bell) -> threading.Thread:
        """Loop on a thread and connection of its own."""

        def guarded() -> None:
            try:
                loop.run(work, bell)
            except BaseException as failure:
                self._failure = failure
                self.stop()

        thread = threading.Thread(target=guarded, name=f"outbox-{name}", daemon=True)
        thread.start()
        return thread

    def _break_off_when_late(self) -> None:
        """A frozen database must not keep a stop waiting for ever: then what it was asked stays unknown."""
        while not self._asked_to_stop.sleep(60):
            pass
        wait = self._config.stop_timeout.total_seconds() + LATE
        while not self._ended.sleep(wait):
            log.warning("the database does not answer; its connections are broken off in order to stop")
            for carrier in tuple(self._carriers.values()):
                carrier.shard.break_off()
            self._leases.break_off()
            for actor in (*self._chores, self._ends):
                actor.connection.break_off()
            wait = 1.0

    def _turn_ring(self) -> float:
        if self._leases.leads:
            self._ring.run_once(ATTEMPTS if self._threads else A_FEW)
            self._ends.run_once()
        return EVERY.total_seconds()

    def _move(self) -> float:
        if not self._leases.leads:
            return AWAIT_LEASE
        moved = self._mover.run_once()
        if moved.count:
            self.ring()
        return moved.rest
