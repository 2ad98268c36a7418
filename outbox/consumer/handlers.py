"""Which function applies which record."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from outbox import catalog
from outbox.consumer.foreign import shapes as foreign
from outbox.consumer.foreign.dedupe import Dedupe
from outbox.consumer.record import Polled, record_of
from outbox.errors import ConfigurationError
from outbox.event import Event, is_named
from outbox.upcast import is_newer, parse

Function = Callable[..., object]

UNTYPED = b""
"""The type, for a route, of records that name none."""


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """One registered function.

    wants_record: it takes the record (or records) as a third argument. bulk: it takes lists.
    typed: it takes decoded events, else the records' bytes. tombstones: it takes None for a null value.
    dedupe: how repeats of foreign records are known, if they are dropped.
    """

    function: Function
    wants_record: bool
    bulk: bool
    typed: bool
    tombstones: bool
    dedupe: Dedupe | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """Where records of one topic and type go.

    wire_type: of the event that the handler gets, "" for records that are not decoded. written: what the
    records themselves say, an older version if they are upcast. foreign: the same for records that no relay
    wrote; None on that one itself.
    """

    handler: Handler
    wire_type: str
    written: str
    foreign: "Route | None" = None


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring records on one route."""

    route: Route
    messages: list[Polled]


class Handlers:
    """All handlers of one consumer, found by topic and type. awaited: they are coroutine functions."""

    def __init__(self, *, awaited: bool = False) -> None:
        self._awaited = awaited
        self._routes: dict[str | re.Pattern[str], dict[bytes | None, Route]] = {}
        self._found: dict[str, Mapping[bytes | None, Route]] = {}

    def add(
        self,
        function: Function,
        events: Sequence[type[Event]],
        *,
        topic: str | re.Pattern[str] | None,
        bulk: bool,
        tombstones: bool,
        wire_type: str | None = None,
        default: bool = False,
        dedupe: Dedupe | None = None,
    ) -> None:
        """topic: a name, or a pattern: compiled, or a string that begins with ^.

        Raises ConfigurationError for what can never work.
        """
        name = getattr(function, "__qualname__", repr(function))
        topic = _pattern(topic) if isinstance(topic, str) and topic.startswith("^") else topic
        if not events and topic is None:
            raise ConfigurationError(
                f"{name} handles nothing; name events: @consumer.on(OrderPlaced), or topic="
            )
        if inspect.iscoroutinefunction(function) and not self._awaited:
            raise ConfigurationError(
                f"{name} is async; handlers of a Consumer are plain functions (def), those of an "
                "AsyncConsumer are async"
            )
        if self._awaited and _is_plain(function):
            raise ConfigurationError(
                f"{name} is a plain function; handlers of an AsyncConsumer are async def"
            )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(f"{name} contains `yield`, so calling it would run nothing of it")
        handler = Handler(
            function, _takes_record(function, name), bulk, bool(events), tombstones or not events, dedupe
        )
        if (default or wire_type is not None) and len(events) != 1:
            raise ConfigurationError(
                f"{name}: default= and wire_type= say how one event comes; register it with that event alone"
            )
        if not events:
            assert topic is not None
            self._route(topic, None, _route(handler, "", ""), name, f"topic {_spelled(topic)}")
        for event in events:
            if not is_named(event):
                raise ConfigurationError(
                    f"{event.__qualname__} has no name on the wire; {name} cannot handle it"
                )
            where, type_ = topic or event.__topic__, event.__wire_type__
            route, named = _route(handler, type_, type_), wire_type or type_
            self._route(where, named.encode(), route, name, f"{named} on topic {_spelled(where)}")
            if default:
                self._route(where, UNTYPED, route, name, f"records without a type on topic {_spelled(where)}")
            for older in catalog.readable(event):
                self._upcast(where, _route(handler, type_, older), name)

    def _route(
        self, topic: str | re.Pattern[str], type_: bytes | None, route: Route, name: str, what: str
    ) -> None:
        routes = self._routes.setdefault(topic, {})
        if type_ in routes and not _is_upcast(routes[type_]):
            raise ConfigurationError(
                f"{what} has a handler already; {name} cannot be a second one. Call both from one "
                "handler, or give the second its own consumer group"
            )
        routes[type_] = route
        self._found.clear()

    def _upcast(self, topic: str | re.Pattern[str], route: Route, name: str) -> None:
        """An older version goes to the handler of its own class, if there is one, else to this one."""
        routes = self._routes[topic]
        known = routes.setdefault(route.written.encode(), route)
        if known is not route and _is_upcast(known):
            raise ConfigurationError(
                f"{route.written} on topic {_spelled(topic)} is upcast to {known.wire_type} already; {name} "
                f"takes it as {route.wire_type}. Register a handler for one of the two"
            )

    @property
    def topics(self) -> list[str]:
        """Those that are named."""
        return sorted(topic for topic in self._routes if isinstance(topic, str))

    @property
    def patterns(self) -> list[re.Pattern[str]]:
        """Those that mean every topic whose whole name they match."""
        return [topic for topic in self._routes if isinstance(topic, re.Pattern)]

    def window(self, topic: str) -> timedelta | None:
        """For how long the ids of its records are kept; None if no handler of it drops repeats."""
        asked = (route.handler.dedupe for route in self.routes(topic).values())
        return max((each.window for each in asked if each is not None), default=None)

    def routes(self, topic: str) -> Mapping[bytes | None, Route]:
        """By type; under None the route of all records of the topic that have no other.

        What is registered for the name goes before what is registered for a pattern, and an earlier pattern
        before a later one.
        """
        found = self._found.get(topic)
        if found is None:
            found = dict(self._routes.get(topic, {}))
            for pattern in self.patterns:
                if pattern.fullmatch(topic):
                    found = {**self._routes[pattern], **found}
            self._found[topic] = found
        return found

    def newest(self, topic: str, type_: str) -> int | None:
        """The newest version of its name that has a handler, if `type_` is a later one."""
        known: dict[str, int] = {}
        for route in self.routes(topic).values():
            name, version = parse(route.wire_type) or ("", 0)
            known[name] = max(version, known.get(name, 0))
        return is_newer(type_, known)


def _is_upcast(route: Route) -> bool:
    return route.written != route.wire_type


def apply(session: Session, runs: Iterable[Run], turn: Callable[[], bool]) -> Polled | None:
    """Call the handlers in the records' order; a bulk handler gets a run at once.

    turn: asked before each call. Returns the record before which it said no, None if all were handled.
    A handler finds a transaction begun, so that it may emit before anything else.
    """
    for run in runs:
        handler = run.route.handler
        events = read(run)
        if handler.bulk:
            if not turn():
                return run.messages[0]
            if not session.in_transaction():
                session.begin()
            if handler.wants_record:
                result = handler.function(session, events, [record_of(message) for message in run.messages])
            else:
                result = handler.function(session, events)
            if result is not None:
                refuse_unrun(handler, result)
            continue
        for event, message in zip(events, run.messages, strict=True):
            if not turn():
                return message
            if not session.in_transaction():
                session.begin()
            if handler.wants_record:
                result = handler.function(session, event, record_of(message))
            else:
                result = handler.function(session, event)
            if result is not None:
                refuse_unrun(handler, result)
    return None


def _is_plain(function: Function) -> bool:
    """A function that returns no coroutine, unless a decorator round an `async def` does."""
    inner = inspect.unwrap(function)
    return inspect.isfunction(inner) and not any(map(inspect.iscoroutinefunction, (function, inner)))


def refuse_unrun(handler: Handler, result: object) -> None:
    """A decorator or a callable object can hide from `add` that a call only prepares the work."""
    if inspect.iscoroutine(result) or inspect.isgenerator(result):
        result.close()
        raise ConfigurationError(
            f"{getattr(handler.function, '__qualname__', repr(handler.function))} returned a "
            f"{type(result).__name__}, so nothing was done yet; handlers are plain functions (def)"
        )


def read(run: Run) -> Iterable[Any]:
    """What the handlers get: events, or bytes on a route that is not decoded; None for a tombstone.

    Lazily for a handler that takes them one by one, so that an earlier record's failure comes first.
    """
    if not run.route.handler.typed:
        return [message.value() for message in run.messages]
    payloads: Iterable[bytes | None]
    if run.route.foreign is None:
        payloads = (foreign.payload(message) for message in run.messages)
    else:
        payloads = (message.value() for message in run.messages)
    decode = catalog.decoder(run.route.wire_type, run.route.written)
    events = (None if payload is None else decode(payload) for payload in payloads)
    return list(events) if run.route.handler.bulk else events


def _route(handler: Handler, wire_type: str, written: str) -> Route:
    return Route(handler, wire_type, written, foreign=Route(handler, wire_type, written))


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigurationError(f"topic={text!r} begins with ^ but is no pattern: {error}") from error


def _spelled(topic: str | re.Pattern[str]) -> str:
    return topic if isinstance(topic, str) else topic.pattern


def _takes_record(function: Function, name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{name} has no readable signature: {error}") from error
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    third = by_place[2] if len(by_place) >= 3 else None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    needed = [p for p in by_place if p.default is p.empty]
    if (
        len(by_place) < 2
        or len(needed) > 3
        or any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters)
    ):
        raise ConfigurationError(
            f"{name} must take (session, event) or (session, event, record); it takes "
            f"({', '.join(p.name for p in parameters)})"
        )
    # A third parameter with a default is the function's own business, unless it says that it is the record.
    return third is not None and (third.default is third.empty or _means_record(third))


def _means_record(parameter: inspect.Parameter) -> bool:
    annotation = parameter.annotation
    words = (
        annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "") + str(annotation)
    )
    return parameter.name in ("record", "records") or re.search(r"\bRecord\b", words) is not None
