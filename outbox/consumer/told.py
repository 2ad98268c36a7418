"""Know by which topic id a Kafka client fetches, before a record that was fetched by it is polled.

Brokers from 3.1 on are asked for records by topic id (Fetch 13), which the client takes from its metadata:
when a topic was deleted and made again, nothing of the new one comes before the client has changed the id.
Only its debug log tells: with context `metadata` it says so in a line, a handful of them at each refresh of
the metadata. The line is put, before the change, into the queue that records come from, ahead of those that
wait there: so it is here when the first record of the new topic is polled, however fast all that went.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

_CHANGED = re.compile(r"Topic (\S+) changed id from (\S+) to (\S+)$")

UNKNOWN = "A" * 22
"""How no id is written: of a topic that the client does not know yet, or of brokers without ids."""

_LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, logging.INFO, logging.DEBUG)
"""Of log_level 3 (errors) to 7 (debug)."""


class Told:
    """The logger of one Kafka client: passes on what the user asked for, and keeps the topics' ids.

    Called by the client inside its calls, in the thread that makes them.
    """

    def __init__(self, properties: Mapping[str, Any]) -> None:
        self._next = properties.get("logger") or logging.getLogger("outbox.consumer.kafka")
        given = str(properties.get("debug") or "")
        level = str(properties.get("log_level", 6)).strip()
        # What is no number the client refuses.
        most = 7 if given or not level.isdecimal() else int(level)
        self._least = _LEVELS[min(max(most, 3), 7) - 3]
        self._changed: set[str] = set()
        self._ids: dict[str, str] = {}
        self.properties = {
            **properties,
            "logger": self,
            "debug": ",".join(filter(None, (given, "metadata"))),
        }
        """What to make the client with."""

    def log(self, level: int, form: str, *values: Any) -> None:
        if level <= logging.DEBUG and values and (line := _CHANGED.search(str(values[-1]))):
            self._keep(*line.groups())
        if level >= self._least:
            self._next.log(level, form, *values)

    def reads(self, topic: str) -> str | None:
        """The id by which the client fetches this topic; None: it did not tell."""
        return self._ids.get(topic)

    def changed(self) -> set[str]:
        """Topics that have become others since the last call: what was polled before may be of either."""
        changed, self._changed = self._changed, set()
        return changed

    def _keep(self, topic: str, before: str, after: str) -> None:
        if before != UNKNOWN:
            self._changed.add(topic)
        if after == UNKNOWN:
            self._ids.pop(topic, None)
        else:
            self._ids[topic] = after
