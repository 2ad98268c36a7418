"""Of what was polled, keep what is news and has a handler."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from outbox import catalog
from outbox.consumer.handlers import Handlers, Route, Run
from outbox.consumer.record import Polled, headers_of
from outbox.consumer.settings import Unknown
from outbox.consumer.watermark import Marks
from outbox.errors import ConfigurationError, Reject
from outbox.record import REPLAY, SEQ, TYPE, replayed_for

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sifted:
    """What a batch has to do, and the marks once it is done."""

    runs: list[Run]
    marks: Marks
    applied: int
    repeats: int
    skipped: int


class Sieve:
    """Drops repeats by their marks, replays that are meant for others, and what nobody handles by its type;
    says the latter once a type."""

    def __init__(self, group: str, handlers: Handlers, unknown: Unknown) -> None:
        self._group = group
        self._handlers = handlers
        self._unknown = unknown
        self._said: set[tuple[str, str]] = set()

    def sift(self, topic: str, messages: Sequence[Polled], marks: Marks) -> Sifted:
        """`marks` stays as it is. Raises UndecodableRecord or Reject for a record that
        can never pass, ConfigurationError where it stops its partition."""
        marks = marks.copy()
        routes = self._handlers.routes(topic)
        other = routes.get(None)
        runs: list[Run] = []
        last: Route | None = None
        repeats = skipped = 0
        for message in messages:
            type_ = seq = replay = None
            for name, value in headers_of(message):
                if name == SEQ:
                    seq = seq or value
                elif name == TYPE:
                    type_ = type_ or value
                elif name == REPLAY:
                    replay = replay or value
            # A record without the header is foreign: only its offset tells whether it was read before.
            if seq is not None and not marks.admit_encoded(seq):
                repeats += 1
                continue
            if replay is not None and not replayed_for(replay, self._group):
                skipped += 1
                continue
            route = routes.get(type_, other)
            if route is None:
                self._refuse(topic, type_)
                skipped += 1
            elif not route.handler.tombstones and message.value() is None:
                what = f"tombstones of {route.wire_type}"
                self._say(topic, what, "its handler is not registered with tombstones=True")
                skipped += 1
            elif route is last:
                runs[-1].messages.append(message)
            else:
                runs.append(Run(route, [message]))
                last = route
        return Sifted(runs, marks, len(messages) - repeats - skipped, repeats, skipped)

    def route(self, topic: str, message: Polled) -> Run | None:
        """Where a parked record goes, whose number was looked at when it was read; None: nobody wants it."""
        type_ = next((value for name, value in headers_of(message) if name == TYPE), None)
        routes = self._handlers.routes(topic)
        route = routes.get(type_, routes.get(None))
        if route is None:
            self._refuse(topic, type_)
        elif route.handler.tombstones or message.value() is not None:
            return Run(route, [message])
        return None

    def _refuse(self, topic: str, type_: bytes | None) -> None:
        what = "no type header" if type_ is None else f"type {type_.decode('utf-8', 'replace')}"
        if self._unknown == "skip" and (topic, f"records with {what}") in self._said:
            return
        newest = None if type_ is None else self._handlers.newest(topic, type_.decode("utf-8", "replace"))
        newer = "" if newest is None else f": the newest version it knows is {newest}; {catalog.DEPLOY}"
        if self._unknown == "stop":
            raise ConfigurationError(
                f"a record with {what} on topic {topic} has no handler{newer}"
                if newer
                else f"a record with {what} on topic {topic} has no handler; register one with @consumer.on, "
                "or let such records pass with unknown='skip'"
            )
        if self._unknown == "park":
            raise Reject(f"a record with {what} on topic {topic} has no handler yet{newer}")
        self._say(topic, f"records with {what}", f"no handler is registered for it{newer}")

    def _say(self, topic: str, what: str, why: str) -> None:
        if (topic, what) not in self._said:
            self._said.add((topic, what))
            log.warning("%s on topic %s are skipped: %s (said once)", what, topic, why)
