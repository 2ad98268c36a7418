"""The tables as SQLAlchemy Core sees them, for queries and for `alembic revision --autogenerate`.

`ddl` creates them; these definitions only describe them. Put them beside your own with

    outbox.tables.attach(Base.metadata)
    context.configure(..., target_metadata=Base.metadata, include_name=outbox.tables.include_name)
"""

from collections.abc import MutableMapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.types import UserDefinedType

from outbox.storage import ring


class Xid8(UserDefinedType[str]):
    """A 64-bit transaction id, read and written as text."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "xid8"


class PgSnapshot(UserDefinedType[str]):
    """What one transaction could see, `xmin:xmax:xip,…`, read and written as text."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "pg_snapshot"


ischema_names["xid8"] = Xid8
ischema_names["pg_snapshot"] = PgSnapshot

metadata = MetaData()

_now = text("clock_timestamp()")
_timestamp = DateTime(timezone=True)

outbox_event = Table(
    "outbox_event",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("aggregatetype", Text, nullable=False),
    Column("aggregateid", Text(collation="C")),
    Column("type", Text, nullable=False),
    Column("payload", LargeBinary),
    Column("topic", Text),
    Column("headers", JSONB),
    Column("traceparent", Text),
    Column("occurred_at", _timestamp, nullable=False, server_default=_now),
    Column("xid", Xid8, nullable=False, server_default=text("pg_current_xact_id()")),
    Column("position", BigInteger, Identity(always=True, cache=1), nullable=False),
    Column(
        "slot",
        SmallInteger,
        nullable=False,
        server_default=text(
            f"mod(date_part('epoch', statement_timestamp())::bigint / {ring.SECONDS_PER_LEAF}, {ring.LEAVES})"
        ),
    ),
    Index("outbox_event_xid", "xid"),
    Index("outbox_event_position", "position"),
    postgresql_partition_by="LIST (slot)",
)

outbox_shard = Table(
    "outbox_shard",
    metadata,
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("source", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("lo", SmallInteger, nullable=False),
    Column("hi", SmallInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("delta", BigInteger, nullable=False, server_default=text("0")),
    Column("done", PgSnapshot, nullable=False),
    Column("done_floor", BigInteger, nullable=False),
    Column("done_xid", Xid8, nullable=False),
    Column("next", PgSnapshot),
    Column("next_floor", BigInteger),
    Column("next_xid", Xid8),
    Column("low", BigInteger, nullable=False, server_default=text("0")),
    Column("mode", Text, nullable=False, server_default=text("'sequenced'")),
    Column("wanted_mode", Text),
    Column("frozen", Boolean, nullable=False, server_default=text("false")),
    Column("timeline", Integer),
    Column("job", BigInteger),
)

outbox_reshard = Table(
    "outbox_reshard",
    metadata,
    Column("only_row", Boolean, primary_key=True, server_default=text("true")),
    Column("shards", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("requested_at", _timestamp, nullable=False, server_default=_now),
    Column("frozen_by", Xid8, nullable=False, server_default=text("pg_current_xact_id()")),
    Column("upto", PgSnapshot),
    Column("floor", BigInteger),
    Column("at_xid", Xid8),
)

outbox_scheduled = Table(
    "outbox_scheduled",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("due", _timestamp, nullable=False),
    Column("seq", BigInteger, Identity(always=True, cache=1), nullable=False),
    Column("aggregatetype", Text, nullable=False),
    Column("aggregateid", Text(collation="C")),
    Column("type", Text, nullable=False),
    Column("payload", LargeBinary),
    Column("topic", Text),
    Column("headers", JSONB),
    Column("traceparent", Text),
    Column("scheduled_at", _timestamp, nullable=False, server_default=_now),
    Index("outbox_scheduled_due", "due", "seq"),
)

outbox_sealed = Table(
    "outbox_sealed",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("aggregatetype", Text, nullable=False),
    Column("aggregateid", Text(collation="C")),
    Column("type", Text, nullable=False),
    Column("payload", LargeBinary),
    Column("topic", Text),
    Column("headers", JSONB),
    Column("traceparent", Text),
    Column("occurred_at", _timestamp, nullable=False, server_default=_now),
    Column("xid", Xid8, nullable=False, server_default=text("pg_current_xact_id()")),
    Column(
        "slot",
        SmallInteger,
        nullable=False,
        server_default=text("mod(date_part('epoch', statement_timestamp())::bigint / 600, 2)"),
    ),
    postgresql_partition_by="LIST (slot)",
)

outbox_mover = Table(
    "outbox_mover",
    metadata,
    Column("only_row", Boolean, primary_key=True, server_default=text("true")),
)

outbox_topic = Table(
    "outbox_topic",
    metadata,
    Column("shard", Integer, nullable=False),
    Column("topic", Text, nullable=False),
    Column("partitions", Integer, nullable=False),
    Column("ends", ARRAY(BigInteger)),
    Column("ends_delta", BigInteger),
    Column("earlier_ends", ARRAY(BigInteger)),
    Column("earlier_delta", BigInteger),
    PrimaryKeyConstraint("shard", "topic"),
)

outbox_lease = Table(
    "outbox_lease",
    metadata,
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("owner", Text),
    Column("lease_until", _timestamp),
)

outbox_relay = Table(
    "outbox_relay",
    metadata,
    Column("instance", Text, primary_key=True),
    Column("started_at", _timestamp, nullable=False, server_default=_now),
    Column("heartbeat", _timestamp, nullable=False, server_default=_now),
    Column("stopped_at", _timestamp),
    Column("state", JSONB, nullable=False, server_default=text("'{}'")),
    Column("alive_until", _timestamp),
)

outbox_identity = Table(
    "outbox_identity",
    metadata,
    Column("only_row", Boolean, primary_key=True, server_default=text("true")),
    Column("system_identifier", BigInteger, nullable=False),
    Column("database_oid", BigInteger, nullable=False),
    Column("timeline", Integer, nullable=False),
    Column("kafka_cluster_id", Text),
)

outbox_hold = Table(
    "outbox_hold",
    metadata,
    Column("hold", BigInteger, Identity(always=True), primary_key=True),
    Column("shard", Integer, nullable=False),
    Column("topic", Text, nullable=False),
    Column("aggregateid", Text(collation="C")),
    Column("held_at", _timestamp, nullable=False, server_default=_now),
    Column("wanted_at", _timestamp),
    Column("wanted_by", Text),
    Column("undecided", Text),
    Column("planned", BigInteger),
    Column("note", Text),
)


def _event() -> list[Column[Any]]:
    """A copy of an event's row, and how it fared; the ring may drop the original."""
    return [
        Column("id", Uuid, nullable=False),
        Column("aggregatetype", Text, nullable=False),
        Column("aggregateid", Text(collation="C")),
        Column("type", Text, nullable=False),
        Column("payload", LargeBinary),
        Column("topic", Text, nullable=False),
        Column("headers", JSONB),
        Column("traceparent", Text),
        Column("occurred_at", _timestamp, nullable=False),
        Column("position", BigInteger, nullable=False),
        Column("delta", BigInteger, nullable=False),
        Column("partition", Integer),
        Column("error", Text),
        Column("attempts", Integer, nullable=False, server_default=text("0")),
        Column("parked_at", _timestamp, nullable=False, server_default=_now),
        Column("edited_at", _timestamp),
        Column("edited_by", Text),
    ]


outbox_parked = Table(
    "outbox_parked",
    metadata,
    Column("parked", BigInteger, Identity(always=True), primary_key=True),
    Column("hold", BigInteger, ForeignKey("outbox_hold.hold"), nullable=False),
    Column("state", Text, nullable=False),
    *_event(),
    Column("sent_topic", Text, nullable=False),
    Column("numbers", ARRAY(Text), nullable=False),
    Column("starts", ARRAY(BigInteger), nullable=False),
    Column("discarded_by", Text),
    Column("discard_reason", Text),
    Index("outbox_parked_hold", "hold", "delta", "position"),
    Index("outbox_parked_id", "id"),
)

outbox_archive = Table(
    "outbox_archive",
    metadata,
    Column("parked", BigInteger, primary_key=True, autoincrement=False),
    Column("outcome", Text, nullable=False),
    Column("seq", Text, nullable=False),
    *_event(),
    Column("settled_at", _timestamp, nullable=False, server_default=_now),
    Column("settled_by", Text, nullable=False),
    Column("reason", Text),
    Index("outbox_archive_id", "id"),
)

outbox_job = Table(
    "outbox_job",
    metadata,
    Column("job", BigInteger, Identity(always=True), primary_key=True),
    Column("shard", Integer, nullable=False),
    Column("since", _timestamp),
    Column("until", _timestamp),
    Column("topic", Text),
    Column("aggregateid", Text(collation="C")),
    Column("to_topic", Text),
    Column("groups", Text, nullable=False),
    Column("requested_at", _timestamp, nullable=False, server_default=_now),
    Column("requested_by", Text, nullable=False),
    Column("canceled_by", Text),
    Column("upto", PgSnapshot),
    Column("upto_floor", BigInteger),
    Column("cursor", BigInteger, nullable=False, server_default=text("0")),
    Column("sent", BigInteger, nullable=False, server_default=text("0")),
    Column("refused", BigInteger, nullable=False, server_default=text("0")),
    Column("error", Text),
    Column("ended_at", _timestamp),
    Column("outcome", Text),
    Column("latest_per_key", Boolean, nullable=False, server_default=text("false")),
)

consumer_offset = Table(
    "consumer_offset",
    metadata,
    Column("grp", Text, nullable=False),
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("cluster_id", Text),
    Column("topic_id", Text),
    Column("next_offset", BigInteger, nullable=False),
    Column("leader_epoch", Integer),
    Column("owner_epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("owner", Text),
    Column("backend_pid", Integer),
    Column("sources", JSONB, nullable=False, server_default=text("'{}'")),
    Column("updated_at", _timestamp, nullable=False, server_default=_now),
    Column("parked", Integer, nullable=False, server_default=text("0")),
    Column("claimed_offset", BigInteger),
    Column("claims", Integer, nullable=False, server_default=text("0")),
    Column("tried_offset", BigInteger),
    Column("tries", Integer, nullable=False, server_default=text("0")),
    Column("inbox_window", Interval),
    Column("inbox_seen_at", _timestamp),
    Column("inbox_seen_high", BigInteger),
    Column("inbox_read_through", _timestamp),
    Column("run_up", BigInteger),
    Column("moves", BigInteger, nullable=False, server_default=text("0")),
    Column("moved_at", _timestamp),
    Column("moved_by", Text),
    Column("moved_why", Text),
    Column("moved_from", BigInteger),
    Column("moved_to", BigInteger),
    Column("partitions", Integer),
    Column("retired", Text),
    PrimaryKeyConstraint("grp", "topic", "partition"),
)

consumer_parked = Table(
    "consumer_parked",
    metadata,
    Column("grp", Text, nullable=False),
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("record_offset", BigInteger, nullable=False),
    Column("key", LargeBinary),
    Column("value", LargeBinary),
    Column("header_names", ARRAY(Text), nullable=False),
    Column("header_values", ARRAY(LargeBinary), nullable=False),
    Column("timestamp_kind", SmallInteger, nullable=False),
    Column("timestamp_ms", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("error", Text),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("parked_at", _timestamp, nullable=False, server_default=_now),
    Column("wish", Text),
    Column("reason", Text),
    Column("wished_by", Text),
    Column("wished_at", _timestamp),
    PrimaryKeyConstraint("grp", "topic", "partition", "record_offset"),
    Index(
        "consumer_parked_key",
        "grp",
        "topic",
        "partition",
        "key",
        postgresql_where=text("state <> 'discarded'"),
    ),
)

consumer_inbox = Table(
    "consumer_inbox",
    metadata,
    Column("grp", Text, nullable=False),
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("event_id", Text(collation="C"), nullable=False),
    Column("record_offset", BigInteger, nullable=False),
    Column(
        "slot",
        SmallInteger,
        nullable=False,
        server_default=text(
            f"mod(floor(date_part('epoch', clock_timestamp()))::bigint / {ring.SECONDS_PER_INBOX_LEAF}, "
            f"{ring.INBOX_LEAVES})"
        ),
    ),
    PrimaryKeyConstraint("event_id", "grp", "topic", "partition", "record_offset", "slot"),
    postgresql_partition_by="LIST (slot)",
)

outbox_schema = Table("outbox_schema", metadata, Column("version", Integer, nullable=False))

_HIDDEN = frozenset(
    {
        "outbox_alembic_version",
        "outbox_sealed_0",
        "outbox_sealed_1",
        *(ring.leaf(slot) for slot in range(ring.LEAVES)),
        *(ring.inbox_leaf(slot) for slot in range(ring.INBOX_LEAVES)),
    }
)


def attach(target: MetaData) -> None:
    """Describe the outbox tables in `target` too, so that autogenerate does not drop them."""
    for table in metadata.sorted_tables:
        table.to_metadata(target)


def include_name(name: str | None, type_: str, _parents: MutableMapping[Any, str | None]) -> bool:
    """For Alembic's `include_name`: the ring's leaves belong to their parent, our version table to nobody."""
    return not (type_ == "table" and name in _HIDDEN)
