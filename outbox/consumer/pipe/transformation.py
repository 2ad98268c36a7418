"""Run a Pipe's handlers over a batch: what they send, up to the first record that cannot be handled."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from outbox import catalog
from outbox.consumer.batch import Batch
from outbox.consumer.foreign import shapes as foreign
from outbox.consumer.handlers import Run
from outbox.consumer.pipe.out import Out, Output
from outbox.consumer.record import Polled, record_of
from outbox.consumer.sift import Sieve, Sifted


@dataclass(frozen=True, slots=True)
class Transformed:
    """batch: the records that are done with, perhaps none. failure: of the record behind them."""

    batch: Batch
    sifted: Sifted
    outputs: Sequence[Output]
    failure: Exception | None


class _Culprit(Exception):
    """Which record's handler failed."""

    def __init__(self, offset: int | None, error: Exception) -> None:
        super().__init__(offset)
        self.offset = offset
        self.error = error


class Transformation:
    """Handlers run before the Kafka transaction is opened, so a slow one holds nothing up for readers."""

    def __init__(self, sieve: Sieve) -> None:
        self._sieve = sieve

    def run(self, batch: Batch) -> Transformed:
        """Raises nothing that a handler raised."""
        failure: Exception | None = None
        out = Out()
        try:
            sifted = self._sieve.sift(batch.claim.topic, batch.messages, batch.marks)
        except Exception as error:
            batch, failure = self._before(batch, error)
            sifted = self._sieve.sift(batch.claim.topic, batch.messages, batch.marks)
        try:
            for run in sifted.runs:
                _apply(run, out)
        except _Culprit as culprit:
            failure = culprit.error
            batch = _cut(batch, [m for m in batch.messages if (m.offset() or 0) < (culprit.offset or 0)])
            sifted = self._sieve.sift(batch.claim.topic, batch.messages, batch.marks)
        return Transformed(batch, sifted, out.records, failure)

    def skip(self, batch: Batch) -> Sifted:
        """The marks behind records that are given up."""
        try:
            return self._sieve.sift(batch.claim.topic, batch.messages, batch.marks)
        except Exception:
            return Sifted([], batch.marks, 0, 0, len(batch.messages), [])

    def _before(self, batch: Batch, error: Exception) -> tuple[Batch, Exception]:
        """The records before the first one that cannot be sifted, and what is wrong with that one."""
        marks = batch.marks
        for number, message in enumerate(batch.messages):
            try:
                marks = self._sieve.sift(batch.claim.topic, [message], marks).marks
            except Exception as found:
                return _cut(batch, batch.messages[:number]), found
        return _cut(batch, ()), error


def _cut(batch: Batch, messages: Sequence[Polled]) -> Batch:
    last = messages[-1].offset() if messages else None
    return replace(batch, messages=messages, next=batch.expected if last is None else last + 1)


def _apply(run: Run, out: Out) -> None:
    handler = run.route.handler
    decode = catalog.decoder(run.route.wire_type, run.route.written) if handler.typed else None
    for message in run.messages:
        sent = len(out.records)
        try:
            plain = decode is None or run.route.foreign is not None
            payload = message.value() if plain else foreign.payload(message)
            event = payload if payload is None or decode is None else decode(payload)
            if handler.wants_record:
                handler.function(out, event, record_of(message))
            else:
                handler.function(out, event)
        except Exception as error:
            del out.records[sent:]
            raise _Culprit(message.offset(), error) from error
