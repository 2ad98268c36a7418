"""The ring of leaves that events are written into, so that space comes back by TRUNCATE, not by DELETE."""

LEAVES = 8
SECONDS_PER_LEAF = 600


def leaf(slot: int) -> str:
    """Name of the partition that holds the rows of `slot`."""
    if not 0 <= slot < LEAVES:
        raise ValueError(f"slot {slot} is not in 0..{LEAVES - 1}")
    return f"outbox_event_{slot}"
