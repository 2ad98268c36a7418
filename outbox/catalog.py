"""Find the one class of an event name and version, whatever its module is called today."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from outbox.errors import CatalogError

if TYPE_CHECKING:
    from outbox.event import Event

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
    """The class of `order.placed.v1`. Raises CatalogError when no imported module defines one."""
    try:
        return _classes[wire_type]
    except KeyError:
        raise CatalogError(
            f"no event class is named {wire_type}; import the module that defines it before it is needed "
            f"(known: {', '.join(sorted(_classes)) or 'none'})"
        ) from None


def decoder(wire_type: str) -> "Callable[[bytes], Event]":
    """Makes events of payloads of one type, raising UndecodableRecord. Raises CatalogError."""
    event = lookup(wire_type)
    return partial(event.__serializer__.deserialize, event)


def decode(wire_type: str, payload: bytes) -> "Event":
    """The event that `payload` is. Raises CatalogError or UndecodableRecord."""
    return decoder(wire_type)(payload)


def registered() -> "dict[str, type[Event]]":
    """All classes known now, by wire type."""
    return dict(_classes)


def _path(event: "type[Event]") -> str:
    return f"{event.__module__}.{event.__qualname__}"
