"""A record of an older version is read as the event it has become; what cannot be read is said."""

from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from outbox import CatalogError, ConfigurationError, Event, UndecodableRecord, catalog
from outbox.consumer.handlers import Handlers

ID = UUID(int=7)


class Placed(Event, name="upcast.placed", version=3, topic="upcast", aggregate="order", key="id"):
    id: UUID
    total: Decimal
    currency: str = Field(alias="curr")


@Placed.upcast(from_version=1)
def total_was_cents(fields: dict[str, Any]) -> dict[str, Any]:
    return {"id": fields["id"], "total": str(Decimal(fields["cents"]) / 100)}


@Placed.upcast(from_version=2)
def currency_was_euro(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "curr": "EUR"}


NOW = Placed(id=ID, total=Decimal("9.9"), curr="EUR")


@pytest.mark.parametrize(
    ("type_", "payload"),
    [
        ("upcast.placed.v1", f'{{"id":"{ID}","cents":990}}'),
        ("upcast.placed.v2", f'{{"id":"{ID}","total":"9.9"}}'),
        ("upcast.placed.v3", f'{{"id":"{ID}","total":"9.9","curr":"EUR"}}'),
    ],
)
def test_every_older_version_is_read_as_the_newest(type_: str, payload: str) -> None:
    assert catalog.decode(type_, payload.encode()) == NOW
    assert catalog.lookup(type_) is Placed


def test_a_newer_version_than_known_says_so_and_in_which_order_to_deploy() -> None:
    with pytest.raises(CatalogError, match=r"newer than version 3.*consumers of a new version before"):
        catalog.decode("upcast.placed.v4", b"{}")


def test_a_class_of_its_own_reads_an_old_version_before_any_upcast() -> None:
    class First(Event, name="upcast.kept", version=1, aggregate="thing"):
        n: int

    class Second(Event, name="upcast.kept", version=2, aggregate="thing"):
        n: int

    Second.upcast(from_version=1)(lambda fields: {"n": fields["n"] + 100})
    assert catalog.decode("upcast.kept.v1", b'{"n":1}') == First(n=1)
    assert catalog.decoder("upcast.kept.v2", "upcast.kept.v1")(b'{"n":1}') == Second(n=101)


@pytest.mark.parametrize("version", [0, 3, 4, True])
def test_only_versions_below_the_class_have_an_upcast(version: int) -> None:
    with pytest.raises(ConfigurationError, match=r"from_version|the class is version 3"):
        Placed.upcast(from_version=version)(dict)


def test_a_version_has_one_upcast() -> None:
    with pytest.raises(CatalogError, match=r"upcast\.placed\.v1 has an upcast already"):
        Placed.upcast(from_version=1)(dict)


def test_a_gap_in_the_chain_is_named_when_a_handler_is_registered() -> None:
    class Gappy(Event, name="upcast.gappy", version=4, topic="gappy", aggregate="thing"):
        n: int

    Gappy.upcast(from_version=1)(dict)
    Gappy.upcast(from_version=3)(dict)
    with pytest.raises(CatalogError, match=r"from version 2 to 3 none leads on.*from_version=2"):
        Handlers().add(lambda session, event: None, [Gappy], topic=None, bulk=False, tombstones=False)


def test_a_class_without_a_name_has_no_versions() -> None:
    class Nameless(Event, aggregate="thing"):
        pass

    with pytest.raises(ConfigurationError, match="no name on the wire"):
        Nameless.upcast(from_version=1)


def test_a_serializer_that_cannot_show_fields_is_told_what_it_lacks() -> None:
    class Opaque:
        content_type = "application/x-opaque"

        def serialize(self, _event: BaseModel) -> bytes:
            return b""

        def deserialize(self, model: Any, payload: bytes) -> Any:
            return model(payload)

    class Hidden(Event, name="upcast.hidden", version=2, aggregate="thing"):
        __serializer__ = Opaque()

    with pytest.raises(ConfigurationError, match=r"Opaque the methods fields\(payload\)"):
        Hidden.upcast(from_version=1)


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b'{"id":"x"}', r"the upcast of upcast\.placed\.v1 failed with KeyError: 'cents'"),
        (b"[1]", "no JSON object"),
        (b"{", "is not JSON"),
        (b'{"id":"07def496-6302-46c0-9615-906da6386e61","cents":"x"}', "failed with"),
        (b'{"id":"x","cents":1}', "is not a Placed: id"),
    ],
)
def test_what_a_step_cannot_raise_is_an_undecodable_record(payload: bytes, says: str) -> None:
    with pytest.raises(UndecodableRecord, match=says):
        catalog.decode("upcast.placed.v1", payload)


def test_a_step_that_returns_nothing_is_named() -> None:
    class Lost(Event, name="upcast.lost", version=2, aggregate="thing"):
        n: int = 0

    Lost.upcast(from_version=1)(lambda fields: None)  # type: ignore[type-var]
    with pytest.raises(UndecodableRecord, match="returned a NoneType"):
        catalog.decode("upcast.lost.v1", b"{}")


def test_a_handler_takes_all_versions_that_lead_to_its_own() -> None:
    def handle(session: Any, event: Placed) -> None: ...

    handlers = Handlers()
    handlers.add(handle, [Placed], topic=None, bulk=False, tombstones=False)
    assert sorted(handlers.routes("upcast")) == [  # type: ignore[type-var]
        b"upcast.placed.v1",
        b"upcast.placed.v2",
        b"upcast.placed.v3",
    ]
    assert handlers.newest("upcast", "upcast.placed.v4") == 3
    assert handlers.newest("upcast", "upcast.placed.v2") is None


@pytest.mark.parametrize("own_first", [True, False])
def test_a_handler_of_the_old_class_keeps_its_records(own_first: bool) -> None:
    class Old(Event, name="upcast.split", version=1, topic="split", aggregate="thing"):
        pass

    class New(Event, name="upcast.split", version=2, topic="split", aggregate="thing"):
        pass

    New.upcast(from_version=1)(dict)

    def old(session: Any, event: Old) -> None: ...
    def new(session: Any, event: New) -> None: ...

    handlers = Handlers()
    pairs: list[tuple[Any, type[Event]]] = [(old, Old), (new, New)]
    for function, event in pairs if own_first else reversed(pairs):
        handlers.add(function, [event], topic=None, bulk=False, tombstones=False)
    assert handlers.routes("split")[b"upcast.split.v1"].handler.function is old
    assert handlers.routes("split")[b"upcast.split.v2"].handler.function is new
