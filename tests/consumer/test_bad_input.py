"""What cannot work is refused with what, where and what to do; nothing is changed by it."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine as sa_create_engine
from sqlalchemy import make_url, text
from sqlalchemy.orm import Session, sessionmaker

from outbox import ConfigurationError, Event, SchemaError
from outbox.consumer import Consumer, Record
from outbox.consumer.handlers import Handlers
from outbox.testing.servers import PostgresServer
from relay.cli.consume import consume
from tests.conftest import create_engine
from tests.consumer.stage import ROOT, Stage

NOWHERE = sa_create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
KAFKA = {"bootstrap.servers": "127.0.0.1:1"}


class Something(Event, name="bad.something", version=1, topic="bad", aggregate="bad"):
    pass


def consumer(kafka: dict[str, Any] | None = None, **settings: Any) -> Consumer:
    properties = {"bootstrap.servers": "127.0.0.1:1", **(kafka or {})}
    return Consumer(**{"group": "g", "sessions": sessionmaker(NOWHERE), "kafka": properties, **settings})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"enable.auto.commit": True}, "offsets live in your database"),
        ({"auto.offset.reset": "earliest"}, "events lost or applied anew"),
        ({"isolation.level": "read_uncommitted"}, "aborted Kafka transactions"),
        ({"group.id": "other"}, "Consumer(group=...)"),
        ({"bootstrap.servers": ""}, "names no server"),
        ({"bootstrap.servers": "host:port"}, "not host:port"),
        ({"bootstrap.servers": "host:99999"}, "not host:port"),
        ({"error_cb": print}, "Consumer.health()"),
    ],
)
def test_properties_that_break_a_guarantee_are_refused_with_the_reason(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        consumer(given)
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"no.such.property": "1"}, "no.such.property"),
        ({"fetch.min.bytes": "many"}, "fetch.min.bytes"),
        ({"partition.assignment.strategy": "best"}, "best"),
    ],
)
def test_properties_that_the_client_does_not_know_are_named_before_any_server_is_asked(
    given: dict[str, Any], said: str
) -> None:
    bad = consumer(given)
    bad.on(Something)(ignore)
    with pytest.raises(ConfigurationError) as refusal:
        bad.run()
    assert said in str(refusal.value)


def ignore(session: Session, value: bytes) -> None:
    """A handler."""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"attempts": "3"}, "attempts is '3'"),
        ({"start": "yesterday"}, "start"),
        ({"unknown": "guess"}, "unknown"),
        ({"claim_patience": 2}, "claim_patience"),
        ({"group": ""}, "group"),
        ({"sessions": NOWHERE}, "sessionmaker"),
        ({"sessions": sessionmaker()}, "sessionmaker"),
        ({"sessions": sessionmaker(sa_create_engine("sqlite://"))}, "PostgreSQL"),
    ],
)
def test_settings_are_checked_at_birth(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        consumer(**settings)
    assert said in str(refusal.value)


def no_record(session: Session) -> None: ...
def four(session: Session, event: object, record: Record, more: object) -> None: ...
async def later(session: Session, event: object) -> None: ...
def generator(session: Session, event: object) -> Any:
    yield event


@pytest.mark.parametrize(
    ("handler", "said"),
    [(no_record, "must take"), (four, "must take"), (later, "async"), (generator, "yield")],
)
def test_handlers_that_cannot_be_called_are_refused(handler: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        consumer().on(Something)(handler)


def plain(session: Session, event: object, record: Record) -> None: ...
def any_name(session: Session, event: object, message: object) -> None: ...
def named(session: Session, event: object, record: object = None) -> None: ...
def annotated(session: Session, event: object, message: Record | None = None) -> None: ...
def in_bulk(session: Session, events: object, messages: Sequence[Record] = ()) -> None: ...
def own_default(session: Session, event: object, limit: int = 10) -> None: ...


@pytest.mark.parametrize(
    ("handler", "wanted"),
    [
        (plain, True),
        (any_name, True),
        (named, True),
        (annotated, True),
        (in_bulk, True),
        (own_default, False),
        (ignore, False),
    ],
)
def test_a_parameter_with_a_default_of_its_own_does_not_get_the_record(
    handler: Callable[..., None], wanted: bool
) -> None:
    handlers = Handlers()
    handlers.add(handler, [Something], topic=None, bulk=False, tombstones=False)
    assert handlers.routes("bad")[b"bad.something.v1"].handler.wants_record is wanted


def test_properties_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="kafka is a str"):
        Consumer(group="g", sessions=sessionmaker(NOWHERE), kafka="host:9092")  # type: ignore[arg-type]


@pytest.mark.parametrize("event", [ignore, "bad.something", str, Something()])
def test_what_is_no_event_class_is_refused_before_a_function_is_decorated(event: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"event classes, not .*@consumer\.on\(OrderPlaced\)"):
        consumer().on(event)


def test_a_second_handler_for_an_event_is_refused() -> None:
    twice = consumer()
    twice.on(Something)(ignore)
    with pytest.raises(ConfigurationError, match=r"bad\.something\.v1 on topic bad has a handler already"):
        twice.on(Something)(ignore)


def test_a_consumer_without_handlers_does_not_run() -> None:
    with pytest.raises(ConfigurationError, match="no handler"):
        consumer().run()


def test_a_missing_topic_is_named(stage: Stage) -> None:
    lost = stage.consumer(wait_for_topics=timedelta(milliseconds=100))
    lost.on(topic="no-such-topic")(ignore)
    with pytest.raises(ConfigurationError, match="topic no-such-topic does not exist"):
        lost.run()


def run_on(url: str, stage: Stage) -> None:
    engine = sa_create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    bad = stage.consumer(sessions=sessionmaker(engine))
    bad.on(topic=stage.topic)(ignore)
    try:
        bad.run()
    finally:
        engine.dispose()


def test_a_database_without_the_schema_says_how_to_get_it(stage: Stage, empty_database: str) -> None:
    with pytest.raises(SchemaError, match="outbox-relay db upgrade"):
        run_on(empty_database, stage)


def test_a_missing_database_is_named(stage: Stage) -> None:
    with pytest.raises(ConfigurationError, match="nosuchdb"):
        run_on(str(make_url(stage.url).set(database="nosuchdb")), stage)


def test_a_role_without_rights_is_told_which(stage: Stage, postgres: PostgresServer) -> None:
    admin = create_engine(stage.url)
    with admin.begin() as connection:
        connection.execute(text("DROP ROLE IF EXISTS consumer_without_rights"))
        connection.execute(text("CREATE ROLE consumer_without_rights LOGIN"))
        connection.execute(text("GRANT SELECT ON outbox_schema TO consumer_without_rights"))
    try:
        with pytest.raises(SchemaError, match="consumer_without_rights"):
            run_on(str(make_url(stage.url).set(username="consumer_without_rights")), stage)
    finally:
        with admin.begin() as connection:
            connection.execute(text("DROP OWNED BY consumer_without_rights"))
            connection.execute(text("DROP ROLE consumer_without_rights"))
        admin.dispose()


def test_autocommit_is_refused(stage: Stage) -> None:
    engine = stage.engine.execution_options(isolation_level="AUTOCOMMIT")
    bad = stage.consumer(sessions=sessionmaker(engine))
    bad.on(topic=stage.topic)(ignore)
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        bad.run()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nocolon", "MODULE:CONSUMER"),
        ("no.such.module:consumer", "no module no.such.module"),
        ("outbox:nothing", "has no nothing"),
        ("outbox:Event", "no outbox.consumer.Consumer"),
    ],
)
def test_the_command_names_what_it_cannot_find(target: str, said: str) -> None:
    result = CliRunner().invoke(consume, [target])
    assert result.exit_code == 2
    assert said in result.output


def test_the_command_ends_in_words_and_not_in_a_traceback(stage: Stage) -> None:
    url = make_url(stage.url).set(drivername="postgresql+psycopg", database="nosuchdb")
    code = f"""
import sys
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from outbox.consumer import Consumer
engine = create_engine({url.render_as_string(hide_password=False)!r})
c = Consumer(group="g", sessions=sessionmaker(engine), kafka={{"bootstrap.servers": {stage.bootstrap!r}}})
c.on(topic={stage.topic!r})(lambda session, value: None)
sys.modules["bad_consumer"] = sys.modules["__main__"]
from relay.cli import main
main(["consume", "bad_consumer:c"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3
    assert "nosuchdb" in done.stderr
    assert "Traceback" not in done.stderr
