"""Of what was polled, keep what is news and has a handler."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outbox import catalog
from outbox.consumer.foreign import shapes as foreign
from outbox.consumer.handlers import UNTYPED, Handlers, Route, Run
from outbox.consumer.record import Polled, enveloped_type, headers_of
from outbox.consumer.settings import Unknown
from outbox.consumer.watermark import Marks
from outbox.errors import ConfigurationError, Reject
from outbox.record import REPLAY, SEQ, TYPE, replayed_for

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sifted:
    """What a batch has to do, and the marks once it is done.

    ids: of foreign records whose repeats are dropped, by offset.
    """

    runs: list[Run]
    marks: Marks
    applied: int
    repeats: int
    skipped: int
    ids: list[tuple[int, str]]


class Sieve:
    """Drops repeats by their marks, replays that are meant for others, and what nobody handles by its type;
    says the latter once a type."""

    def __init__(self, group: str, handlers: Handlers, unknown: Unknown) -> None:
        self._group = group
        self._handlers = handlers
        self._unknown = unknown
        self._said: set[tuple[str, str]] = set()

    def sift(
        self,
        topic: str,
        messages: Sequence[Polled],
        marks: Marks,
        discarded: frozenset[int] = frozenset(),
    ) -> Sifted:
        """`marks` stays as it is. discarded: offsets that are passed over.

        Raises UndecodableRecord or Reject for a record that can never pass, ConfigurationError where it stops
        its partition.
        """
        marks = marks.copy()
        routes = self._handlers.routes(topic)
        runs: list[Run] = []
        ids: list[tuple[int, str]] = []
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
            if (discarded and message.offset() in discarded) or (
                replay is not None and not replayed_for(replay, self._group)
            ):
                skipped += 1
                continue
            if seq is None:
                type_, route = _foreign(routes, message, type_)
            else:
                type_ = type_ or enveloped_type(message)
                route = routes.get(type_ or UNTYPED) or routes.get(None)
            if route is None or (not route.handler.tombstones and _is_tombstone(route, message)):
                self._pass_by(topic, type_, route)
                skipped += 1
                continue
            if route.foreign is None and route.handler.dedupe is not None:
                self._identify(topic, route, message, ids)
            if route is last:
                runs[-1].messages.append(message)
            else:
                runs.append(Run(route, [message]))
                last = route
        return Sifted(runs, marks, len(messages) - repeats - skipped, repeats, skipped, ids)

    def ids(self, topic: str, messages: Sequence[Polled]) -> list[tuple[int, str]]:
        """The same of records that are not run now, as far as they can be known."""
        routes = self._handlers.routes(topic)
        found: list[tuple[int, str]] = []
        for message in messages:
            if _header(message, SEQ) is not None:
                continue
            _, route = _foreign(routes, message, _header(message, TYPE))
            if route is not None and route.handler.dedupe is not None:
                try:
                    self._identify(topic, route, message, found)
                except Exception as error:
                    log.info("%s[%s]: no id: %s", topic, message.partition(), error)
        return found

    def _identify(self, topic: str, route: Route, message: Polled, ids: list[tuple[int, str]]) -> None:
        offset, dedupe = message.offset(), route.handler.dedupe
        assert offset is not None
        assert dedupe is not None
        found = dedupe.entry(topic, message)
        if found is not None:
            ids.append((offset, found))
        elif (topic, "") not in self._said:
            self._said.add((topic, ""))
            log.warning(
                "records on topic %s have no event id: they are handled, a repeat of them too (said once)",
                topic,
            )

    def route(self, topic: str, message: Polled) -> Run | None:
        """Where a parked record goes, whose number was looked at when it was read; None: nobody wants it."""
        type_ = _header(message, TYPE)
        routes = self._handlers.routes(topic)
        if _header(message, SEQ) is None:
            type_, route = _foreign(routes, message, type_)
        else:
            type_ = type_ or enveloped_type(message)
            route = routes.get(type_ or UNTYPED) or routes.get(None)
        if route is None:
            self._refuse(topic, type_)
        elif route.handler.tombstones or not _is_tombstone(route, message):
            return Run(route, [message])
        return None

    def _pass_by(self, topic: str, type_: bytes | None, route: Route | None) -> None:
        if route is None:
            self._refuse(topic, type_)
        else:
            what = f"tombstones of {route.wire_type}"
            self._say(topic, what, "its handler is not registered with tombstones=True")

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


def _is_tombstone(route: Route, message: Polled) -> bool:
    return message.value() is None or (route.foreign is None and foreign.is_null(message))


def _foreign(
    routes: Mapping[bytes | None, Route], message: Polled, type_: bytes | None
) -> tuple[bytes | None, Route | None]:
    """The type of a record that no relay wrote, as its producer names it, and where it goes."""
    if not type_ or type_[:1] in b'"{':
        type_ = foreign.type_of(message)
    route = routes.get(type_ or UNTYPED) or routes.get(None)
    return type_, route and (route.foreign or route)


def _header(message: Polled, wanted: str) -> bytes | None:
    return next((value for name, value in headers_of(message) if name == wanted), None)
