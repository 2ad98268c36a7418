"""Find the one class of an event name and version, whatever its module is called today."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from outbox.errors import CatalogError
from outbox.record import wire_type
from outbox.upcast import Upcastable, is_newer, parse

if TYPE_CHECKING:
    from outbox.event import Event

DEPLOY = "deploy the consumers of a new version before its producers"

_classes: "dict[str, type[Event]]" = {}


def register(event: "type[Event]") -> None:
    """Called for each named Event class. Raises CatalogError when another class has the name already.

    The same class defined anew (a reloaded module, a notebook cell run twice) replaces the old one.
    """
    wire_type = event.__wire_type__
    known = _classes.get(wire_type)
    if known is not None and _path(known) != _path(event):
        raise CatalogError(
            f"{wire_type} is claimed by {_path(known)} and by {_path(event)}; give one of them another name, "
            "or raise its version"
        )
    _classes[wire_type] = event


def lookup(wire_type: str) -> "type[Event]":
    """The class of `order.placed.v1`, or the newer one that its payloads are upcast to.

    Raises CatalogError when no imported module defines one.
    """
    event = _classes.get(wire_type) or _upcasting(wire_type)
    if event is None:
        newer = is_newer(wire_type, newest_versions(_classes.values()))
        raise CatalogError(
            f"{wire_type} is newer than version {newer}, the newest known here: {DEPLOY}"
            if newer is not None
            else f"no event class is named {wire_type}; import the module that defines it before it is "
            f"needed (known: {', '.join(sorted(_classes)) or 'none'})"
        )
    return event


def decoder(wire_type: str, written: str | None = None) -> "Callable[[bytes], Event]":
    """Makes events of `wire_type` of payloads, raising UndecodableRecord. Raises CatalogError.

    written: the type that the payloads were written as, if it is an older version.
    """
    event = lookup(wire_type)
    decode = partial(event.__serializer__.deserialize, event)
    written = written or wire_type
    if written == event.__wire_type__:
        return decode
    return partial(_decode_older, event, _version(event, written), decode)


def decode(wire_type: str, payload: bytes) -> "Event":
    """The event that `payload` is. Raises CatalogError or UndecodableRecord."""
    return decoder(wire_type)(payload)


def readable(event: "type[Event]") -> list[str]:
    """The older wire types that are upcast to `event`. Raises CatalogError where a step is missing."""
    versions = event.__versions__
    return [wire_type(versions.name, version) for version in versions.older()]


def newest_versions(events: "Iterable[type[Event]]") -> dict[str, int]:
    """The highest version of each name among `events`."""
    newest: dict[str, int] = {}
    for event in events:
        versions = event.__versions__
        newest[versions.name] = max(versions.newest, newest.get(versions.name, 0))
    return newest


def registered() -> "dict[str, type[Event]]":
    """All classes known now, by wire type."""
    return dict(_classes)


def _upcasting(wire_type: str) -> "type[Event] | None":
    """Of the classes that read `wire_type` as their own, the lowest version."""
    parsed = parse(wire_type)
    if parsed is None:
        return None
    name, version = parsed
    found = [
        event
        for event in _classes.values()
        if event.__versions__.name == name and version in event.__versions__.older()
    ]
    return min(found, key=lambda event: event.__versions__.newest, default=None)


def _version(event: "type[Event]", written: str) -> int:
    parsed, versions = parse(written), event.__versions__
    if parsed is None or parsed[0] != versions.name or parsed[1] not in versions.older():
        raise CatalogError(f"{written} is not upcast to {event.__wire_type__}")
    return parsed[1]


def _decode_older(
    event: "type[Event]", written: int, decode: "Callable[[bytes], Event]", payload: bytes
) -> "Event":
    serializer = event.__serializer__
    assert isinstance(serializer, Upcastable), "checked when the step was registered"
    return decode(event.__versions__.raise_to_newest(written, payload, serializer))


def _path(event: "type[Event]") -> str:
    return f"{event.__module__}.{event.__qualname__}"
