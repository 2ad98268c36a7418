"""One thread, one Kafka client, one member of the group: every call on that client is made here.

Hook points fired in this thread: `consumer.assigned`, `consumer.revoked` (lost: without being asked),
`consumer.claimed`, `consumer.polled`, `consumer.batch.*`, `consumer.jump`, `consumer.fenced`,
`consumer.retrying`, `consumer.parked`, `consumer.released`, `consumer.failed_again`, `consumer.discarded`,
`consumer.stopped`, `consumer.rebuilt`, `consumer.repartitioned`, `consumer.moved`, `consumer.client_error`
(what the Kafka client tells of), `consumer.statistics` (its own, as a mapping), `consumer.inbox_seen`,
`consumer.inbox_swept`, `consumer.inbox_held`; `consumer.blocker_terminated` and `consumer.run_up` (a stage is
stored, the last one with `reached` None) in helper threads. An AsyncConsumer fires those of
transactions (`consumer.batch.*`, `consumer.parked`, `consumer.released`, …) on its event loop, which they
must not block.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from outbox import hooks
from outbox.consumer import backoff
from outbox.consumer.assignment import Assignment, Key, describe, keys_of
from outbox.consumer.batch import BatchRunner
from outbox.consumer.claim import Claimer
from outbox.consumer.database import Database
from outbox.consumer.foreign.inbox import Inbox
from outbox.consumer.foreign.refill import Refill
from outbox.consumer.foreign.ring import InboxRing
from outbox.consumer.handlers import Handlers
from outbox.consumer.health import MemberHealth, of_partition
from outbox.consumer.identity import BrokerIdentities, Identities
from outbox.consumer.intake import ClientDied, Intake
from outbox.consumer.interest import Interest
from outbox.consumer.mirror import Mirror
from outbox.consumer.notice import Notice
from outbox.consumer.parking.redrive import Redrive
from outbox.consumer.partition import Partition
from outbox.consumer.place.beginning import Beginnings
from outbox.consumer.place.mend import Mender
from outbox.consumer.place.recall import Recall
from outbox.consumer.place.run_up import RunUp, RunUps
from outbox.consumer.place.scout import scouting
from outbox.consumer.place.seek import Access
from outbox.consumer.properties import admin_properties, credentials, is_incremental, member_properties
from outbox.consumer.reach import NewClient, Reach, opened
from outbox.consumer.settings import Settings, batch_time, owner
from outbox.consumer.sift import Sieve
from outbox.consumer.takeover import Takeover
from outbox.consumer.time_limit import TimeLimit
from outbox.consumer.told import Told
from outbox.consumer.vigil import Vigil
from outbox.consumer.work import Work

log = logging.getLogger(__name__)

PATIENCE = 4
"""Rounds in which a partition's few records wait for more while others have plenty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all members of one consumer share. new_client and new_identities: how to reach the brokers."""

    group: str
    database: Database
    handlers: Handlers
    properties: Mapping[str, Any]
    settings: Settings
    new_client: NewClient = KafkaConsumer
    new_identities: Callable[[Mapping[str, Any]], Identities] = BrokerIdentities

    @property
    def access(self) -> Access:
        """How to look into its topics without being a member."""
        return Access(
            properties=self.properties, new_client=self.new_client, new_identities=self.new_identities
        )


class Member:
    """Reads, applies, claims; `run_once` does a piece of each and never raises for what can mend itself."""

    def __init__(self, setup: Setup, number: int = 0, places: Sequence[Key] | None = None) -> None:
        """places: the partitions it reads, whatever the group does; None: those that the group gives it."""
        self._setup = setup
        self._places = places
        self._properties = member_properties(setup.properties, number)
        self._owner = owner(number)
        self._sieve = Sieve(setup.group, setup.handlers, setup.settings.unknown)
        self._inbox = Inbox(setup.database.engine, setup.handlers.window)
        self._ring = InboxRing(setup.database, setup.group, self._inbox, admin_properties(setup.properties))
        self._identities = setup.new_identities(admin_properties(setup.properties))
        self._failure: Exception | None = None
        self._applied = self._discarded = self._deaths = 0
        self._reach, self._death = Reach(setup.group, number, self._failed), Notice()
        wait = setup.settings.batch_wait
        self._linger = None if wait is None else wait.total_seconds()
        self._batch_time = batch_time(setup.settings, setup.properties)
        self._limit = TimeLimit(setup.settings.handler_limit, self._batch_time)
        self.alive = True
        self._connect()

    def _connect(self) -> None:
        """A new Kafka client, and everything that belongs to it."""
        setup, settings = self._setup, self._setup.settings
        by_hand = self._places is not None
        told = Told(self._properties)
        properties = {
            **told.properties,
            **self._reach.callbacks,
            "on_commit": self._on_commit,
        }
        self._client = opened(setup.new_client, properties, f"group {setup.group}")
        self._assignment = Assignment(
            self._client,
            setup.group,
            incremental=by_hand or is_incremental(properties),
            credentials=credentials(properties),
        )
        claimer = Claimer(
            database=setup.database,
            group=setup.group,
            owner=self._owner,
            patience=settings.claim_patience,
            positions=settings.positions,
        )
        self._interest = Interest(self._client, setup.handlers, properties)
        beginnings = Beginnings(
            client=self._client,
            database=setup.database,
            group=setup.group,
            owner=self._owner,
            identities=self._identities,
            start=settings.start,
            together=self._interest.together,
        )
        self._takeover = Takeover(claimer, self._identities, beginnings)
        mender = Mender(
            database=setup.database,
            group=setup.group,
            owner=self._owner,
            patience=settings.claim_patience,
            positions=settings.positions,
        )
        self._vigil = Vigil(
            self._client,
            self._assignment,
            self._identities,
            mender,
            lambda: scouting(setup.properties, setup.new_client),
            told,
            settings.identity_check,
        )
        self._intake = Intake(
            self._client,
            self._assignment,
            self._vigil,
            setup.group,
            size=settings.batch_size,
            room=settings.batch_bytes,
        )
        idle = str(int(settings.idle_timeout.total_seconds() * 1000))
        self._recall = Recall(setup.database, setup.group)
        self._run_up = RunUp(
            RunUps(
                database=setup.database,
                properties=setup.properties,
                identities=lambda: setup.new_identities(admin_properties(setup.properties)),
                idle=idle,
                refill=Refill(self._inbox, self._sieve),
                new_client=setup.new_client,
            )
        )
        self._mirror = Mirror(self._client, settings.mirror, self._owner)
        runner = BatchRunner(
            database=setup.database,
            sieve=self._sieve,
            inbox=self._inbox,
            owner=self._owner,
            idle_timeout=settings.idle_timeout,
            max_parked=settings.max_parked,
            limit=self._limit,
        )
        self._work = Work(
            self._assignment,
            runner,
            setup.group,
            settings=settings,
            batch_time=self._batch_time,
            by_hand=by_hand,
        )
        self._redrive = Redrive(
            setup.database,
            self._sieve,
            self._limit,
            idle,
            settings.attempts,
        )
        if self._places is not None:
            self._assignment.add([Partition(*place) for place in self._places])

    def run_once(self, timeout: float = 0.1) -> int:
        """Claim what is due, poll up to `timeout` seconds, run what is there; returns records done with.

        Raises OutboxError when this consumer cannot work at all.
        """
        try:
            self._subscribe()
            self._follow_moves()
            self._intake.claim_due(self._takeover.claim)
            self._assignment.wake()
            drained = self._intake.poll(self._patience(timeout))
            self._raise_failure()
            done = self._run_ready(drained)
            self._redrive.run_once(self._assignment.partitions.values())
            self._work.give_back(self._assignment.partitions.values())
            if self._vigil.tick() or done:
                self._death.over("the new Kafka client works")
                self._reach.works()
        except ClientDied as error:
            self._rebuild(str(error))
            return 0
        except KafkaException as error:
            self._rebuild(describe(error))
            return 0
        self._deaths = 0 if done else self._deaths
        self._mirror.tick(self._assignment.partitions.values())
        self._ring.run_once(self._assignment.partitions.values())
        self._reach.figures.tick(self._assignment.partitions)
        return done

    def _subscribe(self) -> None:
        """Tell the group what to give us, whenever that changes."""
        topics = self._interest.tick()
        if topics is None or self._places is not None:
            return
        self._intake.notice.over("other topics are read now")
        if topics:
            self._client.subscribe(
                topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
        else:
            self._client.unsubscribe()

    def _failed(self, failure: Exception) -> None:
        self._failure = failure

    def _raise_failure(self) -> None:
        """What a callback could not raise where it happened."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Leave the group. Whatever was polled and not committed is read again by whoever comes next."""
        self.alive = False
        self._run_up.close()
        self._applied += self._work.applied + self._redrive.applied
        self._discarded += self._redrive.discarded
        self._work.applied = self._redrive.applied = self._redrive.discarded = 0
        try:
            if not self._reach.lost:
                self._mirror.show(self._assignment.partitions.values())
            self._client.close()
        except (KafkaException, RuntimeError) as error:
            log.debug("closing the Kafka client: %s", error)

    def health(self) -> MemberHealth:
        """May be called from any thread."""
        notices = (
            self._reach.notice,
            self._death,
            self._interest.notice,
            self._takeover.notice,
            self._intake.notice,
            self._vigil.notice,
            self._ring.notice,
            self._ring.access,
        )
        return MemberHealth(
            alive=self.alive,
            applied=self._applied + self._work.applied + self._redrive.applied,
            discarded=self._discarded + self._redrive.discarded,
            trouble=tuple(notice.text for notice in notices if notice.text is not None),
            partitions=tuple(
                of_partition(p, self._setup.settings.stuck_after)
                for p in self._assignment.partitions.copy().values()
            ),
            client=self._reach.figures.health(),
        )

    def _follow_moves(self) -> None:
        """Leave what somebody moved; read what is rebuilt since it was moved."""
        partitions = self._assignment.partitions
        for partition in self._recall.run_once(partitions.values()):
            self._assignment.pause(partition)
        for partition in self._run_up.run_once(partitions.values()):
            self._intake.reposition(partition)

    def _patience(self, timeout: float) -> float:
        """How long the poll may wait: not at all while something could be run, never past what is due."""
        now = time.monotonic()
        for partition in self._assignment.partitions.values():
            if partition.runnable(now):
                if self._linger is None or self._ripe(partition, now, drained=False):
                    return 0.0
                timeout = min(timeout, partition.since + self._linger - now)
            elif not partition.stopped and (partition.claim is None or partition.polled):
                timeout = min(timeout, max(0.0, partition.due - now))
        return timeout

    def _run_ready(self, drained: bool) -> int:
        now = time.monotonic()
        ready = []
        for partition in self._assignment.partitions.values():
            if partition.runnable(now):
                partition.rounds += 1
                if self._ripe(partition, now, drained):
                    ready.append(partition)
        if ready:
            self._intake.notice.over("records arrive again")
            self._vigil.verify(ready)
        return self._work.run([partition for partition in ready if partition.verified])

    def _ripe(self, partition: Partition, now: float, drained: bool) -> bool:
        """Has the partition waited long enough for more records?"""
        if self._intake.full(partition) or partition.failures or partition.singly:
            return True
        if self._linger is not None:
            return now >= partition.since + self._linger
        return drained or partition.rounds >= PATIENCE

    def _rebuild(self, reason: str) -> None:
        self._death.trouble(f"the Kafka client of group {self._setup.group} died: {reason}")
        self._assignment.partitions.clear()
        self.close()
        self.alive = True
        self._deaths += 1
        threading.Event().wait(min(5.0, backoff.seconds(backoff.FAILURE, self._deaths)))
        self._connect()
        hooks.fire("consumer.rebuilt", group=self._setup.group, reason=reason)

    # The callbacks below run inside poll() and close(). What they raise would make the client read at
    # positions of its own, or leave poll() as a class that nothing catches: so nothing leaves them.

    def _on_assign(self, _client: KafkaConsumer, places: list[TopicPartition]) -> None:
        added = [Partition(place.topic, place.partition) for place in places]
        try:
            self._takeover.claim(added)
        except Exception as error:
            self._failure = error
        try:
            self._assignment.add(added)
            self._death.over("the new Kafka client has its place in the group")
            self._intake.notice.over("the group gives partitions again")
            hooks.fire("consumer.assigned", group=self._setup.group, partitions=keys_of(places))
        except Exception as error:
            # The client now assigns by itself, at offsets that are nobody's: believe nothing it says.
            self._assignment.partitions.clear()
            self._failure = ClientDied(str(error)) if isinstance(error, KafkaException) else error

    def _on_revoke(self, _client: KafkaConsumer, places: list[TopicPartition]) -> None:
        self._forget(places, lost=False)

    def _on_lost(self, _client: KafkaConsumer, places: list[TopicPartition]) -> None:
        self._forget(places, lost=True)

    def _forget(self, places: Sequence[TopicPartition], *, lost: bool) -> None:
        try:
            self._assignment.remove(keys_of(places))
            self._takeover.settle(self._assignment.partitions.values())
            log.info(
                "%s partitions of group %s %s", len(places), self._setup.group, "lost" if lost else "revoked"
            )
            hooks.fire("consumer.revoked", group=self._setup.group, partitions=keys_of(places), lost=lost)
        except Exception as error:
            self._failure = error

    def _on_commit(self, error: KafkaError | None, places: list[TopicPartition]) -> None:
        try:
            self._mirror.answered(error, places)
        except Exception as failure:
            self._failure = failure
