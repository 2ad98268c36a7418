"""The parts that need no database: ids, sequences, headers, arrays."""

import threading
import time
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox import UndecodableRecord, preflight, uuid7
from outbox.record import REPLAY, RESERVED_HEADERS, Seq
from relay.producers import Names

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
NUMBER = st.integers(0, 2**63 - 1)


def test_ids_increase_within_a_process_whatever_the_clock_does(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [uuid7.uuid7() for _ in range(10_000)]
    clock = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: clock - 3_600_000_000_000)
    ids += [uuid7.uuid7() for _ in range(1_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_ids_are_of_version_7_and_carry_the_time() -> None:
    before = time.time_ns() // 1_000_000
    value = uuid7.uuid7()
    after = time.time_ns() // 1_000_000
    assert value.version == 7
    assert value.variant == RFC_4122
    assert before <= value.int >> 80 <= after


def test_threads_never_share_an_id() -> None:
    made: list[list[UUID]] = [[] for _ in range(8)]
    start = threading.Barrier(8)

    def make(into: list[UUID]) -> None:
        start.wait(10)
        into.extend(uuid7.uuid7() for _ in range(2_000))

    threads = [threading.Thread(target=make, args=(into,)) for into in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    everything = [value for into in made for value in into]
    assert len(set(everything)) == 16_000
    assert all(into == sorted(into) for into in made)


@given(
    source=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/:"), min_size=1),
    generation=NUMBER,
    shard=NUMBER,
    delta=NUMBER,
    position=NUMBER,
)
def test_a_sequence_is_read_as_it_was_written(
    source: str, generation: int, shard: int, delta: int, position: int
) -> None:
    seq = Seq(source, generation, shard, delta, position)
    assert Seq.parse(seq.encode()) == seq


@given(first=st.tuples(NUMBER, NUMBER), second=st.tuples(NUMBER, NUMBER))
def test_marks_compare_by_delta_then_position(first: tuple[int, int], second: tuple[int, int]) -> None:
    one, two = (Seq("s", 1, 0, *numbers).mark for numbers in (first, second))
    assert (one < two) == (first < second)


@given(value=st.binary())
def test_other_bytes_are_no_sequence(value: bytes) -> None:
    try:
        seq = Seq.parse(value)
    except UndecodableRecord:
        return
    assert Seq.parse(seq.encode()) == seq


@given(headers=st.dictionaries(TEXT.filter(bool), TEXT))
def test_any_text_is_a_header_but_the_relays_own(headers: dict[str, str]) -> None:
    fault = preflight.headers_fault(headers)
    assert (fault is None) == {*RESERVED_HEADERS, REPLAY}.isdisjoint(headers)


@given(headers=st.dictionaries(TEXT, TEXT), key=st.none() | TEXT, payload=st.none() | st.binary())
def test_a_record_is_measured_in_bytes_not_characters(
    headers: dict[str, str], key: str | None, payload: bytes | None
) -> None:
    on_the_wire = (key or "").encode() + (payload or b"")
    on_the_wire += b"".join(name.encode() + value.encode() for name, value in headers.items())
    size = preflight.record_size(key, payload, headers)
    assert size == len(on_the_wire) + preflight.RELAY_HEADERS_BYTES


@given(topic=st.from_regex(r"[A-Za-z0-9._-]{1,249}", fullmatch=True))
def test_every_name_kafka_takes_is_a_topic(topic: str) -> None:
    free = topic not in {".", ".."} and not topic.startswith("outbox.progress.")
    assert (preflight.topic_fault(topic) is None) == free


def test_the_topics_in_which_relays_keep_their_progress_take_no_event() -> None:
    ours = Names(7, 5, 0).progress_topic
    assert "holds the relays' own records" in (preflight.topic_fault(ours) or "")
    assert preflight.topic_fault("outbox.progress") is None


@given(topic=st.text().filter(lambda text: not text.isascii() or not text))
def test_other_names_are_none(topic: str) -> None:
    assert preflight.topic_fault(topic)


def test_the_newline_that_regular_expressions_forgive_is_not_forgiven() -> None:
    assert preflight.topic_fault("orders\n")
