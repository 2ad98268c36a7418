"""An event has a name and version that never depend on its class's path, and what it writes it can read."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from outbox import CatalogError, ConfigurationError, Event, UndecodableRecord, catalog
from outbox.event import key_of
from tests.write.orders import OrderPlaced, StepTaken


class Colour(Enum):
    RED = "red"


class Line(BaseModel):
    sku: str
    count: int


class Everything(Event, name="tests.everything", version=3, aggregate="thing", key="id"):
    id: UUID
    price: Decimal
    at: datetime
    day: date
    took: timedelta
    raw: bytes
    colour: Colour
    ratio: float
    lines: list[Line]
    note: str | None = None
    renamed: int = Field(default=0, alias="otherName")


def test_name_and_version_make_the_wire_type() -> None:
    assert OrderPlaced.__wire_type__ == "tests.order.placed.v1"
    assert Everything.__wire_type__ == "tests.everything.v3"
    assert catalog.lookup("tests.everything.v3") is Everything


def test_an_event_without_a_topic_is_routed_by_its_aggregate() -> None:
    assert OrderPlaced.__topic__ == "orders"
    assert StepTaken.__topic__ == "outbox.event.step"


def test_events_are_frozen() -> None:
    placed = OrderPlaced(order_id=uuid4(), total=Decimal(1))
    with pytest.raises(ValidationError, match="frozen"):
        placed.total = Decimal(2)  # type: ignore[misc]


@given(
    event=st.builds(
        Everything,
        id=st.uuids(),
        price=st.decimals(allow_nan=False, allow_infinity=False),
        at=st.datetimes(timezones=st.just(UTC)),
        day=st.dates(),
        took=st.timedeltas(timedelta(-1000), timedelta(1000)),
        raw=st.binary(),
        colour=st.sampled_from(Colour),
        ratio=st.floats(allow_nan=False, allow_infinity=False),
        lines=st.lists(
            st.builds(Line, sku=st.text(st.characters(exclude_categories=["Cs"])), count=st.integers())
        ),
        note=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    )
)
def test_what_an_event_writes_it_reads_again(event: Everything) -> None:
    payload = event.__serializer__.serialize(event)
    assert catalog.decode("tests.everything.v3", payload) == event


def test_fields_travel_under_their_aliases() -> None:
    class Aliased(Event, name="tests.aliased", aggregate="thing"):
        renamed: int = Field(alias="otherName")

    event = Aliased(otherName=4)
    assert event.__serializer__.serialize(event) == b'{"otherName":4}'
    assert catalog.decode("tests.aliased.v1", b'{"otherName":4,"new_field":1}') == event


def test_a_number_that_json_lacks_cannot_become_an_event() -> None:
    class Measured(Event, name="tests.measured", aggregate="thing"):
        value: float

    with pytest.raises(ValidationError, match="finite"):
        Measured(value=float("nan"))


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("a", "a"),
        ("", ""),
        (7, "7"),
        (UUID(int=5), str(UUID(int=5))),
        (Colour.RED, "red"),
        (date(2026, 1, 2), "2026-01-02"),
    ],
)
def test_keys_have_one_spelling(value: object, key: str) -> None:
    class Keyed(Event, name="tests.keyed", aggregate="thing", key="what"):
        what: Any

    assert key_of(Keyed(what=value)) == key


def test_a_key_may_be_a_property() -> None:
    class Composed(Event, name="tests.composed", aggregate="thing", key="place"):
        row: int
        column: int

        @property
        def place(self) -> str:
            return f"{self.row}/{self.column}"

    assert key_of(Composed(row=1, column=2)) == "1/2"


def test_a_class_without_a_name_hands_its_aggregate_on() -> None:
    class PetEvent(Event, topic="pets", aggregate="pet", key="pet_id"):
        pet_id: int

    class Fed(PetEvent, name="tests.pet.fed"):
        pass

    class Groomed(PetEvent, name="tests.pet.groomed", topic="salon"):
        pass

    assert (Fed.__wire_type__, Fed.__topic__, key_of(Fed(pet_id=1))) == ("tests.pet.fed.v1", "pets", "1")
    assert Groomed.__topic__ == "salon"


def test_configuration_of_pydantic_still_works() -> None:
    class Strict(Event, name="tests.strict", aggregate="thing", extra="forbid"):
        pass

    with pytest.raises(UndecodableRecord, match=r"more: Extra inputs are not permitted"):
        catalog.decode("tests.strict.v1", b'{"more":1}')


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"name": "", "aggregate": "a"}, "name '' is not of the form"),
        ({"name": "has space", "aggregate": "a"}, "is not of the form"),
        ({"name": "a..b", "aggregate": "a"}, "is not of the form"),
        ({"name": "a", "version": 0, "aggregate": "a"}, "version 0 is not an integer from 1 on"),
        ({"name": "a"}, "name the aggregate"),
        ({"name": "a", "aggregate": ""}, "name the aggregate"),
        ({"name": "a", "aggregate": "a\x00"}, "the aggregate holds a NUL"),
        ({"name": "a", "aggregate": "spaced out"}, "topic 'outbox.event.spaced out' is not"),
        ({"name": "a", "aggregate": "a", "topic": "no/slash"}, "topic 'no/slash' is not"),
        ({"name": "a", "aggregate": "a", "key": "wrong"}, "key='wrong' names no field; the fields are right"),
    ],
)
def test_a_definition_that_cannot_work_is_refused_at_once(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):

        class Wrong(Event, **keywords):
            right: int


def test_a_misspelt_keyword_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="unknown keyword agregate; it takes name"):

        class Wrong(Event, name="tests.misspelt", agregate="a"):
            pass


def test_two_classes_cannot_claim_one_name_and_version() -> None:
    class First(Event, name="tests.claimed", aggregate="a"):
        pass

    with pytest.raises(CatalogError, match=r"tests\.claimed\.v1 is claimed by .*First and by .*Second"):

        class Second(Event, name="tests.claimed", aggregate="a"):
            pass

    class Third(Event, name="tests.claimed", version=2, aggregate="a"):
        pass

    assert catalog.lookup("tests.claimed.v1") is First
    assert catalog.lookup("tests.claimed.v2") is Third


def test_a_class_defined_anew_replaces_the_old_one() -> None:
    def define() -> type[Event]:
        class Again(Event, name="tests.again", aggregate="a"):
            pass

        return Again

    define()
    newest = define()
    assert catalog.lookup("tests.again.v1") is newest
    assert catalog.registered()["tests.again.v1"] is newest


def test_an_unknown_type_says_what_to_do() -> None:
    with pytest.raises(CatalogError, match=r"no event class is named no\.such\.v1; import the module"):
        catalog.decode("no.such.v1", b"{}")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "payload: Invalid JSON"),
        (b"\xff", "payload: Invalid JSON"),
        (b"[]", "payload: Input should be an object"),
        (b'{"key":"k"}', "number: Field required"),
        (b'{"key":"k","number":"many"}', "number: Input should be a valid integer"),
    ],
)
def test_a_payload_that_is_no_event_names_what_is_wrong(payload: bytes, message: str) -> None:
    with pytest.raises(UndecodableRecord, match=message) as failed:
        catalog.decode(StepTaken.__wire_type__, payload)
    assert "is not a StepTaken" in str(failed.value)
