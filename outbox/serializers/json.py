"""JSON as pydantic writes it: readable by everybody, about a microsecond an event."""

from collections.abc import Iterable
from json import dumps, loads
from math import isfinite
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from outbox.errors import EventNotSerialisable, UndecodableRecord
from outbox.record import JSON

M = TypeVar("M", bound=BaseModel)


class JsonSerializer:
    """Fields under their aliases; unknown fields of a newer writer are ignored when read."""

    content_type = JSON

    def serialize(self, event: BaseModel) -> bytes:
        try:
            payload = event.model_dump_json(by_alias=True).encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise EventNotSerialisable(
                f"{type(event).__qualname__}{_culprit(event)} has no JSON form: {error}. Give the field a "
                "type that pydantic can write, or a @field_serializer"
            ) from error
        # pydantic writes null for a NaN that no field's type refuses; to look for one costs more than this.
        if b"null" in payload and (place := _not_a_number(event.model_dump(by_alias=True))) is not None:
            raise EventNotSerialisable(
                f"{type(event).__qualname__}{place} is not a finite number, and JSON has no other: it would "
                "arrive as null. Send None, or text, on purpose"
            )
        return payload

    def deserialize(self, model: type[M], payload: bytes) -> M:
        try:
            return model.model_validate_json(payload)
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, detail['loc'])) or 'payload'}: {detail['msg']}"
                for detail in error.errors(include_url=False, include_context=False, include_input=False)
            )
            raise UndecodableRecord(
                f"a payload of {len(payload)} bytes is not a {model.__qualname__}: {wrong}. A change that "
                "old records do not fit needs a new version of the event"
            ) from error

    def fields(self, payload: bytes) -> dict[str, Any]:
        """For upcasts. Raises UndecodableRecord for what is no JSON object."""
        try:
            found = loads(payload)
        except (ValueError, RecursionError) as error:
            raise UndecodableRecord(f"a payload of {len(payload)} bytes is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise UndecodableRecord(
                f"a payload of {len(payload)} bytes is no JSON object, so it has no fields"
            )
        return found

    def payload(self, fields: dict[str, Any]) -> bytes:
        return dumps(fields, ensure_ascii=False, allow_nan=False).encode()


def _not_a_number(value: object) -> str | None:
    """Where a NaN or an infinity stands in what would be written, as `.field[2]`; None when there is none."""
    if isinstance(value, float):
        return None if isfinite(value) else ""
    parts: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple | set | frozenset):
        parts = enumerate(value)
    for name, part in parts:
        if (place := _not_a_number(part)) is not None:
            return (f".{name}" if isinstance(name, str) else f"[{name}]") + place
    return None


def _culprit(event: BaseModel) -> str:
    """The field that cannot be written alone, as `.field`."""
    for field in type(event).model_fields:
        try:
            event.model_dump_json(include={field})
        except (ValueError, TypeError, RecursionError):
            return f".{field}"
    return ""
