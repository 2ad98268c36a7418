"""JSON as pydantic writes it: readable by everybody, about a microsecond an event."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from outbox.errors import EventNotSerialisable, UndecodableRecord
from outbox.record import JSON

M = TypeVar("M", bound=BaseModel)


class JsonSerializer:
    """Fields under their aliases; unknown fields of a newer writer are ignored when read."""

    content_type = JSON

    def serialize(self, event: BaseModel) -> bytes:
        try:
            return event.model_dump_json(by_alias=True).encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise EventNotSerialisable(
                f"{type(event).__qualname__}{_culprit(event)} has no JSON form: {error}. Give the field a "
                "type that pydantic can write, or a @field_serializer"
            ) from error

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


def _culprit(event: BaseModel) -> str:
    """The field that cannot be written alone, as `.field`."""
    for field in type(event).model_fields:
        try:
            event.model_dump_json(include={field})
        except (ValueError, TypeError, RecursionError):
            return f".{field}"
    return ""
