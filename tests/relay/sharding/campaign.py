"""Re-shard a live database again and again under writers, kills at every step and owners that overlap.

python -m tests.relay.sharding.campaign --seconds 120 --seed 7
"""

import argparse
import logging
import random
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg

from outbox.storage import ddl
from outbox.testing.servers import start_postgres
from relay.database import Database
from relay.shard import Shard
from tests.conftest import create_engine
from tests.relay.database import campaign
from tests.relay.database.campaign import Killed
from tests.relay.database.half import shard

DRAINED = """
SELECT NOT EXISTS (SELECT FROM outbox_reshard)
   AND NOT EXISTS (SELECT FROM outbox_shard WHERE next IS NOT NULL OR frozen)
   AND NOT EXISTS (
    SELECT FROM outbox_event e WHERE NOT EXISTS (
        SELECT FROM outbox_shard s
        WHERE coalesce(hashtextextended(e.aggregateid, 0) & 255, 0) BETWEEN s.lo AND s.hi
          AND pg_visible_in_snapshot(e.xid, s.done)))
"""
"""Only then is counting allowed: whatever is missing now is missing for ever."""


@dataclass
class ReshardCampaign(campaign.Campaign):
    """Relays take any shard at random, so that each has overlapping owners who do not know of each other."""

    relays: int = 5
    death: float = 1 / 15
    reshards: int = 0
    cancels: int = 0

    def _relay(self, choose: random.Random) -> None:
        while not self.stopping.is_set():
            carrying = self._any_shard(choose)
            if carrying is None:
                self.stopping.wait(0.05)
                continue
            until = time.monotonic() + choose.uniform(0.02, 0.6)
            try:
                while not self.stopping.is_set() and time.monotonic() < until:
                    did = carrying.run_once()
                    self.stopping.wait(min(did.rest, 0.02))
                if choose.random() < 0.7:
                    carrying.finish()
            except Killed:
                pass
            finally:
                carrying.let_go()

    def _any_shard(self, choose: random.Random) -> Shard | None:
        with suppress(psycopg.Error), psycopg.connect(self.url, autocommit=True) as session:
            numbers = [n for (n,) in session.execute("SELECT shard FROM outbox_shard")]
            rows = choose.choice([3, 20, 1_000])
            return shard(
                self.url,
                self.broker,
                choose.choice(numbers),
                look_rows=rows,
                chunk_rows=rows,
                chunk_bytes=choose.choice([20, 10**6]),
            )
        return None

    def _sabotage(self, choose: random.Random) -> None:
        """Two ask for another number of shards at once, now and then one cancels; backends die."""
        while not self.stopping.wait(choose.uniform(0.05, 0.4)):
            if choose.random() < 0.3:
                self._terminate(choose)
            with suppress(psycopg.Error), psycopg.connect(self.url, autocommit=True) as session:
                if choose.random() < 0.15:
                    [(cancelled,)] = session.execute("SELECT outbox_shards_cancel()")
                    self.cancels += cancelled
                else:
                    session.execute("SELECT outbox_shards_set(%s)", [choose.choice([1, 2, 3, 5])])
                    self.reshards += 1

    def _terminate(self, choose: random.Random) -> None:
        with suppress(psycopg.Error), psycopg.connect(self.url, autocommit=True) as session:
            session.execute(campaign.SABOTAGE, {"relay": choose.random() < 0.7})

    def _settle(self) -> None:
        """Everybody has stopped: end what hangs, publish the rest, and prove that nothing is left."""
        with psycopg.connect(self.url, autocommit=True) as session:
            for (name,) in session.execute("SELECT gid FROM pg_prepared_xacts").fetchall():
                session.execute(f"COMMIT PREPARED '{name}'".encode())
            end = time.monotonic() + 60
            while session.execute(DRAINED).fetchone() != (True,):
                assert time.monotonic() < end, "not drained"
                numbers = [n for (n,) in session.execute("SELECT shard FROM outbox_shard")]
                carriers = [shard(self.url, self.broker, number) for number in numbers]
                for _ in range(10):
                    for carrying in carriers:
                        carrying.run_once()
                    time.sleep(0.01)
                for carrying in carriers:
                    carrying.finish()

    def verdict(self) -> dict[str, int]:
        with Database(self.url).connect("verdict") as session:
            generation: Any = session.execute("SELECT max(generation) FROM outbox_shard").fetchone()
        return super().verdict() | {"generations": generation[0], "cancels": self.cancels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    wrong = 0
    logging.disable(logging.WARNING)
    with start_postgres({"fsync": True, "max_connections": 80}, own=True) as server:
        end = time.monotonic() + arguments.seconds
        seed = arguments.seed
        while time.monotonic() < end:
            url = server.database(f"reshard_{seed}")
            engine = create_engine(url)
            with engine.begin() as connection:
                ddl.apply(connection)
            engine.dispose()
            ran = ReshardCampaign(server, url, seed)
            ran.run(seconds=12, crashes=seed % 3)
            found = ran.verdict()
            bad = any(found[name] for name in ("lost", "ghosts", "doubles", "inversions"))
            wrong += bad
            sys.stdout.write(f"seed {seed}, kills {ran.kills}: {found}{' WRONG' if bad else ''}\n")
            sys.stdout.flush()
            seed += 1
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
