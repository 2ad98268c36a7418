"""A primary with a standby that can be held back, cut off and promoted."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg

from outbox.testing.servers import postgres_copies
from outbox.testing.servers.postgres import OwnPostgres
from tests.relay.database.half import wait_for
from tests.relay.disaster.copies import Here

NAME = "replica1"
STREAMS = (
    f"SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name = '{NAME}' AND state = 'streaming'"
)


@dataclass
class Pair:
    """`here` is the outbox on the primary. The application knows both addresses."""

    primary: OwnPostgres
    standby: OwnPostgres
    here: Here

    @property
    def url(self) -> str:
        """Whichever of the two can be written to."""
        return self.url_of(self.here.name)

    def url_of(self, name: str) -> str:
        """The same for another database of theirs."""
        one, other = urlsplit(self.primary.url), urlsplit(self.standby.url)
        hosts = f"{one.hostname}:{one.port},{other.hostname}:{other.port}"
        return f"postgresql://postgres@{hosts}/{name}?target_session_attrs=read-write"

    @property
    def there(self) -> Here:
        """The outbox on the standby, once that is the primary."""
        return Here(self.standby, self.standby.url_of(self.here.name))

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """The standby receives nothing, and nobody notices yet."""
        with psycopg.connect(self.primary.url, autocommit=True) as session:
            found = session.execute("SELECT pid FROM pg_stat_replication").fetchone()
        assert found is not None
        os.kill(found[0], signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(found[0], signal.SIGCONT)

    def wait_until_it_streams(self) -> None:
        with psycopg.connect(self.primary.url, autocommit=True) as session:
            wait_for(session, STREAMS, within=60)

    def wait_until_it_has_all(self) -> None:
        """Until the standby has flushed everything that was committed before."""
        with psycopg.connect(self.primary.url, autocommit=True) as session:
            found = session.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
            assert found is not None
            wait_for(session, f"SELECT flush_lsn >= '{found[0]}' FROM pg_stat_replication", within=60)

    def fail_over(self) -> None:
        """The primary dies as by a power cut; the standby takes its place with what it has."""
        self.primary.kill()
        postgres_copies.promote(self.standby)

    def switch_over(self) -> None:
        """The primary ends in good order, having sent everything; the standby takes its place."""
        self.primary.stop()
        postgres_copies.promote(self.standby)
