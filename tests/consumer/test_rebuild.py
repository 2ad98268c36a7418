"""A projection can be made anew from its history, in place or beside the old one, as if it had never been."""

import importlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import TopicPartition
from sqlalchemy import BigInteger, Column, Connection, ForeignKey, MetaData, Table, Text, text
from sqlalchemy.orm import Session

from outbox.consumer import Consumer, Record
from outbox.consumer.place import rebuild
from outbox.consumer.place.switch import NotCaughtUp
from outbox.errors import ConfigurationError
from outbox.testing.servers import KafkaServer
from relay.cli import main
from relay.cli.consumers.rebuild import progress
from tests.consumer.conftest import StageFactory
from tests.consumer.stage import PROTOCOLS, SHORT, Stage, Witness, eventually, running
from tests.consumer.test_seek import wait_done

metadata = MetaData()
total = Table("total", metadata, Column("key", Text, primary_key=True), Column("n", BigInteger))
detail = Table(
    "detail",
    metadata,
    Column("key", Text, ForeignKey("total.key")),
    Column("partition", BigInteger),
    Column("place", BigInteger),
)

ADD = text("""INSERT INTO total (key, n) VALUES (:key, 1) ON CONFLICT (key) DO UPDATE SET n = total.n + 1""")
NOTE = text("INSERT INTO detail (key, partition, place) VALUES (:key, :partition, :place)")


def projecting(stage: Stage, **settings: Any) -> Consumer:
    """A consumer that counts values by their last digit, and keeps each."""
    metadata.create_all(stage.engine)
    consumer = stage.consumer(projection=[total, detail], **settings)

    @consumer.on(topic=stage.topic)
    def count(session: Session, value: bytes, record: Record) -> None:
        session.execute(ADD, {"key": value.decode()[-1]})
        where = {"key": value.decode()[-1], "partition": record.partition, "place": record.offset}
        session.execute(NOTE, where)

    return consumer


def content(stage: Stage) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    return (
        stage.rows("SELECT key, n FROM total ORDER BY key"),
        stage.rows("SELECT key, partition, place FROM detail ORDER BY partition, place"),
    )


def test_a_rebuild_under_load_is_as_from_scratch(stage: Stage, seen: Witness) -> None:
    stage.send(300)
    stage.repeat(1, 40)
    consumer = projecting(stage, batch_size=20)
    stop = threading.Event()

    def load() -> None:
        while not stop.wait(0.02):
            stage.send(3)

    loader = threading.Thread(target=load)
    loader.start()
    try:
        with running(consumer, threads=2):
            eventually(lambda: stage.offset(0) > 100)
            begun = consumer.rebuild()
            assert begun.records >= 300
            eventually(lambda: stage.offset(0) > 120 and stage.row(0).run_up is None)
            consumer.rebuild()
            stop.set()
            loader.join()
            wait_done(stage)
    finally:
        stop.set()
        loader.join()
    rebuilt = content(stage)
    assert sum(n for _, n in rebuilt[0]) == sum(len(stage.expected(p)) for p in range(3))  # type: ignore[misc]
    stage.sql("TRUNCATE total, detail; DELETE FROM consumer_offset")
    with running(projecting(stage)):
        wait_done(stage)
    assert rebuilt == content(stage)


def test_a_rebuild_survives_the_death_of_a_member_and_a_sleeper_that_wakes(stage: Stage) -> None:
    stage.send(90)
    fast = {**PROTOCOLS["cooperative"], **SHORT}
    small = {"batch_size": 10}
    sleeper = stage.process(kafka=fast, at="consumer.batch.begin", count=2, do="freeze", settings=small)
    victim = None
    try:
        eventually(stage.effects)
        consumer = stage.recorder(fast, projection=[Table("effect", MetaData(), autoload_with=stage.engine)])
        with running(consumer):
            wait_done(stage)
        consumer.rebuild()
        assert stage.effects() == []
        os.kill(sleeper.pid, signal.SIGCONT)
        victim = stage.process(kafka=fast, at="consumer.batch.before_commit", do="kill", settings=small)
        with running(consumer):
            wait_done(stage)
            stage.wait()
    finally:
        for process in filter(None, (sleeper, victim)):
            process.kill()
            process.wait()
    assert stage.faults() == []


def test_history_that_is_not_whole_is_not_rebuilt_unless_told_so(
    build: StageFactory, kafka: KafkaServer
) -> None:
    stage = build(partitions=1)
    stage.send(10)
    consumer = projecting(stage)
    with running(consumer):
        wait_done(stage)
        for future in kafka.admin.delete_records([TopicPartition(stage.topic, 0, 4)]).values():
            future.result(20)
        with pytest.raises(ConfigurationError, match="history is not whole"):
            consumer.rebuild()
        assert len(content(stage)[1]) == 10
        consumer.rebuild(incomplete=True)
        wait_done(stage)
    assert len(content(stage)[1]) == 6
    with pytest.raises(ConfigurationError, match="names no tables"):
        stage.recorder().rebuild()
    with pytest.raises(ConfigurationError, match="neither a Table nor a mapped class"):
        stage.consumer(projection=["total"])


def test_a_role_that_may_not_truncate_deletes(build: StageFactory) -> None:
    stage = build(partitions=1)
    stage.send(5)
    consumer = projecting(stage)
    with running(consumer):
        wait_done(stage)
    stage.sql("""
        CREATE ROLE clerk LOGIN;
        GRANT SELECT, INSERT, UPDATE, DELETE ON total, detail, consumer_offset, consumer_parked TO clerk;
        GRANT SELECT ON outbox_schema TO clerk""")
    clerk = stage.engine.execution_options()
    with clerk.connect() as connection:
        connection.execute(text("SET ROLE clerk"))
        assert not connection.scalar(text("SELECT has_table_privilege('total', 'TRUNCATE')"))
        rebuild._empty(connection, (total, detail))
        assert connection.scalar(text("SELECT count(*) FROM total")) == 0
        connection.rollback()
    stage.sql("REVOKE ALL ON total, detail, consumer_offset, consumer_parked, outbox_schema FROM clerk")
    stage.sql("DROP ROLE clerk")


def test_the_commands_seek_list_and_rebuild(
    build: StageFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = build(partitions=1)
    stage.send(10)
    consumer = projecting(stage)
    monkeypatch.setattr(importlib.import_module("relay.cli.consumers.rebuild"), "load", lambda _: consumer)
    at = ["--group", stage.group, "--topic", stage.topic, "--database-url", stage.url]
    at += ["--kafka-bootstrap-servers", stage.bootstrap]

    def command(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["consumers", *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    with running(consumer):
        wait_done(stage)
        assert "add --yes" in command("seek", *at, "--to", "beginning")
        assert stage.offset() == 10
        said = json.loads(command("seek", *at, "--partition", "0", "--to", "6", "--yes", "--json"))
        assert (said["done"], said["moved"][0]["origin"], said["moved"][0]["to"]) == (True, 10, 6)
        wait_done(stage)
        assert "moved from 10 to 6" in command("list", "--database-url", stage.url)
        assert len(content(stage)[1]) == 14
        assert "nothing was changed" in command("rebuild", "shop:consumer")
        said = json.loads(command("rebuild", "shop:consumer", "--yes", "--wait", "--json"))
        assert (said["records"], said["tables"], said["seconds"] >= 0) == (10, ["total", "detail"], True)
        wait_done(stage)
    assert len(content(stage)[1]) == 10


def test_progress_shows_a_bar_and_the_time_that_is_left() -> None:
    assert progress(250, 1000, 5.0).startswith(
        "[#######                       ]  25%  250 of 1,000, 15 s left"
    )
    assert "waiting for the group's processes" in progress(0, 1000, 5.0)


def test_a_new_version_takes_the_place_of_the_old_one_with_nothing_between(
    stage: Stage, seen: Witness
) -> None:
    stage.send(90)
    old, new = stage.recorder(group="billing"), stage.recorder(group="billing-v2")
    stage.sql("CREATE VIEW shown AS SELECT * FROM effect WHERE grp = 'billing'")

    def swap(connection: Connection) -> None:
        connection.execute(
            text("CREATE OR REPLACE VIEW shown AS SELECT * FROM effect WHERE grp = 'billing-v2'")
        )

    with running(old):
        eventually(lambda: len(stage.effects(group="billing")) == 90)
        with pytest.raises(NotCaughtUp, match="never read by billing-v2"):
            new.take_over("billing", swap, dry_run=True)
        with running(new):
            eventually(lambda: len(stage.effects(group="billing-v2")) == 90)
            stage.send(30)
            switched = new.take_over("billing", swap)
            assert [after >= before for *_, before, after in switched.partitions] == [True] * 3
            at_the_switch = len(stage.effects(group="billing"))
            stage.send(30)
            eventually(lambda: len(stage.effects(group="billing-v2")) == 150)
            eventually(lambda: len(old.health().stopped) == 3)
            assert "switched over to billing-v2" in (old.health().stopped[0].reason or "")
    assert len(stage.effects(group="billing")) == at_the_switch
    assert stage.rows("SELECT count(*), count(DISTINCT value) FROM shown") == [(150, 150)]
    with pytest.raises(ConfigurationError, match="retired already"):
        new.take_over("billing", swap)


def test_a_switch_that_fails_leaves_both_groups_as_they_are(build: StageFactory, tmp_path: Path) -> None:
    stage = build(partitions=1)
    stage.send(10)
    old, new = stage.recorder(group="old"), stage.recorder(group="new")
    for consumer in (old, new):
        with running(consumer):
            eventually(lambda: stage.offset(group=consumer.group) == 10)  # noqa: B023
    file = tmp_path / "swap.sql"
    file.write_text("CREATE TABLE one (a int); SELECT 1 / 0;")
    arguments = ["consumers", "switch", "--from", "old", "--to", "new", "--sql", str(file)]
    arguments += ["--database-url", stage.url]
    failed = CliRunner().invoke(main, [*arguments, "--yes"])
    assert (failed.exit_code, stage.rows("SELECT to_regclass('one')")) == (3, [(None,)]), failed.output
    stage.sql("UPDATE consumer_offset SET next_offset = 9 WHERE grp = 'new'")
    behind = CliRunner().invoke(main, [*arguments, "--yes", "--catch-up", "0"])
    assert (behind.exit_code, "is at 9 of 10" in behind.output) == (3, True)
    stage.sql("UPDATE consumer_offset SET next_offset = 10 WHERE grp = 'new'")
    file.write_text("CREATE TABLE one (a int); CREATE TABLE two (a text DEFAULT '50%');")
    assert "add --yes" in CliRunner().invoke(main, arguments).output
    done = CliRunner().invoke(main, [*arguments, "--yes", "--json"])
    assert (done.exit_code, json.loads(done.stdout)["done"]) == (0, True), done.output
    assert stage.rows("SELECT to_regclass('two') IS NOT NULL") == [(True,)]
    stage.send(1)
    with running(old):
        eventually(lambda: old.health().stopped)
    assert len(stage.effects(group="old")) == 10
