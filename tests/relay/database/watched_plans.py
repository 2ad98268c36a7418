"""Which plan a statement really ran with: PostgreSQL's auto_explain tells the session that ran it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from relay.database import Connection, plain_url

SETTINGS = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_buffers": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_format": "json",
    "auto_explain.log_level": "notice",
}


def watch(url: str) -> None:
    """Every later session of this database explains what it runs."""
    with psycopg.connect(plain_url(url), autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        for setting, value in SETTINGS.items():
            connection.execute(sql.SQL("ALTER DATABASE {} SET {} = {}").format(name, sql.SQL(setting), value))


@dataclass(frozen=True)
class Plan:
    """One executed plan."""

    root: dict[str, Any]

    def nodes(self) -> Iterator[dict[str, Any]]:
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.get("Plans", [])

    def kinds(self, relation: str) -> set[str]:
        """How `relation` (or its leaves) was read."""
        return {n["Node Type"] for n in self.nodes() if n.get("Relation Name", "").startswith(relation)}

    @property
    def buffers(self) -> int:
        """Pages touched."""
        return int(self.root["Shared Hit Blocks"]) + int(self.root["Shared Read Blocks"])

    def __str__(self) -> str:
        return json.dumps(self.root, indent=1)


def plans_of(connection: Connection, run: Callable[[], object]) -> list[Plan]:
    """The plans of what `run` executes on `connection`."""
    heard: list[Plan] = []

    def hear(diagnostic: psycopg.errors.Diagnostic) -> None:
        text = diagnostic.message_primary or ""
        if "plan:" in text:
            heard.append(Plan(json.loads(text[text.index("{") :])["Plan"]))

    connection.add_notice_handler(hear)
    try:
        run()
    finally:
        connection.remove_notice_handler(hear)
    return heard


def plan_of(connection: Connection, run: Callable[[], object]) -> Plan:
    """The plan of the one statement that `run` executes."""
    [plan] = plans_of(connection, run)
    return plan
