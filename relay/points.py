"""The steps of a relay's round that observers are told of (`outbox.hooks`), in their order."""

CLAIMED = "relay.claimed"
"""The shard is ours: `shard`, `epoch`. Nothing is planned or sent yet under this epoch."""

FENCING = "relay.fencing"
"""Former producers of the shard are fenced next: `shard`. Mode transactional, and a change of mode."""

TAKEN_OVER = "relay.taken_over"
"""Row and progress topic agree: `shard`, `low`. Nothing is sent yet under this claim."""

RECORDED = "relay.recorded"
"""A change of mode: the shard's first progress record is committed, the row says the old mode: `shard`."""

SWITCHED = "relay.switched"
"""The row says the new mode; nothing is sent in it yet: `shard`, `mode`."""

PLANNED = "relay.planned"
"""A delta is durable and none of it is sent: `shard`, `delta`."""

SENDING = "relay.sending"
"""A chunk goes to the producer next: `shard`, `rows`, `last` (position)."""

SETTLED = "relay.settled"
"""Mode transactional: the brokers have a whole transaction, uncommitted: `shard`, `last` (position)."""

COMMITTING = "relay.committing"
"""Its commit is on its way, and nobody knows whether it is in: `shard`, `last`."""

ACKNOWLEDGED = "relay.acknowledged"
"""Every row up to position `low` is in: `shard`, `low`. Not written down yet."""

CONFIRMED = "relay.confirmed"
"""`done := next` was written down alone, because nothing followed: `shard`, `delta`."""

FENCED = "relay.fenced"
"""Another relay claimed the shard: `shard`. Nothing was changed."""

HALTED = "relay.halted"
"""A row was refused for good: `shard`, `reason`."""

REBASING = "relay.rebasing"
"""A step of `outbox-relay rebase` is done and nothing is committed: `step`."""

MOVED = "relay.moved"
"""Scheduled events that were due are among the others now: `count`."""

ADOPTING = "relay.adopting"
"""A step of `outbox-relay adopt` is done and nothing is committed: `step`."""

END_SET = "relay.reshard.end_set"
"""Where all shards end before their number changes is written down, by this relay or another: `shard`."""

AT_END = "relay.reshard.at_end"
"""A shard has everything up to the common end acknowledged: `shard`. The switch may follow."""

RESHARDED = "relay.reshard.switched"
"""The shards of a new generation stand in place of the old ones: `shard`, the old one that saw it."""

RELEASE_PLANNED = "relay.release_planned"
"""Parked rows are frozen as a delta of their own, none of it is sent: `shard`, `delta`."""

RELEASING = "relay.releasing"
"""A parked row is looked for and, if need be, sent next: `shard`, `parked`, `number`."""

RELEASE_SENT = "relay.release_sent"
"""Every row of a release is acknowledged, or cannot be; not written down yet: `shard`, `delta`."""

RELEASED = "relay.released"
"""What became of a release is written down: `shard`, `delta`, `events`."""

REPLAY_PLANNED = "relay.replay_planned"
"""A window of a replay is a delta of its own, none of it is sent: `shard`, `delta`, `job`."""

REPLAYING = "relay.replaying"
"""A chunk of a replay goes to the producer next: `shard`, `job`, `rows`, `last` (position)."""

REPLAYED = "relay.replayed"
"""A window of a replay is acknowledged and written down: `shard`, `delta`, `job`, `cursor`."""

PARKED = "relay.parked"
"""A refused row was set aside and its key waits: `shard`, `event`, `reason`."""
