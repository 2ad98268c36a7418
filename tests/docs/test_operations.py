"""What the pages tell an operator to run exists, with these options, and runs as the role they name."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from uuid import uuid4

import click
import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, make_url

from outbox.consumer.settings import Settings
from outbox.storage import ddl, roles
from relay.cli.main import main
from relay.config import RelayConfig
from tests.conftest import create_engine

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples" / "order_service" / "README.md",
]
OPERATIONS = ROOT / "docs" / "operations.md"

PARTS = ("application", "relay", "consumer", "reader", "operator")
ONE_RECORD = "--group g --topic t --partition 0 --offset 0"

RUNS_AS = {
    "reader": (
        "status",
        "db check",
        "shards list",
        "parked list",
        "parked show 1",
        "scheduled list",
        "consumers list",
        "consumers parked list",
        f"consumers parked show {ONE_RECORD}",
    ),
    "operator": (
        "parked release 1 --yes",
        "parked release --all --yes",
        "parked edit 1 --topic t --yes",
        "parked discard 1 --reason r --yes",
        "replay --for g",
        "replay --cancel 1",
    ),
    "relay": (
        "shards set 2 --yes --no-wait",
        "shards set --cancel --yes",
        "shards mode transactional --yes --timeout 0",
    ),
    "consumer": (
        "db check",  # as `consume` compares when it starts
        "consumers parked release --group g --all --yes",
        f"consumers parked discard {ONE_RECORD} --reason r --yes",
    ),
    "application and reader": ("scheduled cancel 0197f6a4-7c00-7000-8000-000000000001 --yes",),
}


def shown() -> Iterator[tuple[str, str]]:
    """Each command line on a page: in a text, or as a line of a block."""
    for page in PAGES:
        text = page.read_text()
        for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
            for line in re.findall(r"^(?:[A-Z_]+=\S+ )*outbox-relay (.+)$", block, re.MULTILINE):
                yield page.name, line
        for line in re.findall(r"`outbox-relay ([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            yield page.name, " ".join(line.split())


def fault(line: str) -> str | None:
    """What the command line does not know of this."""
    command: click.Command = main
    context = click.Context(main)
    for word in shlex.split(line, comments=True):
        if word.startswith("--"):
            if word not in {name for parameter in command.params for name in parameter.opts}:
                return f"no option {word}"
        elif isinstance(command, click.Group):
            found = command.get_command(context, word)
            if found is None:
                return f"no command {word}"
            command = found
    return None


def test_every_command_on_a_page_exists_with_its_options() -> None:
    lines = [*shown()]
    assert len(lines) > 30
    assert not [(page, line, why) for page, line in lines if (why := fault(line))]


def test_every_setting_of_the_relay_is_on_the_page() -> None:
    page = OPERATIONS.read_text()
    nested = {"databases": "OUTBOX_DATABASES__", "kafka": "OUTBOX_KAFKA__"}
    names = {nested.get(name, f"OUTBOX_{name.upper()}`") for name in RelayConfig.model_fields}
    assert not {name for name in names if f"`{name}" not in page}
    known = {f"OUTBOX_{name.upper()}" for name in RelayConfig.model_fields}
    assert {name for name in re.findall(r"`(OUTBOX_[A-Z_]+)`", page) if "__" not in name} <= known


def test_every_argument_of_a_consumer_on_the_page_exists_with_its_default() -> None:
    _, _, table = OPERATIONS.read_text().partition("| argument of `Consumer` | default | meaning |\n")
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", table, re.MULTILINE)
    defaults = {field.name: field.default for field in fields(Settings)}
    said = {name: value.strip('`"').replace(",", "").replace("–", "None") for name, value in rows}
    assert said == {name: str(defaults[name]) for name in said}
    assert len(said) == 5


@pytest.fixture
def urls(engine: Engine, database: str) -> Iterator[dict[str, str]]:
    """The database's URL for each role."""
    suffix = uuid4().hex[:8]
    names = {part: f"{part}_{suffix}" for part in PARTS}
    both = f"both_{suffix}"
    granted = roles.Roles(
        application=[names["application"], both],
        relay=[names["relay"]],
        consumer=[names["consumer"]],
        reader=[names["reader"], both],
        operator=[names["operator"]],
    )
    names["application and reader"] = both
    with psycopg.connect(database, autocommit=True) as owner:
        for statement in roles.statements(granted, create=True):
            owner.execute(statement.encode())
    url = make_url(database)
    yield {part: url.set(username=name).render_as_string(hide_password=False) for part, name in names.items()}
    with psycopg.connect(database, autocommit=True) as owner:
        for name in names.values():
            owner.execute(f"DROP OWNED BY {roles.quote(name)}".encode())
            owner.execute(f"DROP ROLE {roles.quote(name)}".encode())


@pytest.mark.parametrize("before", range(1, ddl.LATEST))
def test_an_upgrade_keeps_what_is_pending_and_how_far_groups_are(empty_database: str, before: int) -> None:
    engine = create_engine(empty_database)
    with engine.begin() as connection:
        ddl.apply(connection, to=before)
    engine.dispose()
    with psycopg.connect(empty_database, autocommit=True) as service:
        service.execute(
            "INSERT INTO outbox_event (id, aggregatetype, aggregateid, type, payload) "
            "SELECT gen_random_uuid(), 'order', n::text, 'order.placed.v1', '{}' FROM generate_series(1, 3) n"
        )
        service.execute(
            "INSERT INTO consumer_offset (grp, topic, partition, next_offset) VALUES ('g', 't', 0, 42)"
        )

    def run(line: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, shlex.split(line), env={"OUTBOX_DATABASE_URL": empty_database})
        return result.exit_code, result.stdout

    assert run("db check") == (
        1,
        f"schema version {before} is older than {ddl.LATEST}; run: outbox-relay db upgrade\n",
    )
    assert run("db upgrade")[0] == 0
    assert run("db check")[0] == 0
    (shard,) = json.loads(run("status --json")[1])["shards"]
    assert (shard["pending"], shard["mode"]) == (3, "sequenced")
    (offset,) = json.loads(run("consumers list --json")[1])
    assert (offset["next_offset"], offset["parked"]) == (42, 0)


def test_each_command_runs_as_the_role_that_the_page_names(urls: dict[str, str]) -> None:
    for role, lines in RUNS_AS.items():
        for line in lines:
            result = CliRunner().invoke(main, shlex.split(line), env={"OUTBOX_DATABASE_URL": urls[role]})
            assert result.exception is None or isinstance(result.exception, SystemExit), (line, result)
            assert "refuses" not in result.output, (role, line, result.output)
            assert "does not fit" not in result.output, (role, line, result.output)
