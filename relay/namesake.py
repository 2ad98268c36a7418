"""No two relays that work go by one name: the later one ends, and says why.

Leases are by name, so that a relay that is started anew has its shards back soon. Two that live would take
each other's for their own, and claim each shard in turns for ever.
"""

from datetime import datetime, timedelta
from uuid import uuid4

from outbox.errors import ConfigurationError

SILENT = timedelta(seconds=4)
"""Without a heartbeat for so long a name is free: a relay that lives gives three in that time."""


class Namesake:
    """Tells a living relay of our name from what a dead one left behind."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.process = uuid4().hex
        """Which of those that ever had the name we are."""
        self._beats: set[datetime] = set()

    def heard(self, heartbeat: datetime) -> None:
        """Somebody else has the name, and said so last at that time. Raises ConfigurationError once it is
        certain that it lives."""
        self._beats.add(heartbeat)
        # The last word of one that was killed may come in after its death, but no second one.
        if len(self._beats) > 2:
            raise ConfigurationError(
                f"another relay goes by the name {self._name} and is at work; give each its own --instance "
                "(OUTBOX_INSTANCE), or none, then each has a name of its own"
            )
