"""Results and offsets in one Kafka transaction: readers that are read_committed see both, or neither.

A transaction is opened when all handlers have returned and never outlives the call. After any failure the
client is replaced: the new one's init_transactions() ends whatever the old one left, either way, and only
then are offsets asked for again. (librdkafka speaks the older EndTxn, which a late copy could repeat into the
next transaction of the same client.)
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from outbox import hooks
from outbox.consumer.assignment import describe
from outbox.consumer.notice import Notice
from outbox.consumer.pipe.out import Output
from outbox.errors import ConfigurationError

log = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds that beginning may keep the poll loop waiting at a time."""

FAULTY = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD, KafkaError._INVALID_ARG}
"""What brokers or the client say of a record that they will never take."""

_MAGIC = b"CGMDv2:"


@dataclass(frozen=True, slots=True)
class Sent:
    """Results and offsets are committed."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Not committed, or perhaps it was: the committed offsets tell. expected: by a rebalance."""

    reason: str
    expected: bool = False


@dataclass(frozen=True, slots=True)
class RefusedOutput:
    """The brokers will never take one of these records. Nothing was committed."""

    error: KafkaError


Outcome = Sent | Lost | RefusedOutput


class Outflow:
    """One member's transactional producer."""

    def __init__(
        self,
        properties: Mapping[str, Any],
        *,
        patience: float,
        new_client: Callable[[dict[str, Any]], Producer] = Producer,
    ) -> None:
        self._properties = properties
        self._patience = patience
        self._new_client = new_client
        self._client: Producer | None = None
        self._begun = False
        self._errors: list[KafkaError] = []
        self.notice = Notice()

    def ready(self) -> bool:
        """Is every earlier transaction of ours ended? Begins with a new client if need be."""
        if self._begun:
            return True
        try:
            if self._client is None:
                self._client = self._new_client(dict(self._properties))
            self._client.init_transactions(PATIENCE)
        except KafkaException as error:
            cause = error.args[0]
            self.notice.trouble(f"no Kafka transaction can be begun: {describe(error)}")
            if not (isinstance(cause, KafkaError) and cause.retriable()):
                self.drop()
                if isinstance(cause, KafkaError) and cause.code() in _HOPELESS:
                    raise ConfigurationError(
                        f"Kafka refuses transactions: {cause.str()}. Allow WRITE and DESCRIBE on the "
                        f"transactional id {self._properties['transactional.id']}, or correct the producer's "
                        "properties"
                    ) from error
            return False
        self._begun = True
        self.notice.over("Kafka transactions can be begun again")
        return True

    def commit(
        self, outputs: Iterable[Output], offsets: Sequence[TopicPartition], membership: bytes
    ) -> Outcome:
        """Send and commit. membership: the group's word that the partitions are ours; it fences us."""
        client = self._client
        assert client is not None
        if not is_member(membership):
            return Lost("the group took our membership away", expected=True)
        self._errors.clear()
        try:
            client.begin_transaction()
            hooks.fire("pipe.begun", offsets=len(offsets))
            for output in outputs:
                self._produce(client, output)
            if client.flush(self._patience):
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            if self._errors:
                raise KafkaException(self._errors[0])
            hooks.fire("pipe.sent", offsets=len(offsets))
            self._insist(
                lambda: client.send_offsets_to_transaction(list(offsets), membership, self._patience)
            )
            hooks.fire("pipe.offsets_sent", offsets=len(offsets))
            self._insist(lambda: client.commit_transaction(self._patience))
        except (KafkaException, SystemError) as error:
            return self._failed(error)
        hooks.fire("pipe.committed", offsets=len(offsets))
        self.notice.over("Kafka transactions are committed again")
        return Sent()

    def drop(self) -> None:
        """Give the client up, and what it has not committed. A commit under way may still happen."""
        client, self._client, self._begun = self._client, None, False
        if client is not None:
            with contextlib.suppress(KafkaException, SystemError):
                client.purge()
                _bounded(lambda: client.abort_transaction(PATIENCE), 2 * PATIENCE)

    def _produce(self, client: Producer, output: Output) -> None:
        end = time.monotonic() + self._patience
        while True:
            try:
                client.produce(
                    output.topic,
                    output.value,
                    output.key,
                    headers=list(output.headers),
                    on_delivery=self._on_delivery,
                )
            except BufferError:
                if time.monotonic() > end:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None
                client.poll(0.1)
            else:
                client.poll(0)
                return

    def _insist(self, call: Callable[[], object]) -> None:
        """Repeat the same call while the client says that this is right."""
        end = time.monotonic() + self._patience
        while True:
            try:
                _bounded(call, self._patience + PATIENCE)
                return
            except KafkaException as error:
                cause = error.args[0]
                if not (isinstance(cause, KafkaError) and cause.retriable()) or time.monotonic() > end:
                    raise

    def _failed(self, error: KafkaException | SystemError) -> Outcome:
        if isinstance(error, _Hangs):
            self._client, self._begun = None, False  # its thread has it until the call returns, if ever
        self.drop()
        cause = error.args[0] if error.args else None
        # A delivery report names the culprit; what the transaction says afterwards is its consequence.
        faulty = next((e for e in self._errors if e.code() in FAULTY), None)
        if faulty is None and isinstance(cause, KafkaError) and cause.code() in FAULTY:
            faulty = cause
        if faulty is not None:
            return RefusedOutput(faulty)
        reason = describe(error) if isinstance(error, KafkaException) else str(error)
        expected = isinstance(cause, KafkaError) and cause.code() in _REBALANCED
        if not expected:
            self.notice.trouble(f"a Kafka transaction failed: {reason}")
        return Lost(reason, expected=expected)

    def _on_delivery(self, error: KafkaError | None, _message: object) -> None:
        if error is not None:
            self._errors.append(error)


class _Hangs(KafkaException):
    """A call did not return in its time; nothing else may be asked of that client."""


def _bounded(call: Callable[[], object], seconds: float) -> None:
    """Call it, and wait for `seconds` at most.

    send_offsets_to_transaction() was seen not to return for minutes, whatever time-out it was given, after
    the group's coordinator had died (librdkafka 2.16.0, in rd_kafka_txn_op_req0). Raises _Hangs.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="outbox-pipe-call", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise _Hangs(KafkaError(KafkaError._TIMED_OUT_QUEUE, "the Kafka client does not return from a call"))
    if failures:
        raise failures[0]


_REBALANCED = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.FENCED_MEMBER_EPOCH,
}
_HOPELESS = {
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.INVALID_TRANSACTION_TIMEOUT,
}


def is_member(membership: bytes) -> bool:
    """Does this say which member we are, in which generation?

    A client whose group has expelled it says generation -1 and no member, and brokers take such offsets
    without question, for producers older than group fencing (GroupMetadata.validateOffsetCommit). Whoever was
    expelled must not send it.
    """
    if not membership.startswith(_MAGIC) or len(membership) < len(_MAGIC) + 4:
        raise ConfigurationError(
            "this version of confluent-kafka describes a group's membership in a form that is not known here"
        )
    generation = int.from_bytes(membership[len(_MAGIC) : len(_MAGIC) + 4], "little", signed=True)
    _group, _, rest = membership[len(_MAGIC) + 4 :].partition(b"\0")
    member, _, _ = rest.partition(b"\0")
    return generation > 0 and bool(member)
