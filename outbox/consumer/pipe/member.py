"""One thread of a Pipe: one Kafka client that reads, one that sends; every call on both is made here.

No transaction is open while this thread polls, so a rebalance never meets one: what was taken from us was
committed before or is not. Hook points, beside the consumer's: `pipe.claimed`, `pipe.begun`, `pipe.sent`,
`pipe.offsets_sent`, `pipe.committed`, `pipe.lost`, `pipe.dead_letter`.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from outbox import hooks
from outbox.consumer import backoff
from outbox.consumer.assignment import Assignment, describe, keys_of
from outbox.consumer.batch import Batch
from outbox.consumer.handlers import Handlers
from outbox.consumer.health import MemberHealth, of_partition
from outbox.consumer.identity import BrokerIdentities, Identities, TopicIdentity
from outbox.consumer.intake import ClientDied, Intake
from outbox.consumer.outcome import Committed, GiveUp, Halt, Try, Wait, brief, judge
from outbox.consumer.partition import Partition
from outbox.consumer.pipe.committed import CommittedOffsets, stamp
from outbox.consumer.pipe.out import Output, dead_letter
from outbox.consumer.pipe.outflow import Lost, Outflow, RefusedOutput, Sent
from outbox.consumer.pipe.settings import PipeSettings
from outbox.consumer.pipe.transformation import Transformation
from outbox.consumer.place.mend import Mender
from outbox.consumer.place.scout import scouting
from outbox.consumer.properties import admin_properties, credentials, is_incremental
from outbox.consumer.reach import NewClient, Reach, opened
from outbox.consumer.sift import Sieve, Sifted
from outbox.consumer.told import Told
from outbox.consumer.vigil import Vigil

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipeSetup:
    """What all threads of one Pipe share. producer: without the transactional id, which is each thread's.

    known: which topic each name meant when one of them first claimed it.
    """

    group: str
    handlers: Handlers
    consumer: Mapping[str, Any]
    producer: Mapping[str, Any]
    instance: str
    settings: PipeSettings
    new_consumer: NewClient = KafkaConsumer
    new_producer: Callable[[dict[str, Any]], Producer] = Producer
    new_identities: Callable[[Mapping[str, Any]], Identities] = BrokerIdentities
    known: dict[str, TopicIdentity] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one partition adds to a transaction."""

    partition: Partition
    batch: Batch
    sifted: Sifted
    outputs: Sequence[Output]


class PipeMember:
    """Reads, transforms, sends; `run_once` does a piece of each."""

    def __init__(self, setup: PipeSetup, number: int = 0) -> None:
        self._setup = setup
        self._sieve = Sieve(
            setup.group,
            setup.handlers,
            "park" if setup.settings.unknown == "poison" else setup.settings.unknown,
        )
        self._transformation = Transformation(self._sieve)
        self._identities = setup.new_identities(admin_properties(setup.consumer))
        self._outflow = Outflow(
            {**setup.producer, "transactional.id": f"{setup.group}.{setup.instance}.{number}"},
            patience=setup.settings.transaction_timeout.total_seconds(),
            new_client=setup.new_producer,
        )
        self._failure: Exception | None = None
        self._reach = Reach(setup.group, number, self._failed)
        self._lost = self._deaths = self._applied = 0
        self.alive = True
        self._connect()

    def _connect(self) -> None:
        """A new reading client, and everything that belongs to it."""
        setup, settings = self._setup, self._setup.settings
        told = Told(setup.consumer)
        properties = {**told.properties, **self._reach.callbacks}
        self._client = opened(setup.new_consumer, properties, f"group {setup.group}")
        self._assignment = Assignment(
            self._client,
            setup.group,
            incremental=is_incremental(properties),
            credentials=credentials(properties),
        )
        self._offsets = CommittedOffsets(
            self._client, setup.group, self._identities, settings.start, setup.known
        )
        self._vigil = Vigil(
            self._client,
            self._assignment,
            self._identities,
            Mender(group=setup.group),
            lambda: scouting(setup.consumer, setup.new_consumer),
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
        self._client.subscribe(
            setup.handlers.topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def run_once(self, timeout: float = 0.1) -> int:
        """Claim what is due, poll up to `timeout` seconds, send what came; returns records done with.

        Raises OutboxError when this pipe cannot work at all.
        """
        try:
            if self._outflow.ready():
                self._intake.claim_due(self._offsets.claim)
            self._assignment.wake()
            self._intake.poll(self._patience(timeout))
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            done = self._run_ready()
            if self._vigil.tick() or done:
                self._reach.works()
        except ClientDied as error:
            self._rebuild(str(error))
            return 0
        except KafkaException as error:
            self._rebuild(describe(error))
            return 0
        self._deaths = 0 if done else self._deaths
        self._reach.figures.tick(self._assignment.partitions)
        return done

    def _failed(self, failure: Exception) -> None:
        self._failure = failure

    def close(self) -> None:
        """Leave the group. What was read and not committed is read again by whoever comes next."""
        self.alive = False
        self._outflow.drop()
        self._close_client()

    def health(self) -> MemberHealth:
        """May be called from any thread."""
        notices = (
            self._reach.notice,
            self._offsets.notice,
            self._intake.notice,
            self._vigil.notice,
            self._outflow.notice,
        )
        return MemberHealth(
            alive=self.alive,
            applied=self._applied,
            trouble=tuple(notice.text for notice in notices if notice.text is not None),
            partitions=tuple(
                of_partition(p, self._setup.settings.stuck_after)
                for p in self._assignment.partitions.copy().values()
            ),
            client=self._reach.figures.health(),
        )

    def _close_client(self) -> None:
        try:
            self._client.close()
        except (KafkaException, RuntimeError) as error:
            log.debug("closing the Kafka client: %s", error)

    def _patience(self, timeout: float) -> float:
        now = time.monotonic()
        for partition in self._assignment.partitions.values():
            if partition.runnable(now):
                return 0.0
            if not partition.stopped and (partition.claim is None or partition.polled):
                timeout = min(timeout, max(0.0, partition.due - now))
        return timeout

    def _batch(self, partition: Partition) -> Batch:
        return partition.batch(self._setup.settings.batch_size, self._setup.settings.batch_bytes)

    def _run_ready(self) -> int:
        now = time.monotonic()
        ready = [p for p in self._assignment.partitions.values() if p.runnable(now)]
        if ready:
            self._vigil.verify(ready)
        parts = [
            part
            for partition in ready
            if partition.verified and (part := self._transform(partition)) is not None
        ]
        parts += self._first_offsets(parts)
        if any(part.partition.singly for part in parts):
            # One of them is to be blamed for what the brokers refused: none shares its transaction.
            return sum(self._send([part]) for part in parts if part.partition.reads())
        return self._send(parts) if parts else 0

    def _first_offsets(self, parts: Sequence[_Part]) -> list[_Part]:
        """Where a group begins that has never read a partition is written down before anything else."""
        known = {part.partition.key for part in parts}
        found = []
        for key in self._offsets.unrecorded - known:
            partition = self._assignment.partitions.get(key)
            if partition is None or not partition.reads():
                self._offsets.unrecorded.discard(key)
            elif not partition.polled:
                claim = partition.claim
                assert claim is not None
                batch = Batch(
                    claim=claim,
                    marks=partition.marks,
                    parked=0,
                    expected=partition.expected,
                    next=partition.expected,
                    messages=(),
                )
                found.append(_Part(partition, batch, Sifted([], partition.marks, 0, 0, 0, []), ()))
        return found

    def _transform(self, partition: Partition) -> _Part | None:
        """What it adds to the transaction; None if its first record has to wait, or stops it."""
        batch = self._batch(partition)
        result = self._transformation.run(batch)
        if result.batch.messages:
            return _Part(partition, result.batch, result.sifted, result.outputs)
        assert result.failure is not None, "a batch has records"
        what = f"the record at offset {batch.messages[0].offset()} failed: {brief(result.failure)}"
        match judge(result.failure):
            case Halt():
                self._assignment.stop(partition, what)
            case GiveUp():
                return self._give_up(partition, what)
            case Wait(at_least):
                self._rest(partition, what, at_least.total_seconds())
            case Try():
                partition.tries += 1
                if partition.tries >= self._setup.settings.attempts:
                    log.error("%s[%s]: %s", *partition.key, what, exc_info=result.failure)
                    return self._give_up(partition, f"{what} ({partition.tries} attempts)")
                self._rest(partition, what, 0.0)
            case never:
                assert_never(never)
        return None

    def _give_up(self, partition: Partition, what: str) -> _Part | None:
        """The first record can never succeed as it is."""
        topic = self._setup.settings.dead_letter
        if topic is None:
            self._assignment.stop(partition, what)
            return None
        whole = self._batch(partition)
        message = whole.messages[0]
        offset = message.offset()
        assert offset is not None
        batch = Batch(
            claim=whole.claim,
            marks=whole.marks,
            parked=0,
            expected=whole.expected,
            next=offset + 1,
            messages=[message],
        )
        log.error("%s[%s]: %s; it goes to topic %s, everything else goes on", *partition.key, what, topic)
        hooks.fire("pipe.dead_letter", topic=partition.topic, partition=partition.number, offset=offset)
        return _Part(
            partition, batch, self._transformation.skip(batch), [dead_letter(topic, message, what[:1000])]
        )

    def _send(self, parts: Sequence[_Part]) -> int:
        """One transaction for all of them."""
        if not self._outflow.ready():
            return 0
        offsets = [
            TopicPartition(
                *part.partition.key,
                part.batch.next,
                metadata=stamp(part.batch.claim.identity.topic_id, part.sifted.marks),
            )
            for part in parts
        ]
        outputs = (output for part in parts for output in part.outputs)
        outcome = self._outflow.commit(outputs, offsets, self._client.consumer_group_metadata())
        match outcome:
            case Sent():
                return sum(self._sent(part) for part in parts)
            case Lost(reason, expected):
                self._again(reason, quiet=expected)
            case RefusedOutput(error):
                self._refused(parts, error)
            case _:
                assert_never(outcome)
        return 0

    def _sent(self, part: _Part) -> int:
        partition, batch, sifted = part.partition, part.batch, part.sifted
        self._lost = 0
        self._offsets.unrecorded.discard(partition.key)
        if not batch.messages:
            return 0
        partition.committed(
            Committed(
                batch.next, sifted.marks, len(batch.messages), sifted.applied, sifted.repeats, sifted.skipped
            )
        )
        if not partition.polled:
            self._assignment.resume(partition)
        self._applied += sifted.applied
        return len(batch.messages)

    def _again(self, reason: str, *, quiet: bool) -> None:
        """Nothing is known but what Kafka has committed: ask, and read on from there."""
        self._lost += 1
        wait = min(2.0, backoff.seconds(backoff.FAILURE, self._lost)) if not quiet else 0.0
        log.log(
            logging.INFO if quiet else logging.WARNING,
            "a transaction of group %s was not committed, or its answer was lost (%s); the committed offsets "
            "are asked for",
            self._setup.group,
            reason,
        )
        hooks.fire("pipe.lost", group=self._setup.group, reason=reason)
        for partition in self._assignment.partitions.values():
            if partition.reads():
                partition.release(reason, wait)
                self._assignment.pause(partition)

    def _refused(self, parts: Sequence[_Part], error: KafkaError) -> None:
        """Whoever is alone with its output is to blame; otherwise they are sent one by one."""
        what = f"the brokers refuse what was sent: {error.str()}"
        if len(parts) == 1 and len(parts[0].batch.messages) == 1:
            partition = parts[0].partition
            offset = parts[0].batch.messages[0].offset()
            if (part := self._give_up(partition, f"the record at offset {offset}: {what}")) is not None:
                if any(output.topic == self._setup.settings.dead_letter for output in parts[0].outputs):
                    self._assignment.stop(partition, f"not even its dead letter can be sent: {error.str()}")
                    return
                self._send([part])
            return
        log.info("%s; sending one by one", what)
        for part in parts:
            part.partition.singly = len(part.partition.polled)

    def _rest(self, partition: Partition, reason: str, at_least: float) -> None:
        wait = max(at_least, backoff.seconds(backoff.FAILURE, partition.failures + 1))
        log.warning("%s[%s]: %s; again in %.1f s", *partition.key, reason, wait)
        partition.rest(reason, wait)
        self._assignment.pause(partition)

    def _rebuild(self, reason: str) -> None:
        log.warning("the Kafka client of group %s died: %s", self._setup.group, reason)
        self._assignment.partitions.clear()
        self._close_client()
        self._deaths += 1
        threading.Event().wait(min(5.0, backoff.seconds(backoff.FAILURE, self._deaths)))
        self._connect()
        hooks.fire("consumer.rebuilt", group=self._setup.group, reason=reason)

    # The callbacks below run inside poll() and close(): nothing may leave them.

    def _on_assign(self, _client: KafkaConsumer, places: list[TopicPartition]) -> None:
        """They stand paused until their committed offsets are known."""
        try:
            self._assignment.add([Partition(place.topic, place.partition) for place in places])
            hooks.fire("consumer.assigned", group=self._setup.group, partitions=keys_of(places))
        except Exception as error:
            self._assignment.partitions.clear()
            self._failure = ClientDied(str(error)) if isinstance(error, KafkaException) else error

    def _on_revoke(self, _client: KafkaConsumer, places: list[TopicPartition]) -> None:
        self._forget(places, lost=False)

    def _on_lost(self, _client: KafkaConsumer, places: list[TopicPartition]) -> None:
        self._forget(places, lost=True)

    def _forget(self, places: Sequence[TopicPartition], *, lost: bool) -> None:
        try:
            self._assignment.remove(keys_of(places))
            hooks.fire("consumer.revoked", group=self._setup.group, partitions=keys_of(places), lost=lost)
        except Exception as error:
            self._failure = error
