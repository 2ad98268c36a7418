"""Write down the health of a Consumer, a Pipe or a State as Prometheus reads it, in the relay's manner."""

from collections.abc import Iterable, Sequence

from outbox.consumer import Health, MemberHealth, PartitionHealth, StateHealth, Status
from relay.telemetry.metrics import Family, exposition


def page(health: Health, states: Sequence[StateHealth] = ()) -> str:
    """All members of a Consumer or Pipe on one page, and the States beside it."""
    return exposition(families(health, states))


def families(health: Health, states: Sequence[StateHealth] = ()) -> list[Family]:
    """What is measured, with its meaning."""
    return [*_of_members(health), *_of_partitions(health), *_of_states(states)]


def _of_members(health: Health) -> Iterable[Family]:
    alive = Family("outbox_consumer_member_alive", "gauge", "Whether the member's thread works.")
    trouble = Family(
        "outbox_consumer_member_trouble", "gauge", "What servers withhold at the moment; /readyz says what."
    )
    applied = Family(
        "outbox_consumer_applied_records_total", "counter", "Records whose results this member stored."
    )
    discarded = Family(
        "outbox_consumer_discarded_records_total", "counter", "Parked records put away as nobody wants them."
    )
    errors = Family(
        "outbox_consumer_client_errors_total", "counter", "Errors that the Kafka client told of, by name."
    )
    rebalances = Family(
        "outbox_consumer_rebalances_total", "counter", "Rebalances since the Kafka client began."
    )
    brokers = Family("outbox_consumer_brokers_up", "gauge", "Brokers that the Kafka client is connected to.")
    queued = Family("outbox_consumer_queued_records", "gauge", "Records fetched and not polled yet.")
    received = Family(
        "outbox_consumer_received_bytes_total", "counter", "Bytes of records since the Kafka client began."
    )
    for number, member in enumerate(health.members):
        labels = {"group": health.group, "member": number}
        alive.add(member.alive, **labels)
        trouble.add(len(member.trouble), **labels)
        applied.add(member.applied, **labels)
        discarded.add(member.discarded, **labels)
        for name, count in sorted(member.client.errors.items()):
            errors.add(count, **labels, error=name)
        rebalances.add(member.client.rebalances, **labels)
        brokers.add(member.client.brokers_up, **labels)
        queued.add(member.client.queued, **labels)
        received.add(member.client.received_bytes, **labels)
    return [alive, trouble, applied, discarded, errors, rebalances, brokers, queued, received]


def _of_partitions(health: Health) -> Iterable[Family]:
    state = Family(
        "outbox_consumer_partition_state", "gauge", "1 for the state the partition is in, 0 for the others."
    )
    offset = Family("outbox_consumer_next_offset", "gauge", "The first offset that is not applied yet.")
    lag = Family(
        "outbox_consumer_lag_records",
        "gauge",
        "Offsets between that and the end, as last seen by the client.",
    )
    records = Family(
        "outbox_consumer_partition_records_total", "counter", "Records done with since the member has it."
    )
    last = Family(
        "outbox_consumer_last_applied_timestamp_seconds", "gauge", "When it last got on, since 1970."
    )
    parked = Family("outbox_consumer_parked_records", "gauge", "Its records that wait in the database.")
    stuck = Family(
        "outbox_consumer_stuck_seconds",
        "gauge",
        "How long it has not got on although it should; 0 if it does.",
    )
    for partition in _partitions(health.members):
        labels = {"group": health.group, "topic": partition.topic, "partition": partition.partition}
        for known in Status:
            state.add(partition.status is known, **labels, state=known.value)
        if partition.next_offset is not None:
            offset.add(partition.next_offset, **labels)
        if partition.lag is not None:
            lag.add(partition.lag, **labels)
        records.add(partition.applied, **labels)
        if partition.applied_at is not None:
            last.add(partition.applied_at.timestamp(), **labels)
        parked.add(partition.parked, **labels)
        stuck.add(0 if partition.stuck is None else partition.stuck.total_seconds(), **labels)
    return [state, offset, lag, records, last, parked, stuck]


def _of_states(states: Sequence[StateHealth]) -> Iterable[Family]:
    ready = Family("outbox_state_ready", "gauge", "Whether the State has caught up and goes on reading.")
    trouble = Family(
        "outbox_state_trouble", "gauge", "What is wrong with it at the moment; /readyz says what."
    )
    keys = Family("outbox_state_keys", "gauge", "Keys that it holds.")
    lag = Family("outbox_state_lag_records", "gauge", "Offsets not read yet.")
    skipped = Family(
        "outbox_state_skipped_records_total",
        "counter",
        "Records that could not be read or are of another type.",
    )
    repeats = Family("outbox_state_repeats_total", "counter", "Records not newer than what their key holds.")
    for number, state in enumerate(states):
        labels = {"state": number, "topics": ",".join(state.topics)}
        ready.add(state.ready, **labels)
        trouble.add(len(state.trouble), **labels)
        keys.add(state.keys, **labels)
        lag.add(state.lag, **labels)
        skipped.add(state.skipped, **labels)
        repeats.add(state.repeats, **labels)
    return [ready, trouble, keys, lag, skipped, repeats]


def _partitions(members: Iterable[MemberHealth]) -> Iterable[PartitionHealth]:
    return (partition for member in members for partition in member.partitions)
