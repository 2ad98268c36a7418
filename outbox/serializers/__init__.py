"""How an event becomes bytes and comes back: one Protocol, JSON by default."""

from typing import Protocol, TypeVar

from pydantic import BaseModel

from outbox.serializers.json import JsonSerializer

M = TypeVar("M", bound=BaseModel)


class Serializer(Protocol):
    """Whatever `serialize` accepts, `deserialize` gives back equal."""

    @property
    def content_type(self) -> str:
        """A media type. It travels as a header unless it is application/json."""
        ...

    def serialize(self, event: BaseModel) -> bytes:
        """The bytes on the wire. Raises EventNotSerialisable naming the field that has none."""
        ...

    def deserialize(self, model: type[M], payload: bytes) -> M:
        """The event that `payload` is. Raises UndecodableRecord naming what does not fit."""
        ...


__all__ = ["JsonSerializer", "Serializer"]
