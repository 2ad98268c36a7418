"""Say what a Kafka client logs once: librdkafka repeats a refused connection twenty times a second."""

import logging
import re
import time

EVERY = 30.0
"""Seconds until a message that goes on is said again."""

MOST = 1_000
"""Messages remembered; more are no repeats of each other anyway."""

_VARIES = re.compile(r"#(?:producer|consumer)-\d+| \(after \d+ms.*|\d+ request\(s\) timed out.*")
"""What differs between two messages that say the same: the client's number, durations and counts."""


class Seldom(logging.Filter):
    """Drops what was said less than half a minute ago, but for what is told to those who look for a fault."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.INFO:
            return True
        what = _VARIES.sub("", record.getMessage())
        now = time.monotonic()
        if now - self._said.get(what, -EVERY) < EVERY:
            return False
        if len(self._said) >= MOST:
            self._said.clear()
        self._said[what] = now
        return True


def quiet(name: str) -> logging.Logger:
    """The logger `name`, which does not repeat itself."""
    logger = logging.getLogger(name)
    if not any(isinstance(known, Seldom) for known in logger.filters):
        logger.addFilter(Seldom())
    return logger
