"""A connection that an actor has to itself: opened when needed, closed after a failure, broken off at a stop.

Whoever lost it opens another one with the next piece of work, so that an outage needs no care of its own.
"""

from relay import database
from relay.database import ANSWER_WITHIN, Connection, Database


class OwnConnection:
    """`open()` and `close()` belong to the actor's thread, `break_off()` to any.

    `purpose` shows in pg_stat_activity; `answer_within`: seconds after which a statement without an answer
    fails.
    """

    def __init__(self, where: Database, purpose: str, *, answer_within: float = ANSWER_WITHIN) -> None:
        self._database = where
        self._purpose = purpose
        self._answer_within = answer_within
        self._connection: Connection | None = None

    def open(self) -> Connection:
        """The one at hand, or a new one. Raises what `Database.connect` raises."""
        if self._connection is None:
            self._connection = self._database.connect(self._purpose, answer_within=self._answer_within)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def break_off(self) -> None:
        """From another thread: end whatever waits for the database."""
        if self._connection is not None:
            database.break_off(self._connection)
