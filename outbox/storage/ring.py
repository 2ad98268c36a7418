"""The ring of leaves that events are written into, so that space comes back by TRUNCATE, not by DELETE."""

LEAVES = 8
SECONDS_PER_LEAF = 600

INBOX_LEAVES = 16
SECONDS_PER_INBOX_LEAF = 43_200
"""Sixteen leaves of twelve hours: one that holds ids of seven days is empty before its turn comes again."""


def leaf(slot: int) -> str:
    """Name of the partition that holds the rows of `slot`."""
    if not 0 <= slot < LEAVES:
        raise ValueError(f"slot {slot} is not in 0..{LEAVES - 1}")
    return f"outbox_event_{slot}"


def inbox_leaf(slot: int) -> str:
    """Name of the partition of consumer_inbox that holds the ids of `slot`."""
    if not 0 <= slot < INBOX_LEAVES:
        raise ValueError(f"slot {slot} is not in 0..{INBOX_LEAVES - 1}")
    return f"consumer_inbox_{slot}"
