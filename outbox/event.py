"""An event has a name and a version on the wire that never depend on where its class lives."""

import re
from collections.abc import Callable
from datetime import date
from enum import Enum
from typing import Any, ClassVar, TypeVar, Unpack
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from outbox import catalog
from outbox.errors import ConfigurationError, EventNotSerialisable, EventRejected
from outbox.preflight import text_fault, topic_fault
from outbox.record import default_topic, wire_type
from outbox.serializers import JsonSerializer, Serializer
from outbox.upcast import Step, Upcastable, Versions

S = TypeVar("S", bound=Step)

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")


class Event(BaseModel):
    """Something that happened; a frozen pydantic model that travels under its name and version.

        class OrderPlaced(Event, name="order.placed", version=1, topic="orders", aggregate="order",
                          key="order_id"):
            order_id: UUID
            total: Decimal

    name, version  what the `type` header says: `order.placed.v1`. A class without a name is a base that
                   others inherit topic, aggregate and key from; it cannot be emitted.
    aggregate      the kind of thing it happened to; needed.
    topic          where it goes; without one, to `outbox.event.<aggregate>`.
    key            the field that holds the aggregate's id. Events of one key stay in order; without a key
                   an event is ordered against nothing.

    Raises ConfigurationError or CatalogError when the class is defined, never later.
    """

    # No NaN: JSON has none, it would arrive as null. Bytes as base64: they need not be UTF-8.
    model_config = ConfigDict(
        frozen=True, allow_inf_nan=False, ser_json_bytes="base64", val_json_bytes="base64"
    )

    __wire_type__: ClassVar[str]
    """`order.placed.v1`; absent from a base without a name."""
    __topic__: ClassVar[str]
    """The topic's full name, routed by the aggregate when the class names none."""
    __aggregate__: ClassVar[str | None] = None
    __own_topic__: ClassVar[str | None] = None
    __key__: ClassVar[str | None] = None
    __versions__: ClassVar[Versions]
    """This one and the older ones that it can be read from; absent from a base without a name."""
    __serializer__: ClassVar[Serializer] = JsonSerializer()

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        version: int = 1,
        topic: str | None = None,
        aggregate: str | None = None,
        key: str | None = None,
        **config: Unpack[ConfigDict],
    ) -> None:
        # The arguments are used below, once pydantic knows the fields. What it knows as configuration it has
        # taken away already; type checkers learn of it here.
        if config:
            raise ConfigurationError(
                f"event class {cls.__qualname__}: unknown keyword {', '.join(config)}; it takes name, "
                "version, topic, aggregate and key, and pydantic's configuration"
            )
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(
        cls,
        *,
        name: str | None = None,
        version: int = 1,
        topic: str | None = None,
        aggregate: str | None = None,
        key: str | None = None,
        **config: Any,
    ) -> None:
        super().__pydantic_init_subclass__(**config)
        cls.__own_topic__ = topic if topic is not None else cls.__own_topic__
        cls.__aggregate__ = aggregate if aggregate is not None else cls.__aggregate__
        cls.__key__ = key if key is not None else cls.__key__
        if name is not None:
            _define(cls, name, version)

    @classmethod
    def upcast(cls, *, from_version: int) -> Callable[[S], S]:
        """Register how a payload of `from_version` becomes one of the version after it.

            @OrderPlaced.upcast(from_version=1)
            def currency_was_always_euro(fields: dict[str, Any]) -> dict[str, Any]:
                return {**fields, "currency": "EUR"}

        The fields are as the wire has them: under their aliases, a UUID, Decimal or date as text. Steps are
        chained up to the class's version. Register them where the class is defined: a handler looks for them
        when it is registered.

        Raises ConfigurationError or CatalogError: a version that is not below the class's, or twice.
        """
        if not is_named(cls):
            raise ConfigurationError(f"{cls.__qualname__} has no name on the wire, hence no older versions")
        if not isinstance(cls.__serializer__, Upcastable):
            raise ConfigurationError(
                f"the serializer of {cls.__qualname__} cannot upcast: give "
                f"{type(cls.__serializer__).__name__} the methods fields(payload) and payload(fields)"
            )

        def register(step: S) -> S:
            cls.__versions__.add(from_version, step)
            return step

        return register


def _define(cls: type[Event], name: str, version: int) -> None:
    where = f"event class {cls.__qualname__}"
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f'{where}: name {name!r} is not of the form "order.placed"')
    if version < 1:
        raise ConfigurationError(f"{where}: version {version!r} is not an integer from 1 on")
    aggregate = cls.__aggregate__
    if not aggregate:
        raise ConfigurationError(f'{where}: name the aggregate it belongs to, e.g. aggregate="order"')
    if fault := text_fault(aggregate):
        raise ConfigurationError(f"{where}: the aggregate {fault}")
    topic = cls.__own_topic__ if cls.__own_topic__ is not None else default_topic(aggregate)
    if fault := topic_fault(topic):
        raise ConfigurationError(f"{where}: {fault}")
    key = cls.__key__
    if key is not None and key not in cls.model_fields and not hasattr(cls, key):
        raise ConfigurationError(
            f"{where}: key={key!r} names no field; the fields are {', '.join(cls.model_fields) or 'none'}"
        )
    cls.__wire_type__ = wire_type(name, version)
    cls.__versions__ = Versions(name, version, {})
    cls.__topic__ = topic
    catalog.register(cls)


def is_named(event: type[Event]) -> bool:
    """Has this very class a wire type? (One that it inherited belongs to its parent.)"""
    return "__wire_type__" in event.__dict__


def key_of(event: Event) -> str | None:
    """The aggregate's id as text; None for a class without a key.

    Raises EventRejected when the field is None, EventNotSerialisable when it is no str, int, UUID, date or
    Enum of these.
    """
    field = event.__key__
    if field is None:
        return None
    return key_text(getattr(event, field), type(event), field)


def key_text(value: object, cls: type[Event], field: str = "key") -> str:
    """`value` of `field` as a key is written. Raises EventRejected, EventNotSerialisable."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return value
    if isinstance(value, UUID | int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, date):
        return value.isoformat()
    name = cls.__qualname__
    if value is None:
        raise EventRejected(
            f"{name} was not recorded: its key field {field} is None, so its order would be lost; set it, "
            "or define the event without a key"
        )
    raise EventNotSerialisable(
        f"{name}.{field} is a {type(value).__name__}, and a key is a str, int, UUID or date; "
        "choose another field, or pass emit(..., key=...)"
    )
