"""Write measurements down as Prometheus reads them: the text format 0.0.4, by its naming conventions."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from relay.telemetry.backlog import ShardBacklog

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

STATES = ("starting", "standby", "carrying", "waiting", "halted", "stopped")


@dataclass(slots=True)
class Family:
    """One metric with all its samples."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    samples: list[tuple[Mapping[str, str], float]] = field(default_factory=list)

    def add(self, value: float, **labels: object) -> None:
        self.samples.append(({name: str(label) for name, label in labels.items()}, float(value)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One database as one relay sees it.

    `database`: its label. `status`: `Relay.status`. `shards`: the last survey; None while the database does
    not answer.
    """

    database: str
    status: Mapping[str, Any]
    shards: tuple[ShardBacklog, ...] | None


def page(observed: Iterable[Observed]) -> str:
    """All databases of a daemon on one page."""
    return exposition(families(observed))


def families(observed: Iterable[Observed]) -> list[Family]:
    """What is measured, with its meaning."""
    up = Family("outbox_database_up", "gauge", "Whether the last survey of the database succeeded.")
    published = Family(
        "outbox_relay_published_events_total", "counter", "Events acknowledged to this relay since its start."
    )
    acknowledged = Family(
        "outbox_relay_last_acknowledged_timestamp_seconds",
        "gauge",
        "When the brokers last acknowledged an event to this relay, in seconds since 1970.",
    )
    state = Family("outbox_relay_state", "gauge", "1 for the state that this relay is in, 0 for the others.")
    alarm = Family("outbox_relay_alarm", "gauge", "1 while this relay has an alarm; /readyz says which.")
    pending = Family(
        "outbox_pending_events",
        "gauge",
        "Committed events not acknowledged yet, of the oldest that were read.",
    )
    oldest = Family(
        "outbox_oldest_pending_age_seconds",
        "gauge",
        "Age of the oldest committed event not acknowledged yet, 0 when there is none.",
    )
    parked = Family("outbox_parked_events", "gauge", "Events set aside that wait for an operator.")
    epoch = Family("outbox_shard_epoch", "gauge", "How often the shard was claimed.")
    lease = Family("outbox_shard_lease_held", "gauge", "Whether some relay holds the shard's lease.")
    for one in observed:
        status, name = one.status, one.database
        up.add(one.shards is not None, database=name)
        published.add(status["published"], database=name)
        for shard, part in status["shards"].items():
            if part.get("acknowledged_at") is not None:
                acknowledged.add(part["acknowledged_at"], database=name, shard=shard)
        for known in STATES:
            state.add(status["state"] == known, database=name, state=known)
        alarm.add(status["alarm"] is not None, database=name)
        for found in one.shards or ():
            labels = {"database": name, "shard": found.shard}
            pending.add(found.pending, **labels)
            oldest.add(found.oldest_pending or 0, **labels)
            parked.add(found.parked, **labels)
            epoch.add(found.epoch, **labels)
            lease.add(found.lease_held, **labels)
    return [up, published, acknowledged, state, alarm, pending, oldest, parked, epoch, lease]


def exposition(measured: Iterable[Family]) -> str:
    """The text format (https://prometheus.io/docs/instrumenting/exposition_formats)."""
    lines = []
    for family in measured:
        if family.samples:
            lines += [f"# HELP {family.name} {_escaped(family.help)}", f"# TYPE {family.name} {family.kind}"]
        for labels, value in family.samples:
            pairs = ",".join(f'{name}="{_quoted(label)}"' for name, label in labels.items())
            lines.append(f"{family.name}{{{pairs}}} {_number(value)}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', '\\"')


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(int(value)) if value == int(value) else repr(value)
    return {math.inf: "+Inf", -math.inf: "-Inf"}.get(value, "NaN")
