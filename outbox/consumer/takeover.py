"""Claim the partitions that Kafka gave us; what cannot be claimed now is claimed later, at no wrong place."""

import logging
from collections.abc import Iterable, Sequence

from confluent_kafka import KafkaException
from sqlalchemy.exc import SQLAlchemyError

from outbox.consumer import backoff
from outbox.consumer.assignment import describe
from outbox.consumer.claim import Claimer
from outbox.consumer.identity import Identities, TopicIdentity, TopicMissing
from outbox.consumer.notice import Notice
from outbox.consumer.outcome import passes
from outbox.consumer.partition import Partition
from outbox.consumer.place.beginning import Beginnings
from outbox.consumer.place.position import Misplaced
from outbox.errors import GuardViolation, SchemaError

log = logging.getLogger(__name__)


class Takeover:
    """Claims for one member."""

    def __init__(
        self,
        claimer: Claimer,
        identities: Identities,
        beginnings: Beginnings,
    ) -> None:
        self._claimer = claimer
        self._identities = identities
        self._beginnings = beginnings
        self.notice = Notice()

    def claim(self, partitions: Sequence[Partition]) -> None:
        """Claim each; afterwards each is claimed, stopped (GuardViolation), or due for another try.

        Raises SchemaError when no try can succeed. Does not position the client.
        """
        if not partitions:
            return
        try:
            found = self._identities.look(partition.topic for partition in partitions)
        except KafkaException as error:
            self._later(partitions, f"the brokers do not say which topics these are: {describe(error)}")
            return
        for index, partition in enumerate(partitions):
            identity = found.get(partition.topic)
            if identity is None:
                self._later(
                    [partition], f"the brokers do not describe topic {partition.topic}; allow DESCRIBE"
                )
                continue
            if isinstance(identity, TopicMissing):
                self._later([partition], f"{identity}; create it, or correct the event's topic")
                continue
            try:
                self._one(partition, identity)
            except GuardViolation as error:
                partition.moves = error.moves if isinstance(error, Misplaced) else None
                partition.stop(str(error))
            except KafkaException as error:
                self._later(
                    [partition],
                    f"the brokers do not tell the offsets of {partition.topic}: {describe(error)}",
                )
            except SQLAlchemyError as error:
                if not passes(error):
                    raise SchemaError(
                        f"cannot claim {partition.topic}[{partition.number}]: {_first_line(error)}. "
                        "Run `outbox-relay db upgrade`, and give this role the consumer's rights "
                        "(`outbox-relay db roles`)"
                    ) from error
                # The next would most likely meet the same; the poll loop must not stand still for each.
                self._later(partitions[index:], f"the database cannot be claimed from: {_first_line(error)}")
                return
        self.settle(partitions)

    def settle(self, partitions: Iterable[Partition]) -> None:
        """Nothing is wrong any more once every partition has its claim."""
        if all(partition.claim is not None for partition in partitions):
            self.notice.over("claims succeed again")

    def _one(self, partition: Partition, identity: TopicIdentity) -> None:
        partition.begin(
            self._claimer.claim(
                partition.topic,
                partition.number,
                identity,
                lambda: self._beginnings.write(partition.topic, partition.number, identity),
                lambda: self._beginnings.bounds(partition.topic, partition.number)[0],
            )
        )
        log.info(
            "%s[%s]: claimed with epoch %s, reading from offset %s",
            partition.topic,
            partition.number,
            partition.claim and partition.claim.epoch,
            partition.expected,
        )

    def _later(self, partitions: Sequence[Partition], reason: str) -> None:
        self.notice.trouble(f"{reason}; trying again")
        for partition in partitions:
            partition.failures += 1
            partition.release(reason, backoff.seconds(backoff.FAILURE, partition.failures))


def _first_line(error: SQLAlchemyError) -> str:
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]
