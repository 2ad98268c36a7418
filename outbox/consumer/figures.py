"""What the Kafka client measures of itself, taken as it tells it: no question to a broker, none in the way.

The client hands over its statistics every `statistics.interval.ms` (librdkafka's STATISTICS.md) in the thread
that polls it. How far a partition's log goes comes from there, so a lag is as old as that.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from outbox import hooks
from outbox.consumer.assignment import Key
from outbox.consumer.partition import Partition


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFigures:
    """One member's Kafka client at its last report.

    errors: how often it told of which, by name, since the member began; most mend themselves. last_error: the
    latest in words. rebalances: of its group since the client began. brokers_up: connections that work.
    queued: records fetched and not polled yet. received: records and bytes from the brokers since it began.
    """

    errors: Mapping[str, int] = field(default_factory=dict)
    last_error: str | None = None
    rebalances: int = 0
    brokers_up: int = 0
    queued: int = 0
    received_records: int = 0
    received_bytes: int = 0


class Figures:
    """The figures of one member, across its clients."""

    def __init__(self, group: str, member: int) -> None:
        self._group = group
        self._member = member
        self._errors: dict[str, int] = {}
        self._last_error: str | None = None
        self._report: Mapping[str, Any] = {}
        self._fresh = False

    def error(self, name: str, text: str, *, fatal: bool) -> None:
        """The client told of an error."""
        self._errors[name] = self._errors.get(name, 0) + 1
        self._last_error = f"{name}: {text}"
        hooks.fire(
            "consumer.client_error",
            group=self._group,
            member=self._member,
            name=name,
            text=text,
            fatal=fatal,
        )

    def report(self, document: str) -> None:
        """The client's statistics are there."""
        self._report = json.loads(document)
        self._fresh = True
        hooks.fire("consumer.statistics", group=self._group, member=self._member, statistics=self._report)

    def tick(self, partitions: Mapping[Key, Partition]) -> None:
        """Compare a new report with what became of the records; not while some are between client and us."""
        if not self._fresh:
            return
        self._fresh = False
        topics = self._report.get("topics", {})
        for (topic, number), partition in partitions.items():
            seen = topics.get(topic, {}).get("partitions", {}).get(str(number))
            if seen is not None:
                _measure(partition, seen)

    def health(self) -> ClientFigures:
        """May be called from any thread."""
        report = self._report
        brokers = report.get("brokers", {}).values()
        return ClientFigures(
            errors=dict(self._errors),
            last_error=self._last_error,
            rebalances=report.get("cgrp", {}).get("rebalance_cnt", 0),
            brokers_up=sum(
                broker.get("state") == "UP" and broker.get("nodeid", -1) >= 0 for broker in brokers
            ),
            queued=report.get("replyq", 0),
            received_records=report.get("rxmsgs", 0),
            received_bytes=report.get("rxmsg_bytes", 0),
        )


def _measure(partition: Partition, seen: Mapping[str, Any]) -> None:
    """How far the log goes, and whether all of it is applied.

    The end is the last stable offset: what lies beyond belongs to open transactions and cannot be applied.
    Records that are none (marks of transactions, compacted ones) can lie between the last one applied and the
    end. All is applied once the client has handed over all up to the end, and we hold none of it.
    """
    end = seen.get("ls_offset", -1)
    end = end if end >= 0 else seen.get("hi_offset", -1)
    if end < 0:
        return
    handed_over = seen.get("app_offset", -1) >= end
    partition.measured(end, complete=handed_over and not partition.polled)
