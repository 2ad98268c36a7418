"""Which function applies which record."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy.orm import Session

from outbox import catalog
from outbox.consumer.record import Polled, record_of
from outbox.errors import ConfigurationError
from outbox.event import Event, is_named

Function = Callable[..., object]


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """One registered function.

    wants_record: it takes the record (or records) as a third argument. bulk: it takes lists.
    typed: it takes decoded events, else the records' bytes. tombstones: it takes None for a null value.
    """

    function: Function
    wants_record: bool
    bulk: bool
    typed: bool
    tombstones: bool


@dataclass(frozen=True, slots=True)
class Task:
    """One record on its way to its handler."""

    message: Polled
    handler: Handler
    wire_type: str


class Handlers:
    """All handlers of one consumer, found by topic and type."""

    def __init__(self) -> None:
        self._by_type: dict[tuple[str, bytes], tuple[Handler, str]] = {}
        self._by_topic: dict[str, Handler] = {}

    def add(
        self,
        function: Function,
        events: Sequence[type[Event]],
        *,
        topic: str | None,
        bulk: bool,
        tombstones: bool,
    ) -> None:
        """Raises ConfigurationError for what can never work."""
        name = getattr(function, "__qualname__", repr(function))
        if not events and topic is None:
            raise ConfigurationError(
                f"{name} handles nothing; name events: @consumer.on(OrderPlaced), or topic="
            )
        if inspect.iscoroutinefunction(function):
            raise ConfigurationError(f"{name} is async; handlers of a Consumer are plain functions (def)")
        handler = Handler(
            function, _takes_record(function, name), bulk, bool(events), tombstones or not events
        )
        if not events:
            assert topic is not None
            if topic in self._by_topic:
                raise ConfigurationError(
                    f"topic {topic} has a handler already; {name} cannot be a second one"
                )
            self._by_topic[topic] = handler
        for event in events:
            if not is_named(event):
                raise ConfigurationError(
                    f"{event.__qualname__} has no name on the wire; {name} cannot handle it"
                )
            key = (topic or event.__topic__, event.__wire_type__.encode())
            if key in self._by_type:
                raise ConfigurationError(
                    f"{event.__wire_type__} on topic {key[0]} has a handler already; {name} cannot be a "
                    "second one. Call both from one handler, or give the second its own consumer group"
                )
            self._by_type[key] = (handler, event.__wire_type__)

    @property
    def topics(self) -> list[str]:
        """What to subscribe to."""
        return sorted({topic for topic, _ in self._by_type} | set(self._by_topic))

    def find(self, topic: str, type_: bytes | None) -> tuple[Handler, str] | None:
        """The handler of a record, with its type in words; None if nobody handles it."""
        if type_ is not None:
            found = self._by_type.get((topic, type_))
            if found is not None:
                return found
        handler = self._by_topic.get(topic)
        return None if handler is None else (handler, "")


def apply(session: Session, tasks: Iterable[Task]) -> None:
    """Call the handlers in the records' order; neighbours of one type go to a bulk handler together."""
    for (handler, wire_type), run in groupby(tasks, key=lambda task: (task.handler, task.wire_type)):
        if handler.bulk:
            messages = [task.message for task in run]
            events = [_event(handler, wire_type, message) for message in messages]
            if handler.wants_record:
                handler.function(session, events, [record_of(message) for message in messages])
            else:
                handler.function(session, events)
            continue
        for task in run:
            event = _event(handler, wire_type, task.message)
            if handler.wants_record:
                handler.function(session, event, record_of(task.message))
            else:
                handler.function(session, event)


def _event(handler: Handler, wire_type: str, message: Polled) -> Any:
    payload = message.value()
    if payload is None or not handler.typed:
        return payload
    return catalog.decode(wire_type, payload)


def _takes_record(function: Function, name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{name} has no readable signature: {error}") from error
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
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
    return len(by_place) >= 3
